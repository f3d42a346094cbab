//! `strided`: every step-th key, counted from the query or from a fixed phase (Child et al., "Generating Long
//! Sequences with Sparse Transformers", 2019).

use std::ops::Range;

use super::bits::fill_steps;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::{Cover, KeySet, Leaf};
use crate::error::Result;
use crate::spec::expr::{Expr, Var};
use crate::spec::quoted;

/// `strided`
pub const STRIDED: NodeDef = NodeDef {
    name: "strided",
    meaning: "a query attends to every step-th key (diagonal: step divides q - k; vertical: k - phase)",
    args: &[
        ArgDef { name: "step", kind: Kind::Integer, default: None, meaning: "distance between the keys" },
        ArgDef {
            name: "mode",
            kind: Kind::Choice(&["diagonal", "vertical"]),
            default: None,
            meaning: "counted from q or from phase",
        },
        ArgDef {
            name: "phase",
            kind: Kind::Integer,
            default: Some("0"),
            meaning: "vertical only; may use h, the head",
        },
    ],
    forms: &[],
    example: "strided: {step: 32, mode: vertical, phase: \"h % 4\"}",
    read,
};

fn read<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let step = args.int("step", 1, None)?;
    args.require("mode", "diagonal")?;
    if args.choice("mode", &["diagonal", "vertical"])? == "diagonal" {
        if let Some(phase) = args.get("phase") {
            let message = "`phase` does not go with `mode: diagonal`";
            return Err(args.source.error(phase.at, message, "no `phase`, or `mode: vertical`"));
        }
        return Ok(Box::new(move |scope| leaf(Diagonal { step: step.at(scope)?, kv_len: scope.kv_len as i64 })));
    }
    let vars = [Var::N, Var::M, Var::D, Var::H];
    let phase = args.int_over("phase", i64::MIN, Some(0), &vars)?;
    Ok(Box::new(move |scope| {
        let step = step.at(scope)?;
        let env = scope.env();
        let heads = if phase.expr.uses(Var::H) { scope.heads } else { 1 };
        let residues = (0..heads)
            .map(|head| Ok(phase.eval(&env.with(Var::H, head))?.rem_euclid(step)))
            .collect::<Result<Vec<_>>>()?;
        leaf(Vertical {
            step,
            residues,
            phase: phase.expr.substitute(&Var::LENGTHS, &env),
            kv_len: scope.kv_len as i64,
        })
    }))
}

/// Those of `keys` in the classes `first..end` modulo `step`.
fn classes(first: i64, end: i64, step: i64, keys: Range<i64>) -> KeySet {
    if end - first >= step {
        return KeySet::span(keys.start, keys.end);
    }
    let mut set = KeySet::empty();
    let mut shift = (keys.start - end).div_euclid(step) * step;
    while first + shift < keys.end {
        // Nothing is pushed of what is empty.
        set.push((first + shift).max(keys.start), (end + shift).min(keys.end));
        shift += step;
    }
    set
}

/// Those of `keys` that there are.
fn clip(keys: &Range<i64>, kv_len: i64) -> Range<i64> {
    keys.start.max(0)..keys.end.min(kv_len)
}

#[derive(Debug)]
struct Diagonal {
    step: i64,
    kv_len: i64,
}

impl Leaf for Diagonal {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        (q - k as i64) % self.step == 0
    }

    fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        self.cover_within(head, queries, &(0..self.kv_len))
    }

    fn cover_within(&self, _: usize, queries: Range<i64>, keys: &Range<i64>) -> Cover {
        let some = classes(queries.start, queries.end, self.step, clip(keys, self.kv_len));
        let all = if self.step == 1 || queries.end - queries.start == 1 { some.clone() } else { KeySet::empty() };
        Cover { some, all }
    }

    fn cover_class(&self, head: usize, first: i64, count: i64, step: i64) -> Cover {
        if step % self.step != 0 {
            return self.cover(head, first..first + (count - 1) * step + 1);
        }
        let keys = KeySet::span(0, self.kv_len);
        Cover { some: keys.clone(), all: keys }
    }

    fn modulus(&self) -> u64 {
        self.step as u64
    }

    fn words(&self, _: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        fill_steps(blocks, out, 0, self.kv_len, self.step, q);
    }

    fn period(&self) -> Option<u64> {
        Some(1)
    }

    fn print(&self) -> String {
        format!("strided: {{step: {}, mode: diagonal}}", self.step)
    }
}

#[derive(Debug)]
struct Vertical {
    step: i64,
    /// The phase modulo the step, by head; one entry where heads agree.
    residues: Vec<i64>,
    phase: Expr,
    kv_len: i64,
}

impl Vertical {
    fn residue(&self, head: usize) -> i64 {
        self.residues.get(head).or(self.residues.first()).copied().unwrap_or(0)
    }
}

impl Leaf for Vertical {
    fn allows(&self, head: usize, _: i64, k: usize) -> bool {
        (k as i64 - self.residue(head)) % self.step == 0
    }

    fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        self.cover_within(head, queries, &(0..self.kv_len))
    }

    fn cover_within(&self, head: usize, _: Range<i64>, keys: &Range<i64>) -> Cover {
        let residue = self.residue(head);
        let set = classes(residue, residue + 1, self.step, clip(keys, self.kv_len));
        Cover { some: set.clone(), all: set }
    }

    fn words(&self, head: usize, _: i64, blocks: &[u32], out: &mut [u64]) {
        fill_steps(blocks, out, 0, self.kv_len, self.step, self.residue(head));
    }

    fn depends_on_head(&self) -> bool {
        self.phase.uses(Var::H)
    }

    fn period(&self) -> Option<u64> {
        Some(self.step as u64)
    }

    fn print(&self) -> String {
        format!("strided: {{step: {}, mode: vertical, phase: {}}}", self.step, quoted(&self.phase.to_string()))
    }
}

//! `blocks: {input}`, `keys: {input}` and `top_blocks`: neighbors that are picked from the data.
//!
//! The leaf knows no points until [`Pattern::bind`](super::Pattern::bind) gives it what was picked for one batch element.
//! `top_blocks` is picked from q and k, by [`crate::select`] or by the interpreter; the others come with the call.

use std::ops::Range;
use std::sync::Arc;

use super::bind::{Awaited, Awaits, Known};
use super::bits::fill;
use super::listed::Listed;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, Scope, leaf};
use super::picks::{Keep, Picked, TopBlocks};
use super::rows::Rows;
use super::{Cover, KeySet, Leaf, MAX_LENGTH};
use crate::error::{Error, Result};
use crate::spec::quoted;

/// `keys`
pub const KEYS: NodeDef = NodeDef {
    name: "keys",
    meaning: "k is in the list of q that comes with the call",
    args: &[ArgDef {
        name: "input",
        kind: Kind::Input,
        default: None,
        meaning: "i32 lists given at run time, [batch or 1, heads or kv_heads or 1, m, c]; -1 ends a list",
    }],
    forms: &[],
    example: "keys: {input: picked}",
    read: read_keys,
};

/// `top_blocks`
pub const TOP_BLOCKS: NodeDef = NodeDef {
    name: "top_blocks",
    meaning: "the key block is among those that score best for the query block, by the means of q and k",
    args: &[
        ArgDef { name: "block", kind: Kind::Integer, default: None, meaning: "tokens in a block" },
        ArgDef { name: "keep", kind: Kind::Integer, default: None, meaning: "key blocks kept for a query block" },
        ArgDef {
            name: "mass",
            kind: Kind::Share,
            default: None,
            meaning: "the fewest blocks, best first, whose softmax over the scaled block scores reaches it, 0 to 1",
        },
        ArgDef {
            name: "score",
            kind: Kind::Choice(&["mean"]),
            default: Some("mean"),
            meaning: "mean: the dot product of the means of the block's queries and of its keys",
        },
        ArgDef {
            name: "among",
            kind: Kind::Choice(&["all", "past"]),
            default: Some("all"),
            meaning: "past: only key blocks that begin at or before the block's last query, its own always kept",
        },
    ],
    forms: &[&["keep"], &["mass"]],
    example: "top_blocks: {block: 64, keep: 4, among: past}",
    read: read_top,
};

/// What `blocks: {input}` waits for.
pub(super) fn blocks_of_call(name: String, block: usize, scope: &Scope) -> Unbound {
    let text = format!("blocks: {{block: {block}, input: {}}}", quoted(&name));
    let shape = [scope.q_len.div_ceil(block), scope.kv_len.div_ceil(block)];
    Unbound { awaited: Awaited { name, what: Awaits::Blocks(shape) }, block, text, ..Unbound::of(scope) }
}

fn read_keys<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let name = args.require("input", "picked")?.text(args.source, "input")?.to_string();
    Ok(Box::new(move |scope| {
        let text = format!("keys: {{input: {}}}", quoted(&name));
        let what = Awaits::Keys([scope.q_len, scope.kv_len]);
        leaf(Unbound { awaited: Awaited { name, what }, block: 0, text, ..Unbound::of(scope) })
    }))
}

fn read_top<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let block = args.int("block", 1, None)?;
    args.choice("score", &["mean"])?;
    let past = args.choice("among", &["all", "past"])? == "past";
    let (keep, mass) = match (args.get("keep"), args.get("mass")) {
        (Some(_), None) => (Some(args.int("keep", 1, None)?), 0.0),
        (None, Some(value)) => (None, value.float(args.source, "mass", f64::MIN_POSITIVE, 1.0)?),
        (Some(_), Some(mass)) => {
            return Err(args.source.error(mass.at, "`mass` does not go with `keep`", "one of the two"));
        }
        (None, None) => return Err(args.refuse("`keep` is missing in top_blocks", "`keep: 8` or `mass: 0.9`")),
    };
    Ok(Box::new(move |scope| {
        let block = block.at_most(scope, MAX_LENGTH as i64)? as usize;
        let keep = match keep {
            Some(count) => Keep::Count(count.at_most(scope, MAX_LENGTH as i64)? as usize),
            None => Keep::Mass(mass),
        };
        let lengths = (scope.q_len, scope.kv_len);
        let top = TopBlocks { block, keep, past, lengths, first: scope.first() };
        let awaited = Awaited { name: top.to_string(), what: Awaits::Top(top) };
        leaf(Unbound { awaited, block, text: top.to_string(), ..Unbound::of(scope) })
    }))
}

/// Neighbors that are not known yet.
#[derive(Debug)]
pub(super) struct Unbound {
    awaited: Awaited,
    /// Tokens in a block; 0 where keys are listed one by one.
    block: usize,
    heads: usize,
    kv_len: usize,
    first: i64,
    text: String,
}

impl Unbound {
    fn of(scope: &Scope) -> Self {
        let awaited = Awaited { name: String::new(), what: Awaits::Segments };
        let (heads, kv_len, first) = (scope.heads, scope.kv_len, scope.first());
        Self { awaited, block: 0, heads, kv_len, first, text: String::new() }
    }
}

impl Leaf for Unbound {
    fn allows(&self, _: usize, _: i64, _: usize) -> bool {
        false
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        Cover { some: KeySet::span(0, self.kv_len as i64), all: KeySet::empty() }
    }

    fn depends_on_head(&self) -> bool {
        true
    }

    fn awaits(&self) -> Option<&Awaited> {
        Some(&self.awaited)
    }

    fn bind(&self, known: Known<'_>) -> Result<Option<Arc<dyn Leaf>>> {
        let Known::Picked(picked) = known else { return Ok(None) };
        if picked.heads() == 0 || !self.heads.is_multiple_of(picked.heads()) {
            return Err(Error::Shape {
                tensor: format!("input `{}`", self.awaited.name),
                expected: format!("heads of their own for a divisor of {} heads", self.heads),
                found: format!("{} heads", picked.heads()),
            });
        }
        let share = self.heads / picked.heads();
        if self.block == 0 {
            let rows = match picked.heads() {
                1 => vec![picked.rows_of(0).clone()],
                _ => (0..self.heads).map(|head| picked.rows_of(head / share).clone()).collect(),
            };
            return Ok(Some(leaf(Listed { rows, first: self.first, text: self.text.clone() })?));
        }
        let (block, first, text) = (self.block as i64, self.first, self.text.clone());
        Ok(Some(leaf(PickedBlocks { block, first, share, picked: picked.clone(), text })?))
    }

    fn print(&self) -> String {
        self.text.clone()
    }
}

/// Picked key blocks; blocks of queries are counted from the first query.
#[derive(Debug)]
struct PickedBlocks {
    block: i64,
    /// Position of the first query.
    first: i64,
    /// Heads that share a row.
    share: usize,
    picked: Picked,
    text: String,
}

impl PickedBlocks {
    fn rows(&self, head: usize) -> &Rows {
        self.picked.rows_of((head / self.share).min(self.picked.heads() - 1))
    }

    fn row_of(&self, q: i64) -> usize {
        ((q - self.first).max(0) / self.block) as usize
    }

    fn keys(&self, blocks: &[u32]) -> KeySet {
        let mut keys = KeySet::empty();
        for &block in blocks {
            let start = i64::from(block) * self.block;
            keys.push(start, start + self.block);
        }
        keys
    }
}

impl Leaf for PickedBlocks {
    fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        let block = (k as i64 / self.block) as u32;
        q >= self.first && self.rows(head).row(self.row_of(q)).binary_search(&block).is_ok()
    }

    fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        let rows = self.rows(head);
        let (first, end) = (self.row_of(queries.start), self.row_of(queries.end - 1) + 1);
        if first + 1 == end {
            let keys = self.keys(rows.row(first));
            return Cover { some: keys.clone(), all: keys };
        }
        Cover { some: self.keys(&rows.union(first..end)), all: self.keys(&rows.common(first..end)) }
    }

    fn words(&self, head: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        let row = self.rows(head).row(self.row_of(q));
        for (i, &block) in blocks.iter().enumerate() {
            let (first, end) = (i64::from(block) * 64, i64::from(block) * 64 + 64);
            let from = row.partition_point(|&b| (i64::from(b) + 1) * self.block <= first);
            for &b in row[from..].iter().take_while(|&&b| i64::from(b) * self.block < end) {
                let start = i64::from(b) * self.block;
                fill(&blocks[i..=i], &mut out[i..=i], start, start + self.block);
            }
        }
    }

    fn depends_on_head(&self) -> bool {
        self.picked.heads() > 1
    }

    fn print(&self) -> String {
        self.text.clone()
    }
}

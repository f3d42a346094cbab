//! `where`: whatever a predicate says.
//!
//! Where its evaluation at a point is undefined (a division by zero, a root of a negative number, an
//! overflow), the point is not allowed; `and` and `or` leave their right side alone where the left decides.

use std::ops::Range;

use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::{Cover, KeySet, Leaf};
use crate::error::Result;
use crate::spec::expr::{Bounds, Env, Expr, LanePredicate, LaneStack, Truth, Var};
use crate::spec::quoted;

/// `where`
pub const WHERE: NodeDef = NodeDef {
    name: "where",
    meaning: "(q, k) is allowed where the condition holds",
    args: &[ArgDef { name: "", kind: Kind::Condition, default: None, meaning: "over q, k, h, n and m" }],
    forms: &[],
    example: "where: \"k <= q and (q - k) % 16 == 0\"",
    read,
};

fn read<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let predicate = args.value.predicate(args.source, "where", &Var::ALL)?;
    Ok(Box::new(move |scope| {
        let predicate = predicate.substitute(&Var::LENGTHS, &scope.env());
        let lanes = LanePredicate::new(&predicate);
        leaf(Where { by_head: predicate.uses(Var::H), predicate, lanes, kv_len: scope.kv_len })
    }))
}

/// Key ranges that interval arithmetic leaves undecided are not split below this: the exact bits of a block
/// cost less than deciding its parts.
const GRAIN: usize = 64;

#[derive(Debug)]
struct Where {
    /// Over q, k and h; the lengths are put in.
    predicate: Expr,
    /// The same, compiled; there for whatever the parser reads.
    lanes: Option<LanePredicate>,
    by_head: bool,
    kv_len: usize,
}

impl Where {
    fn truth(&self, head: usize, queries: &Range<i64>, keys: &Range<usize>) -> Truth {
        let ranges = Bounds::at(&Env::default().with(Var::H, head)).with(Var::Q, queries.start, queries.end - 1).with(
            Var::K,
            keys.start as i64,
            keys.end as i64 - 1,
        );
        self.predicate.truth_bounds(&ranges)
    }

    fn split(&self, head: usize, queries: &Range<i64>, keys: Range<usize>, cover: &mut Cover) {
        let truth = self.truth(head, queries, &keys);
        if truth.never() {
            return;
        }
        if truth.always() || keys.len() <= GRAIN {
            cover.some.push(keys.start as i64, keys.end as i64);
            if truth.always() {
                cover.all.push(keys.start as i64, keys.end as i64);
            }
            return;
        }
        // Split at a multiple of the grain, so that what stays undecided are whole blocks.
        let middle = keys.start + (keys.len() / 2).next_multiple_of(GRAIN);
        self.split(head, queries, keys.start..middle, cover);
        if middle < keys.end {
            self.split(head, queries, middle..keys.end, cover);
        }
    }
}

impl Leaf for Where {
    fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        self.predicate.holds(&Env::default().with(Var::H, head).at(Var::Q, q).with(Var::K, k))
    }

    fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        let mut cover = Cover { some: KeySet::empty(), all: KeySet::empty() };
        if self.kv_len > 0 {
            self.split(head, &queries, 0..self.kv_len, &mut cover);
        }
        cover
    }

    fn words(&self, head: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        let env = Env::default().with(Var::H, head).at(Var::Q, q);
        // Bounds have been asked for all queries of a block; to ask them for each costs as much as the bits.
        let mut stack = LaneStack::default();
        if let Some(lanes) = &self.lanes {
            lanes.start(&env, &mut stack);
        }
        for (&block, word) in blocks.iter().zip(out) {
            let first = block as i64 * 64;
            *word = match &self.lanes {
                Some(lanes) => lanes.holds(first, &mut stack),
                None => (0..64)
                    .fold(0, |word, bit| word | u64::from(self.predicate.holds(&env.at(Var::K, first + bit))) << bit),
            };
        }
    }

    fn depends_on_head(&self) -> bool {
        self.by_head
    }

    fn print(&self) -> String {
        format!("where: {}", quoted(&self.predicate.to_string()))
    }
}

//! `window`: keys near the query, possibly with gaps between them.

use std::ops::Range;

use super::bits::{fill, fill_steps};
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::{Cover, KeySet, Leaf, MAX_LENGTH};
use crate::error::Result;

/// `window`
pub const WINDOW: NodeDef = NodeDef {
    name: "window",
    meaning: "a query attends to the keys around it: -left <= (k - q) / dilation <= right",
    args: &[
        ArgDef { name: "radius", kind: Kind::Integer, default: None, meaning: "keys on each side" },
        ArgDef { name: "left", kind: Kind::Integer, default: None, meaning: "keys before the query" },
        ArgDef { name: "right", kind: Kind::Integer, default: None, meaning: "keys after the query" },
        ArgDef { name: "dilation", kind: Kind::Integer, default: Some("1"), meaning: "distance between those keys" },
    ],
    forms: &[&["radius"], &["left", "right"]],
    example: "window: {radius: 128}",
    read,
};

fn read<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let (left, right) = match (args.get("radius"), args.get("left"), args.get("right")) {
        (Some(_), None, None) => (args.int("radius", 0, None)?, args.int("radius", 0, None)?),
        (None, Some(_), Some(_)) => (args.int("left", 0, None)?, args.int("right", 0, None)?),
        (Some(_), Some(extra), _) | (Some(_), None, Some(extra)) => {
            let message = "`radius` does not go with `left` or `right`";
            return Err(args.source.error(extra.at, message, "either `radius`, or `left` and `right`"));
        }
        (None, None, None) => {
            return Err(args.refuse("`radius` is missing in window", "`radius: 128`, or `left` and `right`"));
        }
        (None, Some(_), None) => return Err(args.refuse("`right` is missing in window", "`right: 0`")),
        (None, None, Some(_)) => return Err(args.refuse("`left` is missing in window", "`left: 0`")),
    };
    let dilation = args.int("dilation", 1, Some(1))?;
    Ok(Box::new(move |scope| {
        let dilation = dilation.at_most(scope, MAX_LENGTH as i64)?;
        // Steps that reach beyond every length change nothing, and without them products stay small.
        let reach = MAX_LENGTH as i64 / dilation + 1;
        let (left, right) = (left.at_most(scope, reach)?, right.at_most(scope, reach)?);
        leaf(Window { left, right, dilation, kv_len: scope.kv_len as i64 })
    }))
}

#[derive(Debug)]
struct Window {
    left: i64,
    right: i64,
    dilation: i64,
    kv_len: i64,
}

impl Leaf for Window {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        let offset = k as i64 - q;
        -self.left * self.dilation <= offset && offset <= self.right * self.dilation && offset % self.dilation == 0
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        let (first, end) = (queries.start, queries.end);
        let (left, right) = (self.left * self.dilation, self.right * self.dilation);
        let count = end - first;
        // As many queries as the dilation meet every residue, and leave no gap.
        let some = if count >= self.dilation {
            KeySet::span(first - left, end + right)
        } else {
            let mut some = KeySet::empty();
            let lowest = (-self.left).max((-end).div_euclid(self.dilation));
            let highest = self.right.min((self.kv_len - first).div_euclid(self.dilation));
            for step in lowest..=highest {
                some.push(first + step * self.dilation, end + step * self.dilation);
            }
            some
        };
        let all = match (self.dilation, count) {
            (1, _) => KeySet::span(end - 1 - left, first + right + 1),
            (_, 1) => some.clone(),
            _ => KeySet::empty(),
        };
        Cover { some, all }
    }

    fn cover_class(&self, head: usize, first: i64, count: i64, step: i64) -> Cover {
        let last = first + (count - 1) * step;
        if step % self.dilation != 0 {
            return self.cover(head, first..last + 1);
        }
        // Keys of the class are apart by multiples of the dilation.
        let (left, right) = (self.left * self.dilation, self.right * self.dilation);
        Cover { some: KeySet::span(first - left, last + right + 1), all: KeySet::span(last - left, first + right + 1) }
    }

    fn modulus(&self) -> u64 {
        self.dilation as u64
    }

    fn words(&self, _: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        let (lo, hi) = (q - self.left * self.dilation, q + self.right * self.dilation + 1);
        if self.dilation == 1 {
            fill(blocks, out, lo, hi);
        } else {
            fill_steps(blocks, out, lo, hi, self.dilation, q);
        }
    }

    fn period(&self) -> Option<u64> {
        Some(1)
    }

    fn print(&self) -> String {
        format!("window: {{left: {}, right: {}, dilation: {}}}", self.left, self.right, self.dilation)
    }
}

//! `blocks: {input}`, `keys: {input}` and `top_blocks`: neighbors that are picked from the data.
//!
//! The leaf knows no points until [`Pattern::bind`](super::Pattern::bind) gives it what was picked for one batch element.
//! `top_blocks` is picked from q and k, by [`crate::select`] or by the interpreter; the others come with the call.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView3, Axis};

use super::bind::{Awaited, Awaits, Known};
use super::bits::fill;
use super::listed::Listed;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, Scope, leaf};
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

/// How `top_blocks` picks, at given lengths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopBlocks {
    /// Tokens in a block.
    pub block: usize,
    /// How many are kept.
    pub keep: Keep,
    /// Only key blocks that begin at or before the block's last query.
    pub past: bool,
    /// Queries and keys.
    pub lengths: (usize, usize),
    /// Position of the first query.
    pub first: i64,
}

/// How many key blocks are kept for a query block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// So many.
    Count(usize),
    /// As many as reach this share of the softmax over block scores.
    Mass(f64),
}

impl TopBlocks {
    /// Blocks of queries and of keys.
    pub const fn blocks(&self) -> (usize, usize) {
        (self.lengths.0.div_ceil(self.block), self.lengths.1.div_ceil(self.block))
    }

    /// The key blocks that a block of queries chooses among: so many from the first on, and the one that is always kept.
    pub fn among(&self, row: usize) -> (usize, Option<usize>) {
        let (rows, columns) = self.blocks();
        if !self.past || row >= rows {
            return (columns, None);
        }
        let last = self.first + ((row + 1) * self.block).min(self.lengths.0) as i64 - 1;
        match usize::try_from(last.div_euclid(self.block as i64)) {
            Ok(own) => (columns.min(own + 1), Some(own).filter(|&own| own < columns)),
            // Queries before the first key.
            Err(_) => (0, None),
        }
    }
}

impl std::fmt::Display for TopBlocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let among = if self.past { "past" } else { "all" };
        let keep = match self.keep {
            Keep::Count(count) => format!("keep: {count}"),
            Keep::Mass(mass) => format!("mass: {mass:?}"),
        };
        write!(f, "top_blocks: {{block: {}, {keep}, score: mean, among: {among}}}", self.block)
    }
}

/// What was picked for one batch element: ascending key blocks of every query block, or keys of every query, by head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picked(Arc<Vec<Rows>>);

impl Picked {
    /// From a layout `[heads, query blocks, key blocks]`, non-zero where a block is picked.
    pub fn from_layout(layout: &ArrayView3<'_, u8>) -> Self {
        let of_head = |head: ndarray::ArrayView2<'_, u8>| {
            Rows::build(head.nrows(), head.nrows(), |row, keys| {
                let row = head.row(row);
                keys.extend(row.iter().enumerate().filter(|(_, picked)| **picked != 0).map(|(key, _)| key as u32));
            })
        };
        Self(Arc::new(layout.axis_iter(Axis(0)).map(of_head).collect()))
    }

    /// From lists `[heads, rows, entries]` of numbers below `count`, in any order, with repetitions; -1 ends a list.
    ///
    /// # Errors
    /// [`Error::Value`] with input, batch element, head and row for a number that is out of range.
    pub fn from_lists(name: &str, batch: usize, lists: &ArrayView3<'_, i32>, count: usize) -> Result<Self> {
        let mut heads = Vec::with_capacity(lists.dim().0);
        for (h, head) in lists.axis_iter(Axis(0)).enumerate() {
            let mut wrong = None;
            let rows = Rows::build(head.nrows(), head.len(), |row, keys| {
                let start = keys.len();
                for &entry in head.row(row) {
                    match usize::try_from(entry) {
                        Ok(key) if key < count => keys.push(key as u32),
                        _ if entry == -1 => break,
                        _ => {
                            wrong = wrong.or(Some((row, entry)));
                            break;
                        }
                    }
                }
                keys[start..].sort_unstable();
                let mut next = start;
                for at in start..keys.len() {
                    if at == start || keys[at] != keys[next - 1] {
                        keys[next] = keys[at];
                        next += 1;
                    }
                }
                keys.truncate(next);
            });
            if let Some((row, entry)) = wrong {
                return Err(Error::Value {
                    tensor: format!("input `{name}`"),
                    message: format!(
                        "batch element {batch}, head {h}, row {row} has {entry}; expected 0 to {}, or -1 where a list ends",
                        count.saturating_sub(1)
                    ),
                });
            }
            heads.push(rows);
        }
        Ok(Self(Arc::new(heads)))
    }

    /// Heads with rows of their own.
    pub fn heads(&self) -> usize {
        self.0.len()
    }

    /// What is picked in a row of a head.
    pub fn row(&self, head: usize, row: usize) -> &[u32] {
        self.0.get(head).map_or(&[], |rows| rows.row(row))
    }
}

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
        (None, Some(value)) => {
            (None, value.float(args.source, "mass", f64::MIN_POSITIVE, 1.0)?)
        }
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
        let share = self.heads / picked.heads().max(1);
        if self.block == 0 {
            let rows = match picked.heads() {
                1 => vec![picked.0[0].clone()],
                _ => (0..self.heads).map(|head| picked.0[head / share.max(1)].clone()).collect(),
            };
            return Ok(Some(leaf(Listed { rows, first: self.first, text: self.text.clone() })?));
        }
        let (block, first, text) = (self.block as i64, self.first, self.text.clone());
        Ok(Some(leaf(PickedBlocks { block, first, share: share.max(1), picked: picked.clone(), text })?))
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
        &self.picked.0[(head / self.share).min(self.picked.heads() - 1)]
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

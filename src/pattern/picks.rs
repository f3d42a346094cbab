//! What is picked at run time, and how `top_blocks` picks.

use std::sync::Arc;

use ndarray::{ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;

use super::rows::Rows;
use crate::error::{Error, Result};

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
        let of_head = |head: ArrayView2<'_, u8>| {
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
        let read = |(h, head): (usize, ArrayView2<'_, i32>)| {
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
                if !keys[start..].is_sorted_by(|a, b| a < b) {
                    keys[start..].sort_unstable();
                    let mut next = start;
                    for at in start..keys.len() {
                        if at == start || keys[at] != keys[next - 1] {
                            keys[next] = keys[at];
                            next += 1;
                        }
                    }
                    keys.truncate(next);
                }
            });
            match wrong {
                None => Ok(rows),
                Some((row, entry)) => Err(Error::Value {
                    tensor: format!("input `{name}`"),
                    message: format!(
                        "batch element {batch}, head {h}, row {row} has {entry}; expected 0 to {}, or -1 where a list ends",
                        count.saturating_sub(1)
                    ),
                }),
            }
        };
        let heads: Vec<_> = lists.axis_iter(Axis(0)).enumerate().collect();
        let heads: Vec<_> = heads.into_par_iter().map(read).collect();
        let heads = heads.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(Self(Arc::new(heads)))
    }

    /// Heads with rows of their own.
    pub fn heads(&self) -> usize {
        self.0.len()
    }

    pub(super) fn rows_of(&self, head: usize) -> &Rows {
        &self.0[head]
    }

    /// What is picked in a row of a head.
    pub fn row(&self, head: usize, row: usize) -> &[u32] {
        self.0.get(head).map_or(&[], |rows| rows.row(row))
    }
}

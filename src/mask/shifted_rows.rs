//! Rows that need no look: `row t, rows t + 1 ..= t + c provably its copies -> one RowRun`.
//!
//! Let `R` be the queries of rows `t ..= t + c`, and `lo .. hi` the span of the keys that the bounds over `R`
//! leave undecided.
//!
//! - Keys outside `lo .. hi` are *static*: decided over all of `R`, they are in every row what they are in row
//!   `t`.
//! - Keys within *move*: every leaf is periodic there with a period that divides 64, or constant. Then
//!   `allows(q + 64, k + 64) = allows(q, k)`, and row `t + i` is row `t` moved by `64 i`.
//! - What moves in at `lo` is known: the bounds of rows `t + 1 ..= t + c` decide `lo .. lo + 64` as a whole, empty
//!   (a window leaves it behind) or full (a causal row grows).
//! - Nothing moves out: what moves in row `t` ends early enough before `hi` for `c` shifts.
//!
//! So a window moves between the columns of global tokens, and attention sinks stand where they are.

use super::row_runs::RowRuns;
use super::{Keys, QUERY_BLOCK, Segment};
use crate::pattern::Pattern;

const SHIFT: i64 = QUERY_BLOCK as i64;
/// Rows of the first attempt. Bounds over few rows are cheap even where a leaf's bounds are not (random draws).
const FIRST_REACH: usize = 4;
/// Growth of the reach after success, and its shrinking after failure.
const GROWTH: usize = 4;
/// Most rows that are built between two attempts while they fail.
const MOST_PATIENCE: usize = 256;

/// A row that was looked at, without edges, and the last one of its runs.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) pattern: &'a Pattern,
    pub(super) head: usize,
    /// The first of its 64 queries.
    pub(super) query: usize,
    pub(super) segments: &'a [Segment],
}

/// How many rows to try for, and when.
#[derive(Debug)]
pub(super) struct Attempts {
    reach: usize,
    /// Rows to build before the next attempt.
    wait: usize,
    patience: usize,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { reach: FIRST_REACH, wait: 0, patience: 1 }
    }
}

impl Attempts {
    /// Appends to `rows` those that are copies of `row`; `more` rows follow it on the same stretch. Returns how many
    /// were appended.
    pub(super) fn append(&mut self, rows: &mut RowRuns, row: &Row<'_>, more: usize) -> usize {
        if self.wait > 0 {
            self.wait -= 1;
            return 0;
        }
        let Some((copied, segments)) = copies(row, more.min(self.reach)) else {
            if self.reach > FIRST_REACH {
                // The way was free until here; something nearer than the reach is in it.
                self.reach = (self.reach / GROWTH).max(FIRST_REACH);
            } else {
                // Irregular rows are not asked again and again, and rows at a border soon.
                self.wait = self.patience;
                self.patience = (self.patience * 2).min(MOST_PATIENCE);
            }
            return 0;
        };
        rows.push(copied as u32, &segments);
        (self.reach, self.patience) = (self.reach.saturating_mul(GROWTH), 1);
        copied
    }
}

/// How many of the next `most` rows are copies, at least one, and the segments of the first of them.
fn copies(row: &Row<'_>, most: usize) -> Option<(usize, Vec<Segment>)> {
    if most == 0 {
        return None;
    }
    let &Row { pattern, head, query, segments: built } = row;
    let kv_len = pattern.kv_len as i64;
    let queries = query..query + (most + 1) * QUERY_BLOCK;
    let cover = pattern.cover(head, queries.clone());
    let undecided = cover.some.clip(0, kv_len).difference(&cover.all);
    let (lo, hi) = match undecided.intervals() {
        [] => (kv_len, kv_len),
        [first, .., last] => (first.0, last.1),
        [only] => *only,
    };
    let mut fill_full = false;
    let mut count = most;
    if lo < hi {
        let entering = pattern.cover(head, query + QUERY_BLOCK..queries.end);
        let end = (lo + SHIFT).min(hi);
        fill_full = entering.all.covers(lo, end);
        if !fill_full && entering.some.meets(lo, end) {
            return None;
        }
        let moving = built.iter().map(range_of).filter(|&(start, stop)| start < hi && stop > lo);
        match moving.map(|(_, stop)| stop).next_back() {
            Some(stop) if stop > hi => return None,
            Some(stop) => count = count.min(((hi - stop) / SHIFT) as usize),
            None if fill_full => count = count.min(((hi - lo) / SHIFT) as usize),
            None => {}
        }
        if count == 0 {
            return None;
        }
        pattern.shift_signature(head, &queries, &(lo..hi), SHIFT as u64)?;
    }
    // The fill grows a full segment that touches it; were there none, the rows would not have one shape.
    let mut grown = !fill_full;
    let mut segments = Vec::with_capacity(built.len());
    for segment in built {
        let (start, stop) = range_of(segment);
        let (start_step, len_step) = if fill_full && segment.mask.is_none() && start <= lo && lo <= stop {
            grown = true;
            (0, SHIFT)
        } else if stop <= lo || start >= hi {
            (0, 0)
        } else if start >= lo {
            (SHIFT, 0)
        } else {
            return None;
        };
        segments.push(Segment {
            keys: Keys::Range {
                start: (start + start_step) as u32,
                len: (stop - start + len_step) as u32,
                start_step: start_step as u32,
                len_step: len_step as u32,
            },
            mask: segment.mask,
        });
    }
    grown.then_some((count, segments))
}

/// The keys of a row's segment, which is always a range while rows are built.
fn range_of(segment: &Segment) -> (i64, i64) {
    match segment.keys {
        Keys::Range { start, len, .. } => (i64::from(start), i64::from(start) + i64::from(len)),
        Keys::List { .. } => (0, 0),
    }
}

//! Rows that need no look: `row t, rows t + 1 ..= t + c provably its copies -> one RowRun`.
//!
//! Let `R` be the queries of rows `t ..= t + c`, and `S` a key that parts the row in two.
//!
//! - Keys before `S` are *static*: over all of `R` the bounds decide each of them, so every row has what row
//!   `t` has.
//! - Keys from `S` on *move*: every leaf is periodic there with a period that divides 64, or constant. Then
//!   `allows(q + 64, k + 64) = allows(q, k)`, and row `t + i` is row `t` moved by `64 i`.
//! - What moves in at `S` is known: the bounds of rows `t + 1 ..= t + c` decide `S .. S + 64` as a whole, empty
//!   (a window leaves it behind) or full (a causal row grows).
//! - Nothing moves out: row `t` ends early enough for `c` shifts.
//!
//! A window has S = 0 and an empty fill, a causal mask S = 0 and a full one, attention sinks their end.

use super::build::HeadBuilder;
use super::{Keys, QUERY_BLOCK, Segment};

const SHIFT: i64 = QUERY_BLOCK as i64;
/// Rows of the first attempt. Bounds over few rows are cheap even where a leaf's bounds are not (random draws).
const FIRST_REACH: usize = 4;
/// Growth of the reach after success.
const GROWTH: usize = 16;
/// Most rows that are built between two attempts while they fail.
const MOST_PATIENCE: usize = 256;

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
    /// Appends rows that are copies of the row just built (whose 64 queries start at `query` and whose segments
    /// are `builder.segments`, without edges); `more` rows follow it on the same stretch. Returns how many were
    /// appended.
    pub(super) fn append(&mut self, builder: &mut HeadBuilder, query: usize, more: usize) -> usize {
        if self.wait > 0 {
            self.wait -= 1;
            return 0;
        }
        let copied = copies(builder, query, more.min(self.reach));
        if copied > 0 {
            (self.reach, self.patience) = (self.reach.saturating_mul(GROWTH), 1);
        } else {
            // Irregular rows are not asked again and again, and rows that only just failed (at the border) soon.
            self.wait = self.patience;
            self.reach = FIRST_REACH;
            self.patience = (self.patience * 2).min(MOST_PATIENCE);
        }
        copied
    }
}

/// Appends up to `most` copies.
fn copies(builder: &mut HeadBuilder, query: usize, most: usize) -> usize {
    if most == 0 {
        return 0;
    }
    let kv_len = builder.pattern.kv_len as i64;
    let queries = query..query + (most + 1) * QUERY_BLOCK;
    let cover = builder.pattern.cover(builder.head, queries);
    let (some, all) = (cover.some.clip(0, kv_len), cover.all.clip(0, kv_len));
    let undecided = some.difference(&all);
    // Static keys can reach to the first undecided one; parting before them is tried first, at the borders of
    // what all queries have.
    let bound = undecided.intervals().first().map_or(kv_len, |interval| interval.0);
    let borders = all.intervals().iter().take(4).flat_map(|&(lo, hi)| [lo, hi]);
    let mut tried = -1;
    for part in std::iter::once(0).chain(borders).chain([bound]).filter(|&part| part <= bound) {
        if part <= tried {
            continue;
        }
        tried = part;
        if let Some((count, segments)) = copies_parted_at(builder, query, most, part) {
            builder.rows.push(count as u32, &segments);
            return count;
        }
    }
    0
}

/// How many copies there are with `S = part`, and the segments of the first of them.
fn copies_parted_at(builder: &HeadBuilder, query: usize, most: usize, part: i64) -> Option<(usize, Vec<Segment>)> {
    let (pattern, head) = (builder.pattern, builder.head);
    let kv_len = pattern.kv_len as i64;
    // What moves must not move out.
    let end = builder.segments.last().map_or(0, |segment| range_of(segment).1).max(part);
    let moving = builder.segments.iter().any(|segment| range_of(segment).1 > part);
    let mut count = most;
    let mut fill_full = false;
    if part < kv_len {
        let entering = query + QUERY_BLOCK..query + (most + 1) * QUERY_BLOCK;
        let cover = pattern.cover(head, entering);
        let fill = (part, (part + SHIFT).min(kv_len));
        fill_full = cover.all.covers(fill.0, fill.1);
        if !fill_full && cover.some.meets(fill.0, fill.1) {
            return None;
        }
        if fill_full || moving {
            count = count.min(((kv_len - end) / SHIFT) as usize);
        }
        if count == 0 {
            return None;
        }
        let queries = query..query + (most + 1) * QUERY_BLOCK;
        pattern.tree.shift_signature(head, &queries, &(part..kv_len), SHIFT as u64)?;
    }
    // The fill grows a full segment that touches S; were there none, the rows would not have one shape.
    let mut grown = !fill_full;
    let mut segments = Vec::with_capacity(builder.segments.len());
    for segment in &builder.segments {
        let (start, stop) = range_of(segment);
        let full = segment.mask.is_none();
        let touches = start <= part && part <= stop;
        let (start_step, len_step) = if touches && fill_full && full {
            grown = true;
            (0, SHIFT)
        } else if stop <= part {
            (0, 0)
        } else if start >= part {
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

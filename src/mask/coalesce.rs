//! Adjacent segments become one: `[full a..b] [full b..c] -> [full a..c]`, the same for masked ones, and
//! `[full a..b] [masked b..c] -> [masked a..c]` where the full part is short.
//!
//! Precondition: none beyond [`super::verify`]'s rules; the mask's pairs do not change. It comes before
//! [`super::gather_columns`], which takes short runs that are still alone.
//!
//! Each segment is a call of every tile, so a few full keys at the border of a masked run cost more as a
//! segment of their own than as all-ones words.

use super::rewrite::Rewriter;
use super::{HeadMask, Keys, QUERY_BLOCK, RowRun, Segment};

/// Full runs below this many keys join a masked neighbor.
const SHORT_FULL: u32 = 16;

/// A segment with its words, while neighbors are joined.
struct Loose {
    segment: Segment,
    words: Option<Vec<u64>>,
}

/// Joins adjacent segments of a mask over `q_len` queries.
pub fn coalesce(mask: &mut HeadMask, q_len: usize) {
    let mut rewriter = Rewriter::default();
    for run in &mask.rows {
        let mut joined: Vec<Loose> = Vec::with_capacity(run.segments.len());
        for segment in &run.segments {
            let words = segment.mask.map(|number| mask.words[number as usize].clone());
            let mut next = Loose { segment: *segment, words };
            // A join can make the result touch what stands before it in the same way only once: to the left
            // everything is joined already.
            if let Some(last) = joined.last_mut()
                && let Some(both) = join(run, last, &mut next, q_len)
            {
                *last = both;
            } else {
                joined.push(next);
            }
        }
        let segments = joined.into_iter().map(|loose| rewriter.segment(mask, &loose.segment, loose.words.as_deref()));
        let segments: Vec<Segment> = segments.collect();
        rewriter.rows.push(run.count, &segments);
    }
    rewriter.finish(mask);
}

/// The two as one segment, or `None` where they stay two (neither is changed then).
fn join(run: &RowRun, left: &mut Loose, right: &mut Loose, q_len: usize) -> Option<Loose> {
    let (
        Keys::Range { start, len, start_step, len_step },
        Keys::Range { start: next, len: more, start_step: next_step, len_step: more_step },
    ) = (left.segment.keys, right.segment.keys)
    else {
        return None;
    };
    let touches = start + len == next && (run.count == 1 || start_step + len_step == next_step);
    if !touches {
        return None;
    }
    let both = |len_step, words| Loose {
        segment: Segment { keys: Keys::Range { start, len: len + more, start_step, len_step }, mask: None },
        words,
    };
    if left.words.is_none() && right.words.is_none() {
        // The affine form grows by at most one block a row.
        return (len_step + more_step <= QUERY_BLOCK as u32).then(|| both(len_step + more_step, None));
    }
    let short = |loose: &Loose, len: u32, step: u32| loose.words.is_some() || (len < SHORT_FULL && step == 0);
    if !short(left, len, len_step) || !short(right, more, more_step) {
        return None;
    }
    let live = live_word(run, q_len);
    if live.is_none() && (left.words.is_none() || right.words.is_none()) {
        return None;
    }
    let live = live.unwrap_or(u64::MAX);
    let mut words = left.words.take().unwrap_or_else(|| vec![live; len as usize]);
    words.extend(right.words.take().unwrap_or_else(|| vec![live; more as usize]));
    Some(both(0, Some(words)))
}

/// The word of a full key in every row of the run; `None` where the last, short row differs from the others.
fn live_word(run: &RowRun, q_len: usize) -> Option<u64> {
    let end = (run.first + run.count) as usize * QUERY_BLOCK;
    match end.saturating_sub(q_len) {
        0 => Some(u64::MAX),
        missing => (run.count == 1).then(|| u64::MAX >> missing),
    }
}

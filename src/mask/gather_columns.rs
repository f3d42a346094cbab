//! Isolated short runs become one list a row: `[full 3..4] [full 90..91] … -> [full list]`, and the same for
//! masked ones.
//!
//! Precondition: [`super::coalesce`] has run, so that what is alone stays alone. The mask's pairs do not change.
//!
//! Global tokens that stand apart are columns of one key in every row. Gathered, they are dense blocks of keys
//! that a tile reads by row number, and one list that all rows share. A run that moves from row to row is not
//! gathered: a list is the same in every row of a run.

use super::rewrite::Rewriter;
use super::{HeadMask, Keys, Segment};

/// Runs shorter than this are columns.
const SHORT_RUN: u32 = 8;
/// Fewer columns than this of one kind gain nothing from a list.
const FEWEST: usize = 2;

/// Gathers the isolated columns of every row.
pub fn gather_columns(mask: &mut HeadMask) {
    let mut rewriter = Rewriter::default();
    let mut segments = Vec::new();
    for run in &mask.rows {
        segments.clear();
        let columns: Vec<bool> = (0..run.segments.len()).map(|at| is_column(run.count, &run.segments, at)).collect();
        let gathered = |masked: bool| {
            let chosen =
                run.segments.iter().zip(&columns).filter(move |(s, column)| **column && s.mask.is_some() == masked);
            let chosen: Vec<&Segment> = chosen.map(|(segment, _)| segment).collect();
            if chosen.len() < FEWEST { Vec::new() } else { chosen }
        };
        let (full, masked) = (gathered(false), gathered(true));
        for (segment, column) in run.segments.iter().zip(&columns) {
            let gone = *column && !(if segment.mask.is_some() { &masked } else { &full }).is_empty();
            if !gone {
                let words = segment.mask.map(|number| mask.words[number as usize].as_slice());
                segments.push(rewriter.segment(mask, segment, words));
            }
        }
        if !full.is_empty() {
            segments.push(rewriter.list(&keys_of(&full), None));
        }
        if !masked.is_empty() {
            let words: Vec<u64> = masked
                .iter()
                .filter_map(|segment| segment.mask)
                .flat_map(|number| mask.words[number as usize].iter().copied())
                .collect();
            segments.push(rewriter.list(&keys_of(&masked), Some(&words)));
        }
        rewriter.rows.push(run.count, &segments);
    }
    rewriter.finish(mask);
}

/// The keys of short ranges, in order. Ranges of a row ascend, so the list does.
fn keys_of(segments: &[&Segment]) -> Vec<u32> {
    segments.iter().filter_map(|segment| segment.keys.range_at(0)).flatten().collect()
}

/// Whether segment `at` is short, stays where it is over all rows of the run, and touches no other.
fn is_column(count: u32, segments: &[Segment], at: usize) -> bool {
    let Keys::Range { start, len, start_step, len_step } = segments[at].keys else { return false };
    if len >= SHORT_RUN || len_step != 0 || (start_step != 0 && count > 1) {
        return false;
    }
    let rows = [0, count - 1];
    let touched = |other: &Segment| {
        rows.iter()
            .any(|&row| other.keys.range_at(row).is_some_and(|range| range.end == start || range.start == start + len))
    };
    let before = at.checked_sub(1).map(|before| &segments[before]);
    !before.is_some_and(touched) && !segments.get(at + 1).is_some_and(touched)
}

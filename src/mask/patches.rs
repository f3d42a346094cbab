//! An order of rows for queries on a grid: 16 lanes are a patch of 4 × 4 neighbors.
//!
//! Neighbors in a line of a grid share the keys of that line's window alone; a group of lanes that is a line needs the
//! window's lines times 16 keys more than one query, a square patch 3 lines and 3 columns more. Patches lie side by side
//! four to a block row, so that its keys are few runs along the lines.

use super::order::Stretch;
use super::{QUERY_BLOCK, RowOrder};
use crate::pattern::Pattern;

/// Queries of a patch along each axis.
const PATCH: usize = 4;
/// Most queries that are ordered so: rows of patches are evaluated one by one, where rows of lines repeat.
const MOST_QUERIES: usize = 1 << 16;

/// The order by patches, where the pattern hints at a grid.
pub(super) fn patch_order(pattern: &Pattern, head: usize) -> Option<(RowOrder, Vec<Stretch>)> {
    let line = pattern.line_of_neighbors(head)?;
    let q_len = pattern.q_len;
    // Queries are counted as positions are.
    if line <= PATCH || pattern.position(0) != 0 || !(QUERY_BLOCK..=MOST_QUERIES).contains(&q_len) {
        return None;
    }
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut place = 0;
    for band in (0..q_len).step_by(PATCH * line) {
        for column in (0..line).step_by(PATCH) {
            for start in (band..q_len.min(band + PATCH * line)).step_by(line) {
                let query = start + column;
                let len = PATCH.min(line - column).min(q_len.saturating_sub(query));
                if len > 0 {
                    stretches.push(Stretch { place, query, len });
                    place += len;
                }
            }
        }
    }
    let order = stretches.iter().flat_map(|on| on.query as u32..(on.query + on.len) as u32).collect();
    Some((RowOrder::Permuted(order), stretches))
}

//! `for row { at row by keys {…} } -> for row, edges by 64 { at row by keys {…} }` where most rows have scattered edges.
//!
//! The edges of 4,096 queries together read K, and then V, as long as it is in L2. Their sums wait in scratch meanwhile,
//! so this is for the only loop that works on pairs.

use super::{NestPass, Setting, Verdict};
use crate::mask::{HeadMask, QUERY_BLOCK};
use crate::program::{Body, Loop, Space};

pub(super) const PASS: NestPass = NestPass {
    name: "batch_edges",
    rewrite: "for row {by keys …} -> for row, edges by 64 {by keys …}",
    by_reach: false,
    run,
};

/// Block rows whose scattered edges are computed together, at most.
const EDGE_BATCH: usize = 64;

fn run(body: &mut Body, setting: &Setting<'_>) -> Verdict {
    let rows = setting.shape.q_len.div_ceil(QUERY_BLOCK);
    let on_pairs = |one: &Loop| {
        let values = one.ops().flat_map(|operation| &operation.results);
        values.into_iter().any(|id| body.values[id.0 as usize].space == Space::Pairs)
    };
    let mut at = (0..body.loops.len()).filter(|&i| on_pairs(&body.loops[i]));
    let (Some(only), None) = (at.next(), at.next()) else { return Ok(None) };
    let by_keys = matches!(body.loops[only].stages.as_slice(), [stage] if stage.by_keys);
    if by_keys && setting.reach.sets().flat_map(|set| &set.masks).any(|mask| 2 * rows_with_edges(mask) >= rows.max(1)) {
        body.loops[only].edge_rows = EDGE_BATCH.min(rows.next_power_of_two()) as u32;
    }
    Ok(None)
}

fn rows_with_edges(mask: &HeadMask) -> usize {
    let offsets = &mask.edges.offsets;
    let places = offsets.len().saturating_sub(1);
    let edges = |start: usize| offsets[(start + QUERY_BLOCK).min(places)] - offsets[start];
    (0..places).step_by(QUERY_BLOCK).filter(|&start| edges(start) > 0).count()
}

//! Orders of rows: `Pattern -> which query stands at which place`, as stretches on which places and queries run together.
//!
//! Dense queries stand together at the end; [`super::patches`] has an order for grids, and patterns that are regrouped bring
//! theirs.

use super::{QUERY_BLOCK, RowOrder};
use crate::pattern::Pattern;

/// Queries `query ..` at places `place ..`, `len` of them: a stretch on which places and queries run together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub(super) place: usize,
    pub(super) query: usize,
    pub(super) len: usize,
}

/// Every query at its own place.
pub(super) fn identity(q_len: usize) -> (RowOrder, Vec<Stretch>) {
    (RowOrder::Identity, vec![Stretch { place: 0, query: 0, len: q_len }])
}

/// Dense queries last, so that whole blocks of them are dense and the rest keep their narrow rows.
pub(super) fn row_order(pattern: &Pattern, head: usize) -> (RowOrder, Vec<Stretch>) {
    let q_len = pattern.q_len;
    let identity = identity(q_len);
    let dense = pattern.dense_queries(head);
    // With most queries dense there are no narrow rows worth protecting.
    if dense.is_empty() || dense.len() * 2 > q_len {
        return identity;
    }
    let blocks = dense.chunk_by(|&a, &b| a as usize / QUERY_BLOCK == b as usize / QUERY_BLOCK);
    let mut blocks = blocks.map(|block| (block[0] as usize / QUERY_BLOCK * QUERY_BLOCK, block.len()));
    if blocks.all(|(start, len)| len == QUERY_BLOCK.min(q_len - start)) {
        return identity;
    }
    let mut stretches = Vec::new();
    let mut place = 0;
    let mut add = |query: usize, len: usize| {
        if len > 0 {
            stretches.push(Stretch { place, query, len });
            place += len;
        }
    };
    let runs: Vec<&[u32]> = dense.chunk_by(|&a, &b| a + 1 == b).collect();
    let mut after = 0;
    for run in &runs {
        add(after, run[0] as usize - after);
        after = run[0] as usize + run.len();
    }
    add(after, q_len - after);
    for run in &runs {
        add(run[0] as usize, run.len());
    }
    let order = stretches.iter().flat_map(|on| on.query as u32..(on.query + on.len) as u32).collect();
    (RowOrder::Permuted(order), stretches)
}

//! What a pattern costs, how far it reaches, and how fast it mixes.
//!
//! In: a [`Pattern`], its [`BlockMask`] and the spec. Out: an [`Analysis`], for `explain` and for the counts
//! in `bench`. Counts come from the mask and cost next to nothing. Reach and mixing walk the pattern itself;
//! where a length is too large for all of it they take a sample or stay out, and say so.

use std::collections::HashMap;

use serde::Serialize;

use crate::mask::BlockMask;
use crate::pattern::Pattern;
use crate::spec::PatternSpec;

mod balance;
mod diffused;
mod edge_list;
mod paths;
mod receptive_field;
mod spectral_gap;
mod support;
#[cfg(test)]
mod tests;
mod walk;

pub use balance::{Balance, balance};
pub use diffused::Diffused;
pub use edge_list::{EdgeList, KeyFinder};
pub use paths::{FarWeight, ReachEverything, far_weight, reach_everything};
pub use receptive_field::{Place, Reach, ReceptiveField, receptive_field};
pub use spectral_gap::{SpectralGap, spectral_gap};
pub use support::{Support, each_hop};
pub use walk::{Journey, Searcher, Walk};

/// Everything that is known about a pattern at given lengths.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Analysis {
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads with patterns of their own.
    pub distinct_heads: usize,
    /// Allowed pairs, over all heads.
    pub nnz: u64,
    /// `nnz` over the number of all pairs; 0 where there is none.
    pub density: f64,
    /// Useful floating-point operations per sequence, over all heads.
    pub flops: u64,
    /// What the block mask is made of.
    pub blocks: Blocks,
    /// Queries without any key, over all heads.
    pub empty_rows: u64,
    /// Keys reached after each hop.
    pub receptive_field: ReceptiveField,
    /// How fast repeated hops mix.
    #[serde(flatten)]
    pub spectral_gap: SpectralGap,
    /// How far paths lead with any number of hops; `None` where queries and keys are not the same tokens.
    pub reach_everything: Option<ReachEverything>,
    /// Weight between far tokens; `None` where there are too few tokens or hops take too long.
    pub far_weight: Option<FarWeight>,
    /// Work over rows; `None` where there are none, and in decoding.
    pub balance: Option<Balance>,
}

/// Key segments of all block rows and heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Blocks {
    /// Segments whose every query attends to every key.
    pub full: u64,
    /// Segments with a mask.
    pub partial: u64,
    /// Edges outside all segments.
    pub scattered_edges: u64,
    /// Pairs of the full and the partial segments that are computed, allowed or not.
    pub computed_pairs: u64,
}

/// Why nothing is known of walks.
const SCARCE: &str = "its walks do not fit in memory";

/// Looks at a pattern from every side. `diffused` says what the hops of every head do, `memory_limit` bounds what the
/// analysis itself may hold, in bytes. Counts of blocks and walks are those of the root's pattern; where hops have
/// patterns of their own, walks of one pattern say nothing, and stay out.
pub fn analyse(
    pattern: &Pattern,
    mask: &BlockMask,
    spec: &PatternSpec,
    diffused: &Diffused,
    memory_limit: u64,
) -> Analysis {
    let counts = mask.counts();
    let nnz = counts.nnz();
    let pairs = pattern.q_len as f64 * pattern.kv_len as f64 * spec.heads as f64;
    let rows = crate::mask::QUERY_BLOCK as u64;
    let scarce = walk::bytes(pattern, &diffused.factors) > memory_limit;
    let own = !pattern.others().is_empty();
    // Heads of one mask walk alike.
    let mut alike: HashMap<&[u32], usize> = HashMap::new();
    let mut distinct: Vec<(usize, &[u32])> = Vec::new();
    for (head, masks) in mask.mask_of_head.chunks(mask.parts.max(1)).enumerate() {
        let heads = alike.entry(masks).or_insert(0);
        if *heads == 0 {
            distinct.push((head, masks));
        }
        *heads += 1;
    }
    if scarce {
        distinct.clear();
    }
    let walk_of =
        |&(head, masks): &(usize, &[u32])| Walk::new(mask, head).map(|walk| (head, walk.of_heads(alike[masks])));
    let walks: Vec<(usize, Walk<'_>)> = distinct.iter().filter_map(walk_of).collect();
    Analysis {
        q_len: pattern.q_len,
        kv_len: pattern.kv_len,
        heads: spec.heads,
        distinct_heads: mask.masks.len(),
        nnz,
        density: if pairs > 0.0 { nnz as f64 / pairs } else { 0.0 },
        flops: flops(nnz, spec),
        blocks: Blocks {
            full: counts.full_segments,
            partial: counts.partial_segments,
            scattered_edges: counts.scattered_edges,
            computed_pairs: (counts.full_keys + counts.partial_keys) * rows,
        },
        empty_rows: counts.empty_rows,
        receptive_field: match scarce {
            true => ReceptiveField { hops: Vec::new(), rows: 0, note: SCARCE.into() },
            false => receptive_field(pattern, &walks, diffused, memory_limit),
        },
        spectral_gap: match scarce {
            true => SpectralGap::none(SCARCE),
            false if own => SpectralGap::none("hops have patterns of their own"),
            false => spectral_gap(pattern, &walks, diffused),
        },
        reach_everything: if own { None } else { reach_everything(&walks) },
        far_weight: if own { None } else { far_weight(&walks, diffused) },
        balance: balance(mask, &walks),
    }
}

/// Useful operations on `nnz` allowed pairs: 2 · nnz · head_dim for the scores, 2 · nnz · value_dim a hop.
pub fn flops(nnz: u64, spec: &PatternSpec) -> u64 {
    let per_pair = 2 * spec.head_dim + 2 * spec.diffusion.hops() * spec.value_dim;
    nnz.saturating_mul(per_pair as u64)
}

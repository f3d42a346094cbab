//! How evenly work is spread over queries and over the block rows that workers share out.

use serde::Serialize;

use super::{Place, Walk};
use crate::mask::{BlockMask, EdgeRule, QUERY_BLOCK, score_elements};

/// Points of a profile over the queries.
const PROFILE: usize = 64;

/// Work over rows, over the distinct heads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Balance {
    /// Keys of a query: mean.
    pub mean_keys: f64,
    /// Fewest keys of a query.
    pub fewest_keys: u32,
    /// Most keys of a query.
    pub most_keys: u32,
    /// The first query with the most.
    pub most: Place,
    /// Share of all pairs that belongs to the tenth of the queries with the most keys: 0.1 where all have the same.
    pub busiest_tenth: f64,
    /// The dearest block row of 64 queries over the mean, in what tiles compute.
    pub block_row_peak: f64,
    /// Mean keys of a query along the sequence, in at most 64 equal stretches.
    pub profile: Vec<f64>,
}

/// Counts work; `None` where there is none. `walks` are those of the distinct heads, with their numbers.
pub fn balance(mask: &BlockMask, walks: &[(usize, Walk<'_>)]) -> Option<Balance> {
    let (_, first) = walks.first()?;
    let n = first.queries();
    if n == 0 {
        return None;
    }
    let mut keys: Vec<u32> = walks.iter().flat_map(|(_, walk)| walk.degrees().iter().copied()).collect();
    let all: u64 = keys.iter().map(|&keys| u64::from(keys)).sum();
    let (at, &most_keys) = keys.iter().enumerate().rev().max_by_key(|&(_, keys)| keys)?;
    let stretches = PROFILE.min(n);
    let mut profile = vec![0.0; stretches];
    for (at, &keys) in keys.iter().enumerate() {
        profile[at % n * stretches / n] += f64::from(keys);
    }
    for (number, sum) in profile.iter_mut().enumerate() {
        let queries = ((number + 1) * n).div_ceil(stretches) - (number * n).div_ceil(stretches);
        *sum /= (queries * walks.len()) as f64;
    }
    let count = keys.len();
    keys.sort_unstable_by(|a, b| b.cmp(a));
    // A tenth need not be whole: the query at its border counts in part.
    let tenth = count as f64 / 10.0;
    let whole = tenth.floor() as usize;
    let busiest = keys[..whole].iter().map(|&keys| f64::from(keys)).sum::<f64>()
        + (tenth - whole as f64) * f64::from(keys[whole.min(count - 1)]);
    Some(Balance {
        mean_keys: all as f64 / count as f64,
        fewest_keys: keys[count - 1],
        most_keys,
        most: Place { head: walks[at / n].0, query: at % n },
        busiest_tenth: if all == 0 { 0.1 } else { busiest / all as f64 },
        block_row_peak: block_row_peak(mask),
        profile,
    })
}

/// The dearest block row over the mean, in dense elements.
fn block_row_peak(mask: &BlockMask) -> f64 {
    let edge_cost = u64::from(EdgeRule::default().edge_cost);
    let (mut most, mut sum, mut rows) = (0_u64, 0_u64, 0_u64);
    for head in &mask.masks {
        let of_words: Vec<u64> = head.words.iter().map(|words| score_elements(words)).collect();
        for run in &head.rows {
            for row in run.block_rows() {
                let place = row as usize * QUERY_BLOCK;
                let of_segment = |segment: &crate::mask::Segment| match segment.mask {
                    None => (head.segment_len(segment, row - run.first) * QUERY_BLOCK) as u64,
                    Some(words) => of_words[words as usize],
                };
                let edges = match head.edges.offsets.as_slice() {
                    [] => 0,
                    offsets => offsets[(place + QUERY_BLOCK).min(offsets.len() - 1)] - offsets[place],
                };
                let work = run.segments.iter().map(of_segment).sum::<u64>() + edge_cost * u64::from(edges);
                (most, sum, rows) = (most.max(work), sum + work, rows + 1);
            }
        }
    }
    if sum == 0 { 1.0 } else { most as f64 * rows as f64 / sum as f64 }
}

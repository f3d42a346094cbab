//! What a mask makes tiles do, counted without a walk over its points.

use crate::mask::{HeadMask, KeyOrder, Keys, QUERY_BLOCK, RowOrder, score_elements};
use crate::tiles::{LANES, ROW_BLOCKS, ROW_CUTS};

/// Edges that are looked at to know how far they reach.
const SAMPLE: usize = 1024;

/// The work of one mask. Numbers of elements are those that tiles compute, allowed or not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Whether block rows hold queries one behind the other.
    pub in_order: bool,
    /// Block rows.
    pub block_rows: f64,
    /// Scores, trimmed to register tiles of 6 keys × 16 queries.
    pub score_elements: f64,
    /// Products of the value tile, trimmed by register row blocks.
    pub value_elements: f64,
    /// Exponentials.
    pub exp_elements: f64,
    /// Elements of all panels: what is stored where P is kept.
    pub panel_elements: f64,
    /// Keys, summed over block rows.
    pub keys: f64,
    /// Keys of the widest block row.
    pub row_keys: f64,
    /// Keys that a block row does not share with the one before, summed.
    pub new_keys: f64,
    /// Pieces of keys: calls of the score tile and of the exponential.
    pub pieces: f64,
    /// Runs of keys: calls of the value tile.
    pub runs: f64,
    /// Scattered edges.
    pub edges: f64,
    /// Rows of K that the edges of neighboring queries reach, together.
    pub edge_reach: f64,
}

impl Work {
    /// Counts a mask over `q_len` queries and `kv_len` keys, in time proportional to its runs and words.
    pub fn of(mask: &HeadMask, q_len: usize, kv_len: usize) -> Self {
        let of_words: Vec<(f64, f64)> = mask.words.iter().map(|words| elements(words)).collect();
        let lanes = q_len.min(QUERY_BLOCK).next_multiple_of(LANES) as f64;
        let in_order = mask.order == RowOrder::Identity;
        let mut work = Self { in_order, block_rows: q_len.div_ceil(QUERY_BLOCK) as f64, ..Self::default() };
        for run in &mask.rows {
            let rows = f64::from(run.count);
            let mut row_keys = 0.0;
            let mut last: Option<(u32, u32)> = None;
            for segment in &run.segments {
                let [first, end] = [0, run.count - 1].map(|row| mask.segment_len(segment, row) as f64);
                // Lengths grow evenly over the run.
                let keys = rows * (first + end) / 2.0;
                row_keys += end;
                work.keys += keys;
                work.panel_elements += keys * lanes;
                work.pieces += rows;
                // The value tile runs on where the next segment continues this one.
                let start = match segment.keys {
                    Keys::Range { start, start_step, .. } => Some((start, start_step)),
                    Keys::List { .. } => None,
                };
                let continues = start.is_some() && start == last;
                if !continues {
                    work.runs += rows;
                }
                last = match segment.keys {
                    Keys::Range { start, len, start_step, len_step: 0 } => Some((start + len, start_step)),
                    Keys::Range { .. } | Keys::List { .. } => None,
                };
                let (scores, values) = match segment.mask {
                    None => (keys * lanes, keys * lanes),
                    Some(words) => {
                        let (scores, values) = of_words[words as usize];
                        (rows * scores, rows * values)
                    }
                };
                work.score_elements += scores;
                work.exp_elements += scores;
                work.value_elements += values;
                work.new_keys += end
                    + match segment.keys {
                        // Keys that stay are shared with the row before, and a moving run brings one step's.
                        Keys::Range { start_step, .. } if !continues => (rows - 1.0) * f64::from(start_step).min(end),
                        Keys::Range { .. } | Keys::List { .. } => 0.0,
                    };
            }
            work.row_keys = work.row_keys.max(row_keys);
        }
        work.edges = mask.edges.keys.len() as f64;
        work.edge_reach = edge_reach(mask, q_len, kv_len);
        work
    }
}

/// Elements of a masked run for the score tile and for the value tile.
fn elements(words: &[u64]) -> (f64, f64) {
    let mut values = 0;
    for block in 0..ROW_BLOCKS {
        let (group, cut) = (block / 3, block % 3);
        let rows = ROW_CUTS[cut + 1] - ROW_CUTS[cut];
        let bits = (u64::MAX >> (64 - rows)) << (LANES * group + ROW_CUTS[cut]);
        let touched = |word: &u64| word & bits != 0;
        if let Some(first) = words.iter().position(touched) {
            let last = words.iter().rposition(touched).unwrap_or(first);
            values += (last + 1 - first) * rows;
        }
    }
    (score_elements(words) as f64, values as f64)
}

/// Rows that the edges of neighboring queries reach: all for random ones, a band for those that stay near.
fn edge_reach(mask: &HeadMask, q_len: usize, kv_len: usize) -> f64 {
    let edges = mask.edges.keys.len();
    if edges == 0 {
        return 0.0;
    }
    let mut distance = 0.0;
    let step = edges.div_ceil(SAMPLE);
    let (mut sampled, mut place) = (0_u32, 0);
    for at in (0..edges).step_by(step) {
        while place + 1 < q_len && mask.edges.offsets[place + 1] as usize <= at {
            place += 1;
        }
        let query = mask.order.query_at(place) as f64 * kv_len as f64 / q_len.max(1) as f64;
        let key = match mask.keys {
            KeyOrder::Identity => mask.edges.keys[at],
            KeyOrder::Residue(_) => mask.keys.key_at(mask.edges.keys[at], kv_len),
        };
        distance += (f64::from(key) - query).abs();
        sampled += 1;
    }
    // Uniformly drawn keys are a third of the length away on average.
    (3.0 * distance / f64::from(sampled)).clamp(1.0, kv_len as f64)
}

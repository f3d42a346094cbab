//! Where everything stands in a call's scratch memory.
//!
//! *Local* scratch belongs to one worker and one block row at a time; *shared* scratch to one (batch, head) in
//! flight, and exists only where P is stored. All offsets are in bytes and multiples of 64.

use super::{KernelPlan, MaskPlan, Strategy};
use crate::dtype::Dtype;
use crate::tiles::stored::buffer_floats;
use crate::tiles::{BLOCK, LANES};

/// The layout for one mask of a plan; only the sizes of stored edges and panels differ from mask to mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scratch {
    /// Row maxima so far, `[64]`.
    pub max: usize,
    /// Row maxima at the last update, `[64]`.
    pub old: usize,
    /// What the exponential subtracts, `[64]`.
    pub reference: usize,
    /// Row sums, `[64]`.
    pub sum: usize,
    /// Factors by which sums shrink at an update, `[64]`.
    pub correction: usize,
    /// Factors of the output rows, `[64]`.
    pub factor: usize,
    /// Packed queries, `[4][head_dim][16]`.
    pub qt: usize,
    /// Block rows whose scattered edges are computed together, a power of two; 1 where there are none.
    pub batch: usize,
    /// Sums of the value tile, `[batch][64][acc_stride]`.
    pub acc: usize,
    /// Floats from one row of `acc`, and of Z, to the next.
    pub acc_stride: usize,
    /// Edge scores of a batch (`flash`).
    pub edges: usize,
    /// Statistics of a batch's rows behind their edges, `[batch][EDGE_STATISTICS][64]`.
    pub edge_state: usize,
    /// Scores of a step (`flash`), `[4][panel_stride]`.
    pub panel: usize,
    /// Floats from one group's panel to the next (`flash`).
    pub panel_stride: usize,
    /// Rows of 16-bit tensors in f32 ([`crate::tiles::stored`]).
    pub widened: usize,
    /// Local bytes in all.
    pub local: usize,
    /// Shared: 1 / row sum, by place.
    pub inverse: usize,
    /// Shared: the two buffers of Z, `[q_len][acc_stride]`; the second exists from three hops on.
    pub z: [usize; 2],
    /// Shared: outputs of a head's parts from [`KernelPlan::first_part_apart`] on, `[parts][q_len][acc_stride]`.
    pub partial: usize,
    /// Shared: what each part subtracted, `[parts][q_len]`.
    pub partial_max: usize,
    /// Shared: sums of each part, `[parts][q_len]`.
    pub partial_sum: usize,
    /// Shared: edge probabilities, in the order of the edge list.
    pub stored_edges: usize,
    /// Shared: panels of P, one block row behind the other.
    pub stored: usize,
    /// Shared bytes in all.
    pub shared: usize,
}

/// Block rows whose scattered edges are computed together, at most. `flash` reads K and then V: it takes 4,096 queries, so
/// that each comes into L2 once. `resident` reads one tensor in each of its functions, and a few rows are enough to keep
/// their sums in the cache until they are taken up (64 random keys a query, one thread, n 4,096: `flash` 30.6, 28.5, 24.7
/// and 22.4 ms at 1, 4, 16 and 64, `resident` with five hops 60.8, 58.6, 59.8 and 59.1 ms).
const fn edge_batch(strategy: Strategy) -> usize {
    match strategy {
        Strategy::Flash => 64,
        Strategy::Resident => 4,
    }
}

/// Arrays over the queries of a block row that its scattered edges leave to its other keys: maximum, maximum at the last
/// update, what was subtracted, sum.
pub const EDGE_STATISTICS: usize = 4;

/// Keys from one group's panel to the next: odd, so that the four groups of a key do not fall into the same
/// sets of a cache.
pub const fn padded_keys(keys: u64) -> u64 {
    keys | 1
}

impl Scratch {
    /// The layout of `mask` in `plan`.
    pub fn new(plan: &KernelPlan, mask: &MaskPlan) -> Self {
        let float = size_of::<f32>();
        let lanes = BLOCK * float;
        let acc_stride = plan.value_dim.next_multiple_of(LANES);
        let (flash, resident) = match plan.strategy {
            Strategy::Flash => (1, 0),
            Strategy::Resident => (0, 1),
        };
        // Masks of one plan share its code, so local offsets are those of the widest.
        let panel_keys = plan.masks.iter().map(|mask| mask.panel_keys).max().unwrap_or(0);
        let batch = plan.edge_batch();
        let batch_edges = plan.masks.iter().map(|mask| mask.edges_together(batch)).max().unwrap_or(0);
        let with_edges = usize::from(batch_edges > 0);
        let panel_stride = padded_keys(panel_keys as u64) as usize * LANES;
        let mut local = Layout(0);
        let [max, old, reference, sum, correction, factor] = std::array::from_fn(|_| local.take(lanes));
        let qt = local.take(BLOCK * plan.head_dim * float);
        let acc = local.take(batch * BLOCK * acc_stride * float);
        let edges = local.take(flash * batch_edges * float);
        let edge_state = local.take(with_edges * batch * EDGE_STATISTICS * lanes);
        let panel = local.take(flash * (BLOCK / LANES) * panel_stride * float);
        let widened = local.take(match plan.dtype {
            Dtype::F32 => 0,
            Dtype::Bf16 | Dtype::F16 => buffer_floats(plan.head_dim, plan.value_dim) * float,
        });
        let mut shared = Layout(0);
        let inverse = shared.take(resident * plan.q_len.next_multiple_of(BLOCK) * float);
        let buffer = resident * plan.q_len * acc_stride * float;
        let z = [
            shared.take(if plan.hops.len() >= 2 { buffer } else { 0 }),
            shared.take(if plan.hops.len() >= 3 { buffer } else { 0 }),
        ];
        let parts = if plan.parts > 1 { plan.parts } else { 0 };
        let partial = shared.take(parts.saturating_sub(plan.first_part_apart()) * plan.q_len * acc_stride * float);
        let [partial_max, partial_sum] = std::array::from_fn(|_| shared.take(parts * plan.q_len * float));
        let stored_edges = shared.take(resident * mask.edges.keys.len() * float);
        let stored = shared.take(resident * mask.stored_bytes());
        Self {
            max,
            old,
            reference,
            sum,
            correction,
            factor,
            qt,
            batch,
            acc,
            acc_stride,
            edges,
            edge_state,
            panel,
            panel_stride,
            widened,
            local: local.0,
            inverse,
            z,
            partial,
            partial_max,
            partial_sum,
            stored_edges,
            stored,
            shared: shared.0,
        }
    }
}

impl KernelPlan {
    /// Block rows whose scattered edges are computed together: many where most have edges, so that K, and then V, stays
    /// in the cache over all of them; 1 where few have, since the sums of all wait in scratch meanwhile.
    pub fn edge_batch(&self) -> usize {
        let rows = self.block_rows();
        let pays = |mask: &MaskPlan| {
            let spans = mask.edge_spans(1);
            2 * spans.filter(|&edges| edges > 0).count() >= rows
        };
        if self.masks.iter().any(pays) { edge_batch(self.strategy).min(rows.next_power_of_two()) } else { 1 }
    }
}

impl MaskPlan {
    /// Scattered edges of every `batch` block rows, in order.
    fn edge_spans(&self, batch: usize) -> impl Iterator<Item = usize> {
        let offsets = &self.edges.offsets;
        let starts = (0..offsets.len().saturating_sub(1)).step_by(batch * BLOCK);
        starts.map(move |start| {
            let end = (start + batch * BLOCK).min(offsets.len() - 1);
            (offsets[end] - offsets[start]) as usize
        })
    }

    /// Scattered edges of the fullest `batch` block rows.
    fn edges_together(&self, batch: usize) -> usize {
        self.edge_spans(batch).max().unwrap_or(0)
    }

    /// Bytes of all stored panels.
    fn stored_bytes(&self) -> usize {
        let panels = self.stored_panels().last().map_or(0, |(start, keys)| start + stored_floats(keys));
        panels as usize * size_of::<f32>()
    }

    /// For every block row in order, where its panel starts (in floats) and how many keys it holds.
    pub fn stored_panels(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut start = 0;
        self.rows
            .iter()
            .flat_map(|row| {
                let (keys, growth) = (row.first_row_keys(), row.row_growth());
                (0..u64::from(row.count)).map(move |i| keys + i * growth)
            })
            .map(move |keys| {
                let here = start;
                start += stored_floats(keys);
                (here, keys)
            })
    }
}

const fn stored_floats(keys: u64) -> u64 {
    padded_keys(keys) * BLOCK as u64
}

struct Layout(usize);

impl Layout {
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.0;
        self.0 += bytes.next_multiple_of(64);
        at
    }
}

//! Where everything stands in a call's scratch memory.
//!
//! *Local* scratch belongs to one worker and one block row at a time; *shared* scratch to one (batch, head) in
//! flight (in a sweep, to one stretch of its rows), and exists only where something is kept between the functions of a
//! kernel. All offsets are in bytes and multiples of 64.

use super::{KernelPlan, MaskPlan, Walk};
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
    /// Block rows whose scattered edges are computed together (`flash`), a power of two; else 1.
    pub batch: usize,
    /// Sums of the value tile, `[batch][64][acc_stride]`.
    pub acc: usize,
    /// Floats from one row of `acc`, and of Z, to the next.
    pub acc_stride: usize,
    /// Edge scores of a batch, where P is not stored.
    pub edges: usize,
    /// What the edges of a batch's rows leave to their other keys, `[batch][EDGE_STATISTICS][64]`.
    pub edge_statistics: usize,
    /// Scores of a step, where P is not stored, `[4][panel_stride]`.
    pub panel: usize,
    /// Floats from one group's panel to the next: those of a step, or those of a row in a ring of P.
    pub panel_stride: usize,
    /// Rows of 16-bit tensors in f32 ([`crate::tiles::stored`]).
    pub widened: usize,
    /// What the gradient's pass keeps of a block row ([`super::Training`]).
    pub gradient: GradientScratch,
    /// Local bytes in all.
    pub local: usize,
    /// Shared: 1 / row sum, by place, or by slot of the ring and place in the row.
    pub inverse: usize,
    /// Shared: what was subtracted from the scores of every row, by place (`recompute`).
    pub references: usize,
    /// Shared: buffers of Z, `[z_rows][acc_stride]` each: two that hops write in turn, the second from three hops on, or,
    /// in a sweep, one for every hop but the last.
    pub z: usize,
    /// Rows of a buffer of Z.
    pub z_rows: usize,
    /// Shared: outputs of a head's parts from [`KernelPlan::first_part_apart`] on, `[parts][q_len][acc_stride]`.
    pub partial: usize,
    /// Shared: what each part subtracted, `[parts][q_len]`.
    pub partial_max: usize,
    /// Shared: sums of each part, `[parts][q_len]`.
    pub partial_sum: usize,
    /// Shared: edge probabilities, in the order of the edge list, or by slot of the ring.
    pub stored_edges: usize,
    /// Floats from one slot's edge probabilities to the next.
    pub edge_slot: usize,
    /// Shared: panels of P, one block row behind the other, or by slot of the ring.
    pub stored: usize,
    /// Shared bytes in all.
    pub shared: usize,
}

/// What the gradient's pass keeps of a block row, in local scratch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientScratch {
    /// Packed gradients of Z, `[4][gradient_depth][16]`.
    pub gt: usize,
    /// Gradients of scores, a panel like `panel`.
    pub panel: usize,
    /// Scores before their mods, a panel like `panel`.
    pub raw: usize,
    /// Gradients of edge scores.
    pub edges: usize,
    /// Edge scores before their mods.
    pub raw_edges: usize,
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
        // The gradient of queries is summed like values, in rows as wide as keys.
        let width = if plan.training.is_some() { plan.value_dim.max(plan.head_dim) } else { plan.value_dim };
        let acc_stride = width.next_multiple_of(LANES);
        let hops = plan.hops.len();
        // Masks of one plan share its code, so every offset is that of the widest.
        let most = |size: fn(&MaskPlan) -> usize| plan.masks.iter().map(size).max().unwrap_or(0);
        let block_edges = most(|mask| mask.block_edges);
        let panel_stride = padded_keys(most(|mask| mask.panel_keys) as u64) as usize * LANES;
        let panel_floats = (BLOCK / LANES) * panel_stride;
        let padded_rows = plan.q_len.next_multiple_of(BLOCK);
        // A kernel for training is given its Z.
        let z_buffers = if plan.training.is_some() { 0 } else { (hops - 1).min(2) };
        let keeps = match plan.walk {
            Walk::Flash => Keeps::default(),
            Walk::Recompute => {
                Keeps { statistics: padded_rows, references: padded_rows, z_buffers, ..Keeps::default() }
            }
            Walk::Resident => Keeps {
                statistics: padded_rows,
                z_buffers,
                edges: most(|mask| mask.edges.keys.len()),
                panel_floats: mask
                    .stored_panels()
                    .last()
                    .map_or(0, |(start, keys)| (start + stored_floats(keys)) as usize),
                ..Keeps::default()
            },
            Walk::Sweep => {
                let slots = plan.ring_slots();
                Keeps {
                    statistics: slots * BLOCK,
                    z_buffers: hops - 1,
                    edges: slots * block_edges,
                    panel_floats: slots * panel_floats,
                    ..Keeps::default()
                }
            }
        };
        // A row of P that is not stored, or not in f32, is computed in the worker's own scratch.
        let in_place = plan.walk.stores_p() && plan.store.is_f32();
        let mut local = Layout(0);
        let [max, old, reference, sum, correction, factor] = std::array::from_fn(|_| local.take(lanes));
        let qt = local.take(BLOCK * plan.head_dim * float);
        let batch = plan.edge_rows;
        let batch_edges = plan.masks.iter().map(|mask| mask.edge_spans(batch).max().unwrap_or(0)).max().unwrap_or(0);
        let acc = local.take(batch * BLOCK * acc_stride * float);
        let edges = local.take(if plan.walk.stores_p() { 0 } else { batch_edges * float });
        let edge_statistics = local.take(if batch > 1 { batch * EDGE_STATISTICS * lanes } else { 0 });
        let panel = local.take(if in_place { 0 } else { panel_floats * float });
        let widened = local.take(match plan.dtype {
            Dtype::F32 => 0,
            Dtype::Bf16 | Dtype::F16 => buffer_floats(plan.head_dim, plan.value_dim) * float,
        });
        let pass = plan.training.is_some() && !plan.walk.stores_p();
        let mut of_pass = |wanted: bool, floats: usize| local.take(if pass && wanted { floats * float } else { 0 });
        let mods = plan.mods.is_some();
        let gradient = GradientScratch {
            gt: of_pass(true, BLOCK * plan.gradient_depth()),
            panel: of_pass(true, panel_floats),
            raw: of_pass(mods, panel_floats),
            edges: of_pass(true, batch_edges),
            raw_edges: of_pass(mods, batch_edges),
        };
        let mut shared = Layout(0);
        let inverse = shared.take(keeps.statistics * float);
        let references = shared.take(keeps.references * float);
        let z_rows = plan.z_rows();
        let z = shared.take(keeps.z_buffers * z_rows * acc_stride * float);
        let parts = if plan.parts > 1 { plan.parts } else { 0 };
        let partial = shared.take(parts.saturating_sub(plan.first_part_apart()) * plan.q_len * acc_stride * float);
        let [partial_max, partial_sum] = std::array::from_fn(|_| shared.take(parts * plan.q_len * float));
        let stored_edges = shared.take(keeps.edges * float);
        let stored = shared.take(keeps.panel_floats * plan.store.bytes());
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
            edge_statistics,
            panel,
            panel_stride,
            widened,
            gradient,
            local: local.0,
            inverse,
            references,
            z,
            z_rows,
            partial,
            partial_max,
            partial_sum,
            stored_edges,
            edge_slot: block_edges,
            stored,
            shared: shared.0,
        }
    }
}

impl Scratch {
    /// Bytes of a buffer of Z.
    pub const fn z_bytes(&self) -> usize {
        self.z_rows * self.acc_stride * size_of::<f32>()
    }
}

impl MaskPlan {
    /// Scattered edges of every `batch` block rows, in order.
    fn edge_spans(&self, batch: usize) -> impl Iterator<Item = usize> {
        let offsets = &self.edges.offsets;
        let places = offsets.len().saturating_sub(1);
        (0..places).step_by(batch * BLOCK).map(move |start| {
            let end = (start + batch * BLOCK).min(places);
            (offsets[end] - offsets[start]) as usize
        })
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

/// What is kept from one function of a kernel to the next, in elements.
#[derive(Default)]
struct Keeps {
    statistics: usize,
    references: usize,
    z_buffers: usize,
    edges: usize,
    panel_floats: usize,
}

struct Layout(usize);

impl Layout {
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.0;
        self.0 += bytes.next_multiple_of(64);
        at
    }
}

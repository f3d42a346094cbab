//! The plan: how one kernel walks its block rows on this machine.
//!
//! In: a [`VerifiedSchedule`], a tile family, and what the caller insists on. Out: a [`KernelPlan`]: the
//! strategy and why, for every block row its steps (pieces of keys that share one panel of scores, runs of
//! keys for the value tile with their trims), and the scratch that a call needs. Code generation adds no
//! decision to it.

use serde::{Deserialize, Serialize};

use crate::cost::Sweep;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::machine::Facts;
use crate::mask::{BlockMask, Edges, HeadMask, QUERY_BLOCK, RowOrder};
use crate::schedule::{Base, BlockTest, Op, VerifiedSchedule};
use crate::spec::HopFactors;
use crate::spec::score::{ScoreMod, ScoreMods};
use crate::target::Isa;
use crate::tiles::peak::dots_pay;
use crate::tiles::{LANES, ROW_BLOCKS, dots_serve};

mod predict;
mod rows;
mod scratch;
mod strategy;
mod text;
mod tuning;
mod verify;

pub use predict::Model;
pub use rows::{Piece, PieceKeys, RowPlan, Step, Stretch, ValueRun};
pub use scratch::{EDGE_STATISTICS, Scratch};
use strategy::Situation;
pub use strategy::{ASKED_FOR, Reach, Strategy, verdicts};
pub use text::parse;
pub use tuning::{CHUNK_KEYS, Choice, JOINT_KEYS, Tuning};
pub use verify::verify;

/// How one kernel computes all heads of one problem size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelPlan {
    /// Tile family.
    pub isa: Isa,
    /// Strategy.
    pub strategy: Strategy,
    /// Why this strategy, and why not the others; for people.
    pub reasons: Vec<String>,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Width of a query or key.
    pub head_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Storage of q, k, v and the output; f32 where the text form has none.
    #[serde(default, skip_serializing_if = "Dtype::is_f32")]
    pub dtype: Dtype,
    /// Scores of bf16 by dot products of pairs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bf16_dots: bool,
    /// How scores become probabilities.
    pub scores: ScoreForm,
    /// Score mods, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mods: Option<ModsPlan>,
    /// Factors, one entry a hop.
    pub hops: Vec<HopFactors>,
    /// The value tile adds the restart term.
    pub restart_folded: bool,
    /// Storage of P where the strategy keeps it: f32, or bf16.
    #[serde(default, skip_serializing_if = "Dtype::is_f32")]
    pub store: Dtype,
    /// How far block rows reach, where the strategy goes by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
    /// The sizes that it is cut by; the default ones where the text form has none.
    #[serde(default, skip_serializing_if = "Tuning::is_default")]
    pub tuning: Tuning,
    /// What a kernel for training does besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// One plan per distinct block mask.
    pub masks: Vec<MaskPlan>,
    /// Masks that make up a head ([`crate::mask::BlockMask::parts`]); above 1, `flash` computes them one by one and
    /// joins their results.
    pub parts: usize,
    /// Heads whose queries stand in one block row ([`crate::mask::BlockMask::stack`]): the caller's tensors have
    /// `heads · stack` heads of `q_len / stack` queries.
    pub stack: usize,
    /// For every query head and part, its index in `masks`: `[heads][parts]`.
    pub mask_of_head: Vec<u32>,
}

/// What a kernel for training does besides its output.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Derivative of a score before its mods by the product of its query and its key.
    pub scale: f32,
    /// Hops whose gradients of P are summed in one pass over the block rows: all of them, or one.
    pub hops_per_pass: usize,
    /// Weights, and every Z, are what the rates of a call leave.
    pub dropout: bool,
}

/// How scores become probabilities, as far as passes may have changed it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScoreForm {
    /// Factor that packing puts on the queries.
    pub pack_scale: f32,
    /// Factor on the panel of scores before the maximum and any mods, where it did not go into the queries.
    pub panel_scale: Option<f32>,
    /// Mask and maximum are taken in the score tile; otherwise by passes over the panel.
    pub fused: bool,
    /// The exponential selects by mask words.
    pub exp_masked: bool,
    /// Full blocks are tested too, against words of ones.
    pub test_every: bool,
}

/// The pass over the panel that applies score mods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModsPlan {
    /// The mods, every index proved.
    pub mods: ScoreMods,
    /// Factor on the modified scores.
    pub factor: f32,
    /// Mask and maximum are taken in this pass; otherwise by passes of their own.
    pub fused: bool,
    /// Who computes it.
    pub by: ModsBy,
}

/// Who computes the score mods of a panel. Scattered edges are always done by code of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModsBy {
    /// Code that is made for these mods, with 128-bit vectors.
    Code,
    /// The tile family's own, for a single softcap.
    Softcap,
    /// The tile family's own, for a single alibi.
    Alibi,
}

impl ModsBy {
    fn choose(mods: &ScoreMods, isa: Isa) -> Self {
        match (isa, mods.mods.as_slice()) {
            (Isa::Portable, _) => Self::Code,
            (_, [ScoreMod::Softcap(_)]) => Self::Softcap,
            (_, [ScoreMod::Alibi(_)]) => Self::Alibi,
            _ => Self::Code,
        }
    }
}

/// The walk over one block mask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaskPlan {
    /// Query at each place, where the order is not the identity.
    pub order: Option<Vec<u32>>,
    /// Rows of K and V from one key of a range to the next.
    pub key_step: u32,
    /// Mask words of partial pieces.
    pub words: Vec<Vec<u64>>,
    /// Gathered keys.
    pub lists: Vec<Vec<u32>>,
    /// Distinct trims of value runs, `[front, back]` per register row block.
    pub trims: Vec<[[u32; 2]; ROW_BLOCKS]>,
    /// Scattered edges, by place.
    pub edges: Edges,
    /// Block rows in order.
    pub rows: Vec<RowPlan>,
    /// Keys of the widest panel.
    pub panel_keys: usize,
    /// Scattered edges of the fullest block row.
    pub block_edges: usize,
    /// Keys of all panels together: what `resident` stores.
    pub stored_keys: u64,
}

impl KernelPlan {
    /// Heads and queries of the caller's tensors.
    pub const fn outer(&self) -> (usize, usize) {
        (self.heads * self.stack, self.q_len / self.stack)
    }

    /// Into how many stretches of block rows a sweep over `items` heads cuts each ([`Sweep::stretches`]).
    pub fn stretches(&self, items: usize, workers: usize) -> usize {
        let reach = self.reach.map_or(0, |reach| reach.window() - 1);
        Sweep { rows: self.block_rows(), hops: self.hops.len(), reach }.stretches(items, workers).0
    }

    /// Rows of P that a sweep keeps.
    pub fn ring_slots(&self) -> usize {
        self.reach.unwrap_or_default().ring_slots(self.hops.len())
    }

    /// Rows of a buffer of Z. In a sweep over queries in order a buffer holds twice what is alive at once, so that each
    /// row is moved once at most; otherwise it holds every query.
    pub fn z_rows(&self) -> usize {
        match self.reach {
            Some(reach) if self.masks.iter().all(|mask| mask.order.is_none()) => {
                self.q_len.min(2 * reach.window() * QUERY_BLOCK)
            }
            _ => self.q_len,
        }
    }

    /// Block rows.
    pub fn block_rows(&self) -> usize {
        self.q_len.div_ceil(QUERY_BLOCK)
    }

    /// The first part of a head whose rows wait in scratch until they are joined: an f32 output holds those of part 0.
    pub fn first_part_apart(&self) -> usize {
        usize::from(self.dtype.is_f32())
    }

    /// What of the plan was chosen rather than given.
    pub fn choice(&self) -> Choice {
        Choice { strategy: self.strategy, store: self.store, tuning: self.tuning }
    }

    /// Whether two plans make the same kernel, whatever was said to get them.
    pub fn does_the_same(&self, other: &Self) -> bool {
        let bare = |plan: &Self| {
            let streams = |row: &RowPlan| row.steps.iter().any(|step| matches!(step, Step::Stream(_)));
            let chunks = plan.masks.iter().any(|mask| mask.rows.iter().any(streams));
            // Keys per step show in the steps.
            let chunk_keys = if chunks { plan.tuning.chunk_keys } else { CHUNK_KEYS };
            let tuning = Tuning { joint_keys: JOINT_KEYS, chunk_keys, ..plan.tuning };
            Self { reasons: Vec::new(), tuning, ..plan.clone() }
        };
        bare(self) == bare(other)
    }

    /// Columns of what the gradient's pass reads of every hop's Z, side by side; 0 without training.
    pub fn gradient_depth(&self) -> usize {
        self.training.map_or(0, |training| training.hops_per_pass * self.value_dim)
    }

    /// Groups of 16 queries in the widest block row.
    pub fn groups(&self) -> usize {
        self.q_len.min(QUERY_BLOCK).div_ceil(LANES)
    }
}

/// What a caller may insist on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    /// The strategy; the planner chooses where there is none.
    pub strategy: Option<Strategy>,
    /// Scores of bf16 by dot products of pairs; where nothing is wished, they are taken if they are faster here.
    pub bf16_dots: Option<bool>,
    /// P stays in f32, though the schedule allows bf16.
    pub exact_store: bool,
    /// Sizes to cut by.
    pub tuning: Tuning,
    /// Threads of a call, for the cost model; 0 is as good as 1.
    pub threads: usize,
    /// The machine, for the cost model; a typical one where it is not given.
    pub facts: Option<Facts>,
    /// Of a schedule for training: the gradient's pass takes one hop at a time, so that only two Z are kept.
    pub single_hop_passes: bool,
}

/// Plans a kernel.
///
/// # Errors
/// [`Error::Unsupported`] when the wished strategy is not legal for the schedule, with the reason, or the machine has no
/// wished dot products.
pub fn build(schedule: &VerifiedSchedule, isa: Isa, wishes: Wishes) -> Result<KernelPlan> {
    build_by(schedule, isa, wishes, &Model::new(schedule, isa, &wishes))
}

/// The same by a cost model of the schedule that was made before.
///
/// # Errors
/// Those of [`build`].
pub fn build_by(schedule: &VerifiedSchedule, isa: Isa, wishes: Wishes, model: &Model) -> Result<KernelPlan> {
    let mut scores =
        ScoreForm { pack_scale: 1.0, panel_scale: None, fused: false, exp_masked: false, test_every: false };
    scores.test_every = schedule.block_test == BlockTest::Every;
    let mut panel_scale = 1.0;
    let mut hops = Vec::new();
    let mut mods: Option<ModsPlan> = None;
    let (mut restart_folded, mut looped) = (true, false);
    let mut dropout = false;
    let training = schedule.gradient_scale();
    for op in &schedule.body {
        match op {
            Op::Pack { scale } => scores.pack_scale = *scale as f32,
            Op::Sddmm { fused } => scores.fused = *fused,
            Op::Scale { factor } => panel_scale *= factor,
            Op::Mods { mods: list, factor, fused } => {
                // The derivative takes scores as the definition has them, which the tiles' own mods do not leave.
                let by = if training.is_some() { ModsBy::Code } else { ModsBy::choose(list, isa) };
                mods = Some(ModsPlan { mods: list.clone(), factor: *factor as f32, fused: *fused, by });
            }
            Op::Mask | Op::RowMax => {}
            Op::Exp { base, masked } => {
                scores.exp_masked = *masked;
                // The tiles compute powers of two; e^(s - m) = 2^(s' - m') with both scaled by log2 e.
                let factor = match base {
                    Base::E => std::f64::consts::LOG2_E,
                    Base::Two => 1.0,
                };
                match &mut mods {
                    Some(mods) => mods.factor *= factor as f32,
                    None => panel_scale *= factor,
                }
            }
            Op::Hops { factors, restart_folded: folded, looped: in_loop } => {
                hops.clone_from(factors);
                (restart_folded, looped) = (*folded, *in_loop);
            }
            Op::Dropout => dropout = true,
            // The gradient is planned as a whole.
            Op::Adjoint { .. } | Op::GradProbabilities | Op::GradSoftmax | Op::GradMods | Op::GradScores { .. } => {}
        }
    }
    if !schedule.dtype.is_f32() {
        // An output that is rounded to 16 bits cannot be added to afterwards.
        restart_folded = true;
    }
    scores.panel_scale = (panel_scale != 1.0).then_some(panel_scale as f32);
    let situation = Situation {
        neighbors: &schedule.neighbors,
        hops: hops.len(),
        looped,
        training: training.is_some(),
        wish: wishes.strategy,
    };
    // Strategies that keep no P do not care.
    let stored = if wishes.exact_store { Dtype::F32 } else { schedule.store };
    let (strategy, reach, mut reasons) = strategy::choose(&situation, model, stored)?;
    let store = if strategy.stores_p() { stored } else { Dtype::F32 };
    if !store.is_f32() {
        reasons.push(format!("P is stored in {store}"));
    }
    let (d, dtype) = (schedule.head_dim, schedule.dtype);
    let bf16_dots = wishes.bf16_dots.unwrap_or_else(|| dots_pay(isa, dtype, d));
    if bf16_dots && !dots_serve(isa, dtype, d) {
        return Err(Error::unsupported(
            format!("dot products of bf16 pairs for {dtype} of width {d} on {isa}"),
            "they need bf16, a width of at least 2, and the avx512 family on a CPU with AVX512-BF16",
        ));
    }
    if bf16_dots {
        reasons.push("scores: dot products of bf16 pairs, whose sums are f32".to_owned());
    }
    let masks = schedule
        .neighbors
        .masks
        .iter()
        .map(|mask| plan_mask(mask, &schedule.neighbors, strategy, wishes.tuning))
        .collect();
    let training = training.map(|scale| Training {
        scale: scale as f32,
        hops_per_pass: if wishes.single_hop_passes { 1 } else { hops.len() },
        dropout,
    });
    let plan = KernelPlan {
        isa,
        strategy,
        reasons,
        heads: schedule.heads,
        kv_heads: schedule.kv_heads,
        q_len: schedule.neighbors.q_len,
        kv_len: schedule.neighbors.kv_len,
        head_dim: schedule.head_dim,
        value_dim: schedule.value_dim,
        dtype: schedule.dtype,
        bf16_dots,
        scores,
        mods,
        hops,
        restart_folded,
        store,
        reach,
        tuning: wishes.tuning,
        training,
        masks,
        parts: schedule.neighbors.parts,
        stack: schedule.neighbors.stack,
        mask_of_head: schedule.neighbors.mask_of_head.clone(),
    };
    if cfg!(debug_assertions) {
        verify(&plan)?;
    }
    Ok(plan)
}

fn plan_mask(mask: &HeadMask, neighbors: &BlockMask, strategy: Strategy, tuning: Tuning) -> MaskPlan {
    let mut trims = rows::Trims::default();
    let kv_len = neighbors.kv_len;
    let rows = rows::plan_rows(mask, kv_len, neighbors.masks.len() == 1, (strategy, tuning), &mut trims);
    let keys_of = |numbers: &[u32]| numbers.iter().map(|&number| mask.keys.key_at(number, kv_len)).collect();
    let block_edges = mask
        .edges
        .offsets
        .chunks(QUERY_BLOCK)
        .enumerate()
        .map(|(t, chunk)| {
            let end = mask.edges.offsets.get((t + 1) * QUERY_BLOCK).or(mask.edges.offsets.last());
            end.map_or(0, |&end| (end - chunk[0]) as usize)
        })
        .max()
        .unwrap_or(0);
    MaskPlan {
        order: match &mask.order {
            RowOrder::Identity => None,
            RowOrder::Permuted(order) => Some(order.clone()),
        },
        words: mask.words.clone(),
        key_step: mask.keys.step(),
        lists: mask.lists.iter().map(|list| keys_of(list)).collect(),
        trims: trims.into_tables(),
        edges: Edges { offsets: mask.edges.offsets.clone(), keys: keys_of(&mask.edges.keys) },
        panel_keys: rows.iter().map(|row| row.widest_panel(tuning)).max().unwrap_or(0),
        stored_keys: rows.iter().map(RowPlan::keys).sum(),
        rows,
        block_edges,
    }
}

//! The plan: how one kernel walks its block rows on this machine.
//!
//! In: a [`VerifiedProgram`] in its nest, a tile family, and what the caller insists on. Out: a [`KernelPlan`]: the
//! walk that its nest is, for every block row its steps (pieces of keys that share one panel of scores, runs of
//! keys for the value tile with their trims), and the scratch that a call needs. Code generation adds no
//! decision to it.

use serde::{Deserialize, Serialize};

use crate::cost::{NestCounts, Sweep};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::machine::Facts;
use crate::mask::{BlockMask, Edges, HeadMask, QUERY_BLOCK, RowOrder};
use crate::passes::Strategy;
use crate::program::{self, Op, Operation, Reach, Reaches, Shape, VerifiedProgram};
use crate::spec::HopFactors;
use crate::spec::score::{ScoreMod, ScoreMods};
use crate::target::Isa;
use crate::tiles::stored::dots_serve;
use crate::tiles::{LANES, ROW_BLOCKS};

mod choose;
mod nest;
mod predict;
mod reach;
mod rows;
mod scratch;
mod text;
mod tuning;
mod verify;

pub use choose::{ASKED_FOR, Chosen, choose, choose_training};
use nest::Reading;
pub use nest::Walk;
pub use predict::Model;
pub use rows::{Piece, PieceKeys, RowPlan, Step, Stretch, ValueRun};
pub use scratch::{EDGE_STATISTICS, Scratch};
pub use text::parse;
pub use tuning::{CHUNK_KEYS, Choice, JOINT_KEYS, Tuning};
pub use verify::verify;

/// How one kernel computes all heads of one problem size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelPlan {
    /// Tile family.
    pub isa: Isa,
    /// The recipe that the nest was made by, for people.
    pub strategy: Strategy,
    /// How code and runtime walk the nest.
    pub walk: Walk,
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
    /// A sweep's rows may be cut into stretches, each of which computes the rows near its border for itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub halo: bool,
    /// Block rows whose scattered edges are computed together, ahead of their rows: a power of two.
    pub edge_rows: usize,
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
        if !self.halo {
            return 1;
        }
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
            Self { strategy: Strategy::default(), reasons: Vec::new(), tuning, ..plan.clone() }
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

/// What is known of a plan beside its program.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// The recipe that made the nest.
    pub strategy: Strategy,
    /// Why this one, and why not the others; for people.
    pub reasons: Vec<String>,
    /// Scores of bf16 by dot products of pairs; where nothing is wished, they are taken if `facts` say that they pay.
    pub bf16_dots: Option<bool>,
    /// Sizes to cut by.
    pub tuning: Tuning,
    /// The machine; a typical one where it is not given.
    pub facts: Option<Facts>,
}

/// Plans the kernel of a forward nest.
///
/// # Errors
/// [`Error::Unsupported`] where no code walks the nest, with the reason, or the machine has no wished dot products.
pub fn build(program: &VerifiedProgram, isa: Isa, options: PlanOptions) -> Result<KernelPlan> {
    let strategy = options.strategy;
    let walk = Walk::of(&program.body).map_err(|why| Error::unsupported(format!("this nest of {strategy}"), why))?;
    assemble(program, isa, walk, None, options)
}

/// Plans the kernels of a nest with a gradient: the one whose pass computes P again, and the one whose hops store P, where
/// the nest does. `scale` is the derivative of a score before its mods by the product of its query and its key.
///
/// # Errors
/// Those of [`build`].
pub fn build_training(
    program: &VerifiedProgram,
    isa: Isa,
    (strategy, scale): (Strategy, f64),
) -> Result<(KernelPlan, Option<KernelPlan>)> {
    let of_softmax = |operation: &&Operation| matches!(operation.op, Op::SoftmaxGradient { .. });
    let training = Training {
        scale: scale as f32,
        hops_per_pass: if program.body.ops().filter(of_softmax).count() > 1 { 1 } else { program.body.hops() },
        dropout: false,
    };
    let one = |walk| {
        let reasons = vec![format!("{strategy}: {}", strategy.recipe().about)];
        assemble(program, isa, walk, Some(training), PlanOptions { strategy, reasons, ..PlanOptions::default() })
    };
    let stored = NestCounts::of(&program.body).weights.is_some();
    Ok((one(Walk::Recompute)?, if stored { Some(one(Walk::Resident)?) } else { None }))
}

fn assemble(
    program: &VerifiedProgram,
    isa: Isa,
    walk: Walk,
    training: Option<Training>,
    PlanOptions { strategy, mut reasons, bf16_dots, tuning, facts }: PlanOptions,
) -> Result<KernelPlan> {
    let Shape { heads, kv_heads, q_len, kv_len, head_dim, value_dim, dtype, store: _ } = program.shape;
    let reading =
        Reading::of(program, isa).map_err(|why| Error::unsupported(format!("this nest of {strategy}"), why))?;
    let Reading { scores, mods, hops, restart_folded, dropout, store, halo, edge_rows } = reading;
    let reach = match (walk, program::reaches(&program.neighbors)) {
        (Walk::Sweep, Reaches::Band(reach, _)) => Some(reach),
        _ => None,
    };
    let bf16_dots = bf16_dots
        .unwrap_or_else(|| dots_serve(isa, dtype, head_dim) && facts.unwrap_or(Facts::TYPICAL).bf16_dots_pay(isa));
    if bf16_dots && !dots_serve(isa, dtype, head_dim) {
        return Err(Error::unsupported(
            format!("dot products of bf16 pairs for {dtype} of width {head_dim} on {isa}"),
            "they need bf16, a width of at least 2, and the avx512 family on a CPU with AVX512-BF16",
        ));
    }
    if bf16_dots {
        reasons.push("scores: dot products of bf16 pairs, whose sums are f32".to_owned());
    }
    let masks = program.neighbors.masks.iter();
    let plan = KernelPlan {
        isa,
        strategy,
        walk,
        reasons,
        heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim,
        value_dim,
        dtype,
        bf16_dots,
        scores,
        mods,
        hops,
        restart_folded,
        store: if walk.stores_p() { store } else { Dtype::F32 },
        reach,
        halo,
        edge_rows,
        tuning,
        training: training.map(|training| Training { dropout, ..training }),
        masks: masks.map(|mask| plan_mask(mask, &program.neighbors, walk, tuning)).collect(),
        parts: program.neighbors.parts,
        stack: program.neighbors.stack,
        mask_of_head: program.neighbors.mask_of_head.clone(),
    };
    if cfg!(debug_assertions) {
        verify(&plan)?;
    }
    Ok(plan)
}

fn plan_mask(mask: &HeadMask, neighbors: &BlockMask, walk: Walk, tuning: Tuning) -> MaskPlan {
    let mut trims = rows::Trims::default();
    let kv_len = neighbors.kv_len;
    let rows = rows::plan_rows(mask, kv_len, neighbors.masks.len() == 1, (walk, tuning), &mut trims);
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

//! The plan: how one kernel runs its nest on this machine.
//!
//! In: a [`VerifiedProgram`] with the nest of a recipe, a tile family, and what the caller insists on. Out: a
//! [`VerifiedPlan`]: the nest, for every block row its steps (pieces of keys that share one panel of scores, runs of keys
//! for the value tile with their trims), what each function does and prefetches, and the layout of workspace. Code
//! generation adds no decision to it.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::cost::Sweep;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::machine::Facts;
use crate::mask::{BlockMask, Edges, HeadMask, QUERY_BLOCK, RowOrder};
use crate::passes::Strategy;
use crate::program::{Base, BlockTest, Body, Extent, Op, Reach, Shape, Space, VerifiedProgram};
use crate::spec::score::{ScoreMod, ScoreMods};
use crate::target::Isa;
use crate::tiles::stored::dots_serve;
use crate::tiles::{LANES, ROW_BLOCKS};

mod chains;
mod choose;
mod function;
mod layout;
mod outline;
mod predict;
mod prefetch;
mod resolve;
mod rows;
mod text;
mod tuning;
mod verify;

pub use choose::{ASKED_FOR, Chosen, choose, choose_training};
pub use function::{
    Dense, DenseKind, Functions, Kept, Lanes, MOST_FACTORS, MOST_OPERANDS, Operand, Packed, Panel, RowFunction, RowOp,
    Rows, RowsAt, StageCall, Statistics,
};
pub use layout::{Buffer, EDGE_STATISTICS, Layout, Local};
pub use outline::Outline;
pub use predict::Model;
pub use prefetch::{Share, of_pieces, of_runs};
pub use rows::{Piece, PieceKeys, RowPlan, Step, Stretch, ValueRun};
pub use text::parse;
pub use tuning::{CHUNK_KEYS, Choice, JOINT_KEYS, Tuning};
pub use verify::{VerifiedPlan, verify};

/// How one kernel computes all heads of one problem size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelPlan {
    /// Tile family.
    pub isa: Isa,
    /// The recipe that the nest comes from.
    pub strategy: Strategy,
    /// Why this strategy, and why not the others; for people.
    pub reasons: Vec<String>,
    /// Sizes and types.
    #[serde(skip)]
    pub shape: Shape,
    /// Scores of bf16 by dot products of pairs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bf16_dots: bool,
    /// Which blocks have their mask words tested; full ones against words of ones.
    #[serde(skip)]
    pub block_test: BlockTest,
    /// Tables come with the call: all rows are walked from them, and workspace has room for others like them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tables_at_call: bool,
    /// Who applies the score mods, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mods: Option<ModsPlan>,
    /// The sizes that it is cut by; the default ones where the text form has none.
    #[serde(default, skip_serializing_if = "Tuning::is_default")]
    pub tuning: Tuning,
    /// Operations and their nest.
    #[serde(skip)]
    pub body: Body,
    /// How far block rows reach, where the nest goes by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
    /// The ways in which its functions walk block rows.
    pub walks: Vec<Walk>,
    /// Masks that make up a head ([`BlockMask::parts`]), computed one by one and joined.
    pub parts: usize,
    /// Heads whose queries stand in one block row ([`BlockMask::stack`]): the caller's tensors have
    /// `heads · stack` heads of `q_len / stack` queries.
    pub stack: usize,
    /// For every query head and part, its index in the masks of a walk: `[heads][parts]`.
    pub mask_of_head: Vec<u32>,
    /// The same of further sets of neighbors, by set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masks_of_others: Vec<Vec<u32>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde has it")]
const fn is_zero(set: &u32) -> bool {
    *set == 0
}

/// One way of walking block rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Walk {
    /// Which set of neighbors it walks ([`crate::program::Loop::set`]).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub set: u32,
    /// Some keys of a row after the other, instead of whole rows.
    pub by_keys: bool,
    /// One plan per distinct block mask.
    pub masks: Vec<MaskPlan>,
}

/// Who applies score mods.
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
    /// Keys of all panels together.
    pub stored_keys: u64,
}

impl KernelPlan {
    /// Heads and queries of the caller's tensors.
    pub const fn outer(&self) -> (usize, usize) {
        (self.shape.heads * self.stack, self.shape.q_len / self.stack)
    }

    /// Query heads that share a key/value head.
    pub const fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// Hops of the output: products with rows of keys in it.
    pub fn hops(&self) -> usize {
        let mut hops = 0;
        for operation in self.body.ops() {
            if let Op::Spmm { .. } | Op::Solve { .. } = operation.op {
                hops += 1;
            }
            if operation
                .results
                .iter()
                .any(|&id| self.body.value(id).extent == Extent::Tensor(crate::program::Tensor::Out))
            {
                return hops;
            }
        }
        hops
    }

    /// Whether the plan computes gradients, or drops weights.
    pub fn is_training(&self) -> bool {
        self.body.is_training()
    }

    /// Whether weights or rows can be dropped.
    pub fn has_dropout(&self) -> bool {
        self.body.ops().any(|operation| matches!(operation.op, Op::Dropout { .. }))
    }

    /// Into how many stretches of block rows a loop with a halo over `items` heads cuts each ([`Sweep::stretches`]).
    pub fn stretches(&self, items: usize, workers: usize) -> usize {
        let reach = self.reach.map_or(0, |reach| reach.window() - 1);
        Sweep { rows: self.block_rows(), hops: self.hops(), reach }.stretches(items, workers).0
    }

    /// The mask of a head's part, in the walks over a set of neighbors.
    pub fn mask_of(&self, set: u32, head: usize, part: usize) -> usize {
        let mask = match set.checked_sub(1) {
            None => self.mask_of_head[head * self.parts + part],
            Some(other) => self.masks_of_others[other as usize][head],
        };
        mask as usize
    }

    /// Block rows.
    pub const fn block_rows(&self) -> usize {
        self.shape.q_len.div_ceil(QUERY_BLOCK)
    }

    /// The first part of a head whose rows wait in the head's workspace until they are joined: an f32 output holds those of
    /// part 0.
    pub fn first_part_apart(&self) -> usize {
        usize::from(self.shape.dtype.is_f32())
    }

    /// Storage of P where it is kept.
    pub fn store(&self) -> Dtype {
        let kept = self.body.values.iter().find(|value| value.space == Space::Pairs && !value.store.is_f32());
        kept.map_or(Dtype::F32, |value| value.store)
    }

    /// What of the plan was chosen rather than given.
    pub fn choice(&self) -> Choice {
        Choice { strategy: self.strategy, store: self.store(), tuning: self.tuning }
    }

    /// All mask plans.
    pub fn masks(&self) -> impl Iterator<Item = &MaskPlan> {
        self.walks.iter().flat_map(|walk| &walk.masks)
    }

    /// Whether any mask has scattered edges.
    pub fn has_edges(&self) -> bool {
        self.masks().any(|mask| !mask.edges.keys.is_empty())
    }

    /// Whether block rows are looked up through an order.
    pub fn is_ordered(&self) -> bool {
        self.masks().any(|mask| mask.order.is_some())
    }

    /// Whether keys of a range may lie apart.
    pub fn has_key_steps(&self) -> bool {
        self.masks().any(|mask| mask.key_step != 1)
    }

    /// Whether two plans make the same kernel, whatever was said to get them.
    pub fn does_the_same(&self, other: &Self) -> bool {
        let bare = |plan: &Self| {
            let streams = |row: &RowPlan| row.steps.iter().any(|step| matches!(step, Step::Stream(_)));
            let chunks = plan.masks().any(|mask| mask.rows.iter().any(streams));
            // Keys per step show in the steps.
            let chunk_keys = if chunks { plan.tuning.chunk_keys } else { CHUNK_KEYS };
            let tuning = Tuning { joint_keys: JOINT_KEYS, chunk_keys, ..plan.tuning };
            Self { reasons: Vec::new(), strategy: Strategy::FLASH, tuning, ..plan.clone() }
        };
        bare(self) == bare(other)
    }
}

/// What a caller may insist on.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Scores of bf16 by dot products of pairs; where nothing is said, they are taken if `facts` say that they pay.
    pub bf16_dots: Option<bool>,
    /// Whether other neighbors of the same problem are to run the same code ([`KernelPlan::tables_at_call`]).
    pub tables_at_call: bool,
    /// The machine; a typical one where it is not given.
    pub facts: Option<Facts>,
    /// Sizes to cut by.
    pub tuning: Tuning,
    /// The recipe that the nest comes from.
    pub strategy: Strategy,
    /// Sentences on every strategy.
    pub reasons: Vec<String>,
}

/// Plans a kernel.
///
/// # Errors
/// [`Error::Unsupported`] when the machine has no dot products that are asked for, or the code of a function has no place
/// for a stage.
pub fn build(program: &VerifiedProgram, isa: Isa, options: PlanOptions) -> Result<VerifiedPlan> {
    let PlanOptions { bf16_dots, tables_at_call, facts, tuning, strategy, mut reasons } = options;
    let (shape, body, neighbors) = (program.shape, &program.body, &program.neighbors);
    let dots_serve = dots_serve(isa, shape.dtype, shape.head_dim);
    let bf16_dots = bf16_dots.unwrap_or_else(|| dots_serve && facts.unwrap_or(Facts::TYPICAL).bf16_dots_pay(isa));
    if bf16_dots && !dots_serve {
        return Err(Error::unsupported(
            format!("dot products of bf16 pairs for {} of width {} on {isa}", shape.dtype, shape.head_dim),
            "they need bf16, a width of at least 2, and the avx512 family on a CPU with AVX512-BF16",
        ));
    }
    if bf16_dots {
        reasons.push("scores: dot products of bf16 pairs, whose sums are f32".to_owned());
    }
    // Whole rows first. A body without pairs walks whole rows too.
    let walks = program.sets().zip(0..).flat_map(|(neighbors, set)| {
        let of_set = body.loops.iter().filter(move |one| one.set == set).flat_map(|one| &one.stages);
        let ways =
            [false, true].into_iter().filter(move |&by_keys| of_set.clone().any(|stage| stage.by_keys == by_keys));
        ways.map(move |by_keys| Walk {
            set,
            by_keys,
            masks: neighbors
                .masks
                .par_iter()
                .map(|mask| plan_mask(mask, neighbors, (by_keys, tables_at_call), tuning))
                .collect(),
        })
    });
    let plan = KernelPlan {
        isa,
        strategy,
        reasons,
        shape,
        bf16_dots,
        tables_at_call,
        block_test: program.block_test,
        mods: mods_of(body, isa),
        tuning,
        body: body.clone(),
        reach: program.reach(),
        walks: walks.collect(),
        parts: neighbors.parts,
        stack: neighbors.stack,
        mask_of_head: neighbors.mask_of_head.clone(),
        masks_of_others: program.others.iter().map(|set| set.mask_of_head.clone()).collect(),
    };
    verify(plan)
}

/// Who applies the score mods of a body. A body that goes back through them keeps scores as the definition has them, which
/// the tiles' own mods do not leave.
fn mods_of(body: &Body, isa: Isa) -> Option<ModsPlan> {
    let backward = body.ops().any(|operation| matches!(operation.op, Op::ModsGradient { .. }));
    let natural = body.ops().any(|operation| matches!(operation.op, Op::Exp { base: Base::E, .. }));
    let mut fused = false;
    let mut first = None;
    for operation in body.ops() {
        if let Op::Mods { mods, factor, masked, .. } = &operation.op {
            fused |= *masked || operation.results.len() > 1;
            first.get_or_insert((mods, *factor));
        }
    }
    let (mods, factor) = first?;
    // The tiles compute powers of two; e^(s - m) = 2^(s' - m') with both scaled by log2 e.
    let factor = if natural { factor * std::f64::consts::LOG2_E } else { factor } as f32;
    let by = if backward { ModsBy::Code } else { ModsBy::choose(mods, isa) };
    Some(ModsPlan { mods: mods.clone(), factor, fused, by })
}

fn plan_mask(mask: &HeadMask, neighbors: &BlockMask, (by_keys, at_call): (bool, bool), tuning: Tuning) -> MaskPlan {
    let mut trims = rows::Trims::default();
    let kv_len = neighbors.kv_len;
    let alone = neighbors.masks.len() == 1 && !at_call;
    let rows = rows::plan_rows(mask, kv_len, alone, (by_keys, tuning), &mut trims);
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
        panel_keys: match rows.iter().map(|row| row.widest_panel(tuning)).max().unwrap_or(0) {
            widest if !at_call => widest as usize,
            _ if by_keys => tuning.joint_keys.max(tuning.chunk_keys) as usize,
            widest => (widest as usize).next_power_of_two(),
        },
        stored_keys: rows.iter().map(RowPlan::keys).sum(),
        rows,
        block_edges: if at_call { room(block_edges) } else { block_edges },
    }
}

/// So many things, and more of them where other tables may come.
const fn room(count: usize) -> usize {
    if count == 0 { 0 } else { count.next_power_of_two() }
}

/// Groups of 16 queries in a block row of so many queries at most.
pub const fn groups(q_len: usize) -> usize {
    let rows = if q_len < QUERY_BLOCK { q_len } else { QUERY_BLOCK };
    rows.div_ceil(LANES)
}

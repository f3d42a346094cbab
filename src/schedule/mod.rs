//! The schedule: what a kernel computes, as a short list of operations over neighbor blocks and hops.
//!
//! In: a [`BlockMask`], the score's scale and the diffusion. Out: a [`Schedule`], first as the definition
//! has it (one operation a step), later as [`crate::passes`] have fused it. [`verify`] turns it into a
//! [`VerifiedSchedule`], the only thing that later steps accept.
//!
//! The whole IR, as its text form:
//!
//! ```text
//! schedule heads H kv_heads G q_len M kv_len N head_dim D value_dim E [dtype T] [store T]
//! blocks test every | blocks test partial
//! qt = pack q * SCALE                 packed, scaled queries
//! s = sddmm k qt                      scores on the neighbors (blocks and scattered edges)
//! s, m = sddmm k qt with mask rowmax  the same, masked and reduced in the tile's epilogue
//! s = scale s * FACTOR
//! s = mods s {                        score mods in order, as [`ScoreMods`] prints them, then * FACTOR
//!   positions …, input …, softcap …   ending in `} * FACTOR with mask rowmax`: masked and reduced in the same pass
//! } * FACTOR
//! s = mask s                          scores outside the neighbors become -inf
//! m = rowmax s
//! p, l = exp BASE s - m [with mask]   p = BASE^(s - m), l its row sums; BASE is e or 2
//! hops K {                            z' = step * (p z) / l + restart * v, z = v at first
//!   spmm p z * STEP                   one line a hop
//!   restart v * RESTART               after its hop; folded: `spmm p z * STEP + v * RESTART`
//! }
//! hop { … }                           a single hop, no loop and no buffer for z
//! ```
//!
//! and, in a schedule for training, which [`crate::passes::derive_gradient`] makes of one like this:
//!
//! ```text
//! p = dropout p                       weights, and z behind each hop, that the call's rates leave
//! adjoint K {                         g is the gradient of the last z; the last hop first
//!   spmm_t p g * STEP                 g' = step * (p / l)^T g
//!   dv += g * RESTART                 the last g' goes to dv too
//! }
//! dp = sddmm z g                      summed over the hops, each with its step
//! ds = p / l * (dp - rowsum p / l dp)
//! ds = mods' ds                       times the derivative of the score mods
//! dq, dk = spmm ds k, spmm_t ds q * SCALE
//! ```
//!
//! both followed by
//!
//! ```text
//! neighbors
//! …the block mask's own text form…
//! ```

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mask::BlockMask;
use crate::spec::score::{self, ScoreMods};
use crate::spec::{HopFactors, PatternSpec};

mod text;
mod verify;

pub use text::parse;
pub use verify::{VerifiedSchedule, verify};

/// What a kernel computes for every head.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a query or key.
    pub head_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Storage of q, k, v and the output.
    pub dtype: Dtype,
    /// Storage of p where it is kept: f32 or bf16.
    pub store: Dtype,
    /// Which blocks have their mask words tested.
    pub block_test: BlockTest,
    /// The operations, in order.
    pub body: Vec<Op>,
    /// Who meets whom: blocks, gathered panels and scattered edges, per head.
    pub neighbors: BlockMask,
}

/// Which blocks have their mask words tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockTest {
    /// All: a full block is tested against words of ones.
    Every,
    /// Partial ones; full blocks go without.
    Partial,
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `qt = scale · Qᵀ`, a block of 64 queries at a time.
    Pack {
        /// Factor on every query.
        scale: f64,
    },
    /// `s = K · qt` on the neighbors.
    Sddmm {
        /// The tile's epilogue applies the mask and reduces the row maximum.
        fused: bool,
    },
    /// `s = factor · s`.
    Scale {
        /// Factor on every score.
        factor: f64,
    },
    /// `s = factor · mods(s)`: the spec's score mods.
    Mods {
        /// The mods, every index proved.
        mods: ScoreMods,
        /// Factor on the modified score.
        factor: f64,
        /// The same pass applies the mask and reduces the row maximum.
        fused: bool,
    },
    /// Scores outside the neighbors become −inf (selected, never added: NaN outside does not enter).
    Mask,
    /// `m = max over keys of s`.
    RowMax,
    /// `p = base^(s − m)` and the row sums `l`.
    Exp {
        /// Base of the exponential.
        base: Base,
        /// Masked entries become 0 here, whatever their score.
        masked: bool,
    },
    /// The hops, in order.
    Hops {
        /// Factors, one entry a hop.
        factors: Vec<HopFactors>,
        /// The restart term is added by the value tile.
        restart_folded: bool,
        /// More than one hop, or one that was not yet recognised as single: Z lives in memory between hops.
        looped: bool,
    },
    /// `p = dropout p`: the weights that the call's rate leaves, and the same of every Z behind its hop.
    Dropout,
    /// `g' = step · Aᵀ g`, `dv += restart · g`, the last hop first: the adjoint of the hops.
    Adjoint {
        /// Factors, one entry a hop, in the order of the hops.
        factors: Vec<HopFactors>,
    },
    /// `dp = Z gᵀ` on the neighbors, summed over the hops, each with its step.
    GradProbabilities,
    /// `ds = A ∘ (dp − rowsum(A ∘ dp))`: the adjoint of the softmax.
    GradSoftmax,
    /// `ds = ds ∘ mods'(s)`, and what the inputs of the mods get.
    GradMods,
    /// `dq = scale · ds K`, `dk = scale · dsᵀ Q`.
    GradScores {
        /// Factor of a score before its mods.
        scale: f64,
    },
}

/// Base of the softmax's exponential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// e, as the definition has it.
    E,
    /// 2: what the tiles compute; log2(e) has gone into the scale.
    Two,
}

/// The schedule as the definition has it, before any pass: one operation a step.
///
/// The factor of the diffusion on V before the first hop ([`crate::spec::Diffusion::initial`]) goes into the
/// first hop's step, since A is linear. No hop at all is a hop with step 0 whose restart is that factor: a step
/// of 0 leaves the term out, so that NaN in it does not enter.
///
/// # Errors
/// Those of [`score::resolve`]: an index of a score mod that may leave its input.
pub fn build(spec: &PatternSpec, neighbors: BlockMask) -> Result<Schedule> {
    let mods = score::resolve(spec, neighbors.q_len, neighbors.kv_len)?;
    let initial = spec.diffusion.initial;
    let mut factors = spec.diffusion.hops.clone();
    match factors.first_mut() {
        None => factors.push(HopFactors { step: 0.0, restart: initial }),
        Some(first) => first.step *= initial,
    }
    let mut body = vec![Op::Pack { scale: 1.0 }, Op::Sddmm { fused: false }, Op::Scale { factor: spec.scale }];
    body.extend(mods.map(|mods| Op::Mods { mods, factor: 1.0, fused: false }));
    body.extend([
        Op::Mask,
        Op::RowMax,
        Op::Exp { base: Base::E, masked: false },
        Op::Hops { factors, restart_folded: false, looped: true },
    ]);
    Ok(Schedule {
        heads: spec.heads / neighbors.stack,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        value_dim: spec.value_dim,
        dtype: spec.dtype,
        store: spec.diffusion.store,
        block_test: BlockTest::Every,
        body,
        neighbors,
    })
}

impl Schedule {
    /// The factors of the hops, at least one in a verified schedule.
    pub fn hops(&self) -> &[HopFactors] {
        let hops = self.body.iter().find_map(|op| match op {
            Op::Hops { factors, .. } => Some(factors.as_slice()),
            _ => None,
        });
        hops.unwrap_or(&[])
    }

    /// The score mods, if there are any.
    pub fn mods(&self) -> Option<&ScoreMods> {
        self.body.iter().find_map(|op| match op {
            Op::Mods { mods, .. } => Some(mods),
            _ => None,
        })
    }

    /// The factor of a score before its mods, in a schedule for training.
    pub fn gradient_scale(&self) -> Option<f64> {
        self.body.iter().find_map(|op| match op {
            Op::GradScores { scale } => Some(*scale),
            _ => None,
        })
    }

    /// An internal error about this schedule.
    pub(crate) fn broken(&self, message: impl Into<String>) -> Error {
        Error::internal("schedule", message, self.print())
    }
}

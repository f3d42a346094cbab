//! `… hops { … } -> … hops { … }; adjoint { … }; dp = …; ds = …; dq, dk = …`: the schedule of a gradient, derived from the
//! one of its output.
//!
//! The definition backwards, one operation a step (for G = dL/dZ_K: G' = step · Aᵀ G, dV = Σ restart · G + G_0,
//! dA = Σ step · G Zᵀ on the neighbors, dS = A ∘ (dA − rowsum(A ∘ dA)), dQ = scale · dS K, dK = scale · dSᵀ Q). The other
//! passes then fuse what comes before the hops as they do without a gradient.

use crate::dtype::Dtype;
use crate::schedule::{Op, Schedule};

/// Derives the schedule for training from one as [`crate::schedule::build`] makes it. Its tensors are f32, as gradients
/// are summed. With `dropout`, weights and every Z are what the rates of a call leave.
pub fn derive_gradient(mut schedule: Schedule, dropout: bool) -> Schedule {
    let mut scale = 1.0;
    let mut mods = false;
    let mut hops = Vec::new();
    for op in &schedule.body {
        match op {
            Op::Pack { scale: factor } | Op::Scale { factor } => scale *= factor,
            Op::Mods { .. } => mods = true,
            Op::Hops { factors, .. } => hops.clone_from(factors),
            _ => {}
        }
    }
    if dropout {
        let before = schedule.body.iter().position(|op| matches!(op, Op::Hops { .. }));
        schedule.body.insert(before.unwrap_or(schedule.body.len()), Op::Dropout);
    }
    schedule.body.extend([Op::Adjoint { factors: hops }, Op::GradProbabilities, Op::GradSoftmax]);
    schedule.body.extend(mods.then_some(Op::GradMods));
    schedule.body.push(Op::GradScores { scale });
    schedule.dtype = Dtype::F32;
    schedule.store = Dtype::F32;
    schedule
}

//! `qt = pack q; s = sddmm k qt; s = scale s * c; p = exp e … -> qt = pack q * (c · log2 e); s = sddmm k qt; p = exp 2 …`.
//!
//! One multiplication a query instead of one a score, and the exponential becomes the power of two that the
//! tiles compute. Score mods take the scores as the definition has them, so behind them log2 e is a factor of theirs:
//! `s = mods s { … }; p = exp e … -> s = mods s { … } * log2 e; p = exp 2 …`.

use super::Pass;
use crate::schedule::{Base, Op, Schedule};

pub(super) const PASS: Pass =
    Pass { name: "fold_scale_into_queries", rewrite: "scale s * c, exp e -> pack q * (c log2 e), exp 2", run };

fn run(schedule: &mut Schedule) {
    let mut factor = 1.0;
    schedule.body.retain(|op| match op {
        Op::Scale { factor: by } => {
            factor *= by;
            false
        }
        _ => true,
    });
    let mut behind = 1.0;
    for op in &mut schedule.body {
        if let Op::Exp { base: base @ Base::E, .. } = op {
            behind *= std::f64::consts::LOG2_E;
            *base = Base::Two;
        }
    }
    if let Some(by) = schedule.body.iter_mut().find_map(|op| match op {
        Op::Mods { factor, .. } => Some(factor),
        _ => None,
    }) {
        *by *= behind;
    } else {
        factor *= behind;
    }
    for op in &mut schedule.body {
        if let Op::Pack { scale } = op {
            *scale *= factor;
        }
    }
}

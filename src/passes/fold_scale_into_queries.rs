//! `qt = pack q; s = sddmm qt k; s = scale s * c; p = exp e … -> qt = pack q * (c · log2 e); s = sddmm qt k; p = exp 2 …`.
//!
//! One multiplication a query instead of one a score, and the exponential becomes the power of two that the
//! tiles compute. Score mods take the scores as the definition has them, so behind them log2 e is a factor of theirs:
//! `s = mods s { … }; p = exp e … -> s = mods s { … } * log2 e; p = exp 2 …`. The gradient's scale goes into the operation
//! before it: `ds = softmax' …; ds = scale ds * c -> ds = softmax' … * c`, or mods'.

use std::collections::HashMap;

use super::Pass;
use super::nest;
use crate::program::{Base, Op, Program, ValueId};

pub(super) const PASS: Pass =
    Pass { name: "fold_scale_into_queries", rewrite: "scale s * c, exp e -> pack q * (c log2 e), exp 2", run };

fn run(program: &mut Program) {
    let body = &mut program.body;
    // Whose result a value is, through scale and mask, and what each of those operations is to be multiplied with.
    let mut source: HashMap<ValueId, ValueId> = HashMap::new();
    let mut packs: HashMap<ValueId, ValueId> = HashMap::new();
    let mut factors: HashMap<ValueId, f64> = HashMap::new();
    let mut renamed: HashMap<ValueId, ValueId> = HashMap::new();
    for operation in body.ops() {
        let result = operation.results[0];
        match &operation.op {
            Op::Sddmm { x, .. } => {
                packs.insert(result, *x);
                source.insert(result, result);
            }
            Op::Mods { .. } | Op::SoftmaxGradient { .. } | Op::ModsGradient { .. } => {
                source.insert(result, result);
            }
            Op::Mask { s } => {
                if let Some(&at) = source.get(s) {
                    source.insert(result, at);
                }
            }
            Op::Scale { s, factor } => {
                if let Some(&at) = source.get(s) {
                    *factors.entry(at).or_insert(1.0) *= factor;
                    source.insert(result, at);
                    renamed.insert(result, *s);
                }
            }
            Op::Exp { s, base: Base::E, .. } => {
                if let Some(&at) = source.get(s) {
                    *factors.entry(at).or_insert(1.0) *= std::f64::consts::LOG2_E;
                }
            }
            _ => {}
        }
    }
    for (at, pack) in packs {
        if let Some(factor) = factors.remove(&at) {
            *factors.entry(pack).or_insert(1.0) *= factor;
        }
    }
    let scales = renamed.clone();
    nest::remove(body, |operation| scales.contains_key(&operation.results[0]), &renamed);
    for operation in body.loops.iter_mut().flat_map(|one| &mut one.stages).flat_map(|stage| &mut stage.ops) {
        if let Op::Exp { s, base: base @ Base::E, .. } = &mut operation.op
            && source.contains_key(s)
        {
            *base = Base::Two;
        }
        let Some(by) = factors.get(&operation.results[0]) else { continue };
        if let Op::Pack { factor, .. }
        | Op::Mods { factor, .. }
        | Op::SoftmaxGradient { factor, .. }
        | Op::ModsGradient { factor, .. } = &mut operation.op
        {
            *factor *= by;
        }
    }
    body.normalise();
}

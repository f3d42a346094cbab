//! `spmm_t (dropout copy p) h; ds, p' = softmax' p … with dropout -> ds, p' = softmax' p … with dropout; spmm_t p' h`.
//!
//! The gradient of the softmax finds out anyway which weights dropout leaves; a product with those in the same stage takes
//! them from there. Runs before P is computed again, which would otherwise be done with and without dropout.

use super::nest::{self, Sites};
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Op, ValueId};

pub(super) const PASS: NestPass = NestPass {
    name: "take_weights_left",
    rewrite: "spmm_t (dropout p), softmax' p with dropout -> p' of softmax' p with dropout, spmm_t p'",
    by_reach: false,
    run,
};

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    let sites = Sites::of(body);
    // Which weights were copied, then dropped, to make a value.
    let dropped = |body: &Body, id: ValueId| match sites.operation(body, id).map(|operation| &operation.op) {
        Some(Op::Dropout { x, hop: None }) => match sites.operation(body, *x).map(|operation| &operation.op) {
            Some(Op::Copy { x }) => Some(*x),
            _ => None,
        },
        _ => None,
    };
    for (i, j) in nest::stages(body) {
        let ops = &body.loops[i].stages[j].ops;
        let left = ops.iter().enumerate().find_map(|(at, operation)| match operation.op {
            Op::SoftmaxGradient { p, dropout: true, .. } => Some((at, p, *operation.results.get(1)?)),
            _ => None,
        });
        let Some((at, weights, left)) = left else { continue };
        let takes = |op: &Op| matches!(op, Op::SpmmT { p, .. } if dropped(body, *p) == Some(weights));
        let moved: Vec<bool> = ops.iter().map(|operation| takes(&operation.op)).collect();
        let mut before = Vec::new();
        let mut behind = Vec::new();
        let ops = std::mem::take(&mut body.loops[i].stages[j].ops);
        for (k, mut operation) in ops.into_iter().enumerate() {
            if let (true, Op::SpmmT { p, .. }) = (moved[k], &mut operation.op) {
                *p = left;
            }
            if k <= at && !moved[k] { before.push(operation) } else { behind.push(operation) }
        }
        before.append(&mut behind);
        body.loops[i].stages[j].ops = before;
    }
    Ok(None)
}

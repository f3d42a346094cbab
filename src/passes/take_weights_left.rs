//! `spmm_t (dropout copy p) h; ds = softmax' p … with dropout -> ds, p' = softmax' p … with dropout; spmm_t p' h`.
//!
//! The gradient of the softmax finds out anyway which weights dropout leaves; a product with those in the same stage takes
//! them from there. Runs where P was computed again for the stage alone, since its weights are overwritten.

use super::nest::{self, Site, Sites};
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Names, Op, ValueId};

pub(super) const PASS: NestPass = NestPass {
    name: "take_weights_left",
    rewrite: "spmm_t (dropout copy p), softmax' p with dropout -> p' of softmax' p with dropout, spmm_t p'",
    by_reach: false,
    run,
};

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    let original = body.clone();
    let sites = Sites::of(&original);
    let mut names = Names::of(body);
    let made_by = |id: ValueId| sites.operation(&original, id).map(|operation| &operation.op);
    // Which weights were copied, then dropped, to make a value.
    let dropped = |id: ValueId| match made_by(id) {
        Some(Op::Dropout { x, hop: None }) => match made_by(*x) {
            Some(Op::Copy { x }) => Some(*x),
            _ => None,
        },
        _ => None,
    };
    for (i, j) in nest::stages(&original) {
        let here = Site { one: i, stage: j, op: 0 };
        let ops = &original.loops[i].stages[j].ops;
        let found = ops.iter().enumerate().find_map(|(at, operation)| match operation.op {
            Op::SoftmaxGradient { p, dropout: true, .. } if operation.results.len() == 1 => Some((at, p)),
            _ => None,
        });
        let Some((at, weights)) = found else { continue };
        let takes = |op: &Op| matches!(op, Op::SpmmT { p, .. } if dropped(*p) == Some(weights));
        let own = sites.made[weights.0 as usize].is_some_and(|site| site.same_stage(here));
        if !own || !ops.iter().any(|operation| takes(&operation.op)) {
            continue;
        }
        let value = original.value(weights);
        let left = names.add(body, &value.name, value.space, value.extent);
        let (mut before, mut behind) = (Vec::new(), Vec::new());
        for (k, operation) in ops.iter().enumerate() {
            let mut operation = operation.clone();
            let moved = takes(&operation.op);
            if let (true, Op::SpmmT { p, .. }) = (moved, &mut operation.op) {
                *p = left;
            }
            if k == at {
                operation.results.push(left);
            }
            if k <= at && !moved { before.push(operation) } else { behind.push(operation) }
        }
        before.append(&mut behind);
        body.loops[i].stages[j].ops = before;
    }
    nest::remove_unread(body);
    Ok(None)
}

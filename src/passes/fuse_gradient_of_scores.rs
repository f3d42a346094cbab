//! `for row {pack sddmm softmax'} for row {spmm_t} for row {spmm} -> for row {pack sddmm softmax' spmm_t spmm}`.
//!
//! The gradient of the scores goes to queries and keys from the panel of its block row. Runs behind `fuse_softmax`, which
//! brings the scores' own operations together.

use super::nest::{self, Join};
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Op};

pub(super) const PASS: NestPass = NestPass {
    name: "fuse_gradient_of_scores",
    rewrite: "for row {… softmax'} for row {spmm_t} for row {spmm} -> for row {… softmax' spmm_t spmm}",
    by_reach: false,
    run,
};

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    nest::join_loops(body, |_, last, next| {
        let product = nest::starts_with(next, |op| matches!(op, Op::SpmmT { .. } | Op::Spmm { .. }));
        let gradient = last.ops().any(|operation| matches!(operation.op, Op::SoftmaxGradient { .. }));
        if product && gradient && nest::follows(last, next) { Join::SameStage } else { Join::Apart }
    });
    Ok(None)
}

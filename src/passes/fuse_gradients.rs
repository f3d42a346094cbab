//! `for row {dot_rows scale_rows spmm_t} for row {pack sddmm softmax' …} -> for row {dot_rows scale_rows spmm_t pack sddmm
//! softmax' …}`.
//!
//! The scores' gradient takes rows of one hop as soon as they are there. With several hops it waits for all of them, so
//! this applies to a single hop, or to sums that were split.

use super::nest::{self, Join};
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Op};

pub(super) const PASS: NestPass = NestPass {
    name: "fuse_gradients",
    rewrite: "for row {… spmm_t} for row {… softmax' …} -> for row {… spmm_t … softmax' …}",
    by_reach: false,
    run,
};

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    nest::join_loops(body, |_, last, next| {
        let of_hop = last.ops().any(|operation| matches!(operation.op, Op::ScaleRows { .. }))
            && last.ops().all(|operation| !matches!(operation.op, Op::SoftmaxGradient { .. }));
        let of_scores = next.ops().any(|operation| matches!(operation.op, Op::SoftmaxGradient { .. }));
        if of_hop && of_scores && nest::follows(last, next) { Join::SameStage } else { Join::Apart }
    });
    Ok(None)
}

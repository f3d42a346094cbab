//! `for row {dot_rows} for row {add_rows} for row {scale_rows} for row {spmm_t} -> for row {dot_rows add_rows scale_rows
//! spmm_t}`, hop by hop.
//!
//! The gradient of what a hop gave is read once for all that it goes to. What `spmm_t` makes is complete only when its
//! loop is, so that it ends the loop.

use super::nest::{self, Join};
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Op, Space};

pub(super) const PASS: NestPass = NestPass {
    name: "fuse_gradient_of_hop",
    rewrite: "for row {dot_rows} … for row {spmm_t} -> for row {dot_rows … spmm_t}",
    by_reach: false,
    run,
};

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    nest::join_loops(body, |values, last, next| {
        let of_rows = |op: &Op| match op {
            Op::Copy { x } => values[x.0 as usize].space != Space::Pairs,
            Op::Dropout { hop: Some(_), .. }
            | Op::DotRows { .. }
            | Op::SumRows { .. }
            | Op::AddRows { .. }
            | Op::ScaleRows { .. } => true,
            _ => false,
        };
        let before = last.ops().all(|operation| of_rows(&operation.op));
        let ends = |op: &Op| matches!(op, Op::SpmmT { .. });
        let joins = before && nest::starts_with(next, |op| of_rows(op) || ends(op));
        if joins { Join::SameStage } else { Join::Apart }
    });
    Ok(None)
}

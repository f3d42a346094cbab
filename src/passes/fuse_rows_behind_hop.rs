//! `for row { z = spmm p v } for row { z = combine z + v } -> for row { z = spmm p v; z = combine z + v }`, and the same
//! for dropout of rows, and for a factor that stands apart.
//!
//! What is done in the place of a hop's rows is done while they are at hand. Runs before hops are moved, so that a hop is
//! one loop.

use super::nest::{self, Join};
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Op};

pub(super) const PASS: NestPass = NestPass {
    name: "fuse_rows_behind_hop",
    rewrite: "for row {spmm} for row {combine} -> for row {spmm combine}",
    by_reach: false,
    run,
};

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    nest::join_loops(body, |_, last, next| {
        let in_place = nest::starts_with(next, |op| {
            matches!(op, Op::Combine { .. } | Op::ScaleRows { .. } | Op::Dropout { hop: Some(_), .. })
        });
        let hop = nest::starts_with(last, |op| matches!(op, Op::Spmm { .. }));
        if in_place && hop && nest::follows(last, next) { Join::SameStage } else { Join::Apart }
    });
    Ok(None)
}

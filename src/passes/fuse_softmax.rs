//! `for row { qt = pack q } for row { s = sddmm qt k } … for row { p, l = exp s - m } -> for row { at row { … } }`.
//!
//! Scores of a block row stay in its panel until they are weights: operations on pairs work row by row and never need
//! another row. It takes the scores' gradient along (`dp = sddmm …; ds = softmax' …; ds = mods' …`).

use super::nest::{self, Join};
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Op, Space};

pub(super) const PASS: NestPass = NestPass {
    name: "fuse_softmax",
    rewrite: "for row {pack} … for row {exp} -> for row {pack … exp}",
    by_reach: false,
    run,
};

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    nest::join_loops(body, |values, last, next| {
        let works_on_scores = nest::starts_with(next, |op| match op {
            Op::Sddmm { .. }
            | Op::Scale { .. }
            | Op::Mods { .. }
            | Op::Mask { .. }
            | Op::RowMax { .. }
            | Op::Exp { .. }
            | Op::Dropout { hop: None, .. }
            | Op::SoftmaxGradient { .. }
            | Op::ModsGradient { .. } => true,
            Op::Copy { x } => values[x.0 as usize].space == Space::Pairs,
            _ => false,
        });
        if works_on_scores && nest::follows(last, next) { Join::SameStage } else { Join::Apart }
    });
    Ok(None)
}

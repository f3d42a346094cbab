//! `spmm p z * a; restart v * b -> spmm p z * a + v * b`.
//!
//! The value tile writes each result once: with the row's factor a / l and the restart term applied on the
//! way from its registers, a hop makes no second pass over z.

use super::Pass;
use crate::schedule::{Op, Schedule};

pub(super) const PASS: Pass =
    Pass { name: "fold_restart_into_spmm", rewrite: "spmm p z * a, restart v * b -> spmm p z * a + v * b", run };

fn run(schedule: &mut Schedule) {
    for op in &mut schedule.body {
        if let Op::Hops { restart_folded, .. } = op {
            *restart_folded = true;
        }
    }
}

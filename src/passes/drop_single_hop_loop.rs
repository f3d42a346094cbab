//! `hops 1 { … } -> hop { … }`.
//!
//! A single hop reads V and writes the output: no buffer for z, and nothing needs P after it. This is what
//! makes the `flash` strategy legal.

use super::Pass;
use crate::schedule::{Op, Schedule};

pub(super) const PASS: Pass = Pass { name: "drop_single_hop_loop", rewrite: "hops 1 { … } -> hop { … }", run };

fn run(schedule: &mut Schedule) {
    for op in &mut schedule.body {
        if let Op::Hops { factors, looped, .. } = op {
            *looped &= factors.len() != 1;
        }
    }
}

//! `blocks test every -> blocks test partial`.
//!
//! A block in which everything is allowed needs no mask words: its scores go to the maximum and the
//! exponential unselected.

use super::Pass;
use crate::program::{BlockTest, Program};

pub(super) const PASS: Pass =
    Pass { name: "specialise_full_blocks", rewrite: "blocks test every -> blocks test partial", run };

fn run(program: &mut Program) {
    program.block_test = BlockTest::Partial;
}

//! `[a, b) masked, [b, c) masked -> [a, c) masked`, and the same for two full runs.
//!
//! A union of nodes meets a row in runs that touch; one longer run is one call of each tile, and lets the
//! value tile keep its sums in registers. Full and masked runs stay apart: joining them would bring mask
//! tests to the full one. The value tile joins across that border by itself, since masked probabilities
//! are 0.

use super::Pass;
use crate::mask;
use crate::program::Program;

pub(super) const PASS: Pass =
    Pass { name: "coalesce_adjacent_blocks", rewrite: "[a, b) [b, c) of one kind -> [a, c)", run };

fn run(program: &mut Program) {
    let q_len = program.neighbors.q_len;
    program.sets_mut().flat_map(|set| &mut set.masks).for_each(|mask| mask::coalesce(mask, q_len));
}

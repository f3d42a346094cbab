//! `[5, 6), [90, 91), [700, 701), … -> one gathered panel {5, 90, 700, …}`.
//!
//! Global tokens drawn at random meet every row in runs of a single key, each a call with almost no work.
//! Gathered by row number they are one dense panel, shared by all rows; nothing is copied.

use super::Pass;
use crate::mask;
use crate::program::Program;

pub(super) const PASS: Pass =
    Pass { name: "gather_isolated_keys", rewrite: "many short runs of keys -> one gathered panel", run };

fn run(program: &mut Program) {
    program.sets_mut().flat_map(|set| &mut set.masks).for_each(mask::gather_columns);
}

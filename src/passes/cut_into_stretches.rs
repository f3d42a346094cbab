//! `for row {…} -> for row, halo {…}` in a loop that carries rows in rings.
//!
//! The rows of a head may then be cut into stretches for several threads: each computes the rows near its border that its
//! own rows need for itself, into rings of its own. Not where a row is added to, or where rows beyond the border would be
//! written into what all stretches share.

use super::{NestPass, Setting, Verdict};
use crate::program::Body;

pub(super) const PASS: NestPass =
    NestPass { name: "cut_into_stretches", rewrite: "for row {…} -> for row, halo {…}", by_reach: false, run };

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    body.loops.iter_mut().filter(|one| one.stages.len() > 1).for_each(|one| one.halo = true);
    Ok(None)
}

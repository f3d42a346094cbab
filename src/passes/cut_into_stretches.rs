//! `for row {…} -> for row, halo {…}` in a loop that carries rows in rings.
//!
//! The rows of a head may then be cut into stretches for several threads: each computes the rows near its border that its
//! own rows need for itself, into rings of its own. Not where a stage that other stages read from writes into what all
//! stretches share, and not where rows of keys are added to.

use super::nest::Sites;
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Extent, Op, Stage};

pub(super) const PASS: NestPass =
    NestPass { name: "cut_into_stretches", rewrite: "for row {…} -> for row, halo {…}", by_reach: false, run };

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    let (roots, sites) = (body.roots(), Sites::of(body));
    let may_cut = |i: usize, j: usize, stage: &Stage| {
        let mut results = stage.ops.iter().flat_map(|operation| &operation.results);
        let mut reads = results.clone().flat_map(|&id| sites.reads(id));
        let is_read = reads.any(|(site, _)| site.one == i && site.stage != j);
        let shared = results
            .any(|id| matches!(body.values[roots[id.0 as usize].0 as usize].extent, Extent::All | Extent::Tensor(_)));
        let scatters = stage.ops.iter().any(|operation| matches!(operation.op, Op::SpmmT { .. }));
        !(scatters || is_read && shared)
    };
    let cut: Vec<bool> = body
        .loops
        .iter()
        .enumerate()
        .map(|(i, one)| one.stages.len() > 1 && one.stages.iter().enumerate().all(|(j, stage)| may_cut(i, j, stage)))
        .collect();
    body.loops.iter_mut().zip(cut).for_each(|(one, cut)| one.halo = cut);
    Ok(None)
}

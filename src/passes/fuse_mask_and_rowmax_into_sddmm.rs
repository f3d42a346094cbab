//! `s = sddmm qt k; s = mask s; m = rowmax s; p = exp s - m -> s, m = sddmm qt k with mask rowmax; p = exp s - m with mask`.
//!
//! The score tile holds its results in registers when they are due for mask and maximum; two passes over the
//! panel disappear. Forbidden scores stay in the panel as they are, so the exponential selects once more.
//! Score mods stand between the tile and the mask: then it is their pass over the panel that masks and reduces, and the
//! tile may leave out what no query sees.
//! Runs after `fold_scale_into_queries`: with a scale operation in between, the rewrite does not apply.

use std::collections::{HashMap, HashSet};

use super::Pass;
use super::nest::{self, Sites};
use crate::program::{Op, Program, ValueId};

pub(super) const PASS: Pass = Pass {
    name: "fuse_mask_and_rowmax_into_sddmm",
    rewrite: "sddmm, mask, rowmax, exp -> sddmm with mask rowmax, exp with mask",
    run,
};

fn run(program: &mut Program) {
    let body = &mut program.body;
    let sites = Sites::of(body);
    // Who makes masked scores and their maximum from now on; and who may leave out what is masked later.
    let mut maxima: HashMap<ValueId, ValueId> = HashMap::new();
    let mut trimmed: HashSet<ValueId> = HashSet::new();
    let mut exps: HashSet<ValueId> = HashSet::new();
    let mut renamed: HashMap<ValueId, ValueId> = HashMap::new();
    let mut gone: HashSet<ValueId> = HashSet::new();
    for operation in body.ops() {
        let Op::Exp { s: masked, m, masked: false, .. } = operation.op else { continue };
        let Some(Op::Mask { s }) = sites.operation(body, masked).map(|operation| &operation.op) else { continue };
        let Some(Op::RowMax { s: reduced }) = sites.operation(body, m).map(|operation| &operation.op) else { continue };
        let Some(before) = sites.operation(body, *s) else { continue };
        if *reduced != masked
            || before.results.len() != 1
            || sites.reads(*s).len() != 1
            || sites.reads(masked).len() != 2
        {
            continue;
        }
        match before.op {
            Op::Sddmm { .. } => {}
            Op::Mods { s: scores, .. } => {
                if let Some(Op::Sddmm { .. }) = sites.operation(body, scores).map(|operation| &operation.op) {
                    trimmed.insert(scores);
                }
            }
            _ => continue,
        }
        maxima.insert(*s, m);
        exps.insert(operation.results[0]);
        renamed.insert(masked, *s);
        gone.extend([masked, m]);
    }
    let fuses = |id: &ValueId| maxima.get(id).copied();
    nest::remove(body, |operation| gone.contains(&operation.results[0]), &renamed);
    for operation in body.loops.iter_mut().flat_map(|one| &mut one.stages).flat_map(|stage| &mut stage.ops) {
        let result = operation.results[0];
        match &mut operation.op {
            Op::Sddmm { masked, .. } | Op::Mods { masked, .. } => {
                if let Some(m) = fuses(&result) {
                    *masked = true;
                    operation.results.push(m);
                } else if trimmed.contains(&result) {
                    *masked = true;
                }
            }
            Op::Exp { masked, .. } if exps.contains(&result) => *masked = true,
            _ => {}
        }
    }
    body.normalise();
}

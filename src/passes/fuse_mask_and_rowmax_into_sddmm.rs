//! `s = sddmm k qt; s = mask s; m = rowmax s; p = exp s - m -> s, m = sddmm k qt with mask rowmax; p = exp s - m with mask`.
//!
//! The score tile holds its results in registers when they are due for mask and maximum; two passes over the
//! panel disappear. Forbidden scores stay in the panel as they are, so the exponential selects once more.
//! Score mods stand between the tile and the mask: then it is their pass over the panel that masks and reduces.
//! Runs after `fold_scale_into_queries`: with a scale operation in between, the rewrite does not apply.

use super::Pass;
use crate::schedule::{Op, Schedule};

pub(super) const PASS: Pass = Pass {
    name: "fuse_mask_and_rowmax_into_sddmm",
    rewrite: "sddmm, mask, rowmax, exp -> sddmm with mask rowmax, exp with mask",
    run,
};

fn run(schedule: &mut Schedule) {
    match schedule.body.as_mut_slice() {
        [_, Op::Sddmm { fused }, Op::Mask, Op::RowMax, Op::Exp { masked, .. }, ..]
        | [_, Op::Sddmm { fused: false }, Op::Mods { fused, .. }, Op::Mask, Op::RowMax, Op::Exp { masked, .. }, ..]
            if !*fused =>
        {
            *fused = true;
            *masked = true;
        }
        _ => return,
    }
    schedule.body.retain(|op| !matches!(op, Op::Mask | Op::RowMax));
}

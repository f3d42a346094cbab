//! `s = sddmm k qt; s = mask s; m = rowmax s; p = exp s - m -> s, m = sddmm k qt with mask rowmax; p = exp s - m with mask`.
//!
//! The score tile holds its results in registers when they are due for mask and maximum; two passes over the
//! panel disappear. Forbidden scores stay in the panel as they are, so the exponential selects once more.
//! Runs after `fold_scale_into_queries`: with a scale operation in between, the rewrite does not apply.

use super::Pass;
use crate::schedule::{Op, Schedule};

pub(super) const PASS: Pass = Pass {
    name: "fuse_mask_and_rowmax_into_sddmm",
    rewrite: "sddmm, mask, rowmax, exp -> sddmm with mask rowmax, exp with mask",
    run,
};

fn run(schedule: &mut Schedule) {
    let [_, sddmm @ Op::Sddmm { fused: false }, Op::Mask, Op::RowMax, Op::Exp { masked, .. }, ..] =
        schedule.body.as_mut_slice()
    else {
        return;
    };
    *sddmm = Op::Sddmm { fused: true };
    *masked = true;
    schedule.body.retain(|op| !matches!(op, Op::Mask | Op::RowMax));
}

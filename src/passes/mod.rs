//! Rewrites of the schedule, in one ordered list.
//!
//! In: a [`Schedule`] as the definition has it. Out: one that computes the same with less work. Every pass can
//! be left out by name (`--without PASS`), which never changes a result beyond rounding. Adding a pass is one
//! file here and one line in [`PASSES`].

use crate::error::{Error, Result};
use crate::schedule::{self, Schedule};

mod coalesce_adjacent_blocks;
mod derive_gradient;
mod drop_single_hop_loop;
mod fold_restart_into_spmm;
mod fold_scale_into_queries;
mod fuse_mask_and_rowmax_into_sddmm;
mod gather_isolated_keys;
mod specialise_full_blocks;

pub use derive_gradient::derive_gradient;

/// A rewrite of the schedule.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Name, as `--without` takes it.
    pub name: &'static str,
    /// What it does, in a line, as `before -> after`.
    pub rewrite: &'static str,
    /// The rewrite. Applying it twice is the same as once.
    pub run: fn(&mut Schedule),
}

/// All passes, in the order in which they run.
pub const PASSES: &[Pass] = &[
    // Before gathering: a masked run that touches another is one long run, and no longer isolated.
    coalesce_adjacent_blocks::PASS,
    gather_isolated_keys::PASS,
    specialise_full_blocks::PASS,
    // Before fusing mask and maximum: the maximum must be taken of scaled scores, and a scale operation may
    // not stand behind it.
    fold_scale_into_queries::PASS,
    fuse_mask_and_rowmax_into_sddmm::PASS,
    fold_restart_into_spmm::PASS,
    drop_single_hop_loop::PASS,
];

/// Runs all passes but those named in `without`; in debug builds the verifier runs after each.
///
/// # Errors
/// [`Error::Unsupported`] when `without` names no pass.
pub fn run(mut schedule: Schedule, without: &[String]) -> Result<Schedule> {
    if let Some(name) = without.iter().find(|name| PASSES.iter().all(|pass| pass.name != name.as_str())) {
        let names: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
        return Err(Error::unsupported(format!("pass `{name}`"), format!("the passes are {}", names.join(", "))));
    }
    for pass in PASSES {
        if without.iter().any(|name| name == pass.name) {
            continue;
        }
        (pass.run)(&mut schedule);
        if cfg!(debug_assertions) {
            schedule = schedule::verify(schedule)?.into_inner();
        }
    }
    Ok(schedule)
}

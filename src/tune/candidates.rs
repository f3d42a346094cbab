//! Which plans are worth a measurement.

use super::{Search, plain};
use crate::dtype::Dtype;
use crate::passes::Strategy;
use crate::plan::{CHUNK_KEYS, Choice, JOINT_KEYS, Tuning};

/// Every strategy, with P stored as the spec has it and in f32. What is not legal the compiler refuses, with the reason.
pub(super) fn strategies(search: &Search<'_>, model: Choice) -> Vec<Choice> {
    let allowed = search.spec.diffusion.store;
    let mut choices = Vec::new();
    for &strategy in Strategy::ALL {
        choices.push(plain(strategy, Dtype::F32, model.tuning));
        if strategy.stores_p() && !allowed.is_f32() {
            choices.push(plain(strategy, allowed, model.tuning));
        }
    }
    choices
}

/// Fewer and more keys in a step and a chunk.
pub(super) fn keys(best: Choice) -> Vec<Choice> {
    let sizes = [(576, 512), (JOINT_KEYS, 512), (2304, CHUNK_KEYS), (2304, 2048), (288, 256), (4608, 4096)];
    let tuned = |(joint_keys, chunk_keys)| Tuning { joint_keys, chunk_keys, ..best.tuning };
    sizes.map(|sizes| Choice { tuning: tuned(sizes), ..best }).into()
}

/// Fewer and more rows in a unit, where there is somebody to share them with.
pub(super) fn units(search: &Search<'_>, best: Choice) -> Vec<Choice> {
    let rows = search.q_len.div_ceil(crate::mask::QUERY_BLOCK) as u32;
    let threads = search.options.threads as u32;
    // Sweeps cut a head into a stretch a thread, and where there are heads enough they are dealt out whole.
    let whole = best.strategy != Strategy::FLASH && search.batch * search.spec.heads >= threads as usize;
    if threads == 1 || best.strategy.sweeps() || whole {
        return Vec::new();
    }
    [2, 8, 16, rows.div_ceil(threads), rows.div_ceil(2 * threads)]
        .into_iter()
        .filter(|&unit_rows| unit_rows > 0 && unit_rows <= rows)
        .map(|unit_rows| Choice { tuning: Tuning { unit_rows, ..best.tuning }, ..best })
        .collect()
}

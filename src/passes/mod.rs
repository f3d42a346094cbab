//! Rewrites of a program: of its operations, and of the nest in which they run.
//!
//! In: a [`Program`] as the definition has it, each operation in a loop of its own. [`run`] applies the operation passes,
//! which make less work of the same results. [`apply`] makes the nest of one recipe, a list of nest passes with a name
//! (a [`Strategy`]); [`candidates`] tries all of them and says of each why it is legal, or why not. Every pass can be left
//! out by name (`--without PASS`) wherever it would run, which never changes a result beyond rounding.
//!
//! Adding a pass is one file here and one line in [`PASSES`] or in the recipes that use it; adding a recipe is one entry
//! in [`RECIPES`].

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::program::{self, Body, KnownReach, Program, Shape};

mod coalesce_adjacent_blocks;
mod fold_restart_into_spmm;
mod fold_scale_into_queries;
mod fuse_mask_and_rowmax_into_sddmm;
mod gather_isolated_keys;
mod specialise_full_blocks;

mod batch_edges;
mod cut_into_stretches;
mod fuse_gradient_of_hop;
mod fuse_gradient_of_scores;
mod fuse_gradients;
mod fuse_hop_into_softmax;
mod fuse_hops_at_reach;
mod fuse_rows_behind_hop;
mod fuse_softmax;
mod nest;
mod recompute_hops;
mod rematerialise_p;
mod shorten_buffers;
mod split_gradient_by_hops;
mod store_p_in_bf16;
mod strategy;
mod take_weights_left;
mod walk_by_keys;

pub use strategy::{RECIPES, Recipe, Strategy};

/// A rewrite of operations.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Name, as `--without` takes it.
    pub name: &'static str,
    /// What it does, in a line, as `before -> after`.
    pub rewrite: &'static str,
    /// The rewrite. Applying it twice is the same as once.
    pub run: fn(&mut Program),
}

/// A rewrite of the nest.
#[derive(Debug, Clone, Copy)]
pub struct NestPass {
    /// Name, as `--without` takes it.
    pub name: &'static str,
    /// What it does, in a line, as `before -> after`.
    pub rewrite: &'static str,
    /// Whether it goes by how far rows reach.
    pub by_reach: bool,
    /// The rewrite. Out: why the nest may be as it is, where that is worth a sentence; or why it may not.
    pub run: fn(&mut Body, &Setting<'_>) -> Verdict,
}

/// What a nest pass finds: nothing to tell, why its rewrite is legal, or why it is not.
pub type Verdict = std::result::Result<Option<String>, String>;

/// What a nest pass knows besides the body.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// Sizes and types.
    pub shape: &'a Shape,
    /// How P is stored where it is kept.
    pub store: Dtype,
    /// How far rows reach, and the neighbors.
    pub reach: &'a KnownReach<'a>,
}

/// The operation passes, in the order in which they run.
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
];

/// Every nest pass of some recipe, once.
pub fn nest_passes() -> Vec<&'static NestPass> {
    let mut all: Vec<&NestPass> = Vec::new();
    for pass in RECIPES.iter().flat_map(|recipe| recipe.passes) {
        if all.iter().all(|known| known.name != pass.name) {
            all.push(pass);
        }
    }
    all
}

/// Runs all operation passes but those named in `without`; in debug builds the verifier runs after each.
///
/// # Errors
/// [`Error::Unsupported`] when `without` names no pass of operations or nests.
pub fn run(mut program: Program, without: &[String]) -> Result<Program> {
    let names: Vec<&str> =
        PASSES.iter().map(|pass| pass.name).chain(nest_passes().into_iter().map(|pass| pass.name)).collect();
    if let Some(name) = without.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(Error::unsupported(format!("pass `{name}`"), format!("the passes are {}", names.join(", "))));
    }
    for pass in PASSES {
        if without.iter().any(|name| name == pass.name) {
            continue;
        }
        (pass.run)(&mut program);
        if cfg!(debug_assertions) {
            program = program::verify(program)?.into_inner();
        }
    }
    Ok(program)
}

/// A recipe for a program: its nest and why that is legal, or why it is not.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The recipe.
    pub strategy: Strategy,
    /// Its nest with a sentence, or a sentence.
    pub nest: std::result::Result<(Body, String), String>,
}

/// The nest of a recipe, with the sentence why it is legal; it works on a copy of the body. P is stored as `store` says
/// where the nest keeps it; where that says nothing, as the program's shape allows. `reach` is that of the program's
/// neighbors, and is looked at only where a pass goes by it.
///
/// # Errors
/// The sentence why it is not.
pub fn apply(
    program: &Program,
    strategy: Strategy,
    without: &[String],
    store: Option<Dtype>,
    reach: &KnownReach<'_>,
) -> std::result::Result<(Body, String), String> {
    let recipe = strategy.recipe();
    recipe.serves(program)?;
    let setting = Setting { shape: &program.shape, store: store.unwrap_or(program.shape.store), reach };
    let mut body = program.body.clone();
    let mut why = None;
    for pass in recipe.passes.iter().filter(|pass| without.iter().all(|name| name != pass.name)) {
        why = (pass.run)(&mut body, &setting)?.or(why);
        body.normalise();
    }
    Ok((body, why.unwrap_or_else(|| recipe.about.to_owned())))
}

/// Every recipe for a program: its forward ones, or those of a gradient. A single hop is not looked at for recipes that
/// go by reach unless `wish` is one of them: the reach of a large mask takes a while.
pub fn candidates(
    program: &Program,
    without: &[String],
    wish: Option<Strategy>,
    store: Option<Dtype>,
) -> Vec<Candidate> {
    let look = program.body.hops() != 1 || wish.is_some_and(Strategy::sweeps);
    of_each(program, without, store, look)
}

/// The recipes of a gradient for a program with one, what computes least first: what fits into memory is to be taken.
pub fn training(program: &Program, without: &[String], wish: Option<Strategy>) -> Vec<Candidate> {
    let order: &[Strategy] = match (program.body.hops(), wish) {
        (..=1, _) => &[Strategy::AGAIN],
        (_, Some(Strategy::RECOMPUTE)) => &[Strategy::AGAIN, Strategy::FRUGAL],
        _ => Strategy::TRAINING,
    };
    let reach = KnownReach::new(program);
    let nest = |strategy| apply(program, strategy, without, None, &reach);
    order.iter().map(|&strategy| Candidate { strategy, nest: nest(strategy) }).collect()
}

/// Every recipe for a program, with why it is legal or why not.
pub fn verdicts(program: &Program, without: &[String]) -> Vec<(Strategy, std::result::Result<String, String>)> {
    let all = of_each(program, without, None, true).into_iter();
    all.map(|Candidate { strategy, nest }| (strategy, nest.map(|(_, why)| why))).collect()
}

fn of_each(program: &Program, without: &[String], store: Option<Dtype>, look: bool) -> Vec<Candidate> {
    let of = if program.body.is_training() { Strategy::TRAINING } else { Strategy::ALL };
    let reach = KnownReach::new(program);
    let nest = |strategy: Strategy| match strategy.sweeps() && !look {
        true => strategy
            .recipe()
            .serves(program)
            .and_then(|()| Err("not needed for a single hop unless it is asked for".to_owned())),
        false => apply(program, strategy, without, store, &reach),
    };
    of.iter().map(|&strategy| Candidate { strategy, nest: nest(strategy) }).collect()
}

#[cfg(test)]
mod tests;

//! The rules of a program.
//!
//! In: any program, from wherever. Out: a [`VerifiedProgram`], or the rule that is broken, in a sentence that names values.
//! Whoever made the program does not matter: every dependence is recomputed from its operations and the reach of its block
//! mask, so that any legal nest is accepted, and no other.
//!
//! - [`types`]: every value is made once, of the space that its operation makes; tensors are what they are said to be.
//! - [`order`]: whatever an operation reads has been made when it runs, for every row that it reads, and is still there.
//! - [`stages`]: what goes by keys, over parts, in stretches, or with batches of edges can.
//! - [`meaning`]: the operations are an attention and its gradient: scores are masked once, maxima are those of the same
//!   scores, row sums those of the same weights, gradients those of the same hops.

mod meaning;
mod order;
mod sites;
mod stages;
mod types;

use super::{Body, Loop, Program, Reach, Reaches, Shape, is_lower_triangular};
use crate::error::Result;
use crate::mask;

/// A program that [`verify`] has accepted. For it, planning and code generation succeed or say why not.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedProgram {
    program: Program,
    reach: Option<Reach>,
}

impl VerifiedProgram {
    /// The program, to be rewritten and verified again.
    pub fn into_inner(self) -> Program {
        self.program
    }

    /// How far block rows reach, where the nest goes by it.
    pub const fn reach(&self) -> Option<Reach> {
        self.reach
    }
}

impl std::ops::Deref for VerifiedProgram {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

/// Checks every rule.
///
/// # Errors
/// [`Error::Internal`](crate::Error::Internal) with the rule that is broken and the program.
pub fn verify(program: Program) -> Result<VerifiedProgram> {
    program.sets().try_for_each(mask::verify)?;
    match check(&program) {
        Ok(reach) => Ok(VerifiedProgram { program, reach }),
        Err(fault) => Err(program.broken(fault)),
    }
}

fn check(program: &Program) -> Result<Option<Reach>, String> {
    let Program { shape, body, neighbors, others, .. } = program;
    if (shape.q_len, shape.kv_len) != (neighbors.q_len, neighbors.kv_len) {
        return Err("the neighbors are for another number of queries or keys".to_owned());
    }
    if shape.heads.checked_mul(neighbors.parts) != Some(neighbors.mask_of_head.len()) {
        return Err("the neighbors are for another number of heads".to_owned());
    }
    for other in others {
        let alike = (other.q_len, other.kv_len, other.mask_of_head.len())
            == (neighbors.q_len, neighbors.kv_len, neighbors.mask_of_head.len());
        if !alike || other.parts != 1 || other.stack != 1 || neighbors.parts != 1 || neighbors.stack != 1 {
            return Err("sets of neighbors are for different heads or rows".to_owned());
        }
    }
    if body.loops.iter().any(|one| one.set as usize > others.len()) {
        return Err("a loop over neighbors that are not there".to_owned());
    }
    if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
        return Err("the key/value heads do not divide the heads".to_owned());
    }
    let parts = body.loops.iter().any(|one| one.parts);
    if parts != (neighbors.parts > 1) {
        return Err(format!("neighbors in {} parts, and loops over parts where there are several", neighbors.parts));
    }
    if body.loops.iter().any(Loop::is_in_order) {
        if shape.q_len != shape.kv_len {
            return Err("hops without end with another number of queries than keys".to_owned());
        }
        if !program.sets().all(is_lower_triangular) {
            return Err(
                "hops are solved row after row, and a row meets a later key, or stands in another order".to_owned()
            );
        }
    }
    let sites = types::check(shape, body)?;
    let reach = match order::goes_by_reach(body, &sites) {
        None => None,
        Some(name) => match program.reaches() {
            Reaches::Band(reach, _) => Some(reach),
            Reaches::Unordered(why) => return Err(format!("{name} is read in the loop that makes it, and {why}")),
        },
    };
    order::check(shape, body, &sites, reach)?;
    stages::check(body, &sites, reach)?;
    meaning::check(shape, body)?;
    Ok(reach)
}

/// Checks the nest for neighbors of a known reach: types, order, extents and stages, but not what the operations mean.
/// Without a reach, no row may be read by its neighbors in the loop that makes it.
///
/// # Errors
/// The rule that is broken, in words.
pub fn check_nest(shape: &Shape, body: &Body, reach: Option<Reach>) -> Result<(), String> {
    let sites = types::check(shape, body)?;
    order::check(shape, body, &sites, reach)?;
    stages::check(body, &sites, reach)
}

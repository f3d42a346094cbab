//! What a user could write or pick instead, to be measured against.
//!
//! In: a pattern, the spec, tensors. Out: the same output as the compiled kernel, by other means, as well as
//! that means allows: vectorised by the compiler for this CPU and parallel. Refused: what would pass the
//! memory limit. A baseline is one file and one line in [`BASELINES`].
//!
//! Baselines promise the right result for finite inputs only. What depends on the pattern alone (a mask, an
//! edge list) is made in [`Baseline::prepare`], outside the measured time.

use ndarray::{Array4, ArrayView4};

use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::spec::PatternSpec;

mod dense;
mod lanes;
#[cfg(test)]
mod tests;
mod unfused;

pub use unfused::{Gradients, Kept, Training};

/// All baselines, in the order in which tables show them.
pub const BASELINES: &[Baseline] = &[dense::BASELINE, unfused::BASELINE];

/// One way to compute attention without a compiler.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    /// Name on the command line and in tables.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    bytes: fn(&Problem<'_>) -> u64,
    prepare: fn(&Problem<'_>) -> Box<dyn Prepared>,
}

/// What a baseline is asked to compute.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Who may attend to whom.
    pub pattern: &'a Pattern,
    /// Scale, diffusion and widths.
    pub spec: &'a PatternSpec,
    /// Batch size.
    pub batch: usize,
    /// Allowed pairs, over all heads.
    pub nnz: u64,
    /// Threads of the pool that [`Prepared::run`] will be called in.
    pub threads: usize,
}

/// A baseline that is ready to run.
pub trait Prepared: Sync {
    /// Computes the output `[batch, heads, q_len, value_dim]`, on the threads of the current rayon pool. The
    /// tensors have the shapes of the problem.
    ///
    /// # Errors
    /// [`Error::Internal`] alone.
    fn run(&self, q: ArrayView4<'_, f32>, k: ArrayView4<'_, f32>, v: ArrayView4<'_, f32>) -> Result<Array4<f32>>;
}

impl Baseline {
    /// The baseline of that name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the known ones.
    pub fn find(name: &str) -> Result<&'static Self> {
        BASELINES.iter().find(|baseline| baseline.name == name).ok_or_else(|| {
            let known: Vec<&str> = BASELINES.iter().map(|baseline| baseline.name).collect();
            Error::unsupported(format!("baseline `{name}`"), format!("known are {} and none", known.join(", ")))
        })
    }

    /// Bytes that the baseline holds while it runs, tensors aside.
    pub fn bytes(&self, problem: &Problem<'_>) -> u64 {
        (self.bytes)(problem)
    }

    /// Makes what depends on the pattern alone.
    ///
    /// # Errors
    /// [`Error::Memory`] when [`bytes`](Self::bytes) passes `memory_limit`; nothing is allocated then.
    pub fn prepare(&self, problem: &Problem<'_>, memory_limit: u64) -> Result<Box<dyn Prepared>> {
        let given = self.bytes(problem);
        if given > memory_limit {
            return Err(Error::Memory { what: format!("baseline {}", self.name), given, limit: memory_limit });
        }
        Ok((self.prepare)(problem))
    }
}

/// Heads whose pattern is the same share what is made from it: how many distinct ones there are, and which
/// one a head uses.
fn head_classes(pattern: &Pattern) -> (usize, impl Fn(usize) -> usize + Copy + Send + Sync + 'static) {
    let distinct = pattern.depends_on_head();
    (if distinct { pattern.heads } else { 1.min(pattern.heads) }, move |head| if distinct { head } else { 0 })
}

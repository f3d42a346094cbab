//! What the cost model says of the nests of a program.
//!
//! In: a program and what the caller knows of the machine. Out: a [`Model`] that is asked for one nest after the other.
//! Planning chooses by it; `explain` and `bench` print it beside what was measured.

use crate::cost::{Forecast, NestCounts, Problem, Work, forecast};
use crate::machine::Facts;
use crate::program::{Body, Program};
use crate::target::Isa;

/// The cost model of one program on one machine.
#[derive(Debug, Clone)]
pub struct Model {
    problem: Problem,
    /// Work of every mask, with the heads (or parts of heads) that have it.
    masks: Vec<(Work, usize)>,
    facts: Facts,
}

impl Model {
    /// Counts the work of a program, in time proportional to runs and words of its masks. Without facts of the machine, it
    /// is a typical one; 0 threads are as good as 1.
    pub fn new(program: &Program, isa: Isa, threads: usize, facts: Option<Facts>) -> Self {
        let neighbors = &program.neighbors;
        let heads = |mask: usize| neighbors.mask_of_head.iter().filter(|&&of| of as usize == mask).count();
        let work = |(i, mask)| (Work::of(mask, neighbors.q_len, neighbors.kv_len), heads(i));
        let shape = &program.shape;
        Self {
            problem: Problem {
                isa,
                threads: threads.max(1),
                head_dim: shape.head_dim,
                value_dim: shape.value_dim,
                element: shape.dtype.bytes(),
                mod_operations: program.body.mods().map_or(0, |mods| mods.operations()),
            },
            masks: neighbors.masks.iter().enumerate().map(work).collect(),
            facts: facts.unwrap_or(Facts::TYPICAL),
        }
    }

    /// Predicts a call over one sequence in this nest.
    pub fn forecast(&self, body: &Body) -> Forecast {
        forecast(&self.problem, &self.masks, NestCounts::of(body), &self.facts)
    }

    /// A prediction in words, where it is one of this machine: typical numbers are good for ratios alone.
    pub(super) fn words(&self, body: &Body) -> Option<String> {
        self.facts.measured.then(|| {
            let ms = self.forecast(body).seconds * 1e3;
            format!("{ms:.*} ms predicted", if ms < 0.995 { 3 } else { 2 })
        })
    }
}

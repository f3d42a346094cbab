//! What the cost model says of the strategies of a schedule.
//!
//! In: a schedule and what the caller knows of the machine. Out: a [`Model`] that is asked for one strategy after the
//! other. [`super::build`] chooses by it; `explain` and `bench` print it beside what was measured.

use super::{Reach, Strategy, Wishes};
use crate::cost::{Forecast, Problem, Walk, Work, forecast};
use crate::dtype::Dtype;
use crate::machine::Facts;
use crate::schedule::VerifiedSchedule;
use crate::target::Isa;

/// The cost model of one schedule on one machine.
#[derive(Debug, Clone)]
pub struct Model {
    problem: Problem,
    /// Work of every mask, with the heads (or parts of heads) that have it.
    masks: Vec<(Work, usize)>,
    facts: Facts,
}

impl Model {
    /// Counts the work of a schedule, in time proportional to runs and words of its masks.
    pub fn new(schedule: &VerifiedSchedule, isa: Isa, wishes: &Wishes) -> Self {
        let neighbors = &schedule.neighbors;
        let heads = |mask: usize| neighbors.mask_of_head.iter().filter(|&&of| of as usize == mask).count();
        let work = |(i, mask)| (Work::of(mask, neighbors.q_len, neighbors.kv_len), heads(i));
        Self {
            problem: Problem {
                isa,
                threads: wishes.threads.max(1),
                head_dim: schedule.head_dim,
                value_dim: schedule.value_dim,
                hops: schedule.hops().len(),
                element: schedule.dtype.bytes(),
                mod_operations: schedule.mods().map_or(0, |mods| mods.operations()),
            },
            masks: neighbors.masks.iter().enumerate().map(work).collect(),
            facts: wishes.facts.unwrap_or(Facts::TYPICAL),
        }
    }

    /// Predicts a call over one sequence; `store` is how P is stored where the strategy keeps it, `reach` how far block
    /// rows reach, where that is known.
    pub fn forecast(&self, strategy: Strategy, store: Dtype, reach: Option<Reach>) -> Forecast {
        let element = store.bytes();
        let walk = match strategy {
            Strategy::Flash => Walk::Once,
            Strategy::Resident => Walk::Stored { element },
            Strategy::Recompute => Walk::Again,
            Strategy::Wavefront | Strategy::Triangular => {
                let Reach { behind, ahead } = reach.unwrap_or_default();
                Walk::Sweep { behind: behind as usize, lag: ahead as usize, element }
            }
        };
        forecast(&self.problem, &self.masks, walk, &self.facts)
    }

    /// A prediction in words, where it is one of this machine: typical numbers are good for ratios alone.
    pub(super) fn words(&self, strategy: Strategy, store: Dtype, reach: Option<Reach>) -> Option<String> {
        self.facts.measured.then(|| {
            let ms = self.forecast(strategy, store, reach).seconds * 1e3;
            format!("{ms:.*} ms predicted", if ms < 0.995 { 3 } else { 2 })
        })
    }
}

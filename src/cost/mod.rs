//! How long a kernel will take, without running it.
//!
//! In: the [`Work`] of every mask, a [`Problem`] around it, what a nest does over its block rows ([`NestCounts`]), and
//! [`Facts`] of the machine. Out: a [`Forecast`] in seconds, by what the time goes to. It is made to compare nests over one
//! mask: what all of them share need not be right to the percent, what tells them apart must be. Times are sums of products with
//! coefficients that were fitted to measured cases. The longer one of arithmetic and reading counts in full, the other by
//! the share that does not hide behind it; writing P hides behind nothing.

use serde::Serialize;

use crate::machine::Facts;
use crate::target::Isa;
use crate::tiles::{BLOCK, LANES};

mod counts;
#[cfg(test)]
mod tests;
mod work;

pub use counts::{KeptWeights, NestCounts, SweepCounts};
pub use work::Work;

/// What is computed, besides the masks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    /// Tile family.
    pub isa: Isa,
    /// Threads of a call.
    pub threads: usize,
    /// Width of a query.
    pub head_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Bytes of an element of q, k, v and the output.
    pub element: usize,
    /// Vector operations that score mods take for a score.
    pub mod_operations: usize,
}

/// Seconds by what they go to, of all threads together, without what stretches of a sweep compute twice; and how long
/// the call takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Forecast {
    /// From the first row to the last on all threads.
    pub seconds: f64,
    /// Thread seconds in score tiles.
    pub scores: f64,
    /// Thread seconds in exponentials.
    pub exponentials: f64,
    /// Thread seconds in score mods.
    pub mods: f64,
    /// Thread seconds in value tiles.
    pub values: f64,
    /// Thread seconds on scattered edges.
    pub edges: f64,
    /// Thread seconds around tiles: packing, row statistics, calls, outputs.
    pub rows: f64,
    /// Thread seconds in which memory delivers what tiles read, hidden or not.
    pub reads: f64,
    /// Thread seconds in which P goes to memory.
    pub writes: f64,
}

/// What the parts of a forecast are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Coefficients {
    /// On the peak's time for a score.
    score: f64,
    /// On the measured time of an exponential.
    exponential: f64,
    /// On the peak's time for a product of the value tile.
    value: f64,
    /// Peak times of one multiply-add over a vector of a family's width, for an operation of a score mod.
    mod_operation: f64,
    /// Multiples of a dense element for an edge's score, and for its values.
    edge: f64,
    /// Times of reading the row of an edge that are waited for, where it comes out of level 2, and out of what is beyond.
    edge_wait: [f64; 2],
    /// Nanoseconds at 176 GF/s for a block row when P is computed, besides its arithmetic.
    row: f64,
    /// The same for a hop.
    hop_row: f64,
    /// The same for a piece of keys when P is computed.
    piece: f64,
    /// The same for a run of keys in a hop.
    run: f64,
    /// Share of the shorter one of arithmetic and reading that does not hide behind the other.
    unhidden: f64,
    /// Times of reading so many bytes out of level 3, and out of memory, that it takes to write P there; it hides behind
    /// nothing.
    write: [f64; 2],
    /// Microseconds until all threads have passed a barrier.
    barrier: f64,
    /// Nanoseconds at 176 GF/s for a block row in a hop of a sweep, besides those of any hop.
    sweep_row: f64,
    /// Multiples of the peak's time for a multiply-add to widen an element of P in 16 bits.
    widen: f64,
}

/// Share of the level 2 cache that rows of edges have for themselves.
const NEAR_SHARE: f64 = 0.8;

const COEFFICIENTS: Coefficients = Coefficients {
    score: 1.07,
    exponential: 1.1,
    value: 1.05,
    mod_operation: 4.0,
    edge: 1.0,
    edge_wait: [0.9, 1.2],
    row: 900.0,
    hop_row: 250.0,
    piece: 60.0,
    run: 40.0,
    unhidden: 0.1,
    write: [0.5, 1.0],
    barrier: 8.0,
    sweep_row: 300.0,
    widen: 1.0,
};

/// Predicts a call over one sequence. `masks` holds the work of every mask with the number of heads (or parts of
/// heads) that have it.
pub fn forecast(problem: &Problem, masks: &[(Work, usize)], nest: NestCounts, facts: &Facts) -> Forecast {
    let threads = problem.threads.max(1);
    let heads: usize = masks.iter().map(|(_, heads)| heads).sum();
    let mut sum = Forecast::default();
    let mut busy = 0.0;
    for (work, count) in masks {
        let head = Head { problem, work, nest, facts, threads, heads, in_flight: threads.min(heads).max(1) };
        let (forecast, seconds) = head.forecast();
        let count = *count as f64;
        for (total, part) in sum.parts_mut().into_iter().zip(forecast.parts()) {
            *total += count * part;
        }
        busy += count * seconds;
    }
    let rows = masks.iter().map(|(work, _)| work.block_rows).fold(1.0, f64::max) as usize;
    sum.seconds = busy * spread(problem, nest, heads, rows) + barriers(nest, heads, threads);
    sum
}

/// Time of the call for a second of thread time: heads are dealt out whole where there are enough of them.
fn spread(problem: &Problem, nest: NestCounts, heads: usize, rows: usize) -> f64 {
    let (heads, threads) = (heads.max(1), problem.threads.max(1));
    match nest.sweep {
        Some(SweepCounts { behind, lag, hops }) => {
            let all = Sweep { rows, hops, reach: behind + lag };
            let (_, busiest) = all.stretches(heads, threads);
            busiest as f64 / (heads * all.work(1)) as f64
        }
        // Rows are dealt out in small units, where a loop is all there is or heads are few.
        None if nest.loops <= 1 || heads < threads => 1.0 / threads as f64,
        None => heads.div_ceil(threads) as f64 / heads as f64,
    }
}

/// What decides how the rows of a head are shared out in a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweep {
    /// Block rows of a head.
    pub rows: usize,
    /// Hops, at least 1.
    pub hops: usize,
    /// Block rows that a row reads behind itself and ahead, together.
    pub reach: usize,
}

impl Sweep {
    /// Into how many stretches each of `items` heads is cut, so that the busiest of `workers` has least to do; and what
    /// that one has to do, in block rows of a hop. Rows near a border are computed on both sides of it.
    pub fn stretches(self, items: usize, workers: usize) -> (usize, usize) {
        let workers = workers.max(1);
        let busiest = |stretches: usize| (items * stretches).div_ceil(workers) * self.work(stretches);
        let all = (1..=2 * workers.min(self.rows)).map(|stretches| (stretches, busiest(stretches)));
        all.min_by_key(|&(_, work)| work).unwrap_or((1, busiest(1)))
    }

    /// Work on one of so many stretches. Scores cost as much as a hop, and beyond a border hop h of K is computed for
    /// (K - h) times the reach.
    fn work(self, stretches: usize) -> usize {
        let Self { rows, hops, reach } = self;
        let own = |stretches: usize| (hops + 1) * rows.div_ceil(stretches);
        let beyond = if stretches == 1 { 0 } else { hops.saturating_sub(1) * (hops + 2) / 2 * reach };
        own(stretches) + beyond.min(own(1) - own(stretches))
    }
}

/// Behind every loop whose rows several threads share.
fn barriers(nest: NestCounts, heads: usize, threads: usize) -> f64 {
    if threads == 1 {
        return 0.0;
    }
    let shared = nest.sweep.is_none() && nest.loops > 1 && heads < threads;
    let passes = if shared { heads * nest.loops } else { 1 };
    passes as f64 * COEFFICIENTS.barrier * 1e-6
}

impl Forecast {
    fn parts(&self) -> [f64; 8] {
        [self.scores, self.exponentials, self.mods, self.values, self.edges, self.rows, self.reads, self.writes]
    }

    fn parts_mut(&mut self) -> [&mut f64; 8] {
        let Self { seconds: _, scores, exponentials, mods, values, edges, rows, reads, writes } = self;
        [scores, exponentials, mods, values, edges, rows, reads, writes]
    }
}

/// One head on one thread, beside others on the other threads.
struct Head<'a> {
    problem: &'a Problem,
    work: &'a Work,
    nest: NestCounts,
    facts: &'a Facts,
    threads: usize,
    /// Heads of the call.
    heads: usize,
    /// Heads that are computed at the same time.
    in_flight: usize,
}

impl Head<'_> {
    /// The parts, and the seconds that they take together.
    fn forecast(&self) -> (Forecast, f64) {
        let Self { problem, work, facts, .. } = self;
        let c = &COEFFICIENTS;
        let (scored, products) = (self.nest.scored as f64, self.nest.products as f64);
        // Threads that share cores share their peak.
        let flops = facts.fma_gflops(problem.isa, self.threads) * 1e9 / self.threads as f64;
        let slower = facts.tiles(problem.isa).fma_gflops * 1e9 / flops;
        // What was fitted in nanoseconds at one speed scales with the family's.
        let fitted = 1e-9 * 176e9 / flops;
        let (d, dv) = (problem.head_dim as f64, problem.value_dim as f64);

        let element_score = 2.0 * d / flops;
        let element_value = 2.0 * dv / flops;
        let mut forecast = Forecast {
            scores: scored * c.score * work.score_elements * element_score,
            exponentials: scored
                * c.exponential
                * (work.exp_elements + work.edges)
                * (facts.tiles(problem.isa).exp_ns * 1e-9 * slower),
            mods: scored * c.mod_operation * (work.exp_elements + work.edges) * problem.mod_operations as f64 * 2.0
                / flops,
            values: products * c.value * work.value_elements * element_value,
            edges: work.edges * c.edge * (scored * element_score + products * element_value),
            rows: work.block_rows * fitted * (scored * c.row + products * c.hop_row)
                + fitted * (scored * c.piece * work.pieces + products * c.run * work.runs),
            ..Forecast::default()
        };
        if problem.element < size_of::<f32>() {
            // Rows of K, and of V in the first hop, are widened once a block row.
            forecast.rows += scored * work.keys * (d + dv) * c.widen * 2.0 / flops;
        }
        if self.nest.weights.is_some_and(|weights| weights.element == 2) {
            forecast.values += products * work.panel_elements * c.widen * 2.0 / flops;
        }
        forecast.edges += self.edge_rows(scored, products);
        (forecast.reads, forecast.writes) = self.stream(scored, products);
        if self.nest.sweep.is_some() {
            forecast.rows += work.block_rows * products * c.sweep_row * fitted;
        }
        let Forecast { reads, writes, .. } = forecast;
        let compute = forecast.parts().iter().sum::<f64>() - reads - writes;
        (forecast, compute.max(reads) + c.unhidden * compute.min(reads) + writes)
    }

    /// Seconds in which the caches deliver the rows of the edges.
    fn edge_rows(&self, scored: f64, products: f64) -> f64 {
        let Self { problem, work, .. } = self;
        let c = &COEFFICIENTS;
        let row = |width: usize, element: usize| width.next_multiple_of(LANES) * element;
        let (key, value) = (row(problem.head_dim, problem.element), row(problem.value_dim, size_of::<f32>()));
        // Rows of K and V that take turns have to fit together.
        let (keys, values) = self.nest.together;
        let together = keys * key + values * value;
        let one = |row: usize| {
            let reached = work.edge_reach * row.max(together) as f64;
            // Drawn at random, a row is in the level 2 cache as often as all of them fit into it.
            let near = (NEAR_SHARE * self.facts.cache_bytes[1] as f64 / reached).min(1.0);
            let beyond = reached as u64;
            let beyond = self.speed(beyond.saturating_mul(self.shared(beyond)).max(self.facts.cache_bytes[1]));
            let near_speed = self.speed(self.facts.cache_bytes[1] / 2);
            work.edges * row as f64 * (near * c.edge_wait[0] / near_speed + (1.0 - near) * c.edge_wait[1] / beyond)
        };
        scored * one(key) + products * one(value)
    }

    /// Seconds in which memory delivers what streams through: q, k, v and the output, Z, and P where it is kept; and
    /// seconds in which P is written.
    fn stream(&self, scored: f64, products: f64) -> (f64, f64) {
        let Self { problem, work, .. } = self;
        let float = size_of::<f32>() as f64;
        let (d, dv, element) = (problem.head_dim as f64, problem.value_dim as f64, problem.element as f64);
        let queries = work.block_rows * BLOCK as f64;
        // A row of K or V is fetched once where neighboring block rows share it in a core's own caches, else by each.
        let fetched = |width: f64| {
            let own = (work.row_keys * width * float) as u64;
            if self.facts.level(own) <= 1 { work.new_keys } else { work.keys }
        };
        let tensors = queries * (d + dv) * element + scored * fetched(d) * d * element + fetched(dv) * dv * element;
        let z = queries * dv * float;
        let element_of_p = self.nest.weights.map_or(0, |weights| weights.element);
        let p = (work.panel_elements + work.edges) * element_of_p as f64;
        // What lies between two uses of the same place of P, and of Z.
        let kept = match self.nest.weights {
            Some(KeptWeights { ring: Some(rows), .. }) => p / work.block_rows.max(1.0) * rows as f64,
            _ => p,
        };
        let (kept_p, kept_z) = match self.nest.sweep {
            Some(SweepCounts { behind, lag, hops }) => {
                let window = if work.in_order { ((behind + lag + 1) * BLOCK) as f64 * dv * float } else { z };
                (kept + window, kept + hops as f64 * window)
            }
            None if self.nest.loops > 1 && kept > 0.0 => (kept + 2.0 * z, kept + 2.0 * z),
            None if self.nest.loops > 1 => (0.0, 2.0 * z),
            None => (kept, 0.0),
        };
        // What the call touches before it comes back to the same place of a tensor, or of P in the next head.
        let call = queries * (d + dv) * element + work.new_keys.min(queries) * (d + dv) * element;
        let all = (self.heads as f64 * call + self.in_flight as f64 * kept_p.max(kept_z)) as u64;
        let beside = |bytes: f64| (bytes as u64).saturating_mul(self.shared(bytes as u64));
        let (kept_p, kept_z) = (beside(kept_p), beside(kept_z));
        let reads = tensors / self.speed(all)
            + p * products / self.speed(kept_p)
            + 3.0 * z * (products - 1.0).max(0.0) / self.speed(kept_z);
        let whole = self.nest.weights.is_some_and(|weights| weights.ring.is_none());
        let stored = if whole { all } else { kept_p };
        let writes = match self.facts.level(stored) {
            0 | 1 => 0.0,
            level => COEFFICIENTS.write[level - 2] * p / self.speed(stored),
        };
        (reads, writes)
    }

    /// How many heads share the level that holds `bytes` of one.
    fn shared(&self, bytes: u64) -> u64 {
        if self.facts.level(bytes) <= 1 { 1 } else { self.in_flight as u64 }
    }

    /// Bytes a second that one of the threads reads out of the level that holds `bytes`.
    fn speed(&self, bytes: u64) -> f64 {
        self.facts.read_gb_per_s(self.facts.level(bytes), self.threads) * 1e9 / self.threads as f64
    }
}

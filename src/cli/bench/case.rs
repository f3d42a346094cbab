//! One spec at one length: compiled, given inputs, raced against the baselines, checked by the interpreter.

use std::time::{Duration, Instant};

use ndarray::{Array4, ArrayView4};
use rayon::prelude::*;
use serde::Serialize;

use crate::analysis;
use crate::baselines::{Baseline, Prepared, Problem};
use crate::cli::case_inputs::Inputs;
use crate::cli::table::{significant, thousands};
use crate::cli::tensors::{Extents, Tensors};
use crate::compiler::{Compiled, Options};
use crate::cost::Forecast;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::interpreter::{self, SampleRow};
use crate::machine;
use crate::measure::{Contender, Times, in_turn};
use crate::spec::PatternSpec;
use crate::target::Isa;
use crate::tune::Callable;

/// Points, over all heads, up to which the interpreter checks every row.
const CHECK_ALL: u64 = 1 << 24;
/// Rows a head that it checks beyond, in the first and the last head.
const CHECK_ROWS: usize = 32;
/// Work that it may put into each of these heads: some ten seconds.
const CHECK_BUDGET: u64 = 8_000_000_000;
/// How often, at most, the peak is measured in between, and for how long.
const PEAK_EVERY: Duration = Duration::from_millis(200);
const PEAK_SECONDS: f64 = 0.01;
/// How long a contender runs before the next has its turn.
const TURN: Duration = Duration::from_millis(100);

/// A spec at a length, ready to be measured.
pub struct Case<'a> {
    /// The spec.
    pub spec: &'a PatternSpec,
    /// Lengths and batch size.
    pub extents: Extents,
    /// Everything the compiler made.
    pub compiled: &'a Compiled,
    /// From text to callable.
    pub compile_time: Duration,
    /// What the compiler was asked for.
    pub options: &'a Options,
    /// Inputs.
    pub inputs: &'a Inputs,
    /// An output to compare with besides the interpreter's.
    pub expected: Option<&'a Array4<f32>>,
}

/// What was measured.
#[derive(Debug)]
pub struct Outcome {
    /// FMA peak in GF/s at the kernel's vector width, on the same threads.
    pub peak: f64,
    /// One row for each implementation, the kernel first.
    pub rows: Vec<Row>,
}

/// A row of the JSON, and of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name of the spec.
    pub spec: String,
    /// Keys.
    pub n: usize,
    /// Queries.
    pub q_len: usize,
    /// Batch size.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Width of a query.
    pub head_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Storage of the kernel's tensors. Baselines read and write the same numbers in f32.
    pub dtype: Dtype,
    /// Hops.
    pub hops: usize,
    /// Allowed pairs of one sequence, over all heads.
    pub nnz: u64,
    /// `hopweave` or a baseline's name.
    pub implementation: String,
    /// Threads.
    pub threads: usize,
    /// Tile family of the kernel.
    pub isa: Option<Isa>,
    /// Strategy of the kernel.
    pub strategy: Option<String>,
    /// Whether the planner chose this strategy, where several were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<bool>,
    /// The file that the plan's tuning comes from; without one, the cost model chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned_by: Option<String>,
    /// Milliseconds that the cost model predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_ms: Option<f64>,
    /// What the prediction is made of, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// Milliseconds, as are the next two.
    pub median_ms: Option<f64>,
    /// Shortest run.
    pub min_ms: Option<f64>,
    /// Longest run.
    pub max_ms: Option<f64>,
    /// Runs that were timed.
    pub runs: usize,
    /// Useful work over the median.
    pub gflops: Option<f64>,
    /// `gflops` over `peak_gflops`: sums are f32 whatever the dtype, and so is the peak.
    pub peak_fraction: Option<f64>,
    /// f32 FMA peak measured in the same run on the same threads.
    pub peak_gflops: f64,
    /// From the spec's text to a callable kernel.
    pub compile_ms: Option<f64>,
    /// Bytes held beyond the tensors.
    pub scratch_bytes: u64,
    /// Largest difference to the interpreter on the stored inputs; in 16 bits the rounding of the output is part of it.
    pub max_abs_err: Option<f64>,
    /// Rows that were compared with it.
    pub compared_rows: usize,
    /// Largest difference to the output given with `--expected`.
    pub expected_abs_err: Option<f64>,
    /// Why the implementation was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl Case<'_> {
    /// What is measured, in a line without an end.
    pub fn heading(&self) -> String {
        let Self { spec, extents, .. } = self;
        let hops = spec.diffusion.hops();
        let nnz = self.compiled.mask.counts().nnz();
        let pairs = extents.q_len as f64 * extents.kv_len as f64 * spec.heads as f64;
        format!(
            "{}: n {}, batch {}, {} heads of {}{}, {hops} {}, {} allowed pairs ({} %)",
            spec.name,
            thousands(extents.kv_len as u64),
            extents.batch,
            spec.heads,
            spec.head_dim,
            if spec.dtype.is_f32() { String::new() } else { format!(" in {} (baselines in f32)", spec.dtype) },
            if hops == 1 { "hop" } else { "hops" },
            thousands(nnz),
            significant(if pairs > 0.0 { 100.0 * nnz as f64 / pairs } else { 0.0 }),
        )
    }

    /// Measures the kernel and the baselines in turn, about `budget` each. `progress` hears what is going on.
    ///
    /// # Errors
    /// Those of the kernel, the baselines and the interpreter; a baseline that would pass the memory limit is
    /// no error but a row without times.
    pub fn measure(
        &self,
        baselines: &[&'static Baseline],
        pool: &rayon::ThreadPool,
        budget: Duration,
        progress: &dyn Fn(&str),
    ) -> Result<Outcome> {
        let Tensors { q, k, v } = &self.inputs.wide;
        let kernel = &self.compiled.kernel;
        progress("interpreter");
        let oracle = pool.install(|| self.oracle())?;
        progress("hopweave, first run");
        let first = self.inputs.first(self.compiled)?;
        let nnz = self.compiled.mask.counts().nnz();
        let mut rows = vec![self.row("hopweave", nnz, &oracle, Some(first.view()))];
        drop(first);
        let plan = kernel.plan();
        rows[0].isa = Some(plan.isa);
        rows[0].strategy = Some(plan.strategy.to_string());
        rows[0].tuned_by = self.compiled.tuned_by.as_ref().map(|path| path.display().to_string());
        rows[0].predicted_ms =
            self.compiled.forecast.map(|forecast| forecast.seconds * 1e3 * self.extents.batch as f64);
        rows[0].compile_ms = Some(self.compile_time.as_secs_f64() * 1e3);
        rows[0].scratch_bytes = kernel.scratch_bytes(self.extents.batch);

        let problem = Problem {
            pattern: &self.compiled.pattern,
            spec: self.spec,
            batch: self.extents.batch,
            nnz,
            threads: self.options.threads,
        };
        let mut prepared: Vec<(&str, Box<dyn Prepared>)> = Vec::new();
        for baseline in baselines {
            progress(&format!("{}, first run", baseline.name));
            // What the baselines prepared before hold is theirs while they take turns.
            let held: u64 =
                prepared.iter().filter_map(|(name, _)| Baseline::find(name).ok()).map(|b| b.bytes(&problem)).sum();
            let mut row = self.row(baseline.name, nnz, &oracle, None);
            let without = match self.spec {
                spec if !spec.mods.is_empty() => Some("baselines have no score mods"),
                spec if !spec.hop_patterns.is_empty() => Some("baselines have one pattern for all hops"),
                _ => None,
            };
            if without.is_some() {
                row.skipped = without.map(str::to_owned);
                rows.push(row);
                continue;
            }
            match baseline.prepare(&problem, self.options.memory_limit.saturating_sub(held)) {
                Ok(ready) => {
                    let out = pool.install(|| ready.run(q.view(), k.view(), v.view()))?;
                    row = self.row(baseline.name, nnz, &oracle, Some(out.view()));
                    prepared.push((baseline.name, ready));
                }
                Err(error @ Error::Memory { .. }) => row.skipped = Some(error.to_string()),
                Err(error) => return Err(error),
            }
            row.scratch_bytes = baseline.bytes(&problem);
            rows.push(row);
        }

        let mut contenders = vec![Contender { name: "hopweave", run: self.inputs.call(self.compiled) }];
        for (name, ready) in &prepared {
            let run = || pool.install(|| ready.run(q.view(), k.view(), v.view())).map(drop);
            contenders.push(Contender { name, run: Box::new(run) });
        }
        let mut peaks = Peaks::new(self.options);
        let times = in_turn(&mut contenders, budget, TURN, |name, runs| {
            progress(&format!("{name}, run {}", runs + 1));
            peaks.look();
        })?;
        let ran: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
        for (name, times) in ran.into_iter().zip(&times) {
            if let Some(row) = rows.iter_mut().find(|row| row.implementation == name) {
                self.fill(row, times, nnz, if name == "hopweave" { peaks.kernel } else { peaks.best });
            }
        }
        Ok(Outcome { peak: peaks.kernel, rows })
    }

    /// A row without times.
    pub(super) fn row(&self, name: &str, nnz: u64, oracle: &[SampleRow], out: Option<ArrayView4<'_, f32>>) -> Row {
        let Self { spec, extents, .. } = self;
        Row {
            spec: spec.name.clone(),
            n: extents.kv_len,
            q_len: extents.q_len,
            batch: extents.batch,
            heads: spec.heads,
            head_dim: spec.head_dim,
            value_dim: spec.value_dim,
            dtype: spec.dtype,
            hops: spec.diffusion.hops(),
            nnz,
            implementation: name.into(),
            threads: self.options.threads,
            isa: None,
            strategy: None,
            chosen: None,
            tuned_by: None,
            predicted_ms: None,
            forecast: None,
            median_ms: None,
            min_ms: None,
            max_ms: None,
            runs: 0,
            gflops: None,
            peak_fraction: None,
            peak_gflops: 0.0,
            compile_ms: None,
            scratch_bytes: 0,
            max_abs_err: out.filter(|_| !oracle.is_empty()).map(|out| error_to_rows(out, oracle)),
            compared_rows: if out.is_some() { oracle.len() } else { 0 },
            expected_abs_err: out.zip(self.expected).map(|(out, expected)| {
                let pairs = out.iter().zip(expected).map(|(&found, &want)| (found, f64::from(want)));
                pairs.map(difference).fold(0.0, f64::max)
            }),
            skipped: None,
        }
    }

    pub(super) fn fill(&self, row: &mut Row, times: &Times, nnz: u64, peak: f64) {
        let flops = analysis::flops(nnz, self.spec) as f64 * self.extents.batch as f64;
        let gflops = flops / times.median() * 1e-6;
        row.median_ms = Some(times.median());
        row.min_ms = Some(times.min());
        row.max_ms = Some(times.max());
        row.runs = times.runs();
        row.gflops = Some(gflops);
        row.peak_fraction = (peak > 0.0).then_some(gflops / peak);
        row.peak_gflops = peak;
    }

    /// Rows of the output by the interpreter: all of them where that is quick.
    fn oracle(&self) -> Result<Vec<SampleRow>> {
        let Extents { batch, q_len, kv_len } = self.extents;
        let heads = self.spec.heads;
        let points = [batch, heads, q_len, kv_len].iter().fold(1_u64, |points, &x| points.saturating_mul(x as u64));
        let (places, queries): (Vec<_>, Vec<_>) = if points <= CHECK_ALL {
            ((0..batch * heads).collect(), (0..q_len).collect())
        } else {
            let last = batch * heads - 1;
            let queries = (0..CHECK_ROWS).map(|i| i * (q_len - 1) / (CHECK_ROWS - 1)).collect();
            (if last == 0 { vec![0] } else { vec![0, last] }, queries)
        };
        let Tensors { q, k, v } = &self.inputs.wide;
        let inputs = &self.inputs.of_mods.views();
        let samples: Vec<_> = places
            .into_par_iter()
            .map(|place| {
                let places = [(place / heads, place % heads)];
                let (pattern, spec) = (&self.compiled.pattern, self.spec);
                let (q, k, v) = (q.view(), k.view(), v.view());
                interpreter::run_rows(pattern, spec, q, k, v, inputs, &places, &queries, CHECK_BUDGET)
            })
            .collect::<Result<_>>()?;
        Ok(samples.into_iter().flat_map(|sample| sample.rows).collect())
    }
}

/// The largest difference between an output and the interpreter's rows.
fn error_to_rows(out: ArrayView4<'_, f32>, rows: &[SampleRow]) -> f64 {
    let of_row = |row: &SampleRow| {
        let values = row.out.iter().enumerate();
        values.map(|(x, &want)| difference((out[[row.batch, row.head, row.query, x]], want))).fold(0.0, f64::max)
    };
    rows.iter().map(of_row).fold(0.0, f64::max)
}

/// |found − want|; 0 where both are NaN or the same infinity, infinite where only one is.
pub(super) fn difference((found, want): (f32, f64)) -> f64 {
    let found = f64::from(found);
    if found == want || (found.is_nan() && want.is_nan()) {
        return 0.0;
    }
    let difference = (found - want).abs();
    if difference.is_nan() { f64::INFINITY } else { difference }
}

/// The FMA peak, looked at again and again while others run; the best look counts.
pub(super) struct Peaks {
    isa: Isa,
    threads: usize,
    looked: Option<Instant>,
    /// At the kernel's vector width.
    pub kernel: f64,
    /// At the widest that this machine has, which the baselines may use.
    best: f64,
}

impl Peaks {
    pub fn new(options: &Options) -> Self {
        Self { isa: options.isa, threads: options.threads, looked: None, kernel: 0.0, best: 0.0 }
    }

    pub fn look(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < PEAK_EVERY) {
            return;
        }
        self.kernel = self.kernel.max(machine::fma_peak(self.isa, self.threads, PEAK_SECONDS));
        self.best = if self.isa == Isa::best() {
            self.kernel
        } else {
            self.best.max(machine::fma_peak(Isa::best(), self.threads, PEAK_SECONDS))
        };
        self.looked = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_know_nan_and_infinity() {
        assert_eq!(difference((1.5, 1.0)), 0.5);
        assert_eq!(difference((f32::NAN, f64::NAN)), 0.0);
        assert_eq!(difference((f32::INFINITY, f64::INFINITY)), 0.0);
        assert_eq!(difference((f32::NAN, 1.0)), f64::INFINITY);
        assert_eq!(difference((1.0, f64::NAN)), f64::INFINITY);
        assert_eq!(difference((f32::INFINITY, f64::NEG_INFINITY)), f64::INFINITY);
    }
}

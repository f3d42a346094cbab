//! The fastest plan for one spec at one length, found by measuring.
//!
//! In: a spec, lengths, a time budget, and a way to call a kernel on tensors. Out: [`Findings`]: every candidate with
//! its times, and the winner. Candidates differ in what a [`Choice`] holds: strategy, storage of P, keys per step and
//! chunk, block rows per unit. They are measured in turn, so that drift meets all of them alike; the cost model's choice
//! is always among them, and it stays unless another beats it in a second measurement of those two alone. So a tuned
//! plan is never slower than the model's, up to what that second measurement can see.

use std::time::{Duration, Instant};

use crate::compiler::{self, Compiled, Options, TuningSource};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::measure::{Contender, in_turn};
use crate::passes::Strategy;
use crate::plan::{Choice, Tuning};
use crate::spec::PatternSpec;

mod candidates;
mod duel;

pub use duel::Duel;

/// How long a candidate runs before the next has its turn.
const TURN: Duration = Duration::from_millis(20);
/// Shares of the budget for strategies and storage, keys, units, and the duel of the last two.
const STRATEGIES: f64 = 0.35;
const KEYS: f64 = 0.25;
const UNITS: f64 = 0.15;
/// A candidate whose first runs take so many times as long as the fastest known run is measured no further.
const HOPELESS: f64 = 3.0;

/// Runs that tell more than earlier runs.
const TELLING: usize = 3;

/// A call that can be repeated.
pub type Call<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// Tensors that kernels can be called on, always the same ones.
pub trait Callable {
    /// Calls of a kernel, into an output of their own.
    fn call<'k>(&'k self, compiled: &'k Compiled) -> Call<'k>;
}

/// What to tune.
pub struct Search<'a> {
    /// The spec.
    pub spec: &'a PatternSpec,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// What the compiler is asked for; where tuning would come from does not count.
    pub options: &'a Options,
    /// Time for all measurements together. Compiling comes on top of it, and every candidate's last run.
    pub budget: Duration,
    /// Sequences of a call, for the scratch that candidates hold.
    pub batch: usize,
    /// Tensors to call kernels on.
    pub tensors: &'a dyn Callable,
    /// Hears how much of the budget is spent, and what is measured.
    pub progress: &'a dyn Fn(f64, &str),
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// Every candidate, the cost model's choice first.
    pub candidates: Vec<Candidate>,
    /// Index of the winner.
    pub winner: usize,
    /// The last measurement, of the model's choice against the fastest other one; `None` where the model's choice was
    /// the fastest already, or the time was over.
    pub duel: Option<Duel>,
}

/// A plan that was measured, or why it was not.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// What it is.
    pub choice: Choice,
    /// Milliseconds of a call, in the middle of those measured.
    pub median_ms: Option<f64>,
    /// Runs that were timed.
    pub runs: usize,
    /// Bytes of scratch of a call.
    pub scratch_bytes: u64,
    /// Why it was not measured, or not further.
    pub remark: Option<String>,
}

impl Findings {
    /// The winner.
    pub fn winner(&self) -> &Candidate {
        &self.candidates[self.winner]
    }

    /// Milliseconds of the winner and of the model's choice; those of the duel where there was one.
    pub fn times(&self) -> (f64, f64) {
        let of = |candidate: &Candidate| candidate.median_ms.unwrap_or(f64::NAN);
        let model = of(&self.candidates[0]);
        match (&self.duel, self.winner) {
            (_, 0) => (model, model),
            (Some(duel), _) => (duel.challenger_ms, duel.model_ms),
            (None, _) => (of(self.winner()), model),
        }
    }
}

/// A candidate with its kernel.
struct Ready {
    candidate: Candidate,
    compiled: Compiled,
}

/// Searches.
///
/// # Errors
/// [`Error::Unsupported`] for a budget of nothing and where the options force what is to be found; those of the
/// compiler and of the kernel.
pub fn search(search: &Search<'_>) -> Result<Findings> {
    if search.budget.is_zero() {
        return Err(Error::unsupported("a tuning budget of 0 seconds", "nothing can be measured in it; give more"));
    }
    if search.options.strategy.is_some() || !search.options.without.is_empty() {
        return Err(Error::unsupported(
            "tuning with a strategy or passes given",
            "they would be no choice; leave out --strategy and --without",
        ));
    }
    let mut session = Session::new(search)?;
    let model = session.ready[0].candidate.choice;
    session.stage(candidates::strategies(search, model), STRATEGIES)?;
    let best = session.best_choice();
    session.stage(candidates::keys(best), STRATEGIES + KEYS)?;
    let best = session.best_choice();
    session.stage(candidates::units(search, best), STRATEGIES + KEYS + UNITS)?;
    session.decide()
}

/// A search in progress.
struct Session<'a> {
    search: &'a Search<'a>,
    start: Instant,
    /// Time in compilers, which is no measuring.
    compiling: Duration,
    ready: Vec<Ready>,
    /// Candidates without a kernel.
    refused: Vec<Candidate>,
    /// Milliseconds of the fastest run so far.
    fastest: f64,
}

impl<'a> Session<'a> {
    /// Compiles the model's choice and runs it once.
    fn new(search: &'a Search<'a>) -> Result<Self> {
        let options = Options { tuning: TuningSource::Nothing, ..search.options.clone() };
        let compiled = compiler::compile(search.spec, search.q_len, search.kv_len, &options)?;
        let mut session = Session {
            search,
            start: Instant::now(),
            compiling: Duration::ZERO,
            ready: Vec::new(),
            refused: Vec::new(),
            fastest: f64::INFINITY,
        };
        let choice = compiled.kernel.plan().choice();
        session.admit(choice, compiled)?;
        Ok(session)
    }

    /// Seconds of measuring so far.
    fn spent(&self) -> f64 {
        (self.start.elapsed().saturating_sub(self.compiling)).as_secs_f64()
    }

    fn progress(&self, what: &str) {
        (self.search.progress)((self.spent() / self.search.budget.as_secs_f64()).min(1.0), what);
    }

    /// Runs a candidate for the first time: scratch is touched, and the hopeless are seen.
    fn admit(&mut self, choice: Choice, compiled: Compiled) -> Result<()> {
        self.progress(&choice.to_string());
        let mut call = self.search.tensors.call(&compiled);
        let mut ms = f64::INFINITY;
        let (begun, mut runs) = (Instant::now(), 0);
        // The first run pays for new pages, and any run may be disturbed.
        while runs == 0 || (runs < 3 && begun.elapsed() < self.search.budget / 20) {
            let run = Instant::now();
            call()?;
            ms = ms.min(run.elapsed().as_secs_f64() * 1e3);
            runs += 1;
        }
        drop(call);
        let remark = (ms > HOPELESS * self.fastest).then(|| format!("far behind, {ms:.3} ms in its first runs"));
        let scratch_bytes = compiled.kernel.scratch_bytes(self.search.batch);
        let candidate = Candidate { choice, median_ms: None, runs: 0, scratch_bytes, remark };
        match candidate.remark {
            Some(_) => self.refused.push(candidate),
            None => {
                self.fastest = self.fastest.min(ms);
                self.ready.push(Ready { candidate, compiled });
            }
        }
        Ok(())
    }

    /// Measures new candidates, and those known so far with them, until `share` of the budget is spent.
    fn stage(&mut self, choices: Vec<Choice>, share: f64) -> Result<()> {
        let end = share * self.search.budget.as_secs_f64();
        let known = self.ready.len();
        for choice in choices {
            if self.ready.iter().map(|ready| ready.candidate.choice).any(|known| known == choice) {
                continue;
            }
            self.add(choice, end)?;
        }
        if self.ready.len() == known && self.ready[0].candidate.median_ms.is_some() {
            return Ok(());
        }
        // The model's choice and the best of those measured before are the scale for the new ones.
        let best = self.best();
        let mut racing: Vec<usize> = (known..self.ready.len()).chain([0, best]).collect();
        racing.sort_unstable();
        racing.dedup();
        let left = (end - self.spent()).max(0.0);
        let each = Duration::from_secs_f64(left / racing.len() as f64);
        let names: Vec<String> = racing.iter().map(|&at| self.ready[at].candidate.choice.to_string()).collect();
        let mut contenders: Vec<Contender<'_>> = racing
            .iter()
            .zip(&names)
            .map(|(&at, name)| Contender { name, run: self.search.tensors.call(&self.ready[at].compiled) })
            .collect();
        let times = in_turn(&mut contenders, each, TURN, |name, _| self.progress(name))?;
        drop(contenders);
        for (at, times) in racing.into_iter().zip(times) {
            let candidate = &mut self.ready[at].candidate;
            // Where the time was over, one late run says less than those before.
            if times.runs() >= candidate.runs.min(TELLING) {
                candidate.median_ms = Some(times.median());
                candidate.runs = times.runs();
            }
            self.fastest = self.fastest.min(times.min());
        }
        Ok(())
    }

    /// Compiles a candidate and runs it once, if there is time and memory for it.
    fn add(&mut self, choice: Choice, end: f64) -> Result<()> {
        let Search { spec, q_len, kv_len, options, batch, .. } = *self.search;
        let refuse =
            |remark: String| Candidate { choice, median_ms: None, runs: 0, scratch_bytes: 0, remark: Some(remark) };
        if self.spent() > end {
            self.refused.push(refuse("the budget had no time for it".into()));
            return Ok(());
        }
        let begun = Instant::now();
        let compiled =
            compiler::compile(spec, q_len, kv_len, &Options { tuning: TuningSource::Given(choice), ..options.clone() });
        self.compiling += begun.elapsed();
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(Error::Unsupported { limit, .. }) => {
                self.refused.push(refuse(limit));
                return Ok(());
            }
            Err(error @ Error::Memory { .. }) => {
                self.refused.push(refuse(error.to_string()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // Another choice that makes the same plan would be measured twice.
        let plan = compiled.kernel.plan();
        if let Some(same) = self.ready.iter().find(|ready| ready.compiled.kernel.plan().does_the_same(plan)) {
            let strategy = same.candidate.choice.strategy;
            if strategy != choice.strategy {
                self.refused.push(refuse(format!("does the same as {strategy}")));
            }
            return Ok(());
        }
        // Kernels keep their scratch while they take turns.
        let held: u64 = self.ready.iter().map(|ready| ready.candidate.scratch_bytes).sum();
        if held.saturating_add(compiled.kernel.scratch_bytes(batch)) > options.memory_limit {
            self.refused.push(refuse("its scratch does not fit into memory beside the others'".into()));
            return Ok(());
        }
        self.admit(choice, compiled)
    }

    /// The fastest of those measured; the model's choice where none was.
    fn best(&self) -> usize {
        let ms = |at: &usize| self.ready[*at].candidate.median_ms.unwrap_or(f64::INFINITY);
        (0..self.ready.len()).min_by(|a, b| ms(a).total_cmp(&ms(b))).unwrap_or(0)
    }

    fn best_choice(&self) -> Choice {
        self.ready[self.best()].candidate.choice
    }

    /// The winner, after a duel of the fastest with the model's choice.
    fn decide(self) -> Result<Findings> {
        let best = self.best();
        let left = self.search.budget.as_secs_f64() - self.spent();
        let duel = match best {
            0 => None,
            _ => {
                let mut calls = [0, best].map(|at| self.search.tensors.call(&self.ready[at].compiled));
                duel::fight(&mut calls, Duration::from_secs_f64(left.max(0.0)), TURN, &|| {
                    self.progress(&format!("{} against the model's choice", self.ready[best].candidate.choice));
                })?
            }
        };
        let winner = match &duel {
            Some(duel) if duel.won() => best,
            _ => 0,
        };
        let mut candidates: Vec<Candidate> = self.ready.into_iter().map(|ready| ready.candidate).collect();
        candidates.extend(self.refused);
        Ok(Findings { candidates, winner, duel })
    }
}

/// A choice with nothing but its strategy.
const fn plain(strategy: Strategy, store: Dtype, tuning: Tuning) -> Choice {
    Choice { strategy, store, tuning }
}

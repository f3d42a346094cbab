//! The way of the data, on one screen.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::cost::Forecast;
use crate::error::{Error, Result};
use crate::jit::Codes;
use crate::limits::Allowance;
use crate::machine::Facts;
use crate::mask::BlockMask;
use crate::passes::Strategy;
use crate::pattern::Pattern;
use crate::plan::{ASKED_FOR, Choice, Model, PlanOptions, Tuning};
use crate::program::{Program, VerifiedProgram};
use crate::runtime::{Iterations, Kernel, Pool, Train, TrainingKernel, enough};
use crate::spec::{Alpha, DiffusionForm, Factors, Given, MAX_HOPS, PatternSpec, TYPICAL_ALPHA};
use crate::target::Isa;
use crate::tuned::Problem;
use crate::{codegen, jit, machine, mask, passes, pattern, plan, program, runtime};

/// Everything the steps make of one spec at one length.
#[derive(Debug)]
pub struct Compiled {
    /// The predicate tree.
    pub pattern: Pattern,
    /// The block mask, before any pass.
    pub mask: BlockMask,
    /// The program, after all passes, in the nest that was chosen.
    pub program: VerifiedProgram,
    /// The callable kernel; it holds the plan.
    pub kernel: Kernel,
    /// What the cost model says of the plan's strategy; `None` where the machine was never measured.
    pub forecast: Option<Forecast>,
    /// The file that the plan's tuning comes from; `None` where the cost model chose.
    pub tuned_by: Option<PathBuf>,
    /// What was passed over in the cache, and why.
    pub warnings: Vec<String>,
    /// How long each step took, in order.
    pub timings: Vec<(&'static str, Duration)>,
}

/// Compiles a spec for one pair of lengths.
///
/// # Errors
/// [`Error::Spec`] where the spec does not fit the lengths, [`Error::Unsupported`] for wishes that cannot be
/// served, [`Error::Memory`] and [`Error::Limit`] beyond the limits. [`Error::Internal`] is our bug.
pub fn compile(spec: &PatternSpec, q_len: usize, kv_len: usize, options: &Options) -> Result<Compiled> {
    let mut clock = Clock::default();
    // Expressions are evaluated and random choices drawn: from here on there are only numbers.
    let pattern = clock.time("resolve", || pattern::resolve(spec, q_len, kv_len))?;
    let compiled = compile_pattern(spec, pattern, options)?;
    Ok(Compiled { timings: [clock.steps, compiled.timings].concat(), ..compiled })
}

/// Compiles the pattern of a spec, which may be bound to what is known of a batch element at run time.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_pattern(spec: &PatternSpec, pattern: Pattern, options: &Options) -> Result<Compiled> {
    if let Some((given, tolerance, hops)) = iterated(spec, &pattern) {
        let compiled = compile_pattern(&with_hops(spec, hops), pattern.clone(), options)?;
        let make = {
            let (spec, options) = (spec.clone(), options.clone());
            move |hops| Ok(compile_pattern(&with_hops(&spec, hops), pattern.clone(), &options)?.kernel)
        };
        let iterations = Iterations::new(given, spec.heads, tolerance, hops, Box::new(make));
        return Ok(Compiled { kernel: compiled.kernel.iterated(iterations), ..compiled });
    }
    let advice = options.advice(spec, pattern.q_len, pattern.kv_len);
    let Some(path) = advice.tuned_by.clone() else {
        return match compile_with(spec, pattern.clone(), options, advice.clone()) {
            // The fastest plan is of no use where its P does not fit.
            Err(error @ Error::Memory { .. }) if advice.strategy(options).is_none() => {
                let frugal = Options { strategy: Some(Strategy::RECOMPUTE), ..options.clone() };
                let because = Some(format!("chosen, since {error}"));
                compile_with(spec, pattern, &frugal, Advice { because, ..advice }).map_err(|_| error)
            }
            result => result,
        };
    };
    match compile_with(spec, pattern.clone(), options, advice.clone()) {
        // An entry that this spec's files or this machine's memory have outdated.
        Err(error @ (Error::Unsupported { .. } | Error::Memory { .. })) => {
            let mut warnings = advice.warnings;
            warnings.push(format!("{}: is passed over: {error}", path.display()));
            compile_with(
                spec,
                pattern,
                options,
                Advice { choice: None, because: None, tuned_by: None, warnings, ..advice },
            )
        }
        result => result,
    }
}

fn compile_with(spec: &PatternSpec, pattern: Pattern, options: &Options, advice: Advice) -> Result<Compiled> {
    let mut clock = Clock::default();
    let strategy = advice.strategy(options);
    let allowance = options.allowance(spec);
    // Whole blocks are classified by intervals; points are visited only inside partial blocks.
    let mask = clock.time("mask", || build_mask(spec, &pattern, options, strategy, allowance))?;
    let program = clock.time("program", || build_program(spec, &pattern, mask.clone(), allowance))?;
    let mut program = clock.time("passes", || passes::run(program, &options.without))?;
    // Every recipe that is legal makes a nest of the operations; the cost model picks one.
    let (reasons, strategy, forecast) = clock.time("schedule", || {
        let model = Model::new(&program, options.isa, options.planning_threads(), advice.facts);
        let store = advice.choice.map(|choice| choice.store);
        let chosen = plan::choose(&program, &options.without, strategy, store, &model)?;
        let mut reasons = chosen.reasons;
        if let (Some(because), Some(last)) =
            (&advice.because, reasons.iter_mut().find(|text| text.ends_with(ASKED_FOR)))
        {
            *last = format!("{}: {because}", chosen.strategy);
        }
        program.body = chosen.body;
        Ok::<_, Error>((reasons, chosen.strategy, advice.facts.map(|_| chosen.forecast)))
    })?;
    let program = clock.time("verify", || program::verify(program))?;
    let plan_options = advice.plan_options(options, strategy, reasons);
    let plan = clock.time("plan", || plan::build(&program, options.isa, plan_options))?;
    allowance.check_time()?;
    let linked = match &options.codes {
        Some(codes) => clock.time("link", || codes.link(plan, &allowance))?,
        None => {
            let isa = jit::target_isa()?;
            let lowered = clock.time("lower", || codegen::lower(plan, &*isa));
            clock.time("link", || jit::link(lowered, &isa, &allowance))?
        }
    };
    // A gradient is compiled at the first backward call.
    let train: Train = {
        let (spec, pattern, options) = (spec.clone(), pattern.clone(), options.clone());
        Box::new(move || compile_training(&spec, &pattern, &options, false))
    };
    let kernel = clock.time("kernel", || Ok::<_, Error>(Kernel::new(linked, options.pool()?, Some(train))))?;
    check_memory(&kernel, options)?;
    let Advice { tuned_by, warnings, .. } = advice;
    Ok(Compiled { pattern, mask, program, kernel, forecast, tuned_by, warnings, timings: clock.steps })
}

/// Compiles a kernel for training from the pattern of a spec: gradients, and dropout where it is asked for.
///
/// Hops store P, and the gradient's loop takes the Z of all hops at once. What does not fit the memory limit is computed
/// again instead: first P, then Z.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_training(
    spec: &PatternSpec,
    pattern: &Pattern,
    options: &Options,
    dropout: bool,
) -> Result<TrainingKernel> {
    if let Some((given, tolerance, hops)) = iterated(spec, pattern) {
        if dropout {
            return Err(Error::unsupported("dropout with hops without end", "a number of hops, or no dropout"));
        }
        let kernel = compile_training(&with_hops(spec, hops), pattern, options, false)?;
        let make = {
            let (spec, pattern, options) = (spec.clone(), pattern.clone(), options.clone());
            move |hops| compile_training(&with_hops(&spec, hops), &pattern, &options, false)
        };
        return Ok(kernel.iterated(Iterations::new(given, spec.heads, tolerance, hops, Box::new(make))));
    }
    let allowance = options.allowance(spec);
    let mut program = training_program(spec, pattern, options, dropout)?;
    let tables_at_call = options.codes.is_some();
    let mut refused = None;
    for chosen in plan::choose_training(&program, &options.without, options.strategy)? {
        program.body = chosen.body;
        let verified = program::verify(program)?;
        let (strategy, reasons) = (chosen.strategy, chosen.reasons);
        let plan_options = PlanOptions { strategy, reasons, tables_at_call, ..PlanOptions::default() };
        let plan = plan::build(&verified, options.isa, plan_options)?;
        let linked = options.codes.clone().unwrap_or_default().link(plan, &allowance)?;
        let kernel = TrainingKernel::new((spec.dtype, spec.diffusion.hops() > 0), linked, options.pool()?);
        let given = kernel.scratch_bytes_on(1, options.planning_threads());
        if given <= options.memory_limit {
            return Ok(kernel);
        }
        refused =
            Some(Error::Memory { what: "scratch of the gradient".to_owned(), given, limit: options.memory_limit });
        program = verified.into_inner();
    }
    Err(refused.unwrap_or_else(|| Error::internal("compiler", "no way to compute a gradient", "")))
}

/// The program of a gradient, after the passes over its operations.
fn training_program(spec: &PatternSpec, pattern: &Pattern, options: &Options, dropout: bool) -> Result<Program> {
    let mask = build_whole_mask(spec, pattern, options.allowance(spec))?;
    let program = build_program(spec, pattern, mask, options.allowance(spec))?;
    passes::run(program::derive_gradient(program, dropout)?, &options.without)
}

/// The text of one stage, for `emit`: of the kernel, or of the one for training, without dropout, that belongs to it (of
/// its gradient's pass where hops store P in a plan of their own).
///
/// # Errors
/// Those of [`compile`], as far as the stage needs the steps before it.
pub fn emit(
    spec: &PatternSpec,
    q_len: usize,
    kv_len: usize,
    options: &Options,
    (stage, training): (Stage, bool),
) -> Result<String> {
    let pattern = pattern::resolve(spec, q_len, kv_len)?;
    if stage == Stage::Pattern {
        return Ok(pattern.print());
    }
    let stand_in = stand_in(spec, &pattern);
    let spec = stand_in.as_ref().unwrap_or(spec);
    let advice = options.advice(spec, q_len, kv_len);
    let allowance = options.allowance(spec);
    let mask = match training {
        true => build_whole_mask(spec, &pattern, allowance)?,
        false => build_mask(spec, &pattern, options, advice.strategy(options), allowance)?,
    };
    if stage == Stage::Mask {
        return Ok(mask.print());
    }
    let mut program = build_program(spec, &pattern, mask, allowance)?;
    if training {
        program = program::derive_gradient(program, false)?;
    }
    if stage == Stage::Schedule {
        return Ok(program.print());
    }
    let mut program = passes::run(program, &options.without)?;
    let chosen = if training {
        let least = plan::choose_training(&program, &options.without, options.strategy)?.into_iter().next();
        least.ok_or_else(|| Error::internal("compiler", "no way to compute a gradient", ""))?
    } else {
        let model = Model::new(&program, options.isa, options.planning_threads(), advice.facts);
        let store = advice.choice.map(|choice| choice.store);
        plan::choose(&program, &options.without, advice.strategy(options), store, &model)?
    };
    program.body = chosen.body;
    let program = program::verify(program)?;
    if stage == Stage::Fused {
        return Ok(program.print());
    }
    let plan_options = if training {
        PlanOptions { strategy: chosen.strategy, reasons: chosen.reasons, ..PlanOptions::default() }
    } else {
        advice.plan_options(options, chosen.strategy, chosen.reasons)
    };
    let plan = plan::build(&program, options.isa, plan_options)?;
    if stage == Stage::Plan {
        return Ok(plan.print());
    }
    let isa = jit::target_isa()?;
    let lowered = codegen::lower(plan, &*isa);
    match stage {
        Stage::Clif => {
            Ok(lowered.functions().iter().map(|lowered| format!("{}\n", lowered.function.display())).collect())
        }
        _ => jit::disassemble(lowered, &isa),
    }
}

/// Every strategy for a spec at its lengths, with why it is legal or why not.
///
/// # Errors
/// Those of [`compile`].
pub fn strategies(
    spec: &PatternSpec,
    q_len: usize,
    kv_len: usize,
    options: &Options,
) -> Result<Vec<(Strategy, std::result::Result<String, String>)>> {
    let pattern = pattern::resolve(spec, q_len, kv_len)?;
    let stand_in = stand_in(spec, &pattern);
    let spec = stand_in.as_ref().unwrap_or(spec);
    let allowance = options.allowance(spec);
    let mask = build_whole_mask(spec, &pattern, allowance)?;
    let program = build_program(spec, &pattern, mask, allowance)?;
    let program = passes::run(program, &options.without)?;
    Ok(passes::verdicts(&program, &options.without))
}

/// Parts of a head are joined by `flash` alone, so a mask is split only where that is what will run.
fn build_mask(
    spec: &PatternSpec,
    pattern: &Pattern,
    options: &Options,
    strategy: Option<Strategy>,
    allowance: Allowance,
) -> Result<BlockMask> {
    let flash = spec.diffusion.hops() <= 1
        // Parts are as many as the neighbors ask for, and each number has code of its own; a few queries over a cache need them.
        && (options.codes.is_none() || pattern.q_len < mask::QUERY_BLOCK)
        && strategy.is_none_or(|strategy| strategy == Strategy::FLASH)
        && !options.without.iter().any(|pass| pass == "fuse_hop_into_softmax" || pass == "walk_by_keys");
    match flash {
        // Score mods count heads and positions, which rows of several heads mix, and a restart term reads values by
        // the number of a query.
        true if spec.mods.is_empty() && spec.diffusion.is_plain() => {
            mask::build_in_parts(pattern.of_hop(0), allowance, spec.heads / spec.kv_heads)
        }
        true if !is_limit(spec) => mask::build_in_parts(pattern.of_hop(0), allowance, 1),
        _ => build_whole_mask(spec, pattern, allowance),
    }
}

/// Hops without end that no call can solve row after row, with an alpha that comes with the call: what is given, the
/// tolerance, and as many hops as a typical alpha takes.
fn iterated(spec: &PatternSpec, pattern: &Pattern) -> Option<(Given, f64, usize)> {
    let DiffusionForm::Limit { alpha: Alpha::Input(_), tolerance } = spec.diffusion.form else { return None };
    let given = spec.diffusion.given()?;
    let hops = enough(Factors::hops_until(TYPICAL_ALPHA, tolerance).unwrap_or(MAX_HOPS));
    (!is_triangular(pattern)).then_some((given, tolerance, hops))
}

/// The spec that is compiled in the place of hops without end whose number is that of the call.
fn stand_in(spec: &PatternSpec, pattern: &Pattern) -> Option<PatternSpec> {
    iterated(spec, pattern).map(|(.., hops)| with_hops(spec, hops))
}

/// Whether no query of any head attends to a later key.
fn is_triangular(pattern: &Pattern) -> bool {
    (0..pattern.heads).all(|head| pattern.is_lower_triangular(head))
}

/// The same spec with a number of hops.
fn with_hops(spec: &PatternSpec, hops: usize) -> PatternSpec {
    let mut spec = spec.clone();
    if let DiffusionForm::Limit { alpha: Alpha::Input(alpha), .. } = &spec.diffusion.form {
        spec.diffusion.form = DiffusionForm::Restart { hops, alpha: alpha.clone() };
    }
    spec
}

/// Hops without end.
const fn is_limit(spec: &PatternSpec) -> bool {
    matches!(spec.diffusion.form, DiffusionForm::Limit { .. })
}

/// The mask of the first hop, in one part: in the order of keys where hops without end can be solved row after row.
fn build_whole_mask(spec: &PatternSpec, pattern: &Pattern, allowance: Allowance) -> Result<BlockMask> {
    if is_limit(spec) && is_triangular(pattern) {
        return mask::build_in_order(pattern, allowance);
    }
    mask::build(pattern.of_hop(0), allowance)
}

/// The program of a spec, from the mask of its first hop.
fn build_program(spec: &PatternSpec, pattern: &Pattern, mask: BlockMask, allowance: Allowance) -> Result<Program> {
    // Which pattern each set has, in the order in which hops come to them.
    let mut sets = vec![pattern.index_of_hop(0)];
    let mut masks = vec![mask];
    for hop in 1..spec.hop_patterns.len() {
        let index = pattern.index_of_hop(hop);
        if !sets.contains(&index) {
            sets.push(index);
            masks.push(mask::build(pattern.of_hop(hop), allowance)?);
        }
    }
    let set_of = |hop| sets.iter().position(|&index| index == pattern.index_of_hop(hop)).unwrap_or(0);
    program::build_hops(spec, masks, set_of)
}

fn check_memory(kernel: &Kernel, options: &Options) -> Result<()> {
    let limit = options.memory_limit;
    let given = kernel.scratch_bytes_on(1, options.planning_threads()) + kernel.code_bytes().1 as u64;
    if given > limit {
        return Err(Error::Memory { what: format!("scratch of the {} kernel", kernel.plan().strategy), given, limit });
    }
    Ok(())
}

/// What a caller may insist on.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tile family.
    pub isa: Isa,
    /// Threads of a call, at least 1. With a [`pool`](field@Self::pool), what plans are made for; a call has as many as the pool
    /// says then.
    pub threads: usize,
    /// Threads that calls run on; rayon's where there are none, [`threads`](Self::threads) of them. Results do not depend on
    /// it.
    pub pool: Option<Arc<dyn Pool>>,
    /// Threads that plans are made for: the cost model goes by them, and so does whether scratch fits the memory limit.
    /// Where nothing is said, [`threads`](Self::threads).
    pub planned_threads: Option<usize>,
    /// Strategy; the planner chooses where there is none.
    pub strategy: Option<Strategy>,
    /// Scores of bf16 by dot products of pairs; where nothing is said, if they are faster on this machine as
    /// [`facts`](Self::facts) have it (typically they are not).
    pub bf16_dots: Option<bool>,
    /// Machine code of earlier kernels. Where it is given, kernels walk their rows from tables alone, and take the code of an
    /// earlier one that differs from them only there: other neighbors at the same lengths then compile nothing.
    pub codes: Option<Codes>,
    /// Passes to leave out, by name.
    pub without: Vec<String>,
    /// Bytes that masks, tables and scratch may take.
    pub memory_limit: u64,
    /// Where the plan's sizes come from, and its strategy where none is given.
    pub tuning: TuningSource,
    /// Numbers of this machine for the cost model. Where there are none, those of the cache that tuning comes from, else
    /// typical ones; compiling never measures.
    pub facts: Option<Facts>,
}

/// Where the tuning of a plan comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TuningSource {
    /// What `hopweave tune` and `hopweave machine` have left in the user's cache folder
    /// ([`crate::cache::Cache::of_user`]); the cost model where there is nothing.
    #[default]
    User,
    /// The same in a folder of the caller's.
    Cache(Cache),
    /// This choice.
    Given(Choice),
    /// The cost model alone. Without [`Options::facts`], plans then depend on nothing but spec, lengths and options.
    Nothing,
}

impl Default for Options {
    /// The best tile family, all cores, 80 % of the free memory.
    fn default() -> Self {
        Self {
            isa: Isa::best(),
            threads: machine::cores(),
            pool: None,
            planned_threads: None,
            strategy: None,
            bf16_dots: None,
            codes: None,
            without: Vec::new(),
            memory_limit: machine::default_memory_limit(),
            tuning: TuningSource::User,
            facts: None,
        }
    }
}

impl Options {
    /// Bytes that masks, tables and scratch may take where plans must not depend on what is free.
    pub const REPRODUCIBLE_MEMORY: u64 = 4 << 30;

    /// The default [made reproducible](Self::made_reproducible).
    pub fn reproducible() -> Self {
        Self::default().made_reproducible()
    }

    /// The same options with everything fixed that a machine would decide: plans, and all bits of results, are then the
    /// same on every machine that runs the tile family (of the portable one: and has fused multiply-adds, or has not),
    /// whatever its cores, its free memory, its cache folder and its load.
    ///
    /// No cache is read and the cost model goes by a typical machine, as for one thread
    /// ([`planned_threads`](Self::planned_threads)); calls still run on [`threads`](Self::threads), which change no bit. The
    /// memory limit is [`REPRODUCIBLE_MEMORY`](Self::REPRODUCIBLE_MEMORY). Dot products of bf16 pairs are off unless
    /// [`bf16_dots`](Self::bf16_dots) asks for them. Whoever sets a field afterwards decides for himself.
    #[must_use]
    pub fn made_reproducible(self) -> Self {
        Self {
            planned_threads: Some(1),
            memory_limit: Self::REPRODUCIBLE_MEMORY,
            tuning: TuningSource::Nothing,
            facts: None,
            ..self
        }
    }

    /// The same, with what the cache has to say about a spec read now instead of in every compilation.
    #[must_use]
    pub(crate) fn settled(&self, spec: &PatternSpec, q_len: usize, kv_len: usize) -> Self {
        let Advice { choice, facts, .. } = self.advice(spec, q_len, kv_len);
        let tuning = choice.map_or(TuningSource::Nothing, TuningSource::Given);
        Self { tuning, facts, ..self.clone() }
    }

    /// Threads that calls run on.
    fn pool(&self) -> Result<Arc<dyn Pool>> {
        self.pool.clone().map_or_else(|| runtime::own_pool(self.threads), Ok)
    }

    /// Threads that plans are made for.
    fn planning_threads(&self) -> usize {
        self.planned_threads.unwrap_or(self.threads)
    }

    /// What compiling a spec may take, from now on.
    fn allowance(&self, spec: &PatternSpec) -> Allowance {
        Allowance::begin(spec.source.limits, self.memory_limit)
    }

    /// What the cache has to say about a spec at its lengths.
    fn advice(&self, spec: &PatternSpec, q_len: usize, kv_len: usize) -> Advice {
        let cache = match &self.tuning {
            TuningSource::User => Cache::of_user(),
            TuningSource::Cache(cache) => Some(cache.clone()),
            TuningSource::Given(choice) => {
                return Advice { choice: Some(*choice), facts: self.facts, ..Advice::default() };
            }
            TuningSource::Nothing => None,
        };
        let mut advice = Advice { facts: self.facts, ..Advice::default() };
        let Some(cache) = cache else { return advice };
        if advice.facts.is_none() {
            match Facts::cached(&cache) {
                Ok(facts) => advice.facts = facts,
                Err(error) => advice.warnings.push(error.to_string()),
            }
        }
        // Entries are of plans that nobody forced.
        if self.strategy.is_none() && self.without.is_empty() && self.bf16_dots.is_none() {
            let problem = Problem { spec, q_len, kv_len, isa: self.isa, threads: self.threads };
            match problem.find(&cache) {
                Ok(Some((entry, path))) => {
                    advice.because = Some(format!("chosen, the fastest that was measured ({})", path.display()));
                    (advice.choice, advice.tuned_by) = (Some(entry.choice), Some(path));
                }
                Ok(None) => {}
                Err(error) => advice.warnings.push(error.to_string()),
            }
        }
        advice
    }
}

/// What is known beside the options.
#[derive(Debug, Clone, Default)]
struct Advice {
    choice: Option<Choice>,
    /// Why a strategy is wished that the caller did not ask for.
    because: Option<String>,
    tuned_by: Option<PathBuf>,
    facts: Option<Facts>,
    warnings: Vec<String>,
}

impl Advice {
    fn strategy(&self, options: &Options) -> Option<Strategy> {
        options.strategy.or(self.choice.map(|choice| choice.strategy))
    }

    fn plan_options(&self, options: &Options, strategy: Strategy, reasons: Vec<String>) -> PlanOptions {
        let tuning = self.choice.map_or(Tuning::default(), |choice| choice.tuning);
        let tables_at_call = options.codes.is_some();
        PlanOptions { bf16_dots: options.bf16_dots, tables_at_call, facts: self.facts, tuning, strategy, reasons }
    }
}

/// A stage whose text `emit` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The resolved predicate tree.
    Pattern,
    /// The block mask.
    Mask,
    /// The schedule as the definition has it.
    Schedule,
    /// The schedule after all passes.
    Fused,
    /// The plan.
    Plan,
    /// Cranelift's intermediate form.
    Clif,
    /// Machine code.
    Asm,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 7] =
        [Self::Pattern, Self::Mask, Self::Schedule, Self::Fused, Self::Plan, Self::Clif, Self::Asm];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pattern => "pattern",
            Self::Mask => "mask",
            Self::Schedule => "schedule",
            Self::Fused => "fused",
            Self::Plan => "plan",
            Self::Clif => "clif",
            Self::Asm => "asm",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            Error::unsupported(format!("stage `{name}`"), format!("the stages are {}", names.join(", ")))
        })
    }
}

#[derive(Default)]
struct Clock {
    steps: Vec<(&'static str, Duration)>,
}

impl Clock {
    fn time<T>(&mut self, step: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.steps.push((step, start.elapsed()));
        result
    }
}

//! `explain`: what a pattern costs, how far it reaches, and which plan was chosen and why; as text, JSON, or a page.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::files;
use super::options::{Global, Lengths, SpecArg};
use super::say::{print, warn_of};
use crate::analysis::{self, Analysis, Diffused};
use crate::compiler::{self, Compiled, Options};
use crate::error::{Error, Result};
use crate::exchange::Exchange;
use crate::mask::EdgeRule;
use crate::npy;
use crate::plan::ModsPlan;
use crate::spec::PatternSpec;

mod distance;
mod numbers;
mod one_hop;
mod page;
mod text;

pub use distance::Distance;
use distance::distance;
use one_hop::OneHop;
pub use text::share;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    spec: SpecArg,
    #[command(flatten)]
    lengths: Lengths,
    /// Batch size that scratch is counted for
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// What the hops take for alpha, where it comes with the call: a number, or f32 [heads] or [1]; head 0's is looked at
    #[arg(long, value_name = "X|FILE.npy", conflicts_with = "theta")]
    alpha: Option<String>,
    /// What the hops take for coefficients, where they come with the call, f32 [heads, hops + 1]; head 0's are looked at
    #[arg(long, value_name = "FILE.npy")]
    theta: Option<PathBuf>,
    /// Say also what moves where the tokens are spread over so many processes
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u16).range(1..))]
    world: Option<u16>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    /// Write a page with pictures, tables and charts, besides the text
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
}

/// Everything there is to say.
pub struct Explained<'a> {
    /// The spec.
    pub spec: &'a PatternSpec,
    /// What the compiler made of it.
    pub compiled: &'a Compiled,
    /// What the pattern can do.
    pub analysis: Analysis,
    /// How far the result is from that of full attention.
    pub distance: Distance,
    /// One hop that takes as long, where there are several.
    pub one_hop: Option<OneHop>,
    /// What the hops of head 0 do.
    pub diffused: Diffused,
    /// Bytes of scratch for the batch.
    pub scratch: u64,
    /// From text to callable.
    pub compile_time: Duration,
}

/// Prints the explanation.
///
/// # Errors
/// Those of the compiler, and of the page's file.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    args.html.as_deref().map(npy::check_output).transpose()?;
    let text = options.text(&args.spec.spec)?;
    let (q_len, kv_len) = args.lengths.get();
    let start = Instant::now();
    let spec = options.parse(&args.spec.spec, &text)?;
    let numbers = numbers::of_head_0(&spec, args.alpha.as_deref(), args.theta.as_deref())?;
    let diffused = Diffused::new(&spec, numbers.as_deref());
    let compiler_options = options.predicting_compiler()?;
    let compiled = compiler::compile(&spec, q_len, kv_len, &compiler_options)?;
    warn_of(&compiled);
    let compile_time = start.elapsed();
    let pool = options.pool()?;
    let (analysis, distance) = look(&spec, &compiled, numbers.as_deref(), &compiler_options, &pool)?;
    let one_hop = one_hop::of_equal_cost(&spec, &compiled, &compiler_options)?;
    let scratch = compiled.kernel.scratch_bytes(args.batch);
    let (spec, compiled) = (&spec, &compiled);
    let explained = Explained { spec, compiled, analysis, distance, one_hop, diffused, scratch, compile_time };
    if let Some(path) = &args.html {
        let page = pool.install(|| page::page(&explained, options))?;
        files::write(path, page.as_bytes())?;
    }
    let exchange = match args.world {
        Some(world) => Some(processes(spec, (q_len, kv_len), world.into(), options)?),
        None => None,
    };
    if args.json {
        let mut value = json(&explained, args, options)?;
        if let (Some(exchange), Some(object)) = (&exchange, value.as_object_mut()) {
            object.insert("processes".into(), of_processes(exchange));
        }
        return print(&format!("{value:#}\n"));
    }
    let stored = if spec.dtype.is_f32() { String::new() } else { format!(", tensors in {}", spec.dtype) };
    let title = format!("{}: {q_len} queries, {kv_len} keys, {} heads{stored}\n\n", spec.name, spec.heads);
    let processes = exchange.map_or_else(String::new, |exchange| format!("\n{}", exchange.text()));
    print(&(title + &text::text(&explained) + &processes))
}

/// What moves between processes.
fn processes(spec: &PatternSpec, (q_len, kv_len): (usize, usize), world: usize, options: &Global) -> Result<Exchange> {
    if q_len != kv_len {
        let given = format!("{q_len} queries and {kv_len} keys over many processes");
        return Err(Error::unsupported(given, "as many queries as keys: `-n N`"));
    }
    Exchange::new(spec, q_len, world, options.memory_limit())
}

fn of_processes(exchange: &Exchange) -> serde_json::Value {
    json!({
        "world": exchange.world(),
        "bytes": exchange.bytes(),
        "rounds": exchange.rounds(),
        "all_gather_bytes": exchange.all_gather_bytes(),
        "slices": exchange.slices.iter().map(|rows| [rows.start, rows.end]).collect::<Vec<_>>(),
    })
}

/// What a pattern can do, and how far that is from full attention: at once, since either leaves cores idle at times.
/// `numbers` are what the hops of head 0 take from a call, if they are known.
///
/// # Errors
/// As [`distance`].
pub fn look(
    spec: &PatternSpec,
    compiled: &Compiled,
    numbers: Option<&[f64]>,
    options: &Options,
    pool: &rayon::ThreadPool,
) -> Result<(Analysis, Distance)> {
    let diffused = Diffused::new(spec, numbers);
    let analyse = || analysis::analyse(&compiled.pattern, &compiled.mask, spec, &diffused, options.memory_limit);
    let distance = || distance(spec, compiled, numbers, options, pool);
    let (analysis, distance) = pool.install(|| rayon::join(analyse, distance));
    Ok((analysis, distance?))
}

fn json(explained: &Explained<'_>, args: &Args, options: &Global) -> Result<serde_json::Value> {
    let Explained { spec, compiled, analysis, distance, one_hop, scratch, compile_time, .. } = explained;
    let plan = compiled.kernel.plan();
    let mut value = serde_json::to_value(analysis)
        .map_err(|error| Error::internal("explain", error.to_string(), format!("{analysis:?}")))?;
    let steps: serde_json::Map<_, _> =
        compiled.timings.iter().map(|(step, time)| ((*step).to_string(), json!(ms(*time)))).collect();
    if let Some(object) = value.as_object_mut() {
        object.extend([
            ("spec".into(), json!(spec.name)),
            ("dtype".into(), json!(spec.dtype)),
            ("hops".into(), json!(spec.diffusion.hops())),
            ("batch".into(), json!(args.batch)),
            ("threads".into(), json!(options.threads())),
            ("isa".into(), json!(plan.isa)),
            ("strategy".into(), json!(plan.strategy.to_string())),
            ("edge_cost".into(), json!(EdgeRule::default().edge_cost)),
            ("tuned_by".into(), json!(compiled.tuned_by)),
            ("predicted_ms".into(), json!(compiled.forecast.map(|forecast| forecast.seconds * 1e3))),
            ("reasons".into(), json!(plan.reasons)),
            ("nest".into(), json!(plan.body.to_string())),
            ("scratch_bytes".into(), json!(scratch)),
            ("score_mods".into(), json!(mod_names(plan.mods.as_ref()))),
            ("compile_ms".into(), json!(ms(*compile_time))),
            ("compile_steps_ms".into(), json!(steps)),
            ("full_attention_distance".into(), json!(distance)),
            ("one_hop_of_equal_cost".into(), json!(one_hop)),
        ]);
    }
    Ok(value)
}

fn mod_names(plan: Option<&ModsPlan>) -> Vec<&'static str> {
    plan.map_or_else(Vec::new, |plan| plan.mods.mods.iter().map(|score_mod| score_mod.name()).collect())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

//! `bench`: the compiled kernel against the baselines, in turn, in one run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::Array4;
use serde_json::json;

use super::case_inputs::Inputs;
use super::files;
use super::inputs::say_made_up;
use super::options::{Global, length, seconds};
use super::say::{print, progress, warn_of};
use super::tensors::{AXES, Extents, Files, fits};
use crate::baselines::{BASELINES, Baseline};
use crate::compiler;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::spec::PatternSpec;
use crate::{machine, npy};

mod case;
mod page;
mod report;
mod strategies;

use case::{Case, Row};
use strategies::Compared;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Specs in YAML, or names of shipped patterns; - reads standard input
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<PathBuf>,
    /// Lengths, on random inputs
    #[arg(short = 'n', value_name = "N,...", value_parser = length, value_delimiter = ',', required_unless_present_any = ["q", "kv_len"])]
    lengths: Vec<usize>,
    /// Queries, where they are not as many as keys: 1 for decoding
    #[arg(long, value_name = "M", value_parser = length, conflicts_with = "q")]
    q_len: Option<usize>,
    /// Keys, in place of -n
    #[arg(long, value_name = "N,...", value_parser = length, value_delimiter = ',', conflicts_with_all = ["q", "lengths"], requires = "q_len")]
    kv_len: Vec<usize>,
    /// Sequences at a time, on random inputs
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Queries to measure on, instead of random inputs
    #[arg(long, value_name = "Q.npy", requires_all = ["k", "v"], conflicts_with_all = ["lengths", "batch"])]
    q: Option<PathBuf>,
    /// Keys to measure on
    #[arg(long, value_name = "K.npy", requires = "q")]
    k: Option<PathBuf>,
    /// Values to measure on
    #[arg(long, value_name = "V.npy", requires = "q")]
    v: Option<PathBuf>,
    /// An output to compare with, besides the interpreter's
    #[arg(long, value_name = "OUT.npy", requires = "q")]
    expected: Option<PathBuf>,
    /// Baselines to measure against, all of them where it is not given; `none` for none
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    baseline: Vec<String>,
    /// Where the machine and all rows go, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where a page with charts of the run goes
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Measure every legal strategy beside what the cost model predicts, instead of baselines
    #[arg(long, conflicts_with_all = ["baseline", "strategy", "q"])]
    all_strategies: bool,
    /// Hops to measure with, in place of the spec's: sets diffusion.hops
    #[arg(long, value_name = "K,...", value_delimiter = ',')]
    hops: Vec<usize>,
    /// With --all-strategies: only a line for each case, and how often the planner chose well
    #[arg(long, requires = "all_strategies")]
    summary: bool,
    /// About how long each implementation is measured in each case
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    time: Duration,
}

/// Measures every spec at every length and prints a table for each.
///
/// # Errors
/// What is wrong with specs, files and options; nothing is measured where an argument is wrong.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let baselines = chosen(&args.baseline)?;
    for path in [&args.json, &args.html].into_iter().flatten() {
        npy::check_output(path)?;
    }
    let compiler_options = if args.all_strategies { options.predicting_compiler()? } else { options.compiler()? };
    let pool = options.pool()?;
    let bar = progress_bar();
    // All specs are read before the first is measured.
    let texts: Vec<String> = args.specs.iter().map(|path| options.text(path)).collect::<Result<_>>()?;
    // Without --hops a spec has its own.
    let hops: Vec<Option<usize>> = match args.hops[..] {
        [] => vec![None],
        _ => args.hops.iter().copied().map(Some).collect(),
    };
    let mut specs: Vec<(usize, Option<usize>, PatternSpec)> = Vec::new();
    for (at, (path, text)) in args.specs.iter().zip(&texts).enumerate() {
        for &hops in &hops {
            specs.push((at, hops, options.parse_with_hops(path, text, hops)?));
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for (at, hops, spec) in &specs {
        say_made_up(spec);
        for (extents, given) in inputs(args, spec)? {
            Inputs::check_memory(spec, extents, compiler_options.memory_limit)?;
            let start = Instant::now();
            let spec = &options.parse_with_hops(&args.specs[*at], &texts[*at], *hops)?;
            let compiled = compiler::compile(spec, extents.q_len, extents.kv_len, &compiler_options)?;
            let compile_time = start.elapsed();
            warn_of(&compiled);
            let measured_on = match &given {
                Some(given) => Inputs::read(spec, &given.files, extents)?,
                None => Inputs::random(spec, extents, 0)?,
            };
            let expected = given.as_ref().and_then(|given| given.expected.as_ref());
            let expected = expected.map(|path| read_widened(path, spec.dtype)).transpose()?;
            let case = Case {
                spec,
                extents,
                compiled: &compiled,
                compile_time,
                options: &compiler_options,
                inputs: &measured_on,
                expected: expected.as_ref(),
            };
            let progress = |what: &str| {
                bar.set_message(format!("{} n {}: {what}", spec.name, extents.kv_len));
                bar.tick();
            };
            let gap = if rows.is_empty() { "" } else { "\n" };
            let (measured, text) = if args.all_strategies {
                let Compared { rows, text } = strategies::compare(&case, args.time, &progress)?;
                (rows, text)
            } else {
                let outcome = case.measure(&baselines, &pool, args.time, &progress)?;
                let text = report::table(&case, &outcome);
                (outcome.rows, text)
            };
            if !args.summary {
                bar.suspend(|| print(&format!("{gap}{text}")))?;
            }
            rows.extend(measured);
        }
    }
    bar.finish_and_clear();
    if args.all_strategies {
        print(&format!("{}{}", if args.summary { "" } else { "\n" }, strategies::summary(&rows)))?;
    }
    if let Some(path) = &args.json {
        write_json(path, &rows, options)?;
    }
    if let Some(path) = &args.html {
        files::write(path, page::page(&rows, options.threads()).as_bytes())?;
    }
    Ok(())
}

/// Tensors that were given, already checked against a spec.
struct Given {
    files: Files,
    expected: Option<PathBuf>,
}

/// What to measure a spec on: each length with random inputs, or the files that were given.
fn inputs(args: &Args, spec: &PatternSpec) -> Result<Vec<(Extents, Option<Given>)>> {
    let (Some(q), Some(k), Some(v)) = (&args.q, &args.k, &args.v) else {
        let at = |&n: &usize| (Extents { batch: args.batch, q_len: args.q_len.unwrap_or(n), kv_len: n }, None);
        return Ok(args.lengths.iter().chain(&args.kv_len).map(at).collect());
    };
    let files = Files { q: q.clone(), k: k.clone(), v: v.clone() };
    let extents = files.check(spec)?;
    if let Some(path) = &args.expected {
        let found = npy::check(path, &AXES, spec.dtype)?.shape;
        let Extents { batch, q_len, .. } = extents;
        let expected = [("batch", batch), ("heads", spec.heads), ("q_len", q_len), ("value_dim", spec.value_dim)];
        fits("expected", path, &found, expected)?;
    }
    Ok(vec![(extents, Some(Given { files, expected: args.expected.clone() }))])
}

/// A tensor of `dtype`, in f32.
fn read_widened(path: &Path, dtype: Dtype) -> Result<Array4<f32>> {
    match dtype {
        Dtype::F32 => npy::read(path),
        Dtype::Bf16 => npy::read(path).map(|tensor: Array4<bf16>| tensor.mapv(bf16::to_f32)),
        Dtype::F16 => npy::read(path).map(|tensor: Array4<f16>| tensor.mapv(f16::to_f32)),
    }
}

/// The baselines named, or all.
fn chosen(names: &[String]) -> Result<Vec<&'static Baseline>> {
    if names.is_empty() {
        return Ok(BASELINES.iter().collect());
    }
    if names == ["none"] {
        return Ok(Vec::new());
    }
    names.iter().map(|name| Baseline::find(name)).collect()
}

/// A spinner on a terminal, and nothing in a pipe.
fn progress_bar() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {elapsed} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    progress(ProgressBar::new_spinner().with_style(style))
}

/// Writes machine and rows, whole or not at all.
fn write_json(path: &Path, rows: &[Row], options: &Global) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| Error::Input {
        path: path.into(),
        message: format!("cannot be written: {error}"),
    };
    let mut machine = serde_json::to_value(machine::describe()).map_err(|error| wrong(&error))?;
    if let Some(object) = machine.as_object_mut() {
        object.insert("threads".into(), json!(options.threads()));
        object.insert("read_gb_per_s".into(), json!(machine::read_bandwidth(options.threads(), 0.2)));
        object.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
    }
    let text = format!("{:#}\n", json!({ "machine": machine, "rows": rows }));
    files::write(path, text.as_bytes())
}

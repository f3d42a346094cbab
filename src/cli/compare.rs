//! `compare`: several specs side by side at one length: what they reach, what they cost, how long they take.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::case_inputs::Inputs;
use super::explain::{Distance, look, share};
use super::inputs::say_made_up;
use super::options::{Global, Lengths, seconds};
use super::say::{print, warn_of};
use super::table::{Align, Table, significant, thousands};
use super::tensors::Extents;
use crate::analysis::Analysis;
use crate::compiler::{self, Compiled};
use crate::error::{Bytes, Error, Result};
use crate::measure::{Contender, in_turn};
use crate::spec::PatternSpec;
use crate::tune::Callable;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Specs in YAML; - reads standard input
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<PathBuf>,
    #[command(flatten)]
    lengths: Lengths,
    /// About how long each is measured, on random inputs; 0 measures nothing
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    time: Duration,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// How long a spec runs before the next has its turn.
const TURN: Duration = Duration::from_millis(50);

/// What is known of one spec.
#[derive(Debug, Serialize)]
struct Entry {
    spec: String,
    file: String,
    #[serde(flatten)]
    analysis: Analysis,
    hops: usize,
    strategy: String,
    scratch_bytes: u64,
    compile_ms: f64,
    predicted_ms: Option<f64>,
    /// Middle of the measured times; `None` where nothing was measured.
    median_ms: Option<f64>,
    runs: usize,
    gflops: Option<f64>,
    full_attention_distance: Distance,
}

/// Compares the specs.
///
/// # Errors
/// What is wrong with specs and options, before anything is measured.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let compiler_options = options.predicting_compiler()?;
    let pool = options.pool()?;
    let (q_len, kv_len) = args.lengths.get();
    let extents = Extents { batch: 1, q_len, kv_len };
    let mut specs: Vec<(PatternSpec, Compiled, f64)> = Vec::new();
    for path in &args.specs {
        let text = options.text(path)?;
        let start = Instant::now();
        let spec = options.parse(path, &text)?;
        let compiled = compiler::compile(&spec, q_len, kv_len, &compiler_options)?;
        let compile_ms = start.elapsed().as_secs_f64() * 1e3;
        warn_of(&compiled);
        specs.push((spec, compiled, compile_ms));
    }
    let mut entries = Vec::new();
    for (spec, compiled, compile_ms) in &specs {
        let (analysis, full_attention_distance) = look(spec, compiled, None, &compiler_options, &pool)?;
        entries.push(Entry {
            spec: spec.name.clone(),
            file: spec.source.file.clone(),
            hops: spec.diffusion.hops(),
            strategy: compiled.kernel.plan().strategy.to_string(),
            scratch_bytes: compiled.kernel.scratch_bytes(1),
            compile_ms: *compile_ms,
            predicted_ms: compiled.forecast.map(|forecast| forecast.seconds * 1e3),
            median_ms: None,
            runs: 0,
            gflops: None,
            full_attention_distance,
            analysis,
        });
    }
    if args.time > Duration::ZERO {
        measure(&specs, extents, args.time, compiler_options.memory_limit, &mut entries)?;
    }
    if args.json {
        let value = serde_json::to_value(&entries)
            .map_err(|error| Error::internal("compare", error.to_string(), format!("{entries:?}")))?;
        return print(&format!("{value:#}\n"));
    }
    let lengths = if q_len == kv_len {
        thousands(kv_len as u64)
    } else {
        format!("{} and {}", thousands(q_len as u64), thousands(kv_len as u64))
    };
    print(&format!("{lengths} tokens, {} threads\n\n{}", options.threads(), table(&entries)))
}

/// Runs all kernels in turn, each on inputs of its own shape.
fn measure(
    specs: &[(PatternSpec, Compiled, f64)],
    extents: Extents,
    budget: Duration,
    limit: u64,
    entries: &mut [Entry],
) -> Result<()> {
    let bytes: u64 = specs.iter().map(|(spec, ..)| extents.bytes(spec)).sum();
    if bytes > limit {
        return Err(Error::Memory { what: "holding q, k, v and the output of all specs".into(), given: bytes, limit });
    }
    specs.iter().for_each(|(spec, ..)| say_made_up(spec));
    let inputs: Vec<Inputs> = specs.iter().map(|(spec, ..)| Inputs::random(spec, extents, 0)).collect::<Result<_>>()?;
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for ((spec, compiled, _), inputs) in specs.iter().zip(&inputs) {
        // The first run pays for warming up.
        drop(inputs.first(compiled)?);
        contenders.push(Contender { name: &spec.name, run: inputs.call(compiled) });
    }
    let times = in_turn(&mut contenders, budget, TURN, |_, _| {})?;
    for (entry, times) in entries.iter_mut().zip(&times) {
        entry.median_ms = Some(times.median());
        entry.runs = times.runs();
        entry.gflops = Some(entry.analysis.flops as f64 / times.median() * 1e-6).filter(|gflops| gflops.is_finite());
    }
    Ok(())
}

/// A column for each spec.
fn table(entries: &[Entry]) -> String {
    let mut table = Table::new([vec![Align::Left], vec![Align::Right; entries.len()]].concat());
    let mut row = |name: &str, cell: &dyn Fn(&Entry) -> String| {
        table.row([name.to_string()].into_iter().chain(entries.iter().map(cell)));
    };
    let percent = |share: f64| format!("{} %", significant(100.0 * share));
    let some = |number: Option<f64>| number.map_or_else(|| "–".into(), significant);
    row("", &|entry| entry.spec.clone());
    row("allowed pairs", &|entry| percent(entry.analysis.density));
    row("hops", &|entry| entry.hops.to_string());
    row("reached after 1 hop", &|entry| {
        entry.analysis.receptive_field.hops.first().map_or_else(|| "–".into(), |reach| percent(reach.mean))
    });
    row("after the last hop", &|entry| {
        entry.analysis.receptive_field.hops.last().map_or_else(|| "–".into(), |reach| percent(reach.mean))
    });
    row("at least", &|entry| {
        entry.analysis.receptive_field.hops.last().map_or_else(|| "–".into(), |reach| percent(reach.minimum))
    });
    row("hops to all it can reach", &|entry| {
        entry.analysis.reach_everything.as_ref().map_or_else(|| "–".into(), |reach| reach.hops.to_string())
    });
    let number = |number: Option<f64>| number.map_or_else(|| "–".into(), share);
    row("spectral gap", &|entry| number(entry.analysis.spectral_gap.spectral_gap));
    row("of the diffused operator", &|entry| number(entry.analysis.spectral_gap.diffused_gap));
    row("far weight, back", &|entry| number(entry.analysis.far_weight.map(|far| far.back)));
    row("far weight, ahead", &|entry| number(entry.analysis.far_weight.map(|far| far.ahead)));
    row("distance to full", &|entry| some(entry.full_attention_distance.value));
    row("useful GF", &|entry| significant(entry.analysis.flops as f64 * 1e-9));
    row("strategy", &|entry| entry.strategy.clone());
    row("scratch", &|entry| Bytes(entry.scratch_bytes).to_string());
    row("compile ms", &|entry| significant(entry.compile_ms));
    row("predicted ms", &|entry| some(entry.predicted_ms));
    row("measured ms", &|entry| some(entry.median_ms));
    row("GF/s", &|entry| some(entry.gflops));
    let mut text = table.indented(0);
    for entry in entries {
        let notes = [
            &entry.analysis.receptive_field.note,
            &entry.analysis.spectral_gap.spectral_gap_note,
            &entry.full_attention_distance.note,
        ];
        for note in notes.into_iter().filter(|note| !note.is_empty()) {
            text += &format!("{}: {note}\n", entry.spec);
        }
    }
    text
}

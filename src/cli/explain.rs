//! `explain`: what a pattern costs, how far it reaches, and which plan was chosen and why.

use std::time::{Duration, Instant};

use serde_json::json;

use super::options::{Global, Lengths, SpecArg, text};
use super::print;
use super::table::{Align, Table, milliseconds, significant, thousands};
use crate::analysis::{self, Analysis};
use crate::compiler::{self, Compiled};
use crate::error::{Bytes, Error, Result};
use crate::mask::{BlockMask, EdgeRule, HeadMask, Keys, RowRun};
use crate::plan::{ModsBy, ModsPlan};

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
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Prints the explanation.
///
/// # Errors
/// Those of the compiler.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let text = text(&args.spec.spec)?;
    let (q_len, kv_len) = args.lengths.get();
    let start = Instant::now();
    let spec = options.parse(&args.spec.spec, &text)?;
    let compiled = compiler::compile(&spec, q_len, kv_len, &options.predicting_compiler()?)?;
    super::warn_of(&compiled);
    let compile_time = start.elapsed();
    let analysis =
        options.pool()?.install(|| analysis::analyse(&compiled.pattern, &compiled.mask, &spec, options.memory_limit()));
    let (plan, scratch) = (compiled.kernel.plan(), compiled.kernel.scratch_bytes(args.batch));
    if args.json {
        let mut value = serde_json::to_value(&analysis)
            .map_err(|error| Error::internal("explain", error.to_string(), format!("{analysis:?}")))?;
        let steps: serde_json::Map<_, _> =
            compiled.timings.iter().map(|(step, time)| ((*step).to_string(), json!(ms(*time)))).collect();
        if let Some(object) = value.as_object_mut() {
            object.extend([
                ("spec".into(), json!(spec.name)),
                ("dtype".into(), json!(spec.dtype)),
                ("hops".into(), json!(spec.diffusion.hops.len())),
                ("batch".into(), json!(args.batch)),
                ("threads".into(), json!(options.threads())),
                ("isa".into(), json!(plan.isa)),
                ("strategy".into(), json!(plan.strategy.to_string())),
                ("edge_cost".into(), json!(EdgeRule::default().edge_cost)),
                ("tuned_by".into(), json!(compiled.tuned_by)),
                ("predicted_ms".into(), json!(compiled.forecast.map(|forecast| forecast.seconds * 1e3))),
                ("reasons".into(), json!(plan.reasons)),
                ("scratch_bytes".into(), json!(scratch)),
                ("score_mods".into(), json!(mod_names(plan.mods.as_ref()))),
                ("compile_ms".into(), json!(ms(compile_time))),
                ("compile_steps_ms".into(), json!(steps)),
            ]);
        }
        return print(&format!("{value:#}\n"));
    }
    let stored = if spec.dtype.is_f32() { String::new() } else { format!(", tensors in {}", spec.dtype) };
    let title = format!("{}: {q_len} queries, {kv_len} keys, {} heads{stored}\n\n", spec.name, spec.heads);
    print(&(title + &human(&analysis, &compiled, scratch, compile_time)))
}

fn human(analysis: &Analysis, compiled: &Compiled, scratch: u64, compile_time: Duration) -> String {
    let plan = compiled.kernel.plan();
    let mut table = Table::new([Align::Left, Align::Left]);
    let blocks = &analysis.blocks;
    table.row([
        "allowed pairs".to_string(),
        format!("{} ({} % of all)", thousands(analysis.nnz), significant(100.0 * analysis.density)),
    ]);
    table.row(["useful work", &format!("{} GF per sequence", significant(analysis.flops as f64 * 1e-9))]);
    table.row([
        "blocks".to_string(),
        format!(
            "{} full, {} partial, {} scattered edges",
            thousands(blocks.full),
            thousands(blocks.partial),
            thousands(blocks.scattered_edges)
        ),
    ]);
    if let Some(border) = border_of_edges(&compiled.schedule.neighbors) {
        table.row(["".to_string(), border]);
    }
    table.row(["empty rows".to_string(), thousands(analysis.empty_rows)]);
    for reach in &analysis.receptive_field.hops {
        table.row([
            format!("keys after hop {}", reach.hop),
            format!(
                "{} % on average, {} % at least",
                significant(100.0 * reach.mean),
                significant(100.0 * reach.minimum)
            ),
        ]);
    }
    if !analysis.receptive_field.note.is_empty() {
        table.row(["", analysis.receptive_field.note.as_str()]);
    }
    let gap = &analysis.spectral_gap;
    let note = gap.spectral_gap_note.as_str();
    table.row([
        "spectral gap".to_string(),
        match gap.spectral_gap {
            Some(gap) if note.is_empty() => significant(gap),
            Some(gap) => format!("{} ({note})", significant(gap)),
            None => format!("none: {note}"),
        },
    ]);
    if let Some(mods) = &plan.mods {
        table.row(["score mods".to_string(), describe_mods(mods, analysis.nnz)]);
    }
    table.row(["tiles".to_string(), plan.isa.to_string()]);
    table.row(["strategy".to_string(), plan.choice().to_string()]);
    for reason in &plan.reasons {
        table.row(["", reason.as_str()]);
    }
    table.row(["scratch".to_string(), Bytes(scratch).to_string()]);
    let steps: Vec<String> =
        compiled.timings.iter().map(|(step, time)| format!("{step} {}", significant(ms(*time)))).collect();
    table.row(["compiled in".to_string(), format!("{} ({})", milliseconds(compile_time), steps.join(", "))]);
    table.indented(0)
}

/// Which of the pairs outside wholly allowed runs are edges, and which stand in columns of panels, by which prices;
/// `None` where nothing had to be decided.
fn border_of_edges(neighbors: &BlockMask) -> Option<String> {
    let rule = EdgeRule::default();
    let edges = neighbors.counts().scattered_edges;
    let columns = |mask: &HeadMask| -> u64 {
        let listed = |run: &RowRun| {
            let lists = run.segments.iter().filter(|segment| matches!(segment.keys, Keys::List { .. }));
            u64::from(run.count) * lists.map(|segment| mask.segment_len(segment, 0) as u64).sum::<u64>()
        };
        mask.rows.iter().map(listed).sum()
    };
    let kept: u64 = neighbors.mask_of_head.iter().map(|&mask| columns(&neighbors.masks[mask as usize])).sum();
    (edges + kept > 0).then(|| {
        format!(
            "an edge costs {} dense elements, a column by itself {} more than its own: {} edges stay, {} columns are kept",
            rule.edge_cost,
            rule.column_cost,
            thousands(edges),
            thousands(kept)
        )
    })
}

fn mod_names(plan: Option<&ModsPlan>) -> Vec<&'static str> {
    plan.map_or_else(Vec::new, |plan| plan.mods.mods.iter().map(|score_mod| score_mod.name()).collect())
}

/// Names and cost of the score mods.
fn describe_mods(plan: &ModsPlan, nnz: u64) -> String {
    let names = mod_names(Some(plan));
    let operations = plan.mods.operations();
    let by = match plan.by {
        ModsBy::Code => "code with 128-bit vectors",
        ModsBy::Softcap | ModsBy::Alibi => "a tile",
    };
    let all = significant(operations as f64 * nnz as f64 * 1e-9);
    format!("{}: {operations} operations a pair, {all} G per sequence, by {by}", names.join(", "))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

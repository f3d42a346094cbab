//! What is known of a pattern, as text for people.

use super::{Explained, mod_names, ms};
use crate::analysis::{Balance, FarWeight, Place, Reach, ReachEverything, SpectralGap};
use crate::cli::table::{Align, Table, milliseconds, significant, thousands};
use crate::error::Bytes;
use crate::mask::{BlockMask, EdgeRule, HeadMask, Keys, RowRun};
use crate::plan::{ModsBy, ModsPlan};
use crate::program::Body;

/// Lines of a nest that are shown.
const NEST_LINES: usize = 60;

/// The lines of a table: names, and what there is to say.
pub fn text(explained: &Explained<'_>) -> String {
    let mut table = Table::new([Align::Left, Align::Left]);
    for (name, value) in lines(explained) {
        table.row([name, value]);
    }
    table.indented(0)
}

/// Names with what there is to say; a line without a name goes on with the one before.
pub fn lines(explained: &Explained<'_>) -> Vec<(String, String)> {
    let Explained { analysis, compiled, .. } = explained;
    let plan = compiled.kernel.plan();
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| lines.push((name.into(), value));
    let blocks = &analysis.blocks;
    add("allowed pairs", format!("{} ({} % of all)", thousands(analysis.nnz), significant(100.0 * analysis.density)));
    add("useful work", format!("{} GF per sequence", significant(analysis.flops as f64 * 1e-9)));
    add(
        "blocks",
        format!(
            "{} full, {} partial, {} scattered edges",
            thousands(blocks.full),
            thousands(blocks.partial),
            thousands(blocks.scattered_edges)
        ),
    );
    if let Some(border) = border_of_edges(&compiled.program.neighbors) {
        add("", border);
    }
    add("empty rows", thousands(analysis.empty_rows));
    if let Some(balance) = &analysis.balance {
        add("keys of a query", balance_text(balance));
        add(
            "",
            format!(
                "the busiest tenth of the queries has {} % of the pairs, the dearest block row {} times the mean work",
                significant(100.0 * balance.busiest_tenth),
                significant(balance.block_row_peak)
            ),
        );
    }
    let endless = explained.spec.diffusion.is_endless() && analysis.receptive_field.hops.len() == 1;
    for reach in &analysis.receptive_field.hops {
        let name = if endless { "keys in the end".into() } else { format!("keys after hop {}", reach.hop) };
        add(&name, reach_text(reach, analysis.heads));
    }
    if !analysis.receptive_field.note.is_empty() {
        add("", analysis.receptive_field.note.clone());
    }
    if let Some(everything) = &analysis.reach_everything {
        add("all it can reach", everything_text(everything, analysis.heads));
    }
    if let Some(far) = &analysis.far_weight {
        add("far weight", far_text(far));
    }
    let gap = &analysis.spectral_gap;
    add("spectral gap", gap_text(gap));
    if let Some(diffused) = gap.diffused_gap {
        add("", format!("{} of the diffused operator, in closed form from λ2", share(diffused)));
    }
    add("distance to full", explained.distance.text());
    if let Some(one_hop) = &explained.one_hop {
        add("one hop instead", one_hop.text());
    }
    if let Some(mods) = &plan.mods {
        add("score mods", describe_mods(mods, analysis.nnz));
    }
    add("tiles", plan.isa.to_string());
    add("strategy", plan.choice().to_string());
    for reason in &plan.reasons {
        add("", reason.clone());
    }
    for (at, line) in nest(&plan.body).into_iter().enumerate() {
        add(if at == 0 { "nest" } else { "" }, line);
    }
    add("scratch", Bytes(explained.scratch).to_string());
    let steps: Vec<String> =
        compiled.timings.iter().map(|(step, time)| format!("{step} {}", significant(ms(*time)))).collect();
    add("compiled in", format!("{} ({})", milliseconds(explained.compile_time), steps.join(", ")));
    lines
}

/// The loops of a kernel, and what they keep beyond a block row; of a long one, the beginning.
fn nest(body: &Body) -> Vec<String> {
    let text = body.to_string();
    let of_row = |line: &&str| {
        let ends = |end: &str| line.ends_with(end);
        line.starts_with("keep ") && (line.contains(" tensor ") || ends(" row") || ends(" keys"))
    };
    let lines: Vec<&str> = text.lines().filter(|line| !of_row(line)).collect();
    let mut shown: Vec<String> = lines.iter().take(NEST_LINES).map(|&line| line.to_owned()).collect();
    if lines.len() > NEST_LINES {
        shown.push(format!("… {} more lines", lines.len() - NEST_LINES));
    }
    shown
}

fn balance_text(balance: &Balance) -> String {
    format!(
        "{} on average, {} to {}",
        significant(balance.mean_keys),
        thousands(u64::from(balance.fewest_keys)),
        thousands(u64::from(balance.most_keys))
    )
}

fn reach_text(reach: &Reach, heads: usize) -> String {
    format!(
        "{} % on average, {} % at least ({})",
        significant(100.0 * reach.mean),
        significant(100.0 * reach.minimum),
        place(reach.worst, heads)
    )
}

/// A query, and its head where there are several.
fn place(place: Place, heads: usize) -> String {
    let of_head = if heads == 1 { String::new() } else { format!(" of head {}", place.head) };
    format!("query {}{of_head}", thousands(place.query as u64))
}

/// How far paths of any length lead.
fn everything_text(everything: &ReachEverything, heads: usize) -> String {
    let hops = everything.hops;
    let slowest = place(everything.slowest, heads);
    let mut text = format!("after {hops} {} (slowest: {slowest})", if hops == 1 { "hop" } else { "hops" });
    match everything.least {
        None => text += "; every query reaches every key",
        Some((least, keys)) => {
            text += &format!(
                "; {} of {} queries never reach every key, {} only {}",
                thousands(everything.never_all as u64),
                thousands(everything.followed as u64),
                place(least, heads),
                thousands(keys as u64)
            );
        }
    }
    if !everything.all_followed {
        text += &format!("; {} queries were followed", everything.followed);
    }
    text
}

/// What far tokens give to each other.
fn far_text(far: &FarWeight) -> String {
    format!(
        "{} from the last quarter to the first, {} the other way; {} with full attention",
        share(far.back),
        share(far.ahead),
        share(far.full)
    )
}

/// A number that may be tiny.
pub fn share(share: f64) -> String {
    match share {
        0.0 => "0".into(),
        x if x.abs() < 1e-3 => format!("{x:.1e}"),
        x => significant(x),
    }
}

/// The gap, how sure it is, or why there is none.
fn gap_text(gap: &SpectralGap) -> String {
    let note = gap.spectral_gap_note.as_str();
    let Some(number) = gap.spectral_gap else { return format!("none: {note}") };
    let residual = match gap.spectral_gap_residual {
        Some(0.0) | None => "exact".into(),
        Some(residual) => format!("residual {residual:.0e}"),
    };
    if note.is_empty() {
        format!("{} ({residual})", share(number))
    } else {
        format!("{} ({residual}; {note})", share(number))
    }
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

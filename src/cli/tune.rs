//! `tune`: the fastest plan for a spec at its lengths, measured and kept.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::case_inputs::Inputs;
use super::inputs::say_made_up;
use super::options::{Global, length};
use super::say::{print, progress};
use super::table::{Align, Table, significant, thousands};
use super::tensors::Extents;
use crate::cache::Cache;
use crate::error::{Bytes, Result};
use crate::plan::Choice;
use crate::spec::PatternSpec;
use crate::tune::{Findings, Search, search};
use crate::tuned::{Found, Problem};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Specs in YAML, or names of shipped patterns; - reads standard input
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<PathBuf>,
    /// Lengths to tune for
    #[arg(short = 'n', value_name = "N,...", value_parser = length, value_delimiter = ',', required_unless_present = "kv_len")]
    lengths: Vec<usize>,
    /// Queries, where they are not as many as keys
    #[arg(long, value_name = "M", value_parser = length)]
    q_len: Option<usize>,
    /// Keys, in place of -n
    #[arg(long, value_name = "N,...", value_parser = length, value_delimiter = ',', conflicts_with = "lengths", requires = "q_len")]
    kv_len: Vec<usize>,
    /// How long to measure for each length; 0 is refused, since nothing could be found in it
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = budget)]
    budget: Duration,
    /// Show every candidate with its times
    #[arg(long)]
    explain: bool,
}

/// Tunes every spec at every length and keeps what was found.
///
/// # Errors
/// What is wrong with specs and options, before anything is measured; a cache that cannot be written.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let cache = Cache::required()?;
    // Before minutes of measuring, not after.
    cache.check_writable()?;
    let compiler_options = options.predicting_compiler()?;
    let texts: Vec<String> = args.specs.iter().map(|path| options.text(path)).collect::<Result<_>>()?;
    let specs: Vec<PatternSpec> =
        args.specs.iter().zip(&texts).map(|(path, text)| options.parse(path, text)).collect::<Result<_>>()?;
    let bar = bar();
    for spec in &specs {
        for &n in args.lengths.iter().chain(&args.kv_len) {
            let extents = Extents { batch: 1, q_len: args.q_len.unwrap_or(n), kv_len: n };
            Inputs::check_memory(spec, extents, compiler_options.memory_limit)?;
            say_made_up(spec);
            let inputs = Inputs::random(spec, extents, 0)?;
            let findings = search(&Search {
                spec,
                q_len: extents.q_len,
                kv_len: extents.kv_len,
                options: &compiler_options,
                budget: args.budget,
                batch: extents.batch,
                tensors: &inputs,
                progress: &|share, what| {
                    bar.set_position((share * 1000.0) as u64);
                    bar.set_message(format!("{} n {n}: {what}", spec.name));
                },
            })?;
            let problem = Problem {
                spec,
                q_len: extents.q_len,
                kv_len: extents.kv_len,
                isa: compiler_options.isa,
                threads: compiler_options.threads,
            };
            let (median_ms, model_ms) = findings.times();
            let (choice, model) = (findings.winner().choice, findings.candidates[0].choice);
            let path = problem.keep(&cache, Found { choice, model, median_ms, model_ms })?;
            let heading = format!("{}: n {}, {} threads\n", spec.name, thousands(n as u64), compiler_options.threads);
            let table = if args.explain { table(&findings) } else { String::new() };
            let kept = format!("kept in {}\n", path.display());
            bar.suspend(|| print(&format!("{heading}{table}{}{kept}", verdict(&findings))))?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Every candidate, fastest first.
fn table(findings: &Findings) -> String {
    let mut table = Table::new([Align::Left, Align::Right, Align::Right, Align::Right, Align::Left]);
    table.row(["", "median ms", "runs", "scratch", ""]);
    let mut order: Vec<usize> = (0..findings.candidates.len()).collect();
    let ms = |at: usize| findings.candidates[at].median_ms.unwrap_or(f64::INFINITY);
    order.sort_by(|&a, &b| ms(a).total_cmp(&ms(b)));
    for at in order {
        let candidate = &findings.candidates[at];
        let note = match (&candidate.remark, at) {
            (Some(remark), _) => remark.as_str(),
            (None, 0) => "the cost model's choice",
            (None, _) => "",
        };
        table.row([
            candidate.choice.to_string(),
            candidate.median_ms.map_or_else(|| "–".into(), significant),
            candidate.runs.to_string(),
            match candidate.scratch_bytes {
                0 => "–".into(),
                bytes => Bytes(bytes).to_string(),
            },
            note.to_string(),
        ]);
    }
    table.indented(2) + "  (64 queries a block row in all of them: a mask word has as many bits)\n"
}

/// What was found, in a sentence.
fn verdict(findings: &Findings) -> String {
    let Choice { strategy, .. } = findings.candidates[0].choice;
    let model = format!("the cost model's choice ({})", findings.candidates[0].choice);
    match (&findings.duel, findings.winner) {
        (Some(duel), 1..) => format!(
            "{} takes {} ms, {model} {}: {:.1} % less, faster in {} of {} rounds\n",
            findings.winner().choice,
            significant(duel.challenger_ms),
            significant(duel.model_ms),
            100.0 * (1.0 - duel.ratio),
            duel.won_rounds,
            duel.rounds,
        ),
        (Some(duel), _) => format!(
            "{model} stays: the next takes {:.3} of its time, faster in {} of {} rounds\n",
            duel.ratio, duel.won_rounds, duel.rounds
        ),
        (None, _) if findings.candidates.iter().filter(|candidate| candidate.median_ms.is_some()).count() < 2 => {
            format!("{model} stays: {strategy} is the only plan that was measured\n")
        }
        (None, _) => format!("{model} is the fastest\n"),
    }
}

/// A bar on a terminal, and nothing in a pipe.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:30}] {elapsed} {msg}");
    progress(ProgressBar::new(1000).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
}

fn budget(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        Ok(0.0) => Err("nothing can be measured in 0 seconds; expected more, up to 86400".into()),
        _ => Err("expected seconds above 0, up to 86400".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_seconds_and_not_nothing() {
        assert_eq!(budget("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "0.0", "-1", "nan", "inf", "1e9", "five", ""] {
            assert!(budget(text).is_err(), "{text}");
        }
        assert!(budget("0").unwrap_err().contains("nothing can be measured"));
    }
}

//! `bench --all-strategies`: every legal strategy of a case in turn, beside what the cost model predicts.

use std::time::{Duration, Instant};

use ndarray::Array4;

use super::case::{Case, Peaks, Row, difference};
use crate::cli::table::{Align, Table, significant, thousands};
use crate::compiler::{self, Compiled, Options, TuningSource};
use crate::error::{Bytes, Error, Result};
use crate::measure::{Contender, in_turn};
use crate::passes::Strategy;
use crate::tune::Callable;

/// How long a strategy runs before the next has its turn.
const TURN: Duration = Duration::from_millis(25);
/// What counts as good as the best.
const NEAR: f64 = 1.1;

/// A strategy with its kernel.
struct Entrant {
    strategy: Strategy,
    compiled: Compiled,
    compile_time: Duration,
}

/// Rows of one case: one a strategy, in the order of [`Strategy::ALL`].
pub struct Compared {
    /// The rows.
    pub rows: Vec<Row>,
    /// Table and remarks.
    pub text: String,
}

/// Measures every legal strategy of a case, about `budget` each. The error of a row is its largest difference to the
/// strategy that the planner chose.
///
/// # Errors
/// Those of compiler and kernels. A strategy that is not legal, or needs too much memory, is a row without times.
pub fn compare(case: &Case<'_>, budget: Duration, progress: &dyn Fn(&str)) -> Result<Compared> {
    let nnz = case.compiled.mask.counts().nnz();
    let chosen = case.compiled.kernel.plan().strategy;
    let options = Options { tuning: TuningSource::Nothing, ..case.options.clone() };
    let mut rows = Vec::new();
    let mut entrants = Vec::new();
    for &strategy in Strategy::ALL {
        progress(&format!("{strategy}, compiling"));
        let mut row = case.row("hopweave", nnz, &[], None);
        row.strategy = Some(strategy.to_string());
        row.isa = Some(case.options.isa);
        row.chosen = Some(strategy == chosen);
        let start = Instant::now();
        let asked = Options { strategy: Some(strategy), ..options.clone() };
        match compiler::compile(case.spec, case.extents.q_len, case.extents.kv_len, &asked) {
            Ok(compiled) => entrants.push(Entrant { strategy, compiled, compile_time: start.elapsed() }),
            Err(error @ (Error::Unsupported { .. } | Error::Memory { .. })) => row.skipped = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        rows.push(row);
    }
    let mut of_chosen: Option<Array4<f32>> = None;
    // The chosen one first: the others are compared with it.
    entrants.sort_by_key(|entrant| entrant.strategy != chosen);
    for Entrant { strategy, compiled, compile_time } in &entrants {
        progress(&format!("{strategy}, first run"));
        let out = case.inputs.first(compiled)?;
        let row = &mut rows[position(*strategy)];
        row.compile_ms = Some(compile_time.as_secs_f64() * 1e3);
        row.scratch_bytes = compiled.kernel.scratch_bytes(case.extents.batch);
        row.forecast = compiled.forecast;
        row.predicted_ms = compiled.forecast.map(|forecast| forecast.seconds * 1e3 * case.extents.batch as f64);
        let chosen = of_chosen.get_or_insert_with(|| out.clone());
        let pairs = out.iter().zip(chosen.iter()).map(|(&found, &want)| (found, f64::from(want)));
        row.max_abs_err = Some(pairs.map(difference).fold(0.0, f64::max));
    }
    let mut contenders: Vec<Contender<'_>> = entrants
        .iter()
        .map(|entrant| Contender { name: entrant.strategy.name(), run: case.inputs.call(&entrant.compiled) })
        .collect();
    let mut peaks = Peaks::new(case.options);
    let times = in_turn(&mut contenders, budget, TURN, |name, runs| {
        progress(&format!("{name}, run {}", runs + 1));
        peaks.look();
    })?;
    drop(contenders);
    for (entrant, times) in entrants.iter().zip(&times) {
        case.fill(&mut rows[position(entrant.strategy)], times, nnz, peaks.kernel);
    }
    let text = table(case, &rows);
    Ok(Compared { rows, text })
}

fn position(strategy: Strategy) -> usize {
    Strategy::ALL.iter().position(|&other| other == strategy).unwrap_or(0)
}

fn table(case: &Case<'_>, rows: &[Row]) -> String {
    let mut text = format!("{}, {} threads\n\n", case.heading(), case.options.threads);
    let mut table = Table::new([
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Left,
    ]);
    table.row(["", "predicted ms", "median ms", "predicted / measured", "of peak", "scratch", "difference", ""]);
    let number = |number: Option<f64>| number.map_or_else(|| "–".into(), significant);
    for row in rows.iter().filter(|row| row.skipped.is_none()) {
        table.row([
            row.strategy.clone().unwrap_or_default(),
            number(row.predicted_ms),
            number(row.median_ms),
            number(row.predicted_ms.zip(row.median_ms).map(|(predicted, median)| predicted / median)),
            row.peak_fraction.map_or_else(|| "–".into(), |share| format!("{:.1} %", 100.0 * share)),
            Bytes(row.scratch_bytes).to_string(),
            row.max_abs_err.map_or_else(|| "–".into(), |error| format!("{error:.1e}")),
            if row.chosen == Some(true) { "chosen" } else { "" }.into(),
        ]);
    }
    text += &table.indented(0);
    for row in rows {
        if let Some(reason) = &row.skipped {
            text += &format!("{reason}\n");
        }
    }
    text
}

/// One line for every case of `rows`, and how often the planner chose well.
pub fn summary(rows: &[Row]) -> String {
    let mut table = Table::new([
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
    ]);
    table.row(["", "n", "hops", "chosen", "fastest", "ms", "chosen / fastest", "predicted / measured"]);
    let (mut cases, mut best, mut near) = (0, 0, 0);
    for case in rows.chunk_by(|a, b| (&a.spec, a.n, a.hops, a.q_len) == (&b.spec, b.n, b.hops, b.q_len)) {
        let timed = case.iter().filter_map(|row| Some((row, row.median_ms?)));
        let Some((fastest, least)) = timed.clone().min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        let Some((chosen, ms)) = timed.clone().find(|(row, _)| row.chosen == Some(true)) else { continue };
        let ratio = ms / least;
        cases += 1;
        best += usize::from(ratio <= 1.0);
        near += usize::from(ratio <= NEAR);
        table.row([
            chosen.spec.clone(),
            thousands(chosen.n as u64),
            chosen.hops.to_string(),
            chosen.strategy.clone().unwrap_or_default(),
            fastest.strategy.clone().unwrap_or_default(),
            significant(least),
            format!("{ratio:.3}"),
            chosen.predicted_ms.map_or_else(|| "–".into(), |predicted| format!("{:.2}", predicted / ms)),
        ]);
    }
    let share = |count: usize| if cases == 0 { 0.0 } else { 100.0 * count as f64 / cases as f64 };
    let (best_share, near_share) = (share(best), share(near));
    format!(
        "{}\n{cases} cases: the fastest strategy was chosen in {best} ({best_share:.0} %), it or one within 10 % of it \
         in {near} ({near_share:.0} %)\n",
        table.indented(0)
    )
}

//! A case's rows as a table for people.

use super::case::{Case, Outcome, Row};
use crate::cli::table::{Align, Table, milliseconds, significant, thousands};
use crate::error::Bytes;

/// A heading and the table of one case.
pub fn table(case: &Case<'_>, outcome: &Outcome) -> String {
    let plan = case.compiled.kernel.plan();
    let chosen_by = match &case.compiled.tuned_by {
        Some(path) => format!(", tuned ({})", path.display()),
        None => ", chosen by the cost model".into(),
    };
    let text = format!(
        "{}\n{} threads, FMA peak {} GF/s ({}); compiled in {}, strategy {}{}\n\n",
        case.heading(),
        case.options.threads,
        significant(outcome.peak),
        plan.isa,
        milliseconds(case.compile_time),
        plan.choice(),
        if case.options.strategy.is_some() { String::new() } else { chosen_by },
    );
    text + &rows(&outcome.rows)
}

fn rows(rows: &[Row]) -> String {
    let rivals: Vec<&Row> = rows.iter().skip(1).collect();
    let expected = rows.iter().any(|row| row.expected_abs_err.is_some());
    let mut head: Vec<String> =
        ["", "median ms", "min", "max", "runs", "GF/s", "of peak", "scratch", "error"].map(String::from).into();
    if expected {
        head.push("to expected".into());
    }
    head.extend(rivals.iter().map(|rival| format!("× {}", rival.implementation)));
    let mut align = vec![Align::Right; head.len()];
    align[0] = Align::Left;
    let mut table = Table::new(align);
    table.row(head);
    for row in rows {
        let number = |number: Option<f64>| number.map_or_else(|| "–".into(), significant);
        let mut cells = vec![
            row.implementation.clone(),
            number(row.median_ms),
            number(row.min_ms),
            number(row.max_ms),
            row.runs.to_string(),
            number(row.gflops),
            row.peak_fraction.map_or_else(|| "–".into(), |share| format!("{:.1} %", 100.0 * share)),
            Bytes(row.scratch_bytes).to_string(),
            scientific(row.max_abs_err),
        ];
        if expected {
            cells.push(scientific(row.expected_abs_err));
        }
        // How many times as fast as each baseline.
        cells.extend(rivals.iter().map(|rival| number(rival.median_ms.zip(row.median_ms).map(|(a, b)| a / b))));
        table.row(cells);
    }
    let mut text = table.indented(0);
    for row in rows {
        if let Some(reason) = &row.skipped {
            text += &format!("{} was skipped: {reason}\n", row.implementation);
        }
    }
    if let Some(row) = rows.first() {
        let (compared, all) = (row.compared_rows, row.batch * row.heads * row.q_len);
        text += &match compared {
            0 if all > 0 => "error: unknown; over the hops each row reaches too many others to be interpreted\n".into(),
            _ => format!(
                "error: largest difference to the interpreter (f64) over {} {}\n",
                thousands(compared as u64),
                if compared == all { "rows, all there are" } else { "sampled rows" }
            ),
        };
    }
    text
}

/// An error in two digits.
pub fn scientific(number: Option<f64>) -> String {
    match number {
        None => "–".into(),
        Some(0.0) => "0".into(),
        Some(number) => format!("{number:.1e}"),
    }
}

//! The rows of a run as a page: time and share of peak over the length, for each spec and every implementation.

use maud::{Markup, html};

use super::case::Row;
use super::report::scientific;
use crate::cli::page::chart::{Chart, Scale, Series, bars, chart};
use crate::cli::page::{page as frame, table};
use crate::cli::table::{significant, thousands};
use crate::error::Bytes;

/// Writes the page of a run.
pub fn page(rows: &[Row], threads: usize) -> String {
    // One section for each spec with so many hops, in the order of measuring.
    let mut sections: Vec<((&str, usize), Vec<&Row>)> = Vec::new();
    for row in rows {
        let key = (row.spec.as_str(), row.hops);
        match sections.iter_mut().find(|section| section.0 == key) {
            Some(section) => section.1.push(row),
            None => sections.push((key, vec![row])),
        }
    }
    let peak = rows.iter().map(|row| row.peak_gflops).fold(0.0, f64::max);
    let below = html! {
        p.faint {
            (threads) @if threads == 1 { " thread" } @else { " threads" }
            ", FMA peak " (significant(peak)) " GF/s measured in the same run. Useful work counts allowed pairs only."
        }
        @if sections.len() > 1 {
            p { @for (at, ((name, hops), _)) in sections.iter().enumerate() {
                @if at > 0 { ", " }
                a href=(format!("#s{at}")) { (title(name, *hops)) }
            } }
        }
    };
    let body = html! {
        @for (at, ((name, hops), rows)) in sections.iter().enumerate() {
            section id=(format!("s{at}")) { h2 { (title(name, *hops)) } (section(rows)) }
        }
    };
    frame("Benchmark", &below, &body)
}

fn title(name: &str, hops: usize) -> String {
    format!("{name}, {hops} {}", if hops == 1 { "hop" } else { "hops" })
}

/// What a row was measured of: the implementation, and the strategy where several were compared.
fn contender(row: &Row) -> String {
    match (&row.chosen, &row.strategy) {
        (Some(_), Some(strategy)) => strategy.clone(),
        _ => row.implementation.clone(),
    }
}

fn section(rows: &[&Row]) -> Markup {
    let Some(first) = rows.first() else { return Markup::default() };
    let mut names: Vec<String> = Vec::new();
    let mut lengths: Vec<usize> = Vec::new();
    for row in rows {
        let name = contender(row);
        if !names.contains(&name) {
            names.push(name);
        }
        if !lengths.contains(&row.n) {
            lengths.push(row.n);
        }
    }
    let series = |of: fn(&Row) -> Option<f64>| -> Vec<Series> {
        let points = |name: &String| {
            let mut points: Vec<(f64, f64)> = rows
                .iter()
                .filter(|row| contender(row) == *name)
                .filter_map(|row| Some((row.n as f64, of(row)?)))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        names.iter().map(|name| Series { name: name.clone(), points: points(name) }).collect()
    };
    let at_one_length = |of: fn(&Row) -> Option<f64>, text: fn(f64) -> String| -> Vec<(String, f64, String)> {
        rows.iter().filter_map(|row| of(row).map(|number| (contender(row), number, text(number)))).collect()
    };
    let ms = |number: f64| format!("{} ms", significant(number));
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    html! {
        p.faint {
            (first.heads) @if first.heads == 1 { " head" } @else { " heads" } " of " (first.head_dim)
            ", batch " (first.batch) ", " (first.dtype)
            @if first.q_len != first.n { ", " (thousands(first.q_len as u64)) " queries" }
        }
        div.figures {
            @if lengths.len() > 1 {
                (chart(&Chart {
                    title: "Time".into(),
                    x: ("keys", Scale::Doubling),
                    y: ("median ms", Scale::Log),
                    series: series(|row| row.median_ms),
                }))
                (chart(&Chart {
                    title: "Share of the FMA peak".into(),
                    x: ("keys", Scale::Doubling),
                    y: ("share", Scale::Percent),
                    series: series(|row| row.peak_fraction),
                }))
            } @else {
                (bars(&format!("Time at {} keys", thousands(first.n as u64)), &at_one_length(|row| row.median_ms, ms)))
                (bars("Share of the FMA peak", &at_one_length(|row| row.peak_fraction, percent)))
            }
        }
        (numbers(rows))
        @for row in rows.iter().filter(|row| row.skipped.is_some()) {
            p.faint {
                (contender(row)) " at " (thousands(row.n as u64)) " was skipped: " (row.skipped.as_deref().unwrap_or_default())
            }
        }
    }
}

fn numbers(rows: &[&Row]) -> Markup {
    let head = ["", "keys", "median ms", "min", "max", "runs", "GF/s", "of peak", "times hopweave", "scratch", "error"];
    let number = |number: Option<f64>| number.map_or_else(|| "–".into(), significant);
    let own = |row: &Row| {
        rows.iter()
            .find(|other| other.n == row.n && (other.implementation == "hopweave") && other.chosen != Some(false))
    };
    let cells = |row: &&Row| {
        vec![
            contender(row),
            thousands(row.n as u64),
            number(row.median_ms),
            number(row.min_ms),
            number(row.max_ms),
            row.runs.to_string(),
            number(row.gflops),
            row.peak_fraction.map_or_else(|| "–".into(), |share| format!("{:.1} %", 100.0 * share)),
            number(row.median_ms.zip(own(row).and_then(|own| own.median_ms)).map(|(a, b)| a / b)),
            Bytes(row.scratch_bytes).to_string(),
            scientific(row.max_abs_err),
        ]
    };
    table(&head.map(String::from), &rows.iter().map(cells).collect::<Vec<_>>())
}

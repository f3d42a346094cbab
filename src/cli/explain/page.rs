//! The explanation as a page: numbers, pictures, charts, and everything the text says.

use maud::{Markup, html};

use super::{Explained, text};
use crate::cli::options::Global;
use crate::cli::page::chart::{Chart, Scale, Series, bars, chart};
use crate::cli::page::{card, page as frame, swatch, table};
use crate::cli::table::{significant, thousands};
use crate::error::Result;
use crate::mask::HeadMask;
use crate::picture::{self, Detail, Picture};

/// Most heads that are drawn.
const HEADS: usize = 6;
/// Cells a side: of masks, and of hops.
const CELLS: usize = 160;
const HOP_CELLS: usize = 96;

/// Writes the page.
///
/// # Errors
/// Those of the pictures.
pub fn page(explained: &Explained<'_>, options: &Global) -> Result<String> {
    let Explained { spec, compiled, analysis, .. } = explained;
    let (q_len, kv_len) = (analysis.q_len as u64, analysis.kv_len as u64);
    let below = html! {
        @if let Some(description) = &spec.description { p { (description) } }
        p.faint {
            (thousands(q_len)) " queries, " (thousands(kv_len)) " keys, " (spec.heads)
            @if spec.heads == 1 { " head" } @else { " heads" } " of " (spec.head_dim) ", " (spec.diffusion.hops())
            @if spec.diffusion.hops() == 1 { " hop" } @else { " hops" } ", " (spec.dtype)
        }
    };
    let reached = analysis.receptive_field.hops.last();
    let cards = html! {
        div.cards {
            (card(&format!("{} %", significant(100.0 * analysis.density)), "of all pairs are allowed"))
            (card(&format!("{} GF", significant(analysis.flops as f64 * 1e-9)), "useful work a sequence"))
            @if let Some(forecast) = &compiled.forecast {
                (card(&format!("{} ms", significant(forecast.seconds * 1e3)), "predicted on this machine"))
            }
            @if let Some(reach) = reached {
                (card(&format!("{} %", significant(100.0 * reach.mean)), "of the keys reached by the last hop"))
            }
            @if let Some(gap) = analysis.spectral_gap.spectral_gap {
                (card(&small(gap), "spectral gap"))
            }
            @if let Some(distance) = explained.distance.value {
                (card(&significant(distance), "relative distance to full attention"))
            }
        }
    };
    let body = html! {
        (cards)
        h2 { "Who attends to whom" }
        (masks(explained))
        @if !spec.diffusion.is_plain() && compiled.pattern.q_len > 0 {
            h2 { "What each hop reaches" }
            (hops(explained, options)?)
        }
        h2 { "What that does" }
        div.figures { (charts(explained)) }
        h2 { "In words" }
        (words(explained))
        h2 { "The spec" }
        div.scroll { pre { (spec.print()) } }
    };
    Ok(frame(&format!("{} at {} tokens", spec.name, thousands(kv_len)), &below, &body))
}

fn small(number: f64) -> String {
    if number > 0.0 && number < 1e-3 { format!("{number:.1e}") } else { significant(number) }
}

/// One picture for each distinct head, as far as there is room.
fn masks(explained: &Explained<'_>) -> Markup {
    let mask = &explained.compiled.mask;
    if mask.stack != 1 {
        return html! { p { "One query: it attends to " (thousands(explained.analysis.nnz / explained.analysis.heads as u64)) " keys a head." } };
    }
    // (first head, heads, masks)
    let mut distinct: Vec<(usize, usize, &[u32])> = Vec::new();
    for (head, masks) in mask.mask_of_head.chunks(mask.parts.max(1)).enumerate() {
        match distinct.iter_mut().find(|other| other.2 == masks) {
            Some(other) => other.1 += 1,
            None => distinct.push((head, 1, masks)),
        }
    }
    let pattern = &explained.compiled.pattern;
    let detail = detail(pattern.q_len, pattern.kv_len, CELLS);
    let drawn: Vec<(Picture, String)> = distinct
        .iter()
        .take(HEADS)
        .map(|&(head, count, _)| {
            let masks: Vec<&HeadMask> = mask.parts_of(head).collect();
            let name = match (count, distinct.len()) {
                (1, _) => format!("head {head}"),
                (count, 1) => format!("all {count} heads"),
                (count, _) => format!("head {head} and {} like it", count - 1),
            };
            (picture::of_mask(pattern, head, &masks, detail), name)
        })
        .collect();
    html! {
        @if let Some((first, _)) = drawn.first() { (legend(first)) }
        div.figures.one[drawn.len() == 1] {
            @for (picture, name) in &drawn {
                figure.picture {
                    (picture::panel(picture, &picture.panels[0]))
                    figcaption { (name) ": " (shares(picture)) }
                }
            }
        }
        @if distinct.len() > HEADS { p.faint { (distinct.len() - HEADS) " more heads differ from these." } }
    }
}

/// What a panel is made of.
fn shares(picture: &Picture) -> String {
    let shares = picture.classes.iter().zip(&picture.panels[0].shares).filter(|(_, share)| **share > 0.0);
    let parts: Vec<String> =
        shares.map(|(class, &share)| format!("{} {}", class.name, picture::percent(share))).collect();
    if parts.is_empty() { "nothing is allowed".into() } else { parts.join(", ").replace(" %", "\u{a0}%") }
}

fn legend(picture: &Picture) -> Markup {
    html! {
        div.legend {
            @for (number, class) in picture.classes.iter().enumerate() { span { (swatch(number)) (class.name) } }
            span { "queries down, keys across; the stronger a cell, the more of its pairs count" }
        }
    }
}

fn hops(explained: &Explained<'_>, options: &Global) -> Result<Markup> {
    let pattern = &explained.compiled.pattern;
    let detail = detail(pattern.q_len, pattern.kv_len, HOP_CELLS);
    let picture = picture::of_hops(pattern, &explained.diffused.factors, 0, detail, options.memory_limit())?;
    Ok(html! {
        (legend(&picture))
        div.figures {
            @for panel in &picture.panels {
                figure.picture {
                    (picture::panel(&picture, panel))
                    figcaption { (panel.title) ": " (picture::percent(panel.shares.iter().sum())) " of all pairs" }
                }
            }
        }
        p.faint { "Head 0" @if !picture.note.is_empty() { ", " (picture.note) } "." }
    })
}

/// Cells of one scale on both axes.
fn detail(q_len: usize, kv_len: usize, cells: usize) -> Detail {
    let longest = q_len.max(kv_len).max(1);
    let of = |length: usize| (cells * length).div_ceil(longest).clamp(cells.min(8), cells);
    Detail { rows: of(q_len), columns: of(kv_len) }
}

fn charts(explained: &Explained<'_>) -> Markup {
    let analysis = &explained.analysis;
    let hops = &analysis.receptive_field.hops;
    let reach = |name: &str, of: fn(&crate::analysis::Reach) -> f64| Series {
        name: name.into(),
        points: hops.iter().map(|reach| (reach.hop as f64, of(reach))).collect(),
    };
    let forecast = explained.compiled.forecast;
    html! {
        @if hops.len() > 1 {
            (chart(&Chart {
                title: "Share of the keys reached".into(),
                x: ("hop", Scale::Linear),
                y: ("share", Scale::Percent),
                series: vec![reach("mean", |reach| reach.mean), reach("least", |reach| reach.minimum)],
            }))
        }
        @if let Some(balance) = &analysis.balance {
            @let count = balance.profile.len() as f64;
            @let at = |number: usize| (number as f64 + 0.5) / count * analysis.q_len as f64;
            (chart(&Chart {
                title: "Keys of a query along the sequence".into(),
                x: ("query", Scale::Linear),
                y: ("keys", Scale::Linear),
                series: vec![Series {
                    name: "keys".into(),
                    points: balance.profile.iter().enumerate().map(|(number, &keys)| (at(number), keys)).collect(),
                }],
            }))
        }
        @if let Some(forecast) = forecast {
            @let parts = [
                ("scores", forecast.scores), ("exponentials", forecast.exponentials), ("score mods", forecast.mods),
                ("values", forecast.values), ("edges", forecast.edges), ("around tiles", forecast.rows),
                ("reading", forecast.reads), ("writing", forecast.writes),
            ];
            @let some: Vec<(String, f64, String)> = parts.iter().filter(|(_, seconds)| *seconds > 0.0)
                .map(|&(name, seconds)| (name.into(), seconds, format!("{} ms", significant(seconds * 1e3)))).collect();
            (bars("Where the time should go, over all threads", &some))
        }
    }
}

fn words(explained: &Explained<'_>) -> Markup {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (name, value) in text::lines(explained) {
        match rows.last_mut() {
            Some(last) if name.is_empty() => last.1.push(value),
            _ => rows.push((name, vec![value])),
        }
    }
    let reach: Vec<Vec<String>> = explained
        .analysis
        .receptive_field
        .hops
        .iter()
        .map(|reach| {
            vec![
                reach.hop.to_string(),
                format!("{} %", significant(100.0 * reach.mean)),
                format!("{} %", significant(100.0 * reach.minimum)),
                thousands(reach.worst.query as u64),
            ]
        })
        .collect();
    rows.retain(|(name, _)| !name.starts_with("keys after hop"));
    html! {
        div.scroll { table { tbody {
            @for (name, values) in &rows {
                tr { th scope="row" { (name) } td { @for value in values { div { (value) } } } }
            }
        } } }
        @if !reach.is_empty() {
            h3 { "Keys reached, hop by hop" }
            (table(&["hop", "mean", "least", "by query"].map(String::from), &reach))
            @if !explained.analysis.receptive_field.note.is_empty() { p.faint { (explained.analysis.receptive_field.note) "." } }
        }
    }
}

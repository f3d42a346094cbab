//! Pictures as SVG: one path for all cells of one colour and shade, runs of cells joined.
//!
//! Colours are custom properties, so that a page, or a viewer that prefers dark, can set others.

use std::fmt::Write as _;

use maud::{Markup, PreEscaped, html};

use super::{Panel, Picture, SHADES, percent, share_of_shade, short, strength};

/// Colours of pictures, light and dark; pages that show panels hold it once.
pub const STYLE: &str = "\
:root{--ground:#fff;--ink:#1b1f24;--faint:#57606a;--line:#d0d7de;--c0:#0072b2;--c1:#e69f00;--c2:#cc5189;--c3:#009e73}\
@media(prefers-color-scheme:dark){:root{--ground:#14181d;--ink:#e6edf3;--faint:#9aa4af;--line:#3a424c;\
--c0:#4aa8e0;--c1:#f0b429;--c2:#e57fb0;--c3:#2fc795}}\
svg text{font-family:system-ui,sans-serif;fill:var(--faint);font-size:12px}svg .title{fill:var(--ink);font-size:14px}\
.f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}.f3{fill:var(--c3)}\
.frame{fill:none;stroke:var(--line)}";

/// Side of a panel's matrix.
const SIDE: f64 = 480.0;
/// Room for labels of queries, and of keys.
const MARGIN: (f64, f64) = (56.0, 44.0);
/// Panels beside each other.
const ACROSS: usize = 3;

/// The whole picture as a file: title, panels, legend, scale.
pub fn svg(picture: &Picture) -> String {
    let (width, height) = size(picture);
    let across = picture.panels.len().clamp(1, ACROSS);
    let down = picture.panels.len().div_ceil(across);
    let (panel_width, panel_height) = (width + MARGIN.0 + 24.0, height + MARGIN.1 + 24.0);
    let head = 34.0;
    let all = ((panel_width * across as f64).max(620.0), head + panel_height * down as f64 + 92.0);
    let markup = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {:.0} {:.0}", all.0, all.1))
            width=(format!("{:.0}", all.0)) height=(format!("{:.0}", all.1)) role="img" {
            title { (picture.title) }
            style { (PreEscaped(STYLE)) }
            rect width="100%" height="100%" style="fill:var(--ground)" {}
            text.title x=(MARGIN.0) y="24" { (heading(picture)) }
            @for (number, panel) in picture.panels.iter().enumerate() {
                @let (x, y) = ((number % across) as f64 * panel_width, head + (number / across) as f64 * panel_height);
                g transform=(format!("translate({x:.0} {y:.0})")) { (matrix(picture, panel, picture.panels.len() > 1)) }
            }
            g transform=(format!("translate({:.0} {:.0})", MARGIN.0, all.1 - 80.0)) { (legend(picture)) }
        }
    };
    markup.into_string()
}

/// One panel with its axes but without its title, for a page that holds [`STYLE`].
pub fn panel(picture: &Picture, panel: &Panel) -> Markup {
    let (width, height) = size(picture);
    let view = format!("0 0 {:.0} {:.0}", width + MARGIN.0 + 24.0, height + MARGIN.1 + 14.0);
    html! {
        svg viewBox=(view) role="img" aria-label=(format!("{}: {}", picture.title, panel.title)) {
            (matrix(picture, panel, false))
        }
    }
}

fn heading(picture: &Picture) -> String {
    format!("{} · {} queries × {} keys", picture.title, short(picture.q_len as f64), short(picture.kv_len as f64))
}

/// Width and height of a matrix: the longer side is [`SIDE`], the other no less than an eighth of it.
fn size(picture: &Picture) -> (f64, f64) {
    let longest = picture.q_len.max(picture.kv_len).max(1) as f64;
    let side = |length: usize| (SIDE * length as f64 / longest).max(SIDE / 8.0);
    (side(picture.kv_len), side(picture.q_len))
}

fn matrix(picture: &Picture, panel: &Panel, named: bool) -> Markup {
    let (width, height) = size(picture);
    let name = format!("{} · {} of all pairs", panel.title, percent(panel.shares.iter().sum()));
    let scale = format!(
        "translate({} {}) scale({} {})",
        MARGIN.0,
        MARGIN.1,
        width / picture.columns as f64,
        height / picture.rows as f64
    );
    html! {
        @if named { text.title x=(MARGIN.0) y="16" { (name) } }
        g transform=(scale) shape-rendering="crispEdges" { (cells(picture, panel)) }
        rect.frame x=(MARGIN.0) y=(MARGIN.1) width=(format!("{width:.1}")) height=(format!("{height:.1}")) {}
        @for part in 0..=4_usize {
            @let share = part as f64 / 4.0;
            // The sides may be too short for five labels.
            @if part % 4 == 0 || width >= SIDE / 2.0 {
                text x=(format!("{:.1}", MARGIN.0 + share * width)) y=(MARGIN.1 - 8.0) text-anchor="middle" {
                    (short((part * picture.kv_len / 4) as f64))
                }
            }
            @if part % 4 == 0 || height >= SIDE / 2.0 {
                text x=(MARGIN.0 - 6.0) y=(format!("{:.1}", MARGIN.1 + share * height + 4.0)) text-anchor="end" {
                    (short((part * picture.q_len / 4) as f64))
                }
            }
        }
    }
}

/// The cells as paths, one a colour and shade.
fn cells(picture: &Picture, panel: &Panel) -> Markup {
    let mut paths = vec![String::new(); picture.classes.len() * (SHADES + 1)];
    for (row, cells) in panel.cells.chunks(picture.columns).enumerate() {
        let mut column = 0;
        for run in cells.chunk_by(|a, b| (a.class, a.shade()) == (b.class, b.shade())) {
            if run[0].shade() > 0 {
                let path = &mut paths[run[0].class * (SHADES + 1) + run[0].shade()];
                let _ = write!(path, "M{column} {row}h{0}v1h-{0}z", run.len());
            }
            column += run.len();
        }
    }
    html! {
        @for (number, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            path.{ "f" (number / (SHADES + 1)) } d=(path)
                fill-opacity=(format!("{:.2}", strength(number % (SHADES + 1)))) {}
        }
    }
}

/// Classes, shades and what is not exact.
fn legend(picture: &Picture) -> Markup {
    let several = picture.panels.len() > 1;
    html! {
        @for (number, class) in picture.classes.iter().enumerate() {
            @let (x, y) = (300 * (number % 2), 18 * (number / 2));
            @let share: f64 = picture.panels.iter().map(|panel| panel.shares[number]).sum();
            rect.{ "f" (number) } x=(x) y=(y) width="12" height="12" {}
            text x=(x + 18) y=(y + 11) {
                (class.name) @if !several { " " (percent(share)) }
            }
        }
        @let y = 18 * picture.classes.len().div_ceil(2) + 4;
        @for shade in 1..=SHADES {
            rect.f0 x=(60 * (shade - 1)) y=(y) width="12" height="12" fill-opacity=(format!("{:.2}", strength(shade))) {}
            text x=(60 * (shade - 1) + 16) y=(y + 11) { (percent(share_of_shade(shade))) }
        }
        text x=(60 * SHADES) y=(y + 11) { "of a cell" }
        @if !picture.note.is_empty() { text x="0" y=(y + 32) { (picture.note) } }
    }
}

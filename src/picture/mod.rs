//! Pictures of masks: who attends to whom, and how far that reaches over the hops.
//!
//! In: a [`Pattern`](crate::pattern::Pattern), or a mask that was built from it. Out: a [`Picture`] of some cells, each
//! with the share of its pairs that are allowed and what they belong to, drawn by [`terminal`], [`svg`] and [`png()`].
//! A cell's share comes from the runs and words of the block mask, so that nothing visits n² points. Where even that is
//! too much, some rows stand for the others, and the picture says so.

mod cells;
mod hops;
mod png;
mod svg;
mod terminal;
#[cfg(test)]
mod tests;

pub use cells::{Detail, of_mask, of_pattern};
pub use hops::of_hops;
pub use png::png;
pub use svg::{STYLE, panel, svg};
pub use terminal::{Colour, terminal};

/// One or more panels over the same queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// What is drawn, in a few words.
    pub title: String,
    /// Queries, from top to bottom.
    pub q_len: usize,
    /// Keys, from left to right.
    pub kv_len: usize,
    /// Rows of cells.
    pub rows: usize,
    /// Columns of cells.
    pub columns: usize,
    /// What cells may be made of.
    pub classes: &'static [Class],
    /// The panels.
    pub panels: Vec<Panel>,
    /// What is not exact, and why; empty where everything is.
    pub note: String,
}

/// One matrix of cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What tells it from the other panels.
    pub title: String,
    /// The cells, row by row: `[rows][columns]`.
    pub cells: Vec<Cell>,
    /// For each class, its share of all pairs of the panel.
    pub shares: Vec<f64>,
}

/// A square of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cell {
    /// The class that most of its pairs belong to, in [`Picture::classes`].
    pub class: usize,
    /// Share of its pairs that belong to any class, 0 to 1.
    pub share: f64,
}

/// What a cell can be made of.
#[derive(Debug, PartialEq, Eq)]
pub struct Class {
    /// In words.
    pub name: &'static str,
    /// Red, green and blue.
    pub colour: [u8; 3],
}

/// Pairs of a block mask. The colours are told apart by people with any colour vision (Okabe and Ito 2008).
pub static KINDS: [Class; 4] = [
    Class { name: "full blocks", colour: [0, 114, 178] },
    Class { name: "partial blocks", colour: [230, 159, 0] },
    Class { name: "scattered edges", colour: [204, 81, 137] },
    Class { name: "global panel", colour: [0, 158, 115] },
];

/// Pairs by the hop that first connects them.
pub static REACHED: [Class; 2] = [
    Class { name: "reached before", colour: [0, 114, 178] },
    Class { name: "reached by this hop", colour: [230, 159, 0] },
];

/// How many shades tell shares apart.
pub const SHADES: usize = 8;

impl Cell {
    /// The shade of the cell, 0 (nothing) to [`SHADES`]. Shades go by the cube root, so that a few edges among thousands
    /// of pairs can still be seen.
    pub fn shade(&self) -> usize {
        if self.share <= 0.0 { 0 } else { ((self.share.cbrt() * SHADES as f64).ceil() as usize).clamp(1, SHADES) }
    }
}

/// The largest share that a shade stands for.
pub fn share_of_shade(shade: usize) -> f64 {
    (shade as f64 / SHADES as f64).powi(3)
}

/// How strongly a shade covers what is behind it, 0 to 1.
pub fn strength(shade: usize) -> f64 {
    if shade == 0 { 0.0 } else { 0.2 + 0.8 * shade as f64 / SHADES as f64 }
}

/// A length in a few letters: 4096, 65,536 as `65.5k`, a million as `1M`.
pub fn short(number: f64) -> String {
    let (value, unit) = match number {
        x if x >= 999_950.0 => (x / 1e6, "M"),
        x if x >= 10_000.0 => (x / 1e3, "k"),
        x => (x, ""),
    };
    let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") };
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

/// A share in percent, in a few letters.
pub fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0 %".into(),
        x if x < 0.01 => format!("{x:.0e} %"),
        x if x < 1.0 => format!("{x:.2} %"),
        x if x < 10.0 => format!("{x:.1} %"),
        x => format!("{x:.0} %"),
    }
}

//! Columns that line up, and numbers as people read them.

use std::time::Duration;

/// Which side of its column a cell keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells; each column is as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(align: impl Into<Vec<Align>>) -> Self {
        Self { align: align.into(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table as lines, each `margin` spaces in.
    pub fn indented(&self, margin: usize) -> String {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.align.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&self.align).zip(&widths).map(|((cell, align), &width)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text += &format!("{:margin$}{}\n", "", line.trim_end());
        }
        text
    }
}

/// A whole number with its thousands set apart: 1,234,567.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits, or all digits before the point; of small numbers four places.
pub fn significant(number: f64) -> String {
    let digits = match number.abs() {
        0.0 => 0,
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        x if x >= 0.9995 => 2,
        x if x >= 0.09995 => 3,
        _ => 4,
    };
    format!("{number:.digits$}")
}

/// A duration in milliseconds, to three significant digits.
pub fn milliseconds(duration: Duration) -> String {
    format!("{} ms", significant(duration.as_secs_f64() * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new([Align::Left, Align::Right]);
        table.row(["name", "ms"]);
        table.row(["ä", "1000"]);
        assert_eq!(table.indented(2), "  name    ms\n  ä     1000\n");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 12, 1234, 1_000_000].map(thousands), ["0", "12", "1,234", "1,000,000"]);
        assert_eq!(
            [0.0123, 0.5, 1.0, 9.999, 12.34, 99.97, 1234.5].map(significant),
            ["0.0123", "0.500", "1.00", "10.0", "12.3", "100", "1234"]
        );
    }
}

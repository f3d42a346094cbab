//! Where a spec came from, and messages that point into it.

use crate::error::{Error, Span, SpecError};
use crate::limits::{Limit, Limits};

/// The text a spec came from, with the texts of its overrides.
///
/// A [`Span`] has no file of its own: lines of overrides are counted from numbers far beyond any line of the
/// text, each override from its own, and are told apart by that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// File name as the user gave it, or `<text>`.
    pub file: String,
    /// The whole text.
    pub text: String,
    /// What was written after each `--set`, `PATH=VALUE`.
    pub overrides: Vec<String>,
    /// Whether the spec may read any file; otherwise only those in the folder of its own file.
    pub allow_files: bool,
    /// How much the spec may ask for.
    pub limits: Limits,
}

/// More lines than the largest text can have.
const LINES: usize = 2 * Limit::Text.most() as usize;

impl Source {
    /// A text without overrides.
    pub fn new(text: impl Into<String>, file: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            text: text.into(),
            overrides: Vec::new(),
            allow_files: false,
            limits: Limits::default(),
        }
    }

    /// The line that stands for the first line of override `index`.
    pub(super) fn override_line(index: usize) -> usize {
        (index + 1) * LINES + 1
    }

    /// Whether the text is a file, so that paths in it can be taken relative to its folder.
    pub fn is_file(&self) -> bool {
        !self.file.is_empty() && self.file != "-" && !self.file.starts_with('<')
    }

    /// What is wrong at a place, and what was expected there (may be empty).
    pub fn error(&self, at: Span, message: impl Into<String>, expected: impl Into<String>) -> Error {
        let line = at.line.max(1);
        let from_override = ((line - 1) / LINES).checked_sub(1).and_then(|i| self.overrides.get(i));
        let (file, text, line) = match from_override {
            Some(text) => {
                let first = text.lines().next().unwrap_or_default();
                (format!("--set {first}"), text.as_str(), (line - 1) % LINES + 1)
            }
            None => (self.file.clone(), self.text.as_str(), line),
        };
        SpecError {
            file,
            at: Span { line, column: at.column.max(1), width: at.width.max(1) },
            source_line: excerpt(text.lines().nth(line - 1).unwrap_or_default(), at.column),
            message: message.into(),
            expected: expected.into(),
            others: Vec::new(),
        }
        .into()
    }

    /// More than a limit allows stands at a place.
    pub fn beyond(&self, at: Span, limit: Limit, message: impl Into<String>) -> Error {
        self.error(at, message, self.limits.expected(limit))
    }

    /// A construct of the spec language that this version does not have.
    pub fn unsupported(&self, at: Span, what: &str, instead: impl Into<String>) -> Error {
        self.error(at, format!("`{what}` is not supported yet"), instead)
    }
}

/// The line, or so much of a very long one as a person needs to find the column.
fn excerpt(line: &str, column: usize) -> String {
    const WIDTH: usize = 160;
    if column <= WIDTH {
        return line.chars().take(column + WIDTH).collect();
    }
    // Ends right before the column, which is where the caret of a shorter line comes to stand.
    let shown: String = line.chars().skip(column - 1 - WIDTH / 2).take(WIDTH / 2).collect();
    format!("... {shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_around_the_column() {
        let source = Source::new(format!("{}x{}", "a".repeat(100_000), "b".repeat(100_000)), "f");
        let text = |column| source.error(Span { line: 1, column, width: 1 }, "wrong", "").to_string();
        assert!(text(100_001).len() < 600 && text(100_001).ends_with('^'));
        assert!(text(1).len() < 600);
    }
}

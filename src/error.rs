//! Every way in which Hopweave can say no.
//!
//! Three kinds are kept apart, because the reader does something different about each: the input is
//! wrong ([`SpecError`], [`Error::Shape`], [`Error::Dtype`], [`Error::Value`], [`Error::Input`],
//! [`Error::Memory`], [`Error::OutOfMemory`], [`Error::Limit`]), the
//! input is right but this version cannot do it ([`Error::Unsupported`]), or Hopweave itself is wrong
//! ([`Error::Internal`]).

use std::fmt;
use std::path::PathBuf;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec is wrong at a known place.
    #[error(transparent)]
    Spec(#[from] Box<SpecError>),
    /// A tensor does not have the shape that the spec and the lengths ask for.
    #[error("{tensor}: expected shape {expected}, found {found}")]
    Shape {
        /// Which tensor, as the user calls it (`q`, `k`, `v`, or a file name).
        tensor: String,
        /// The shape asked for, with the names of its axes.
        expected: String,
        /// The shape given.
        found: String,
    },
    /// A tensor holds numbers that it may not hold, or is not there.
    #[error("{tensor}: {message}")]
    Value {
        /// Which tensor, as the user calls it.
        tensor: String,
        /// What is wrong with it, where, and what was expected.
        message: String,
    },
    /// Tensors are not stored as the spec's `dtype` says.
    #[error("q, k, v and out are tensors of {found}; expected {expected}, the `dtype` of the spec")]
    Dtype {
        /// The storage type of the spec.
        expected: &'static str,
        /// The one given.
        found: &'static str,
    },
    /// A file could not be read, written or understood.
    #[error("{}: {message}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        message: String,
    },
    /// The work needs more memory than it may take.
    #[error(
        "{what} needs {} of memory, and the limit is {}; raise it with --memory-limit, or ask for less",
        Bytes(*.given), Bytes(*.limit)
    )]
    Memory {
        /// What asked for it.
        what: String,
        /// Bytes asked for.
        given: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The system has not the memory that a call needs.
    #[error("{what} needs {} of memory, and the system has not so much", Bytes(*.given))]
    OutOfMemory {
        /// What asked for it.
        what: String,
        /// Bytes asked for.
        given: u64,
    },
    /// More is asked for than a limit allows.
    #[error("{what}: {given}; {limit}")]
    Limit {
        /// What is too much.
        what: String,
        /// How much it is.
        given: String,
        /// How much is allowed, and how to allow more.
        limit: String,
    },
    /// A request that is meaningful but that this version, or this machine, cannot serve.
    #[error("unsupported: {given}; {limit}")]
    Unsupported {
        /// What was asked for.
        given: String,
        /// What is supported instead.
        limit: String,
    },
    /// The text form of an IR could not be read back.
    #[error("{stage} text, line {line}: {message}")]
    Text {
        /// Which IR.
        stage: &'static str,
        /// One-based line in the text.
        line: usize,
        /// What was found and what was expected.
        message: String,
    },
    /// An IR that breaks its own rules, or code generation that failed: a bug in Hopweave.
    #[error(
        "internal error in {stage}: {message}\nThis is a bug in Hopweave, please report it with the text below.\n{ir}"
    )]
    Internal {
        /// The step that noticed.
        stage: &'static str,
        /// What is wrong.
        message: String,
        /// The IR at that point.
        ir: String,
    },
}

impl Error {
    /// An [`Error::Unsupported`] that names the request and the limit.
    pub fn unsupported(given: impl Into<String>, limit: impl Into<String>) -> Self {
        Self::Unsupported { given: given.into(), limit: limit.into() }
    }

    /// An [`Error::Internal`] that prints the IR it found broken.
    pub fn internal(stage: &'static str, message: impl Into<String>, ir: impl fmt::Display) -> Self {
        Self::Internal { stage, message: message.into(), ir: ir.to_string() }
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::Spec(Box::new(error))
    }
}

/// What is wrong in a spec, where, and what was expected.
///
/// Displays as four parts: `FILE:LINE:COLUMN: message`, the line, a caret under the place, the expectation; then, each
/// after a line break and `error: `, what else is wrong with the same spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    /// File name as the user gave it, or `<text>`.
    pub file: String,
    /// Where in the file.
    pub at: Span,
    /// The whole line at [`Span::line`].
    pub source_line: String,
    /// What is wrong.
    pub message: String,
    /// What was expected, or what to write instead; empty when the message says it all.
    pub expected: String,
    /// What else is wrong with the same spec, in the order of the text; none of these has others.
    pub others: Vec<SpecError>,
}

impl std::error::Error for SpecError {}

/// Errors of one spec that do not follow from each other, to be reported together.
///
/// What cannot be read is left out while the rest is read on.
#[derive(Debug, Default)]
pub struct Faults {
    found: Vec<SpecError>,
    /// An error without a place: reading stops at it.
    other: Option<Error>,
}

/// Most errors of a spec in one report.
const MOST_FAULTS: usize = 20;

impl Faults {
    /// The value, or nothing where there is an error, which is kept.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(Error::Spec(mut error)) => {
                let others = std::mem::take(&mut error.others);
                self.found.push(*error);
                self.found.extend(others);
            }
            Err(error) => self.other = self.other.take().or(Some(error)),
        }
        None
    }

    /// The value, if nothing was found.
    ///
    /// # Errors
    /// Everything that was found, as one error.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T> {
        if let Some(error) = self.other {
            return Err(error);
        }
        self.found.sort_by_key(|error| (error.at.line, error.at.column));
        // Two arguments that share a value have the same fault.
        self.found.dedup();
        self.found.truncate(MOST_FAULTS);
        let mut found = self.found.into_iter();
        match (found.next(), value) {
            (Some(mut first), _) => {
                first.others = found.collect();
                Err(first.into())
            }
            (None, Some(value)) => Ok(value),
            (None, None) => Err(Error::internal("spec", "nothing was read, and nothing is wrong", "")),
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Span { line, column, width } = self.at;
        write!(f, "{}:{line}:{column}: {}", self.file, self.message)?;
        let margin = " ".repeat(line.to_string().len());
        // A tab under a tab keeps the caret in its column whatever the terminal's tab width is.
        let lead: String = self
            .source_line
            .chars()
            .take(column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        write!(f, "\n{margin} |\n{line} | {}\n{margin} | {lead}{}", self.source_line, "^".repeat(width.max(1)))?;
        if !self.expected.is_empty() {
            write!(f, "\n{margin} = expected: {}", self.expected)?;
        }
        // Whoever prints the first one has written `error: ` before it.
        self.others.iter().try_for_each(|other| write!(f, "\nerror: {other}"))
    }
}

/// A place in a spec: one-based line and column (in characters), and how many characters to underline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// One-based line.
    pub line: usize,
    /// One-based column, in characters.
    pub column: usize,
    /// Characters to underline, at least one.
    pub width: usize,
}

/// A number of bytes that displays in the unit a person would choose.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caret_stands_under_the_column() {
        let error = SpecError {
            file: "a.yaml".into(),
            at: Span { line: 3, column: 5, width: 4 },
            source_line: "\tab head: 1".into(),
            message: "unknown key `head`".into(),
            expected: "`heads`".into(),
            others: Vec::new(),
        };
        let text = error.to_string();
        assert_eq!(text, "a.yaml:3:5: unknown key `head`\n  |\n3 | \tab head: 1\n  | \t   ^^^^\n  = expected: `heads`");
    }

    #[test]
    fn bytes_choose_their_unit() {
        let shown: Vec<String> = [0, 1023, 1024, 1 << 20, 3 << 29].iter().map(|&b| Bytes(b).to_string()).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.5 GiB"]);
    }
}

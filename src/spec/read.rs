//! Reading typed values out of a [`Value`] tree, with messages that say what stands there and what belongs.

use super::expr::{Expr, Fault, Var};
use super::nearest::nearest;
use super::{Data, Source, Value};
use crate::error::{Error, Faults, Result, Span};
use crate::limits::Limit;

/// Names as a sentence lists them.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    match quoted.len() {
        0 => "no arguments".into(),
        1 => quoted[0].clone(),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

/// The entries of a mapping whose keys were checked.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    /// The text, for messages.
    pub source: &'a Source,
    /// What the mapping describes, as messages call it (`window`, `diffusion`).
    pub owner: &'a str,
    /// Place to point at when a key is missing.
    pub at: Span,
    entries: &'a [(String, Span, Value)],
}

impl<'a> Fields<'a> {
    /// The entries of `value`, a mapping with no keys but `known`; nothing at all counts as an empty mapping.
    pub fn new(source: &'a Source, owner: &'a str, at: Span, value: &'a Value, known: &[&str]) -> Result<Self> {
        let fields = Self::of(source, owner, at, value, known)?;
        fields.only(known)?;
        Ok(fields)
    }

    /// The entries of `value`, a mapping, whatever its keys.
    pub fn of(source: &'a Source, owner: &'a str, at: Span, value: &'a Value, known: &[&str]) -> Result<Self> {
        match &value.data {
            Data::Null => Ok(Self { source, owner, at, entries: &[] }),
            Data::Map(entries) => Ok(Self { source, owner, at, entries }),
            Data::Scalar { .. } | Data::List(_) => {
                let keys = known.iter().map(|k| format!("{k}: ...")).collect::<Vec<_>>().join(", ");
                let expected = if known.is_empty() { "no arguments".into() } else { format!("a mapping {{{keys}}}") };
                Err(source.error(value.at, format!("{owner} cannot be {}", value.describe()), expected))
            }
        }
    }

    /// Refuses every key that is not known.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        let mut faults = Faults::default();
        for (key, at, _) in self.entries.iter().filter(|(key, _, _)| !known.contains(&key.as_str())) {
            let expected = match nearest(key, known.iter().copied()) {
                Some(near) => format!("`{near}`"),
                None => listed(known),
            };
            faults.keep::<()>(Err(self.source.error(*at, format!("unknown key `{key}` in {}", self.owner), expected)));
        }
        faults.finish(Some(()))
    }

    /// Whether an unknown key was probably meant to be `key`, which is not there.
    pub fn is_misspelt(&self, key: &str, known: &[&str]) -> bool {
        let meant = |found: &str| !known.contains(&found) && nearest(found, known.iter().copied()) == Some(key);
        self.get(key).is_none() && self.entries.iter().any(|(found, _, _)| meant(found))
    }

    /// The value of `key`, if it is there.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.entries.iter().find(|(k, _, _)| k == key).map(|(_, _, value)| value)
    }

    /// The place of `key`, or of the mapping's owner.
    pub fn key_at(&self, key: &str) -> Span {
        self.entries.iter().find(|(k, _, _)| k == key).map_or(self.at, |(_, at, _)| *at)
    }

    /// The value of `key`, which must be there; `example` shows what to write.
    pub fn require(&self, key: &str, example: &str) -> Result<&'a Value> {
        self.get(key).ok_or_else(|| {
            let message = format!("`{key}` is missing in {}", self.owner);
            self.source.error(self.at, message, format!("`{key}: {example}`"))
        })
    }
}

impl Value {
    /// What kind of value this is, in words.
    pub fn describe(&self) -> String {
        match &self.data {
            Data::Null => "empty".into(),
            Data::Scalar { text, quoted: false } if text.chars().count() <= 40 => format!("`{text}`"),
            Data::Scalar { text, quoted: true } if text.chars().count() <= 40 => format!("the string \"{text}\""),
            Data::Scalar { .. } => "this text".into(),
            Data::List(_) => "a list".into(),
            Data::Map(_) => "a mapping".into(),
        }
    }

    fn wrong(&self, source: &Source, name: &str, expected: impl Into<String>) -> Error {
        let message = format!("`{name}` cannot be {}", self.describe());
        source.error(self.at, message, expected)
    }

    /// The text of a scalar.
    pub fn text(&self, source: &Source, name: &str) -> Result<&str> {
        match &self.data {
            Data::Scalar { text, .. } => Ok(text),
            Data::Null | Data::List(_) | Data::Map(_) => Err(self.wrong(source, name, "text")),
        }
    }

    fn plain(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar { text, quoted: false } => Some(text),
            Data::Scalar { .. } | Data::Null | Data::List(_) | Data::Map(_) => None,
        }
    }

    /// A plain integer from `lo` to `hi`, both included.
    pub fn integer(&self, source: &Source, name: &str, lo: u64, hi: u64) -> Result<u64> {
        let expected = || match hi {
            u64::MAX => format!("an integer from {lo}"),
            _ => format!("an integer from {lo} to {hi}"),
        };
        let text = self.plain().filter(|t| t.trim_start_matches(['-', '+']).bytes().all(|b| b.is_ascii_digit()));
        match text.and_then(|t| t.parse::<i128>().ok()) {
            Some(x) if x >= i128::from(lo) && x <= i128::from(hi) => Ok(x as u64),
            _ => Err(self.wrong(source, name, expected())),
        }
    }

    /// A finite number from `lo` to `hi`, both included.
    pub fn float(&self, source: &Source, name: &str, lo: f64, hi: f64) -> Result<f64> {
        let expected = match lo.abs().max(hi.abs()) {
            most if most <= 1e9 => format!("a number from {lo} to {hi}"),
            // Display would write all zeros out.
            most if most.is_finite() => format!("a number from {lo:e} to {hi:e}"),
            _ => "a finite number".into(),
        };
        match self.plain().and_then(|t| t.parse::<f64>().ok()) {
            Some(x) if x.is_finite() && x >= lo && x <= hi => Ok(x),
            _ => Err(self.wrong(source, name, expected)),
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self, source: &Source, name: &str) -> Result<bool> {
        match self.plain() {
            Some("true" | "True" | "TRUE") => Ok(true),
            Some("false" | "False" | "FALSE") => Ok(false),
            _ => Err(self.wrong(source, name, "`true` or `false`")),
        }
    }

    /// One of some words.
    pub fn choice<'w>(&self, source: &Source, name: &str, words: &[&'w str]) -> Result<&'w str> {
        let found = match &self.data {
            Data::Scalar { text, .. } => words.iter().find(|w| *w == text),
            Data::Null | Data::List(_) | Data::Map(_) => None,
        };
        found.copied().ok_or_else(|| self.wrong(source, name, listed(words)))
    }

    /// A list.
    pub fn list(&self, source: &Source, name: &str, expected: &str) -> Result<&[Value]> {
        match &self.data {
            Data::List(items) => Ok(items),
            Data::Null | Data::Scalar { .. } | Data::Map(_) => Err(self.wrong(source, name, expected)),
        }
    }

    /// An integer or an expression for one, over `vars`.
    pub fn expr(&self, source: &Source, name: &str, vars: &[Var]) -> Result<Expr> {
        match &self.data {
            Data::Scalar { text, .. } => {
                self.check_expression(source, text)?;
                Expr::parse(text, vars).map_err(|fault| self.fault(source, fault))
            }
            Data::Null | Data::List(_) | Data::Map(_) => {
                Err(self.wrong(source, name, "an integer or an expression, such as `max(32, n/64)`"))
            }
        }
    }

    /// A predicate over `vars`.
    pub fn predicate(&self, source: &Source, name: &str, vars: &[Var]) -> Result<Expr> {
        match &self.data {
            Data::Scalar { text, .. } => {
                self.check_expression(source, text)?;
                Expr::parse_predicate(text, vars).map_err(|fault| self.fault(source, fault))
            }
            Data::Null | Data::List(_) | Data::Map(_) => {
                Err(self.wrong(source, name, "a condition, such as `\"k <= q\"`"))
            }
        }
    }

    /// Refuses the text of an expression that is too long.
    pub(super) fn check_expression(&self, source: &Source, text: &str) -> Result<()> {
        let length = text.chars().count();
        if length as u64 > source.limits.get(Limit::Expression) {
            let message = format!("the expression has {length} characters");
            return Err(source.beyond(self.at, Limit::Expression, message));
        }
        Ok(())
    }

    /// A fault of the expression that is this scalar, as an error that points into it.
    pub fn fault(&self, source: &Source, fault: Fault) -> Error {
        let (offset, width) = (fault.place.offset as usize, fault.place.width as usize);
        let at = match &self.data {
            // Only where the text stands in the file letter by letter do offsets carry over: escapes and
            // folded lines shift them, and then the whole scalar is pointed at.
            Data::Scalar { text, quoted } if self.at.width == text.chars().count() + 2 * usize::from(*quoted) => {
                Span { line: self.at.line, column: self.at.column + usize::from(*quoted) + offset, width }
            }
            _ => self.at,
        };
        source.error(at, fault.message, fault.expected)
    }
}

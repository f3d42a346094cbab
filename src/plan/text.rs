//! The text form of a plan: its nest, as programs print theirs, then YAML, with pieces and runs as one line each.

use std::fmt;

use super::{KernelPlan, Piece, PieceKeys, Stretch, ValueRun};
use crate::error::{Error, Result};
use crate::program;

/// The line between nest and YAML.
const END: &str = "---";

impl KernelPlan {
    /// The text form; [`parse`] reads it back.
    pub fn print(&self) -> String {
        let rest = serde_yaml::to_string(self);
        let rest = rest.unwrap_or_else(|error| format!("# this plan has no text form: {error}\n"));
        format!("{}{END}\n{rest}", program::print_nest(&self.shape, self.block_test, &self.body))
    }
}

/// Reads what [`KernelPlan::print`] wrote: a plan that nobody has verified.
///
/// # Errors
/// [`Error::Text`] with the place that is not understood.
pub fn parse(text: &str) -> Result<KernelPlan> {
    let (shape, block_test, body, rest, before) = program::parse_nest(text, END)?;
    let plan: KernelPlan = serde_yaml::from_str(rest).map_err(|error| Error::Text {
        stage: "plan",
        line: before + error.location().map_or(1, |place| place.line()),
        message: error.to_string(),
    })?;
    Ok(KernelPlan { shape, block_test, body, ..plan })
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, len, start_step, len_step } = self;
        write!(f, "keys {start}+{start_step}t len {len}+{len_step}t")
    }
}

impl fmt::Display for PieceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(stretch) => stretch.fmt(f),
            Self::List { list, first, len } => write!(f, "list {list} first {first} len {len}"),
        }
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.keys, self.at)?;
        match self.mask {
            Some((table, first)) => write!(f, " mask {table} first {first}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ValueRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.keys, self.at)?;
        match self.trims {
            Some(trims) => write!(f, " trims {trims}"),
            None => Ok(()),
        }
    }
}

impl From<Stretch> for String {
    fn from(stretch: Stretch) -> Self {
        stretch.to_string()
    }
}

impl From<Piece> for String {
    fn from(piece: Piece) -> Self {
        piece.to_string()
    }
}

impl From<ValueRun> for String {
    fn from(run: ValueRun) -> Self {
        run.to_string()
    }
}

impl TryFrom<String> for Stretch {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match Words::new(&text).keys() {
            Some(PieceKeys::Range(stretch)) => Ok(stretch),
            _ => Err(format!("`{text}` is no stretch of keys, such as `keys 0+64t len 128+0t`")),
        }
    }
}

impl TryFrom<String> for Piece {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut words = Words::new(&text);
        let piece = (|| {
            let (keys, at) = (words.keys()?, words.field("at")?);
            let mask = match words.field("mask") {
                Some(table) => Some((table, words.field("first")?)),
                None => None,
            };
            Some(Self { keys, mask, at })
        })();
        piece.ok_or_else(|| format!("`{text}` is no piece, such as `keys 0+64t len 63+0t at 0 mask 1 first 0`"))
    }
}

impl TryFrom<String> for ValueRun {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut words = Words::new(&text);
        let run = (|| Some(Self { keys: words.keys()?, at: words.field("at")?, trims: words.field("trims") }))();
        run.ok_or_else(|| format!("`{text}` is no run, such as `keys 0+64t len 320+0t at 0 trims 0`"))
    }
}

struct Words<'a>(std::iter::Peekable<std::str::SplitAsciiWhitespace<'a>>);

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.split_ascii_whitespace().peekable())
    }

    /// The word behind `name`, if `name` comes next.
    fn word(&mut self, name: &str) -> Option<&'a str> {
        self.0.next_if_eq(&name)?;
        self.0.next()
    }

    fn field(&mut self, name: &str) -> Option<u32> {
        self.word(name)?.parse().ok()
    }

    fn affine(&mut self, name: &str) -> Option<(u32, u32)> {
        let (base, step) = self.word(name)?.strip_suffix('t')?.split_once('+')?;
        Some((base.parse().ok()?, step.parse().ok()?))
    }

    fn keys(&mut self) -> Option<PieceKeys> {
        if let Some(list) = self.field("list") {
            return Some(PieceKeys::List { list, first: self.field("first")?, len: self.field("len")? });
        }
        let (start, start_step) = self.affine("keys")?;
        let (len, len_step) = self.affine("len")?;
        Some(PieceKeys::Range(Stretch { start, len, start_step, len_step }))
    }
}

//! How much a spec may ask for, whoever wrote it.
//!
//! Every limit has a name, a default that no ordinary spec meets, and a largest value that the compiler can bear. What a
//! text may be is said by the limits that travel with it ([`crate::spec::Source::limits`]); memory has an option of its
//! own ([`crate::compiler::Options::memory_limit`]), since tensors take it too.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::error::{Bytes, Error};

/// Something that is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of a spec's text.
    Text,
    /// Nested lists and mappings of a text.
    Depth,
    /// Aliases (`*name`) of a text.
    Aliases,
    /// Values of a text, those that aliases stand for included.
    Nodes,
    /// Query heads.
    Heads,
    /// Queries or keys.
    Length,
    /// Pairs and tokens that a pattern lists: drawn, from a file, or written.
    Edges,
    /// Characters of an expression.
    Expression,
    /// Bytes of a file that a spec names.
    File,
    /// Bytes of a kernel's machine code.
    Code,
    /// Milliseconds of compiling a kernel.
    Time,
}

/// How a limit is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Count,
    Bytes,
    Milliseconds,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 11] = [
        Self::Text,
        Self::Depth,
        Self::Aliases,
        Self::Nodes,
        Self::Heads,
        Self::Length,
        Self::Edges,
        Self::Expression,
        Self::File,
        Self::Code,
        Self::Time,
    ];

    /// Name, unit, default and largest value.
    const fn about(self) -> (&'static str, Unit, u64, u64) {
        match self {
            Self::Text => ("text", Unit::Bytes, 1 << 20, 1 << 28),
            // Walks over a tree go down by recursion.
            Self::Depth => ("depth", Unit::Count, 64, 256),
            Self::Aliases => ("aliases", Unit::Count, 1000, 1 << 26),
            Self::Nodes => ("nodes", Unit::Count, 500_000, 1 << 26),
            Self::Heads => ("heads", Unit::Count, 1 << 16, 1 << 16),
            // Positions and their sums stay far from the ends of every integer type in use.
            Self::Length => ("length", Unit::Count, (1 << 31) - 64, (1 << 31) - 64),
            // 1 GiB of them, and 64 for each of four million queries.
            Self::Edges => ("edges", Unit::Count, 1 << 28, u32::MAX as u64),
            // Their trees are walked by recursion as well.
            Self::Expression => ("expression", Unit::Count, 4096, 4096),
            Self::File => ("file", Unit::Bytes, 1 << 30, 1 << 40),
            Self::Code => ("code", Unit::Bytes, 16 << 20, 1 << 30),
            Self::Time => ("time", Unit::Milliseconds, 120_000, 7 * 86_400_000),
        }
    }

    /// Its name after `--limit`.
    pub const fn name(self) -> &'static str {
        self.about().0
    }

    /// The limit where nothing is said.
    pub const fn default(self) -> u64 {
        self.about().2
    }

    /// The largest value that it can be set to.
    pub const fn most(self) -> u64 {
        self.about().3
    }

    /// A value of this limit as a person writes it.
    pub fn show(self, value: u64) -> String {
        match self.about().1 {
            Unit::Count => value.to_string(),
            Unit::Bytes => Bytes(value).to_string(),
            Unit::Milliseconds => humantime::format_duration(Duration::from_millis(value)).to_string(),
        }
    }

    fn read(self, text: &str) -> Option<u64> {
        match self.about().1 {
            Unit::Count => text.parse().ok().or_else(|| parse_bytes(text).filter(|_| !text.ends_with(['b', 'B']))),
            Unit::Bytes => parse_bytes(text),
            Unit::Milliseconds => {
                humantime::parse_duration(text).ok().and_then(|time| u64::try_from(time.as_millis()).ok())
            }
        }
    }
}

/// A number of bytes: digits, then nothing or K, M, G, T (powers of 1024, an `iB` or `B` may follow).
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    let number: f64 = digits.trim().parse().ok()?;
    (number >= 0.0 && number.is_finite()).then(|| (number * 1024_f64.powi(power)) as u64)
}

/// A value for every limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([u64; Limit::ALL.len()]);

impl Default for Limits {
    fn default() -> Self {
        Self(Limit::ALL.map(Limit::default))
    }
}

impl Limits {
    /// The value of a limit.
    pub fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }

    /// The same limits but for one; a value beyond [`Limit::most`] counts as that.
    #[must_use]
    pub fn with(mut self, limit: Limit, value: u64) -> Self {
        self.0[limit as usize] = value.min(limit.most());
        self
    }

    /// What to say after "expected": the limit, and how to move it where it can be moved.
    pub fn expected(&self, limit: Limit) -> String {
        let (name, value) = (limit.name(), self.get(limit));
        match value < limit.most() {
            true => format!("at most {}, the limit `{name}`; `--limit {name}=...` moves it", limit.show(value)),
            false => format!("at most {}, the limit `{name}`", limit.show(value)),
        }
    }

    /// Nothing where `given` is within the limit, else an error about `what`.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn check(&self, limit: Limit, what: &str, given: u64) -> Result<(), Error> {
        if given <= self.get(limit) {
            return Ok(());
        }
        Err(Error::Limit { what: what.to_owned(), given: limit.show(given), limit: self.expected(limit) })
    }
}

/// What one compilation may take: memory, time from its start, machine code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes that masks, tables and scratch may take.
    pub memory: u64,
    limits: Limits,
    /// Where there is no start, time is not looked at.
    start: Option<Instant>,
}

impl From<u64> for Allowance {
    /// So many bytes of memory, and nothing else limited.
    fn from(memory: u64) -> Self {
        Self { memory, limits: Limits::default().with(Limit::Code, u64::MAX), start: None }
    }
}

impl Allowance {
    /// Begins now.
    pub fn begin(limits: Limits, memory: u64) -> Self {
        Self { memory, limits, start: Some(Instant::now()) }
    }

    /// Nothing where there is time left.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn check_time(&self) -> Result<(), Error> {
        let Some(start) = self.start else { return Ok(()) };
        // Seconds would be too coarse to compare, and a fraction of a millisecond is not worth a word.
        let given = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.limits.check(Limit::Time, "compiling has taken too long", given)
    }

    /// Nothing where so many bytes of machine code are few enough, and time is left.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn check_code(&self, bytes: u64) -> Result<(), Error> {
        self.check_time()?;
        self.limits.check(Limit::Code, "the kernel's machine code is too long", bytes)
    }
}

/// A limit and its value, written `edges=1000000`, `code=4M` or `time=10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting(pub Limit, pub u64);

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Limit::ALL.map(Limit::name).join(", ");
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, such as edges=1000000")?;
        let limit = Limit::ALL.into_iter().find(|limit| limit.name() == name);
        let limit = limit.ok_or_else(|| format!("no limit is called `{name}`; there are {}", names()))?;
        let expected = match limit.about().1 {
            Unit::Count => "a number such as 1000 or 4M",
            Unit::Bytes => "a size such as 500000, 512M or 4GiB",
            Unit::Milliseconds => "a time such as 500ms, 10s or 2min",
        };
        match limit.read(value) {
            Some(value) if value <= limit.most() => Ok(Self(limit, value)),
            _ => Err(format!("expected {expected}, up to {}", limit.show(limit.most()))),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.0.name(), self.0.show(self.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_unit() {
        for (text, expected) in
            [("0", 0), ("500", 500), ("1k", 1024), ("1.5M", 3 << 19), ("4GiB", 4 << 30), ("2 TB", 2 << 40), ("7B", 7)]
        {
            assert_eq!(parse_bytes(text), Some(expected), "{text}");
        }
        for text in ["", "M", "-1", "1X", "nan", "inf", "1 2"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn settings_are_read_in_their_units_and_refused_beyond_their_range() {
        let read = |text: &str| text.parse::<Setting>();
        assert_eq!(read("edges=4M"), Ok(Setting(Limit::Edges, 4 << 20)));
        assert_eq!(read("code=1MiB"), Ok(Setting(Limit::Code, 1 << 20)));
        assert_eq!(read("time=1s 500ms"), Ok(Setting(Limit::Time, 1500)));
        assert_eq!(read("depth=256"), Ok(Setting(Limit::Depth, 256)));
        for text in ["edges", "edge=1", "depth=257", "depth=1kB", "time=10", "code=-1", "length=3G"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_told_with_the_limit_and_its_option() {
        let limits = Limits::default().with(Limit::Code, 1 << 20).with(Limit::Depth, 1000);
        assert!(limits.check(Limit::Code, "the machine code", 1 << 20).is_ok());
        let error = limits.check(Limit::Code, "the machine code", 3 << 20).map_err(|error| error.to_string());
        let expected = "the machine code: 3.0 MiB; at most 1.0 MiB, the limit `code`; `--limit code=...` moves it";
        assert_eq!(error, Err(expected.to_owned()));
        assert_eq!(limits.get(Limit::Depth), Limit::Depth.most());
        assert_eq!(limits.expected(Limit::Depth), "at most 256, the limit `depth`");
        for limit in Limit::ALL {
            assert!(limit.default() <= limit.most());
            assert_eq!(Limits::default().get(limit), limit.default());
        }
    }
}

//! What every command understands: overrides, target, limits, and where specs come from.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::say::warn;
use crate::cache::Cache;
use crate::compiler::{Options, TuningSource};
use crate::error::{Bytes, Error, Result};
use crate::limits::{self, Limit, Limits, Setting};
use crate::machine::{self, Facts};
use crate::passes::Strategy;
use crate::pattern;
use crate::runtime;
use crate::spec::{self, PatternSpec, Source};
use crate::target::Isa;

/// Options that stand before or after any command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Replace a value of the spec, such as `diffusion.hops=3` or `pattern.any.0.window.radius=64`
    #[arg(long = "set", global = true, value_name = "PATH=VALUE", value_parser = assignment)]
    sets: Vec<(String, String)>,
    /// Let specs name any file, and specs from standard input name files at all
    #[arg(long, global = true)]
    allow_files: bool,
    /// Tile family
    #[arg(long, global = true, value_name = "FAMILY", default_value = "auto",
          value_parser = ["auto", "portable", "avx2", "avx512", "neon"])]
    isa: String,
    /// Threads to use; all cores where it is not given
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
    /// Most memory to take, such as 512M or 4G; 80 % of what is free where it is not given
    #[arg(long, global = true, value_name = "SIZE", value_parser = bytes)]
    memory_limit: Option<u64>,
    /// Another limit for specs, such as `edges=100M`, `code=4M` or `time=10s`: text, depth, aliases, nodes, heads, length,
    /// edges, expression, file, code, time
    #[arg(long = "limit", global = true, value_name = "NAME=VALUE")]
    limits: Vec<Setting>,
    /// Leave out a compiler pass, by name
    #[arg(long, global = true, value_name = "PASS", value_delimiter = ',')]
    without: Vec<String>,
    /// Strategy for the hops; the planner chooses where it is not given
    #[arg(long, global = true, value_name = "NAME", value_parser = strategy)]
    strategy: Option<Strategy>,
    /// Leave to the cost model what `tune` has found
    #[arg(long, global = true)]
    no_tuning: bool,
}

impl Global {
    /// What the compiler is asked for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a tile family that this machine does not run.
    pub fn compiler(&self) -> Result<Options> {
        Ok(Options {
            codes: None,
            isa: Isa::choose(&self.isa)?,
            threads: self.threads(),
            pool: None,
            planned_threads: None,
            strategy: self.strategy,
            bf16_dots: None,
            without: self.without.clone(),
            memory_limit: self.memory_limit(),
            tuning: self.tuning(),
            facts: Cache::of_user().and_then(|cache| Facts::cached(&cache).ok().flatten()),
        })
    }

    fn tuning(&self) -> TuningSource {
        if self.no_tuning { TuningSource::Nothing } else { TuningSource::User }
    }

    /// The same for a command that shows predictions: a machine that was never measured is measured now.
    ///
    /// # Errors
    /// As [`compiler`](Self::compiler).
    pub fn predicting_compiler(&self) -> Result<Options> {
        let options = self.compiler()?;
        Ok(Options { facts: Some(options.facts.unwrap_or_else(facts)), ..options })
    }

    /// Threads to use, at least 1.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(machine::cores)
    }

    /// Most bytes to take.
    pub fn memory_limit(&self) -> u64 {
        self.memory_limit.unwrap_or_else(machine::default_memory_limit)
    }

    /// A pool of [`threads`](Self::threads) threads for what does not bring its own.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the system gives no threads.
    pub fn pool(&self) -> Result<Arc<rayon::ThreadPool>> {
        runtime::pool(self.threads())
    }

    /// Reads a spec, with the values of `--set` in place.
    ///
    /// # Errors
    /// [`Error::Input`] when the file cannot be read, [`Error::Spec`] when it is wrong.
    pub fn load(&self, path: &Path) -> Result<PatternSpec> {
        self.parse(path, &self.text(path)?)
    }

    /// The text of a spec: a file, a shipped pattern where there is no file of its name, or standard input for `-`.
    ///
    /// # Errors
    /// [`Error::Input`] when it cannot be read or is no text, [`Error::Limit`] when it is too long.
    pub fn text(&self, path: &Path) -> Result<String> {
        if let (Some(text), false) = (path.to_str().and_then(spec::shipped), path.exists()) {
            return Ok(text.to_owned());
        }
        let limits = self.limits();
        // One byte too many tells enough.
        let most = limits.get(Limit::Text) + 1;
        let mut bytes = Vec::new();
        let read = match path.as_os_str() == "-" {
            true => io::stdin().take(most).read_to_end(&mut bytes),
            false => File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)),
        };
        let refuse = |message: String| Error::Input { path: shown(path).into(), message };
        read.map_err(|error| {
            let is_name = path.extension().is_none() && path.components().count() == 1;
            let names = || spec::SHIPPED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            refuse(match is_name && error.kind() == io::ErrorKind::NotFound {
                true => format!("is no file, and no shipped pattern; those are {}", names()),
                false => format!("cannot be read: {error}"),
            })
        })?;
        if bytes.len() as u64 == most {
            let (what, limit) = (shown(path), limits.expected(Limit::Text));
            let given = match path.metadata() {
                Ok(meta) if meta.is_file() => Bytes(meta.len()).to_string(),
                _ => format!("more than {}", Bytes(most - 1)),
            };
            return Err(Error::Limit { what, given, limit });
        }
        String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8 text; expected a spec in YAML".into()))
    }

    /// The same for a text that was read before.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(&self, path: &Path, text: &str) -> Result<PatternSpec> {
        pattern::read(self.source(path, text), &self.sets)
    }

    /// A text with what it may do.
    fn source(&self, path: &Path, text: &str) -> Source {
        let limits = self.limits();
        Source { allow_files: self.allow_files, limits, ..Source::new(text, shown(path)) }
    }

    fn limits(&self) -> Limits {
        self.limits.iter().fold(Limits::default(), |limits, &Setting(limit, value)| limits.with(limit, value))
    }

    /// The same with another number of hops, where one is given.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse_with_hops(&self, path: &Path, text: &str, hops: Option<usize>) -> Result<PatternSpec> {
        let Some(hops) = hops else { return self.parse(path, text) };
        let mut sets = self.sets.clone();
        sets.push(("diffusion.hops".into(), hops.to_string()));
        pattern::read(self.source(path, text), &sets)
    }
}

/// The numbers of this machine: those of the cache, or new ones, which are kept there. Where the cache is of no use,
/// standard error says so.
pub fn facts() -> Facts {
    let Some(cache) = Cache::of_user() else {
        return Facts::measure();
    };
    match Facts::cached(&cache) {
        Ok(Some(facts)) => return facts,
        Ok(None) => {}
        Err(error) => warn(&error),
    }
    let (facts, kept) = Facts::measure_into(&cache);
    if let Err(error) = kept {
        warn(&error);
    }
    facts
}

/// The name of a spec's file in messages.
pub fn shown(path: &Path) -> String {
    if path.as_os_str() == "-" { "<stdin>".into() } else { path.display().to_string() }
}

/// How long the sequences are.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = None)]
pub struct Lengths {
    /// Tokens: both lengths; 4k is 4096, 1M is 1048576
    #[arg(short = 'n', value_name = "N", value_parser = length, required_unless_present_all = ["q_len", "kv_len"],
          conflicts_with_all = ["q_len", "kv_len"])]
    n: Option<usize>,
    /// Queries, where they are not as many as keys
    #[arg(long, value_name = "M", value_parser = length, requires = "kv_len")]
    q_len: Option<usize>,
    /// Keys, where they are not as many as queries
    #[arg(long, value_name = "N", value_parser = length, requires = "q_len")]
    kv_len: Option<usize>,
}

impl Lengths {
    /// (q_len, kv_len)
    pub fn get(&self) -> (usize, usize) {
        // clap has made sure that n or both of the others are there.
        let n = self.n.unwrap_or(0);
        (self.q_len.unwrap_or(n), self.kv_len.unwrap_or(n))
    }
}

/// A spec on the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct SpecArg {
    /// Spec in YAML, or the name of a shipped pattern; - reads standard input
    #[arg(value_name = "SPEC")]
    pub spec: PathBuf,
}

/// A number of tokens: `4096`, `4k` or `1M`, in powers of 1024.
pub fn length(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    let length = digits.parse::<usize>().ok().and_then(|count| count.checked_mul(unit));
    length.ok_or_else(|| "expected a number of tokens, such as 4096, 4k (4096) or 1M (1048576)".into())
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok((path.into(), value.into())),
        _ => Err("expected PATH=VALUE, such as diffusion.hops=3".into()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("expected a number from 1 to 1024".into()),
    }
}

fn strategy(text: &str) -> Result<Strategy, String> {
    text.parse().map_err(|error: Error| error.to_string())
}

fn bytes(text: &str) -> Result<u64, String> {
    limits::parse_bytes(text).ok_or_else(|| "expected a size such as 500000, 512M or 4GiB".into())
}

/// Reads a number of seconds.
///
/// # Errors
/// What was expected.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected seconds from 0 to 3600".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_need_a_path() {
        assert_eq!(assignment("a.b=c=d"), Ok(("a.b".into(), "c=d".into())));
        assert_eq!(assignment("a="), Ok(("a".into(), String::new())));
        assert!(assignment("=1").is_err() && assignment("a").is_err());
    }
}

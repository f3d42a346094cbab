//! Plans that were found by measuring, one file for each problem.
//!
//! In: a [`Problem`] and the cache. Out: the [`Entry`] that `tune` wrote for exactly this problem on this CPU by this
//! version. An entry that is broken, of another version or of another CPU is refused with the name of its file, and the
//! caller goes on with the cost model's choice.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, digest};
use crate::error::{Error, Result};
use crate::machine::cpu_name;
use crate::plan::Choice;
use crate::spec::PatternSpec;
use crate::target::Isa;

/// What a plan is tuned for, besides the machine.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// The spec; its name and description do not count, nor where it was written.
    pub spec: &'a PatternSpec,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Tile family.
    pub isa: Isa,
    /// Threads of a call.
    pub threads: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Version of Hopweave that measured.
    pub version: String,
    /// The CPU's name for itself.
    pub cpu: String,
    /// Name of the spec, for people.
    pub name: String,
    /// Digest of what the spec says.
    pub spec: String,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Tile family.
    pub isa: Isa,
    /// Threads of a call.
    pub threads: usize,
    /// The fastest plan: the cost model's where no other was faster beyond the noise.
    pub choice: Choice,
    /// The cost model's choice at that time.
    pub model: Choice,
    /// Milliseconds of a call by the fastest plan, in the middle of those measured.
    pub median_ms: f64,
    /// The same of the model's choice, measured in turn with it.
    pub model_ms: f64,
}

impl Problem<'_> {
    /// The name of its entry. The CPU is part of it, so that machines may share a folder; the version is not, so that an
    /// entry of another version is noticed and replaced.
    pub fn entry_name(&self) -> String {
        let Self { q_len, kv_len, isa, threads, .. } = self;
        let lengths = format!("{q_len} {kv_len} {isa} {threads}");
        format!("tuned-{}.json", digest(&[cpu_name(), &self.spec_digest(), &lengths]))
    }

    /// A digest of what the spec says, however it is named.
    pub fn spec_digest(&self) -> String {
        let nameless = PatternSpec { name: String::new(), description: None, ..self.spec.clone() };
        digest(&[&nameless.print()])
    }

    /// The entry for this problem, with its file; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Input`] that names the file, where an entry is there but of no use.
    pub fn find(&self, cache: &Cache) -> Result<Option<(Entry, PathBuf)>> {
        let name = self.entry_name();
        let Some(entry) = cache.read::<Entry>(&name)? else { return Ok(None) };
        let path = cache.path(&name);
        let wrong = |message: String| Err(Error::Input { path: path.clone(), message });
        let again = "`hopweave tune` writes a new one";
        if entry.version != env!("CARGO_PKG_VERSION") {
            let (theirs, ours) = (&entry.version, env!("CARGO_PKG_VERSION"));
            return wrong(format!("is of version {theirs}, and this is {ours}; {again}"));
        }
        if entry.cpu != cpu_name() {
            return wrong(format!("is of the CPU `{}`, and this is `{}`; {again}", entry.cpu, cpu_name()));
        }
        let found = (entry.spec.as_str(), entry.q_len, entry.kv_len, entry.isa, entry.threads);
        if found != (self.spec_digest().as_str(), self.q_len, self.kv_len, self.isa, self.threads) {
            return wrong(format!("is of another spec, length, tile family or number of threads; {again}"));
        }
        if !entry.choice.tuning.is_valid() {
            return wrong(format!("asks for sizes that no plan has; {again}"));
        }
        Ok(Some((entry, path)))
    }

    /// Keeps what was found, in place of what was known before.
    ///
    /// # Errors
    /// [`Error::Input`] that names the folder or file which cannot be written.
    pub fn keep(&self, cache: &Cache, found: Found) -> Result<PathBuf> {
        let Found { choice, model, median_ms, model_ms } = found;
        let entry = Entry {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu: cpu_name().to_owned(),
            name: self.spec.name.clone(),
            spec: self.spec_digest(),
            q_len: self.q_len,
            kv_len: self.kv_len,
            isa: self.isa,
            threads: self.threads,
            choice,
            model,
            median_ms,
            model_ms,
        };
        cache.write(&self.entry_name(), &entry)
    }
}

/// What an [`Entry`] says about plans.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// The fastest plan.
    pub choice: Choice,
    /// The cost model's choice.
    pub model: Choice,
    /// Milliseconds of a call by the fastest.
    pub median_ms: f64,
    /// Milliseconds of a call by the model's choice.
    pub model_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::passes::Strategy;
    use crate::plan::Tuning;
    use crate::spec;

    fn spec(text: &str) -> PatternSpec {
        spec::parse(text, "<text>").unwrap()
    }

    fn problem(spec: &PatternSpec) -> Problem<'_> {
        Problem { spec, q_len: 128, kv_len: 128, isa: Isa::Portable, threads: 3 }
    }

    const WINDOW: &str = "name: a\nhead_dim: 4\npattern: {window: {radius: 3}}\n";

    #[test]
    fn names_follow_what_a_spec_says_and_not_how_it_is_called() {
        let [window, renamed, wider] = [
            WINDOW.to_owned(),
            "name: b\ndescription: text\nhead_dim: 4\nheads: 1\npattern: {window: {left: 3, right: 3}}\n".to_owned(),
            WINDOW.replace('3', "4"),
        ]
        .map(|text| spec(&text));
        let renamed = PatternSpec { pattern: window.pattern.clone(), ..renamed };
        assert_eq!(problem(&window).entry_name(), problem(&renamed).entry_name());
        let of_window = problem(&window);
        let others = [
            problem(&wider),
            Problem { q_len: 64, ..of_window },
            Problem { kv_len: 64, ..of_window },
            Problem { isa: Isa::Avx2, ..of_window },
            Problem { threads: 1, ..of_window },
        ];
        assert!(others.iter().all(|other| other.entry_name() != of_window.entry_name()));
    }

    #[test]
    fn entries_come_back_and_others_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().into());
        let spec = spec(WINDOW);
        let problem = problem(&spec);
        assert_eq!(problem.find(&cache).unwrap(), None);
        let model = Choice { strategy: Strategy::FLASH, store: Dtype::F32, tuning: Tuning::default() };
        let choice = Choice { tuning: Tuning { joint_keys: 512, ..Tuning::default() }, ..model };
        let path = problem.keep(&cache, Found { choice, model, median_ms: 1.0, model_ms: 1.25 }).unwrap();
        let (entry, found) = problem.find(&cache).unwrap().unwrap();
        assert_eq!((entry.choice, entry.model, &found), (choice, model, &path));
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, message) in [
            (format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION")), "\"version\": \"0.0.1\"", "of version 0.0.1"),
            (format!("\"cpu\": \"{}\"", cpu_name()), "\"cpu\": \"another\"", "of the CPU `another`"),
            ("\"kv_len\": 128".into(), "\"kv_len\": 129", "of another spec"),
            ("\"joint_keys\": 512".into(), "\"joint_keys\": 0", "sizes that no plan has"),
            ("\"choice\"".into(), "\"chioce\"", "no whole cache entry"),
            (text[text.len() / 2..].to_owned(), "", "no whole cache entry"),
        ] {
            let changed = text.replace(&from, to);
            assert_ne!(changed, text, "{from}");
            std::fs::write(&path, changed).unwrap();
            let error = problem.find(&cache).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains(&path.display().to_string()), "{error}");
        }
    }
}

//! Any text as a spec: refused with an error, or read, printed, and taken as far as machine code.
#![no_main]

use hopweave::compiler::{self, Options, Stage};
use hopweave::limits::{Limit, Limits};
use hopweave::spec::{self, Source};
use hopweave::{Error, pattern};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    // Lengths from the first byte: a few that are special, and odd ones.
    let Some((&first, text)) = data.split_first() else { return Corpus::Reject };
    let Ok(text) = std::str::from_utf8(text) else { return Corpus::Reject };
    let n = [0, 1, 2, 63, 64, 65, 100, 129][usize::from(first) % 8];
    let q_len = if first & 8 == 0 { n } else { usize::from(first) / 16 };
    // What is large takes its time; the fuzzer looks for what is wrong.
    let limits = Limits::default().with(Limit::Heads, 16).with(Limit::Edges, 1 << 20).with(Limit::Time, 5000);
    let parsed = pattern::read(Source { limits, ..Source::new(text, "<fuzz>") }, &[]);
    let spec = match parsed {
        Ok(spec) => spec,
        Err(error) => {
            assert!(matches!(error, Error::Spec(_)), "{error}");
            assert!(!error.to_string().is_empty());
            return Corpus::Keep;
        }
    };
    let printed = spec.print();
    let again = spec::parse(&printed, "<printed>").unwrap_or_else(|error| panic!("{printed}\n{error}"));
    assert!(spec.same(&again), "{printed}");
    if spec.diffusion.hops() > 16 {
        return Corpus::Keep;
    }
    let options = Options { threads: 1, memory_limit: 64 << 20, ..Options::reproducible() };
    for training in [false, true] {
        match compiler::emit(&spec, q_len, n, &options, (Stage::Asm, training)) {
            Err(error @ Error::Internal { .. }) => panic!("{error}"),
            Ok(_) | Err(_) => {}
        }
    }
    Corpus::Keep
});

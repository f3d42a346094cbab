//! Random specs through the whole compiler, on every tile family and strategy, against the interpreter.
//!
//! The first bytes are the seed of the property tests' generator; those behind them change single numbers of the spec that
//! it draws, so that what changes coverage can be changed a little more.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::specs::spec_text;
use common::{Oracle, Tensors, families, options, strategies};
use hopweave::compiler::{self, Options};
use hopweave::pattern;
use hopweave::spec::Source;
use libfuzzer_sys::{Corpus, fuzz_target};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Bytes of the seed.
const SEED: usize = 8;
/// Most numbers that are changed.
const CHANGES: usize = 16;

/// The spec with another value for one of the whole numbers of its sizes and its pattern.
fn with_number(text: &str, which: u8, value: u8) -> String {
    let end = text.find("\ndiffusion:").unwrap_or(text.len());
    let bytes = text.as_bytes();
    let stands_alone = |&(start, number): &(usize, &str)| {
        let before = start == 0 || matches!(bytes[start - 1], b' ' | b'[');
        let after = bytes.get(start + number.len()).is_none_or(|byte| matches!(byte, b',' | b']' | b'}' | b'\n'));
        // Half a quoted expression has an odd number of quotes before it.
        before && after && start < end && text[..start].matches('"').count() % 2 == 0
    };
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let numbers = numbers.map(|number| (number.as_ptr().addr() - text.as_ptr().addr(), number));
    let numbers: Vec<(usize, &str)> = numbers.filter(stands_alone).collect();
    match numbers.get(usize::from(which) % numbers.len().max(1)) {
        Some(&(start, number)) => format!("{}{value}{}", &text[..start], &text[start + number.len()..]),
        None => text.to_owned(),
    }
}

fuzz_target!(|data: &[u8]| -> Corpus {
    // The first byte is for what is not the spec's: the pass that is left out and the threads.
    let Some((&first, data)) = data.split_first() else { return Corpus::Reject };
    let (seed, changes) = data.split_at(data.len().min(SEED));
    let mut key = [0; 32];
    key[..seed.len()].copy_from_slice(seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &key));
    let Ok(tree) = spec_text().new_tree(&mut runner) else { return Corpus::Reject };
    let (text, n) = tree.current();
    let changes = changes.chunks_exact(2).take(CHANGES);
    let text = changes.fold(text, |text, change| with_number(&text, change[0], change[1]));
    let Ok(spec) = pattern::read(Source::new(text.clone(), "<spec>"), &[]) else { return Corpus::Reject };
    let Ok(pattern) = pattern::resolve(&spec, n, n) else { return Corpus::Reject };
    // The interpreter takes its time.
    if spec.heads > 4 || spec.head_dim.max(spec.value_dim) > 130 {
        return Corpus::Reject;
    }
    let tensors = Tensors::random(&spec, 1, n, u64::from(first));
    let oracle = Oracle::new(&pattern, &spec, &tensors);
    let without: Vec<String> =
        hopweave::passes::PASSES.get(usize::from(first) % 16).map(|pass| pass.name.to_string()).into_iter().collect();
    for isa in families() {
        for strategy in strategies(&spec, n) {
            let threads = usize::from(first) / 16 % 3 + 1;
            let options = Options { threads, without: without.clone(), ..options(isa, Some(strategy)) };
            let compiled = match compiler::compile(&spec, n, n, &options) {
                Ok(compiled) => compiled,
                // Flash lives on the pass that drops the loop.
                Err(hopweave::Error::Unsupported { .. }) if without == ["drop_single_hop_loop"] => continue,
                Err(error) => panic!("{text}\nn {n} {isa} {strategy}\n{error}"),
            };
            oracle.check(&tensors.run(&compiled), &|| format!("{text} n {n} {isa} {strategy} without {without:?}"));
        }
    }
    Corpus::Keep
});

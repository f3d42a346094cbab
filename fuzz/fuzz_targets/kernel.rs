//! Random specs through the whole compiler, on every tile family and strategy, against the interpreter.
//!
//! The bytes are the random numbers of the property tests' generator, so that what changes coverage changes the spec.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::specs::spec_text;
use common::{Numbers, Oracle, Tensors, families, options, spec_with, strategies};
use hopweave::compiler::{self, Options};
use hopweave::pattern;
use libfuzzer_sys::{Corpus, fuzz_target};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Words behind the bytes: more than any spec takes.
const TAIL: usize = 1 << 15;

fuzz_target!(|data: &[u8]| -> Corpus {
    // The first byte is for what is not the spec's: the pass that is left out and the threads.
    let Some((&first, numbers)) = data.split_first() else { return Corpus::Reject };
    // Behind the bytes come others without end: of zeros alone, some distributions never draw a number.
    let mut more =
        Numbers(numbers.iter().fold(0, |sum: u64, &byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))));
    let numbers: Vec<u8> = numbers.iter().copied().chain((0..TAIL).flat_map(|_| more.bits().to_le_bytes())).collect();
    let rng = TestRng::from_seed(RngAlgorithm::PassThrough, &numbers);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let Ok(tree) = spec_text().new_tree(&mut runner) else { return Corpus::Reject };
    let (text, n) = tree.current();
    let spec = spec_with(&text, &[]);
    let tensors = Tensors::random(&spec, 1, n, u64::from(first));
    let pattern = pattern::resolve(&spec, n, n).unwrap_or_else(|error| panic!("{text}\nn {n}\n{error}"));
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

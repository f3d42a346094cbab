//! Random specs, lengths and threads for as long as asked, every output compared with the interpreter, gradients with
//! themselves:
//!
//! ```sh
//! cargo run --release --example soak -- --minutes 10 --threads 8 --seed 1
//! ```
//!
//! Each thread draws a spec, compiles it with every strategy of a tile family, calls the kernels, repeats calls, repeats a
//! kernel that another thread has left, and drops them. The exit status says whether all was right.

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use common::specs::spec_text;
use common::{Numbers, Oracle, Tensors, families, options, process, spec_with, strategies};
use hopweave::Error;
use hopweave::compiler::{self, Compiled, Options};
use hopweave::error::Bytes;
use hopweave::limits::Limit;
use hopweave::pattern;
use hopweave::runtime::Output;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Random specs, lengths and threads against the interpreter.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Threads that compile and call at once.
    #[arg(long, default_value_t = 8)]
    threads: u64,
    /// What all random choices follow from; the order in which threads meet does not.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What has been done.
#[derive(Debug, Default)]
struct Counts {
    specs: u64,
    kernels: u64,
    calls: u64,
    gradients: u64,
    /// Kernels that were called once more after a thread, mostly another one, had left them.
    taken: u64,
    refused: BTreeMap<&'static str, u64>,
    failures: u64,
}

/// A kernel with a call and its result.
struct Called {
    compiled: Compiled,
    tensors: Tensors,
    bits: Vec<u32>,
}

/// Kernels that threads leave to each other.
const LEFT: usize = 8;

#[derive(Default)]
struct Shared {
    counts: Mutex<Counts>,
    left: Mutex<VecDeque<Arc<Called>>>,
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a kernel, and takes one that was left before.
    fn swap(&self, called: Called) -> Option<Arc<Called>> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.push_back(Arc::new(called));
        if left.len() > LEFT { left.pop_front() } else { left.front().cloned() }
    }

    fn refused(&self, error: &Error) {
        let reason = match error {
            Error::Spec(_) => "spec",
            Error::Memory { .. } => "memory limit",
            Error::Limit { .. } => "limit",
            Error::Unsupported { .. } => "unsupported",
            Error::Shape { .. } => "shape",
            other => panic!("{other}"),
        };
        *self.counts().refused.entry(reason).or_default() += 1;
    }
}

fn bits(output: &Output) -> Vec<u32> {
    output.out.iter().chain(&output.lse).map(|x| x.to_bits()).collect()
}

/// One spec, from drawing to dropping.
fn one(runner: &mut TestRunner, numbers: &mut Numbers, shared: &Shared, describe: &mut String) {
    let (text, n) = spec_text().new_tree(runner).expect("a spec").current();
    let mut below = |limit: u64| numbers.bits() % limit;
    let (batch, seed) = (1 + below(2) as usize, below(1 << 32));
    *describe = format!("{text}n {n} batch {batch} seed {seed}");
    let spec = spec_with(&text, &[]);
    let tensors = Tensors::random(&spec, batch, n, seed);
    let pattern = pattern::resolve(&spec, n, n).unwrap_or_else(|error| panic!("{error}"));
    let oracle = Oracle::new(&pattern, &spec, &tensors);
    let families = families();
    let isa = families[below(families.len() as u64) as usize];
    shared.counts().specs += 1;
    for strategy in strategies(&spec, n) {
        let passes = hopweave::passes::PASSES;
        let without: Vec<String> =
            passes.get(below(4 * passes.len() as u64) as usize).map(|pass| pass.name.to_owned()).into_iter().collect();
        let mut options = Options { threads: 1 + below(3) as usize, without, ..options(isa, Some(strategy)) };
        let mut spec = spec.clone();
        // Some are given too little.
        match below(20) {
            0 => options.memory_limit = below(1 << 16),
            1 => {
                let limits = &mut Arc::make_mut(&mut spec.source).limits;
                *limits = limits.with(Limit::Code, below(1 << 12));
            }
            _ => {}
        }
        *describe = format!("{text}n {n} batch {batch} seed {seed} {options:?}");
        let compiled = match compiler::compile(&spec, n, n, &options) {
            Ok(compiled) => compiled,
            Err(error) => {
                shared.refused(&error);
                continue;
            }
        };
        shared.counts().kernels += 1;
        let output = tensors.run(&compiled);
        oracle.check(&output, &|| format!("{isa} {strategy}"));
        let bits = bits(&output);
        let (q, k, v) = (tensors.q.view(), tensors.k.view(), tensors.v.view());
        let wrong = compiled.kernel.forward(q, k, v.slice(ndarray::s![.., .., .., ..0]));
        wrong.map_or_else(|error| shared.refused(&error), |_| panic!("a tensor of the wrong shape was taken"));
        assert!(self::bits(&tensors.run(&compiled)) == bits, "a second call gives another result");
        shared.counts().calls += 2;
        if below(4) == 0 {
            let gradients = || compiled.kernel.backward(q, k, v, output.out.view());
            match (gradients(), gradients()) {
                (Ok(first), Ok(second)) => {
                    let pairs = [(&first.q, &second.q), (&first.k, &second.k), (&first.v, &second.v)];
                    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                    assert!(
                        pairs.iter().all(|(a, b)| a.iter().zip(*b).all(same)),
                        "other gradients at the second call"
                    );
                    shared.counts().gradients += 2;
                }
                (Err(error), _) | (_, Err(error)) => shared.refused(&error),
            }
        }
        if let Some(other) = shared.swap(Called { compiled, tensors: tensors.clone(), bits }) {
            *describe = format!("left by a thread: {:?}", other.compiled.kernel.plan());
            assert!(self::bits(&other.tensors.run(&other.compiled)) == other.bits, "another result on another thread");
            let mut counts = shared.counts();
            counts.calls += 1;
            counts.taken += 1;
        }
    }
}

fn work(seed: u64, thread: u64, end: Instant, shared: &Shared) {
    let mut numbers = Numbers(seed.wrapping_mul(0x1_0000_0000).wrapping_add(thread));
    let bytes: Vec<u8> = (0..4).flat_map(|_| numbers.bits().to_le_bytes()).collect();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    while Instant::now() < end {
        let mut describe = String::new();
        // What fails is printed and counted, and the others go on.
        let done = catch_unwind(AssertUnwindSafe(|| one(&mut runner, &mut numbers, shared, &mut describe)));
        if done.is_err() {
            eprintln!("failed: {describe}");
            shared.counts().failures += 1;
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (start, shared) = (Instant::now(), Shared::default());
    let end = start + Duration::from_secs_f64(60.0 * arguments.minutes);
    let say = || {
        let resident = process::resident().map_or("unknown".to_owned(), |bytes| Bytes(bytes).to_string());
        let counts = shared.counts();
        let Counts { specs, kernels, calls, gradients, taken, refused, failures } = &*counts;
        println!(
            "{:.0} s: {specs} specs, {kernels} kernels, {calls} calls ({taken} of a kernel that a thread had left), \
             {gradients} gradients, refused {refused:?}, {failures} failures, resident {resident}",
            start.elapsed().as_secs_f64()
        );
    };
    say();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.threads)
            .map(|thread| {
                scope.spawn({
                    let shared = &shared;
                    move || work(arguments.seed, thread, end, shared)
                })
            })
            .collect();
        let mut minute = start + Duration::from_secs(60);
        while threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            if Instant::now() > minute {
                say();
                minute += Duration::from_secs(60);
            }
        }
    });
    shared.left.lock().unwrap_or_else(PoisonError::into_inner).clear();
    say();
    let counts = shared.counts();
    if counts.failures == 0 && counts.kernels > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! Kernels that many threads share, compile at once, misuse, or leave in a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};
use std::thread;

use crate::common::{Tensors, compile, families, options, oracle, spec_of};
use hopweave::compiler::{self, Compiled, Options};
use hopweave::half::bf16;
use hopweave::limits::Limit;
use hopweave::runtime::{Kernel, Output};
use hopweave::spec::PatternSpec;
use hopweave::target::Isa;
use hopweave::{Element, Error};
use ndarray::{Array4, ArrayView4, s};

const PATTERNS: [&str; 4] = [
    "causal",
    "{window: {radius: 20}}",
    "{any: [{window: {radius: 5}}, {global: {tokens: {random: {count: 9, seed: 3}}}}]}",
    "{random: {keys_per_query: 4, seed: 7}}",
];

const DIFFUSIONS: [&str; 2] = ["{hops: 1}", "{hops: 3, alpha: 0.25}"];

/// What two results must have in common.
fn bits(output: &Output) -> Vec<u32> {
    output.out.iter().chain(&output.lse).map(|x| x.to_bits()).collect()
}

fn forward(kernel: &Kernel, t: &Tensors) -> hopweave::Result<Output> {
    kernel.forward(t.q.view(), t.k.view(), t.v.view())
}

/// The bits of the gradients where the output's is `t.q`: widths are the same.
fn gradient(kernel: &Kernel, t: &Tensors) -> Vec<u32> {
    let found = kernel.backward(t.q.view(), t.k.view(), t.v.view(), t.q.view()).expect("gradients");
    found.q.iter().chain(&found.k).chain(&found.v).map(|x| x.to_bits()).collect()
}

#[test]
fn sixteen_threads_share_a_kernel() {
    let n = 150;
    for isa in families() {
        for pattern in PATTERNS {
            for diffusion in DIFFUSIONS {
                let spec = spec_of(pattern, 8, 8, diffusion);
                // Each thread has tensors of its own and calls of its own size, so that scratch changes hands.
                let tensors: Vec<_> = (0..16).map(|i| Tensors::random(&spec, 1 + i % 3, n, i as u64)).collect();
                let alone = compile(&spec, n, &options(isa, None));
                let expected: Vec<_> =
                    tensors.iter().map(|t| (bits(&t.run(&alone)), gradient(&alone.kernel, t))).collect();
                let shared = compile(&spec, n, &Options { threads: 2, ..options(isa, None) });
                let start = Barrier::new(16);
                thread::scope(|scope| {
                    for (i, (t, expected)) in tensors.iter().zip(&expected).enumerate() {
                        let (start, kernel) = (&start, shared.kernel.clone());
                        scope.spawn(move || {
                            start.wait();
                            // The kernel for training is compiled by whoever comes first.
                            for turn in 0..4 {
                                let found = forward(&kernel, t).expect("a result");
                                assert!(bits(&found) == expected.0, "{pattern} {diffusion} {isa} thread {i}");
                                if turn % 2 == i % 2 {
                                    assert!(
                                        gradient(&kernel, t) == expected.1,
                                        "{pattern} {diffusion} {isa} thread {i}"
                                    );
                                }
                            }
                        });
                    }
                });
            }
        }
    }
}

#[test]
fn threads_compile_at_once() {
    // Every spec has another length and another family, and every thread compiles all of them in another order.
    let families = families();
    let cases: Vec<(PatternSpec, usize, Isa)> = PATTERNS
        .iter()
        .flat_map(|pattern| DIFFUSIONS.map(|diffusion| spec_of(pattern, 8, 8, diffusion)))
        .enumerate()
        .map(|(i, spec)| (spec, 60 + 17 * i, families[i % families.len()]))
        .collect();
    let alone: Vec<_> = cases
        .iter()
        .map(|(spec, n, isa)| {
            let (tensors, oracle) = oracle(spec, 1, *n, 5);
            let compiled = compile(spec, *n, &options(*isa, None));
            let output = tensors.run(&compiled);
            oracle.check(&output, &|| format!("{} n {n} {isa}", spec.print()));
            let text = compiled.kernel.plan().print();
            (bits(&output), gradient(&compiled.kernel, &tensors), tensors, text)
        })
        .collect();
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for first in 0..8 {
            let (cases, alone, start) = (&cases, &alone, &start);
            scope.spawn(move || {
                start.wait();
                for i in 0..cases.len() {
                    let i = (first + i * (1 + 2 * (first % 2))) % cases.len();
                    let ((spec, n, isa), (output, gradients, tensors, text)) = (&cases[i], &alone[i]);
                    let compiled = compile(spec, *n, &options(*isa, None));
                    assert_eq!(&compiled.kernel.plan().print(), text);
                    assert!(&bits(&tensors.run(&compiled)) == output, "{} n {n} {isa}", spec.print());
                    assert!(&gradient(&compiled.kernel, tensors) == gradients, "{} n {n} {isa}", spec.print());
                }
            });
        }
    });
}

/// A kernel, tensors and the result of a first call; every misuse is followed by the same call.
struct Kept {
    spec: PatternSpec,
    compiled: Arc<Compiled>,
    tensors: Tensors,
    expected: (Vec<u32>, Vec<u32>),
}

const N: usize = 150;

impl Kept {
    fn all() -> impl Iterator<Item = Self> {
        let specs = DIFFUSIONS.map(|diffusion| spec_of(PATTERNS[2], 8, 8, diffusion));
        let cases = families().into_iter().flat_map(move |isa| specs.clone().map(|spec| (isa, spec)));
        cases.flat_map(|(isa, spec)| {
            [1, 2].map(|threads| {
                let compiled = Arc::new(compile(&spec, N, &Options { threads, ..options(isa, None) }));
                let tensors = Tensors::random(&spec, 2, N, 3);
                let expected = (bits(&tensors.run(&compiled)), gradient(&compiled.kernel, &tensors));
                Self { spec: spec.clone(), compiled, tensors, expected }
            })
        })
    }

    fn check(&self) {
        let Self { compiled, tensors, expected, .. } = self;
        assert!(bits(&tensors.run(compiled)) == expected.0, "the output is another one");
        assert!(gradient(&compiled.kernel, tensors) == expected.1, "the gradients are others");
    }
}

#[test]
fn a_panic_beside_a_kernel_poisons_nothing() {
    for kept in Kept::all() {
        // A thread that ends in a panic while it holds the kernel, between calls, beside others that go on.
        thread::scope(|scope| {
            let panics = scope.spawn(|| {
                kept.check();
                let _held = kept.compiled.kernel.clone();
                std::panic::resume_unwind(Box::new("on purpose"));
            });
            (0..4).for_each(|_| _ = scope.spawn(|| kept.check()));
            assert!(panics.join().is_err());
        });
        // A panic on a worker of the very pool that calls run on.
        let pool = hopweave::runtime::pool(kept.compiled.kernel.threads()).expect("a pool");
        let panics = catch_unwind(AssertUnwindSafe(|| {
            pool.install(|| {
                kept.check();
                std::panic::resume_unwind(Box::new("on purpose"))
            })
        }));
        assert!(panics.is_err());
        kept.check();
    }
}

#[test]
fn refused_calls_leave_a_kernel_usable() {
    for kept in Kept::all() {
        let Kept { spec, compiled, tensors: t, .. } = &kept;
        let kernel = &compiled.kernel;
        let short = t.q.slice(s![.., .., 1.., ..]);
        let other = t.q.mapv(bf16::nearest);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        let shape = kernel.forward(short, t.k.view(), t.v.view());
                        assert!(matches!(shape, Err(Error::Shape { .. })));
                        let shape = kernel.backward(t.q.view(), t.k.view(), t.v.view(), short);
                        assert!(matches!(shape, Err(Error::Shape { .. })));
                        let dtype = kernel.forward(other.view(), other.view(), other.view());
                        assert!(matches!(dtype, Err(Error::Dtype { .. })));
                        let frugal = Options { memory_limit: 1000, ..options(kernel.plan().isa, None) };
                        let memory = compiler::compile(spec, N, N, &frugal);
                        assert!(matches!(memory, Err(Error::Memory { .. })));
                        let mut limited = spec.clone();
                        let limits = &mut Arc::make_mut(&mut limited.source).limits;
                        *limits = limits.with(Limit::Code, 1);
                        let code = compiler::compile(&limited, N, N, &options(kernel.plan().isa, None));
                        assert!(matches!(code, Err(Error::Limit { .. })));
                    }
                });
                scope.spawn(|| kept.check());
            }
        });
        kept.check();
    }
}

/// One number, as a tensor of any shape.
fn repeated<T>(number: &Array4<T>, shape: (usize, usize, usize, usize)) -> ArrayView4<'_, T> {
    number.broadcast(shape).expect("a number for every place")
}

/// Calls whose tensors take no memory, and whose results take more than any system has.
fn assert_no_room<T: Element>(compiled: &Compiled) {
    let number = Array4::from_elem((1, 1, 1, 1), T::default());
    // The second is more bytes than there are numbers for.
    for batch in [1 << 40, 1 << 49] {
        let x = repeated(&number, (batch, 2, N, 8));
        let forward = compiled.kernel.forward(x, x, x);
        assert!(matches!(&forward, Err(Error::OutOfMemory { .. })), "{forward:?}");
        let backward = compiled.kernel.backward(x, x, x, x);
        assert!(matches!(&backward, Err(Error::OutOfMemory { .. })), "{backward:?}");
    }
}

#[test]
fn a_call_that_does_not_fit_into_memory_is_an_error() {
    for kept in Kept::all() {
        thread::scope(|scope| {
            scope.spawn(|| assert_no_room::<f32>(&kept.compiled));
            scope.spawn(|| kept.check());
        });
        kept.check();
    }
    let spec = PatternSpec { dtype: bf16::DTYPE, ..spec_of(PATTERNS[2], 8, 8, DIFFUSIONS[1]) };
    let compiled = compile(&spec, N, &options(Isa::best(), None));
    assert_no_room::<bf16>(&compiled);
    let number = Array4::from_elem((1, 1, 1, 1), bf16::ONE);
    let x = repeated(&number, (1, 2, N, 8));
    compiled.kernel.forward(x, x, x).expect("a result");
}

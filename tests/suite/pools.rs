//! Kernels on pools of callers, whatever those do: results are those of rayon's threads, to the bit.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use crate::common::{Tensors, compile, families, options, spec_of};
use hopweave::compiler::{self, Options};
use hopweave::operator::{Arguments, Operator};
use hopweave::runtime::{Kernel, Pool};
use hopweave::target::Isa;
use ndarray::{Array3, Array4};

/// A window, rows without keys, parts, edges, and hops in several nests.
const CASES: [(&str, &str); 5] = [
    ("{window: {radius: 20}}", "{hops: 1}"),
    ("{all: [causal, {not: {window: {radius: 70}}}]}", "{hops: 1}"),
    ("{any: [{window: {radius: 9}}, {strided: {step: 16, mode: vertical}}]}", "{hops: 1}"),
    ("{random: {keys_per_query: 4, seed: 7}}", "{hops: 3, alpha: 0.25}"),
    ("{window: {radius: 30}}", "{hops: 3, alpha: 0.25}"),
];

const N: usize = 450;

/// How a pool enters what it is given.
#[derive(Debug, Clone, Copy)]
enum Way {
    Never,
    Once,
    /// More often than it was asked to, from as many threads.
    TooOften,
    OneAfterTheOther,
    /// From threads that all call at the same moment, one of them twice.
    AtOnce,
    /// From a thread of another pool.
    Elsewhere,
}

const WAYS: [Way; 6] = [Way::Never, Way::Once, Way::TooOften, Way::OneAfterTheOther, Way::AtOnce, Way::Elsewhere];

#[derive(Debug)]
struct Odd {
    way: Way,
    /// Numbers of threads, in turn.
    threads: &'static [usize],
    asked: AtomicUsize,
    runs: AtomicUsize,
}

impl Odd {
    fn new(way: Way, threads: &'static [usize]) -> Arc<Self> {
        Arc::new(Self { way, threads, asked: AtomicUsize::new(0), runs: AtomicUsize::new(0) })
    }
}

impl Pool for Odd {
    fn threads(&self) -> usize {
        self.threads[self.asked.fetch_add(1, Ordering::Relaxed) % self.threads.len()]
    }

    fn run(&self, workers: usize, work: &(dyn Fn() + Sync)) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        match self.way {
            Way::Never => {}
            Way::Once => work(),
            Way::TooOften => thread::scope(|scope| (0..2 * workers + 3).for_each(|_| _ = scope.spawn(work))),
            Way::OneAfterTheOther => (0..workers).for_each(|_| work()),
            Way::AtOnce => {
                let start = Barrier::new(3);
                thread::scope(|scope| {
                    for _ in 0..3 {
                        scope.spawn(|| {
                            start.wait();
                            work();
                        });
                    }
                });
                work();
            }
            Way::Elsewhere => hopweave::runtime::pool(2).expect("a pool").run(workers, work),
        }
    }
}

/// The bits of an output and of gradients.
fn bits(kernel: &Kernel, t: &Tensors) -> Vec<u32> {
    let output = kernel.forward(t.q.view(), t.k.view(), t.v.view()).expect("a result");
    let found = kernel.backward(t.q.view(), t.k.view(), t.v.view(), t.q.view()).expect("gradients");
    let all = output.out.iter().chain(&output.lse).chain(&found.q).chain(&found.k).chain(&found.v);
    all.map(|x| x.to_bits()).collect()
}

#[test]
fn whatever_a_pool_does_results_are_the_same() {
    for (pattern, diffusion) in CASES {
        let spec = spec_of(pattern, 8, 8, diffusion);
        for isa in families() {
            let plain = options(isa, None);
            let own = compile(&spec, N, &plain).kernel;
            // Units are heads of a batch, or rows of few heads.
            let tensors = [1, 6].map(|batch| Tensors::random(&spec, batch, N, 3));
            let expected = tensors.each_ref().map(|t| bits(&own, t));
            for way in WAYS {
                for threads in [&[2][..], &[0], &[3, 1, 7]] {
                    let pool = Odd::new(way, threads);
                    let odd = Options { pool: Some(pool.clone()), ..plain.clone() };
                    let kernel = compile(&spec, N, &odd).kernel;
                    for turn in 0..2 {
                        for (t, expected) in tensors.iter().zip(&expected) {
                            assert!(bits(&kernel, t) == *expected, "{pattern} {isa} {way:?} {threads:?} call {turn}");
                        }
                    }
                    let ran = pool.runs.load(Ordering::Relaxed) > 0;
                    assert_eq!(ran, *threads != [0], "{pattern} {way:?} {threads:?}");
                }
            }
        }
    }
}

#[test]
fn a_pool_that_says_too_much_is_not_believed() {
    let spec = spec_of(CASES[0].0, 8, 8, CASES[0].1);
    let plain = options(Isa::best(), None);
    let pool: Arc<dyn Pool> = Odd::new(Way::Once, &[usize::MAX]);
    let kernel = compile(&spec, N, &Options { pool: Some(pool), ..plain.clone() }).kernel;
    let tensors = Tensors::random(&spec, 1, N, 3);
    assert!(bits(&kernel, &tensors) == bits(&compile(&spec, N, &plain).kernel, &tensors));
    assert!(kernel.threads() < 100_000);
}

#[test]
fn kernels_are_called_from_within_pools() {
    let spec = spec_of(CASES[4].0, 8, 8, CASES[4].1);
    let on_two = Options { threads: 2, ..options(Isa::best(), None) };
    let kernel = compile(&spec, N, &on_two).kernel;
    let tensors = Tensors::random(&spec, 3, N, 3);
    let expected = bits(&kernel, &tensors);
    // From workers of its own pool, all at once, and of another one.
    for threads in [2, 3] {
        let pool = hopweave::runtime::pool(threads).expect("a pool");
        let same = pool.broadcast(|_| bits(&kernel, &tensors) == expected);
        assert_eq!(same, vec![true; threads]);
    }
    // From workers of a caller's pool, on that pool.
    let pool: Arc<dyn Pool> = Odd::new(Way::AtOnce, &[3]);
    let on_it = compile(&spec, N, &Options { pool: Some(Arc::clone(&pool)), ..on_two }).kernel;
    let same = AtomicUsize::new(0);
    pool.run(3, &|| _ = same.fetch_add(usize::from(bits(&on_it, &tensors) == expected), Ordering::Relaxed));
    assert_eq!(same.into_inner(), 4);
}

#[test]
fn workers_that_stay_on_a_core_know_of_all() {
    let cores = hopweave::machine::cores();
    let pool = hopweave::runtime::pool(cores).expect("a pool");
    assert_eq!(pool.broadcast(|_| hopweave::machine::describe().cores), vec![cores; cores]);
    assert_eq!(pool.install(|| Options::default().threads), cores);
}

#[test]
fn a_panic_on_a_pool_reaches_the_caller() {
    let pool = hopweave::runtime::pool(2).expect("a pool");
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Pool::run(&*pool, 2, &|| std::panic::resume_unwind(Box::new("on purpose")));
    }));
    assert!(panics.is_err());
}

#[test]
fn results_go_into_memory_of_the_caller_whatever_it_holds() {
    let nan = |dim| Array4::from_elem(dim, f32::NAN);
    for (pattern, diffusion) in CASES {
        let spec = spec_of(pattern, 8, 8, diffusion);
        for (batch, key_lengths) in [(1, None), (6, None), (2, Some([N as i64, 77])), (2, Some([60, 60]))] {
            let operator = Operator::new(spec.clone(), N, N, Options { threads: 2, ..options(Isa::best(), None) });
            let operator = operator.expect("an operator");
            let t = Tensors::random(&spec, batch, N, 3);
            let (q, k, v) = (t.q.view(), t.k.view(), t.v.view());
            let arguments =
                Arguments { key_lengths: key_lengths.as_ref().map(|lengths| &lengths[..]), ..Arguments::default() };
            let expected = operator.forward(q, k, v, &arguments).expect("a result");
            let (mut out, mut lse) = (nan(q.dim()), Array3::from_elem((batch, 2, N), f32::NAN));
            operator.forward_into([q, k, v], &arguments, &mut out.view_mut(), &mut lse.view_mut()).expect("a result");
            assert_eq!((&out, &lse), (&expected.out, &expected.lse), "{pattern} {batch} {key_lengths:?}");
            let expected = operator.backward(q, k, v, q, None, &arguments).expect("gradients");
            let mut into = [q, k, v].map(|of| nan(of.dim()));
            let views = into.each_mut().map(|tensor| tensor.view_mut());
            operator.backward_into([q, k, v, q], None, &arguments, views).expect("gradients");
            assert_eq!(into, [expected.q, expected.k, expected.v], "{pattern} {batch} {key_lengths:?}");
            // A tensor that is not in standard layout is written all the same.
            let mut turned = nan((q.dim().0, q.dim().2, q.dim().1, q.dim().3));
            let [into_k, into_v] = &mut into[1..] else { unreachable!() };
            let (into_k, into_v) = (into_k.view_mut(), into_v.view_mut());
            let views = [turned.view_mut().permuted_axes([0, 2, 1, 3]), into_k, into_v];
            operator.backward_into([q, k, v, q], None, &arguments, views).expect("gradients");
            let expected = operator.backward(q, k, v, q, None, &arguments).expect("gradients").q;
            assert_eq!(turned.permuted_axes([0, 2, 1, 3]), expected);
        }
    }
}

#[test]
fn results_that_do_not_fit_are_refused() {
    let spec = spec_of(CASES[0].0, 8, 8, CASES[0].1);
    let operator = Operator::new(spec.clone(), N, N, options(Isa::best(), None)).expect("an operator");
    let t = Tensors::random(&spec, 1, N, 3);
    let (q, k, v) = (t.q.view(), t.k.view(), t.v.view());
    let arguments = Arguments::default();
    let (mut out, mut lse) = (Array4::zeros((1, 2, N, 9)), Array3::zeros((1, 2, N)));
    let refused = operator.forward_into([q, k, v], &arguments, &mut out.view_mut(), &mut lse.view_mut());
    assert!(refused.is_err_and(|error| error.to_string().starts_with("out: ")));
    let [mut dq, mut dk] = [Array4::zeros(q.dim()), Array4::zeros(q.dim())];
    let into = [dq.view_mut(), dk.view_mut(), out.view_mut()];
    let refused = operator.backward_into([q, k, v, q], None, &arguments, into);
    assert!(refused.is_err_and(|error| error.to_string().starts_with("the gradient of v: ")));
}

/// Without queries nothing runs, and gradients of keys are zero all the same.
#[test]
fn no_queries_give_no_gradients() {
    let spec = spec_of(CASES[0].0, 8, 8, CASES[0].1);
    let compiled = compiler::compile(&spec, 0, N, &options(Isa::best(), None)).expect("a kernel");
    let q = Array4::<f32>::zeros((1, 2, 0, 8));
    let k = Array4::<f32>::ones((1, 2, N, 8));
    let mut into = [q.clone(), k.mapv(|_| f32::NAN), k.mapv(|_| f32::NAN)];
    let views = into.each_mut().map(|tensor| tensor.view_mut());
    let tensors = [q.view(), k.view(), k.view(), q.view()];
    let kernel = compiled.kernel.training().expect("a kernel");
    kernel.backward_into(tensors, None, &Default::default(), views).expect("gradients");
    assert!(into[1].iter().chain(&into[2]).all(|&x| x == 0.0));
}

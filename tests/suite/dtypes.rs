//! bf16 and f16 storage of q, k, v and the output: every tile family × every pattern file × lengths × hops × legal
//! strategies against the interpreter on the stored numbers, tensors that end at a guard page, strides, and what NaN,
//! infinities and numbers beyond a type's range do.
//!
//! An output element may be farther from the interpreter's by 1.1 times half the spacing of stored numbers than an f32
//! kernel's, and no more: nothing is rounded but the output, once.

use crate::common::guarded::{Place, forward};
use crate::common::{
    Oracle, Tensors, compile, families, fitting_length, options, pattern_files, small_spec, spec_of, strategies,
};
use hopweave::compiler::{self, Compiled, Options};
use hopweave::half::{bf16, f16};
use hopweave::machine::Facts;
use hopweave::passes::Strategy;
use hopweave::runtime::Output;
use hopweave::spec::PatternSpec;
use hopweave::target::Isa;
use hopweave::tiles::stored::dots_serve;
use hopweave::{Dtype, Element, pattern};
use ndarray::{Array4, s};

/// The ways to compute on stored `T`: dot products of bf16 pairs are one more where the CPU has them.
fn ways<T: Element>(isa: Isa, strategy: Option<Strategy>, head_dim: usize) -> Vec<Options> {
    let plain = Options { bf16_dots: Some(false), ..options(isa, strategy) };
    let dots = Options { bf16_dots: Some(true), ..plain.clone() };
    if dots_serve(isa, T::DTYPE, head_dim) { vec![plain, dots] } else { vec![plain] }
}

/// Runs that shift, gathered lists, scattered edges, dense rows.
const MIXED: &str = "{any: [{window: {radius: 9}}, {global: {tokens: {every: 37, offset: 5}}}, \
                     {random: {keys_per_query: 3, seed: 4}}]}";

/// A spec of 2 heads, stored as `dtype`.
fn spec_in(dtype: Dtype, pattern: &str, head_dim: usize, value_dim: usize, diffusion: &str) -> PatternSpec {
    PatternSpec { dtype, ..spec_of(pattern, head_dim, value_dim, diffusion) }
}

/// Stored inputs.
struct Stored<T> {
    q: Array4<T>,
    k: Array4<T>,
    v: Array4<T>,
}

impl<T: Element> Stored<T> {
    fn of(tensors: &Tensors) -> Self {
        let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(|tensor| tensor.mapv(T::nearest));
        Self { q, k, v }
    }

    /// The same numbers in f32.
    fn widened(&self) -> Tensors {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|tensor| tensor.mapv(T::widen));
        Tensors { q, k, v }
    }

    fn run(&self, compiled: &Compiled) -> Output<T> {
        self.run_at(compiled, Place::End)
    }

    fn run_at(&self, compiled: &Compiled, place: Place) -> Output<T> {
        forward(compiled, [&self.q, &self.k, &self.v], place)
    }
}

/// Random inputs and what the interpreter makes of them as they are stored.
fn stored_oracle<T: Element>(spec: &PatternSpec, batch: usize, n: usize, seed: u64) -> (Stored<T>, Oracle) {
    let stored = Stored::of(&Tensors::random(spec, batch, n, seed));
    let pattern = pattern::resolve(spec, n, n).expect("a pattern");
    let oracle = Oracle::new(&pattern, spec, &stored.widened());
    (stored, oracle)
}

/// Half the distance between neighboring numbers of a type at `x`.
fn half_spacing(dtype: Dtype, x: f64) -> f64 {
    let (fraction, lowest) = match dtype {
        Dtype::F32 => (23, -126),
        Dtype::Bf16 => (7, -126),
        Dtype::F16 => (10, -14),
    };
    let exponent = if x == 0.0 { lowest } else { (x.abs().log2().floor() as i32).max(lowest) };
    2.0_f64.powi(exponent - fraction - 1)
}

fn check<T: Element>(oracle: &Oracle, found: &Output<T>, what: &dyn Fn() -> String) {
    assert_eq!(found.out.shape(), oracle.out.shape(), "{}", what());
    for ((place, x), &y) in found.out.indexed_iter().zip(&oracle.out) {
        let x = f64::from(x.widen());
        let bound = oracle.out_bound + 1.1 * half_spacing(T::DTYPE, y.abs() + oracle.out_bound);
        let near = if y.is_finite() { (x - y).abs() <= bound } else { !x.is_finite() };
        assert!(near, "out at {place:?} is {x:e}, expected {y:e} within {bound:e}: {}", what());
    }
    // The log-sum-exp is f32 and held to the bound of f32.
    let lse = Output { out: oracle.out.mapv(|x| x as f32), lse: found.lse.clone() };
    oracle.check(&lse, what);
}

fn conform<T: Element>(lengths: &[usize], hops: &[usize]) {
    let mut cases = 0;
    for (name, text) in pattern_files() {
        for &n in lengths {
            for &hops in hops {
                let diffusion = format!("diffusion={{hops: {hops}, alpha: {}}}", if hops == 1 { 0.0 } else { 0.1 });
                let dtype = format!("dtype={}", T::DTYPE);
                // Wide enough for whole vectors of every family, and for a rest.
                let spec = small_spec(&text, &["head_dim=20", &diffusion, &dtype]);
                let n = fitting_length(&spec, n);
                let (stored, oracle) = stored_oracle::<T>(&spec, 1, n, n as u64);
                for isa in families() {
                    for strategy in strategies(&spec, n) {
                        for options in ways::<T>(isa, Some(strategy), spec.head_dim) {
                            let compiled = compile(&spec, n, &options);
                            let what = || format!("{name} n {n} hops {hops} {options:?}");
                            check(&oracle, &stored.run(&compiled), &what);
                            cases += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(cases >= 13 * lengths.len() * families().len());
}

#[test]
fn pattern_files_conform_in_bf16() {
    conform::<bf16>(&[0, 1, 2, 63, 65, 251], &[1, 2, 3]);
}

#[test]
fn pattern_files_conform_in_f16() {
    conform::<f16>(&[0, 1, 2, 63, 65, 251], &[1, 2, 3]);
}

#[test]
fn pattern_files_conform_at_a_thousand() {
    conform::<bf16>(&[1000], &[1, 5]);
    conform::<f16>(&[1000], &[1]);
}

fn widths<T: Element>() {
    let (narrow, wide) =
        ([1, 3, 7, 8, 15, 16, 17, 33, 64, 100, 257, 512], [512, 257, 100, 64, 33, 17, 16, 15, 8, 7, 3, 1]);
    for (&head_dim, &value_dim) in narrow.iter().zip(&wide) {
        for diffusion in ["{hops: 1}", "{hops: 1, alpha: 0.3}", "{hops: 2, alpha: 0.2}", "{coefficients: [0.5]}"] {
            let spec = spec_in(T::DTYPE, MIXED, head_dim, value_dim, diffusion);
            let (stored, oracle) = stored_oracle::<T>(&spec, 2, 150, 3);
            for isa in families() {
                for strategy in strategies(&spec, 150) {
                    for options in ways::<T>(isa, Some(strategy), head_dim) {
                        let compiled = compile(&spec, 150, &Options { threads: 2, ..options.clone() });
                        let what = || format!("{head_dim} {value_dim} {diffusion} {options:?}");
                        check(&oracle, &stored.run(&compiled), &what);
                    }
                }
            }
        }
    }
}

#[test]
fn every_width_conforms_in_bf16() {
    widths::<bf16>();
}

#[test]
fn every_width_conforms_in_f16() {
    widths::<f16>();
}

/// Every pass left out, one at a time: slower forms read the same tensors.
#[test]
fn kernels_without_a_pass_conform() {
    for diffusion in ["{hops: 1, alpha: 0.2}", "{hops: 3, alpha: 0.1}"] {
        let spec = spec_in(Dtype::Bf16, MIXED, 20, 20, diffusion);
        let (stored, oracle) = stored_oracle::<bf16>(&spec, 1, 200, 9);
        for pass in hopweave::passes::PASSES {
            for isa in families() {
                let options = Options { without: vec![pass.name.to_owned()], ..options(isa, None) };
                let compiled = compile(&spec, 200, &options);
                check(&oracle, &stored.run(&compiled), &|| format!("without {} {diffusion} {isa}", pass.name));
            }
        }
    }
}

/// Many edges a query, so that a query's rows do not fit into the buffer at once.
#[test]
fn queries_with_many_scattered_edges_conform() {
    let spec = spec_in(Dtype::F16, "{random: {keys_per_query: 300, seed: 2}}", 20, 33, "{hops: 2, alpha: 0.1}");
    let (stored, oracle) = stored_oracle::<f16>(&spec, 1, 700, 2);
    for isa in families() {
        let compiled = compile(&spec, 700, &options(isa, None));
        check(&oracle, &stored.run(&compiled), &|| format!("{isa}"));
    }
}

/// Patterns for which a kernel reads the last and the first row of every tensor.
const PATTERNS: [&str; 5] = [
    "full",
    "{window: {radius: 20}}",
    "{any: [{window: {radius: 5}}, {global: {tokens: {random: {count: 9, seed: 3}}}}, {global: {tokens: {last: 1}}}]}",
    "{any: [{global: {tokens: {every: 5}, axis: keys}}, {sink: 3}, {global: {tokens: {last: 2}, axis: keys}}]}",
    "{random: {keys_per_query: 4, seed: 7}}",
];

fn guarded<T: Element>() {
    let widths = [(1, 1), (3, 5), (17, 15), (33, 31), (7, 65), (64, 64), (100, 9)];
    for (i, pattern) in PATTERNS.iter().enumerate() {
        for diffusion in ["{hops: 1}", "{hops: 1, alpha: 0.5}", "{hops: 2, alpha: 0.1}"] {
            for n in [1, 2, 17, 63, 65, 201] {
                let (head_dim, value_dim) = widths[(i + n + diffusion.len()) % widths.len()];
                let spec = spec_in(T::DTYPE, pattern, head_dim, value_dim, diffusion);
                let (stored, oracle) = stored_oracle::<T>(&spec, 1, n, n as u64);
                for isa in families() {
                    for strategy in strategies(&spec, n) {
                        for options in ways::<T>(isa, Some(strategy), head_dim) {
                            let compiled = compile(&spec, n, &options);
                            for place in Place::ALL {
                                let what = || format!("{pattern} {diffusion} n {n} {head_dim} {value_dim} {options:?}");
                                check(&oracle, &stored.run_at(&compiled, place), &what);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn tensors_of_bf16_at_guard_pages() {
    guarded::<bf16>();
}

#[test]
fn tensors_of_f16_at_guard_pages() {
    guarded::<f16>();
}

#[test]
fn strides_make_no_difference() {
    let n = 130;
    for diffusion in ["{hops: 1, alpha: 0.2}", "{hops: 2, alpha: 0.1}"] {
        let spec = spec_in(Dtype::Bf16, MIXED, 9, 17, diffusion);
        let (stored, oracle) = stored_oracle::<bf16>(&spec, 2, n, 5);
        let tensors = [&stored.q, &stored.k, &stored.v];
        // [length, heads, batch, width] in memory with gaps between rows, and a last axis that is not contiguous.
        let moved = tensors.map(|tensor| {
            let (b, h, n, d) = tensor.dim();
            let mut wide = Array4::from_elem((n, h, b, d + 3), bf16::NAN);
            wide.slice_mut(s![.., .., .., 1..d + 1]).assign(&tensor.view().permuted_axes([2, 1, 0, 3]));
            wide
        });
        let moved = [&moved[0], &moved[1], &moved[2]]
            .map(|wide| wide.slice(s![.., .., .., 1..wide.dim().3 - 2]).permuted_axes([2, 1, 0, 3]));
        let turned = tensors.map(|tensor| tensor.t().as_standard_layout().into_owned());
        let turned = [&turned[0], &turned[1], &turned[2]].map(|tensor| tensor.t());
        for isa in families() {
            for strategy in strategies(&spec, n) {
                let compiled = compile(&spec, n, &options(isa, Some(strategy)));
                let plain = stored.run(&compiled);
                check(&oracle, &plain, &|| format!("{diffusion} {isa} {strategy}"));
                for [q, k, v] in [&moved, &turned] {
                    let found = compiled.kernel.forward(*q, *k, *v).expect("a result");
                    assert_eq!(found.out, plain.out, "{diffusion} {isa} {strategy}");
                }
                // And into an output with gaps, which stay as they are.
                let mut wide = Array4::from_elem((2, n, 2, 17 + 4), bf16::ONE);
                {
                    let mut out = wide.view_mut().permuted_axes([2, 0, 1, 3]);
                    let mut out = out.slice_mut(s![.., .., .., 2..19]);
                    let Stored { q, k, v } = &stored;
                    compiled.kernel.forward_into(q.view(), k.view(), v.view(), &mut out, None).expect("a result");
                    assert_eq!(out, plain.out, "{diffusion} {isa} {strategy}");
                }
                assert!(wide.slice(s![.., .., .., ..2]).iter().all(|&x| x == bf16::ONE));
                assert!(wide.slice(s![.., .., .., 19..]).iter().all(|&x| x == bf16::ONE));
            }
        }
    }
}

/// NaN and infinities in k and v reach exactly whom the interpreter says.
fn not_finite_reaches<T: Element>() {
    let n = 200;
    for pattern in ["{window: {radius: 9}}", MIXED, "{random: {keys_per_query: 4, seed: 7}}"] {
        for diffusion in ["{hops: 1}", "{hops: 3, alpha: 0.1}"] {
            let spec = spec_in(T::DTYPE, pattern, 18, 20, diffusion);
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut tensors = Tensors::random(&spec, 1, n, 8);
                tensors.v[(0, 0, 100, 3)] = poison;
                tensors.v[(0, 1, 0, 19)] = poison;
                tensors.k[(0, 1, 150, 2)] = f32::NAN;
                let stored = Stored::<T>::of(&tensors);
                let pattern = pattern::resolve(&spec, n, n).expect("a pattern");
                let oracle = Oracle::new(&pattern, &spec, &stored.widened());
                assert!(oracle.out.iter().any(|x| !x.is_finite()) && oracle.out.iter().any(|x| x.is_finite()));
                for isa in families() {
                    for strategy in strategies(&spec, n) {
                        for options in ways::<T>(isa, Some(strategy), spec.head_dim) {
                            let found = stored.run(&compile(&spec, n, &options));
                            for ((place, x), y) in found.out.indexed_iter().zip(&oracle.out) {
                                let what = || format!("{place:?} {poison} {diffusion} {options:?}: {x:?}, not {y:e}");
                                assert_eq!(x.widen().is_finite(), y.is_finite(), "{}", what());
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn not_finite_numbers_reach_whom_they_may_in_bf16() {
    not_finite_reaches::<bf16>();
}

#[test]
fn not_finite_numbers_reach_whom_they_may_in_f16() {
    not_finite_reaches::<f16>();
}

/// Sums are f32: what fits into them and not into f16 is rounded to an infinity at the end, and what comes back into
/// range before the end was never out of it.
#[test]
fn f16_overflows_at_the_output_alone() {
    let n = 70;
    let largest = |diffusion: &str| {
        let spec = spec_in(Dtype::F16, "full", 4, 20, diffusion);
        let (q, k) = (Array4::<f16>::default((1, 2, n, 4)), Array4::<f16>::default((1, 2, n, 4)));
        let v = Array4::from_elem((1, 2, n, 20), f16::MAX);
        let mut found = Vec::new();
        for isa in families() {
            for strategy in strategies(&spec, n) {
                let compiled = compile(&spec, n, &options(isa, Some(strategy)));
                let out = compiled.kernel.forward(q.view(), k.view(), v.view()).expect("a result").out;
                assert!(out.iter().all(|&x| x == out[(0, 0, 0, 0)]), "{diffusion} {isa}");
                found.push(out[(0, 0, 0, 0)]);
            }
        }
        found
    };
    // The sums of one row pass 65504 on the way: their mean is the number again.
    assert!(largest("{hops: 1}").iter().all(|&x| x == f16::MAX));
    assert!(largest("{coefficients: [0.0, 2.0]}").iter().all(|&x| x == f16::INFINITY));
    // Z_1 is 2·V, beyond f16, and Z_2 a quarter of that again.
    assert!(largest("{coefficients: [0.0, 0.0, 0.5]}").iter().all(|&x| x.to_f32() == 32752.0));
}

/// A machine's measured facts, as much as wishes, decide how the forward pass multiplies, and never whether there is a
/// gradient, which is computed in f32.
#[test]
fn gradients_go_with_every_way_to_compute() {
    fn check<T: Element>() {
        let fast = |mut facts: Facts| {
            facts.tiles.iter_mut().for_each(|tiles| tiles.bf16_dots = 2.0);
            facts
        };
        for isa in families() {
            let spec = spec_in(T::DTYPE, MIXED, 8, 8, "{hops: 2, alpha: 0.2}");
            let (stored, _) = stored_oracle::<T>(&spec, 1, 70, 11);
            let measured = Options { facts: Some(fast(Facts::TYPICAL)), bf16_dots: None, ..options(isa, None) };
            let all = ways::<T>(isa, None, spec.head_dim).into_iter().chain([measured]);
            let gradients = all.map(|options| {
                let kernel = compile(&spec, 70, &options).kernel;
                let found = kernel.backward(stored.q.view(), stored.k.view(), stored.v.view(), stored.q.view());
                let found = found.unwrap_or_else(|error| panic!("{} {isa} {options:?}: {error}", T::DTYPE));
                [found.q, found.k, found.v].map(|gradient| gradient.mapv(T::widen))
            });
            let gradients: Vec<_> = gradients.collect();
            assert!(gradients.iter().all(|one| *one == gradients[0]), "{} {isa}: other bits", T::DTYPE);
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}

#[test]
fn tensors_of_another_type_are_refused() {
    let spec = spec_in(Dtype::Bf16, "causal", 4, 4, "{hops: 1}");
    let compiled = compile(&spec, 5, &options(Isa::Portable, None));
    let wide = Array4::<f32>::zeros((1, 2, 5, 4));
    let error = compiled.kernel.forward(wide.view(), wide.view(), wide.view()).expect_err("f32 is not bf16");
    assert_eq!(error.to_string(), "q, k, v and out are tensors of f32; expected bf16, the `dtype` of the spec");
    let other = Array4::<f16>::default((1, 2, 5, 4));
    assert!(compiled.kernel.forward(other.view(), other.view(), other.view()).is_err());
    let right = Array4::<bf16>::default((1, 2, 5, 4));
    assert!(compiled.kernel.forward(right.view(), right.view(), right.view()).is_ok());
}

/// The type stands in the text of every stage that a kernel is made from, and is read back.
#[test]
fn texts_carry_the_type() {
    let spec = spec_in(Dtype::F16, "causal", 4, 4, "{hops: 1}");
    assert!(spec.print().contains("\ndtype: f16\n"));
    let again = hopweave::spec::parse(&spec.print(), "<text>").expect("a spec");
    assert!(again.same(&spec) && !again.same(&PatternSpec { dtype: Dtype::Bf16, ..again.clone() }));
    let compiled = compile(&spec, 9, &options(Isa::Portable, None));
    let text = compiled.program.print();
    assert!(
        text.starts_with("program heads 2 kv_heads 2 q_len 9 kv_len 9 head_dim 4 value_dim 4 dtype f16\n"),
        "{text}"
    );
    assert_eq!(hopweave::program::parse(&text).expect("a program").shape.dtype, Dtype::F16);
    let plan = compiled.kernel.plan();
    assert_eq!(hopweave::plan::parse(&plan.print()).expect("a plan"), **plan);
    assert_eq!(plan.shape.dtype, Dtype::F16);
}

#[test]
fn dot_products_are_refused_where_they_do_not_serve() {
    let wished = |isa| Options { bf16_dots: Some(true), ..options(isa, None) };
    let refused = |dtype, head_dim, isa| {
        let spec = spec_in(dtype, "causal", head_dim, 4, "{hops: 1}");
        compiler::compile(&spec, 9, 9, &wished(isa)).expect_err("no dot products").to_string()
    };
    for (dtype, head_dim, isa) in
        [(Dtype::F16, 4, Isa::best()), (Dtype::F32, 4, Isa::best()), (Dtype::Bf16, 1, Isa::best())]
    {
        assert!(refused(dtype, head_dim, isa).starts_with("unsupported: dot products of bf16 pairs for "));
    }
    assert!(refused(Dtype::Bf16, 4, Isa::Portable).contains("of width 4 on portable"));
}

//! Gradients of every pattern, form and family against the interpreter's, in f64 and edge by edge.

use crate::common::guarded::{Guarded, Place};
use crate::common::{Tensors, families, fitting_length, options, pattern_files, small_spec, spec_of, spec_with, ways};
use half::{bf16, f16};
use hopweave::compiler::{self, Options};
use hopweave::dropout::Dropout;
use hopweave::interpreter;
use hopweave::operator::{Arguments, Operator};
use hopweave::passes::{PASSES, nest_passes};
use hopweave::pattern::{self, Pattern};
use hopweave::runtime::{Gradients, Saved, Step, TrainingKernel};
use hopweave::spec::{Inputs, PatternSpec};
use hopweave::target::Isa;
use ndarray::{Array2, Array4, ArrayD, IxDyn, s};

/// A problem with its gradients.
struct Case {
    spec: PatternSpec,
    pattern: Pattern,
    t: Tensors,
    grad: Array4<f32>,
    inputs: Vec<(String, ArrayD<f32>)>,
    dropout: Option<Dropout>,
    expected: interpreter::Gradients,
}

impl Case {
    fn new(spec: &PatternSpec, lengths: (usize, usize), dropout: Option<Dropout>) -> Self {
        let pattern = pattern::resolve(spec, lengths.0, lengths.1).unwrap_or_else(|error| panic!("{error}"));
        let t = Tensors::at(spec, 2, lengths, 7);
        let mut numbers = crate::common::Numbers(8);
        let grad = Array4::from_shape_simple_fn((2, spec.heads, lengths.0, spec.value_dim), || numbers.normal());
        let mods = hopweave::spec::score::resolve(spec, lengths.0, lengths.1).expect("score mods");
        let inputs: Vec<(String, ArrayD<f32>)> = mods
            .iter()
            .flat_map(|mods| &mods.inputs)
            .map(|input| {
                let tensor = ArrayD::from_shape_simple_fn(IxDyn(&input.shape), || 0.5 * numbers.normal());
                (input.name.clone(), tensor)
            })
            .collect();
        let mut case = Self {
            spec: spec.clone(),
            pattern,
            t,
            grad,
            inputs,
            dropout,
            expected: interpreter::Gradients {
                q: Array4::default((0, 0, 0, 0)),
                k: Array4::default((0, 0, 0, 0)),
                v: Array4::default((0, 0, 0, 0)),
                inputs: Vec::new(),
            },
        };
        case.ask();
        case
    }

    /// Asks the oracle about the tensors as they are now.
    fn ask(&mut self) {
        let Self { t, grad, .. } = &*self;
        let tensors = [t.q.view(), t.k.view(), t.v.view(), grad.view()];
        let given = self.given();
        let expected = interpreter::gradients(&self.pattern, &self.spec, tensors, &given, self.dropout.as_ref());
        self.expected = expected.unwrap_or_else(|error| panic!("{error}"));
    }

    fn given(&self) -> Inputs<'_> {
        self.inputs.iter().fold(Inputs::none(), |inputs, (name, tensor)| inputs.with(name, tensor.view()))
    }

    fn kernel(&self, options: &Options) -> TrainingKernel {
        compiler::compile_training(&self.spec, &self.pattern, options, self.dropout.is_some())
            .unwrap_or_else(|error| panic!("{}\n{error}", self.spec.print()))
    }

    fn run(&self, kernel: &TrainingKernel) -> Gradients {
        let Self { t, grad, .. } = self;
        let [q, k, v, grad] = [&t.q, &t.k, &t.v, grad].map(|tensor| Guarded::new(tensor, Place::End));
        let step = Step { inputs: self.given(), dropout: self.dropout, first: 0 };
        kernel
            .backward(q.view(), k.view(), v.view(), grad.view(), None, &step)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn check(&self, options: &Options, what: &str) -> Gradients {
        let found = self.run(&self.kernel(options));
        self.check_found(&found, 2e-5, what);
        found
    }

    fn check_found(&self, found: &Gradients, tolerance: f64, what: &str) {
        let Self { expected, .. } = self;
        near(&found.q.view().into_dyn(), &expected.q.view().into_dyn(), tolerance, &format!("{what}: dq"));
        near(&found.k.view().into_dyn(), &expected.k.view().into_dyn(), tolerance, &format!("{what}: dk"));
        near(&found.v.view().into_dyn(), &expected.v.view().into_dyn(), tolerance, &format!("{what}: dv"));
        assert_eq!(found.inputs.len(), expected.inputs.len(), "{what}: inputs");
        for ((name, found), (_, expected)) in found.inputs.iter().zip(&expected.inputs) {
            near(&found.view(), &expected.view(), tolerance, &format!("{what}: d{name}"));
        }
    }
}

/// Largest distance, relative to the largest number.
fn near(found: &ndarray::ArrayViewD<'_, f32>, expected: &ndarray::ArrayViewD<'_, f64>, tolerance: f64, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let size = expected.iter().filter(|x| x.is_finite()).fold(1e-2f64, |size, x| size.max(x.abs()));
    for (&found, &expected) in found.iter().zip(expected) {
        let same = match expected.is_finite() {
            true => (f64::from(found) - expected).abs() <= tolerance * size,
            false => !found.is_finite(),
        };
        assert!(same, "{what}: {found}, expected {expected}, of {size}");
    }
}

#[test]
fn every_pattern_file_has_gradients() {
    let (mut cases, mut single) = (0, 0);
    for (name, text) in pattern_files() {
        for (sets, at) in [(&["diffusion={hops: 1, alpha: 0}"][..], 131), (&["diffusion={hops: 4, alpha: 0.2}"], 65)] {
            let spec = small_spec(&text, sets);
            let n = fitting_length(&spec, at);
            let Ok(pattern) = pattern::resolve(&spec, n, n) else { continue };
            if !pattern.awaits().is_empty() {
                continue;
            }
            let case = Case::new(&spec, (n, n), None);
            for isa in families() {
                for (way, options) in ways(isa, &spec, &pattern) {
                    case.check(&options, &format!("{name} {sets:?} {isa} {way}"));
                    cases += 1;
                    single += usize::from(way == "hop by hop");
                }
            }
        }
    }
    assert!(cases >= 80 && single >= 20, "{cases} cases, {single} hop by hop");
}

#[test]
fn every_form_of_diffusion_has_gradients() {
    for diffusion in [
        "{hops: 1, alpha: 0.3}",
        "{hops: 2, alpha: 1}",
        "{heat: 2, hops: 3}",
        "{coefficients: [0.5, 0.3, 0, 0.2]}",
        "{coefficients: [1]}",
        "{coefficients: [0]}",
        "{coefficients: [0, 0, 0]}",
        "{alpha: 0.3, tolerance: 0.2}",
        "{hops: 5, alpha: 0.1, store: bf16}",
    ] {
        let spec = spec_of("{any: [{window: {radius: 9}}, {random: {keys_per_query: 2, seed: 1}}]}", 8, 5, diffusion);
        let case = Case::new(&spec, (75, 75), None);
        for isa in families() {
            for (way, options) in ways(isa, &spec, &case.pattern) {
                case.check(&options, &format!("{diffusion} {isa} {way}"));
            }
        }
    }
}

/// Each pass left out, of operations and of nests: the same gradients, or a refusal in words.
#[test]
fn gradients_do_without_any_pass() {
    let names: Vec<&str> =
        PASSES.iter().map(|pass| pass.name).chain(nest_passes().into_iter().map(|pass| pass.name)).collect();
    let dropout = Dropout::new(0.3, 0.2, 5).expect("rates");
    let (mut served, mut refused) = (0, 0);
    for (diffusion, dropout) in [("{hops: 1}", None), ("{hops: 3, alpha: 0.2}", None), ("{hops: 2}", Some(dropout))] {
        let spec = spec_of("{any: [{window: {radius: 9}}, {random: {keys_per_query: 2, seed: 1}}]}", 8, 5, diffusion);
        let case = Case::new(&spec, (75, 75), dropout);
        for name in &names {
            for (way, options) in ways(Isa::best(), &spec, &case.pattern) {
                let options = Options { without: vec![(*name).to_owned()], ..options };
                match compiler::compile_training(&spec, &case.pattern, &options, dropout.is_some()) {
                    Ok(kernel) => {
                        served += 1;
                        case.check_found(&case.run(&kernel), 2e-5, &format!("{diffusion} {way} without {name}"));
                    }
                    Err(hopweave::Error::Unsupported { .. } | hopweave::Error::Memory { .. }) => refused += 1,
                    Err(error) => panic!("{diffusion} {way} without {name}: {error}"),
                }
            }
        }
    }
    assert!(served > 2 * refused, "{served} served, {refused} refused");
}

const MODS: &[&str] = &[
    "[{softcap: 2.0}]",
    "[alibi]",
    "[{bias: {input: rel, index: [h, \"q - k + n - 1\"]}}]",
    "[{bias: {input: rel, index: [0, \"k\"]}}, {softcap: 3.0}]",
    "[{softcap: 1.5}, alibi, {expr: \"s + 0.3 * rel[h, q - k + n - 1] * s\"}]",
    "[{expr: \"if(q - k > 3, tanh(s) * 2, max(s, 0.1 * s)) + exp(min(s, 0.0)) - sigmoid(rel[h, k])\"}]",
    "[{expr: \"sqrt(abs(s) + 1.0) + log(abs(s) + 2.0) * rel[0, q]\"}]",
];

#[test]
fn every_score_mod_has_gradients() {
    for mods in MODS {
        for (pattern, diffusion) in [
            ("{window: {radius: 12}}", "{hops: 1, alpha: 0}"),
            ("{any: [{window: {radius: 6}}, {random: {keys_per_query: 3, seed: 1}}]}", "{hops: 3, alpha: 0.2}"),
            ("{window: {radius: 9, dilation: 3}}", "{hops: 1, alpha: 0}"),
            ("causal", "{hops: 2, alpha: 0.1}"),
        ] {
            let text = format!(
                "name: mods\nheads: 4\nkv_heads: 2\nhead_dim: 8\nvalue_dim: 6\n\
                 inputs: {{rel: {{shape: [heads, \"2*n - 1\"]}}}}\npattern: {pattern}\n\
                 score: {{mods: {mods}}}\ndiffusion: {diffusion}\n"
            );
            let spec = spec_with(&text, &[]);
            let case = Case::new(&spec, (70, 70), None);
            for isa in families() {
                for (way, options) in ways(isa, &spec, &case.pattern) {
                    case.check(&options, &format!("{mods} {pattern} {isa} {way}"));
                }
            }
        }
    }
}

#[test]
fn dropout_drops_the_same_backward() {
    let dropout = Dropout::new(0.3, 0.2, 11).expect("rates");
    for (text, sets) in pattern_files()
        .iter()
        .filter(|(name, _)| ["diffuser", "longformer", "dilated"].contains(&name.as_str()))
        .flat_map(|(_, text)| [(text, "diffusion={hops: 1, alpha: 0}"), (text, "diffusion={hops: 3, alpha: 0.2}")])
    {
        let spec = small_spec(text, &[sets]);
        let case = Case::new(&spec, (130, 130), Some(dropout));
        let Tensors { q, k, v } = &case.t;
        let forward =
            interpreter::run_dropout(&case.pattern, &spec, q.view(), k.view(), v.view(), &case.given(), Some(&dropout));
        let forward = forward.expect("an output");
        for isa in families() {
            for (way, options) in ways(isa, &spec, &case.pattern) {
                let what = format!("{} {sets} {isa} {way}", spec.name);
                case.check(&options, &what);
                let kernel = case.kernel(&options);
                let output = kernel
                    .forward(q.view(), k.view(), v.view(), &Step { dropout: Some(dropout), ..Step::default() })
                    .expect("an output");
                near(&output.out.view().into_dyn(), &forward.out.view().into_dyn(), 1e-5, &what);
                let saved = Saved { out: output.out.view(), lse: output.lse.view() };
                let found = kernel
                    .backward(
                        q.view(),
                        k.view(),
                        v.view(),
                        case.grad.view(),
                        Some(saved),
                        &Step { dropout: Some(dropout), ..Step::default() },
                    )
                    .expect("gradients");
                case.check_found(&found, 2e-5, &format!("{what}, saved"));
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads_and_what_is_saved_serves() {
    for (pattern, diffusion) in [
        ("{window: {radius: 20}}", "{hops: 1, alpha: 0}"),
        (
            "{any: [{window: {radius: 9}}, {random: {keys_per_query: 4, seed: 1}}, {global: {tokens: {first: 2}}}]}",
            "{hops: 3, alpha: 0.1}",
        ),
    ] {
        // Long enough for stretches.
        let spec = spec_of(pattern, 8, 8, diffusion);
        let case = Case::new(&spec, (700, 700), None);
        let isa = Isa::best();
        let first = case.check(&options(isa, None), pattern);
        for threads in [2, 3, 5] {
            let found = case.run(&case.kernel(&Options { threads, ..options(isa, None) }));
            assert_eq!((found.q, found.k, found.v), (first.q.clone(), first.k.clone(), first.v.clone()), "{threads}");
        }
        let output = case.t.run(&crate::common::compile(&spec, 700, &options(isa, None)));
        let saved = Saved { out: output.out.view(), lse: output.lse.view() };
        let Tensors { q, k, v } = &case.t;
        let kernel = case.kernel(&options(isa, None));
        let found = kernel.backward(q.view(), k.view(), v.view(), case.grad.view(), Some(saved), &Step::default());
        case.check_found(&found.expect("gradients"), 2e-5, "saved");
    }
}

#[test]
fn sixteen_bit_tensors_have_gradients() {
    fn check<T: hopweave::Element>(dtype: &str, tolerance: f64) {
        for diffusion in ["{hops: 1, alpha: 0}", "{hops: 3, alpha: 0.2}"] {
            let spec = spec_of("{window: {radius: 20}}", 16, 16, diffusion);
            let mut case = Case::new(&spec, (100, 100), None);
            let round = |x: &Array4<f32>| x.mapv(|x| T::nearest(x));
            let (q, k, v, grad) = (round(&case.t.q), round(&case.t.k), round(&case.t.v), round(&case.grad));
            let wide = |x: &Array4<T>| x.mapv(T::widen);
            case.t = Tensors { q: wide(&q), k: wide(&k), v: wide(&v) };
            case.grad = wide(&grad);
            case.ask();
            let text = spec.print();
            let spec = spec_with(&text, &[&format!("dtype={dtype}")]);
            let kernel = crate::common::compile(&spec, 100, &options(Isa::best(), None)).kernel;
            let found = kernel.backward(q.view(), k.view(), v.view(), grad.view()).expect("gradients");
            let found = Gradients { q: wide(&found.q), k: wide(&found.k), v: wide(&found.v), inputs: Vec::new() };
            case.check_found(&found, tolerance, dtype);
            assert!(kernel.backward(case.t.q.view(), case.t.k.view(), case.t.v.view(), case.grad.view()).is_err());
        }
    }
    // Sums are f32: what is left is the rounding of the result.
    check::<bf16>("bf16", 2.0f64.powi(-8));
    check::<f16>("f16", 2.0f64.powi(-11));
}

#[test]
fn other_lengths_and_empty_rows_have_gradients() {
    for (pattern, lengths) in [
        ("causal", (40, 100)),
        ("{window: {left: 15, right: 0}}", (1, 100)),
        ("full", (90, 33)),
        ("{where: \"k > q + 5\"}", (70, 70)),
        ("{where: \"q % 7 == 3 and k % 2 == 0\"}", (70, 70)),
    ] {
        let spec = spec_of(pattern, 8, 8, "{hops: 1, alpha: 0}");
        let case = Case::new(&spec, lengths, None);
        for isa in families() {
            case.check(&options(isa, None), &format!("{pattern} {lengths:?} {isa}"));
        }
    }
}

#[test]
fn padding_and_segments_have_gradients_element_by_element() {
    for diffusion in ["{hops: 1, alpha: 0}", "{hops: 3, alpha: 0.2}"] {
        let spec = spec_of("{all: [causal, {segments: {input: ids}}]}", 8, 8, diffusion);
        let n = 60;
        let mut t = Tensors::at(&spec, 2, (n, n), 7);
        // Padding is never read.
        t.k.slice_mut(s![1, .., 37.., ..]).fill(f32::NAN);
        t.v.slice_mut(s![1, .., 37.., ..]).fill(f32::NAN);
        let mut numbers = crate::common::Numbers(8);
        let grad = Array4::from_shape_simple_fn((2, 2, n, 8), || numbers.normal());
        let ids = Array2::from_shape_fn((2, n), |(b, k)| (k / (20 + 7 * b)) as i32);
        let lengths = [n as i64, 37];
        let operator = Operator::new(spec.clone(), n, n, options(Isa::best(), None)).expect("an operator");
        for dropout in [None, Some(Dropout::new(0.2, 0.1, 5).expect("rates"))] {
            let arguments = Arguments {
                key_lengths: Some(&lengths),
                segments: vec![("ids".to_owned(), ids.view())],
                dropout,
                ..Arguments::default()
            };
            let found = operator.backward(t.q.view(), t.k.view(), t.v.view(), grad.view(), None, &arguments);
            let found = found.unwrap_or_else(|error| panic!("{error}"));
            assert!(found.q.iter().chain(&found.k).chain(&found.v).all(|x| x.is_finite()));
            assert!(found.v.slice(s![1, .., 37.., ..]).iter().all(|&x| x == 0.0));
            let output = operator.forward(t.q.view(), t.k.view(), t.v.view(), &arguments).expect("an output");
            let saved = Saved { out: output.out.view(), lse: output.lse.view() };
            let again = operator.backward(t.q.view(), t.k.view(), t.v.view(), grad.view(), Some(saved), &arguments);
            let again = again.expect("gradients");
            // What was saved of fewer elements is refused, not cut out of.
            let few = Saved { out: saved.out.slice_move(s![..1, .., .., ..]), lse: saved.lse };
            let refused = operator.backward(t.q.view(), t.k.view(), t.v.view(), grad.view(), Some(few), &arguments);
            let refused = refused.expect_err("one element of two").to_string();
            assert!(refused.starts_with("saved out: expected"), "{refused}");
            let farthest = found.q.iter().zip(&again.q).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(farthest < 1e-4, "{farthest}");
            if dropout.is_some() {
                continue;
            }
            // The first element alone has no padding, and is judged by the oracle.
            let facts = arguments.facts(2, operator.pattern(), spec.kv_heads).expect("facts");
            let pattern = facts[0].bind(&pattern::resolve(&spec, n, n).expect("a pattern")).expect("a bound pattern");
            let one = |x: &Array4<f32>| x.slice(s![0..1, .., .., ..]).to_owned();
            let tensors = [&one(&t.q), &one(&t.k), &one(&t.v), &one(&grad)].map(|x| x.to_owned());
            let [q, k, v, g] = &tensors;
            let expected = interpreter::gradients(
                &pattern,
                &spec,
                [q.view(), k.view(), v.view(), g.view()],
                &Inputs::none(),
                None,
            )
            .expect("gradients");
            near(&one(&found.q).view().into_dyn(), &expected.q.view().into_dyn(), 2e-5, "dq");
            near(&one(&found.k).view().into_dyn(), &expected.k.view().into_dyn(), 2e-5, "dk");
            near(&one(&found.v).view().into_dyn(), &expected.v.view().into_dyn(), 2e-5, "dv");
        }
    }
}

#[test]
fn what_may_not_be_seen_reaches_no_gradient() {
    for pattern in ["{window: {radius: 10}}", "{any: [{window: {radius: 5}}, {random: {keys_per_query: 2, seed: 3}}]}"]
    {
        for diffusion in ["{hops: 1, alpha: 0}", "{hops: 2, alpha: 0.2}"] {
            let spec = spec_of(pattern, 8, 8, diffusion);
            for bad in [f32::NAN, f32::INFINITY] {
                // An infinity in q, k or v makes differences of infinities in pairs that do see it, which say nothing of reach.
                for which in if bad.is_nan() { 0..4 } else { 3..4 } {
                    let mut case = Case::new(&spec, (150, 150), None);
                    let tensor = match which {
                        0 => &mut case.t.q,
                        1 => &mut case.t.k,
                        2 => &mut case.t.v,
                        _ => &mut case.grad,
                    };
                    tensor[[0, 1, 70, 3]] = bad;
                    case.ask();
                    for isa in families() {
                        let found = case.run(&case.kernel(&options(isa, None)));
                        // What the oracle has finite is finite here; where it has none, there may be a number, since a weight
                        // that is 0 in f32 leaves out what it meets.
                        for (name, found, expected) in [
                            ("dq", &found.q, &case.expected.q),
                            ("dk", &found.k, &case.expected.k),
                            ("dv", &found.v, &case.expected.v),
                        ] {
                            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                                let what =
                                    format!("{pattern} {diffusion} {bad} in {which}, {isa}, {name} element {at}");
                                assert!(!expected.is_finite() || found.is_finite(), "{what}: {found}, {expected}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn invariants_of_the_adjoint() {
    // Restart 1 gives V back: all of the gradient is that of V.
    let spec = spec_of("{window: {radius: 10}}", 8, 8, "{hops: 3, alpha: 1}");
    let case = Case::new(&spec, (90, 90), None);
    let found = case.check(&options(Isa::best(), None), "alpha 1");
    assert!(found.q.iter().chain(&found.k).all(|&x| x == 0.0));
    assert_eq!(found.v, case.grad);
    // Where V is constant no weight matters.
    let spec = spec_of("{window: {radius: 10}}", 8, 8, "{hops: 3, alpha: 0.2}");
    let mut case = Case::new(&spec, (90, 90), None);
    case.t.v.fill(1.5);
    case.ask();
    let found = case.run(&case.kernel(&options(Isa::best(), None)));
    case.check_found(&found, 2e-4, "constant V");
    assert!(found.q.iter().chain(&found.k).all(|x| x.abs() < 1e-5));
}

#[test]
fn empty_problems_have_empty_gradients() {
    let spec = spec_of("{window: {radius: 10}}", 8, 8, "{hops: 1, alpha: 0}");
    for (batch, q_len, kv_len) in [(0, 20, 20), (2, 0, 20), (2, 20, 0)] {
        let pattern = pattern::resolve(&spec, q_len, kv_len).expect("a pattern");
        let kernel = compiler::compile_training(&spec, &pattern, &options(Isa::best(), None), false).expect("a kernel");
        let zeros = |n: usize| Array4::<f32>::ones((batch, 2, n, 8));
        let (q, k) = (zeros(q_len), zeros(kv_len));
        let found = kernel
            .backward(q.view(), k.view(), k.view(), q.view(), None, &Step::default())
            .unwrap_or_else(|error| panic!("{batch} {q_len} {kv_len}: {error}"));
        assert_eq!((found.q.dim(), found.k.dim()), (q.dim(), k.dim()));
        assert!(found.q.iter().chain(&found.k).chain(&found.v).all(|&x| x == 0.0));
    }
}

#[test]
fn wrong_tensors_are_named() {
    let spec = spec_of("full", 8, 8, "{hops: 1, alpha: 0}");
    let kernel = crate::common::compile(&spec, 20, &options(Isa::best(), None)).kernel;
    let x = |n| Array4::<f32>::zeros((1, 2, n, 8));
    for (k, grad, name) in [(x(19), x(20), "k"), (x(20), x(19), "grad_out")] {
        let error = kernel.backward(x(20).view(), k.view(), x(20).view(), grad.view()).expect_err("a wrong shape");
        assert!(error.to_string().starts_with(&format!("{name}: expected")), "{error}");
    }
    let training = kernel.training().expect("a kernel");
    let dropout = Dropout::new(0.5, 0.0, 0).expect("rates");
    let refused =
        training.forward(x(20).view(), x(20).view(), x(20).view(), &Step { dropout: Some(dropout), ..Step::default() });
    assert!(refused.expect_err("no dropout").to_string().contains("compiled without it"));
}

/// Tensors that end, and begin, at a page that may not be touched.
#[test]
fn nothing_outside_the_tensors_is_touched() {
    for (pattern, width) in [
        ("{window: {radius: 20}}", 16),
        ("{any: [{window: {radius: 9}}, {random: {keys_per_query: 4, seed: 1}}, {global: {tokens: {first: 2}}}]}", 7),
        ("causal", 33),
    ] {
        for diffusion in ["{hops: 1, alpha: 0.1}", "{hops: 3, alpha: 0.1}"] {
            let spec = spec_of(pattern, width, width, diffusion);
            let case = Case::new(&spec, (131, 131), None);
            for isa in families() {
                for place in Place::ALL {
                    let [q, k, v, g] =
                        [&case.t.q, &case.t.k, &case.t.v, &case.grad].map(|tensor| Guarded::new(tensor, place));
                    let [q, k, v, g] = [&q, &k, &v, &g].map(Guarded::view);
                    for (_, options) in ways(isa, &spec, &case.pattern) {
                        let kernel = case.kernel(&options);
                        let found = kernel.backward(q, k, v, g, None, &Step::default());
                        case.check_found(&found.expect("gradients"), 2e-5, pattern);
                    }
                }
            }
        }
    }
}

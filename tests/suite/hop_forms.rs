//! Hops whose factors come with the call, that have patterns of their own, or that never end: outputs and gradients of
//! every family and strategy against the interpreter's, and what is refused.

use crate::common::{Numbers, Tensors, families, options, spec_with, strategies, ways};
use half::{bf16, f16};
use hopweave::compiler;
use hopweave::dropout::Dropout;
use hopweave::interpreter;
use hopweave::operator::{Arguments, Operator};
use hopweave::passes::Strategy;
use hopweave::pattern::{self, Pattern};
use hopweave::runtime::{Saved, Step};
use hopweave::spec::{Dtype, Inputs, PatternSpec};
use hopweave::target::Isa;
use ndarray::{Array4, ArrayD, ArrayViewD, IxDyn};

/// Patterns for every form: a band, one with scattered edges, one whose global queries stand at the end of the order.
const PATTERNS: &[&str] = &[
    "{window: {radius: 20}}",
    "{any: [{window: {radius: 5}}, {random: {keys_per_query: 3, seed: 1}}]}",
    "{any: [{window: {radius: 9}}, {global: {tokens: [3, 40]}}]}",
    "{window: {radius: 9, dilation: 3}}",
];

/// Patterns without later keys: a band, everything, scattered edges alone and beside others, rows without keys, a dilated
/// one, whose queries stand in another order elsewhere, and other masks for other heads.
const CAUSAL: &[&str] = &[
    "{window: {left: 100, right: 0}}",
    "causal",
    "{all: [causal, {window: {radius: 9, dilation: 3}}]}",
    "{any: [{window: {left: 20, right: 0}}, {random: {keys_per_query: 4, seed: 3, among: past}}]}",
    "{all: [{random: {keys_per_query: 4, seed: 3, among: past}}, {not: {window: {radius: 1}}}]}",
    "{all: [causal, {chunk: {size: 48}}]}",
    "{any: [{window: {left: 70, right: 0}}, {all: [causal, {sink: 3}]}]}",
    "{per_head: [{heads: [0], pattern: {window: {left: 30, right: 0}}}, {heads: [1], pattern: causal}]}",
];

const GIVEN: &[&str] = &[
    "{hops: 1, alpha: {input: a}}",
    "{hops: 4, alpha: {input: a}}",
    "{hops: 0, coefficients: {input: a}}",
    "{hops: 1, coefficients: {input: a}}",
    "{hops: 3, coefficients: {input: a}}",
];

const LISTED: &[&str] = &[
    "{hops: [{pattern: causal}], alpha: 0.2}",
    "{hops: [{}, {pattern: {window: {radius: 40}}}], alpha: 0.1}",
    "{hops: [{pattern: {random: {keys_per_query: 5, seed: 4}}}, {}, {pattern: {random: {keys_per_query: 5, seed: 4}}}], \
     alpha: {input: a}}",
    "{hops: [{pattern: {any: [{window: {radius: 3}}, {global: {tokens: [7]}}]}}, {pattern: {not: causal}}, {}], alpha: 0}",
];

fn spec(pattern: &str, diffusion: &str, sets: &[&str]) -> PatternSpec {
    let text = format!("name: test\nheads: 2\nhead_dim: 8\nvalue_dim: 5\npattern: {pattern}\ndiffusion: {diffusion}\n");
    spec_with(&text, sets)
}

/// A problem, what a call gives, and what the oracle says.
struct Case {
    spec: PatternSpec,
    pattern: Pattern,
    t: Tensors,
    grad: Array4<f32>,
    given: Option<(String, ArrayD<f32>)>,
}

impl Case {
    fn new(spec: &PatternSpec, n: usize, one_for_all: bool) -> Self {
        let pattern = pattern::resolve(spec, n, n).unwrap_or_else(|error| panic!("{}\n{error}", spec.print()));
        let t = Tensors::random(spec, 2, n, 7);
        let mut numbers = Numbers(8);
        let grad = Array4::from_shape_simple_fn((2, spec.heads, n, spec.value_dim), || numbers.normal());
        let given = spec.diffusion.given().map(|given| {
            let shapes = given.shapes(spec.heads);
            let shape = if one_for_all { &shapes[shapes.len() - 1] } else { &shapes[0] };
            // Within every range, and different for every head.
            let tensor = ArrayD::from_shape_simple_fn(IxDyn(shape), || {
                0.1 + 0.8 * (numbers.bits() >> 40) as f32 / (1 << 24) as f32
            });
            (given.input.name, tensor)
        });
        Self { spec: spec.clone(), pattern, t, grad, given }
    }

    fn inputs(&self) -> Inputs<'_> {
        self.given.iter().fold(Inputs::none(), |inputs, (name, tensor)| inputs.with(name, tensor.view()))
    }

    fn output(&self) -> interpreter::Output {
        let Tensors { q, k, v } = &self.t;
        let output = interpreter::run_with(&self.pattern, &self.spec, q.view(), k.view(), v.view(), &self.inputs());
        output.unwrap_or_else(|error| panic!("{}\n{error}", self.spec.print()))
    }

    fn gradients(&self, dropout: Option<&Dropout>) -> interpreter::Gradients {
        let Tensors { q, k, v } = &self.t;
        let tensors = [q.view(), k.view(), v.view(), self.grad.view()];
        let gradients = interpreter::gradients(&self.pattern, &self.spec, tensors, &self.inputs(), dropout);
        gradients.unwrap_or_else(|error| panic!("{}\n{error}", self.spec.print()))
    }

    fn check_outputs(&self, n: usize) -> usize {
        let expected = self.output();
        let mut kernels = 0;
        for isa in families() {
            for strategy in strategies(&self.spec, n) {
                let what = format!("{}n {n} {isa} {strategy}", self.spec.print());
                let compiled = compiler::compile(&self.spec, n, n, &options(isa, Some(strategy)));
                let compiled = compiled.unwrap_or_else(|error| panic!("{what}\n{error}"));
                let Tensors { q, k, v } = &self.t;
                let found = compiled.kernel.forward_with(q.view(), k.view(), v.view(), &self.inputs());
                let found = found.unwrap_or_else(|error| panic!("{what}\n{error}"));
                near(&found.out.view().into_dyn(), &expected.out.view().into_dyn(), 5e-6, &what);
                near(&found.lse.view().into_dyn(), &expected.lse.view().into_dyn(), 5e-6, &format!("{what}: lse"));
                kernels += 1;
            }
        }
        kernels
    }

    fn check_gradients(&self, dropout: Option<Dropout>) -> usize {
        let expected = self.gradients(dropout.as_ref());
        let output = self.output();
        let (out, lse) = (output.out.mapv(|x| x as f32), output.lse.mapv(|x| x as f32));
        let mut kernels = 0;
        for isa in families() {
            for (way, options) in ways(isa, &self.spec, &self.pattern) {
                let what = format!("{}{isa} {way}", self.spec.print());
                let kernel = compiler::compile_training(&self.spec, &self.pattern, &options, dropout.is_some());
                // With dropout there is more to keep.
                if matches!(kernel, Err(hopweave::Error::Memory { .. })) && dropout.is_some() {
                    continue;
                }
                let kernel = kernel.unwrap_or_else(|error| panic!("{what}\n{error}"));
                let step = Step { inputs: self.inputs(), dropout, first: 0 };
                let Tensors { q, k, v } = &self.t;
                let saved = Saved { out: out.view(), lse: lse.view() };
                for saved in [None, dropout.is_none().then_some(saved)] {
                    let found = kernel.backward(q.view(), k.view(), v.view(), self.grad.view(), saved, &step);
                    let found = found.unwrap_or_else(|error| panic!("{what}\n{error}"));
                    let pairs =
                        [(&found.q, &expected.q, "dq"), (&found.k, &expected.k, "dk"), (&found.v, &expected.v, "dv")];
                    for (found, expected, name) in pairs {
                        near(&found.view().into_dyn(), &expected.view().into_dyn(), 2e-5, &format!("{what}: {name}"));
                    }
                    assert_eq!(found.inputs.len(), expected.inputs.len(), "{what}");
                    for ((name, found), (known, expected)) in found.inputs.iter().zip(&expected.inputs) {
                        assert_eq!(name, known);
                        near(&found.view(), &expected.view(), 2e-5, &format!("{what}: d{name}"));
                    }
                }
                kernels += 1;
            }
        }
        kernels
    }
}

/// Largest distance, relative to the largest number.
fn near(found: &ArrayViewD<'_, f32>, expected: &ArrayViewD<'_, f64>, tolerance: f64, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let size = expected.iter().filter(|x| x.is_finite()).fold(1.0_f64, |size, x| size.max(x.abs()));
    for (&found, &expected) in found.iter().zip(expected) {
        let same = match expected.is_finite() {
            true => (f64::from(found) - expected).abs() <= tolerance * size,
            false => !found.is_finite() && (expected.is_nan() || f64::from(found) == expected),
        };
        assert!(same, "{what}: {found}, expected {expected}, of {size}");
    }
}

#[test]
fn factors_of_the_call_conform() {
    let mut kernels = 0;
    for pattern in PATTERNS {
        for (i, diffusion) in GIVEN.iter().enumerate() {
            let case = Case::new(&spec(pattern, diffusion, &[]), 150, i % 2 == 1);
            kernels += case.check_outputs(150) + case.check_gradients(None);
        }
    }
    assert!(kernels >= 100, "{kernels}");
}

#[test]
fn hops_without_end_conform() {
    let mut kernels = 0;
    for pattern in CAUSAL {
        for (diffusion, n) in [
            ("{hops: all, alpha: 0.1}", 150),
            ("{hops: all, alpha: 1}", 64),
            ("{hops: all, alpha: {input: a}}", 193),
            ("{hops: all, alpha: {input: a}}", 63),
        ] {
            let case = Case::new(&spec(pattern, diffusion, &[]), n, n == 63);
            kernels += case.check_outputs(n) + case.check_gradients(None);
        }
    }
    assert!(kernels >= 200, "{kernels}");
}

#[test]
fn patterns_of_hops_conform() {
    let mut kernels = 0;
    for pattern in PATTERNS {
        for diffusion in LISTED {
            let case = Case::new(&spec(pattern, diffusion, &[]), 150, false);
            kernels += case.check_outputs(150) + case.check_gradients(None);
        }
    }
    assert!(kernels >= 60, "{kernels}");
}

/// Where some query meets a later key, hops without end are as many as the tolerance asks for.
#[test]
fn a_limit_that_is_no_substitution_is_iterated() {
    let case = Case::new(&spec("{window: {radius: 20}}", "{hops: all, alpha: 0.4, tolerance: 1e-3}", &[]), 130, false);
    assert!(case.check_outputs(130) >= 3);
    assert!(case.check_gradients(None) >= 2);
}

/// The same where alpha comes with the call, and with it the number of hops: few kernels serve all of them.
#[test]
fn a_limit_of_the_call_is_iterated() {
    let spec = spec(PATTERNS[1], "{hops: all, alpha: {input: a}, tolerance: 1e-6}", &[]);
    let pattern = pattern::resolve(&spec, 130, 130).expect("a pattern");
    let compiled = compiler::compile(&spec, 130, 130, &options(Isa::best(), None)).expect("a kernel");
    let training = compiled.kernel.training().expect("a kernel");
    for alpha in [[0.05, 0.4], [0.9, 0.3], [1.0, 1.0]] {
        let mut case = Case::new(&spec, 130, false);
        case.given = Some(("a".to_owned(), ArrayD::from_shape_vec(IxDyn(&[2]), alpha.to_vec()).expect("a tensor")));
        let Tensors { q, k, v } = &case.t;
        let found = compiled.kernel.forward_with(q.view(), k.view(), v.view(), &case.inputs()).expect("an output");
        near(&found.out.view().into_dyn(), &case.output().out.view().into_dyn(), 5e-6, &format!("{alpha:?}"));
        let step = Step { inputs: case.inputs(), ..Step::default() };
        let found = training.backward(q.view(), k.view(), v.view(), case.grad.view(), None, &step).expect("gradients");
        let expected = case.gradients(None);
        // The interpreter's are those of fewer hops: what is left of them is of the size of the tolerance, a hop.
        near(&found.q.view().into_dyn(), &expected.q.view().into_dyn(), 1e-4, &format!("{alpha:?}: dq"));
        near(&found.v.view().into_dyn(), &expected.v.view().into_dyn(), 1e-4, &format!("{alpha:?}: dv"));
        near(&found.inputs[0].1.view(), &expected.inputs[0].1.view(), 1e-3, &format!("{alpha:?}: da"));
    }
    let given = ArrayD::from_elem(IxDyn(&[1]), 1e-4_f32);
    let t = Tensors::random(&spec, 1, 130, 1);
    let inputs = Inputs::none().with("a", given.view());
    let slow = compiled.kernel.forward_with(t.q.view(), t.k.view(), t.v.view(), &inputs).expect_err("a refusal");
    assert!(slow.to_string().contains("of head 0, whose queries attend to later keys too"), "{slow}");
    assert!(compiler::compile_training(&spec, &pattern, &options(Isa::best(), None), true).is_err());
}

#[test]
fn grouped_heads_and_odd_widths_conform() {
    for (diffusion, pattern) in [
        (GIVEN[1], PATTERNS[1]),
        (GIVEN[4], PATTERNS[0]),
        (LISTED[2], PATTERNS[0]),
        ("{hops: all, alpha: {input: a}}", CAUSAL[3]),
    ] {
        for sets in
            [&["heads=4", "kv_heads=2", "value_dim=17"][..], &["heads=3", "kv_heads=1", "head_dim=33", "value_dim=80"]]
        {
            let case = Case::new(&spec(pattern, diffusion, sets), 97, false);
            case.check_outputs(97);
            case.check_gradients(None);
        }
    }
}

#[test]
fn dropout_goes_with_factors_of_the_call() {
    let dropout = Dropout::new(0.3, 0.2, 5).expect("rates");
    for diffusion in GIVEN.iter().chain(&LISTED[..3]) {
        let case = Case::new(&spec(PATTERNS[1], diffusion, &[]), 75, false);
        case.check_gradients(Some(dropout));
    }
}

#[test]
fn every_storage_conforms() {
    fn check<T: hopweave::dtype::Element>(case: &Case, isa: Isa, tolerance: f64) {
        let [q, k, v] = [&case.t.q, &case.t.k, &case.t.v].map(|tensor| tensor.mapv(T::nearest));
        // The oracle on what was rounded.
        let mut rounded = Case {
            t: case.t.clone(),
            spec: case.spec.clone(),
            pattern: case.pattern.clone(),
            grad: case.grad.clone(),
            given: case.given.clone(),
        };
        rounded.t = Tensors { q: q.mapv(T::widen), k: k.mapv(T::widen), v: v.mapv(T::widen) };
        let expected = rounded.output();
        for strategy in strategies(&case.spec, 150) {
            let what = format!("{}{isa} {strategy}", case.spec.print());
            let compiled = compiler::compile(&case.spec, 150, 150, &options(isa, Some(strategy)))
                .unwrap_or_else(|error| panic!("{what}\n{error}"));
            let found = compiled
                .kernel
                .forward_with(q.view(), k.view(), v.view(), &case.inputs())
                .unwrap_or_else(|error| panic!("{what}\n{error}"));
            let out = found.out.mapv(T::widen);
            near(&out.view().into_dyn(), &expected.out.view().into_dyn(), tolerance, &what);
        }
    }
    for isa in families() {
        for (diffusion, pattern) in
            [(GIVEN[1], PATTERNS[0]), (LISTED[1], PATTERNS[1]), ("{hops: all, alpha: 0.1}", CAUSAL[3])]
        {
            let case = Case::new(&spec(pattern, diffusion, &["dtype=bf16"]), 150, false);
            check::<bf16>(&case, isa, 8e-3);
            let case = Case::new(&spec(pattern, diffusion, &["dtype=f16"]), 150, false);
            assert_eq!(case.spec.dtype, Dtype::F16);
            check::<f16>(&case, isa, 1e-3);
        }
    }
}

/// The same bits on one thread and on several, where units are few and where they are many.
#[test]
fn threads_do_not_matter() {
    for (diffusion, pattern) in
        [(GIVEN[1], PATTERNS[1]), (LISTED[1], PATTERNS[0]), ("{hops: all, alpha: {input: a}}", CAUSAL[3])]
    {
        let case = Case::new(&spec(pattern, diffusion, &[]), 700, false);
        let run = |threads: usize| {
            let options = compiler::Options { threads, ..options(Isa::best(), None) };
            let compiled = compiler::compile(&case.spec, 700, 700, &options).expect("a kernel");
            let Tensors { q, k, v } = &case.t;
            let one = [q, k, v].map(|tensor| tensor.slice(ndarray::s![..1, .., .., ..]));
            let out = compiled.kernel.forward_with(one[0], one[1], one[2], &case.inputs()).expect("an output").out;
            let step = Step { inputs: case.inputs(), ..Step::default() };
            let training = compiled.kernel.training().expect("a kernel");
            let gradients =
                training.backward(q.view(), k.view(), v.view(), case.grad.view(), None, &step).expect("gradients");
            (out, gradients.q, gradients.v, gradients.inputs)
        };
        let alone = run(1);
        for threads in [2, 5] {
            let found = run(threads);
            assert!(found.0 == alone.0 && found.1 == alone.1 && found.2 == alone.2, "{diffusion} on {threads}");
            assert!(found.3 == alone.3, "{diffusion} on {threads}: inputs");
        }
    }
}

/// Key lengths cut the pattern, and padding keeps nothing of V.
#[test]
fn key_lengths_conform() {
    for (diffusion, pattern) in
        [(GIVEN[1], PATTERNS[1]), (LISTED[1], PATTERNS[0]), ("{hops: all, alpha: {input: a}}", "causal")]
    {
        let case = Case::new(&spec(pattern, diffusion, &[]), 150, false);
        let operator = Operator::new(case.spec.clone(), 150, 150, options(Isa::best(), None)).expect("an operator");
        let lengths = [97_i64, 150];
        let arguments = Arguments { inputs: case.inputs(), key_lengths: Some(&lengths), ..Arguments::default() };
        let Tensors { q, k, v } = &case.t;
        let found = operator.forward(q.view(), k.view(), v.view(), &arguments).expect("an output");
        for (b, &length) in lengths.iter().enumerate() {
            let one = ndarray::s![b..=b, .., .., ..];
            let mut values = v.slice(one).to_owned();
            values.slice_mut(ndarray::s![.., .., length as usize.., ..]).fill(0.0);
            let facts = &arguments.facts(2, &case.pattern, case.spec.kv_heads).expect("facts")[b];
            let bound = facts.bind(&case.pattern).expect("a pattern");
            let expected =
                interpreter::run_with(&bound, &case.spec, q.slice(one), k.slice(one), values.view(), &case.inputs());
            let expected = expected.expect("an output");
            near(&found.out.slice(one).into_dyn(), &expected.out.view().into_dyn(), 5e-6, diffusion);
        }
    }
}

/// NaN travels along pairs that may see each other, and nowhere else.
#[test]
fn what_is_not_finite_stays_where_it_is_seen() {
    for pattern in &CAUSAL[..4] {
        let mut case = Case::new(&spec(pattern, "{hops: all, alpha: 0.3}", &[]), 150, false);
        case.t.v[(0, 0, 70, 2)] = f32::NAN;
        case.t.k[(1, 1, 90, 0)] = f32::NAN;
        case.check_outputs(150);
    }
}

/// A value that no call can give is refused with its name and head.
#[test]
fn what_a_call_gives_is_checked() {
    let checks: &[(&str, &[usize], &[f32], &str)] = &[
        (
            "{hops: 2, alpha: {input: a}}",
            &[2],
            &[0.5, 1.5],
            "input `a` (line 6 of the spec): it is 1.5 for head 1; expected 0 to 1",
        ),
        ("{hops: 2, alpha: {input: a}}", &[2], &[f32::NAN, 0.5], "it is NaN for head 0"),
        ("{hops: all, alpha: {input: a}}", &[1], &[0.0], "it is 0 for head 0; expected above 0, at most 1"),
        (
            "{hops: 1, coefficients: {input: a}}",
            &[2, 2],
            &[0.0, 1.0, f32::INFINITY, 1.0],
            "it is inf for head 1, hop 0; expected a finite number",
        ),
        ("{hops: 1, coefficients: {input: a}}", &[2, 3], &[0.0; 6], "[2, 2]"),
        ("{hops: 1, alpha: {input: a}}", &[3], &[0.0; 3], "[2] or [1]"),
    ];
    for (diffusion, shape, numbers, message) in checks {
        let spec = spec("causal", diffusion, &[]);
        let compiled = compiler::compile(&spec, 20, 20, &options(Isa::Portable, None)).expect("a kernel");
        let t = Tensors::random(&spec, 1, 20, 1);
        let given = ArrayD::from_shape_vec(IxDyn(shape), numbers.to_vec()).expect("a tensor");
        let inputs = Inputs::none().with("a", given.view());
        let step = Step { inputs: inputs.clone(), ..Step::default() };
        let out = compiled.kernel.forward_with(t.q.view(), t.k.view(), t.v.view(), &inputs).expect_err(diffusion);
        assert!(out.to_string().contains(message), "{out}");
        let training = compiled.kernel.training().expect("a kernel");
        let grad = Array4::zeros((1, 2, 20, 5));
        let back =
            training.backward(t.q.view(), t.k.view(), t.v.view(), grad.view(), None, &step).expect_err(diffusion);
        assert_eq!(back.to_string(), out.to_string());
        let missing = compiled.kernel.forward(t.q.view(), t.k.view(), t.v.view()).expect_err(diffusion);
        assert!(missing.to_string().contains("no tensor"), "{missing}");
    }
}

/// Values change, kernels stay: nothing is compiled for them.
#[test]
fn values_of_the_call_compile_nothing() {
    let spec = spec("causal", "{hops: 3, alpha: {input: a}}", &[]);
    let compiled = compiler::compile(&spec, 70, 70, &options(Isa::best(), None)).expect("a kernel");
    let t = Tensors::random(&spec, 1, 70, 1);
    for alpha in [0.0_f32, 0.25, 1.0] {
        let given = ArrayD::from_elem(IxDyn(&[2]), alpha);
        let inputs = Inputs::none().with("a", given.view());
        let found = compiled.kernel.forward_with(t.q.view(), t.k.view(), t.v.view(), &inputs).expect("an output");
        let fixed = spec_with(&spec.print(), &[&format!("diffusion={{hops: 3, alpha: {alpha}}}")]);
        let same = compiler::compile(&fixed, 70, 70, &options(Isa::best(), Some(compiled.kernel.plan().strategy)));
        let same = same.expect("a kernel").kernel.forward(t.q.view(), t.k.view(), t.v.view()).expect("an output");
        near(&found.out.view().into_dyn(), &same.out.mapv(f64::from).view().into_dyn(), 1e-6, &format!("{alpha}"));
    }
}

#[test]
fn hops_without_end_refuse_dropout_and_sweeps() {
    let spec = spec("causal", "{hops: all, alpha: 0.2}", &[]);
    let pattern = pattern::resolve(&spec, 70, 70).expect("a pattern");
    let refused =
        compiler::compile_training(&spec, &pattern, &options(Isa::best(), None), true).expect_err("a refusal");
    assert!(refused.to_string().contains("dropout"), "{refused}");
    let legal = strategies(&spec, 70);
    assert!(legal.contains(&Strategy::FLASH) && !legal.contains(&Strategy::WAVEFRONT), "{legal:?}");
}

/// A set of neighbors that one hop has needs no P behind it; one that two hops have does.
#[test]
fn hops_follow_the_softmax_of_their_own_neighbors() {
    let legal = |diffusion| strategies(&spec(PATTERNS[0], diffusion, &[]), 150);
    assert!(legal(LISTED[1]).contains(&Strategy::FLASH));
    assert!(!legal(LISTED[2]).contains(&Strategy::FLASH));
}

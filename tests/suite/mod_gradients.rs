//! Gradients through score mods, where they meet what else a call may have: every form of index, dropout, threads and
//! stretches, 16-bit tensors, key lengths, guard pages, NaN behind the mask.

use crate::common::{MOD_INPUTS, Numbers, Tensors, families, options, spec_with};
use half::bf16;
use hopweave::compiler::{self, Options};
use hopweave::dropout::Dropout;
use hopweave::interpreter;
use hopweave::operator::{Arguments, Operator};
use hopweave::passes::Strategy;
use hopweave::pattern::{self, Pattern};
use hopweave::runtime::{Gradients, Step};
use hopweave::spec::score::{self, ScoreMod};
use hopweave::spec::{Inputs, PatternSpec};
use hopweave::target::Isa;
use hopweave::tiles::guard::GuardedBuffer;
use ndarray::{Array4, ArrayD, ArrayView4, ArrayViewD, IxDyn, s};

const RUNS: &str = "{window: {radius: 9}}";
const EDGES: &str = "{random: {keys_per_query: 3, seed: 4}}";

/// Every way in which a row's keys are held: runs, gathered keys in permuted rows, edges, both in a row with rows
/// without keys, residue classes.
const PATTERNS: [&str; 5] = [
    RUNS,
    "{any: [{window: {radius: 3}}, {global: {tokens: {every: 37, offset: 5}}}]}",
    EDGES,
    "{all: [{any: [{window: {radius: 9}}, {random_cells: {count: 300, seed: 4}}]}, {not: {where: \"q % 50 == 7\"}}]}",
    "{window: {radius: 9, dilation: 3}}",
];

/// Without the first ones of `tests/suite/gradients.rs`. What turns with the score, turns where no score comes near.
const MODS: [&str; 12] = [
    "{alibi: {slopes: [0.3, -0.2]}}",
    "{bias: {input: rel, index: [\"1 - h\", \"k - q + n - 1\"]}}",
    "{bias: {input: key, index: [k]}}",
    "{bias: {input: table, index: [q, k]}}",
    "{bias: {input: small, index: [\"min(7, abs(q - k) // 5)\"]}}",
    "{expr: \"s + small[(q * 3 + k) % 8] - small[h]\"}",
    "{expr: \"if(q - k > 4 and not k < 10 or h == 1, s - 0.1 * (q - k), 0.5 * s + rel[h, k])\"}",
    "{expr: \"tanh(s) * sigmoid(2 * s) + log(1 + exp(s)) - sqrt(1 + s ** 2) / 3\"}",
    "{expr: \"min(s, 40 + k / n) + max(s / 9, -50) ** 3 - floor(q / 7) % 3 + d / m\"}",
    "{expr: \"-key[k] * key[min(q, n - 1)] + s\"}",
    "{expr: \"s / (1 + small[2] ** 2) * table[q, n - 1 - k]\"}",
    "{expr: \"s\"}",
];

fn spec(pattern: &str, mods: &str, diffusion: &str) -> PatternSpec {
    let text = format!(
        "name: mods\nheads: 2\nkv_heads: 1\nhead_dim: 8\nvalue_dim: 5\ninputs: {MOD_INPUTS}\npattern: {pattern}\n\
         score: {{mods: [{mods}]}}\ndiffusion: {diffusion}\n"
    );
    spec_with(&text, &[])
}

/// A problem with its gradients.
struct Case {
    spec: PatternSpec,
    pattern: Pattern,
    t: Tensors,
    grad: Array4<f32>,
    inputs: Vec<(String, ArrayD<f32>)>,
    dropout: Option<Dropout>,
}

impl Case {
    fn new(spec: PatternSpec, batch: usize, (m, n): (usize, usize), dropout: Option<Dropout>) -> Self {
        let pattern = pattern::resolve(&spec, m, n).unwrap_or_else(|error| panic!("{error}"));
        let t = Tensors::at(&spec, batch, (m, n), 7);
        let mut numbers = Numbers(8);
        let grad = Array4::from_shape_simple_fn((batch, spec.heads, m, spec.value_dim), || numbers.normal());
        let mods = score::resolve(&spec, m, n).unwrap_or_else(|error| panic!("{error}")).expect("mods");
        let inputs = mods.inputs.iter().map(|input| {
            (input.name.clone(), ArrayD::from_shape_simple_fn(IxDyn(&input.shape), || 0.5 * numbers.normal()))
        });
        Self { inputs: inputs.collect(), spec, pattern, t, grad, dropout }
    }

    fn given(&self) -> Inputs<'_> {
        self.inputs.iter().fold(Inputs::none(), |inputs, (name, tensor)| inputs.with(name, tensor.view()))
    }

    fn expected(&self) -> interpreter::Gradients {
        let tensors = [self.t.q.view(), self.t.k.view(), self.t.v.view(), self.grad.view()];
        interpreter::gradients(&self.pattern, &self.spec, tensors, &self.given(), self.dropout.as_ref())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn run(&self, options: &Options) -> Gradients {
        let kernel = compiler::compile_training(&self.spec, &self.pattern, options, self.dropout.is_some())
            .unwrap_or_else(|error| panic!("{}\n{error}", self.spec.print()));
        let t = &self.t;
        let step = Step { inputs: self.given(), dropout: self.dropout, first: 0 };
        kernel
            .backward(t.q.view(), t.k.view(), t.v.view(), self.grad.view(), None, &step)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Asserts that gradients are within a part of the largest number of theirs, or of a tenth: they are differences of terms
/// of order one, of which a single key leaves nothing but rounding.
fn check(found: &Gradients, expected: &interpreter::Gradients, tolerance: f64, what: &str) {
    let named = |name: &str| name.to_owned();
    let found = [(named("q"), found.q.view().into_dyn()), (named("k"), found.k.view().into_dyn())]
        .into_iter()
        .chain([(named("v"), found.v.view().into_dyn())])
        .chain(found.inputs.iter().map(|(name, x)| (name.clone(), x.view())));
    let wanted = [(named("q"), expected.q.view().into_dyn()), (named("k"), expected.k.view().into_dyn())]
        .into_iter()
        .chain([(named("v"), expected.v.view().into_dyn())])
        .chain(expected.inputs.iter().map(|(name, x)| (name.clone(), x.view())));
    let (found, wanted): (Vec<_>, Vec<_>) = (found.collect(), wanted.collect());
    assert_eq!(found.len(), wanted.len(), "{what}");
    for ((name, found), (other, expected)) in found.iter().zip(&wanted) {
        assert_eq!((name, found.shape()), (other, expected.shape()), "{what}");
        let size = expected.iter().fold(0.1f64, |size, x| size.max(x.abs()));
        for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let near = (f64::from(found) - expected).abs() <= tolerance * size;
            assert!(near, "{what}: d{name} element {at}: {found}, expected {expected}, of {size}");
        }
    }
}

fn bits(gradients: &Gradients) -> Vec<u32> {
    let inputs = gradients.inputs.iter().flat_map(|(_, x)| x);
    gradients.q.iter().chain(&gradients.k).chain(&gradients.v).chain(inputs).map(|x| x.to_bits()).collect()
}

#[test]
fn every_form_of_index_has_gradients() {
    for (i, mods) in MODS.iter().enumerate() {
        for (j, pattern) in PATTERNS.iter().enumerate() {
            let hops = if (i + j) % 2 == 0 { "{hops: 1}" } else { "{hops: 3, alpha: 0.2}" };
            let case = Case::new(spec(pattern, mods, hops), 1, (131, 131), None);
            let expected = case.expected();
            let reads = score::resolve(&case.spec, 131, 131).expect("mods").expect("mods");
            let read = |at: usize| reads.mods.iter().flat_map(ScoreMod::elements).any(|element| element.input == at);
            for (at, (name, by_input)) in expected.inputs.iter().enumerate() {
                // Nothing is compared with zeros alone, unless the input is not read, or a constant adds the same to a row.
                let counts = read(at) && !(mods.contains("small[h]") && name != "small");
                assert!(!counts || by_input.iter().any(|&x| x.abs() > 1e-3), "{mods} {pattern}: d{name}");
            }
            for isa in families() {
                check(&case.run(&options(isa, None)), &expected, 2e-5, &format!("{mods} {pattern} {hops} {isa}"));
            }
        }
    }
}

#[test]
fn all_together_with_dropout_at_odd_lengths_and_one_hop_at_a_time() {
    let mods = MODS.into_iter().filter(|mods| !mods.contains("**")).collect::<Vec<_>>().join(", ");
    let dropout = Dropout::new(0.3, 0.2, 5).expect("rates");
    let mut singles = 0;
    for n in [1, 2, 63, 65, 140] {
        for (pattern, diffusion) in
            [(PATTERNS[1], "{hops: 1}"), (PATTERNS[3], "{hops: 4, alpha: 0.2}"), (RUNS, "{hops: 6}")]
        {
            let case = Case::new(spec(pattern, &mods, diffusion), 2, (n, n), Some(dropout));
            let expected = case.expected();
            for isa in families() {
                let again = options(isa, Some(Strategy::RECOMPUTE));
                let again = if case.spec.diffusion.hops() > 1 { again } else { options(isa, None) };
                let kernel = compiler::compile_training(&case.spec, &case.pattern, &again, true).expect("a kernel");
                let single = Options { memory_limit: kernel.scratch_bytes(1) - 1, ..again.clone() };
                let fits = compiler::compile_training(&case.spec, &case.pattern, &single, true)
                    .is_ok_and(|kernel| kernel.plan().strategy == Strategy::FRUGAL);
                singles += usize::from(fits && case.spec.diffusion.hops() > 1);
                for options in [options(isa, None), again].into_iter().chain(fits.then_some(single)) {
                    check(&case.run(&options), &expected, 5e-5, &format!("n {n} {pattern} {diffusion} {isa}"));
                }
            }
        }
    }
    assert!(singles >= 2, "{singles} one hop at a time");
}

#[test]
fn scratch_counts_what_inputs_take() {
    let bytes = |mods: &str, batch: usize| {
        let spec = spec(RUNS, mods, "{hops: 1}");
        let pattern = pattern::resolve(&spec, 300, 300).expect("a pattern");
        let kernel = compiler::compile_training(&spec, &pattern, &options(Isa::best(), None), false);
        kernel.unwrap_or_else(|error| panic!("{error}")).scratch_bytes(batch)
    };
    // Inputs are those of the spec, whatever its mods read; the table alone has n² elements, a sum of which every unit keeps.
    let table = 300 * 300 * size_of::<f32>() as u64;
    assert!(bytes(MODS[3], 1) >= table);
    assert!(bytes(MODS[3], 9) - bytes(MODS[3], 8) >= table);
}

#[test]
fn other_numbers_of_queries_have_gradients_by_inputs() {
    for lengths in [(40, 100), (1, 100), (90, 33)] {
        for pattern in ["causal", "{any: [{window: {radius: 4}}, {global: {tokens: {first: 2}, axis: keys}}]}"] {
            let mods =
                "{bias: {input: table, index: [\"q - n + m\", k]}}, {bias: {input: key, index: [k]}}, {softcap: 3}";
            let case = Case::new(spec(pattern, mods, "{hops: 1}"), 2, lengths, None);
            for isa in families() {
                check(&case.run(&options(isa, None)), &case.expected(), 2e-5, &format!("{pattern} {lengths:?} {isa}"));
            }
        }
    }
}

#[test]
fn gradients_by_inputs_do_not_depend_on_threads() {
    let mods = format!("{}, {}, {}", MODS[1], MODS[3], MODS[5]);
    // Few units, which are cut into stretches, and many, which are not.
    for (batch, n) in [(1, 700), (2, 700), (9, 90)] {
        for (pattern, diffusion) in [(PATTERNS[1], "{hops: 1}"), (PATTERNS[3], "{hops: 2, alpha: 0.1}")] {
            for dropout in [None, Some(Dropout::new(0.2, 0.1, 3).expect("rates"))] {
                let case = Case::new(spec(pattern, &mods, diffusion), batch, (n, n), dropout);
                let on = |threads| case.run(&Options { threads, ..options(Isa::best(), None) });
                let first = on(1);
                if batch == 1 {
                    check(&first, &case.expected(), 5e-5, &format!("{pattern} n {n}"));
                }
                for threads in [2, 3] {
                    assert_eq!(bits(&on(threads)), bits(&first), "{pattern} {batch} {n} {threads}");
                }
            }
        }
    }
}

#[test]
fn padding_adds_nothing_to_inputs() {
    let n = 70;
    let mods = format!("{}, {}", MODS[1], MODS[2]);
    for diffusion in ["{hops: 1}", "{hops: 3, alpha: 0.2}"] {
        let case = Case::new(spec(RUNS, &mods, diffusion), 2, (n, n), None);
        let lengths = [n as i64, 41];
        let arguments = Arguments { inputs: case.given(), key_lengths: Some(&lengths), ..Arguments::default() };
        let operator = Operator::new(case.spec.clone(), n, n, options(Isa::best(), None)).expect("an operator");
        let Tensors { q, k, v } = &case.t;
        let mut padded = [k.clone(), v.clone()];
        padded.iter_mut().for_each(|x| x.slice_mut(s![1, .., 41.., ..]).fill(f32::NAN));
        let found = operator.backward(q.view(), padded[0].view(), padded[1].view(), case.grad.view(), None, &arguments);
        let found = found.unwrap_or_else(|error| panic!("{error}"));
        // Padding is never read, and is 0 where a restart would add it.
        let mut zeros = [k.clone(), v.clone()];
        zeros.iter_mut().for_each(|x| x.slice_mut(s![1, .., 41.., ..]).fill(0.0));
        let facts = arguments.facts(2, &case.pattern, case.spec.kv_heads).expect("facts");
        let of_element = |b: usize| {
            let pattern = facts[b].bind(&case.pattern).expect("a bound pattern");
            let one = |x: &Array4<f32>| x.slice(s![b..=b, .., .., ..]).to_owned();
            let [q, k, v, g] = [one(q), one(&zeros[0]), one(&zeros[1]), one(&case.grad)];
            let tensors = [q.view(), k.view(), v.view(), g.view()];
            interpreter::gradients(&pattern, &case.spec, tensors, &case.given(), None).expect("gradients")
        };
        let [first, mut second] = [of_element(0), of_element(1)];
        second.v.slice_mut(s![.., .., 41.., ..]).fill(0.0);
        let both = |a: &Array4<f64>, b: &Array4<f64>| {
            ndarray::concatenate(ndarray::Axis(0), &[a.view(), b.view()]).expect("two elements")
        };
        let expected = interpreter::Gradients {
            q: both(&first.q, &second.q),
            k: both(&first.k, &second.k),
            v: both(&first.v, &second.v),
            inputs: first.inputs.iter().zip(&second.inputs).map(|((name, a), (_, b))| (name.clone(), a + b)).collect(),
        };
        check(&found, &expected, 2e-5, diffusion);
    }
}

#[test]
fn sixteen_bits_have_gradients_by_inputs() {
    let mods = format!("{}, {}", MODS[1], "{softcap: 3}");
    for diffusion in ["{hops: 1}", "{hops: 3, alpha: 0.2}"] {
        for pattern in [RUNS, EDGES] {
            let mut case = Case::new(spec(pattern, &mods, diffusion), 2, (100, 100), None);
            let round = |x: &Array4<f32>| x.mapv(bf16::from_f32);
            let wide = |x: &Array4<bf16>| x.mapv(bf16::to_f32);
            let [q, k, v, grad] = [&case.t.q, &case.t.k, &case.t.v, &case.grad].map(round);
            case.t = Tensors { q: wide(&q), k: wide(&k), v: wide(&v) };
            case.grad = wide(&grad);
            let spec = spec_with(&case.spec.print(), &["dtype=bf16"]);
            let kernel = compiler::compile_training(&spec, &case.pattern, &options(Isa::best(), None), false);
            let step = Step { inputs: case.given(), ..Step::default() };
            let found =
                kernel.and_then(|kernel| kernel.backward(q.view(), k.view(), v.view(), grad.view(), None, &step));
            let found = found.unwrap_or_else(|error| panic!("{error}"));
            let found = Gradients { q: wide(&found.q), k: wide(&found.k), v: wide(&found.v), inputs: found.inputs };
            check(&found, &case.expected(), 2.0f64.powi(-8), &format!("{pattern} {diffusion}"));
        }
    }
}

/// Inputs and tensors that end, and begin, at a page that may not be touched.
#[test]
fn nothing_outside_the_inputs_is_touched() {
    let mods = MODS.join(", ").replace("max(s / 9, -50) ** 3", "s");
    for pattern in PATTERNS {
        let case = Case::new(spec(pattern, &mods, "{hops: 2, alpha: 0.1}"), 1, (67, 67), None);
        let expected = case.expected();
        for isa in families() {
            for place in [GuardedBuffer::<f32>::new, GuardedBuffer::<f32>::at_start] {
                let buffers: Vec<_> = case.inputs.iter().map(|(_, x)| place(x.as_slice().expect("C order"))).collect();
                let given = case.inputs.iter().zip(&buffers).fold(Inputs::none(), |inputs, ((name, x), buffer)| {
                    inputs.with(name.as_str(), ArrayViewD::from_shape(x.raw_dim(), buffer).expect("a view"))
                });
                let four = [&case.t.q, &case.t.k, &case.t.v, &case.grad];
                let tensors = four.map(|x| place(x.as_slice().expect("C order")));
                let view = |i: usize| ArrayView4::from_shape(four[i].dim(), &tensors[i]).expect("a view");
                let step = Step { inputs: given, ..Step::default() };
                let kernel = compiler::compile_training(&case.spec, &case.pattern, &options(isa, None), false);
                let found = kernel.and_then(|kernel| kernel.backward(view(0), view(1), view(2), view(3), None, &step));
                check(&found.unwrap_or_else(|error| panic!("{error}")), &expected, 1e-4, &format!("{pattern} {isa}"));
            }
        }
    }
}

#[test]
fn what_stands_behind_the_mask_reaches_no_gradient() {
    // NaN at negative distances, and functions and derivatives that are infinite there.
    let mods = "{bias: {input: rel, index: [h, \"q - k + n - 1\"]}}, \
                {expr: \"s + if(k > q, exp(9999 * k) * s, 0) + sqrt(max(q - k, 0 * s)) / 4\"}";
    let n = 100;
    for diffusion in ["{hops: 1}", "{hops: 2, alpha: 0.2}"] {
        let mut case = Case::new(spec("causal", mods, diffusion), 1, (n, n), None);
        case.inputs[0].1.slice_mut(s![.., ..n as isize - 1]).fill(f32::NAN);
        // Where q = k the root has no derivative, but that of `max` is the first argument's.
        let expected = case.expected();
        assert!(expected.inputs[0].1.iter().all(|x| x.is_finite()));
        for isa in families() {
            check(&case.run(&options(isa, None)), &expected, 2e-5, &format!("{diffusion} {isa}"));
        }
    }
}

#[test]
fn a_row_with_nan_scores_spreads_along_edges_only() {
    // One element of an input, and so one pair: its row of A is NaN, and what depends on it.
    for pattern in [RUNS, EDGES, PATTERNS[1]] {
        for diffusion in ["{hops: 1}", "{hops: 2, alpha: 0.2}"] {
            for steep in [false, true] {
                let mods = if steep {
                    // All that is given is finite.
                    "{expr: \"s + exp(99 * table[q, k])\"}"
                } else {
                    "{bias: {input: table, index: [q, k]}}"
                };
                let mut case = Case::new(spec(pattern, mods, diffusion), 1, (140, 140), None);
                let key = (0..140).find(|&k| case.pattern.allows(0, 70, k)).expect("a key");
                if steep {
                    case.inputs[2].1.fill(-1.0);
                }
                case.inputs[2].1[[70, key]] = if steep { 9.0 } else { f32::NAN };
                let mut oracle = case.expected();
                if steep {
                    // f64 holds exp(891) no better, so ask it as NaN.
                    case.inputs[2].1[[70, key]] = f32::NAN;
                    oracle = case.expected();
                    case.inputs[2].1[[70, key]] = 9.0;
                }
                for isa in families() {
                    let found = case.run(&options(isa, None));
                    for (name, found, oracle) in
                        [("q", &found.q, &oracle.q), ("k", &found.k, &oracle.k), ("v", &found.v, &oracle.v)]
                    {
                        for (at, (found, oracle)) in found.iter().zip(oracle).enumerate() {
                            let what = format!("{pattern} {diffusion} {steep} {isa}: d{name} element {at}");
                            assert!(!oracle.is_finite() || found.is_finite(), "{what}: {found}, {oracle}");
                        }
                    }
                }
            }
        }
    }
}

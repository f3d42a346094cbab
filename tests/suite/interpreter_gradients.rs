//! The interpreter's gradients against central differences of its own forward pass, and against what is known without
//! computing: the judge of backward kernels is judged first.

use crate::common::{Numbers, spec_with};
use hopweave::dropout::Dropout;
use hopweave::interpreter::{self, Gradients};
use hopweave::pattern::{self, Pattern, RunTime};
use hopweave::spec::{Inputs, PatternSpec, score};
use ndarray::{Array4, ArrayD, IxDyn};

/// Step of the differences. All tensors lie on a grid of 1/256, so that every step is exact in f32.
const STEP: f32 = 1.0 / 128.0;

/// All that a forward pass reads, and the loss's gradient by its output.
#[derive(Debug, Clone)]
struct Case {
    spec: PatternSpec,
    pattern: Pattern,
    /// q, k, v, then the inputs of the score mods.
    tensors: Vec<ArrayD<f32>>,
    names: Vec<String>,
    grad_out: ArrayD<f32>,
    dropout: Option<Dropout>,
}

impl Case {
    fn new(spec: PatternSpec, (q_len, kv_len): (usize, usize), batch: usize, dropout: Option<Dropout>) -> Self {
        let pattern = pattern::resolve(&spec, q_len, kv_len).unwrap_or_else(|error| panic!("{error}"));
        let mods = score::resolve(&spec, q_len, kv_len).unwrap_or_else(|error| panic!("{error}"));
        let mut numbers = Numbers(q_len as u64 * 77 + kv_len as u64);
        let mut tensor =
            |shape: &[usize]| ArrayD::from_shape_simple_fn(IxDyn(shape), || (numbers.normal() * 256.0).round() / 256.0);
        let mut tensors = vec![
            tensor(&[batch, spec.heads, q_len, spec.head_dim]),
            tensor(&[batch, spec.kv_heads, kv_len, spec.head_dim]),
            tensor(&[batch, spec.kv_heads, kv_len, spec.value_dim]),
        ];
        let grad_out = tensor(&[batch, spec.heads, q_len, spec.value_dim]);
        let mut names = Vec::new();
        for input in mods.iter().flat_map(|mods| &mods.inputs) {
            tensors.push(tensor(&input.shape));
            names.push(input.name.clone());
        }
        Self { spec, pattern, tensors, names, grad_out, dropout }
    }

    fn inputs(&self) -> Inputs<'_> {
        let named = self.names.iter().zip(&self.tensors[3..]);
        named.fold(Inputs::none(), |inputs, (name, tensor)| inputs.with(name.as_str(), tensor.view()))
    }

    fn four(tensor: &ArrayD<f32>) -> ndarray::ArrayView4<'_, f32> {
        tensor.view().into_dimensionality().expect("four axes")
    }

    fn forward(&self) -> interpreter::Output {
        let [q, k, v] = [0, 1, 2].map(|i| Self::four(&self.tensors[i]));
        interpreter::run_dropout(&self.pattern, &self.spec, q, k, v, &self.inputs(), self.dropout.as_ref())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn loss(&self) -> f64 {
        self.forward().out.iter().zip(&self.grad_out).map(|(&x, &g)| x * f64::from(g)).sum()
    }

    fn gradients(&self) -> Gradients {
        let [q, k, v] = [0, 1, 2].map(|i| Self::four(&self.tensors[i]));
        let grad_out = Self::four(&self.grad_out);
        interpreter::gradients(&self.pattern, &self.spec, [q, k, v, grad_out], &self.inputs(), self.dropout.as_ref())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// The difference of the loss over one number of one tensor, of fourth order.
    fn difference(&self, tensor: usize, at: usize) -> f64 {
        let mut moved = self.clone();
        let mut loss = |steps: f32| {
            moved.tensors[tensor] = self.tensors[tensor].clone();
            *moved.tensors[tensor].iter_mut().nth(at).expect("an element") += steps * STEP;
            moved.loss()
        };
        let [once, twice] = [1.0, 2.0].map(|steps| loss(steps) - loss(-steps));
        (8.0 * once - twice) / (12.0 * f64::from(STEP))
    }

    /// Compares `most` numbers of each tensor.
    fn check(&self, most: usize, what: &str) {
        let Gradients { q, k, v, inputs } = self.gradients();
        let all = [q.into_dyn(), k.into_dyn(), v.into_dyn()].into_iter().chain(inputs.into_iter().map(|(_, x)| x));
        let mut numbers = Numbers(9);
        let mut moving = 0;
        for (tensor, found) in all.enumerate() {
            assert_eq!(found.shape(), self.tensors[tensor].shape(), "{what}");
            let count = found.len();
            for _ in 0..most.min(count) {
                let at = if count <= most { moving % count } else { (numbers.bits() % count as u64) as usize };
                moving += 1;
                let (wanted, found) = (self.difference(tensor, at), found.iter().nth(at).copied().expect("an element"));
                let near = (wanted - found).abs() <= 2e-6 * (1.0 + wanted.abs());
                assert!(near, "{what}: tensor {tensor}, element {at}: {found} against the difference {wanted}");
            }
        }
    }
}

fn spec(pattern: &str, mods: &str, diffusion: &str, (heads, kv_heads): (usize, usize)) -> PatternSpec {
    let text = format!(
        "name: test\nheads: {heads}\nkv_heads: {kv_heads}\nhead_dim: 3\nvalue_dim: 2\n\
         inputs: {{rel: {{shape: [heads, \"2 * n\"]}}, small: {{shape: [8]}}}}\npattern: {pattern}\n\
         score: {{scale: 0.6, mods: [{mods}]}}\ndiffusion: {diffusion}\n"
    );
    spec_with(&text, &[])
}

const PATTERNS: [&str; 14] = [
    "full",
    "causal",
    "{window: {radius: 2}}",
    "{window: {left: 5, right: 1, dilation: 2}}",
    "{chunk: {size: 4, stride: 3}}",
    "{global: {tokens: {every: 5, offset: 1}}}",
    "{any: [{window: {radius: 1}}, {global: {tokens: {first: 2}, axis: keys}}, {random: {keys_per_query: 2, seed: 4}}]}",
    "{random_cells: {count: 20, seed: 4}}",
    "{random_blocks: {block: 3, blocks_per_row: 1, seed: 2}}",
    "{strided: {step: 3, mode: diagonal}}",
    "{exponential: {base: 2}}",
    "{all: [causal, {not: {where: \"q % 5 == 2\"}}]}",
    "{where: \"(q + k) % 3 == h\"}",
    "{edges: {pairs: [[0, 1], [0, 3], [4, 0], [7, 7], [7, 2]]}}",
];

const HOPS: [&str; 7] = [
    "{hops: 1}",
    "{hops: 3, alpha: 0.2}",
    "{hops: 2, alpha: 0}",
    "{heat: 1.5, hops: 3}",
    "{coefficients: [0.3, -0.5, 0, 0.9]}",
    "{coefficients: [0.7]}",
    "{hops: 0}",
];

/// Kinks lie where no number of the tests comes near them, or have equal slopes on both sides.
const MODS: [&str; 12] = [
    "{softcap: 2}",
    "{alibi: {slopes: [0.3, -0.2]}}",
    "{bias: {input: rel, index: [h, \"q - k + n - 1\"]}}",
    "{bias: {input: small, index: [\"min(7, abs(q - k) // 2)\"]}}",
    "{expr: \"s * small[(q * 3 + k) % 8] - small[h] / (2 + small[3] ** 2)\"}",
    "{expr: \"if(q - k > 2 and not k < 3 or h == 1, s - 0.1 * (q - k), 0.5 * s + rel[h, k] * s)\"}",
    "{expr: \"tanh(s) * sigmoid(2 * s) + log(1 + exp(s)) - sqrt(3 + s ** 2) / 3\"}",
    "{expr: \"max(s, q, 20) - min(k, s ** 3, -80) + abs(s - 40) * 0.1 + floor(k / 2) % 3 + d / m\"}",
    "{expr: \"-small[k % 8] * small[7] * s - (s + 500) % 1000 + 5 // (4 + q)\"}",
    "{expr: \"s ** 0 + s ** 1 / (1 + exp(-small[0] * s))\"}",
    "{softcap: 3}, {bias: {input: small, index: [h]}}, {expr: \"s ** 2 * small[1]\"}, {softcap: 5}",
    "{expr: \"s\"}",
];

fn dropout() -> Option<Dropout> {
    Some(Dropout::new(0.3, 0.2, 11).expect("rates"))
}

#[test]
fn every_leaf_agrees_with_differences() {
    for (i, pattern) in PATTERNS.iter().enumerate() {
        let diffusion = HOPS[1 + i % (HOPS.len() - 1)];
        for dropout in [None, dropout()] {
            let case = Case::new(spec(pattern, "", diffusion, (2, 2)), (9, 9), 1, dropout);
            case.check(6, &format!("{pattern} {diffusion} {dropout:?}"));
        }
        // More heads than key heads, another number of queries than keys, two batch elements.
        for (lengths, align) in [((4, 9), "end"), ((9, 5), "start")] {
            if pattern.contains("edges") {
                continue;
            }
            let spec = spec(pattern, "", "{hops: 1}", (4, 2));
            let spec = spec_with(&spec.print(), &[&format!("align={align}")]);
            Case::new(spec, lengths, 2, dropout()).check(5, &format!("{pattern} {lengths:?} align {align}"));
        }
    }
}

#[test]
fn every_form_of_hops_agrees_with_differences() {
    for (i, diffusion) in HOPS.into_iter().enumerate() {
        let pattern = PATTERNS[6 + i % 3];
        for dropout in [None, dropout()] {
            let case = Case::new(spec(pattern, MODS[i], diffusion, (2, 1)), (10, 10), 2, dropout);
            case.check(8, &format!("{pattern} {diffusion} {dropout:?}"));
        }
    }
}

#[test]
fn every_score_mod_agrees_with_differences() {
    for (i, mods) in MODS.into_iter().enumerate() {
        let pattern = PATTERNS[i % 3];
        Case::new(spec(pattern, mods, "{hops: 2, alpha: 0.3}", (2, 1)), (8, 8), 1, None).check(12, mods);
        Case::new(spec(pattern, mods, "{hops: 1}", (2, 2)), (5, 8), 2, dropout()).check(12, mods);
    }
}

#[test]
fn bound_patterns_agree_with_differences() {
    let text = "{all: [{segments: {input: ids}}, causal]}";
    for (pattern, ids) in [("causal", None), (text, Some(vec![0, 0, 0, 1, 1, 2, 2, 2, 2]))] {
        let spec = spec(pattern, MODS[2], "{hops: 2, alpha: 0.1}", (2, 1));
        let mut case = Case::new(spec, (9, 9), 1, dropout());
        let known = RunTime { key_length: Some(7), segments: &|_: &str| ids.as_deref(), picked: &|_| None };
        case.pattern = case.pattern.bind(&known).unwrap_or_else(|error| panic!("{error}"));
        case.check(20, pattern);
        let gradients = case.gradients();
        // Keys beyond the length are read by their own restart only.
        assert!(gradients.k.slice(ndarray::s![.., .., 7.., ..]).iter().all(|&x| x == 0.0));
    }
}

fn as_f64(x: &ArrayD<f32>) -> ArrayD<f64> {
    x.mapv(f64::from)
}

#[test]
fn alpha_one_passes_the_gradient_through() {
    let mut case = Case::new(spec(PATTERNS[6], "", "{hops: 2, alpha: 1}", (2, 2)), (9, 9), 2, None);
    // Nothing reads the scores: NaN in them must not matter.
    case.tensors[0].fill(f32::NAN);
    let found = case.gradients();
    assert_eq!(found.v.into_dyn(), as_f64(&case.grad_out));
    assert!(found.q.iter().chain(&found.k).all(|&x| x == 0.0));
}

#[test]
fn constant_values_leave_nothing_for_queries_and_keys() {
    for mods in ["", MODS[0], MODS[10]] {
        let mut case =
            Case::new(spec("{window: {radius: 2}}", mods, "{hops: 3, alpha: 0.2}", (2, 1)), (12, 12), 2, None);
        case.tensors[2].fill(2.5);
        let found = case.gradients();
        let inputs = found.inputs.iter().flat_map(|(_, x)| x);
        assert!(found.q.iter().chain(&found.k).chain(inputs).all(|x| x.abs() < 1e-12));
        // A keeps the sum of the gradient: every row of it sums to 1.
        let sum: f64 = found.v.iter().sum();
        assert!((sum - as_f64(&case.grad_out).sum()).abs() < 1e-9);
    }
}

#[test]
fn rows_without_keys_and_dropped_entries_have_no_gradient() {
    let pattern = "{all: [causal, {not: {where: \"q == 2 or k == 3\"}}]}";
    let mut case = Case::new(spec(pattern, "", "{hops: 1}", (1, 1)), (6, 6), 1, None);
    // NaN keeps to its edges: nobody reads key 3, and query 2 reads nobody.
    for (tensor, row) in [(0, 2), (1, 3), (2, 3)] {
        case.tensors[tensor].index_axis_mut(ndarray::Axis(2), row).fill(f32::NAN);
    }
    let found = case.gradients();
    assert!([&found.q, &found.k, &found.v].into_iter().flatten().all(|x| x.is_finite()));
    let row = |x: &Array4<f64>, i: usize| x.slice(ndarray::s![0, 0, i, ..]).to_vec();
    assert_eq!((row(&found.q, 2), row(&found.k, 3), row(&found.v, 3)), (vec![0.0; 3], vec![0.0; 3], vec![0.0; 2]));
    assert!(row(&found.q, 5).iter().any(|&x| x != 0.0));

    // Only its own key: softmax is 1 whatever the score.
    let case = Case::new(spec("{window: {radius: 0}}", MODS[0], "{hops: 1}", (2, 1)), (6, 6), 1, None);
    let found = case.gradients();
    assert!(found.q.iter().chain(&found.k).all(|x| x.abs() < 1e-15));

    // The last hop's mask cuts the gradient of what it zeroes.
    let dropout = Dropout::new(0.0, 0.5, 3).expect("rates");
    let case = Case::new(spec("causal", "", "{hops: 1, alpha: 1}", (1, 1)), (6, 6), 1, Some(dropout));
    let (out, found) = (case.forward().out, case.gradients());
    let mut dropped = 0;
    for ((at, &by_v), &grad) in found.v.indexed_iter().zip(&case.grad_out) {
        let factor = f64::from(dropout.hop_factor(0, 0, at.2 as u64, at.3 as u32));
        assert_eq!(
            (by_v, out[at]),
            (factor * f64::from(grad), factor * f64::from(case.tensors[2][[at.0, at.1, at.2, at.3]]))
        );
        dropped += usize::from(factor == 0.0);
    }
    assert!((1..12).contains(&dropped), "{dropped} of 12");
}

#[test]
fn dropout_keeps_the_mean_and_the_log_sum_exp() {
    let mut case = Case::new(spec("full", "", "{hops: 2, alpha: 0.3}", (1, 1)), (7, 7), 1, None);
    let plain = case.forward();
    let mut sum = Array4::<f64>::zeros(plain.out.dim());
    let rounds = 4000;
    for seed in 0..rounds {
        case.dropout = Some(Dropout::new(0.2, 0.1, seed).expect("rates"));
        let one = case.forward();
        assert_eq!(one.lse, plain.lse);
        sum += &one.out;
    }
    // One hop is linear in its masks. Over two hops the mask of attention weights comes in twice, yet only products of
    // one entry with itself, on the way from a token to itself and again, are not independent; here they are few.
    for (sum, wanted) in sum.iter().zip(&plain.out) {
        let mean = sum / rounds as f64;
        assert!((mean - wanted).abs() < 0.08, "{mean} {wanted}");
    }
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    let mut case = Case::new(spec("full", "", "{hops: 1}", (2, 1)), (4, 4), 1, None);
    case.grad_out = ArrayD::zeros(IxDyn(&[1, 1, 4, 2]));
    let [q, k, v] = [0, 1, 2].map(|i| Case::four(&case.tensors[i]));
    let error =
        interpreter::gradients(&case.pattern, &case.spec, [q, k, v, Case::four(&case.grad_out)], &case.inputs(), None);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "grad_out: expected shape [1, 2, 4, 2] (batch, heads, length, width), found [1, 1, 4, 2]");
}

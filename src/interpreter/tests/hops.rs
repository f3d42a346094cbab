//! Factors that come with the call, hops without end, and hops with patterns of their own: against dense matrices and
//! finite differences.

use ndarray::{Array1, Array2, Array4, ArrayD, IxDyn, s};

use crate::dropout::Dropout;
use crate::error::Result;
use crate::interpreter::{gradients, run_dropout, run_rows, run_with};
use crate::pattern::{Pattern, resolve};
use crate::spec::{Inputs, PatternSpec, parse};

const N: usize = 7;
const WIDTH: usize = 2;

fn spec(pattern: &str, diffusion: &str) -> PatternSpec {
    let text = format!(
        "name: x\nheads: 2\nkv_heads: 1\nhead_dim: {WIDTH}\npattern: {pattern}\nscore: {{scale: 0.8}}\ndiffusion: {diffusion}\n"
    );
    parse(&text, "<text>").unwrap_or_else(|error| panic!("{error}"))
}

/// q, k, v and a gradient of the output, of irregular numbers in -1..1.
fn tensors() -> [Array4<f32>; 4] {
    let wave = |seed: usize, heads: usize| {
        Array4::from_shape_fn((1, heads, N, WIDTH), |(_, h, i, x)| {
            ((seed * 37 + h * 53 + i * 31 + x * 17 + 3) as f32 * 0.7).sin()
        })
    };
    [wave(0, 2), wave(1, 1), wave(2, 1), wave(3, 2)]
}

fn given(shape: &[usize], numbers: &[f32]) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(shape), numbers.to_vec()).unwrap()
}

fn output(spec: &PatternSpec, [q, k, v, _]: &[Array4<f32>; 4], input: Option<&ArrayD<f32>>) -> Array4<f64> {
    let pattern = resolve(spec, N, N).unwrap();
    run_with(&pattern, spec, q.view(), k.view(), v.view(), &inputs(input)).unwrap().out
}

fn inputs(input: Option<&ArrayD<f32>>) -> Inputs<'_> {
    input.map_or(Inputs::none(), |input| Inputs::none().with("a", input.view()))
}

/// A of a head, dense, from its definition.
fn dense(pattern: &Pattern, spec: &PatternSpec, [q, k, ..]: &[Array4<f32>; 4], head: usize) -> Array2<f64> {
    let mut a = Array2::from_shape_fn((N, N), |(i, j)| {
        let dot: f64 = (0..WIDTH).map(|x| f64::from(q[[0, head, i, x]]) * f64::from(k[[0, 0, j, x]])).sum();
        if pattern.allows(head, i, j) { (spec.scale * dot).exp() } else { 0.0 }
    });
    for mut row in a.rows_mut() {
        let sum = row.sum();
        if sum > 0.0 {
            row.mapv_inplace(|x| x / sum);
        }
    }
    a
}

fn values(tensors: &[Array4<f32>; 4]) -> Array2<f64> {
    tensors[2].slice(s![0, 0, .., ..]).mapv(f64::from)
}

/// x of a x = b, by Gauss and Jordan with the largest pivot.
fn solve(mut a: Array2<f64>, mut b: Array2<f64>) -> Array2<f64> {
    for column in 0..N {
        let pivot = (column..N).max_by(|&i, &j| a[[i, column]].abs().total_cmp(&a[[j, column]].abs())).unwrap();
        for matrix in [&mut a, &mut b] {
            for x in 0..matrix.ncols() {
                matrix.swap([column, x], [pivot, x]);
            }
        }
        for row in (0..N).filter(|&row| row != column) {
            let factor = a[[row, column]] / a[[column, column]];
            for matrix in [&mut a, &mut b] {
                let above: Array1<f64> = matrix.row(column).to_owned();
                matrix.row_mut(row).scaled_add(-factor, &above);
            }
        }
    }
    Array2::from_shape_fn(b.dim(), |(i, x)| b[[i, x]] / a[[i, i]])
}

fn assert_near(found: &Array4<f64>, head: usize, expected: &Array2<f64>, tolerance: f64, what: &str) {
    for ((i, x), &expected) in expected.indexed_iter() {
        let found = found[[0, head, i, x]];
        assert!((found - expected).abs() < tolerance, "{what}: head {head}, row {i}: {found} against {expected}");
    }
}

/// Forward substitution, and what the tolerance leaves of the limit elsewhere.
const ENDLESS: [(&str, f64); 5] = [
    ("causal", 1e-12),
    ("{all: [causal, {where: \"k != 2 and q != 4\"}]}", 1e-12),
    ("{where: \"q == k\"}", 1e-12),
    ("{where: \"k < q\"}", 1e-12),
    ("{window: {radius: 2}}", 1e-5),
];

#[test]
fn the_limit_is_the_solution_of_the_dense_system() {
    let tensors = tensors();
    let alphas = given(&[2], &[0.15, 0.6]);
    for (pattern, tolerance) in ENDLESS {
        for (diffusion, input, alphas) in [
            ("{hops: all, alpha: 0.25}", None, [0.25, 0.25]),
            ("{hops: all, alpha: {input: a}}", Some(&alphas), [0.15_f32, 0.6].map(f64::from)),
        ] {
            let spec = spec(pattern, diffusion);
            let out = output(&spec, &tensors, input);
            for (head, alpha) in alphas.into_iter().enumerate() {
                let a = dense(&resolve(&spec, N, N).unwrap(), &spec, &tensors, head);
                let system = Array2::<f64>::eye(N) - (1.0 - alpha) * a;
                let expected = solve(system, alpha * values(&tensors));
                assert_near(&out, head, &expected, tolerance, &format!("{pattern} {diffusion}"));
            }
        }
    }
}

#[test]
fn factors_of_a_call_are_those_of_their_heads() {
    let tensors = tensors();
    let of_heads = given(&[2], &[0.25, 0.0]);
    let (restart, fixed) = ("{hops: 3, alpha: {input: a}}", ["{hops: 3, alpha: 0.25}", "{hops: 3, alpha: 0}"]);
    let found = output(&spec("causal", restart), &tensors, Some(&of_heads));
    for (head, fixed) in fixed.into_iter().enumerate() {
        let expected = output(&spec("causal", fixed), &tensors, None);
        assert_eq!(found.slice(s![0, head, .., ..]), expected.slice(s![0, head, .., ..]));
    }
    let found = output(&spec("causal", restart), &tensors, Some(&given(&[1], &[0.25])));
    assert_eq!(found, output(&spec("causal", fixed[0]), &tensors, None));
    // Σ θ_k A^k V, by powers of the dense matrix.
    let theta = given(&[2, 3], &[0.5, -1.0, 0.25, 0.0, 2.0, -0.75]);
    let spec = spec("{window: {radius: 1}}", "{coefficients: {input: a}, hops: 2}");
    let found = output(&spec, &tensors, Some(&theta));
    for head in 0..2 {
        let a = dense(&resolve(&spec, N, N).unwrap(), &spec, &tensors, head);
        let mut power = values(&tensors);
        let mut expected = Array2::zeros(power.dim());
        for k in 0..3 {
            expected.scaled_add(f64::from(theta[[head, k]]), &power);
            power = a.dot(&power);
        }
        assert_near(&found, head, &expected, 1e-12, "coefficients");
    }
}

const OWN: &str =
    "{hops: [{pattern: {window: {radius: 1}}}, {}, {pattern: {all: [causal, {where: \"k != 1\"}]}}], alpha: 0.2}";

#[test]
fn each_hop_has_the_softmax_of_its_own_pattern() {
    let tensors = tensors();
    let spec = spec("{strided: {step: 3, mode: diagonal}}", OWN);
    let pattern = resolve(&spec, N, N).unwrap();
    let [q, k, v, _] = &tensors;
    let found = run_with(&pattern, &spec, q.view(), k.view(), v.view(), &Inputs::none()).unwrap();
    let single = |node: &str| {
        let spec = self::spec(node, "{hops: 1}");
        (resolve(&spec, N, N).unwrap(), spec)
    };
    let nodes =
        ["{window: {radius: 1}}", "{strided: {step: 3, mode: diagonal}}", "{all: [causal, {where: \"k != 1\"}]}"];
    for head in 0..2 {
        let mut z = values(&tensors);
        for node in nodes {
            let (pattern, spec) = single(node);
            z = 0.8 * dense(&pattern, &spec, &tensors, head).dot(&z) + 0.2 * values(&tensors);
        }
        assert_near(&found.out, head, &z, 1e-12, "own patterns");
    }
    let (first, spec) = single(nodes[0]);
    assert_eq!(found.lse, run_with(&first, &spec, q.view(), k.view(), v.view(), &Inputs::none()).unwrap().lse);
}

/// Every form with an input that fits it.
fn forms() -> Vec<(&'static str, &'static str, Option<ArrayD<f32>>)> {
    let alphas = || Some(given(&[2], &[0.3, 0.75]));
    vec![
        ("causal", "{hops: 3, alpha: 0.2}", None),
        ("{window: {radius: 1}}", "{hops: 3, alpha: {input: a}}", alphas()),
        ("causal", "{hops: 2, alpha: {input: a}}", Some(given(&[1], &[0.375]))),
        ("causal", "{hops: 0, alpha: {input: a}}", alphas()),
        ("causal", "{coefficients: {input: a}, hops: 2}", Some(given(&[2, 3], &[0.5, -1.0, 0.25, 0.1, 2.0, -0.75]))),
        ("causal", "{coefficients: {input: a}, hops: 0}", Some(given(&[2, 1], &[0.5, -1.0]))),
        ("{all: [causal, {where: \"k != 2 and q != 4\"}]}", "{hops: all, alpha: 0.25}", None),
        ("causal", "{hops: all, alpha: {input: a}}", alphas()),
        ("{where: \"k < q\"}", "{hops: all, alpha: {input: a}}", Some(given(&[1], &[0.5]))),
        ("{window: {radius: 2}}", "{hops: all, alpha: {input: a}, tolerance: 1e-4}", alphas()),
        ("{strided: {step: 3, mode: diagonal}}", OWN, None),
        ("causal", "{hops: [{pattern: full}, {}], alpha: {input: a}}", alphas()),
    ]
}

#[test]
fn gradients_of_every_form_are_its_differences() {
    for (pattern, diffusion, input) in forms() {
        let spec = spec(pattern, diffusion);
        let lengths = resolve(&spec, N, N).unwrap();
        let tensors = tensors();
        let [q, k, v, grad_out] = &tensors;
        let views = [q.view(), k.view(), v.view(), grad_out.view()];
        let found = gradients(&lengths, &spec, views, &inputs(input.as_ref()), None).unwrap();
        let loss = |tensors: &[Array4<f32>; 4], input: Option<&ArrayD<f32>>| -> f64 {
            output(&spec, tensors, input).iter().zip(&tensors[3]).map(|(x, &g)| x * f64::from(g)).sum()
        };
        let close = |found: f64, [more, less]: [f64; 2], what: &str| {
            let expected = (more - less) * 128.0;
            let scale = 1.0 + expected.abs();
            assert!(
                (found - expected).abs() < 2e-4 * scale,
                "{pattern} {diffusion}: {what}: {found} against {expected}"
            );
        };
        for (place, (name, gradient)) in [("q", &found.q), ("k", &found.k), ("v", &found.v)].into_iter().enumerate() {
            for (at, &gradient) in gradient.indexed_iter() {
                let moved = |by: f32| {
                    let mut tensors = tensors.clone();
                    tensors[place][at] += by;
                    loss(&tensors, input.as_ref())
                };
                close(gradient, [1.0 / 256.0, -1.0 / 256.0].map(moved), &format!("{name} {at:?}"));
            }
        }
        match &input {
            None => assert!(found.inputs.is_empty()),
            Some(input) => {
                let [(name, gradient)] = found.inputs.as_slice() else { panic!("{:?}", found.inputs) };
                assert_eq!((name.as_str(), gradient.shape()), ("a", input.shape()));
                for (at, &gradient) in gradient.indexed_iter() {
                    let moved = |by: f32| {
                        let mut input = input.clone();
                        input[at.clone()] += by;
                        loss(&tensors, Some(&input))
                    };
                    close(gradient, [1.0 / 256.0, -1.0 / 256.0].map(moved), &format!("a {at:?}"));
                }
            }
        }
    }
}

#[test]
fn sampled_rows_of_every_form_equal_the_whole() {
    for (pattern, diffusion, input) in forms() {
        let spec = spec(pattern, diffusion);
        let lengths = resolve(&spec, N, N).unwrap();
        let [q, k, v, _] = &tensors();
        let inputs = inputs(input.as_ref());
        let whole = run_with(&lengths, &spec, q.view(), k.view(), v.view(), &inputs).unwrap();
        let places = [(0, 0), (0, 1)];
        let sample =
            run_rows(&lengths, &spec, q.view(), k.view(), v.view(), &inputs, &places, &[5, 0, 6, 4], 1 << 30).unwrap();
        assert_eq!((sample.rows.len(), sample.left_out), (8, 0));
        for row in &sample.rows {
            let place = s![0, row.head, row.query, ..];
            assert_eq!(row.out, whole.out.slice(place).to_vec(), "{pattern} {diffusion}");
            assert_eq!(row.lse, whole.lse[[0, row.head, row.query]]);
        }
    }
}

#[test]
fn a_zero_of_the_call_multiplies_and_a_constant_one_does_not() {
    let mut tensors = tensors();
    tensors[2].slice_mut(s![0, 0, 3, ..]).fill(f32::NAN);
    let nan_rows = |spec: &PatternSpec, input: Option<&ArrayD<f32>>| -> Vec<usize> {
        let out = output(spec, &tensors, input);
        (0..N).filter(|&i| out[[0, 0, i, 0]].is_nan()).collect()
    };
    // Query 3 attends to key 2 alone, the others to themselves.
    let node = "{where: \"(k == q and q != 3) or (q == 3 and k == 2)\"}";
    let zero = given(&[1], &[0.0]);
    assert_eq!(nan_rows(&spec(node, "{hops: 2, alpha: 0}"), None), [0; 0]);
    assert_eq!(nan_rows(&spec(node, "{hops: 2, alpha: {input: a}}"), Some(&zero)), [3]);
    // NaN goes along edges alone: key 3 is attended to by 3, 4 and 5, and these by 6 no more.
    let node = "{where: \"k <= q and q - k <= 2 and not (q == 6 and k < 6)\"}";
    assert_eq!(nan_rows(&spec(node, "{hops: all, alpha: 0.5}"), None), [3, 4, 5]);
    // At alpha 1 the scores count for nothing, unless it is given.
    tensors[0].slice_mut(s![0, 0, 1, ..]).fill(f32::NAN);
    let one = given(&[1], &[1.0]);
    let out = output(&spec(node, "{hops: all, alpha: 1}"), &tensors, None);
    assert!(out[[0, 0, 1, 0]].is_finite());
    let out = output(&spec(node, "{hops: all, alpha: {input: a}}"), &tensors, Some(&one));
    assert!(out[[0, 0, 1, 0]].is_nan());
}

#[test]
fn what_has_no_meaning_is_refused_by_name() {
    let [q, k, v, grad_out] = &tensors();
    let run = |spec: &PatternSpec, input: &ArrayD<f32>, dropout: Option<&Dropout>| -> Result<()> {
        let pattern = resolve(spec, N, N)?;
        let inputs = inputs(Some(input));
        let forward = run_dropout(&pattern, spec, q.view(), k.view(), v.view(), &inputs, dropout).map(drop);
        let views = [q.view(), k.view(), v.view(), grad_out.view()];
        let backward = gradients(&pattern, spec, views, &inputs, dropout).map(drop);
        assert_eq!(forward.as_ref().map_err(ToString::to_string), backward.as_ref().map_err(ToString::to_string));
        forward
    };
    let message = |result: Result<()>| result.unwrap_err().to_string();
    let window = spec("{window: {radius: 2}}", "{hops: all, alpha: {input: a}}");
    let slow = message(run(&window, &given(&[2], &[0.5, 0.001]), None));
    assert!(slow.contains("input `a` (line 7 of the spec)") && slow.contains("alpha 0.001 of head 1"), "{slow}");
    assert!(slow.contains("within 1024 hops"), "{slow}");
    // Where the mask is lower triangular, there are no hops to count.
    run(&spec("causal", "{hops: all, alpha: {input: a}}"), &given(&[2], &[0.5, 0.001]), None).unwrap();
    let zero = message(run(&window, &given(&[2], &[0.5, 0.0]), None));
    assert!(zero.contains("it is 0 for head 1; expected above 0, at most 1"), "{zero}");
    let hops = spec("causal", "{hops: 3, alpha: {input: a}}");
    for (number, written) in [(1.5, "1.5"), (f32::NAN, "NaN"), (-0.25, "-0.25")] {
        let error = message(run(&hops, &given(&[1], &[number]), None));
        assert!(error.contains(&format!("it is {written} for head 0; expected 0 to 1")), "{error}");
    }
    let shape = message(run(&hops, &given(&[3], &[0.5; 3]), None));
    assert!(shape.contains("expected shape [2] or [1]") && shape.contains("found [3]"), "{shape}");
    let theta = spec("causal", "{coefficients: {input: a}, hops: 2}");
    let shape = message(run(&theta, &given(&[2, 2], &[0.5; 4]), None));
    assert!(shape.contains("expected shape [2, 3]") && shape.contains("found [2, 2]"), "{shape}");
    let infinite = message(run(&theta, &given(&[2, 3], &[0.5, 1.0, 0.0, 0.0, f32::INFINITY, 0.0]), None));
    assert!(infinite.contains("it is inf for head 1, hop 1; expected a finite number"), "{infinite}");
    let dropout = Dropout::new(0.5, 0.0, 1).unwrap();
    let refused = message(run(&window, &given(&[1], &[0.5]), Some(&dropout)));
    assert!(refused.contains("dropout with `hops: all`"), "{refused}");
}

//! Extreme numbers, backward: every tile family and way to gradients against f64, within a bound computed from the data.

use crate::common::bound::{EPS, GradientBound};
use crate::common::extremes::{KINDS, specs, tensors};
use crate::common::{Numbers, Tensors, compile, families, options, spec_of, ways};
use hopweave::compiler;
use hopweave::interpreter;
use hopweave::pattern::{self, Pattern};
use hopweave::runtime::{Gradients, Saved, Step};
use hopweave::spec::{Inputs, PatternSpec};
use ndarray::{Array4, Axis};

const DIFFUSION: [&str; 2] = ["{hops: 1, alpha: 0}", "{hops: 3, alpha: 0.2}"];

fn oracle(pattern: &Pattern, spec: &PatternSpec, t: &Tensors, grad: &Array4<f32>) -> interpreter::Gradients {
    let tensors = [t.q.view(), t.k.view(), t.v.view(), grad.view()];
    interpreter::gradients(pattern, spec, tensors, &Inputs::none(), None).unwrap_or_else(|error| panic!("{error}"))
}

/// A gradient of the output, positive so that sums of it do not cancel.
fn gradient(spec: &PatternSpec, n: usize) -> Array4<f32> {
    let mut numbers = Numbers(8);
    Array4::from_shape_simple_fn((1, spec.heads, n, spec.value_dim), || numbers.normal().abs() + 0.5)
}

/// Each query's weights sum to 1, whatever its scores: so what values get is, column by column, what outputs gave.
fn check_column_sums(found: &Gradients, grad: &Array4<f32>) -> Result<(), String> {
    let sum = |x: &Array4<f32>| x.mapv(f64::from).sum_axis(Axis(2));
    let n = grad.dim().2 as f64;
    for ((at, found), expected) in sum(&found.v).indexed_iter().zip(&sum(grad)) {
        let bound = 8.0 * (n + 10.0) * EPS * expected.abs();
        if !found.is_finite() || (found - expected).abs() > bound {
            return Err(format!("column {at:?} of dv sums to {found}, that of the gradient to {expected}"));
        }
    }
    Ok(())
}

#[test]
fn gradients_of_extreme_numbers_are_as_near_to_f64_as_f32_allows() {
    let n = 75;
    let mut ways_seen = std::collections::BTreeSet::new();
    for spec in specs(DIFFUSION) {
        let pattern = pattern::resolve(&spec, n, n).expect("a pattern");
        let grad = gradient(&spec, n);
        let kernels: Vec<_> = families()
            .into_iter()
            .flat_map(|isa| ways(isa, &spec, &pattern).into_iter().map(move |(way, options)| (isa, way, options)))
            .map(|(isa, way, options)| {
                ways_seen.insert(way);
                let training = compiler::compile_training(&spec, &pattern, &options, false).expect("a kernel");
                (isa, way, training, compile(&spec, n, &crate::common::options(isa, None)))
            })
            .collect();
        for kind in KINDS {
            let t = tensors(kind, &spec, n);
            let exact = oracle(&pattern, &spec, &t, &grad);
            let bound = GradientBound::new(&pattern, &spec, &t, &grad);
            for (isa, way, training, forward) in &kernels {
                let output = t.run(forward);
                for saved in [None, Some(Saved { out: output.out.view(), lse: output.lse.view() })] {
                    let with = if saved.is_some() { "saved" } else { "from inputs alone" };
                    let (q, k, v) = (t.q.view(), t.k.view(), t.v.view());
                    let found = training.backward(q, k, v, grad.view(), saved, &Step::default()).expect("gradients");
                    let near = bound.check([&found.q, &found.k, &found.v], &exact);
                    near.and_then(|()| check_column_sums(&found, &grad)).unwrap_or_else(|wrong| {
                        panic!("{kind}, {isa} {way} {with}\n{}\n{wrong}", spec.print());
                    });
                }
            }
        }
    }
    assert!(ways_seen.contains("one hop") && ways_seen.contains("stored") && ways_seen.contains("again"));
}

/// The bound itself: tight where f32 is, and wrong gradients pass it.
#[test]
fn wrong_gradients_are_out_of_bounds() {
    let n = 75;
    for spec in specs(DIFFUSION) {
        let pattern = pattern::resolve(&spec, n, n).expect("a pattern");
        let (grad, t) = (gradient(&spec, n), tensors("ordinary", &spec, n));
        let exact = oracle(&pattern, &spec, &t, &grad);
        let bound = GradientBound::new(&pattern, &spec, &t, &grad);
        let narrow = |x: &Array4<f64>| x.mapv(|x| x as f32);
        let right = [narrow(&exact.q), narrow(&exact.k), narrow(&exact.v)];
        let check = |found: &[Array4<f32>; 3]| bound.check([&found[0], &found[1], &found[2]], &exact);
        check(&right).unwrap_or_else(|wrong| panic!("{wrong}"));
        for which in 0..3 {
            for wrong in [f32::NAN, right[which][[0, 1, 40, 3]] + 0.02] {
                let mut found = right.clone();
                found[which][[0, 1, 40, 3]] = wrong;
                assert!(check(&found).is_err(), "{which} {wrong}\n{}", spec.print());
            }
        }
        let mut found = Gradients { q: right[0].clone(), k: right[1].clone(), v: right[2].clone(), inputs: Vec::new() };
        check_column_sums(&found, &grad).unwrap_or_else(|wrong| panic!("{wrong}"));
        found.v *= 1.001;
        assert!(check_column_sums(&found, &grad).is_err());
    }
}

/// A key that is infinitely far from every query has weight 0: it is as if it were not there.
#[test]
fn a_key_at_minus_infinity_is_as_if_it_were_not_there() {
    let (n, far) = (75, 33);
    for spec in specs(DIFFUSION) {
        let pattern = pattern::resolve(&spec, n, n).expect("a pattern");
        let grad = gradient(&spec, n);
        let mut t = tensors("ordinary", &spec, n);
        t.q.slice_mut(ndarray::s![.., .., .., 2]).fill(-1.0);
        t.k.slice_mut(ndarray::s![.., .., far, 2]).fill(f32::INFINITY);
        let exact = oracle(&pattern, &spec, &t, &grad);
        assert!(exact.q.iter().chain(&exact.k).chain(&exact.v).all(|x| x.is_finite()));
        let size = exact.q.iter().chain(&exact.k).chain(&exact.v).fold(0.0f64, |size, x| size.max(x.abs()));
        for isa in families() {
            for (way, options) in ways(isa, &spec, &pattern) {
                let kernel = compiler::compile_training(&spec, &pattern, &options, false).expect("a kernel");
                let (q, k, v) = (t.q.view(), t.k.view(), t.v.view());
                let found = kernel.backward(q, k, v, grad.view(), None, &Step::default()).expect("gradients");
                for (name, found, exact) in
                    [("dq", &found.q, &exact.q), ("dk", &found.k, &exact.k), ("dv", &found.v, &exact.v)]
                {
                    for ((at, &found), &exact) in found.indexed_iter().zip(exact) {
                        let near = (f64::from(found) - exact).abs() <= 2e-5 * size;
                        assert!(near, "{name} at {at:?}: {found}, expected {exact}: {isa} {way}\n{}", spec.print());
                    }
                }
                assert!(found.k.slice(ndarray::s![.., .., far, ..]).iter().all(|&x| x == 0.0));
            }
        }
    }
}

/// What the definition leaves no number for: the softmax's adjoint of an infinite gradient is the difference of two infinities.
#[test]
fn a_difference_of_infinities_is_no_number() {
    let spec = spec_of("{window: {radius: 0}}", 4, 4, DIFFUSION[0]);
    let pattern = pattern::resolve(&spec, 5, 5).expect("a pattern");
    let mut t = Tensors::random(&spec, 1, 5, 1);
    t.v.slice_mut(ndarray::s![.., .., 3, ..]).fill(f32::INFINITY);
    let exact = oracle(&pattern, &spec, &t, &Array4::ones((1, 2, 5, 4)));
    for i in 0..5 {
        assert!(exact.q.slice(ndarray::s![.., .., i, ..]).iter().all(|x| if i == 3 { x.is_nan() } else { *x == 0.0 }));
    }
    for isa in families() {
        let kernel = compiler::compile_training(&spec, &pattern, &options(isa, None), false).expect("a kernel");
        let grad = Array4::ones((1, 2, 5, 4));
        let (q, k, v) = (t.q.view(), t.k.view(), t.v.view());
        let found = kernel.backward(q, k, v, grad.view(), None, &Step::default()).expect("gradients");
        for i in [0, 1, 2, 4] {
            assert!(found.q.slice(ndarray::s![.., .., i, ..]).iter().all(|x| x.is_finite()), "{isa}");
        }
        assert!(found.q.slice(ndarray::s![.., .., 3, ..]).iter().all(|x| x.is_nan()), "{isa}");
    }
}

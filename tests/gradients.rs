//! Gradients against the definition, in f64 over every pair.

mod common;

use common::{Tensors, families, options, pattern_files, small_spec, spec_of};
use hopweave::compiler;
use hopweave::pattern::{self, Pattern};
use hopweave::spec::{Inputs, PatternSpec};
use ndarray::{Array2, Array4, s};

fn reference(spec: &PatternSpec, pattern: &Pattern, t: &Tensors, grad: &Array4<f32>) -> [Array4<f64>; 3] {
    let wide = |x: &Array4<f32>| x.mapv(f64::from);
    let (q, k, v, grad) = (wide(&t.q), wide(&t.k), wide(&t.v), wide(grad));
    let (mut dq, mut dk, mut dv) = (q.clone() * 0.0, k.clone() * 0.0, v.clone() * 0.0);
    let group = spec.heads / spec.kv_heads;
    let mut hops: Vec<(f64, f64)> = spec.diffusion.hops.iter().map(|hop| (hop.step, hop.restart)).collect();
    match hops.first_mut() {
        Some(first) => first.0 *= spec.diffusion.initial,
        None => hops.push((0.0, spec.diffusion.initial)),
    }
    for b in 0..q.dim().0 {
        for h in 0..spec.heads {
            let of = |x: &Array4<f64>, h: usize| x.slice(s![b, h, .., ..]).to_owned();
            let (q, k, v, g) = (of(&q, h), of(&k, h / group), of(&v, h / group), of(&grad, h));
            let (m, n) = (pattern.q_len, pattern.kv_len);
            let scores = q.dot(&k.t()) * spec.scale;
            let mut a = Array2::<f64>::zeros((m, n));
            for i in 0..m {
                let keys: Vec<usize> = (0..n).filter(|&j| pattern.allows(h, i, j)).collect();
                let max = keys.iter().map(|&j| scores[[i, j]]).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = keys.iter().map(|&j| (scores[[i, j]] - max).exp()).sum();
                for &j in &keys {
                    a[[i, j]] = (scores[[i, j]] - max).exp() / sum;
                }
            }
            let mut zs = vec![v.clone()];
            for &(step, restart) in &hops {
                let z = a.dot(&zs[zs.len() - 1]) * step;
                zs.push(if restart == 0.0 { z } else { z + &v * restart });
            }
            let (mut g, mut da) = (g, Array2::<f64>::zeros((m, n)));
            for (hop, &(step, restart)) in hops.iter().enumerate().rev() {
                da += &(g.dot(&zs[hop].t()) * step);
                if restart != 0.0 {
                    dv.slice_mut(s![b, h / group, .., ..]).scaled_add(restart, &g);
                }
                g = a.t().dot(&g) * step;
            }
            dv.slice_mut(s![b, h / group, .., ..]).scaled_add(1.0, &g);
            let delta = (&a * &da).sum_axis(ndarray::Axis(1)).insert_axis(ndarray::Axis(1));
            let ds = &a * &(da - delta);
            dq.slice_mut(s![b, h, .., ..]).scaled_add(spec.scale, &ds.dot(&k));
            dk.slice_mut(s![b, h / group, .., ..]).scaled_add(spec.scale, &ds.t().dot(&q));
        }
    }
    [dq, dk, dv]
}

fn check(spec: &PatternSpec, (m, n): (usize, usize), isa: hopweave::target::Isa, what: &str) {
    let pattern = pattern::resolve(spec, m, n).expect("a pattern");
    let t = Tensors::at(spec, 2, (m, n), 7);
    let mut numbers = common::Numbers(8);
    let grad = Array4::from_shape_simple_fn((2, spec.heads, m, spec.value_dim), || numbers.normal());
    let kernel = compiler::compile_training(spec, &pattern, &options(isa, None), false)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = kernel
        .backward(t.q.view(), t.k.view(), t.v.view(), grad.view(), None, &Inputs::none(), None, 0)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    for ((name, found), expected) in
        [("q", &found.q), ("k", &found.k), ("v", &found.v)].into_iter().zip(reference(spec, &pattern, &t, &grad))
    {
        let size = expected.iter().fold(1e-3f64, |size, x| size.max(x.abs()));
        let error = found.iter().zip(&expected).fold(0.0f64, |most, (a, b)| most.max((f64::from(*a) - b).abs()));
        assert!(error <= 1e-5 * size, "{what}: d{name} {error} of {size}");
    }
}

#[test]
fn first_look() {
    for isa in families() {
        check(&spec_of("full", 16, 16, "{hops: 1, alpha: 0}"), (70, 70), isa, "full");
        check(&spec_of("{window: {radius: 20}}", 16, 24, "{hops: 1, alpha: 0.3}"), (150, 150), isa, "window");
        check(&spec_of("{window: {radius: 20}}", 16, 24, "{hops: 4, alpha: 0.3}"), (150, 150), isa, "window, hops");
        check(
            &spec_of("{random: {keys_per_query: 3, seed: 1}}", 16, 24, "{hops: 4, alpha: 0.3}"),
            (150, 150),
            isa,
            "random",
        );
    }
}

#[test]
fn pattern_files_have_gradients() {
    for (name, text) in pattern_files() {
        for sets in [&["diffusion.hops=1"][..], &["diffusion.hops=3"]] {
            let spec = small_spec(&text, sets);
            if !spec.mods.is_empty() {
                continue;
            }
            for isa in families() {
                let n = common::fitting_length(&spec, 130);
                check(&spec, (n, n), isa, &format!("{name} {sets:?} {isa}"));
            }
        }
    }
}

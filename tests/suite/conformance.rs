//! Kernels against the interpreter: every tile family × every pattern file × odd lengths × hops × every legal
//! strategy, and sweeps over widths, batch sizes and strides. The bound is that of [`common::Oracle`].

use std::collections::BTreeSet;

use crate::common::{
    Oracle, Tensors, compile, families, fitting_length, options, oracle, pattern_files, small_spec, spec_of, spec_with,
    strategies,
};
use hopweave::passes::Strategy;
use hopweave::pattern;
use hopweave::target::Isa;
use ndarray::{Array3, Array4, ArrayView4, s};

/// All node kinds that differ to a kernel: runs that shift, gathered lists, scattered edges, dense rows.
const MIXED: &str = "{any: [{window: {radius: 9}}, {global: {tokens: {every: 37, offset: 5}}}, \
                     {random: {keys_per_query: 3, seed: 4}}]}";

fn conform(lengths: &[usize], hops: &[usize]) {
    let families = families();
    let mut covered = BTreeSet::new();
    for (name, text) in pattern_files() {
        for &n in lengths {
            for &hops in hops {
                // One hop is plain attention; more keep some of V, as the diffuser does.
                let diffusion = format!("diffusion={{hops: {hops}, alpha: {}}}", if hops == 1 { 0.0 } else { 0.1 });
                let spec = small_spec(&text, &[&diffusion]);
                let asked = n;
                let n = fitting_length(&spec, n);
                let (tensors, oracle) = oracle(&spec, 1, n, n as u64);
                for &isa in &families {
                    for strategy in strategies(&spec, n) {
                        let compiled = compile(&spec, n, &options(isa, Some(strategy)));
                        oracle.check(&tensors.run(&compiled), &|| format!("{name} n {n} hops {hops} {isa} {strategy}"));
                        covered.insert((name.clone(), isa, asked, hops, strategy.name()));
                    }
                }
            }
        }
    }
    let cases = pattern_files().len() * lengths.len() * families.len();
    let of = |strategy: Strategy| covered.iter().filter(|case| case.4 == strategy.name()).count();
    assert_eq!(of(Strategy::FLASH), cases);
    assert_eq!([of(Strategy::RESIDENT), of(Strategy::RECOMPUTE)], [cases * hops.len(); 2]);
    // Most patterns are bands at no length but the shortest; windows, chunks, grids and what is causal are.
    assert!(of(Strategy::WAVEFRONT) > cases, "{} of {cases}", of(Strategy::WAVEFRONT));
    assert!(of(Strategy::TRIANGULAR) > cases, "{} of {cases}", of(Strategy::TRIANGULAR));
    let skipped = Isa::ALL.len() - families.len();
    println!("{} cases; {} skipped with {skipped} families", covered.len(), covered.len() / families.len() * skipped);
}

#[test]
fn pattern_files_conform_at_small_lengths() {
    conform(&[0, 1, 2, 63, 64, 65, 127, 251], &[1, 2, 5]);
}

#[test]
fn pattern_files_conform_at_a_thousand() {
    conform(&[1000], &[1, 2, 5]);
}

#[test]
fn every_width_conforms() {
    for (i, head_dim) in [1, 3, 16, 17, 33, 64, 100, 128, 257, 512].into_iter().enumerate() {
        // The widths of values run the other way, so that wide meets narrow; and each meets itself.
        let other = [512, 257, 128, 100, 64, 33, 17, 16, 3, 1][i];
        for value_dim in [head_dim, other] {
            for diffusion in ["{hops: 1}", "{hops: 2, alpha: 0.2}"] {
                let spec = spec_of(MIXED, head_dim, value_dim, diffusion);
                let (tensors, oracle) = oracle(&spec, 1, 130, i as u64);
                for isa in families() {
                    for strategy in strategies(&spec, 130) {
                        let compiled = compile(&spec, 130, &options(isa, Some(strategy)));
                        let what = || format!("head_dim {head_dim} value_dim {value_dim} {diffusion} {isa} {strategy}");
                        oracle.check(&tensors.run(&compiled), &what);
                    }
                }
            }
        }
    }
}

#[test]
fn every_form_of_diffusion_conforms() {
    for diffusion in [
        "{hops: 0}",
        "{hops: 1, alpha: 0.25}",
        "{hops: 3, alpha: 0}",
        "{hops: 2, alpha: 1}",
        "{alpha: 0.5, tolerance: 0.1}",
        "{heat: 1.5, hops: 4}",
        "{coefficients: [0.5]}",
        "{coefficients: [0, 0.7, 0.3]}",
        "{coefficients: [-1, 2]}",
        "{coefficients: [1, 0]}",
    ] {
        let spec = spec_of(MIXED, 5, 6, diffusion);
        let (tensors, oracle) = oracle(&spec, 2, 97, 11);
        for isa in families() {
            for strategy in strategies(&spec, 97) {
                let compiled = compile(&spec, 97, &options(isa, Some(strategy)));
                oracle.check(&tensors.run(&compiled), &|| format!("{diffusion} {isa} {strategy}"));
            }
        }
    }
}

#[test]
fn large_scores_conform() {
    // Scores of some hundreds: the maximum must be taken before the exponential, in every step of online softmax.
    for diffusion in ["{hops: 1}", "{hops: 2, alpha: 0.1}"] {
        let spec = spec_of(MIXED, 16, 4, diffusion);
        let mut tensors = Tensors::random(&spec, 1, 300, 3);
        tensors.q *= 40.0;
        let pattern = pattern::resolve(&spec, 300, 300).expect("a pattern");
        let oracle = Oracle::new(&pattern, &spec, &tensors);
        for isa in families() {
            for strategy in strategies(&spec, 300) {
                let compiled = compile(&spec, 300, &options(isa, Some(strategy)));
                oracle.check(&tensors.run(&compiled), &|| format!("{diffusion} {isa} {strategy}"));
            }
        }
    }
}

#[test]
fn grouped_heads_conform() {
    // Every query head reads its group's keys and values, and diffuses its own Z.
    for (heads, kv_heads) in [(4, 2), (6, 1), (3, 3)] {
        for diffusion in ["{hops: 1}", "{hops: 3, alpha: 0.1}", "{hops: 0}"] {
            let spec = spec_of(MIXED, 9, 7, diffusion);
            let spec = spec_with(&spec.print(), &[&format!("heads={heads}"), &format!("kv_heads={kv_heads}")]);
            let (tensors, oracle) = oracle(&spec, 2, 130, heads);
            assert_eq!(tensors.k.dim().1, kv_heads);
            for isa in families() {
                for strategy in strategies(&spec, 130) {
                    let compiled = compile(&spec, 130, &options(isa, Some(strategy)));
                    let what = || format!("{heads} heads, {kv_heads} for keys, {diffusion} {isa} {strategy}");
                    oracle.check(&tensors.run(&compiled), &what);
                }
            }
        }
    }
}

#[test]
fn every_batch_conforms() {
    for diffusion in ["{hops: 1}", "{hops: 2, alpha: 0.1}"] {
        let spec = spec_of(MIXED, 9, 7, diffusion);
        for isa in families() {
            for strategy in strategies(&spec, 130) {
                // One kernel serves every batch size, and keeps its scratch from call to call.
                let compiled = compile(&spec, 130, &options(isa, Some(strategy)));
                for batch in [3, 0, 1, 3] {
                    let (tensors, oracle) = oracle(&spec, batch, 130, batch as u64);
                    oracle.check(&tensors.run(&compiled), &|| format!("batch {batch} {diffusion} {isa} {strategy}"));
                }
            }
        }
    }
}

/// Rows of a tensor in which each is followed by numbers that belong to nobody.
fn with_gaps(tensor: &Array4<f32>) -> Array4<f32> {
    let (a, b, c, d) = tensor.dim();
    let mut wide = Array4::from_elem((a, b, c, d + 3), f32::NAN);
    wide.slice_mut(s![.., .., .., 1..d + 1]).assign(tensor);
    wide
}

#[test]
fn strides_make_no_difference() {
    let n = 130;
    for diffusion in ["{hops: 1}", "{hops: 2, alpha: 0.1}"] {
        let spec = spec_of(MIXED, 9, 7, diffusion);
        let (tensors, oracle) = oracle(&spec, 3, n, 5);
        let Tensors { q, k, v } = &tensors;
        // [length, heads, batch, width] in memory; rows with gaps; every second row of a longer tensor; a last
        // axis that is not contiguous, which is copied; rows from last to first.
        let order = |tensor: &Array4<f32>| tensor.view().permuted_axes([2, 1, 0, 3]).as_standard_layout().into_owned();
        let moved = [q, k, v].map(order);
        let moved = [&moved[0], &moved[1], &moved[2]].map(|tensor| tensor.view().permuted_axes([2, 1, 0, 3]));
        let gaps = [q, k, v].map(with_gaps);
        let gaps = [&gaps[0], &gaps[1], &gaps[2]].map(|tensor| tensor.slice(s![.., .., .., 1..tensor.dim().3 - 2]));
        let sparse = [q, k, v].map(|tensor| {
            let (a, b, c, d) = tensor.dim();
            let mut long = Array4::from_elem((a, b, 2 * c, d), f32::NAN);
            long.slice_mut(s![.., .., ..;2, ..]).assign(tensor);
            long
        });
        let sparse = [&sparse[0], &sparse[1], &sparse[2]].map(|tensor| tensor.slice(s![.., .., ..;2, ..]));
        let turned = [q, k, v].map(|tensor| tensor.t().as_standard_layout().into_owned());
        let turned = [&turned[0], &turned[1], &turned[2]].map(|tensor| tensor.t());
        let back = [q, k, v].map(|tensor| tensor.slice(s![.., .., ..;-1, ..]).as_standard_layout().into_owned());
        let back = [&back[0], &back[1], &back[2]].map(|tensor| tensor.slice(s![.., .., ..;-1, ..]));
        let ways: [(&str, [ArrayView4<'_, f32>; 3]); 5] =
            [("moved", moved), ("gaps", gaps), ("sparse", sparse), ("turned", turned), ("back", back)];
        for isa in families() {
            for strategy in strategies(&spec, n) {
                let compiled = compile(&spec, n, &options(isa, Some(strategy)));
                let plain = tensors.run(&compiled);
                oracle.check(&plain, &|| format!("{diffusion} {isa} {strategy}"));
                for (way, [q, k, v]) in &ways {
                    let found = compiled.kernel.forward(*q, *k, *v).expect("a result");
                    assert_eq!(found.out, plain.out, "{way} {diffusion} {isa} {strategy}");
                    assert_eq!(found.lse, plain.lse, "{way} {diffusion} {isa} {strategy}");
                }
                // And into an output with gaps, which stay as they are.
                let mut wide = Array4::from_elem((2, n, 3, 7 + 4), 0.5_f32);
                let mut lse = Array3::zeros((3, 2, n));
                {
                    let mut out = wide.view_mut().permuted_axes([2, 0, 1, 3]);
                    let mut out = out.slice_mut(s![.., .., .., 2..9]);
                    let done =
                        compiled.kernel.forward_into(q.view(), k.view(), v.view(), &mut out, Some(&mut lse.view_mut()));
                    done.expect("a result");
                    assert_eq!(out, plain.out, "{diffusion} {isa} {strategy}");
                }
                assert_eq!(lse, plain.lse);
                assert!(wide.slice(s![.., .., .., ..2]).iter().all(|&x| x == 0.5));
                assert!(wide.slice(s![.., .., .., 9..]).iter().all(|&x| x == 0.5));
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let spec = spec_of("causal", 4, 3, "{hops: 1}");
    let compiled = compile(&spec, 10, &options(Isa::Portable, Some(Strategy::FLASH)));
    let tensor = |heads, n, width| Array4::<f32>::zeros((1, heads, n, width));
    let run = |q: &Array4<f32>, k: &Array4<f32>, v: &Array4<f32>| {
        compiled.kernel.forward(q.view(), k.view(), v.view()).map(drop)
    };
    let (q, k, v) = (tensor(2, 10, 4), tensor(2, 10, 4), tensor(2, 10, 3));
    assert!(run(&q, &k, &v).is_ok());
    for (q, k, v) in [
        (&tensor(1, 10, 4), &k, &v),
        (&tensor(2, 9, 4), &k, &v),
        (&tensor(2, 10, 5), &k, &v),
        (&q, &tensor(2, 11, 4), &v),
        (&q, &tensor(2, 10, 3), &v),
        (&q, &k, &tensor(2, 10, 4)),
        (&q, &k, &tensor(2, 0, 3)),
        (&Array4::zeros((2, 2, 10, 4)), &k, &v),
    ] {
        assert!(matches!(run(q, k, v), Err(hopweave::Error::Shape { .. })));
    }
    let mut out = tensor(2, 10, 3);
    let mut small = Array3::zeros((1, 2, 9));
    let into =
        compiled.kernel.forward_into(q.view(), k.view(), v.view(), &mut out.view_mut(), Some(&mut small.view_mut()));
    assert!(matches!(into, Err(hopweave::Error::Shape { .. })));
    let mut turned = Array4::<f32>::zeros((3, 10, 2, 1));
    let into = compiled.kernel.forward_into(q.view(), k.view(), v.view(), &mut turned.view_mut().reversed_axes(), None);
    assert!(matches!(into, Err(hopweave::Error::Shape { .. })));
}

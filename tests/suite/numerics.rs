//! Extreme numbers, forward: every tile family and strategy against f64, within a bound computed from the data.

use crate::common::bound::Bound;
use crate::common::extremes::{KINDS, specs, tensors};
use crate::common::{Tensors, compile, families, options, spec_of, spec_with, strategies};
use half::{bf16, f16};
use hopweave::compiler::Options;
use hopweave::interpreter::{self, Output};
use hopweave::pattern::{self, Pattern};
use hopweave::spec::PatternSpec;
use ndarray::Array4;

const DIFFUSION: [&str; 2] = ["{hops: 1, alpha: 0}", "{hops: 4, alpha: 0.2}"];

fn oracle(pattern: &Pattern, spec: &PatternSpec, t: &Tensors) -> Output {
    let exact = interpreter::run(pattern, spec, t.q.view(), t.k.view(), t.v.view());
    let exact = exact.unwrap_or_else(|error| panic!("{error}"));
    assert!(exact.out.iter().chain(&exact.lse).all(|x| x.is_finite()), "nothing here is infinite");
    exact
}

#[test]
fn extreme_numbers_are_as_near_to_f64_as_f32_allows() {
    let n = 75;
    let mut kernels_seen = 0;
    for spec in specs(DIFFUSION) {
        let pattern = pattern::resolve(&spec, n, n).expect("a pattern");
        let kernels: Vec<_> = families()
            .into_iter()
            .flat_map(|isa| strategies(&spec, n).into_iter().map(move |strategy| (isa, strategy)))
            .map(|(isa, strategy)| (isa, strategy, compile(&spec, n, &options(isa, Some(strategy)))))
            .collect();
        kernels_seen += kernels.len();
        for kind in KINDS {
            let t = tensors(kind, &spec, n);
            let exact = oracle(&pattern, &spec, &t);
            let bound = Bound::new(&pattern, &spec, &t);
            for (isa, strategy, kernel) in &kernels {
                let found = t.run(kernel);
                bound.check((&found.out, &found.lse), &exact).unwrap_or_else(|wrong| {
                    panic!("{kind}, {isa} {strategy:?}\n{}\n{wrong}", spec.print());
                });
            }
        }
    }
    assert!(kernels_seen >= 20, "{kernels_seen}");
}

#[test]
fn sixteen_bit_extremes_are_as_near_as_their_format_allows() {
    fn check<T: hopweave::Element>(dtype: &str, choices: [f32; 6], unit: f64, least: f64, dots: Option<bool>) {
        let n = 75;
        for spec in specs(DIFFUSION) {
            let pattern = pattern::resolve(&spec, n, n).expect("a pattern");
            let mut numbers = crate::common::Numbers(3);
            let mut t = Tensors::random(&spec, 1, n, 1);
            for x in t.q.iter_mut().chain(&mut t.k).chain(&mut t.v) {
                *x = T::nearest(choices[(numbers.bits() % 6) as usize]).widen();
            }
            let exact = oracle(&pattern, &spec, &t);
            let bound = Bound::new(&pattern, &spec, &t).stored(&exact.out, unit, least);
            let spec = spec_with(&spec.print(), &[&format!("dtype={dtype}")]);
            let narrow = |x: &Array4<f32>| x.mapv(|x| T::nearest(x));
            let (q, k, v) = (narrow(&t.q), narrow(&t.k), narrow(&t.v));
            for isa in families() {
                for strategy in strategies(&spec, n) {
                    let options = Options { bf16_dots: dots, ..options(isa, Some(strategy)) };
                    let found = compile(&spec, n, &options).kernel.forward(q.view(), k.view(), v.view());
                    let found = found.unwrap_or_else(|error| panic!("{error}"));
                    let wide = found.out.mapv(|x| x.widen());
                    bound.check((&wide, &found.lse), &exact).unwrap_or_else(|wrong| {
                        panic!("{dtype}, {isa} {strategy:?}\n{}\n{wrong}", spec.print());
                    });
                }
            }
        }
    }
    // Largest number, smallest normal and smallest subnormal one.
    let f16s = [65504.0, -65504.0, 6.103_515_6e-5, 5.960_464_5e-8, -5.960_464_5e-8, 0.0];
    check::<f16>("f16", f16s, 2.0f64.powi(-11), 2.0f64.powi(-25), None);
    // A square of the first is 2^122: of its largest numbers no product of two is in range.
    let first = 2.0f32.powi(61);
    let bf16s = [first, -first, f32::MIN_POSITIVE, 9.183_55e-41, -9.183_55e-41, -0.0];
    check::<bf16>("bf16", bf16s, 2.0f64.powi(-8), 1e-40, Some(false));
}

#[test]
fn lengths_that_are_cut_and_rows_without_keys_keep_their_extremes() {
    for (pattern, n) in [("{where: \"q % 7 == 3 and k % 2 == 0\"}", 70), ("causal", 700)] {
        let spec = spec_of(pattern, 8, 4, DIFFUSION[0]);
        let resolved = pattern::resolve(&spec, n, n).expect("a pattern");
        for kind in ["scores of 1e4", "equal scores of 1e30", "equal scores of -1e30", "rows from 1e-30 to 1e15"] {
            let t = tensors(kind, &spec, n);
            let exact = interpreter::run(&resolved, &spec, t.q.view(), t.k.view(), t.v.view()).expect("an output");
            let bound = Bound::new(&resolved, &spec, &t);
            for isa in families() {
                let found = t.run(&compile(&spec, n, &options(isa, None)));
                bound.check((&found.out, &found.lse), &exact).unwrap_or_else(|wrong| {
                    panic!("{kind}, {isa} {pattern}\n{wrong}");
                });
            }
        }
    }
}

/// The bound itself: tight where f32 is, and every wrong result passes it.
#[test]
fn wrong_results_are_out_of_bounds() {
    let n = 75;
    for spec in specs(DIFFUSION) {
        let pattern = pattern::resolve(&spec, n, n).expect("a pattern");
        for kind in KINDS {
            let t = tensors(kind, &spec, n);
            let exact = oracle(&pattern, &spec, &t);
            let bound = Bound::new(&pattern, &spec, &t);
            let (out, lse) = (exact.out.mapv(|x| x as f32), exact.lse.mapv(|x| x as f32));
            let what = format!("{kind} {}", spec.print());
            bound.check((&out, &lse), &exact).unwrap_or_else(|wrong| panic!("{what}\n{wrong}"));
            if kind == "ordinary" {
                let loose = bound.out.iter().fold(0.0, |most: f64, &x| most.max(x));
                assert!(loose < 2e-4, "{loose}: {what}");
            }
            let refuse = |change: &dyn Fn(f32) -> f32, of_lse: bool| {
                let (mut out, mut lse) = (out.clone(), lse.clone());
                let place = if of_lse { &mut lse[[0, 1, 40]] } else { &mut out[[0, 1, 40, 0]] };
                *place = change(*place);
                assert!(bound.check((&out, &lse), &exact).is_err(), "{what}");
            };
            for of_lse in [false, true] {
                refuse(&|_| f32::NAN, of_lse);
                refuse(&|_| f32::INFINITY, of_lse);
            }
            // Weights that sum to something else, and a sum that lacks the scores' scale.
            if kind != "negative zeros" && kind != "extremes of f16" {
                refuse(&|x| x * 1.001 + f32::from_bits(3000), false);
            }
            refuse(&|x| 1.01 * x + 0.1, true);
        }
    }
}

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array4, s};

use super::*;
use crate::error::Span;
use crate::pattern::{Cover, HopPatterns, Leaf, Tree};
use crate::spec::{Align, Data, Node, Source, Value};

mod hops;

/// A leaf given by its predicate.
#[derive(Debug, Clone, Copy)]
struct Points(fn(usize, usize) -> bool);

impl Leaf for Points {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        (self.0)(q as usize, k)
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        Cover::default()
    }

    fn print(&self) -> String {
        "points".into()
    }
}

fn pattern(n: usize, allows: fn(usize, usize) -> bool) -> Pattern {
    let (tree, hops) = (Tree::Leaf(Arc::new(Points(allows))), HopPatterns::default());
    Pattern { q_len: n, kv_len: n, heads: 1, align: Align::End, tree, hops }
}

fn spec(width: usize, initial: f64, hops: &[(f64, f64)]) -> PatternSpec {
    let at = Span::default();
    PatternSpec {
        name: "test".into(),
        description: None,
        heads: 1,
        kv_heads: 1,
        head_dim: width,
        value_dim: width,
        align: Align::End,
        inputs: Vec::new(),
        mods: Vec::new(),
        dtype: crate::spec::Dtype::F32,
        pattern: Node::Leaf { name: "full".into(), at, args: Value { at, data: Data::Null } },
        scale: 1.0,
        diffusion: Factors {
            initial,
            hops: hops.iter().map(|&(step, restart)| HopFactors { step, restart }).collect(),
        }
        .into(),
        hop_patterns: Vec::new(),
        diffusion_at: Span::default(),
        source: Arc::new(Source::new("", "<text>")),
    }
}

fn tensor(n: usize, width: usize, value: impl Fn(usize, usize) -> f32) -> Array4<f32> {
    Array4::from_shape_fn((1, 1, n, width), |(_, _, i, x)| value(i, x))
}

/// Irregular numbers in −1..1.
fn wave(i: usize, x: usize) -> f32 {
    ((i * 31 + x * 17 + 3) as f32 * 0.7).sin()
}

#[test]
fn six_tokens_by_hand() {
    // Window of radius 1 over six tokens, width 1. q = 1 and k = ln of the weights 1 2 1 3 1 2, so A's rows are
    // those weights, normalised over the window: row 0 is (1, 2)/3, row 1 (1, 2, 1)/4, row 2 (2, 1, 3)/6,
    // row 3 (1, 3, 1)/5, row 4 (3, 1, 2)/6, row 5 (1, 2)/3. V = 6 0 12 0 6 30.
    let pattern = pattern(6, |q, k| q.abs_diff(k) <= 1);
    let q = tensor(6, 1, |_, _| 1.0);
    let k = tensor(6, 1, |i, _| [1.0_f32, 2.0, 1.0, 3.0, 1.0, 2.0][i].ln());
    let v = tensor(6, 1, |i, _| [6.0, 0.0, 12.0, 0.0, 6.0, 30.0][i]);
    // A V: 6/3, (6 + 12)/4, 12/6, (12 + 6)/5, (6 + 60)/6, (6 + 60)/3.
    let one = run(&pattern, &spec(1, 1.0, &[(1.0, 0.0)]), q.view(), k.view(), v.view()).unwrap();
    close(&one, &[2.0, 4.5, 2.0, 3.6, 11.0, 22.0]);
    let sums = [3.0_f64, 4.0, 6.0, 5.0, 6.0, 3.0];
    for (lse, sum) in one.lse.iter().zip(sums) {
        assert!((lse - sum.ln()).abs() < 1e-6, "{lse} against ln {sum}");
    }
    // Two hops at alpha 0.5: Z_1 = 0.5 A V + 0.5 V = 4 2.25 7 1.8 8.5 26, and Z_2 = 0.5 A Z_1 + 0.5 V with
    // A Z_1 = (4 + 4.5)/3, (4 + 4.5 + 7)/4, (4.5 + 7 + 5.4)/6, (7 + 5.4 + 8.5)/5, (5.4 + 8.5 + 52)/6,
    // (8.5 + 52)/3.
    let two = run(&pattern, &spec(1, 1.0, &[(0.5, 0.5); 2]), q.view(), k.view(), v.view()).unwrap();
    let expected = [8.5 / 6.0 + 3.0, 15.5 / 8.0, 16.9 / 12.0 + 6.0, 20.9 / 10.0, 65.9 / 12.0 + 3.0, 60.5 / 6.0 + 15.0];
    close(&two, &expected);
}

fn close(output: &Output, expected: &[f64]) {
    for (i, (found, want)) in output.out.iter().zip(expected).enumerate() {
        assert!((found - want).abs() < 1e-5, "value {i}: {found} against {want}");
    }
}

#[test]
fn full_is_dense_softmax() {
    let (n, width) = (9, 3);
    let q = tensor(n, width, wave);
    let k = tensor(n, width, |i, x| wave(x, i));
    let v = tensor(n, width, |i, x| wave(i + 5, x));
    let mut spec = spec(width, 1.0, &[(1.0, 0.0)]);
    spec.scale = 0.75;
    let found = run(&pattern(n, |_, _| true), &spec, q.view(), k.view(), v.view()).unwrap();
    for i in 0..n {
        let weights: Vec<f64> = (0..n)
            .map(|j| (0..width).map(|x| f64::from(q[[0, 0, i, x]]) * f64::from(k[[0, 0, j, x]])).sum::<f64>())
            .map(|score| (0.75 * score).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        assert!((found.lse[[0, 0, i]] - sum.ln()).abs() < 1e-12);
        for x in 0..width {
            let want: f64 = (0..n).map(|j| weights[j] / sum * f64::from(v[[0, 0, j, x]])).sum();
            assert!((found.out[[0, 0, i, x]] - want).abs() < 1e-12);
        }
    }
}

#[test]
fn constant_values_stay_constant() {
    let (n, width) = (20, 4);
    let (q, k) = (tensor(n, width, wave), tensor(n, width, |i, x| wave(x, i)));
    let v = tensor(n, width, |_, _| 3.5);
    let found =
        run(&pattern(n, |q, k| k <= q), &spec(width, 1.0, &[(0.9, 0.1); 5]), q.view(), k.view(), v.view()).unwrap();
    assert!(found.out.iter().all(|x| (x - 3.5).abs() < 1e-9));
}

#[test]
fn alpha_one_returns_the_values() {
    let (n, width) = (7, 2);
    // NaN in every score: a step of 0 must leave the term out, not multiply it.
    let q = tensor(n, width, |_, _| f32::NAN);
    let (k, v) = (tensor(n, width, wave), tensor(n, width, wave));
    let found = run(&pattern(n, |_, _| true), &spec(width, 1.0, &[(0.0, 1.0)]), q.view(), k.view(), v.view()).unwrap();
    assert!(found.out.iter().zip(&v).all(|(&a, &b)| a == f64::from(b)));
}

#[test]
fn empty_rows_are_zero_and_nan_keeps_to_its_edges() {
    let (n, width) = (6, 2);
    // Query 2 sees nothing, query 4 sees key 5, the others themselves.
    let pattern = pattern(n, |q, k| q != 2 && (k == q || (q == 4 && k == 5)));
    let (q, k) = (tensor(n, width, wave), tensor(n, width, wave));
    let v = tensor(n, width, |i, x| if i == 5 { f32::NAN } else { wave(i, x) });
    let found = run(&pattern, &spec(width, 1.0, &[(1.0, 0.0)]), q.view(), k.view(), v.view()).unwrap();
    assert_eq!(found.lse[[0, 0, 2]], f64::NEG_INFINITY);
    assert!(found.out.slice(s![0, 0, 2, ..]).iter().all(|&x| x == 0.0));
    for i in 0..n {
        let nan = found.out.slice(s![0, 0, i, ..]).iter().all(|x| x.is_nan());
        assert_eq!(nan, i >= 4, "row {i}");
    }
    // A restart of 0 does not read V, and no hop with a zero row is touched by the NaN of others.
    let hops = run(&pattern, &spec(width, 1.0, &[(1.0, 0.0); 3]), q.view(), k.view(), v.view()).unwrap();
    assert!(hops.out.slice(s![0, 0, 2, ..]).iter().all(|&x| x == 0.0));
}

#[test]
fn sampled_rows_equal_the_whole() {
    let (n, width) = (40, 3);
    let pattern = pattern(n, |q, k| q.abs_diff(k) <= 2 && k != 7);
    let (q, k) = (tensor(n, width, wave), tensor(n, width, |i, x| wave(x, i)));
    let v = tensor(n, width, |i, x| wave(i + 3, x));
    for hops in [&[][..], &[(1.0, 0.0)], &[(0.9, 0.1); 4], &[(0.9, 0.1), (0.0, 1.0), (0.7, 0.3)]] {
        let spec = spec(width, 0.5, hops);
        let whole = run(&pattern, &spec, q.view(), k.view(), v.view()).unwrap();
        let queries = [0, 39, 7, 20, 100];
        let sample = run_rows(
            &pattern,
            &spec,
            q.view(),
            k.view(),
            v.view(),
            &Inputs::none(),
            &[(0, 0), (0, 1)],
            &queries,
            1 << 30,
        )
        .unwrap();
        assert_eq!(sample.rows.len(), 4);
        for row in &sample.rows {
            assert_eq!(row.lse, whole.lse[[0, 0, row.query]]);
            for (x, &value) in row.out.iter().enumerate() {
                assert_eq!(value, whole.out[[0, 0, row.query, x]]);
            }
        }
    }
}

#[test]
fn a_sample_stops_at_its_budget() {
    let (n, width) = (100, 2);
    let pattern = pattern(n, |q, k| q.abs_diff(k) <= 2);
    let x = tensor(n, width, wave);
    let spec = spec(width, 1.0, &[(0.9, 0.1); 2]);
    // One row reaches 5 others over two hops: 5 to 6 rows of 100 points each.
    let sample =
        run_rows(&pattern, &spec, x.view(), x.view(), x.view(), &Inputs::none(), &[(0, 0)], &[50, 10, 90], 12_000)
            .unwrap();
    assert_eq!(sample.rows.len(), 1);
    assert_eq!(sample.rows[0].query, 50);
    assert_eq!(sample.left_out, 2);
}

#[test]
fn shapes_are_checked() {
    let pattern = pattern(4, |_, _| true);
    let (x, short) = (tensor(4, 2, wave), tensor(3, 2, wave));
    let error = run(&pattern, &spec(2, 1.0, &[(1.0, 0.0)]), x.view(), short.view(), x.view()).unwrap_err();
    assert_eq!(error.to_string(), "k: expected shape [1, 1, 4, 2] (batch, heads, length, width), found [1, 1, 3, 2]");
}

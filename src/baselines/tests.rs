use std::ops::Range;
use std::sync::Arc;

use ndarray::Array4;

use super::*;
use crate::error::Span;
use crate::interpreter;
use crate::pattern::{Cover, KeySet, Leaf, Tree};
use crate::spec::{Align, Data, Diffusion, HopFactors, Node, Source, Value};

/// A window that leaves query 5 out, twice as wide in head 1, and key 9 for everyone.
#[derive(Debug)]
struct Uneven;

impl Leaf for Uneven {
    fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        q != 5 && ((q as usize).abs_diff(k) <= 3 * (head + 1) || k == 9)
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        Cover { some: KeySet::everything(), all: KeySet::empty() }
    }

    fn depends_on_head(&self) -> bool {
        true
    }

    fn print(&self) -> String {
        "uneven".into()
    }
}

fn problem(n: usize, d: usize, dv: usize, hops: &[(f64, f64)]) -> (Pattern, PatternSpec) {
    let at = Span::default();
    let spec = PatternSpec {
        name: "test".into(),
        description: None,
        heads: 2,
        kv_heads: 2,
        head_dim: d,
        value_dim: dv,
        align: Align::End,
        inputs: Vec::new(),
        mods: Vec::new(),
        dtype: crate::spec::Dtype::F32,
        pattern: Node::Leaf { name: "full".into(), at, args: Value { at, data: Data::Null } },
        scale: 0.7,
        diffusion: Diffusion {
            initial: 1.0,
            hops: hops.iter().map(|&(step, restart)| HopFactors { step, restart }).collect(),
            store: crate::spec::Dtype::F32,
        },
        diffusion_at: Span::default(),
        source: Arc::new(Source::new("", "<text>")),
    };
    (Pattern { q_len: n, kv_len: n, heads: 2, align: Align::End, tree: Tree::Leaf(Arc::new(Uneven)) }, spec)
}

fn wave(seed: usize, shape: (usize, usize, usize, usize)) -> Array4<f32> {
    Array4::from_shape_fn(shape, |(b, h, i, x)| ((seed + b * 7 + h * 13 + i * 31 + x * 17) as f32 * 0.7).sin())
}

#[test]
fn baselines_agree_with_the_interpreter() {
    for (n, d, dv) in [(1, 1, 1), (70, 64, 64), (131, 20, 81), (300, 16, 130)] {
        for hops in [&[(1.0, 0.0)][..], &[(0.9, 0.1); 5], &[]] {
            let (pattern, spec) = problem(n, d, dv, hops);
            let (q, k, v) = (wave(1, (2, 2, n, d)), wave(2, (2, 2, n, d)), wave(3, (2, 2, n, dv)));
            let oracle = interpreter::run(&pattern, &spec, q.view(), k.view(), v.view()).unwrap();
            let nnz = (0..2).map(|head| count(&pattern, head)).sum();
            let problem = Problem { pattern: &pattern, spec: &spec, batch: 2, nnz, threads: 2 };
            for baseline in BASELINES {
                let out = baseline.prepare(&problem, u64::MAX).unwrap().run(q.view(), k.view(), v.view()).unwrap();
                for (found, want) in out.iter().zip(&oracle.out) {
                    let error = (f64::from(*found) - want).abs();
                    assert!(error < 1e-5, "{} at {n} {d} {dv} {hops:?}: {error}", baseline.name);
                }
            }
        }
    }
}

/// Counts edges by asking for every point.
fn count(pattern: &Pattern, head: usize) -> u64 {
    (0..pattern.q_len).map(|q| (0..pattern.kv_len).filter(|&k| pattern.allows(head, q, k)).count() as u64).sum()
}

#[test]
fn too_much_memory_is_refused_before_it_is_taken() {
    let (mut pattern, spec) = problem(8, 4, 4, &[(1.0, 0.0)]);
    pattern.q_len = 10_000_000;
    pattern.kv_len = 10_000_000;
    let problem = Problem { pattern: &pattern, spec: &spec, batch: 1, nnz: 1 << 50, threads: 2 };
    for baseline in BASELINES {
        let Err(error) = baseline.prepare(&problem, 1 << 30) else { panic!("{} was not refused", baseline.name) };
        assert!(error.to_string().starts_with(&format!("baseline {} needs ", baseline.name)), "{error}");
    }
}

#[test]
fn unknown_baselines_are_refused_by_name() {
    let error = Baseline::find("torch").unwrap_err().to_string();
    assert_eq!(error, "unsupported: baseline `torch`; known are dense, unfused and none");
}

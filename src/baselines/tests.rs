use std::ops::Range;
use std::sync::Arc;

use ndarray::Array4;

use super::*;
use crate::error::Span;
use crate::interpreter;
use crate::pattern::{Cover, HopPatterns, KeySet, Leaf, Tree};
use crate::spec::{Align, Data, Diffusion, Factors, HopFactors, Node, Source, Value};

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
        diffusion: diffusion(1.0, hops),
        hop_patterns: Vec::new(),
        diffusion_at: Span::default(),
        source: Arc::new(Source::new("", "<text>")),
    };
    let (tree, hops) = (Tree::Leaf(Arc::new(Uneven)), HopPatterns::default());
    (Pattern { q_len: n, kv_len: n, heads: 2, align: Align::End, tree, hops }, spec)
}

fn diffusion(initial: f64, hops: &[(f64, f64)]) -> Diffusion {
    let hops = hops.iter().map(|&(step, restart)| HopFactors { step, restart }).collect();
    Factors { initial, hops }.into()
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

#[test]
fn gradients_agree_with_the_interpreter() {
    let forms: [&[(f64, f64)]; 5] =
        [&[(1.0, 0.0)], &[(0.9, 0.1); 5], &[], &[(0.7, -0.2), (0.0, 0.3), (1.0, 0.0)], &[(0.4, 0.0), (0.0, 1.0)]];
    for (n, d, dv) in [(1, 1, 1), (70, 64, 64), (131, 20, 81), (300, 16, 130)] {
        for hops in forms {
            for (kv_heads, initial) in [(2, 1.0), (1, 0.6)] {
                let (pattern, mut spec) = problem(n, d, dv, hops);
                spec.kv_heads = kv_heads;
                spec.diffusion = diffusion(initial, hops);
                training_agrees(&pattern, &spec);
            }
        }
    }
    // Another number of queries than keys.
    for (q_len, kv_len) in [(300, 11), (13, 290)] {
        let (mut pattern, mut spec) = problem(q_len, 24, 40, &[(0.8, 0.0)]);
        (pattern.kv_len, spec.kv_heads) = (kv_len, 1);
        training_agrees(&pattern, &spec);
    }
}

fn training_agrees(pattern: &Pattern, spec: &PatternSpec) {
    let (q_len, kv_len, kv_heads) = (pattern.q_len, pattern.kv_len, spec.kv_heads);
    let tensors = [
        wave(1, (2, 2, q_len, spec.head_dim)),
        wave(2, (2, kv_heads, kv_len, spec.head_dim)),
        wave(3, (2, kv_heads, kv_len, spec.value_dim)),
        wave(4, (2, 2, q_len, spec.value_dim)),
    ];
    let [q, k, v, grad_out] = &tensors;
    let inputs = crate::spec::Inputs::none();
    let oracle = interpreter::run(pattern, spec, q.view(), k.view(), v.view()).unwrap();
    let [q, k, v, grad_out] = [q.view(), k.view(), v.view(), grad_out.view()];
    let wanted = interpreter::gradients(pattern, spec, [q, k, v, grad_out], &inputs, None).unwrap();
    let nnz = (0..2).map(|head| count(pattern, head)).sum();
    let problem = Problem { pattern, spec, batch: 2, nnz, threads: 2 };
    let training = Training::prepare(&problem, u64::MAX).unwrap();
    let kept = training.forward(q, k, v).unwrap();
    let found = training.backward(&kept, [q, k, v, grad_out]).unwrap();
    let pairs = [
        ("out", &kept.out, &oracle.out),
        ("dq", &found.q, &wanted.q),
        ("dk", &found.k, &wanted.k),
        ("dv", &found.v, &wanted.v),
    ];
    for (name, found, wanted) in pairs {
        assert_eq!(found.shape(), wanted.shape(), "{name}");
        let size = wanted.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
        for (found, wanted) in found.iter().zip(wanted) {
            let error = (f64::from(*found) - wanted).abs();
            assert!(error < 1e-5 * size, "{name} of {q_len} × {kv_len}, {:?}: {error} of {size}", spec.diffusion);
        }
    }
}

#[test]
fn training_refuses_what_it_cannot_serve() {
    let (pattern, spec) = problem(8, 4, 4, &[(1.0, 0.0)]);
    let problem = Problem { pattern: &pattern, spec: &spec, batch: 1, nnz: 64, threads: 2 };
    assert!(Training::bytes(&problem) > problem_bytes(&problem));
    let error = Training::prepare(&problem, 100).err().unwrap().to_string();
    assert!(error.starts_with("baseline unfused, training, needs "), "{error}");
    let text = "name: x\nhead_dim: 4\nheads: 2\npattern: full\nscore: {mods: [alibi]}\n";
    let spec = crate::spec::parse(text, "<test>").unwrap();
    let error = Training::prepare(&Problem { spec: &spec, ..problem }, u64::MAX).err().unwrap().to_string();
    assert!(error.starts_with("unsupported: score mods in the baseline unfused"), "{error}");
}

fn problem_bytes(problem: &Problem<'_>) -> u64 {
    Baseline::find("unfused").unwrap().bytes(problem)
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

//! Inputs whose scores, or elements, are as large or as small as numbers get.

use hopweave::spec::PatternSpec;

use super::{Tensors, spec_of};

/// Patterns of every shape that a mask can have: masked and full runs, scattered edges, gathered rows, parts.
const PATTERNS: [&str; 5] = [
    "{window: {radius: 9}}",
    "{random: {keys_per_query: 13, seed: 1}}",
    "{any: [{window: {radius: 5}}, {global: {tokens: {first: 2}}}, {random: {keys_per_query: 2, seed: 3}}]}",
    "{any: [{window: {left: 7, right: 0}}, {strided: {step: 7, mode: diagonal}}]}",
    "full",
];

/// Every pattern with every form of diffusion, at a width that tiles and edges have code of its own for, or at one that they
/// have not.
pub fn specs(diffusion: [&str; 2]) -> Vec<PatternSpec> {
    let all = PATTERNS.iter().flat_map(|pattern| diffusion.map(|diffusion| (pattern, diffusion)));
    all.map(|(pattern, diffusion)| {
        let width = if pattern.contains("random") { 64 } else { 20 };
        spec_of(pattern, width, 9, diffusion)
    })
    .collect()
}

/// Inputs by name.
pub const KINDS: [&str; 14] = [
    "ordinary",
    "scores of 1e4",
    "scores of 1e30",
    "products beyond f32, scores within",
    "subnormal scores",
    "subnormal inputs",
    "subnormal queries, large keys",
    "negative zeros",
    "equal scores of 1e30",
    "equal scores of -1e30",
    "one-hot weights",
    "extremes of f16",
    "rows from 1e-30 to 1e15",
    "large values",
];

/// Inputs of a kind. The first column of V is 1, so that weights which do not sum to 1 show; but for kinds of V.
pub fn tensors(kind: &str, spec: &PatternSpec, n: usize) -> Tensors {
    let mut t = Tensors::random(spec, 1, n, 11);
    let scale = |t: &mut Tensors, q: f32, k: f32| {
        t.q.mapv_inplace(|x| x * q);
        t.k.mapv_inplace(|x| x * k);
    };
    t.v.slice_mut(ndarray::s![.., .., .., 0]).fill(1.0);
    match kind {
        "ordinary" => {}
        "scores of 1e4" => scale(&mut t, 100.0, 100.0),
        "scores of 1e30" => scale(&mut t, 1e15, 1e15),
        // q · k has a deviation of 4e38, and the score of 5e37, at either width.
        "products beyond f32, scores within" => scale(&mut t, 7e18, 7e18),
        "subnormal scores" => scale(&mut t, 1e-20, 1e-20),
        "subnormal inputs" => {
            scale(&mut t, 1e-40, 1e-40);
            t.v.mapv_inplace(|x| x * 1e-41);
        }
        "subnormal queries, large keys" => scale(&mut t, 1e-40, 1e37),
        "negative zeros" => {
            scale(&mut t, -0.0, 1.0);
            t.v.mapv_inplace(|_| -0.0);
        }
        "equal scores of 1e30" | "equal scores of -1e30" => {
            let sign = if kind.contains('-') { -1.0 } else { 1.0 };
            t.q.fill(sign * 1e15);
            t.k.fill(1e15);
        }
        "one-hot weights" => {
            // Points on a circle: a query's own key is nearest.
            let at = |i: usize, x: usize| {
                let angle = i as f32 * std::f32::consts::TAU / n as f32;
                [angle.cos() * 1e4, angle.sin() * 1e4].get(x).copied().unwrap_or(0.0)
            };
            for x in [&mut t.q, &mut t.k] {
                x.indexed_iter_mut().for_each(|((_, _, i, column), x)| *x = at(i, column));
            }
        }
        "extremes of f16" => {
            let choices = [65504.0, -65504.0, 5.960_464_5e-8, -5.960_464_5e-8, 0.0, 6.103_515_6e-5];
            let mut numbers = super::Numbers(5);
            for x in t.q.iter_mut().chain(&mut t.k).chain(&mut t.v) {
                *x = choices[(numbers.bits() % 6) as usize];
            }
        }
        "rows from 1e-30 to 1e15" => {
            let by = |i: usize| 10.0f32.powi(i as i32 % 46 - 30);
            t.q.indexed_iter_mut().for_each(|((_, _, i, _), x)| *x *= by(i));
            t.k.indexed_iter_mut().for_each(|((_, _, i, _), x)| *x *= by(i * 7));
        }
        "large values" => t.v.mapv_inplace(|x| x * 1e34),
        _ => panic!("{kind}"),
    }
    t
}

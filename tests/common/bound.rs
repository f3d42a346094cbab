//! How far f32 kernels may be from the definition, computed from the data before anything is run.
//!
//! A score is a sum of `d` products: in f32 it errs by at most (d + 6) 2^-24 Σ|q·k| (Higham, Accuracy and Stability of
//! Numerical Algorithms, section 3.1), and a little where numbers are subnormal. So every score lies in an interval, every
//! weight of the softmax does, and from there on sums of products are followed through hops and through the chain rule.
//! Where scores are so large that their rounding exceeds everything, intervals of weights are [0, 1]: then outputs are held
//! to what is true of any weights that sum to 1.

use hopweave::pattern::Pattern;
use hopweave::spec::PatternSpec;
use ndarray::{Array3, Array4, ArrayView2, s};

use super::Tensors;

/// Unit roundoff of f32.
pub const EPS: f64 = 1.0 / (1u64 << 24) as f64;
/// Smallest positive f32, 2^-149.
const TINY: f64 = 1.401_298_464_324_817e-45;
/// What the exponential and its argument err by, relative.
const EXP: f64 = 1e-6;
/// 2^-100: weights below, relative to the largest, are 0.
const LEAST: f64 = 7.888_609_052_210_118e-31;

type Matrix = Vec<Vec<f64>>;

/// A matrix and how far one in f32 may be from it.
#[derive(Debug, Clone)]
struct Near {
    exact: Matrix,
    error: Matrix,
}

impl Near {
    fn zeros(rows: usize, width: usize) -> Self {
        Self { exact: vec![vec![0.0; width]; rows], error: vec![vec![0.0; width]; rows] }
    }

    fn given(rows: ArrayView2<'_, f32>) -> Self {
        let exact: Matrix = rows.rows().into_iter().map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
        let error = exact.iter().map(|row| vec![0.0; row.len()]).collect();
        Self { exact, error }
    }
}

/// One allowed pair.
#[derive(Debug, Clone, Copy)]
struct Edge {
    key: usize,
    p: f64,
    /// |p in f32 − p| and p in f32 are at most these.
    error: f64,
    top: f64,
}

/// One head, forward.
struct Head {
    rows: Vec<Vec<Edge>>,
    /// Z behind every hop, V first.
    z: Vec<Near>,
    lse_error: Vec<f64>,
}

/// Σ_x |a_x b_x|.
fn size(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x * y).abs()).sum()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The weights of scores that may each be off by `e`, and by how much log-sum-exp may be.
fn weights(keys: &[usize], scores: &[f64], e: &[f64]) -> (Vec<Edge>, f64) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = |sign: f64| {
        let at = |j: usize| scores[j] + sign * e[j];
        let top = (0..keys.len()).map(at).fold(f64::NEG_INFINITY, f64::max);
        top + (0..keys.len()).map(|j| (at(j) - top).exp()).sum::<f64>().ln()
    };
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let lse = max + sum.ln();
    let lse_error = (log_sum(1.0) - lse).max(lse - log_sum(-1.0));
    // p where key j is off by `sign` of its most, and all others to the other side. Sums over the keys before it and behind
    // it are kept as (largest, sum relative to that), since far more than the range of f64 may lie between them.
    let extremes = |sign: f64| -> Vec<f64> {
        let others: Vec<f64> = scores.iter().zip(e).map(|(score, e)| score - sign * e).collect();
        let add = |(top, sum): (f64, f64), x: f64| match x > top {
            true => (x, sum * (top - x).exp() + 1.0),
            false => (top, sum + (x - top).exp()),
        };
        let mut weights = vec![0.0; keys.len()];
        let mut sum_up = |order: &mut dyn Iterator<Item = usize>| {
            order.fold((f64::NEG_INFINITY, 0.0), |(top, sum), j| {
                weights[j] += if sum == 0.0 { 0.0 } else { sum * (top - scores[j] - sign * e[j]).exp() };
                add((top, sum), others[j])
            });
        };
        sum_up(&mut (0..keys.len()));
        sum_up(&mut (0..keys.len()).rev());
        weights.into_iter().map(|weight| 1.0 / (1.0 + weight)).collect()
    };
    let (lows, highs) = (extremes(-1.0), extremes(1.0));
    let edge = |j: usize| {
        let p = (scores[j] - max).exp() / sum;
        let (low, high) = (lows[j], highs[j]);
        Edge { key: keys[j], p, error: (high - p).max(p - low) + LEAST, top: high + LEAST }
    };
    ((0..keys.len()).map(edge).collect(), lse_error)
}

fn head(pattern: &Pattern, spec: &PatternSpec, t: &Tensors, b: usize, h: usize) -> Head {
    let [q, k, v] = [&t.q, &t.k, &t.v].map(|x| Near::given(x.slice(s![b, h, .., ..])));
    let d = spec.head_dim as f64;
    let mut rows = Vec::new();
    let mut lse_error = Vec::new();
    for i in 0..pattern.q_len {
        let keys: Vec<usize> = (0..pattern.kv_len).filter(|&j| pattern.allows(h, i, j)).collect();
        let scores: Vec<f64> = keys.iter().map(|&j| spec.scale * dot(&q.exact[i], &k.exact[j])).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let errors: Vec<f64> = keys
            .iter()
            .zip(&scores)
            .map(|(&j, score)| {
                let size = spec.scale.abs() * size(&q.exact[i], &k.exact[j]);
                let subnormal = TINY * k.exact[j].iter().map(|x| 1.0 + x.abs()).sum::<f64>();
                (d + 6.0) * EPS * size + subnormal + 3.0 * EPS * (score - max).abs() + EXP
            })
            .collect();
        let (row, error) = weights(&keys, &scores, &errors);
        // A sum of as many terms as keys, in base 2 and back.
        let roundings = (keys.len() as f64 + 40.0) * EPS + 4.0 * EPS * (max.abs() + error);
        lse_error.push(if keys.is_empty() { 0.0 } else { error + roundings });
        rows.push(row);
    }
    let factors = spec.diffusion.typical();
    let initial = factors.initial;
    let mut first = v.clone();
    first.exact.iter_mut().flatten().for_each(|x| *x *= initial);
    let mut z = vec![first];
    for hop in &factors.hops {
        let before = &z[z.len() - 1];
        let mut next = Near::zeros(rows.len(), spec.value_dim);
        for (i, row) in rows.iter().enumerate() {
            let terms = row.len() as f64 + 10.0;
            for x in 0..spec.value_dim {
                let mean: f64 = row.iter().map(|edge| edge.p * before.exact[edge.key][x]).sum();
                let mut error = terms * TINY;
                for edge in row {
                    let (z, of_z) = (before.exact[edge.key][x], before.error[edge.key][x]);
                    // What all weights have in common cancels, since they sum to 1.
                    error += edge.error * (z - mean).abs() + edge.top * (of_z + terms * EPS * (z.abs() + of_z));
                }
                let kept = if hop.restart == 0.0 { 0.0 } else { hop.restart * v.exact[i][x] };
                next.exact[i][x] = hop.step * mean + kept;
                next.error[i][x] = hop.step.abs() * error + 4.0 * EPS * (kept.abs() + (hop.step * mean).abs()) + TINY;
            }
        }
        z.push(next);
    }
    Head { rows, z, lse_error }
}

/// How far a kernel's result may be from the interpreter's, and within what it must be whatever the weights.
#[derive(Debug)]
pub struct Bound {
    pub out: Array4<f64>,
    pub lse: Array3<f64>,
    /// Smallest and largest value that a mean of the values that are reached may have.
    hull: [Array4<f64>; 2],
}

impl Bound {
    /// For inputs of a spec without score mods and with a head of keys for each of queries. Convex combinations of values
    /// stay within their hull: asked of diffusion whose factors sum to 1.
    pub fn new(pattern: &Pattern, spec: &PatternSpec, tensors: &Tensors) -> Self {
        assert!(spec.mods.is_empty() && spec.heads == spec.kv_heads);
        let shape = (tensors.q.dim().0, spec.heads, pattern.q_len, spec.value_dim);
        let mut this = Self {
            out: Array4::zeros(shape),
            lse: Array3::zeros((shape.0, shape.1, shape.2)),
            hull: [Array4::zeros(shape), Array4::zeros(shape)],
        };
        for b in 0..shape.0 {
            for h in 0..spec.heads {
                let head = head(pattern, spec, tensors, b, h);
                let errors = &head.z[head.z.len() - 1].error;
                for (i, errors) in errors.iter().enumerate() {
                    this.lse[[b, h, i]] = head.lse_error[i];
                    let one_hop = spec.diffusion.is_plain();
                    for (x, &error) in errors.iter().enumerate() {
                        this.out[[b, h, i, x]] = error;
                        let of = |j: usize| f64::from(tensors.v[[b, h, j, x]]);
                        let keys: Vec<usize> = if one_hop {
                            head.rows[i].iter().map(|edge| edge.key).collect()
                        } else {
                            (0..pattern.kv_len).collect()
                        };
                        if keys.is_empty() {
                            continue;
                        }
                        let low = keys.iter().map(|&j| of(j)).fold(f64::INFINITY, f64::min);
                        let high = keys.iter().map(|&j| of(j)).fold(f64::NEG_INFINITY, f64::max);
                        let terms = (keys.len() + 10) as f64 * spec.diffusion.hops() as f64;
                        let slack = terms * (EPS * low.abs().max(high.abs()) + TINY);
                        this.hull[0][[b, h, i, x]] = low - slack;
                        this.hull[1][[b, h, i, x]] = high + slack;
                    }
                }
            }
        }
        this
    }

    /// The same for results that are stored with `unit` as unit roundoff and `least` as the smallest number.
    pub fn stored(mut self, exact: &Array4<f64>, unit: f64, least: f64) -> Self {
        self.out.zip_mut_with(exact, |bound, x| *bound += unit * (x.abs() + *bound) + least);
        for (index, hull) in self.hull.iter_mut().enumerate() {
            let sign = if index == 0 { -1.0 } else { 1.0 };
            hull.mapv_inplace(|x| x + sign * (unit * x.abs() + least));
        }
        self
    }

    /// Says what is wrong with a result, if anything.
    pub fn check(
        &self,
        (out, lse): (&Array4<f32>, &Array3<f32>),
        exact: &hopweave::interpreter::Output,
    ) -> Result<(), String> {
        for ((at, &found), &expected) in lse.indexed_iter().zip(&exact.lse) {
            let bound = self.lse[at];
            if expected == f64::NEG_INFINITY && found == f32::NEG_INFINITY {
                continue;
            }
            if !found.is_finite() || (f64::from(found) - expected).abs() > bound {
                return Err(format!("lse at {at:?} is {found:e}, expected {expected:e} within {bound:e}"));
            }
        }
        for ((at, &found), &expected) in out.indexed_iter().zip(&exact.out) {
            let bound = self.out[at];
            let [low, high] = [self.hull[0][at], self.hull[1][at]];
            let found = f64::from(found);
            let inside = low > high || (low <= found && found <= high);
            if !found.is_finite() || (found - expected).abs() > bound || !inside {
                return Err(format!(
                    "out at {at:?} is {found:e}, expected {expected:e} within {bound:e} and in {low:e}..{high:e}"
                ));
            }
        }
        Ok(())
    }
}

/// How far gradients may be from the interpreter's: of q, k and v.
#[derive(Debug)]
pub struct GradientBound {
    pub q: Array4<f64>,
    pub k: Array4<f64>,
    pub v: Array4<f64>,
}

impl GradientBound {
    /// For inputs as [`Bound::new`] takes them, and the gradient of the output.
    pub fn new(pattern: &Pattern, spec: &PatternSpec, tensors: &Tensors, grad_out: &Array4<f32>) -> Self {
        assert!(spec.mods.is_empty() && spec.heads == spec.kv_heads);
        let mut this = Self {
            q: Array4::zeros(tensors.q.dim()),
            k: Array4::zeros(tensors.k.dim()),
            v: Array4::zeros(tensors.v.dim()),
        };
        for b in 0..tensors.q.dim().0 {
            for h in 0..spec.heads {
                let found = head_gradients(pattern, spec, tensors, grad_out, b, h);
                for (to, rows) in [&mut this.q, &mut this.k, &mut this.v].into_iter().zip(found) {
                    for (i, row) in rows.into_iter().enumerate() {
                        row.into_iter().enumerate().for_each(|(x, error)| to[[b, h, i, x]] = error);
                    }
                }
            }
        }
        this
    }

    /// Says what is wrong with gradients, if anything.
    pub fn check(&self, found: [&Array4<f32>; 3], exact: &hopweave::interpreter::Gradients) -> Result<(), String> {
        let expected = [(&exact.q, &self.q, "dq"), (&exact.k, &self.k, "dk"), (&exact.v, &self.v, "dv")];
        for (found, (exact, bound, name)) in found.into_iter().zip(expected) {
            for ((at, &found), &exact) in found.indexed_iter().zip(exact) {
                let bound = bound[at];
                if !found.is_finite() || (f64::from(found) - exact).abs() > bound {
                    return Err(format!("{name} at {at:?} is {found:e}, expected {exact:e} within {bound:e}"));
                }
            }
        }
        Ok(())
    }
}

/// The errors of dq, dk and dv of one head.
fn head_gradients(
    pattern: &Pattern,
    spec: &PatternSpec,
    t: &Tensors,
    grad_out: &Array4<f32>,
    b: usize,
    h: usize,
) -> [Matrix; 3] {
    let Head { rows, z, .. } = head(pattern, spec, t, b, h);
    let [q, k, v] = [&t.q, &t.k, &t.v].map(|x| Near::given(x.slice(s![b, h, .., ..])).exact);
    let factors = spec.diffusion.typical();
    let hops = &factors.hops;
    let (n, width) = (rows.len(), spec.value_dim);
    // Roundings of any sum here.
    let most = rows.iter().map(Vec::len).max().unwrap_or(0);
    let terms = (n.max(most) + width * hops.len() + 20) as f64 * EPS;
    let mut g = Near::given(grad_out.slice(s![b, h, .., ..]));
    let mut dv = vec![vec![0.0; width]; pattern.kv_len];
    // Exact gradients of weights, their errors and sizes; the same of Σ p dp.
    let mut by_weight: Vec<Vec<[f64; 3]>> = rows.iter().map(|row| vec![[0.0; 3]; row.len()]).collect();
    let mut mean = vec![[0.0; 3]; n];
    for (number, hop) in hops.iter().enumerate().rev() {
        let (before, behind) = (&z[number], &z[number + 1]);
        let mut next = Near::zeros(pattern.kv_len, width);
        for (i, row) in rows.iter().enumerate() {
            let (u, of_u) = (&g.exact[i], &g.error[i]);
            let product = |z: &[f64], of_z: &[f64]| {
                let sizes = size(u, z) + size(of_u, z);
                [dot(u, z), size(u, of_z) + size(of_u, z) + size(of_u, of_z) + terms * sizes + TINY, sizes]
            };
            for (edge, sums) in row.iter().zip(&mut by_weight[i]) {
                let found = product(&before.exact[edge.key], &before.error[edge.key]);
                sums.iter_mut().zip(found).enumerate().for_each(|(part, (sum, x))| {
                    *sum += x * if part == 0 { hop.step } else { hop.step.abs() };
                });
                for x in 0..width {
                    let top = u[x].abs() + of_u[x];
                    next.exact[edge.key][x] += hop.step * edge.p * u[x];
                    next.error[edge.key][x] +=
                        hop.step.abs() * (edge.error * u[x].abs() + edge.top * of_u[x] + terms * edge.top * top + TINY);
                }
            }
            let kept: Vec<f64> = v[i.min(v.len() - 1)].iter().map(|x| hop.restart * x).collect();
            let whole = product(&behind.exact[i], &behind.error[i]);
            let restart = if hop.restart == 0.0 { [0.0; 3] } else { product(&kept, &vec![0.0; width]) };
            mean[i][0] += whole[0] - restart[0];
            mean[i][1] += whole[1] + restart[1] + terms * (whole[2] + restart[2]);
            mean[i][2] += whole[2] + restart[2];
            if hop.restart != 0.0 {
                for x in 0..width {
                    dv[i][x] += hop.restart.abs() * (of_u[x] + terms * (u[x].abs() + of_u[x])) + TINY;
                }
            }
        }
        g = next;
    }
    for (sum, (row, error)) in dv.iter_mut().zip(g.exact.iter().zip(&g.error)) {
        let initial = factors.initial.abs();
        sum.iter_mut()
            .zip(row.iter().zip(error))
            .for_each(|(sum, (x, e))| *sum += initial * (e + terms * (x.abs() + e)));
    }
    let mut dq = vec![vec![0.0; spec.head_dim]; n];
    let mut dk = vec![vec![0.0; spec.head_dim]; pattern.kv_len];
    for (i, row) in rows.iter().enumerate() {
        for (edge, [exact, error, size]) in row.iter().zip(&by_weight[i]) {
            let rest = exact - mean[i][0];
            let of_rest = error + mean[i][1] + 4.0 * EPS * (size + mean[i][2]);
            let of_score = edge.error * rest.abs() + edge.top * of_rest;
            let all = spec.scale.abs() * (of_score + terms * edge.top * (rest.abs() + of_rest)) + TINY;
            for x in 0..spec.head_dim {
                dq[i][x] += all * k[edge.key][x].abs() + TINY;
                dk[edge.key][x] += all * q[i][x].abs() + TINY;
            }
        }
    }
    [dq, dk, dv]
}

//! The oracle: attention as the definition has it, in f64, edge by edge.
//!
//! In: a [`Pattern`], the spec's scale, score mods and diffusion, and tensors. Out: the output and the log-sum-exp of
//! every query, in f64. Slow on purpose: it visits all n² points with [`Pattern::allows`] and shares no code
//! with masks, plans, tiles or code generation, because it judges them.
//!
//! What the definition leaves open is settled here, for everyone:
//! - A query without allowed keys has a zero row in A and a log-sum-exp of −inf. The same holds where every
//!   allowed score is −inf.
//! - A term whose factor is 0 is left out, never multiplied: NaN in V does not pass through a restart of 0,
//!   nor NaN in the scores through a step of 0.
//! - NaN and Inf travel along allowed edges only.
//!
//! [`run`] computes everything, [`run_rows`] a sample of rows, for lengths where all n² points are too many.

use ndarray::{Array3, Array4, ArrayView1, ArrayView2, ArrayView4, Axis, s};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::spec::{Diffusion, HopFactors, Inputs, PatternSpec};

mod sample;
mod score;

use score::Mods;

pub use sample::{Sample, SampleRow, run_rows};

/// What the interpreter computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `[batch, heads, q_len, value_dim]`.
    pub out: Array4<f64>,
    /// `[batch, heads, q_len]`: natural log of the sum of exp of the allowed scores; −inf where there is none.
    pub lse: Array3<f64>,
}

/// Computes attention on `q` `[batch, heads, q_len, head_dim]`, `k` `[batch, kv_heads, kv_len, head_dim]` and
/// `v` `[batch, kv_heads, kv_len, value_dim]`.
///
/// Time grows with heads · q_len · kv_len whatever the pattern allows; memory holds the edges of one head per
/// thread.
///
/// # Errors
/// [`Error::Shape`] where a tensor does not fit the spec and the pattern's lengths, [`Error::Unsupported`] for a
/// pattern that waits for run-time inputs.
/// [`Error::Shape`] where a tensor does not fit the spec and the pattern's lengths, [`Error::Spec`] where
/// an index may leave its input.
pub fn run(
    pattern: &Pattern,
    spec: &PatternSpec,
    q: ArrayView4<'_, f32>,
    k: ArrayView4<'_, f32>,
    v: ArrayView4<'_, f32>,
) -> Result<Output> {
    run_with(pattern, spec, q, k, v, &Inputs::none())
}

/// The same for a spec whose score mods read `inputs`.
///
/// # Errors
/// As [`run`], and [`Error::Shape`] where an input is missing, unknown or of another shape.
pub fn run_with(
    pattern: &Pattern,
    spec: &PatternSpec,
    q: ArrayView4<'_, f32>,
    k: ArrayView4<'_, f32>,
    v: ArrayView4<'_, f32>,
    inputs: &Inputs<'_>,
) -> Result<Output> {
    check_shapes(pattern, spec, &q, &k, &v)?;
    let mods = &Mods::new(spec, pattern.q_len, pattern.kv_len, inputs)?;
    let batch = q.dim().0;
    let heads: Vec<(Vec<Vec<f64>>, Vec<f64>)> = (0..batch * spec.heads)
        .into_par_iter()
        .map(|place| {
            let (b, h) = (place / spec.heads, place % spec.heads);
            let kv = spec.kv_head(h);
            Head { pattern, spec, mods, index: h, q: at(&q, b, h), k: at(&k, b, kv), v: at(&v, b, kv) }.run()
        })
        .collect();
    let head = |b: usize, h: usize| &heads[b * spec.heads + h];
    Ok(Output {
        out: Array4::from_shape_fn((batch, spec.heads, pattern.q_len, spec.value_dim), |(b, h, i, x)| {
            head(b, h).0[i][x]
        }),
        lse: Array3::from_shape_fn((batch, spec.heads, pattern.q_len), |(b, h, i)| head(b, h).1[i]),
    })
}

/// Refuses tensors that do not fit the spec and the pattern's lengths.
fn check_shapes(
    pattern: &Pattern,
    spec: &PatternSpec,
    q: &ArrayView4<'_, f32>,
    k: &ArrayView4<'_, f32>,
    v: &ArrayView4<'_, f32>,
) -> Result<()> {
    pattern.require_bound()?;
    let batch = q.dim().0;
    let rows: [(&str, &ArrayView4<'_, f32>, usize, usize, usize); 3] = [
        ("q", q, spec.heads, pattern.q_len, spec.head_dim),
        ("k", k, spec.kv_heads, pattern.kv_len, spec.head_dim),
        ("v", v, spec.kv_heads, pattern.kv_len, spec.value_dim),
    ];
    for (tensor, array, heads, length, width) in rows {
        let expected = [batch, heads, length, width];
        if array.shape() != expected {
            return Err(Error::Shape {
                tensor: tensor.into(),
                expected: format!("{expected:?} (batch, heads, length, width)"),
                found: format!("{:?}", array.shape()),
            });
        }
    }
    let hops = &spec.diffusion.hops;
    let plain = hops.len() == 1 && hops[0].restart == 0.0;
    if !plain && pattern.q_len != pattern.kv_len {
        return Err(Error::unsupported(
            format!("diffusion with {} queries and {} keys", pattern.q_len, pattern.kv_len),
            "with different lengths only plain attention is defined",
        ));
    }
    Ok(())
}

/// One head's matrix out of `[batch, heads, length, width]`.
fn at<'a>(tensor: &'a ArrayView4<'_, f32>, batch: usize, head: usize) -> ArrayView2<'a, f32> {
    tensor.slice(s![batch, head, .., ..])
}

/// One (batch, head) of the problem.
struct Head<'a> {
    pattern: &'a Pattern,
    spec: &'a PatternSpec,
    mods: &'a Mods<'a>,
    index: usize,
    q: ArrayView2<'a, f32>,
    k: ArrayView2<'a, f32>,
    v: ArrayView2<'a, f32>,
}

/// One row of A, and the log-sum-exp of its scores.
struct Row {
    /// Allowed keys and their probabilities.
    edges: Vec<(u32, f64)>,
    lse: f64,
}

impl Head<'_> {
    /// The output rows and their log-sum-exps.
    fn run(&self) -> (Vec<Vec<f64>>, Vec<f64>) {
        let rows: Vec<Row> = (0..self.pattern.q_len).map(|i| self.probabilities(i)).collect();
        let diffusion = &self.spec.diffusion;
        let mut z: Vec<Vec<f64>> = self.v.axis_iter(Axis(0)).map(|row| initial_row(diffusion, row)).collect();
        for hop in &diffusion.hops {
            let next = |(i, row): (usize, &Row)| {
                let mut sums = vec![0.0; self.spec.value_dim];
                step(&mut sums, hop, &row.edges, |key| &z[key]);
                restart(&mut sums, hop, &self.v, i);
                sums
            };
            z = rows.iter().enumerate().map(next).collect();
        }
        (z, rows.iter().map(|row| row.lse).collect())
    }

    /// Row `i` of A: softmax over the allowed keys of query `i`.
    fn probabilities(&self, i: usize) -> Row {
        let query = self.q.row(i);
        let mut edges: Vec<(u32, f64)> = Vec::new();
        for key in 0..self.pattern.kv_len {
            if self.pattern.allows(self.index, i, key) {
                let dot: f64 = query.iter().zip(self.k.row(key)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                edges.push((key as u32, self.mods.apply(self.index, i, key, self.spec.scale * dot)));
            }
        }
        // `f64::max` passes over NaN; NaN scores come back through exp and the sum.
        let max = edges.iter().fold(f64::NEG_INFINITY, |max, &(_, score)| max.max(score));
        if edges.iter().all(|&(_, score)| score == f64::NEG_INFINITY) {
            return Row { edges: Vec::new(), lse: f64::NEG_INFINITY };
        }
        for (_, score) in &mut edges {
            *score = (*score - max).exp();
        }
        let sum: f64 = edges.iter().map(|&(_, p)| p).sum();
        for (_, p) in &mut edges {
            *p /= sum;
        }
        Row { edges, lse: max + sum.ln() }
    }
}

/// One row of Z_0.
fn initial_row(diffusion: &Diffusion, row: ArrayView1<'_, f32>) -> Vec<f64> {
    row.iter().map(|&x| if diffusion.initial == 0.0 { 0.0 } else { diffusion.initial * f64::from(x) }).collect()
}

/// Adds step · A Z to one row of Z'.
fn step<'z>(sums: &mut [f64], hop: &HopFactors, edges: &[(u32, f64)], z: impl Fn(usize) -> &'z [f64]) {
    if hop.step == 0.0 {
        return;
    }
    for &(key, p) in edges {
        for (sum, &value) in sums.iter_mut().zip(z(key as usize)) {
            *sum += hop.step * p * value;
        }
    }
}

/// Adds restart · V to row `i` of Z'.
fn restart(sums: &mut [f64], hop: &HopFactors, v: &ArrayView2<'_, f32>, i: usize) {
    if hop.restart == 0.0 {
        return;
    }
    for (sum, &value) in sums.iter_mut().zip(v.row(i)) {
        *sum += hop.restart * f64::from(value);
    }
}

#[cfg(test)]
mod tests;

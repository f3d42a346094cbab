//! The oracle: attention as the definition has it, in f64, edge by edge.
//!
//! In: a [`Pattern`], the spec's scale, score mods and diffusion, and tensors. Out: the output and the log-sum-exp of
//! every query, in f64. Slow on purpose: it visits all n² points with [`Pattern::allows`] and shares no code
//! with masks, plans, tiles or code generation, because it judges them.
//!
//! What the definition leaves open is settled here, for everyone:
//! - A query without allowed keys has a zero row in A and a log-sum-exp of −inf. The same holds where every
//!   allowed score is −inf.
//! - A term whose factor is a constant 0 is left out, never multiplied: NaN in V does not pass through a restart of 0,
//!   nor NaN in the scores through a step of 0. A factor that comes with the call always multiplies, 0 too.
//! - NaN and Inf travel along allowed edges only.
//! - Hops without end are forward substitution where the head's mask is lower triangular, and elsewhere as many hops as
//!   the tolerance asks for.
//! - Hops with patterns of their own are softmaxes over their own keys, of the same scores; the log-sum-exp is that of
//!   the first hop.
//! - What dropout zeroes is left out too: NaN does not pass through it.
//!
//! [`run`] computes everything, [`run_rows`] a sample of rows, for lengths where all n² points are too many, and
//! [`gradients`] what a loss's gradient by the output is by q, k, v and the inputs.

use ndarray::{Array3, Array4, ArrayView1, ArrayView2, ArrayView4, Axis, s};
use rayon::prelude::*;

use crate::dropout::Dropout;
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::spec::{DiffusionForm, Factors, HopFactors, Inputs, PatternSpec};

mod gradients;
mod limit;
mod sample;
mod score;
mod score_gradient;
mod select;

use score::Mods;

pub use gradients::{Gradients, gradients};
pub use sample::{Sample, SampleRow, run_rows};
pub use score_gradient::score_gradient;
pub use select::picked_blocks;

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
/// [`Error::Unsupported`] for a pattern that waits for run-time inputs.
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
    run_dropout(pattern, spec, q, k, v, inputs, None)
}

/// The same in training, where `dropout` zeroes attention weights (after the softmax; the log-sum-exp does not change) and
/// entries of Z after every hop, and divides the others by the share that is kept.
///
/// # Errors
/// As [`run_with`].
pub fn run_dropout(
    pattern: &Pattern,
    spec: &PatternSpec,
    q: ArrayView4<'_, f32>,
    k: ArrayView4<'_, f32>,
    v: ArrayView4<'_, f32>,
    inputs: &Inputs<'_>,
    dropout: Option<&Dropout>,
) -> Result<Output> {
    check_shapes(pattern, spec, &q, &k, &v)?;
    check_dropout(spec, dropout)?;
    let mods = &Mods::new(spec, pattern.q_len, pattern.kv_len, inputs)?;
    let series = all_series(pattern, spec, mods, |head| limit::is_lower_triangular(pattern, head))?;
    let batch = q.dim().0;
    let heads: Vec<(Vec<Vec<f64>>, Vec<f64>)> = (0..batch * spec.heads)
        .into_par_iter()
        .map(|place| {
            let (b, h) = (place / spec.heads, place % spec.heads);
            let kv = spec.kv_head(h);
            let (q, k, v) = (at(&q, b, h), at(&k, b, kv), at(&v, b, kv));
            let series = series[h].clone();
            Head { pattern, spec, mods, series, dropout, item: place as u64, index: h, q, k, v }.run()
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
    if !spec.diffusion.is_plain() && pattern.q_len != pattern.kv_len {
        return Err(Error::unsupported(
            format!("diffusion with {} queries and {} keys", pattern.q_len, pattern.kv_len),
            "with different lengths only plain attention is defined",
        ));
    }
    Ok(())
}

/// Refuses dropout where there is no end of hops to apply it after.
fn check_dropout(spec: &PatternSpec, dropout: Option<&Dropout>) -> Result<()> {
    match (&spec.diffusion.form, dropout) {
        (DiffusionForm::Limit { .. }, Some(_)) => {
            Err(Error::unsupported("dropout with `hops: all`", "train with a number of hops, or without dropout"))
        }
        _ => Ok(()),
    }
}

/// What each head does with V; `is_lower_triangular` says it of a head's mask.
fn all_series(
    pattern: &Pattern,
    spec: &PatternSpec,
    mods: &Mods<'_>,
    is_lower_triangular: impl Fn(usize) -> bool + Sync,
) -> Result<Vec<Series>> {
    let endless = matches!(spec.diffusion.form, DiffusionForm::Limit { .. });
    let of_head = |head| {
        let numbers = mods.numbers_of(head);
        match spec.diffusion.alpha_of_limit(&numbers) {
            Some(alpha) if endless && is_lower_triangular(head) => Ok(Series::Limit(alpha)),
            _ => spec.factors_of_head(head, &numbers).map(Series::Hops),
        }
    };
    (0..pattern.heads).into_par_iter().map(of_head).collect()
}

/// What a head does with V.
#[derive(Debug, Clone)]
enum Series {
    /// Hop after hop.
    Hops(Factors),
    /// The limit at this alpha, by forward substitution.
    Limit(f64),
}

impl Series {
    /// The hops; of a limit none.
    fn hops(&self) -> &[HopFactors] {
        match self {
            Self::Hops(factors) => &factors.hops,
            Self::Limit(_) => &[],
        }
    }
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
    /// That of this head.
    series: Series,
    dropout: Option<&'a Dropout>,
    /// batch · heads + head, the number by which dropout knows it.
    item: u64,
    /// The query head.
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
        let operators = self.operators();
        let first = &operators[self.pattern.index_of_hop(0)];
        let lse = first.iter().map(|row| row.lse).collect();
        let factors = match &self.series {
            Series::Hops(factors) => factors,
            Series::Limit(alpha) => return (self.substitute(*alpha, first), lse),
        };
        let kept: Vec<Vec<Vec<(u32, f64)>>> = operators.iter().map(|rows| self.all_kept(rows)).collect();
        let mut z = self.first(factors);
        for (number, hop) in factors.hops.iter().enumerate() {
            z = self.next(number, hop, &kept[self.pattern.index_of_hop(number)], &z);
        }
        (z, lse)
    }

    /// A of the pattern itself, and of every other that hops have. What no hop reads has no rows.
    fn operators(&self) -> Vec<Vec<Row>> {
        let read = |index| index == self.pattern.index_of_hop(0) || self.reads(index);
        let rows = |index| match read(index) {
            true => (0..self.pattern.q_len).map(|i| self.probabilities(index, i)).collect(),
            false => Vec::new(),
        };
        (0..=self.pattern.others().len()).map(rows).collect()
    }

    /// Whether a hop has this one of the patterns.
    fn reads(&self, index: usize) -> bool {
        (0..self.series.hops().len()).any(|number| self.pattern.index_of_hop(number) == index)
    }

    /// `factor`, unless the term is left out: a constant 0 is, and never one that comes with the call.
    fn term(&self, factor: f64) -> Option<f64> {
        (factor != 0.0 || self.mods.given.is_some()).then_some(factor)
    }

    /// Z_0.
    fn first(&self, factors: &Factors) -> Vec<Vec<f64>> {
        let initial = self.term(factors.initial);
        self.v.axis_iter(Axis(0)).map(|row| initial_row(initial, row)).collect()
    }

    /// Z after hop number `number`, from the rows of A that dropout leaves and the Z before.
    fn next(&self, number: usize, hop: &HopFactors, kept: &[Vec<(u32, f64)>], z: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let next = |(i, edges): (usize, &Vec<(u32, f64)>)| {
            let mut sums = vec![0.0; self.spec.value_dim];
            step(&mut sums, self.term(hop.step), edges, |key| &z[key]);
            restart(&mut sums, self.term(hop.restart), &self.v, i);
            self.drop_out(number, i, &mut sums);
            sums
        };
        kept.iter().enumerate().map(next).collect()
    }

    /// [`Self::kept`] of every row.
    fn all_kept(&self, rows: &[Row]) -> Vec<Vec<(u32, f64)>> {
        rows.iter().enumerate().map(|(i, row)| self.kept(i, row)).collect()
    }

    /// Row `i` of A as the hops use it: what dropout zeroes is not there, the rest is divided by the share kept.
    fn kept(&self, i: usize, row: &Row) -> Vec<(u32, f64)> {
        let weigh = |&(key, p): &(u32, f64)| match self.attention_factor(i, key) {
            0.0 => None,
            factor => Some((key, factor * p)),
        };
        row.edges.iter().filter_map(weigh).collect()
    }

    /// What dropout multiplies an attention weight with.
    fn attention_factor(&self, i: usize, key: u32) -> f64 {
        self.dropout.map_or(1.0, |dropout| f64::from(dropout.attention_factor(self.item, i as u64, key)))
    }

    /// Dropout after hop number `number`, on row `i` of Z or of its gradient.
    fn drop_out(&self, number: usize, i: usize, row: &mut [f64]) {
        let Some(dropout) = self.dropout else { return };
        for (column, x) in row.iter_mut().enumerate() {
            *x = match dropout.hop_factor(number, self.item, i as u64, column as u32) {
                0.0 => 0.0,
                factor => f64::from(factor) * *x,
            };
        }
    }

    /// The score of a pair before the mods.
    fn scaled(&self, i: usize, key: usize) -> f64 {
        let dot: f64 = self.q.row(i).iter().zip(self.k.row(key)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        self.spec.scale * dot
    }

    /// Row `i` of the A of one of the patterns: softmax over the allowed keys of query `i`.
    fn probabilities(&self, index: usize, i: usize) -> Row {
        let pattern = [self.pattern].into_iter().chain(self.pattern.others()).nth(index).unwrap_or(self.pattern);
        let mut edges: Vec<(u32, f64)> = Vec::new();
        for key in 0..pattern.kv_len {
            if pattern.allows(self.index, i, key) {
                edges.push((key as u32, self.mods.apply(self.index, i, key, self.scaled(i, key))));
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
fn initial_row(initial: Option<f64>, row: ArrayView1<'_, f32>) -> Vec<f64> {
    row.iter().map(|&x| initial.map_or(0.0, |factor| factor * f64::from(x))).collect()
}

/// Adds step · A Z to one row of Z'.
fn step<'z>(sums: &mut [f64], factor: Option<f64>, edges: &[(u32, f64)], z: impl Fn(usize) -> &'z [f64]) {
    let Some(factor) = factor else { return };
    for &(key, p) in edges {
        for (sum, &value) in sums.iter_mut().zip(z(key as usize)) {
            *sum += factor * p * value;
        }
    }
}

/// Adds restart · V to row `i` of Z'.
fn restart(sums: &mut [f64], factor: Option<f64>, v: &ArrayView2<'_, f32>, i: usize) {
    let Some(factor) = factor else { return };
    for (sum, &value) in sums.iter_mut().zip(v.row(i)) {
        *sum += factor * f64::from(value);
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests;

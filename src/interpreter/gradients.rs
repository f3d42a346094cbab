//! Gradients by the chain rule, edge by edge, in f64: the oracle of backward kernels.
//!
//! With L the loss, `grad_out` = dL / d out and Z_{k+1} = M_k ∘ (step_k Ã Z_k + restart_k V), where Ã is A after
//! dropout and M_k the mask after hop k, walked from the last hop to the first with G = dL / dZ_{k+1}:
//!
//! - U = M_k ∘ G; dV += restart_k U; dÃ_ij += step_k U_i · Z_k[j] on edges; dL / dZ_k = step_k Ãᵀ U;
//! - by the factors that come with the call: d restart_k += Σ U · V, d step_k += Σ U · Ã Z_k, and d initial += Σ dL / dZ_0 · V;
//! - at the end dV += initial · dL / dZ_0, dA_ij is dÃ_ij times dropout's factor, dL / ds_ij = A_ij (dA_ij − Σ_j A_ij dA_ij)
//!   for modified scores s, and mods and q · k follow.
//!
//! Hops with patterns of their own have an A each, all of the same scores. The gradient of a limit is in `limit.rs`.
//!
//! What the forward pass leaves out has no gradient, and a score whose gradient is 0 passes nothing on to its mods.

use ndarray::{Array4, ArrayD, ArrayView4, IxDyn};
use rayon::prelude::*;

use super::limit::{LimitGradients, is_lower_triangular};
use super::score_gradient::InputGradients;
use super::{Head, Mods, Row, Series, all_series, at, check_dropout, check_shapes, dot};
use crate::dropout::Dropout;
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::spec::{DiffusionForm, Factors, HopFactors, Inputs, PatternSpec};

/// What the interpreter computes of a backward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// By the queries, `[batch, heads, q_len, head_dim]`.
    pub q: Array4<f64>,
    /// By the keys, `[batch, kv_heads, kv_len, head_dim]`: the sum over the query heads that read them.
    pub k: Array4<f64>,
    /// By the values, `[batch, kv_heads, kv_len, value_dim]`.
    pub v: Array4<f64>,
    /// By every input of the score mods, in the spec's order, and by that of the hops, if one is given: with its name and of
    /// its shape, the sum over batch and heads; of what is given for each head that of the head.
    pub inputs: Vec<(String, ArrayD<f64>)>,
}

/// The gradients of Σ grad_out · out by all that [`run_dropout`](super::run_dropout) reads; `grad_out` is
/// `[batch, heads, q_len, value_dim]`.
///
/// # Errors
/// As [`run_with`](super::run_with), and [`Error::Shape`] for `grad_out`.
pub fn gradients(
    pattern: &Pattern,
    spec: &PatternSpec,
    [q, k, v, grad_out]: [ArrayView4<'_, f32>; 4],
    inputs: &Inputs<'_>,
    dropout: Option<&Dropout>,
) -> Result<Gradients> {
    check_shapes(pattern, spec, &q, &k, &v)?;
    check_dropout(spec, dropout)?;
    let batch = q.dim().0;
    let expected = [batch, spec.heads, pattern.q_len, spec.value_dim];
    if grad_out.shape() != expected {
        return Err(Error::Shape {
            tensor: "grad_out".into(),
            expected: format!("{expected:?} (batch, heads, length, width)"),
            found: format!("{:?}", grad_out.shape()),
        });
    }
    let mods = &Mods::new(spec, pattern.q_len, pattern.kv_len, inputs)?;
    let series = all_series(pattern, spec, mods, |head| is_lower_triangular(pattern, head))?;
    let heads: Vec<HeadGradients> = (0..batch * spec.heads)
        .into_par_iter()
        .map(|place| {
            let (b, h) = (place / spec.heads, place % spec.heads);
            let kv = spec.kv_head(h);
            let grad_out = grad_out.slice(ndarray::s![b, h, .., ..]);
            let grad_out = grad_out.rows().into_iter().map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
            let (q, k, v) = (at(&q, b, h), at(&k, b, kv), at(&v, b, kv));
            let series = series[h].clone();
            Head { pattern, spec, mods, series, dropout, item: place as u64, index: h, q, k, v }.gradients(grad_out)
        })
        .collect();
    let mut sums = Gradients {
        q: Array4::zeros(q.dim()),
        k: Array4::zeros(k.dim()),
        v: Array4::zeros(v.dim()),
        inputs: Vec::new(),
    };
    let mut by_inputs = mods.no_gradients();
    let mut by_numbers = vec![0.0; mods.numbers.all().len()];
    for (place, head) in heads.into_iter().enumerate() {
        let (b, h) = (place / spec.heads, place % spec.heads);
        let kv = spec.kv_head(h);
        for (sum, head_index, rows) in [(&mut sums.q, h, head.q), (&mut sums.k, kv, head.k), (&mut sums.v, kv, head.v)]
        {
            let mut sum = sum.slice_mut(ndarray::s![b, head_index, .., ..]);
            for (mut sum, row) in sum.rows_mut().into_iter().zip(rows) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
        for (sum, input) in by_inputs.iter_mut().zip(head.inputs) {
            sum.iter_mut().zip(input).for_each(|(sum, x)| *sum += x);
        }
        // A number for all heads has the gradients of all.
        let columns = head.numbers.len();
        let first = if by_numbers.len() == columns { 0 } else { h * columns };
        by_numbers[first..].iter_mut().zip(head.numbers).for_each(|(sum, x)| *sum += x);
    }
    let mut by_name: Vec<(&str, Vec<usize>, Vec<f64>)> = mods
        .mods
        .iter()
        .flat_map(|mods| &mods.inputs)
        .zip(by_inputs)
        .map(|(input, sum)| (input.name.as_str(), input.shape.clone(), sum))
        .collect();
    if let Some(given) = &mods.given {
        let shape =
            given.shapes(spec.heads).into_iter().find(|shape| shape.iter().product::<usize>() == by_numbers.len());
        by_name.push((&given.input.name, shape.unwrap_or_default(), by_numbers));
    }
    for (name, shape, sum) in by_name {
        let array = ArrayD::from_shape_vec(IxDyn(&shape), sum);
        let array = array.map_err(|error| Error::internal("interpreter", error.to_string(), name))?;
        sums.inputs.push((name.to_owned(), array));
    }
    Ok(sums)
}

/// The gradients of one (batch, head); `k` and `v` are its share.
struct HeadGradients {
    q: Vec<Vec<f64>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    inputs: InputGradients,
    /// By what the hops take from the call.
    numbers: Vec<f64>,
}

impl Head<'_> {
    fn gradients(&self, grad_out: Vec<Vec<f64>>) -> HeadGradients {
        let operators = self.operators();
        let mut by_v = vec![vec![0.0; self.spec.value_dim]; self.pattern.kv_len];
        let mut numbers = Vec::new();
        // By every A, beside the edges of its rows.
        let by_operators = match &self.series {
            Series::Hops(factors) => self.through_hops(factors, &operators, grad_out, &mut by_v, &mut numbers),
            Series::Limit(alpha) => {
                let LimitGradients { adjoint, by_edges, by_alpha } = self.adjoint(*alpha, &operators[0], grad_out);
                by_v.iter_mut().zip(&adjoint).for_each(|(sum, row)| add(sum, *alpha, row));
                numbers = vec![by_alpha];
                vec![by_edges]
            }
        };
        if self.mods.given.is_none() {
            numbers.clear();
        }
        // Through softmax, mods and products.
        let mut by_q = vec![vec![0.0; self.spec.head_dim]; self.pattern.q_len];
        let mut by_k = vec![vec![0.0; self.spec.head_dim]; self.pattern.kv_len];
        let mut inputs = self.mods.no_gradients();
        let all_rows =
            operators.iter().zip(&by_operators).flat_map(|(rows, by_rows)| rows.iter().zip(by_rows).enumerate());
        for (i, (row, by_weights)) in all_rows {
            let terms = row.edges.iter().zip(by_weights).filter(|&(_, &by_p)| by_p != 0.0);
            let mean: f64 = terms.map(|(&(_, p), by_p)| p * by_p).sum();
            for (&(key, p), by_p) in row.edges.iter().zip(by_weights) {
                let key = key as usize;
                let scaled = self.scaled(i, key);
                // A row that nothing reads has no gradient, be its scores NaN. The difference of two infinities is none.
                let by_score = if by_p.is_finite() && *by_p == mean { 0.0 } else { p * (by_p - mean) };
                let by_scaled = self.mods.pull((self.index, i, key), scaled, by_score, &mut inputs);
                if by_scaled != 0.0 {
                    let by_dot = self.spec.scale * by_scaled;
                    add(&mut by_q[i], by_dot, &row_of(&self.k.row(key)));
                    add(&mut by_k[key], by_dot, &row_of(&self.q.row(i)));
                }
            }
        }
        HeadGradients { q: by_q, k: by_k, v: by_v, inputs, numbers }
    }

    /// Back from hop to hop: adds to the gradient by V, and gives that by every A and by the numbers of the call.
    fn through_hops(
        &self,
        factors: &Factors,
        operators: &[Vec<Row>],
        grad_out: Vec<Vec<f64>>,
        by_v: &mut [Vec<f64>],
        numbers: &mut Vec<f64>,
    ) -> Vec<Vec<Vec<f64>>> {
        // Forward: what dropout leaves of each A, and every Z.
        let kept: Vec<Vec<Vec<(u32, f64)>>> = operators.iter().map(|rows| self.all_kept(rows)).collect();
        let mut z = vec![self.first(factors)];
        for (number, hop) in factors.hops.iter().enumerate() {
            z.push(self.next(number, hop, &kept[self.pattern.index_of_hop(number)], &z[number]));
        }
        // Backward over the hops. dÃ stands beside the edges of `kept`.
        let no_gradient = |rows: &Vec<Vec<(u32, f64)>>| rows.iter().map(|edges| vec![0.0; edges.len()]).collect();
        let mut by_kept: Vec<Vec<Vec<f64>>> = kept.iter().map(no_gradient).collect();
        // By every factor on V and on A Z, of the first hop first.
        let mut by_factors = vec![HopFactors { step: 0.0, restart: 0.0 }; factors.hops.len()];
        let mut by_z = grad_out;
        for (number, hop) in factors.hops.iter().enumerate().rev() {
            let index = self.pattern.index_of_hop(number);
            for (i, row) in by_z.iter_mut().enumerate() {
                self.drop_out(number, i, row);
            }
            if let Some(restart) = self.term(hop.restart) {
                by_v.iter_mut().zip(&by_z).for_each(|(sum, row)| add(sum, restart, row));
                by_factors[number].restart = self.dot_with_v(&by_z);
            }
            let mut before = vec![vec![0.0; self.spec.value_dim]; z[number].len()];
            if let Some(step) = self.term(hop.step) {
                for (i, edges) in kept[index].iter().enumerate() {
                    for (&(key, weight), by_weight) in edges.iter().zip(&mut by_kept[index][i]) {
                        let product = dot(&by_z[i], &z[number][key as usize]);
                        *by_weight += step * product;
                        by_factors[number].step += weight * product;
                        add(&mut before[key as usize], step * weight, &by_z[i]);
                    }
                }
            }
            by_z = before;
        }
        if let Some(initial) = self.term(factors.initial) {
            by_v.iter_mut().zip(&by_z).for_each(|(sum, row)| add(sum, initial, row));
        }
        *numbers = match self.spec.diffusion.form {
            // As many hops as factors: by Horner's rule, the last factor stands before the first hop.
            DiffusionForm::Polynomial { .. } => {
                by_factors.iter().rev().map(|by| by.restart).chain([self.dot_with_v(&by_z)]).collect()
            }
            // The steps are 1 - alpha.
            _ => vec![by_factors.iter().map(|by| by.restart - by.step).sum()],
        };
        let all_rows = |(rows, by_kept): (&Vec<Row>, &Vec<Vec<f64>>)| {
            rows.iter().zip(by_kept).enumerate().map(|(i, (row, by_kept))| self.by_weights(i, row, by_kept)).collect()
        };
        operators.iter().zip(&by_kept).map(all_rows).collect()
    }

    /// Σ rows · V.
    fn dot_with_v(&self, rows: &[Vec<f64>]) -> f64 {
        rows.iter().enumerate().map(|(i, row)| dot(row, &row_of(&self.v.row(i)))).sum()
    }

    /// dL / dA of row `i`, on all its edges, from those that dropout keeps.
    fn by_weights(&self, i: usize, row: &Row, by_kept: &[f64]) -> Vec<f64> {
        let mut rest = by_kept.iter();
        let by_weight = |&(key, _): &(u32, f64)| match self.attention_factor(i, key) {
            0.0 => 0.0,
            factor => factor * rest.next().copied().unwrap_or(f64::NAN),
        };
        row.edges.iter().map(by_weight).collect()
    }
}

fn row_of(row: &ndarray::ArrayView1<'_, f32>) -> Vec<f64> {
    row.iter().map(|&x| f64::from(x)).collect()
}

/// Adds `factor` · `row`.
fn add(sum: &mut [f64], factor: f64, row: &[f64]) {
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
}

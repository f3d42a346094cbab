//! Gradients by the chain rule, edge by edge, in f64: the oracle of backward kernels.
//!
//! With L the loss, `grad_out` = dL / d out and Z_{k+1} = M_k ∘ (step_k Ã Z_k + restart_k V), where Ã is A after
//! dropout and M_k the mask after hop k, walked from the last hop to the first with G = dL / dZ_{k+1}:
//!
//! - U = M_k ∘ G; dV += restart_k U; dÃ_ij += step_k U_i · Z_k[j] on edges; dL / dZ_k = step_k Ãᵀ U;
//! - at the end dV += initial · dL / dZ_0, dA_ij is dÃ_ij times dropout's factor, dL / ds_ij = A_ij (dA_ij − Σ_j A_ij dA_ij)
//!   for modified scores s, and mods and q · k follow.
//!
//! What the forward pass leaves out has no gradient, and a score whose gradient is 0 passes nothing on to its mods.

use ndarray::{Array4, ArrayD, ArrayView4, IxDyn};
use rayon::prelude::*;

use super::score_gradient::InputGradients;
use super::{Head, Mods, Row, at, check_shapes};
use crate::dropout::Dropout;
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::spec::{Inputs, PatternSpec};

/// What the interpreter computes of a backward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// By the queries, `[batch, heads, q_len, head_dim]`.
    pub q: Array4<f64>,
    /// By the keys, `[batch, kv_heads, kv_len, head_dim]`: the sum over the query heads that read them.
    pub k: Array4<f64>,
    /// By the values, `[batch, kv_heads, kv_len, value_dim]`.
    pub v: Array4<f64>,
    /// By every input of the score mods, in the spec's order, with its name and of its shape: the sum over batch and
    /// heads. Empty for a spec without mods.
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
    let heads: Vec<HeadGradients> = (0..batch * spec.heads)
        .into_par_iter()
        .map(|place| {
            let (b, h) = (place / spec.heads, place % spec.heads);
            let kv = spec.kv_head(h);
            let grad_out = grad_out.slice(ndarray::s![b, h, .., ..]);
            let grad_out = grad_out.rows().into_iter().map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
            let (q, k, v) = (at(&q, b, h), at(&k, b, kv), at(&v, b, kv));
            Head { pattern, spec, mods, factors: mods.factors(spec, h), dropout, item: place as u64, index: h, q, k, v }
                .gradients(grad_out)
        })
        .collect();
    let mut sums = Gradients {
        q: Array4::zeros(q.dim()),
        k: Array4::zeros(k.dim()),
        v: Array4::zeros(v.dim()),
        inputs: Vec::new(),
    };
    let mut by_inputs = mods.no_gradients();
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
    }
    for (input, sum) in mods.mods.iter().flat_map(|mods| &mods.inputs).zip(by_inputs) {
        let array = ArrayD::from_shape_vec(IxDyn(&input.shape), sum);
        let array = array.map_err(|error| Error::internal("interpreter", error.to_string(), &input.name))?;
        sums.inputs.push((input.name.clone(), array));
    }
    Ok(sums)
}

/// The gradients of one (batch, head); `k` and `v` are its share.
struct HeadGradients {
    q: Vec<Vec<f64>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    inputs: InputGradients,
}

impl Head<'_> {
    fn gradients(&self, grad_out: Vec<Vec<f64>>) -> HeadGradients {
        let (q_len, kv_len) = (self.pattern.q_len, self.pattern.kv_len);
        let diffusion = &self.factors;
        // Forward: A, what dropout leaves of it, and every Z.
        let rows: Vec<Row> = (0..q_len).map(|i| self.probabilities(i)).collect();
        let kept: Vec<Vec<(u32, f64)>> = rows.iter().enumerate().map(|(i, row)| self.kept(i, row)).collect();
        let mut z = vec![self.first()];
        for number in 0..diffusion.hops.len() {
            z.push(self.next(number, &kept, &z[number]));
        }
        // Backward over the hops. dÃ stands beside the edges of `kept`.
        let mut by_kept: Vec<Vec<f64>> = kept.iter().map(|edges| vec![0.0; edges.len()]).collect();
        let mut by_v = vec![vec![0.0; self.spec.value_dim]; kv_len];
        let mut by_z = grad_out;
        for (number, hop) in diffusion.hops.iter().enumerate().rev() {
            for (i, row) in by_z.iter_mut().enumerate() {
                self.drop_out(number, i, row);
            }
            if hop.restart != 0.0 {
                by_v.iter_mut().zip(&by_z).for_each(|(sum, row)| add(sum, hop.restart, row));
            }
            let mut before = vec![vec![0.0; self.spec.value_dim]; z[number].len()];
            if hop.step != 0.0 {
                for (i, edges) in kept.iter().enumerate() {
                    for (&(key, weight), by_weight) in edges.iter().zip(&mut by_kept[i]) {
                        *by_weight += hop.step * dot(&by_z[i], &z[number][key as usize]);
                        add(&mut before[key as usize], hop.step * weight, &by_z[i]);
                    }
                }
            }
            by_z = before;
        }
        if diffusion.initial != 0.0 {
            by_v.iter_mut().zip(&by_z).for_each(|(sum, row)| add(sum, diffusion.initial, row));
        }
        // Through softmax, mods and products.
        let mut by_q = vec![vec![0.0; self.spec.head_dim]; q_len];
        let mut by_k = vec![vec![0.0; self.spec.head_dim]; kv_len];
        let mut inputs = self.mods.no_gradients();
        for (i, row) in rows.iter().enumerate() {
            let by_weights = self.by_weights(i, row, &by_kept[i]);
            let terms = row.edges.iter().zip(&by_weights).filter(|&(_, &by_p)| by_p != 0.0);
            let mean: f64 = terms.map(|(&(_, p), by_p)| p * by_p).sum();
            for (&(key, p), by_p) in row.edges.iter().zip(&by_weights) {
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
        HeadGradients { q: by_q, k: by_k, v: by_v, inputs }
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

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Adds `factor` · `row`.
fn add(sum: &mut [f64], factor: f64, row: &[f64]) {
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
}

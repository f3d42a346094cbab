//! Hops without end where the mask is lower triangular: Z = α (I − (1 − α) A)⁻¹ V, row after row.
//!
//! Z_i (1 − (1 − α) a_ii) = α v_i + (1 − α) Σ_{j < i} a_ij Z_j, forward substitution (chain-and-causal attention, Fagnou et
//! al., EMNLP 2024, arXiv 2410.05565). Its gradient is the adjoint system, from the last row to the first.

use super::{Head, Row, dot};
use crate::pattern::Pattern;

/// Whether the queries of a head may attend to keys at or before themselves alone, point by point.
pub(super) fn is_lower_triangular(pattern: &Pattern, head: usize) -> bool {
    let later = |query: usize| query + 1..pattern.kv_len;
    (0..pattern.q_len).all(|query| later(query).all(|key| !pattern.allows(head, query, key)))
}

/// What the gradient of a limit is made of.
pub(super) struct LimitGradients {
    /// (I − (1 − α) A)⁻ᵀ G.
    pub adjoint: Vec<Vec<f64>>,
    /// By A, beside its edges.
    pub by_edges: Vec<Vec<f64>>,
    /// By alpha.
    pub by_alpha: f64,
}

impl Head<'_> {
    /// Row `i` of Z, from the rows before it.
    pub fn solve_row<'z>(&self, alpha: f64, i: usize, row: &Row, z: impl Fn(usize) -> &'z [f64]) -> Vec<f64> {
        let mut sums: Vec<f64> = self.v.row(i).iter().map(|&x| alpha * f64::from(x)).collect();
        let Some(factor) = self.term(1.0 - alpha) else { return sums };
        let mut own = 0.0;
        for &(key, p) in &row.edges {
            match key as usize {
                key if key == i => own = p,
                key => sums.iter_mut().zip(z(key)).for_each(|(sum, &x)| *sum += factor * p * x),
            }
        }
        sums.iter_mut().for_each(|sum| *sum /= 1.0 - factor * own);
        sums
    }

    /// Z.
    pub fn substitute(&self, alpha: f64, rows: &[Row]) -> Vec<Vec<f64>> {
        let mut z: Vec<Vec<f64>> = Vec::with_capacity(rows.len());
        for (i, row) in rows.iter().enumerate() {
            let solved = self.solve_row(alpha, i, row, |key| &z[key]);
            z.push(solved);
        }
        z
    }

    /// Back through the system, from dL / dZ.
    pub fn adjoint(&self, alpha: f64, rows: &[Row], by_z: Vec<Vec<f64>>) -> LimitGradients {
        let z = self.substitute(alpha, rows);
        let factor = self.term(1.0 - alpha);
        let mut adjoint = by_z;
        if let Some(factor) = factor {
            // What is left of a row when all rows behind it have been solved is its own, but for its diagonal.
            for (i, row) in rows.iter().enumerate().rev() {
                let (before, rest) = adjoint.split_at_mut(i);
                let own = row.edges.iter().find(|&&(key, _)| key as usize == i).map_or(0.0, |&(_, p)| p);
                rest[0].iter_mut().for_each(|x| *x /= 1.0 - factor * own);
                for &(key, p) in row.edges.iter().filter(|&&(key, _)| (key as usize) < i) {
                    before[key as usize].iter_mut().zip(&rest[0]).for_each(|(sum, x)| *sum += factor * p * x);
                }
            }
        }
        let mut by_alpha = 0.0;
        let mut by_edges = Vec::with_capacity(rows.len());
        for (i, (row, w)) in rows.iter().zip(&adjoint).enumerate() {
            let dots: Vec<f64> = row.edges.iter().map(|&(key, _)| dot(w, &z[key as usize])).collect();
            let of_hop: f64 = row.edges.iter().zip(&dots).map(|(&(_, p), dot)| p * dot).sum();
            let of_v: f64 = w.iter().zip(self.v.row(i)).map(|(w, &v)| w * f64::from(v)).sum();
            by_alpha += of_v - of_hop;
            by_edges.push(dots.into_iter().map(|dot| factor.map_or(0.0, |factor| factor * dot)).collect());
        }
        LimitGradients { adjoint, by_edges, by_alpha }
    }
}

//! How fast repeated hops mix: 1 − |λ2| of the pattern as a random walk.
//!
//! The walk goes from a query to each of its keys with the same probability. Its matrix P has row sums 1, so
//! the constant vector belongs to λ1 = 1; on the vectors of mean 0 (P applied, the mean taken off again) the
//! largest eigenvalue is λ2, and the norm of a vector under repeated steps shrinks by |λ2|.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

use super::{EdgeList, distinct_heads};
use crate::error::Bytes;
use crate::pattern::Pattern;

/// Edges that may be walked in all, over all heads and steps: some seconds.
const EDGE_STEPS: u64 = 4_000_000_000;
/// Steps between two estimates.
const WINDOW: usize = 32;
/// Steps after which an estimate is given as it is.
const STEPS: usize = 4096;
/// Relative change of the gap between two estimates at which they agree.
const TOLERANCE: f64 = 2e-3;

/// The spectral gap, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpectralGap {
    /// 1 − |λ2|, the least over all heads; `None` with the reason in `spectral_gap_note`.
    pub spectral_gap: Option<f64>,
    /// Why there is no gap, or how far the number may be trusted; empty where it has converged.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub spectral_gap_note: String,
}

impl SpectralGap {
    fn none(note: impl Into<String>) -> Self {
        Self { spectral_gap: None, spectral_gap_note: note.into() }
    }
}

/// Estimates the gap by power iteration. `nnz` and `empty_rows` are those of all heads; `memory_limit` in
/// bytes bounds the edge list of a head.
pub fn spectral_gap(pattern: &Pattern, empty_rows: u64, nnz: u64, memory_limit: u64) -> SpectralGap {
    let n = pattern.q_len;
    if n != pattern.kv_len {
        return SpectralGap::none("queries and keys are not the same tokens");
    }
    if n == 0 {
        return SpectralGap::none("there are no tokens");
    }
    if empty_rows > 0 {
        return SpectralGap::none(format!("{empty_rows} queries have no key, so the walk ends there"));
    }
    let heads = distinct_heads(pattern);
    let edges = nnz / pattern.heads as u64 * heads.len() as u64;
    let bytes = EdgeList::bytes(n, nnz / pattern.heads as u64);
    if bytes > memory_limit {
        return SpectralGap::none(format!("its edge list needs {}", Bytes(bytes)));
    }
    let steps = (EDGE_STEPS / edges.max(1)).min(STEPS as u64) as usize;
    if steps < 2 * WINDOW {
        return SpectralGap::none(format!("{edges} edges are too many to walk often enough"));
    }
    let each: Vec<(f64, bool)> = heads.map(|head| second(&EdgeList::build(pattern, head), steps)).collect();
    let largest = each.iter().fold(0.0_f64, |largest, &(modulus, _)| largest.max(modulus));
    let settled = each.iter().all(|&(_, settled)| settled);
    SpectralGap {
        spectral_gap: Some((1.0 - largest).clamp(0.0, 1.0)),
        spectral_gap_note: if settled { String::new() } else { format!("not settled after {steps} steps") },
    }
}

/// |λ2| of the walk, and whether estimates agree.
fn second(list: &EdgeList, steps: usize) -> (f64, bool) {
    let n = list.offsets.len() - 1;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut x: Vec<f64> = (0..n).map(|_| f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5).collect();
    center(&mut x);
    if normalise(&mut x) == 0.0 {
        return (0.0, true);
    }
    let (mut shrunk, mut before) = (0.0, f64::NAN);
    let mut y = vec![0.0; n];
    for step in 1..=steps {
        y.par_iter_mut().enumerate().with_min_len(256).for_each(|(query, y)| {
            let keys = list.row(query);
            *y = keys.iter().map(|&key| x[key as usize]).sum::<f64>() / keys.len() as f64;
        });
        center(&mut y);
        let norm = normalise(&mut y);
        // What is left of a vector that one step wipes out is rounding.
        if norm < 1e-13 {
            return (0.0, true);
        }
        shrunk += norm.ln();
        std::mem::swap(&mut x, &mut y);
        if step % WINDOW == 0 {
            let modulus = (shrunk / WINDOW as f64).exp();
            if ((modulus - before) / (1.0 - modulus).max(1e-9)).abs() < TOLERANCE {
                return (modulus, true);
            }
            (shrunk, before) = (0.0, modulus);
        }
    }
    (before, false)
}

/// Takes the mean off.
fn center(x: &mut [f64]) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    x.iter_mut().for_each(|x| *x -= mean);
}

/// Divides by the norm, and returns it.
fn normalise(x: &mut [f64]) -> f64 {
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        x.iter_mut().for_each(|x| *x /= norm);
    }
    norm
}

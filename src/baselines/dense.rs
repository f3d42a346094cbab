//! Full n × n attention with a mask through ndarray's matrix product: what one would write by hand.
//!
//! Heads run in parallel. Diffusion multiplies the n × n matrix A again in every hop.

use std::f64::consts::LOG2_E;

use ndarray::{Array2, Array3, Array4, ArrayView4, s};
use rayon::prelude::*;

use super::{Baseline, Prepared, Problem, head_classes, lanes};
use crate::analysis::KeyFinder;
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::spec::{Factors, PatternSpec};

/// The line in the table.
pub const BASELINE: Baseline = Baseline {
    name: "dense",
    about: "full n x n attention with a mask, matrix products by ndarray, heads in parallel",
    bytes,
    prepare,
};

/// Masks of the distinct heads, and per thread one matrix of scores and three of the width of V.
fn bytes(problem: &Problem<'_>) -> u64 {
    let Problem { pattern, spec, batch, threads, .. } = *problem;
    let points = (pattern.q_len as u64).saturating_mul(pattern.kv_len as u64);
    let running = threads.min(batch.saturating_mul(spec.heads)) as u64;
    let widths = 12 * pattern.q_len as u64 * spec.value_dim as u64;
    let scores = points.saturating_mul(4).saturating_add(widths).saturating_mul(running);
    points.saturating_mul(head_classes(pattern).0 as u64).saturating_add(scores)
}

fn prepare(problem: &Problem<'_>) -> Box<dyn Prepared> {
    let (classes, _) = head_classes(problem.pattern);
    let masks = (0..classes).into_par_iter().map(|head| mask(problem.pattern, head)).collect();
    Box::new(Dense {
        pattern: problem.pattern.clone(),
        spec: problem.spec.clone(),
        factors: problem.spec.diffusion.typical(),
        masks,
    })
}

struct Dense {
    pattern: Pattern,
    spec: PatternSpec,
    /// What a call gives for each head is made up: see [`Diffusion::typical`](crate::spec::Diffusion::typical).
    factors: Factors,
    /// `[q_len, kv_len]` of each distinct head.
    masks: Vec<Vec<bool>>,
}

fn mask(pattern: &Pattern, head: usize) -> Vec<bool> {
    let mut mask = vec![false; pattern.q_len * pattern.kv_len];
    let mut finder = KeyFinder::default();
    for (q, row) in mask.chunks_exact_mut(pattern.kv_len.max(1)).enumerate() {
        finder.each_word(pattern, head, q, |block, mut word| {
            while word != 0 {
                row[block as usize * 64 + word.trailing_zeros() as usize] = true;
                word &= word - 1;
            }
        });
    }
    mask
}

impl Prepared for Dense {
    fn run(&self, q: ArrayView4<'_, f32>, k: ArrayView4<'_, f32>, v: ArrayView4<'_, f32>) -> Result<Array4<f32>> {
        let (_, class) = head_classes(&self.pattern);
        let scale = (self.spec.scale * LOG2_E) as f32;
        let batch = q.dim().0;
        let heads = self.spec.heads;
        let mut out = Array3::zeros((batch * heads, self.pattern.q_len, self.spec.value_dim));
        let places: Vec<_> = out.outer_iter_mut().enumerate().collect();
        places.into_par_iter().for_each(|(place, mut out)| {
            let (b, h) = (place / heads, place % heads);
            let kv = self.spec.kv_head(h);
            let (q, k, v) = (q.slice(s![b, h, .., ..]), k.slice(s![b, kv, .., ..]), v.slice(s![b, kv, .., ..]));
            let mut a: Array2<f32> = q.dot(&k.t());
            if let Some(scores) = a.as_slice_mut() {
                lanes::masked_softmax(scores, &self.masks[class(h)], self.pattern.kv_len, scale);
            }
            let diffusion = &self.factors;
            let mut z = v.to_owned();
            if diffusion.initial != 1.0 {
                z *= diffusion.initial as f32;
            }
            for hop in &diffusion.hops {
                z = a.dot(&z);
                if hop.step != 1.0 {
                    z *= hop.step as f32;
                }
                if hop.restart != 0.0 {
                    z.scaled_add(hop.restart as f32, &v);
                }
            }
            out.assign(&z);
        });
        out.into_shape_with_order((batch, heads, self.pattern.q_len, self.spec.value_dim))
            .map_err(|error| Error::internal("baseline dense", error.to_string(), ""))
    }
}

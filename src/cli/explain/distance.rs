//! How far a kernel's result is from that of full attention, on random queries and keys.
//!
//! The relative Frobenius error ‖D − F‖ / ‖F‖ over some rows, where D is the diffused operator of one head and F the
//! softmax of all its scores. D is never written down: for V of independent numbers with mean 0 and variance 1, the mean
//! of |(D − F) V|² over columns is ‖D − F‖², and D V is what the kernel computes.

use rayon::prelude::*;
use serde::Serialize;

use crate::analysis;
use crate::cli::case_inputs::Inputs;
use crate::cli::inputs::InputTensors;
use crate::cli::table::{significant, thousands};
use crate::cli::tensors::Extents;
use crate::compiler::{self, Compiled, Options, TuningSource};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mask;
use crate::pattern;
use crate::spec::PatternSpec;

/// Useful operations of the head that may be spent on it.
const BUDGET: u64 = 30_000_000_000;
/// Shortest length that it is looked for at.
const SHORTEST: usize = 64;
/// Rows that are compared.
const ROWS: usize = 32;

/// A distance, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distance {
    /// ‖D − F‖ / ‖F‖ over the sampled rows of head 0.
    pub value: Option<f64>,
    /// The number of keys at which it was measured.
    pub n: usize,
    /// Rows that were compared.
    pub rows: usize,
    /// Why it was measured at another length, or not at all, and what was left out; empty otherwise.
    pub note: String,
}

impl Distance {
    /// For people.
    pub fn text(&self) -> String {
        let Some(value) = self.value else { return format!("none: {}", self.note) };
        let note = if self.note.is_empty() { String::new() } else { format!("; {}", self.note) };
        format!("{} (relative error of head 0 on random q and k, {} rows{note})", significant(value), self.rows)
    }
}

/// Measures the distance of head 0 at the lengths of `compiled`, or at shorter ones where that takes too long. `numbers`
/// are what its hops take from a call; without them they are made up.
///
/// # Errors
/// Those of the compiler and the kernel.
pub fn distance(
    spec: &PatternSpec,
    compiled: &Compiled,
    numbers: Option<&[f64]>,
    options: &Options,
    pool: &rayon::ThreadPool,
) -> Result<Distance> {
    let none = |note: &str| Distance { value: None, n: compiled.pattern.kv_len, rows: 0, note: note.into() };
    let (q_len, kv_len) = (compiled.pattern.q_len, compiled.pattern.kv_len);
    if q_len == 0 || kv_len == 0 {
        return Ok(none("there are no tokens"));
    }
    let mut notes = Vec::new();
    if !spec.mods.is_empty() {
        notes.push("without score mods".to_string());
    }
    let lone =
        PatternSpec { heads: 1, kv_heads: 1, dtype: Dtype::F32, inputs: Vec::new(), mods: Vec::new(), ..spec.clone() };
    let mut whole = compiled.pattern.clone();
    let mut pairs = compiled.mask.nnz(0);
    // Where the head takes too long, shorter ones are tried.
    while analysis::flops(pairs, &lone) > BUDGET {
        let half = whole.kv_len / 2;
        if q_len != kv_len || half < SHORTEST {
            return Ok(none("a head takes too long"));
        }
        let shorter = pattern::resolve(spec, half, half);
        match shorter.and_then(|shorter| Ok((mask::build(&shorter, options.memory_limit)?.nnz(0), shorter))) {
            Ok(shorter) => (pairs, whole) = shorter,
            Err(_) => return Ok(none("a head takes too long, and the pattern has no half of its length")),
        }
    }
    let lengths = (whole.q_len, whole.kv_len);
    if lengths != (q_len, kv_len) {
        notes.push(format!("at {} tokens, since longer ones take too long", thousands(lengths.1 as u64)));
    }
    let pattern = whole.first_head_alone();
    let extents = Extents { batch: 1, q_len: lengths.0, kv_len: lengths.1 };
    if Inputs::check_memory(&lone, extents, options.memory_limit).is_err() {
        return Ok(none("its tensors do not fit in memory"));
    }
    let options = Options { strategy: None, tuning: TuningSource::Nothing, ..options.clone() };
    let kernel = match compiler::compile_pattern(&lone, pattern, &options) {
        Ok(kernel) => kernel,
        // Whoever asks for an explanation has one without this number too.
        Err(error @ (Error::Memory { .. } | Error::Unsupported { .. })) => return Ok(none(&error.to_string())),
        Err(error) => return Err(error),
    };
    let mut inputs = Inputs::random(&lone, extents, 0)?;
    if let (Some(given), Some(numbers)) = (lone.diffusion.given(), numbers) {
        inputs.of_mods = InputTensors::of_one_head(&given, numbers);
    }
    let out = inputs.first(&kernel)?;
    let rows: Vec<usize> = match lengths.0 {
        few if few <= ROWS => (0..few).collect(),
        many => (0..ROWS).map(|i| (2 * i + 1) * many / (2 * ROWS)).collect(),
    };
    let tensors = &inputs.wide;
    let each: Vec<(f64, f64)> = pool.install(|| {
        let row = |&query: &usize| {
            let q: Vec<f32> = tensors.q.slice(ndarray::s![0, 0, query, ..]).to_vec();
            let scale = spec.scale as f32;
            let keys = tensors.k.slice(ndarray::s![0, 0, .., ..]);
            let score = |key: ndarray::ArrayView1<'_, f32>| key.iter().zip(&q).map(|(k, q)| k * q).sum::<f32>() * scale;
            let scores: Vec<f32> = keys.rows().into_iter().map(score).collect();
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f64> = scores.iter().map(|score| f64::from((score - most).exp())).collect();
            let sum: f64 = weights.iter().sum();
            let mut full = vec![0.0; spec.value_dim];
            for (weight, values) in weights.iter().zip(tensors.v.slice(ndarray::s![0, 0, .., ..]).rows()) {
                full.iter_mut().zip(values).for_each(|(full, &v)| *full += weight * f64::from(v));
            }
            let out = out.slice(ndarray::s![0, 0, query, ..]);
            let differences = full.iter().zip(out).map(|(full, &out)| full / sum - f64::from(out));
            let error = differences.map(|x| x * x).sum::<f64>() / spec.value_dim as f64;
            (error, weights.iter().map(|weight| (weight / sum).powi(2)).sum())
        };
        rows.par_iter().map(row).collect()
    });
    let (error, norm) = each.iter().fold((0.0, 0.0), |(error, norm), row| (error + row.0, norm + row.1));
    let value = (error / norm).sqrt();
    Ok(Distance { value: Some(value), n: lengths.1, rows: rows.len(), note: notes.join("; ") })
}

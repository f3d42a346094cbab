//! The `diffusion` key: four forms, one recurrence.

use super::{Diffusion, Fields, HopFactors, Source, Value};
use crate::error::{Result, Span};

/// Hops of a spec.
pub(super) const MAX_HOPS: usize = 1024;

impl Diffusion {
    /// Plain attention: one hop that keeps nothing of V.
    pub fn plain() -> Self {
        Self::restart(1, 0.0)
    }

    /// `Z_0 = V`, `Z_{k+1} = (1 - alpha) A Z_k + alpha V` (Feng et al., AAAI 2023, eq. 7).
    pub fn restart(hops: usize, alpha: f64) -> Self {
        Self { initial: 1.0, hops: vec![HopFactors { step: 1.0 - alpha, restart: alpha }; hops] }
    }

    /// `Σ θ_k A^k V`, by Horner's rule: `θ_0 V + A (θ_1 V + A (... + A θ_K V))`. Without coefficients, zero.
    pub fn polynomial(coefficients: &[f64]) -> Self {
        let Some((&last, rest)) = coefficients.split_last() else {
            return Self { initial: 0.0, hops: Vec::new() };
        };
        Self { initial: last, hops: rest.iter().rev().map(|&restart| HopFactors { step: 1.0, restart }).collect() }
    }

    /// The heat kernel `Σ_{k ≤ hops} e^{-t} t^k / k! · A^k V` with weights normalised to sum to 1.
    pub fn heat(t: f64, hops: usize) -> Self {
        // In logarithms, and relative to the largest: e^{-t} itself is 0 from t = 746.
        let mut logs = vec![0.0];
        for k in 1..=hops {
            logs.push(logs[k - 1] + (t / k as f64).ln());
        }
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logs.iter().map(|l| (l - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        Self::polynomial(&weights.iter().map(|w| w / sum).collect::<Vec<_>>())
    }
}

pub(super) fn read(source: &Source, at: Span, value: &Value) -> Result<Diffusion> {
    let all = ["hops", "alpha", "tolerance", "heat", "coefficients", "store"];
    let fields = Fields::new(source, "diffusion", at, value, &all)?;
    let form = ["coefficients", "heat", "tolerance"].into_iter().find(|form| fields.get(form).is_some());
    let allowed: &[&str] = match form {
        Some("coefficients") => &["coefficients", "store"],
        Some("heat") => &["heat", "hops", "store"],
        Some(_) => &["alpha", "tolerance", "store"],
        None => &["hops", "alpha", "store"],
    };
    for key in all.iter().filter(|key| !allowed.contains(key)) {
        if fields.get(key).is_some() {
            let message = format!("`{key}` does not go with `{}`", form.unwrap_or("hops"));
            let expected = "{hops, alpha}, {alpha, tolerance}, {heat, hops} or {coefficients}";
            return Err(source.error(fields.key_at(key), message, expected));
        }
    }
    if let Some(store) = fields.get("store")
        && store.choice(source, "store", &["f32", "bf16"])? == "bf16"
    {
        return Err(source.unsupported(store.at, "store: bf16", "`store: f32`"));
    }
    let hops = || fields.require("hops", "5")?.integer(source, "hops", 0, MAX_HOPS as u64).map(|x| x as usize);
    let alpha = |required: bool| match fields.get("alpha") {
        None if !required => Ok(0.0),
        _ => fields.require("alpha", "0.1")?.float(source, "alpha", 0.0, 1.0),
    };
    match form {
        Some("coefficients") => {
            let value = fields.require("coefficients", "[0.5, 0.5]")?;
            let items = value.list(source, "coefficients", "a list of numbers, such as [0.5, 0.3, 0.2]")?;
            if items.is_empty() || items.len() > MAX_HOPS + 1 {
                let message = format!("`coefficients` has {} numbers", items.len());
                return Err(source.error(value.at, message, format!("1 to {} of them", MAX_HOPS + 1)));
            }
            let read = |x: &Value| x.float(source, "coefficients", f64::NEG_INFINITY, f64::INFINITY);
            Ok(Diffusion::polynomial(&items.iter().map(read).collect::<Result<Vec<_>>>()?))
        }
        Some("heat") => {
            let t = fields.require("heat", "2.0")?.float(source, "heat", 0.0, 1e6)?;
            Ok(Diffusion::heat(t, hops()?))
        }
        Some(_) => {
            let value = fields.require("tolerance", "0.001")?;
            let tolerance = value.float(source, "tolerance", 0.0, 1.0)?;
            let alpha = alpha(true)?;
            // The smallest K with (1 - alpha)^K <= tolerance, by trying: K is at most 1024.
            match (0..=MAX_HOPS).find(|&k| (1.0 - alpha).powi(k as i32) <= tolerance) {
                Some(hops) => Ok(Diffusion::restart(hops, alpha)),
                None => {
                    let message = format!("alpha {alpha} does not reach tolerance {tolerance} within {MAX_HOPS} hops");
                    Err(source.error(value.at, message, "a larger `alpha` or a larger `tolerance`"))
                }
            }
        }
        None => Ok(Diffusion::restart(hops()?, alpha(false)?)),
    }
}

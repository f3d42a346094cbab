//! The `diffusion` key: four forms, one recurrence.

use super::keys::LARGEST_FACTOR;
use super::{Diffusion, Fields, HopFactors, Source, Value};
use crate::dtype::Dtype;
use crate::error::{Result, Span};

/// Most hops of a spec.
pub const MAX_HOPS: usize = 1024;

impl Diffusion {
    /// Plain attention: one hop that keeps nothing of V.
    pub fn plain() -> Self {
        Self::restart(1, 0.0)
    }

    /// Whether the result is A·V up to a factor: one hop, and nothing kept of V. Everything else needs as many
    /// queries as keys.
    pub fn is_plain(&self) -> bool {
        matches!(self.hops.as_slice(), [hop] if hop.restart == 0.0)
    }

    /// `Z_0 = V`, `Z_{k+1} = (1 - alpha) A Z_k + alpha V` (Feng et al., AAAI 2023, eq. 7).
    pub fn restart(hops: usize, alpha: f64) -> Self {
        let hops = vec![HopFactors { step: 1.0 - alpha, restart: alpha }; hops];
        Self { initial: 1.0, hops, store: Dtype::F32 }
    }

    /// `Σ θ_k A^k V`, by Horner's rule: `θ_0 V + A (θ_1 V + A (... + A θ_K V))`. Without coefficients, zero.
    pub fn polynomial(coefficients: &[f64]) -> Self {
        let Some((&last, rest)) = coefficients.split_last() else {
            return Self { initial: 0.0, hops: Vec::new(), store: Dtype::F32 };
        };
        let hops = rest.iter().rev().map(|&restart| HopFactors { step: 1.0, restart }).collect();
        Self { initial: last, hops, store: Dtype::F32 }
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
    let store = match fields.get("store") {
        Some(store) if store.choice(source, "store", &["f32", "bf16"])? == "bf16" => Dtype::Bf16,
        _ => Dtype::F32,
    };
    Ok(Diffusion { store, ..recurrence(source, &fields, form)? })
}

/// The form that the fields have, as a recurrence.
fn recurrence(source: &Source, fields: &Fields<'_>, form: Option<&str>) -> Result<Diffusion> {
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
            let read = |x: &Value| x.float(source, "coefficients", -LARGEST_FACTOR, LARGEST_FACTOR);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{PatternSpec, parse, parse_with};

    fn spec(diffusion: &str) -> PatternSpec {
        let text = format!("name: x\nhead_dim: 4\npattern: full\ndiffusion: {diffusion}\n");
        parse(&text, "<text>").unwrap_or_else(|error| panic!("{error}"))
    }

    /// The coefficients of the recurrence as a polynomial in A, by running it.
    fn polynomial(diffusion: &Diffusion) -> Vec<f64> {
        let mut z = vec![diffusion.initial];
        for hop in &diffusion.hops {
            z = [hop.restart].into_iter().chain(z.iter().map(|x| x * hop.step)).collect();
        }
        z
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-15), "{found:?} {expected:?}");
    }

    #[test]
    fn every_form_is_its_formula() {
        assert_near(&polynomial(&spec("{hops: 2, alpha: 0.25}").diffusion), &[0.25, 0.1875, 0.5625]);
        assert_near(&polynomial(&spec("{hops: 3}").diffusion), &[0.0, 0.0, 0.0, 1.0]);
        assert_near(&polynomial(&spec("{coefficients: [1, -2, 0.5]}").diffusion), &[1.0, -2.0, 0.5]);
        assert_near(&polynomial(&spec("{coefficients: [3]}").diffusion), &[3.0]);
        assert_near(&polynomial(&spec("{heat: 2, hops: 2}").diffusion), &[0.2, 0.4, 0.4]);
        assert_near(&polynomial(&spec("{heat: 0, hops: 2}").diffusion), &[1.0, 0.0, 0.0]);
        let late = polynomial(&spec("{heat: 5000, hops: 1000}").diffusion);
        assert!((late.iter().sum::<f64>() - 1.0).abs() < 1e-12 && late.iter().all(|w| w.is_finite()));
    }

    #[test]
    fn tolerance_is_the_smallest_sufficient_number_of_hops() {
        for (alpha, tolerance, hops) in [(0.5, 0.25, 2), (0.5, 0.24, 3), (1.0, 0.0, 1), (0.3, 1.0, 0), (0.1, 0.001, 66)]
        {
            let found = spec(&format!("{{alpha: {alpha}, tolerance: {tolerance}}}")).diffusion;
            assert_eq!(found, Diffusion::restart(hops, alpha), "{alpha} {tolerance}");
        }
    }

    #[test]
    fn specs_with_diffusion_print_back_and_can_be_overridden() {
        let forms = [
            "{hops: 0, alpha: 0.5}",
            "{hops: 7, alpha: 1, store: bf16}",
            "{heat: 1.7, hops: 4}",
            "{coefficients: [0.1, -1e-9, 3], store: bf16}",
        ];
        for form in forms {
            let spec = spec(form);
            let again = parse(&spec.print(), "<printed>").unwrap_or_else(|error| panic!("{error}"));
            assert!(spec.same(&again), "{}", spec.print());
        }
        let text = "name: x\nhead_dim: 4\npattern: {any: [causal, {window: {radius: 3}}]}\n";
        let set = |pairs: &[(&str, &str)]| {
            let sets: Vec<_> = pairs.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
            parse_with(text, "<text>", &sets).unwrap_or_else(|error| panic!("{error}"))
        };
        assert_eq!(set(&[("diffusion.hops", "3")]).diffusion, Diffusion::restart(3, 0.0));
        assert_eq!(set(&[("heads", "4"), ("heads", "5")]).heads, 5);
        let overridden = set(&[("pattern.any.1.window.radius", "max(2, n/4)"), ("pattern.any.0", "full")]);
        assert!(
            overridden.print().contains("- full\n    - {window: {radius: \"max(2, n/4)\"}}"),
            "{}",
            overridden.print()
        );
    }
}

//! The `diffusion` key: what is applied to V, by factors that are known or come with the call.

use super::keys::LARGEST_FACTOR;
use super::{
    Alpha, Data, Diffusion, DiffusionForm, Factors, Fields, Given, GivenRange, HeadInput, HopFactors, PatternSpec,
    Source, Value,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result, Span};

/// Most hops of a spec.
pub const MAX_HOPS: usize = 1024;
/// The alpha of a call, where one is made up.
pub const TYPICAL_ALPHA: f64 = 0.1;
/// What is left of V where hops without end are cut off.
pub const DEFAULT_TOLERANCE: f64 = 1e-6;

impl Factors {
    /// `Z_0 = V`, `Z_{k+1} = (1 - alpha) A Z_k + alpha V` (Feng et al., AAAI 2023, eq. 7).
    pub fn restart(hops: usize, alpha: f64) -> Self {
        Self { initial: 1.0, hops: vec![HopFactors { step: 1.0 - alpha, restart: alpha }; hops] }
    }

    /// `Σ θ_k A^k V`, by Horner's rule: `θ_0 V + A (θ_1 V + A (... + A θ_K V))`. Without coefficients, zero.
    pub fn polynomial(coefficients: &[f64]) -> Self {
        let Some((&last, rest)) = coefficients.split_last() else {
            return Self { initial: 0.0, hops: Vec::new() };
        };
        let hops = rest.iter().rev().map(|&restart| HopFactors { step: 1.0, restart }).collect();
        Self { initial: last, hops }
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

    /// The smallest number of hops after which what is left of V is at most `tolerance`; `None` beyond [`MAX_HOPS`].
    pub fn hops_until(alpha: f64, tolerance: f64) -> Option<usize> {
        // By trying: there are at most 1024.
        (0..=MAX_HOPS).find(|&k| (1.0 - alpha).powi(k as i32) <= tolerance)
    }
}

impl From<Factors> for Diffusion {
    fn from(factors: Factors) -> Self {
        Self { form: DiffusionForm::Fixed(factors), store: Dtype::F32 }
    }
}

impl Diffusion {
    /// Plain attention: one hop that keeps nothing of V.
    pub fn plain() -> Self {
        Self::restart(1, 0.0)
    }

    /// [`Factors::restart`].
    pub fn restart(hops: usize, alpha: f64) -> Self {
        Factors::restart(hops, alpha).into()
    }

    /// [`Factors::polynomial`].
    pub fn polynomial(coefficients: &[f64]) -> Self {
        Factors::polynomial(coefficients).into()
    }

    /// Whether the result is A·V up to a factor: one hop, and nothing kept of V. Everything else needs as many
    /// queries as keys.
    pub fn is_plain(&self) -> bool {
        self.fixed().is_some_and(|factors| matches!(factors.hops.as_slice(), [hop] if hop.restart == 0.0))
    }

    /// The factors, where they are known without a call.
    pub const fn fixed(&self) -> Option<&Factors> {
        match &self.form {
            DiffusionForm::Fixed(factors) => Some(factors),
            DiffusionForm::Restart { .. } | DiffusionForm::Polynomial { .. } | DiffusionForm::Limit { .. } => None,
        }
    }

    /// Whether its hops have no end.
    pub const fn is_endless(&self) -> bool {
        matches!(self.form, DiffusionForm::Limit { .. })
    }

    /// Products with A that a call takes; of hops without end, what costs as much as one.
    pub const fn hops(&self) -> usize {
        match &self.form {
            DiffusionForm::Fixed(factors) => factors.hops.len(),
            DiffusionForm::Restart { hops, .. } | DiffusionForm::Polynomial { hops, .. } => *hops,
            DiffusionForm::Limit { .. } => 1,
        }
    }

    /// The alpha of hops without end, of a head for which a call gives `numbers`.
    pub fn alpha_of_limit(&self, numbers: &[f64]) -> Option<f64> {
        match &self.form {
            DiffusionForm::Limit { alpha: Alpha::Fixed(alpha), .. } => Some(*alpha),
            DiffusionForm::Limit { alpha: Alpha::Input(_), .. } => numbers.first().copied(),
            DiffusionForm::Fixed(_) | DiffusionForm::Restart { .. } | DiffusionForm::Polynomial { .. } => None,
        }
    }

    /// The factors of a head for which a call gives `numbers`. Hops without end are as many as the tolerance asks for.
    pub fn of_head(&self, numbers: &[f64]) -> Factors {
        let limit = |alpha: f64, tolerance: f64| {
            Factors::restart(Factors::hops_until(alpha, tolerance).unwrap_or(MAX_HOPS), alpha)
        };
        match &self.form {
            DiffusionForm::Fixed(factors) => factors.clone(),
            DiffusionForm::Restart { hops, .. } => Factors::restart(*hops, numbers.first().copied().unwrap_or(0.0)),
            DiffusionForm::Polynomial { .. } => Factors::polynomial(numbers),
            DiffusionForm::Limit { alpha: Alpha::Fixed(alpha), tolerance } => limit(*alpha, *tolerance),
            DiffusionForm::Limit { alpha: Alpha::Input(_), tolerance } => {
                limit(numbers.first().copied().unwrap_or(1.0), *tolerance)
            }
        }
    }

    /// The factors, or such as a call might give where they come with it: alpha [`TYPICAL_ALPHA`], equal coefficients.
    pub fn typical(&self) -> Factors {
        match &self.form {
            DiffusionForm::Polynomial { hops, .. } => self.of_head(&vec![1.0 / (hops + 1) as f64; hops + 1]),
            _ => self.of_head(&[TYPICAL_ALPHA]),
        }
    }

    /// What a call gives for each head.
    pub fn given(&self) -> Option<Given> {
        let given = |input: &HeadInput, columns, range| Some(Given { input: input.clone(), columns, range });
        match &self.form {
            DiffusionForm::Restart { alpha, .. } => given(alpha, 1, GivenRange::Share),
            DiffusionForm::Polynomial { coefficients, hops } => given(coefficients, hops + 1, GivenRange::Any),
            DiffusionForm::Limit { alpha: Alpha::Input(alpha), .. } => given(alpha, 1, GivenRange::Positive),
            DiffusionForm::Fixed(_) | DiffusionForm::Limit { alpha: Alpha::Fixed(_), .. } => None,
        }
    }
}

impl PatternSpec {
    /// [`Diffusion::of_head`], where hops without end are cut off: for heads whose limit is no forward substitution.
    ///
    /// # Errors
    /// [`Error::Spec`] or, for an alpha of the call, [`Error::Value`], where [`MAX_HOPS`] hops do not reach the tolerance.
    pub fn factors_of_head(&self, head: usize, numbers: &[f64]) -> Result<Factors> {
        let DiffusionForm::Limit { tolerance, .. } = self.diffusion.form else {
            return Ok(self.diffusion.of_head(numbers));
        };
        match self.diffusion.alpha_of_limit(numbers) {
            Some(alpha) if Factors::hops_until(alpha, tolerance).is_none() => {
                let message = format!(
                    "alpha {} of head {head}, whose queries attend to later keys too, does not reach tolerance \
                     {tolerance} within {MAX_HOPS} hops",
                    alpha as f32
                );
                let expected = "a larger `alpha` or a larger `tolerance`";
                Err(match self.diffusion.given() {
                    Some(given) => {
                        Error::Value { tensor: given.tensor(), message: format!("{message}; expected {expected}") }
                    }
                    None => self.source.error(self.diffusion_at, message, expected),
                })
            }
            _ => Ok(self.diffusion.of_head(numbers)),
        }
    }
}

impl GivenRange {
    /// Every range.
    pub const ALL: [Self; 3] = [Self::Any, Self::Share, Self::Positive];

    /// Its name in text forms.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Share => "share",
            Self::Positive => "positive",
        }
    }
}

impl Given {
    /// The shapes that the tensor may have.
    pub fn shapes(&self, heads: usize) -> Vec<Vec<usize>> {
        match self.range {
            GivenRange::Any => vec![vec![heads, self.columns]],
            GivenRange::Share | GivenRange::Positive if heads == 1 => vec![vec![1]],
            GivenRange::Share | GivenRange::Positive => vec![vec![heads], vec![1]],
        }
    }

    /// Refuses a number that the range does not hold.
    ///
    /// # Errors
    /// [`Error::Value`] that names the input and the head.
    pub fn check(&self, numbers: &[f32]) -> Result<()> {
        let (serves, expected): (fn(f32) -> bool, _) = match self.range {
            GivenRange::Any => (|x| x.is_finite(), "a finite number"),
            GivenRange::Share => (|x| (0.0..=1.0).contains(&x), "0 to 1"),
            GivenRange::Positive => (|x| x > 0.0 && x <= 1.0, "above 0, at most 1"),
        };
        let Some(at) = numbers.iter().position(|&x| !serves(x)) else { return Ok(()) };
        let column = if self.columns > 1 { format!(", hop {}", at % self.columns) } else { String::new() };
        let (x, head) = (numbers[at], at / self.columns);
        Err(Error::Value {
            tensor: self.tensor(),
            message: format!("it is {x} for head {head}{column}; expected {expected}"),
        })
    }

    /// How messages call it.
    pub fn tensor(&self) -> String {
        match self.input.at.line {
            0 => format!("input `{}`", self.input.name),
            line => format!("input `{}` (line {line} of the spec)", self.input.name),
        }
    }
}

/// Reads `diffusion`: the form, and the pattern of each hop where hops are a list.
pub(super) fn read<'v>(source: &'v Source, at: Span, value: &'v Value) -> Result<(Diffusion, Vec<Option<&'v Value>>)> {
    let all = ["hops", "alpha", "tolerance", "heat", "coefficients", "store"];
    let fields = Fields::new(source, "diffusion", at, value, &all)?;
    let endless = matches!(fields.get("hops"), Some(hops) if hops.text(source, "hops").is_ok_and(|text| text == "all"));
    let form = ["coefficients", "heat", "tolerance"].into_iter().find(|form| fields.get(form).is_some());
    let given = fields.get("coefficients").is_some_and(|value| matches!(value.data, Data::Map(_)));
    let allowed: &[&str] = match form {
        Some("coefficients") if given => &["coefficients", "hops", "store"],
        Some("coefficients") => &["coefficients", "store"],
        Some("heat") => &["heat", "hops", "store"],
        Some("tolerance") if endless => &["hops", "alpha", "tolerance", "store"],
        Some(_) => &["alpha", "tolerance", "store"],
        None => &["hops", "alpha", "store"],
    };
    for key in all.iter().filter(|key| !allowed.contains(key)) {
        if fields.get(key).is_some() {
            let message = format!("`{key}` does not go with `{}`", form.unwrap_or("hops"));
            let expected = "{hops, alpha}, {alpha, tolerance}, {hops: all, alpha, tolerance}, {heat, hops}, \
                            {coefficients} or {coefficients: {input}, hops}";
            return Err(source.error(fields.key_at(key), message, expected));
        }
    }
    let store = match fields.get("store") {
        Some(store) if store.choice(source, "store", &["f32", "bf16"])? == "bf16" => Dtype::Bf16,
        _ => Dtype::F32,
    };
    let (form, patterns) = match (form, fields.get("hops")) {
        (None | Some("tolerance"), Some(_)) if endless => (limit(source, &fields)?, Vec::new()),
        (None, Some(Value { data: Data::List(items), at })) => {
            let patterns = patterns(source, *at, items)?;
            (restart(source, &fields, patterns.len())?, patterns)
        }
        (None, _) => (restart(source, &fields, count(source, &fields)?)?, Vec::new()),
        (Some(form), _) => (read_form(source, &fields, form)?, Vec::new()),
    };
    Ok((Diffusion { form, store }, patterns))
}

fn count(source: &Source, fields: &Fields<'_>) -> Result<usize> {
    Ok(fields.require("hops", "5")?.integer(source, "hops", 0, MAX_HOPS as u64)? as usize)
}

/// The pattern of each of a list of hops; `{}` is the root's.
fn patterns<'v>(source: &'v Source, at: Span, items: &'v [Value]) -> Result<Vec<Option<&'v Value>>> {
    if items.is_empty() || items.len() > MAX_HOPS {
        let expected = format!("1 to {MAX_HOPS} of them; without hops write `hops: 0`");
        return Err(source.error(at, format!("`hops` lists {} hops", items.len()), expected));
    }
    let pattern = |item: &'v Value| Ok(Fields::new(source, "a hop", item.at, item, &["pattern"])?.get("pattern"));
    items.iter().map(pattern).collect()
}

/// `{input: NAME}`, if the value is a mapping.
fn input(source: &Source, name: &str, value: &Value) -> Result<Option<HeadInput>> {
    if !matches!(value.data, Data::Map(_)) {
        return Ok(None);
    }
    let input = Fields::new(source, name, value.at, value, &["input"])?.require("input", "a")?;
    let called = input.text(source, "input")?;
    if called.is_empty() {
        return Err(source.error(input.at, "an input without a name", format!("`{name}: {{input: a}}`")));
    }
    Ok(Some(HeadInput { name: called.to_owned(), at: input.at }))
}

/// Refuses an input of the diffusion that is called as one of the score mods'.
pub(super) fn check_name<'n>(
    source: &Source,
    diffusion: &Diffusion,
    mut declared: impl Iterator<Item = &'n str>,
) -> Result<()> {
    let Some(Given { input, .. }) = diffusion.given() else { return Ok(()) };
    if !declared.any(|name| name == input.name) {
        return Ok(());
    }
    let message = format!("`{}` is the name of one of `inputs`, which score mods read", input.name);
    Err(source.error(input.at, message, "another name; what hops read is not declared"))
}

fn restart(source: &Source, fields: &Fields<'_>, hops: usize) -> Result<DiffusionForm> {
    let Some(value) = fields.get("alpha") else { return Ok(DiffusionForm::Fixed(Factors::restart(hops, 0.0))) };
    Ok(match input(source, "alpha", value)? {
        Some(alpha) => DiffusionForm::Restart { hops, alpha },
        None => DiffusionForm::Fixed(Factors::restart(hops, value.float(source, "alpha", 0.0, 1.0)?)),
    })
}

fn limit(source: &Source, fields: &Fields<'_>) -> Result<DiffusionForm> {
    let value = fields.require("alpha", "0.1")?;
    let alpha = match input(source, "alpha", value)? {
        Some(alpha) => Alpha::Input(alpha),
        None => match value.float(source, "alpha", 0.0, 1.0)? {
            0.0 => {
                let message = "hops without end need `alpha` above 0: with 0 nothing is left of V";
                return Err(source.error(value.at, message, "a number above 0, at most 1"));
            }
            alpha => Alpha::Fixed(alpha),
        },
    };
    let tolerance = match fields.get("tolerance") {
        None => DEFAULT_TOLERANCE,
        Some(value) => match value.float(source, "tolerance", 0.0, 1.0)? {
            0.0 => return Err(source.error(value.at, "`tolerance` cannot be 0", "a number above 0, such as 1e-6")),
            tolerance => tolerance,
        },
    };
    Ok(DiffusionForm::Limit { alpha, tolerance })
}

/// The form that has one of the keys `coefficients`, `heat` and `tolerance`.
fn read_form(source: &Source, fields: &Fields<'_>, form: &str) -> Result<DiffusionForm> {
    Ok(match form {
        "coefficients" => {
            let value = fields.require("coefficients", "[0.5, 0.5]")?;
            if let Some(coefficients) = input(source, "coefficients", value)? {
                return Ok(DiffusionForm::Polynomial { hops: count(source, fields)?, coefficients });
            }
            let items = value.list(source, "coefficients", "a list of numbers, such as [0.5, 0.3, 0.2]")?;
            if items.is_empty() || items.len() > MAX_HOPS + 1 {
                let message = format!("`coefficients` has {} numbers", items.len());
                return Err(source.error(value.at, message, format!("1 to {} of them", MAX_HOPS + 1)));
            }
            let read = |x: &Value| x.float(source, "coefficients", -LARGEST_FACTOR, LARGEST_FACTOR);
            let coefficients = items.iter().map(read).collect::<Result<Vec<_>>>()?;
            DiffusionForm::Fixed(Factors::polynomial(&coefficients))
        }
        "heat" => {
            let t = fields.require("heat", "2.0")?.float(source, "heat", 0.0, 1e6)?;
            DiffusionForm::Fixed(Factors::heat(t, count(source, fields)?))
        }
        _ => {
            let value = fields.require("tolerance", "0.001")?;
            let tolerance = value.float(source, "tolerance", 0.0, 1.0)?;
            let given = fields.require("alpha", "0.1")?;
            if input(source, "alpha", given)?.is_some() {
                let message = "how many hops an `alpha` of the call needs is not known before the call";
                return Err(source.error(given.at, message, "`hops: all` beside it, or a number"));
            }
            let alpha = given.float(source, "alpha", 0.0, 1.0)?;
            match Factors::hops_until(alpha, tolerance) {
                Some(hops) => DiffusionForm::Fixed(Factors::restart(hops, alpha)),
                None => {
                    let message = format!("alpha {alpha} does not reach tolerance {tolerance} within {MAX_HOPS} hops");
                    return Err(source.error(value.at, message, "a larger `alpha` or a larger `tolerance`"));
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{parse, parse_with};

    fn spec(diffusion: &str) -> PatternSpec {
        let text = format!("name: x\nhead_dim: 4\npattern: full\ndiffusion: {diffusion}\n");
        parse(&text, "<text>").unwrap_or_else(|error| panic!("{error}"))
    }

    /// The coefficients of the recurrence as a polynomial in A, by running it.
    fn polynomial(diffusion: &Diffusion) -> Vec<f64> {
        let diffusion = diffusion.fixed().expect("no input");
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
            "{hops: 3, alpha: {input: a}}",
            "{hops: 0, alpha: {input: \"a b\"}, store: bf16}",
            "{coefficients: {input: theta}, hops: 4}",
            "{hops: all, alpha: 0.1}",
            "{hops: all, alpha: {input: a}, tolerance: 1e-3, store: bf16}",
            "{hops: [{}, {pattern: causal}], alpha: 0.25}",
            "{hops: [{pattern: {any: [causal, {not: {sink: 2}}]}}, {}, {pattern: {window: {radius: \"n/4\"}}}], alpha: {input: a}}",
            "{hops: [{pattern: {per_head: [{heads: [0], pattern: full}]}}]}",
        ];
        for form in forms {
            let spec = spec(form);
            let again = parse(&spec.print(), "<printed>").unwrap_or_else(|error| panic!("{error}"));
            assert!(spec.same(&again), "{}", spec.print());
        }
        // A list of hops that are all the root's is a number of hops.
        assert!(spec("{hops: [{}, {}], alpha: 0.5}").same(&spec("{hops: 2, alpha: 0.5}")));
        assert!(!spec("{hops: [{pattern: causal}, {}]}").same(&spec("{hops: [{}, {pattern: causal}]}")));
        assert!(!spec("{hops: 2, alpha: {input: a}}").same(&spec("{hops: 2, alpha: {input: b}}")));
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

    /// Message, place and expectation of a refused form.
    fn refused(diffusion: &str, sets: &[(&str, &str)]) -> String {
        let text = format!(
            "name: x\nhead_dim: 4\ninputs: {{rel: {{shape: [n]}}}}\npattern: full\n\
             score: {{mods: [{{bias: {{input: rel, index: [k]}}}}]}}\ndiffusion: {diffusion}\n"
        );
        let sets: Vec<_> = sets.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
        match parse_with(&text, "<text>", &sets) {
            Err(error) => error.to_string(),
            Ok(spec) => panic!("{diffusion} was read: {}", spec.print()),
        }
    }

    #[test]
    fn forms_that_mean_nothing_are_refused_at_their_place() {
        let list = |count: usize| format!("{{hops: [{}]}}", vec!["{}"; count].join(", "));
        for (diffusion, message, expected) in [
            ("{hops: 2, alpha: 1.5}", "`alpha` cannot be", "a number from 0 to 1"),
            ("{hops: 2, alpha: .nan}", "`alpha` cannot be", "a number from 0 to 1"),
            ("{hops: 2, alpha: .inf}", "`alpha` cannot be", "a number from 0 to 1"),
            ("{hops: all, alpha: 0}", "hops without end need `alpha` above 0", "above 0, at most 1"),
            ("{hops: all}", "`alpha`", "0.1"),
            ("{hops: all, alpha: 0.1, tolerance: 0}", "`tolerance` cannot be 0", "such as 1e-6"),
            (&list(0), "`hops` lists 0 hops", "1 to 1024 of them"),
            (&list(10_000), "`hops` lists 10000 hops", "1 to 1024 of them"),
            ("{hops: 10000}", "`hops` cannot be", "1024"),
            ("{hops: [{patern: causal}]}", "patern", "pattern"),
            ("{hops: [causal]}", "", ""),
            ("{hops: [{pattern: {wndow: 3}}, {}], heat: 2}", "", ""),
            ("{alpha: {input: a}, tolerance: 1e-3}", "an `alpha` of the call", "`hops: all` beside it"),
            ("{hops: 3, alpha: {input: a}, tolerance: 1e-3}", "`hops` does not go with `tolerance`", "{hops: all"),
            ("{hops: 3, alpha: {}}", "input", "a"),
            ("{hops: 3, alpha: {inpt: a}}", "inpt", "input"),
            ("{hops: 3, alpha: {input: \"\"}}", "an input without a name", "{input: a}"),
            ("{hops: 3, alpha: {input: rel}}", "`rel` is the name of one of `inputs`", "another name"),
            ("{coefficients: {input: rel}, hops: 2}", "`rel` is the name of one of `inputs`", "another name"),
            ("{coefficients: {input: theta}}", "hops", "5"),
            ("{coefficients: {input: theta}, hops: 2, alpha: 0.1}", "`alpha` does not go with `coefficients`", "hops"),
            ("{coefficients: [0.5, 0.5], hops: 2}", "`hops` does not go with `coefficients`", "{input}"),
            ("{coefficients: {input: theta}, hops: all}", "`hops` cannot be", "1024"),
        ] {
            let error = refused(diffusion, &[]);
            assert!(error.contains("<text>:6:"), "{diffusion}: {error}");
            assert!(error.contains(message) && error.contains(expected), "{diffusion}: {error}");
        }
    }

    #[test]
    fn an_override_that_does_not_go_with_the_form_is_refused() {
        let hops = [("diffusion.hops", "3")];
        for (diffusion, with) in [
            ("{coefficients: [0.5, 0.5]}", "coefficients"),
            ("{hops: all, alpha: 0.1, tolerance: 1e-4}", "tolerance"),
            ("{alpha: 0.1, tolerance: 1e-4}", "tolerance"),
        ] {
            let error = refused(diffusion, &hops);
            assert!(error.contains(&format!("`hops` does not go with `{with}`")), "{error}");
        }
        let error = refused("{hops: 3, alpha: 0}", &[("diffusion.hops", "all")]);
        assert!(error.contains("hops without end need `alpha` above 0"), "{error}");
        // Where it goes, it replaces lists too.
        let text = "name: x\nhead_dim: 4\npattern: full\ndiffusion: {hops: [{pattern: causal}], alpha: {input: a}}\n";
        let spec = parse_with(text, "<text>", &[("diffusion.hops".into(), "3".into())]).unwrap();
        assert!(spec.hop_patterns.is_empty() && spec.diffusion.hops() == 3 && spec.diffusion.given().is_some());
    }
}

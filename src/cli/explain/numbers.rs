//! What hops take from a call, for `explain`: `--alpha X|FILE.npy`, `--theta FILE.npy`.

use std::path::Path;

use ndarray::{ArrayD, IxDyn};

use crate::cli::inputs::check_of_hops;
use crate::error::{Error, Result};
use crate::npy;
use crate::spec::{GivenRange, PatternSpec};

/// The numbers of head 0; `None` where neither is given.
///
/// # Errors
/// [`Error::Unsupported`] where the spec's hops take no such numbers, [`Error::Input`] and [`Error::Spec`] for files that do
/// not fit, [`Error::Value`] for numbers that they cannot take.
pub fn of_head_0(spec: &PatternSpec, alpha: Option<&str>, theta: Option<&Path>) -> Result<Option<Vec<f64>>> {
    let (option, of_alpha) = match (alpha, theta) {
        (None, None) => return Ok(None),
        (Some(_), _) => ("--alpha", true),
        (None, Some(_)) => ("--theta", false),
    };
    let given = spec.diffusion.given().filter(|given| (given.range != GivenRange::Any) == of_alpha);
    let Some(given) = given else {
        let form = if of_alpha { "alpha: {input: a}" } else { "coefficients: {input: theta}" };
        let what = format!("{option} for `{}`, whose hops take no such numbers from a call", spec.name);
        return Err(Error::unsupported(what, format!("it goes with `diffusion: {{{form}, ...}}`")));
    };
    let path = match alpha {
        Some(text) => match text.parse::<f32>() {
            Ok(number) => {
                given.check(&[number])?;
                return Ok(Some(vec![f64::from(number)]));
            }
            Err(_) => Path::new(text),
        },
        None => theta.unwrap_or(Path::new("")),
    };
    check_of_hops(spec, &given, path)?;
    let numbers: ArrayD<f32> = npy::read::<f32, IxDyn>(path)?;
    let numbers: Vec<f32> = numbers.iter().copied().collect();
    given.check(&numbers)?;
    Ok(Some(numbers.iter().take(given.columns).map(|&x| f64::from(x)).collect()))
}

//! Which recipe's nest a program gets.
//!
//! In: a program after the passes over its operations, what the caller insists on, a cost model. Out: the nest of the
//! wished recipe, else of the legal one that the model finds fastest, with a sentence on each.

use super::Model;
use crate::cost::Forecast;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::passes::{self, Strategy};
use crate::program::{Body, Program};

/// What is said of a strategy that was wished.
pub const ASKED_FOR: &str = "asked for";

/// A nest, and why it is the one.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The recipe.
    pub strategy: Strategy,
    /// Its nest.
    pub body: Body,
    /// A sentence on every recipe.
    pub reasons: Vec<String>,
    /// What the cost model says of it.
    pub forecast: Forecast,
}

/// Chooses the nest of a program. `store` is how P is stored where the nest keeps it, if not as the spec says.
///
/// # Errors
/// [`Error::Unsupported`] with the reason where the wished strategy is not legal.
pub fn choose(
    program: &Program,
    without: &[String],
    wish: Option<Strategy>,
    store: Option<Dtype>,
    model: &Model,
) -> Result<Chosen> {
    let mut candidates = passes::candidates(program, without, wish, store);
    let forecast = |body: &Body| model.forecast(body);
    let at = match wish {
        Some(wish) => candidates.iter().position(|candidate| candidate.strategy == wish && candidate.nest.is_ok()),
        None => {
            let legal = candidates.iter().enumerate().filter_map(|(at, candidate)| {
                candidate.nest.as_ref().ok().map(|(body, _)| (at, forecast(body).seconds))
            });
            legal.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
        }
    };
    let mut reasons: Vec<String> = candidates
        .iter()
        .map(|candidate| match &candidate.nest {
            Ok((body, why)) => {
                let words = model.words(body).map_or(String::new(), |words| format!("; {words}"));
                format!("{}: legal, {why}{words}", candidate.strategy)
            }
            Err(why) => format!("{}: no, {why}", candidate.strategy),
        })
        .collect();
    let Some(at) = at else {
        let wish = wish.unwrap_or_default();
        let why = candidates.iter().find(|candidate| candidate.strategy == wish);
        let why = why.and_then(|candidate| candidate.nest.as_ref().err()).cloned().unwrap_or_default();
        let legal = candidates.iter().filter(|candidate| candidate.nest.is_ok());
        let others: Vec<String> = legal.map(|candidate| candidate.strategy.to_string()).collect();
        let others = format!("{wish}: no, {why}; legal here: {}", others.join(", "));
        return Err(Error::unsupported(format!("strategy {wish}"), others));
    };
    let candidate = candidates.swap_remove(at);
    let strategy = candidate.strategy;
    reasons.push(match wish {
        Some(_) => format!("{strategy}: {ASKED_FOR}"),
        None => format!("{strategy}: chosen"),
    });
    let (body, _) = candidate.nest.map_err(|why| Error::internal("plan", why, program.print()))?;
    if !body.values.iter().all(|value| value.store.is_f32()) {
        reasons.push(format!("P is stored in {}", Dtype::Bf16));
    }
    let forecast = forecast(&body);
    Ok(Chosen { strategy, body, reasons, forecast })
}

/// The nests of a program with a gradient, the one that computes least and keeps most first.
///
/// # Errors
/// [`Error::Internal`] where there is none.
pub fn choose_training(program: &Program, without: &[String], wish: Option<Strategy>) -> Result<Vec<Chosen>> {
    let nests = passes::training(program, without, wish);
    let (mut chosen, mut refused) = (Vec::new(), Vec::new());
    for candidate in nests {
        let strategy = candidate.strategy;
        match candidate.nest {
            Ok((body, why)) => {
                let reasons = vec![format!("{strategy}: {why}")];
                chosen.push(Chosen { strategy, body, reasons, forecast: Forecast::default() });
            }
            Err(why) => refused.push(format!("{strategy}: {why}")),
        }
    }
    match chosen.is_empty() {
        true => Err(Error::internal("plan", refused.join("; "), program.print())),
        false => Ok(chosen),
    }
}

//! What one hop of equal cost could be, in place of several: the radius of a window that takes the same predicted time.
//!
//! In: a spec with hops over a static pattern, and what the cost model predicts for it. Out: a radius, by bisection over
//! predictions of compiled windows, or why there is none.

use serde::Serialize;

use crate::cli::table::{significant, thousands};
use crate::compiler::{self, Compiled, Options, TuningSource};
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::spec::{Diffusion, Node, PatternSpec, Source, parse_node};

/// One hop in place of several, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OneHop {
    /// Keys to each side of a query, or back from it where the pattern is causal.
    pub radius: Option<usize>,
    /// Whether the window ends at the query.
    pub causal: bool,
    /// What its cost model's prediction is.
    pub predicted_ms: Option<f64>,
    /// Why there is no radius, or what else there is to say; empty otherwise.
    pub note: String,
}

impl OneHop {
    /// For people.
    pub fn text(&self) -> String {
        let Some(radius) = self.radius else { return format!("none: {}", self.note) };
        let sides = if self.causal { "back from a query" } else { "on each side of a query" };
        let time = self.predicted_ms.map_or_else(String::new, |ms| format!(", {} ms predicted", significant(ms)));
        let note = if self.note.is_empty() { String::new() } else { format!("; {}", self.note) };
        format!("a window of {} keys {sides}{time}{note}", thousands(radius as u64))
    }
}

/// Looks for the largest window whose one hop takes no longer than the spec's hops; `None` where one hop is all there is,
/// or nothing is predicted.
///
/// # Errors
/// Those of the compiler, but for windows that it cannot serve.
pub fn of_equal_cost(spec: &PatternSpec, compiled: &Compiled, options: &Options) -> Result<Option<OneHop>> {
    let (Pattern { q_len, kv_len, .. }, Some(forecast)) = (&compiled.pattern, compiled.forecast) else {
        return Ok(None);
    };
    let several = spec.diffusion.hops() > 1 || spec.diffusion.is_endless() || !spec.hop_patterns.is_empty();
    if !several || *kv_len == 0 || q_len != kv_len {
        return Ok(None);
    }
    let causal = (0..spec.heads).all(|head| compiled.pattern.is_lower_triangular(head))
        && compiled.pattern.others().iter().all(|other| (0..spec.heads).all(|head| other.is_lower_triangular(head)));
    let none = |note: &str| Some(OneHop { radius: None, causal, predicted_ms: None, note: note.into() });
    let mut nodes = [&spec.pattern].into_iter().chain(spec.hop_patterns.iter().flatten());
    if nodes.any(has_edges) {
        return Ok(none("the neighbors come from a graph"));
    }
    let options = Options { strategy: None, tuning: TuningSource::Nothing, ..options.clone() };
    let predicted = |radius: usize| -> Result<Option<f64>> {
        let side = if causal { 0 } else { radius };
        let source = Source::new(format!("window: {{left: {radius}, right: {side}}}"), "<window>");
        let window = PatternSpec {
            pattern: parse_node(&source, spec.heads)?,
            diffusion: Diffusion::plain(),
            hop_patterns: Vec::new(),
            ..spec.clone()
        };
        match compiler::compile(&window, *q_len, *kv_len, &options) {
            Ok(compiled) => Ok(compiled.forecast.map(|forecast| forecast.seconds)),
            Err(Error::Memory { .. } | Error::Unsupported { .. } | Error::Limit { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let fits = |seconds: Option<f64>| seconds.filter(|&seconds| seconds <= forecast.seconds);
    let Some(mut best) = fits(predicted(0)?).map(|seconds| (0, seconds)) else {
        return Ok(none("a window of one key takes longer"));
    };
    let found = |(radius, seconds): (usize, f64), note: &str| {
        Some(OneHop { radius: Some(radius), causal, predicted_ms: Some(seconds * 1e3), note: note.into() })
    };
    let last = kv_len - 1;
    if let Some(seconds) = fits(predicted(last)?) {
        return Ok(found((last, seconds), "every key: full attention takes no longer"));
    }
    let mut beyond = last;
    // Predictions of near radii differ by less than they are good for.
    while beyond - best.0 > (best.0 / 32).max(1) {
        let middle = best.0 + (beyond - best.0) / 2;
        match fits(predicted(middle)?) {
            Some(seconds) => best = (middle, seconds),
            None => beyond = middle,
        }
    }
    Ok(found(best, ""))
}

/// Whether a leaf lists its neighbors.
fn has_edges(node: &Node) -> bool {
    match node {
        Node::Any(nodes) | Node::All(nodes) => nodes.iter().any(has_edges),
        Node::Not(node) => has_edges(node),
        Node::PerHead(parts) => parts.iter().any(|part| has_edges(&part.pattern)),
        Node::Leaf { name, .. } => name == "edges",
    }
}

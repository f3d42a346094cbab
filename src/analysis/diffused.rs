//! What is done to V, by numbers: those of the spec, or such as a call gives for a head.

use crate::spec::{Factors, MAX_HOPS, PatternSpec, TYPICAL_ALPHA};

/// What is done to V.
#[derive(Debug, Clone, PartialEq)]
pub struct Diffused {
    /// The hops; of a limit those after which it is reached up to the tolerance.
    pub factors: Factors,
    /// The alpha of hops without end.
    pub limit: Option<f64>,
}

impl Diffused {
    /// The diffusion of a spec, by the `numbers` that a call gives for a head; without them by typical ones
    /// ([`crate::spec::Diffusion::typical`]).
    pub fn new(spec: &PatternSpec, numbers: Option<&[f64]>) -> Self {
        let factors = numbers.map_or_else(|| spec.diffusion.typical(), |numbers| spec.diffusion.of_head(numbers));
        Self { factors, limit: spec.diffusion.alpha_of_limit(numbers.unwrap_or(&[TYPICAL_ALPHA])) }
    }

    /// Whether the hops are so many that their tolerance may not be reached.
    pub fn is_cut_off(&self) -> bool {
        self.limit.is_some() && self.factors.hops.len() == MAX_HOPS
    }
}

impl From<Factors> for Diffused {
    fn from(factors: Factors) -> Self {
        Self { factors, limit: None }
    }
}

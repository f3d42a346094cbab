//! The schedule's own rules. Run after every pass in tests and debug builds, and once always.

use super::{Base, Op, Schedule};
use crate::error::Result;
use crate::mask;
use crate::spec::HopFactors;

/// A schedule that [`verify`] has accepted. For it, planning and code generation succeed or say why not.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedSchedule(Schedule);

impl VerifiedSchedule {
    /// The schedule, to be rewritten and verified again.
    pub fn into_inner(self) -> Schedule {
        self.0
    }
}

impl std::ops::Deref for VerifiedSchedule {
    type Target = Schedule;

    fn deref(&self) -> &Schedule {
        &self.0
    }
}

/// Checks that operations stand in an order in which each finds what it reads, that a masked exponential or a
/// mask operation (not neither, not both) removes what is not allowed, that the factors are finite, and the
/// rules of the block mask.
///
/// # Errors
/// [`Error::Internal`](crate::Error::Internal) with the rule that is broken and the schedule.
pub fn verify(schedule: Schedule) -> Result<VerifiedSchedule> {
    check(&schedule)?;
    mask::verify(&schedule.neighbors)?;
    Ok(VerifiedSchedule(schedule))
}

fn check(schedule: &Schedule) -> Result<()> {
    if schedule.neighbors.mask_of_head.len() != schedule.heads * schedule.neighbors.parts {
        return Err(schedule.broken("the neighbors are for another number of heads"));
    }
    if schedule.kv_heads == 0 || !schedule.heads.is_multiple_of(schedule.kv_heads) {
        return Err(schedule.broken("the key/value heads do not divide the heads"));
    }
    if let Some(mods) = schedule.mods() {
        let positions = mods.positions;
        let same = (positions.q_len, positions.kv_len, positions.heads)
            == (schedule.neighbors.q_len, schedule.neighbors.kv_len, schedule.heads);
        if !same {
            return Err(schedule.broken("the score mods are for another problem"));
        }
        mods.verify().map_err(|fault| schedule.broken(fault))?;
    }
    let mut state = State::default();
    for op in &schedule.body {
        let fault = state.step(op);
        if let Some(fault) = fault {
            return Err(schedule.broken(fault));
        }
    }
    match (state.hops, state.gradient) {
        (None, _) => Err(schedule.broken("the schedule has no hop")),
        (Some(_), Gradient::None | Gradient::Scores) => Ok(()),
        (Some(_), _) => Err(schedule.broken("a gradient that does not reach q and k")),
    }
}

/// What has been computed so far.
#[derive(Default)]
struct State {
    queries: bool,
    scores: bool,
    modified: bool,
    masked: bool,
    /// Masked in the tile or with the mods: the panel still holds scores of forbidden pairs.
    in_tile: bool,
    maximum: bool,
    probabilities: bool,
    dropped: bool,
    /// The factors of the hops, once they are done.
    hops: Option<Vec<HopFactors>>,
    gradient: Gradient,
}

/// What the gradient has reached.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Gradient {
    #[default]
    None,
    Hops,
    Probabilities,
    Softmax,
    Mods,
    Scores,
}

impl State {
    fn step(&mut self, op: &Op) -> Option<&'static str> {
        let behind = matches!(
            op,
            Op::Adjoint { .. } | Op::GradProbabilities | Op::GradSoftmax | Op::GradMods | Op::GradScores { .. }
        );
        match (&self.hops, behind) {
            (Some(_), false) => return Some("an operation stands behind the hops"),
            (None, true) => return Some("a gradient stands before the hops"),
            _ => {}
        }
        match op {
            Op::Dropout => {
                let ready = self.probabilities && !self.dropped;
                self.dropped = true;
                (!ready).then_some("dropout needs probabilities, once")
            }
            Op::Adjoint { factors } => {
                if self.hops.as_ref() != Some(factors) {
                    return Some("the adjoint is of other hops");
                }
                self.reach(Gradient::None, Gradient::Hops)
            }
            Op::GradProbabilities => self.reach(Gradient::Hops, Gradient::Probabilities),
            Op::GradSoftmax => self.reach(Gradient::Probabilities, Gradient::Softmax),
            Op::GradMods if !self.modified => Some("the derivative of mods that are not there"),
            Op::GradMods => self.reach(Gradient::Softmax, Gradient::Mods),
            Op::GradScores { scale } => {
                if !scale.is_finite() {
                    return Some("a factor is not finite");
                }
                let before = if self.modified { Gradient::Mods } else { Gradient::Softmax };
                self.reach(before, Gradient::Scores)
            }
            Op::Pack { scale } => {
                self.queries = true;
                (!scale.is_finite()).then_some("the scale is not finite")
            }
            Op::Sddmm { fused } => {
                let ready = self.queries && !self.scores;
                self.scores = true;
                self.masked = *fused;
                self.in_tile = *fused;
                self.maximum = *fused;
                (!ready).then_some("sddmm needs packed queries, once")
            }
            Op::Scale { factor } => {
                if !factor.is_finite() {
                    return Some("a factor is not finite");
                }
                let outside = !self.scores || self.modified || self.masked || self.maximum;
                outside.then_some("scale stands outside sddmm and mods or mask")
            }
            Op::Mods { factor, fused, mods: _ } => {
                let ready = self.scores && !self.modified && !self.masked && !self.maximum;
                self.modified = true;
                self.masked = *fused;
                self.in_tile = *fused;
                self.maximum = *fused;
                if !factor.is_finite() {
                    return Some("a factor is not finite");
                }
                (!ready).then_some("mods need unmasked scores, once")
            }
            Op::Mask => {
                let ready = self.scores && !self.masked;
                self.masked = true;
                (!ready).then_some("mask needs scores, once")
            }
            Op::RowMax => {
                let ready = self.masked && !self.maximum;
                self.maximum = true;
                (!ready).then_some("rowmax needs masked scores, once")
            }
            Op::Exp { base: Base::E | Base::Two, masked } => {
                let ready = self.maximum && !self.probabilities;
                self.probabilities = true;
                if self.in_tile && !masked {
                    return Some("exp without mask behind scores that were masked only for their maximum");
                }
                (!ready).then_some("exp needs the row maximum, once")
            }
            Op::Hops { factors, looped, restart_folded: _ } => {
                self.hops = Some(factors.clone());
                if !self.probabilities {
                    return Some("hops need probabilities");
                }
                if factors.is_empty() || (!looped && factors.len() != 1) {
                    return Some("a single hop holds one pair of factors, a loop at least one");
                }
                factors
                    .iter()
                    .any(|f| !(f.step.is_finite() && f.restart.is_finite()))
                    .then_some("a factor is not finite")
            }
        }
    }

    fn reach(&mut self, before: Gradient, after: Gradient) -> Option<&'static str> {
        let ready = self.gradient == before;
        self.gradient = after;
        (!ready).then_some("the steps of a gradient stand in another order than the definition's, backwards")
    }
}

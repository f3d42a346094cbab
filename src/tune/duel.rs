//! Two calls against each other, to know whether one is faster beyond the noise.

use std::time::{Duration, Instant};

use super::Call;
use crate::error::Result;

/// Rounds without which nothing is believed.
const LEAST_ROUNDS: usize = 5;
/// Rounds that are enough.
const MOST_ROUNDS: usize = 200;
/// The challenger's share of the model's time that is no gain yet: what code and pages at other addresses do.
const LEAST_GAIN: f64 = 0.99;
/// Share of the rounds that the challenger must win.
const MOST_OF_THEM: f64 = 0.75;

/// What two calls took, round by round.
#[derive(Debug, Clone, PartialEq)]
pub struct Duel {
    /// Milliseconds of the model's choice, in the middle.
    pub model_ms: f64,
    /// Milliseconds of the other, in the middle.
    pub challenger_ms: f64,
    /// The challenger's time over the model's in the same round, in the middle.
    pub ratio: f64,
    /// Rounds.
    pub rounds: usize,
    /// Rounds in which the challenger was faster.
    pub won_rounds: usize,
}

impl Duel {
    fn new(rounds: &[[f64; 2]]) -> Option<Self> {
        let middle = |numbers: &mut dyn Iterator<Item = f64>| {
            let mut sorted: Vec<f64> = numbers.collect();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied()
        };
        Some(Self {
            model_ms: middle(&mut rounds.iter().map(|round| round[0]))?,
            challenger_ms: middle(&mut rounds.iter().map(|round| round[1]))?,
            ratio: middle(&mut rounds.iter().map(|round| round[1] / round[0]))?,
            rounds: rounds.len(),
            won_rounds: rounds.iter().filter(|round| round[1] < round[0]).count(),
        })
    }

    /// Whether the challenger is faster, by more than chance and more than a percent.
    pub fn won(&self) -> bool {
        self.rounds >= LEAST_ROUNDS
            && self.ratio < LEAST_GAIN
            && self.won_rounds as f64 >= MOST_OF_THEM * self.rounds as f64
    }
}

/// Runs the two in turn until the time is over. A round is a turn of each, begun by the one and by the other in turn.
/// `None` where there was no time for a round.
///
/// # Errors
/// The first error of a call.
pub(super) fn fight(
    calls: &mut [Call<'_>; 2],
    time: Duration,
    turn: Duration,
    progress: &dyn Fn(),
) -> Result<Option<Duel>> {
    let start = Instant::now();
    let mut rounds = Vec::new();
    // Threads and caches are as the last measurement left them.
    for call in calls.iter_mut() {
        if start.elapsed() < time {
            call()?;
        }
    }
    while start.elapsed() < time && rounds.len() < MOST_ROUNDS {
        progress();
        let mut round = [0.0; 2];
        let first = rounds.len() % 2;
        for at in [first, 1 - first] {
            let begun = Instant::now();
            let mut runs = 0_u32;
            while runs == 0 || begun.elapsed() < turn {
                calls[at]()?;
                runs += 1;
            }
            round[at] = begun.elapsed().as_secs_f64() * 1e3 / f64::from(runs);
        }
        rounds.push(round);
    }
    Ok(Duel::new(&rounds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duel(ratios: &[f64]) -> Duel {
        let rounds: Vec<[f64; 2]> = ratios.iter().map(|ratio| [10.0, 10.0 * ratio]).collect();
        Duel::new(&rounds).unwrap()
    }

    #[test]
    fn a_win_is_clear_and_not_by_chance() {
        assert!(duel(&[0.9; 5]).won() && duel(&[0.98, 0.98, 0.97, 1.01, 0.98, 0.96]).won());
        for ratios in [&[0.5; 4][..], &[0.995; 50], &[0.5, 0.5, 0.5, 1.2, 1.2], &[1.1; 9], &[f64::NAN; 9]] {
            assert!(!duel(ratios).won(), "{ratios:?}");
        }
        assert_eq!(Duel::new(&[]), None);
    }

    #[test]
    fn both_run_as_often_and_begin_in_turn() {
        let order = std::cell::RefCell::new(String::new());
        let call = |name| -> Call<'_> {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(name);
                Ok(())
            })
        };
        let mut calls = [call('a'), call('b')];
        let duel = fight(&mut calls, Duration::from_secs(1 << 20), Duration::ZERO, &|| {}).unwrap().unwrap();
        assert_eq!(duel.rounds, MOST_ROUNDS);
        assert!(order.borrow().starts_with("ababbaab"), "warm up, then rounds");
        assert_eq!(fight(&mut calls, Duration::ZERO, Duration::ZERO, &|| {}).unwrap(), None);
    }
}

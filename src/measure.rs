//! Times of several contenders, taken in turn, so that whatever disturbs the machine disturbs all of them.

use std::time::{Duration, Instant};

use crate::error::Result;

/// Runs that a contender gets even where they pass its time.
const LEAST: usize = 3;
/// Runs after which a contender has enough.
const MOST: usize = 2000;
/// How many times its time a contender may take for its least runs.
const PATIENCE: u32 = 10;

/// Something that can be run again and again.
pub struct Contender<'a> {
    /// Name in tables.
    pub name: &'a str,
    /// Runs it once.
    pub run: Box<dyn FnMut() -> Result<()> + 'a>,
}

/// How long the runs took.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// Milliseconds, ascending.
    sorted: Vec<f64>,
}

impl Times {
    fn new(mut ms: Vec<f64>) -> Self {
        ms.sort_by(f64::total_cmp);
        Self { sorted: ms }
    }

    /// Runs that were timed.
    pub fn runs(&self) -> usize {
        self.sorted.len()
    }

    /// The middle one, or the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let (low, high) = ((self.runs().max(1) - 1) / 2, self.runs() / 2);
        (self.at(low) + self.at(high)) / 2.0
    }

    /// The shortest.
    pub fn min(&self) -> f64 {
        self.at(0)
    }

    /// The longest.
    pub fn max(&self) -> f64 {
        self.at(self.runs().saturating_sub(1))
    }

    fn at(&self, i: usize) -> f64 {
        self.sorted.get(i).copied().unwrap_or(f64::NAN)
    }
}

/// Runs the contenders in turn until each has spent `budget`. A turn is at least one run, and as many as fit
/// in `turn`: threads that slept while others ran are awake for all but the first. They should have run once
/// before, so that no run pays for warming up. `between` is called before each turn with the contender's name
/// and its runs so far.
///
/// # Errors
/// The first error of a contender.
pub fn in_turn(
    contenders: &mut [Contender<'_>],
    budget: Duration,
    turn: Duration,
    mut between: impl FnMut(&str, usize),
) -> Result<Vec<Times>> {
    let mut taken: Vec<(Vec<f64>, Duration)> = vec![Default::default(); contenders.len()];
    let wants = |(runs, spent): &(Vec<f64>, Duration)| wants_more(runs.len(), *spent, budget);
    while taken.iter().any(wants) {
        for (contender, taken) in contenders.iter_mut().zip(&mut taken) {
            if !wants(taken) {
                continue;
            }
            between(contender.name, taken.0.len());
            let begun = Instant::now();
            while wants(taken) {
                let start = Instant::now();
                (contender.run)()?;
                let time = start.elapsed();
                taken.0.push(time.as_secs_f64() * 1e3);
                taken.1 += time;
                if begun.elapsed() >= turn {
                    break;
                }
            }
        }
    }
    Ok(taken.into_iter().map(|(runs, _)| Times::new(runs)).collect())
}

/// Whether a contender that ran so often, in so much time, runs again.
fn wants_more(runs: usize, spent: Duration, budget: Duration) -> bool {
    runs == 0 || (runs < LEAST && spent < budget * PATIENCE) || (runs < MOST && spent < budget)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn medians_of_even_and_odd_counts() {
        let times = Times::new(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((times.median(), times.min(), times.max(), times.runs()), (2.5, 1.0, 4.0, 4));
        assert_eq!(Times::new(vec![5.0, 1.0, 2.0]).median(), 2.0);
        assert!(Times::new(Vec::new()).median().is_nan());
    }

    #[test]
    fn slow_contenders_get_a_few_runs_and_a_limit() {
        let budget = Duration::from_millis(10);
        let wants = |runs, ms| wants_more(runs, Duration::from_millis(ms), budget);
        assert!(wants(0, 999) && wants(LEAST - 1, 99) && wants(LEAST, 9) && wants(MOST - 1, 9));
        assert!(!wants(LEAST - 1, 100) && !wants(LEAST, 10) && !wants(MOST, 0));
    }

    #[test]
    fn contenders_take_turns() {
        let order = RefCell::new(String::new());
        let contender = |name: &'static str| Contender { name, run: Box::new(|| Ok(())) };
        let mut both = [contender("a"), contender("b")];
        let mut race = |budget, turn| {
            let times = in_turn(&mut both, budget, turn, |name, _| order.borrow_mut().push_str(name)).unwrap();
            (order.take(), times)
        };
        let (order, times) = race(Duration::ZERO, Duration::ZERO);
        // A budget of nothing is spent after one run.
        assert_eq!((order.as_str(), times[0].runs()), ("ab", 1));
        // One that never ends lets them run as often as anybody may: turn by turn, or all in one turn.
        let forever = Duration::from_secs(1 << 20);
        let (order, times) = race(forever, Duration::ZERO);
        assert_eq!((order, times[1].runs()), ("ab".repeat(MOST), MOST));
        let (order, times) = race(forever, forever);
        assert_eq!((order.as_str(), times[0].runs(), times[1].runs()), ("ab", MOST, MOST));
    }
}

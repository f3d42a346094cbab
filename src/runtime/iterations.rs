//! Hops without end that are iterated: how many a call takes depends on what it gives, so that a kernel has others beside it.
//!
//! In: inputs of a call. Out: the kernel of enough hops, compiled when it is first needed. Numbers of hops go in steps of a
//! half, so that there are few kernels, whatever calls give; hops beyond what a call needs bring it nearer to the limit.

use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::spec::score::ScoreMods;
use crate::spec::{Factors, Given, Inputs, MAX_HOPS};

/// Makes a kernel of so many hops.
type Make<K> = Box<dyn Fn(usize) -> Result<K> + Send + Sync>;

/// The kernels for numbers of hops.
pub struct Iterations<K> {
    given: Given,
    heads: usize,
    tolerance: f64,
    /// Hops of the kernel that these stand beside.
    hops: usize,
    make: Make<K>,
    made: Mutex<Vec<(usize, K)>>,
}

impl<K: Clone> Iterations<K> {
    /// Those beside a kernel of `hops` hops.
    pub fn new(given: Given, heads: usize, tolerance: f64, hops: usize, make: Make<K>) -> Self {
        Self { given, heads, tolerance, hops, make, made: Mutex::default() }
    }

    /// The kernel for a call, unless it is the one that these stand beside.
    ///
    /// # Errors
    /// Those of [`Inputs::check`], [`Error::Value`] for an alpha that needs more than [`MAX_HOPS`] hops, and of compiling.
    pub fn of(&self, inputs: &Inputs<'_>, mods: Option<&ScoreMods>) -> Result<Option<K>> {
        let numbers = inputs.check(mods, Some(&self.given), self.heads)?.numbers.all();
        let least = (0..numbers.len()).min_by(|&a, &b| numbers[a].total_cmp(&numbers[b])).unwrap_or(0);
        let alpha = numbers.get(least).map_or(1.0, |&alpha| f64::from(alpha));
        let Some(hops) = Factors::hops_until(alpha, self.tolerance) else {
            let message = format!(
                "alpha {alpha} of head {least}, whose queries attend to later keys too, does not reach tolerance {} within \
                 {MAX_HOPS} hops; expected a larger `alpha` or a larger `tolerance`",
                self.tolerance
            );
            return Err(Error::Value { tensor: self.given.tensor(), message });
        };
        let hops = enough(hops);
        if hops == self.hops {
            return Ok(None);
        }
        let known =
            |made: &[(usize, K)]| made.iter().find(|(known, _)| *known == hops).map(|(_, kernel)| kernel.clone());
        if let Some(kernel) = known(&self.made.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(Some(kernel));
        }
        // Nobody waits while one is compiled; whoever comes second has compiled in vain.
        let kernel = (self.make)(hops)?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if known(&made).is_none() {
            made.push((hops, kernel.clone()));
        }
        Ok(Some(kernel))
    }
}

impl<K> std::fmt::Debug for Iterations<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Iterations")
            .field("hops", &self.hops)
            .field("tolerance", &self.tolerance)
            .finish_non_exhaustive()
    }
}

/// The least of 1, 2, 3, 4, 6, 8, 12, … that is no less than `hops`.
pub fn enough(hops: usize) -> usize {
    let power = hops.max(1).next_power_of_two();
    let between = power / 4 * 3;
    if between >= hops.max(1) { between } else { power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_hops_are_few_and_enough() {
        let all: std::collections::BTreeSet<usize> = (0..=MAX_HOPS).map(enough).collect();
        assert!((0..=MAX_HOPS).all(|hops| enough(hops) >= hops && 2 * enough(hops) <= 3 * hops.max(1) + 1));
        assert_eq!(all.iter().copied().take(8).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 12, 16]);
        assert!(all.len() <= 20 && all.last() == Some(&MAX_HOPS));
    }
}

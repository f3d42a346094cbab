//! The gradients of what a call gives besides tensors: of the score mods' inputs, and of the numbers that hops take.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Address;
use super::memory::zeros;
use super::pointer::Pointer;
use crate::error::Result;

/// Bytes of the gradients of inputs that units keep for themselves.
const INPUT_BYTES: usize = 1 << 30;

/// The gradients of the score mods' inputs: sums of every unit for itself, so that what is added to what does not depend
/// on threads. Where those would take too much memory, units run one after the other.
pub(super) struct InputSums {
    /// Elements of every input.
    sizes: Vec<usize>,
    of_units: Vec<Mutex<Vec<f32>>>,
}

impl InputSums {
    pub fn new(sizes: Vec<usize>, units: usize) -> Result<Self> {
        let all: usize = sizes.iter().sum();
        let of_unit = |_| Ok(Mutex::new(zeros("the gradients of inputs", all)?.into_raw_vec_and_offset().0));
        let of_units = (0..Self::count(all, units)).map(of_unit).collect::<Result<_>>()?;
        Ok(Self { sizes, of_units })
    }

    /// How many sums of `all` elements are kept for `units`.
    pub fn count(all: usize, units: usize) -> usize {
        if units.saturating_mul(all) <= INPUT_BYTES / size_of::<f32>() { units.max(1) } else { 1 }
    }

    pub fn most_at_once(&self) -> usize {
        if self.of_units.len() == 1 { 1 } else { usize::MAX }
    }

    pub fn of_unit(&self, unit: usize) -> MutexGuard<'_, Vec<f32>> {
        self.of_units[unit.min(self.of_units.len() - 1)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums of all units, in order, input by input.
    pub fn finish(self) -> Vec<Vec<f32>> {
        let mut units = self.of_units.into_iter().map(|unit| unit.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut total = units.next().unwrap_or_default();
        for unit in units {
            total.iter_mut().zip(unit).for_each(|(sum, x)| *sum += x);
        }
        let mut rest = total.as_slice();
        let split = self.sizes.iter().map(|&size| {
            let (input, behind) = rest.split_at(size);
            rest = behind;
            input.to_vec()
        });
        split.collect()
    }
}

/// Where the gradient of each of the score mods' inputs begins, one behind the other.
pub(super) fn input_list(sizes: &[usize], base: Pointer<'_>) -> Vec<Address> {
    let mut at = 0;
    let list = sizes.iter().map(|size| {
        let here = base.at((at * size_of::<f32>()) as isize);
        at += size;
        Address(here.get().cast_const().cast())
    });
    list.collect()
}

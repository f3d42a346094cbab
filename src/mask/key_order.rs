//! How a mask numbers its keys: as they lie in memory, or residue class by residue class.
//!
//! A dilated window or a stride joins queries and keys of one residue class. Numbered class by class, their keys are
//! contiguous runs, and block rows of one class are dense. In memory such a run is every `step`-th row of K and V,
//! which a tile reads in place with a longer stride.

use std::ops::Range;

/// How a mask numbers its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrder {
    /// Key `k` has number `k`.
    Identity,
    /// First the keys that leave remainder 0 divided by the step, ascending, then those that leave 1, and so on.
    Residue(u32),
}

impl KeyOrder {
    /// Rows of K from one number to the next within a class.
    pub const fn step(self) -> u32 {
        match self {
            Self::Identity => 1,
            Self::Residue(step) => step,
        }
    }

    /// The key of a number, of `kv_len` keys.
    pub fn key_at(self, number: u32, kv_len: usize) -> u32 {
        let Self::Residue(step) = self else { return number };
        let class = self.class_of(number, kv_len);
        class + (number - self.numbers(class, kv_len).start) * step
    }

    /// The numbers of a class.
    pub fn numbers(self, class: u32, kv_len: usize) -> Range<u32> {
        let Self::Residue(step) = self else { return 0..kv_len as u32 };
        let start = |class: u32| {
            let (even, longer) = (kv_len as u32 / step, kv_len as u32 % step);
            class * even + class.min(longer)
        };
        start(class)..start(class + 1)
    }

    /// The class that a number lies in.
    pub fn class_of(self, number: u32, kv_len: usize) -> u32 {
        let Self::Residue(step) = self else { return 0 };
        let (even, longer) = (kv_len as u32 / step, kv_len as u32 % step);
        // The first `longer` classes have one key more.
        let wide = longer * (even + 1);
        if number < wide { number / (even + 1) } else { longer + (number - wide) / even.max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_keys_belong_together() {
        for (step, kv_len) in [(1, 9), (4, 16), (4, 17), (4, 19), (7, 5), (64, 1000)] {
            let order = KeyOrder::Residue(step);
            let mut keys: Vec<u32> = (0..kv_len as u32).map(|number| order.key_at(number, kv_len)).collect();
            for (number, &key) in keys.iter().enumerate() {
                let class = key % step;
                assert_eq!(order.class_of(number as u32, kv_len), class);
                assert!(order.numbers(class, kv_len).contains(&(number as u32)));
            }
            assert!(keys.is_sorted_by_key(|key| (key % step, *key)));
            keys.sort_unstable();
            assert!(keys.into_iter().eq(0..kv_len as u32));
        }
    }
}

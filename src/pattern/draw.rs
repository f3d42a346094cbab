//! Random choices, the same on every machine.
//!
//! A [`Draw`] is the ChaCha8 key stream of (seed, stream): the seed in the first eight bytes of the key
//! (little-endian), a fixed tag in the others, the stream as the nonce. Integers below a bound come from 32
//! bits by multiplication, with rejection so that they are exactly uniform (Lemire, "Fast random integer
//! generation in an interval", 2019). Distinct ones come by Floyd's algorithm (Bentley and Floyd, 1987). No
//! machine word is involved, and one stream is read in one order, so that a choice depends on the seed, the
//! lengths and the head alone.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::rows::take_bits;

/// A stream of random integers.
#[derive(Debug)]
pub(super) struct Draw {
    rng: ChaCha8Rng,
    /// Which keys of the row at hand were taken, one bit each; all zero between rows.
    taken: Vec<u64>,
}

impl Draw {
    /// Streams of different uses of one seed.
    pub const TOKENS: u64 = 1 << 32;
    /// Cells of the whole matrix.
    pub const CELLS: u64 = 2 << 32;
    /// Keys by query; add the head.
    pub const KEYS: u64 = 3 << 32;
    /// Key blocks by query block; add the head.
    pub const BLOCKS: u64 = 4 << 32;

    /// The stream of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut key = *b"........hopweave draw, version 1";
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(stream);
        Self { rng, taken: Vec::new() }
    }

    /// Uniform below `bound`, which is not 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        loop {
            let product = u64::from(self.rng.next_u32()) * u64::from(bound);
            // The low half is too small exactly for the surplus of values that would make some results
            // likelier; the remainder costs a division, so the cheap test goes first.
            let low = product as u32;
            if low >= bound || low >= bound.wrapping_neg() % bound {
                return (product >> 32) as u32;
            }
        }
    }

    /// Appends `count` distinct integers below `bound`, ascending; all of them where fewer exist.
    pub fn distinct(&mut self, count: u32, bound: u32, out: &mut Vec<u32>) {
        let start = out.len();
        self.distinct_in_any_order(count, bound, out);
        out[start..].sort_unstable();
    }

    /// [`distinct`](Self::distinct) to be sorted later.
    pub fn distinct_in_any_order(&mut self, count: u32, bound: u32, out: &mut Vec<u32>) {
        if count >= bound {
            out.extend(0..bound);
            return;
        }
        let words = bound.div_ceil(64) as usize;
        if self.taken.len() < words {
            self.taken.resize(words, 0);
        }
        let start = out.len();
        for last in bound - count..bound {
            let drawn = self.below(last + 1);
            let taken = self.taken[drawn as usize / 64] >> (drawn % 64) & 1 == 1;
            let chosen = if taken { last } else { drawn };
            self.taken[chosen as usize / 64] |= 1 << (chosen % 64);
            out.push(chosen);
        }
        if words <= 4 * count as usize {
            out.truncate(start);
            take_bits(&mut self.taken[..words], out);
        } else {
            for &key in &out[start..] {
                self.taken[key as usize / 64] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_these_numbers_for_ever() {
        let mut draw = Draw::new(7, Draw::KEYS);
        let mut keys = Vec::new();
        draw.distinct(6, 1000, &mut keys);
        draw.distinct(3, 5, &mut keys);
        draw.distinct(9, 4, &mut keys);
        // Changing these changes every pattern with a random node: a new major version.
        assert_eq!(keys, EXPECTED);
    }

    const EXPECTED: [u32; 13] = [420, 436, 446, 630, 745, 809, 2, 3, 4, 0, 1, 2, 3];

    #[test]
    fn every_subset_is_equally_likely() {
        let mut draw = Draw::new(1, 0);
        let mut counts = std::collections::HashMap::new();
        for _ in 0..10_000 {
            let mut keys = Vec::new();
            draw.distinct(2, 5, &mut keys);
            *counts.entry(keys).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 10);
        // Expected 1000 each with a deviation of 30: five deviations.
        assert!(counts.values().all(|&c| (850..1150).contains(&c)), "{counts:?}");
    }

    #[test]
    fn both_ways_to_sort_agree_on_order_and_leave_no_bits() {
        let mut draw = Draw::new(3, 9);
        for (count, bound) in [(1, 100_000), (64, 4096), (64, 64), (63, 64), (0, 10), (500, 1000)] {
            let mut keys = Vec::new();
            draw.distinct(count, bound, &mut keys);
            assert_eq!(keys.len(), count.min(bound) as usize);
            assert!(keys.windows(2).all(|w| w[0] < w[1]) && keys.iter().all(|&k| k < bound));
            assert!(draw.taken.iter().all(|&w| w == 0));
        }
    }
}

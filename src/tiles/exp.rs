//! Probabilities: the exponential over a panel of scores.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: see `lanes`.
#![allow(clippy::needless_range_loop)]

use super::lanes::{Lanes, part_bits, tree};
use super::{ExpCall, LANES};

/// See [`ExpCall`].
///
/// # Safety
/// Contract of [`super`], and the CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(c: &ExpCall) {
    for part in 0..c.groups * (LANES / L::WIDTH) {
        // SAFETY: `part` lies in one of the groups.
        unsafe {
            let sum = c.sum.add(part * L::WIDTH);
            let add = match (c.words.is_null(), L::REGISTERS > 16) {
                (true, true) => panel::<L, 4, false>(c, part),
                (false, true) => panel::<L, 4, true>(c, part),
                (true, false) => panel::<L, 2, false>(c, part),
                (false, false) => panel::<L, 2, true>(c, part),
            };
            L::store(sum, L::add(L::load(sum), add));
        }
    }
}

/// One vector of queries: `KEYS` keys at a time, with a sum each; returns the sums.
///
/// # Safety
/// As [`exp`]; `part` lies in one of the groups.
#[inline(always)]
unsafe fn panel<L: Lanes, const KEYS: usize, const MASKED: bool>(c: &ExpCall, part: usize) -> L::Floats {
    // SAFETY: keys stay below `nkeys`.
    unsafe {
        let first = part * L::WIDTH;
        let panel = c.s.add(first / LANES * c.s_stride + first % LANES);
        let max = L::load(c.max.add(first));
        let zero = L::splat(0.0);
        let mut sums = [zero; KEYS];
        // A loop of its own for whole turns: with the rest in it, the compiler keeps the sums in memory. Where registers
        // are few, two keys in one stretch of code want more of them than there are, and all go the way of the rest.
        let many = L::REGISTERS > 16;
        let whole = if many { c.nkeys / KEYS * KEYS } else { 0 };
        let mut key = 0;
        while key < whole {
            let mut bits = [u32::MAX; KEYS];
            let mut any = 0;
            for i in 0..KEYS {
                if MASKED {
                    bits[i] = part_bits::<L>(c.words, key + i, part);
                }
                any |= bits[i];
            }
            for i in 0..KEYS {
                let at = panel.add((key + i) * LANES);
                // What no query sees may hold anything, subnormal numbers too.
                if any == 0 {
                    L::store(at, zero);
                } else {
                    let p = L::exp2(L::sub(L::load(at), max), L::mask(bits[i]));
                    L::store(at, p);
                    sums[i] = L::add(sums[i], p);
                }
            }
            key += KEYS;
        }
        while key < c.nkeys {
            for i in 0..KEYS {
                if key + i < c.nkeys {
                    let at = panel.add((key + i) * LANES);
                    let bits = if MASKED { part_bits::<L>(c.words, key + i, part) } else { u32::MAX };
                    let mut p = zero;
                    if bits != 0 {
                        p = L::exp2(L::sub(L::load(at), max), L::mask(bits));
                        let sum = if many { 0 } else { i };
                        sums[sum] = L::add(sums[sum], p);
                    }
                    L::store(at, p);
                }
            }
            key += KEYS;
        }
        tree::<L, KEYS>(sums, L::add)
    }
}

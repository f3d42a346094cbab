//! Score mods that are common enough for tiles of their own: softcap and alibi.
//!
//! One pass over a panel of scores reads each vector, modifies it, takes it up in the maximum and writes it back. All
//! other mods are code made with the kernel (`codegen/portable/mods`), with vectors a quarter or half as wide.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: see `lanes`.
#![allow(clippy::needless_range_loop)]

use super::lanes::{Lanes, part_bits, tree};
use super::{LANES, ModCall};

/// See [`TileSet::softcap`](super::tile_set::TileSet::softcap).
///
/// # Safety
/// Contract of [`super`], and the CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn softcap<L: Lanes>(c: &ModCall) {
    // SAFETY: the caller's.
    unsafe { run::<L, false>(c) }
}

/// See [`TileSet::alibi`](super::tile_set::TileSet::alibi).
///
/// # Safety
/// As [`softcap`].
#[inline(always)]
pub(super) unsafe fn alibi<L: Lanes>(c: &ModCall) {
    // SAFETY: the caller's.
    unsafe { run::<L, true>(c) }
}

/// A vector of queries after the other, then key by key.
#[inline(always)]
unsafe fn run<L: Lanes, const ALIBI: bool>(c: &ModCall) {
    for part in 0..c.groups * (LANES / L::WIDTH) {
        // SAFETY: `part` lies in one of the groups.
        unsafe {
            match (c.words.is_null(), L::REGISTERS > 16) {
                (true, true) => panel::<L, 4, ALIBI, false>(c, part),
                (false, true) => panel::<L, 4, ALIBI, true>(c, part),
                (true, false) => panel::<L, 2, ALIBI, false>(c, part),
                (false, false) => panel::<L, 2, ALIBI, true>(c, part),
            }
        }
    }
}

/// One vector of queries, `KEYS` keys at a time.
///
/// # Safety
/// As [`softcap`]; `part` lies in one of the groups.
#[inline(always)]
unsafe fn panel<L: Lanes, const KEYS: usize, const ALIBI: bool, const MASKED: bool>(c: &ModCall, part: usize) {
    // SAFETY: keys stay below `nkeys`; positions and maxima hold a vector for each part.
    unsafe {
        let first = part * L::WIDTH;
        let s = c.s.add(first / LANES * c.s_stride + first % LANES);
        let factors = Factors::<L>::new::<ALIBI>(c, first);
        let mut max = [L::splat(f32::NEG_INFINITY); KEYS];
        let whole = c.nkeys / KEYS * KEYS;
        let mut j = 0;
        while j < whole {
            let mut bits = [u32::MAX; KEYS];
            let mut any = 0;
            for i in 0..KEYS {
                if MASKED {
                    bits[i] = part_bits::<L>(c.words, j + i, part);
                }
                any |= bits[i];
            }
            if any != 0 {
                for i in 0..KEYS {
                    let score = factors.apply::<ALIBI>(c, s.add((j + i) * LANES), j + i);
                    max[i] = if MASKED { L::max_cut(score, max[i], L::mask(bits[i])) } else { L::max(score, max[i]) };
                }
            }
            j += KEYS;
        }
        for j in whole..c.nkeys {
            let bits = if MASKED { part_bits::<L>(c.words, j, part) } else { u32::MAX };
            if bits != 0 {
                let score = factors.apply::<ALIBI>(c, s.add(j * LANES), j);
                max[0] = L::max_cut(score, max[0], L::mask(bits));
            }
        }
        if !c.max.is_null() {
            let at = c.max.add(first);
            let max = tree::<L, KEYS>(max, L::max);
            L::store(at, L::max(max, L::load(at)));
        }
    }
}

/// What stays the same over a panel.
struct Factors<L: Lanes> {
    /// Positions of the queries (alibi).
    query: L::Floats,
    /// On the score (alibi).
    before: L::Floats,
    /// On the function of it.
    behind: L::Floats,
}

impl<L: Lanes> Factors<L> {
    #[inline(always)]
    unsafe fn new<const ALIBI: bool>(c: &ModCall, first: usize) -> Self {
        // SAFETY: as `panel`; softcap reads no positions.
        unsafe {
            Self {
                query: if ALIBI { L::load_ints(c.positions.add(first)) } else { L::splat(0.0) },
                before: L::splat(c.factor),
                behind: L::splat(c.constant * c.factor),
            }
        }
    }

    /// The modified score of key `j`, which is written back.
    #[inline(always)]
    unsafe fn apply<const ALIBI: bool>(&self, c: &ModCall, at: *mut f32, j: usize) -> L::Floats {
        // SAFETY: as `panel`, with `j < nkeys`.
        unsafe {
            let score = L::load(at);
            let score = if ALIBI {
                let key = if c.keys.is_null() { (c.first_key + j * c.key_step) as f32 } else { *c.keys.add(j) as f32 };
                let distance = L::sub(L::splat(key), self.query);
                L::fma(score, self.before, L::mul(distance, self.behind))
            } else {
                // What tanh x is made of, 2x log2 e, comes in the panel already.
                L::tanh_of_power(score, self.behind)
            };
            L::store(at, score);
            score
        }
    }
}

#[cfg(test)]
mod tests;

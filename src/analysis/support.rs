//! Which keys reach which queries after each hop, as bit matrices.
//!
//! In: an edge list, of tokens or of blocks of tokens, and the factors of the hops. Out: the support of Z_1, Z_2, …, one
//! at a time: where the recurrence can put anything else than 0.

use rayon::prelude::*;

use super::EdgeList;
use crate::spec::{Factors, HopFactors};

/// The support of one Z_j.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// Words of a row.
    pub width: usize,
    /// Bit `k` of row `q` says whether key k reaches query q: `[queries][width]`.
    pub bits: Vec<u64>,
}

impl Support {
    /// Z_0: each row its own key where V enters before the first hop, else nothing.
    fn start(keys: usize, initial: bool) -> Self {
        let width = keys.div_ceil(64).max(1);
        let mut bits = vec![0_u64; keys * width];
        if initial {
            for (key, row) in bits.chunks_exact_mut(width).enumerate() {
                set(row, key);
            }
        }
        Self { width, bits }
    }

    /// The rows, query by query.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.bits.chunks_exact(self.width)
    }

    /// Bytes of the three matrices that [`each_hop`] holds.
    pub fn bytes(queries: usize, keys: usize) -> u64 {
        (queries as u64 + 2 * keys as u64) * (keys as u64).div_ceil(64) * 8
    }

    /// One step: R' = A R where the hop has a step, and the identity where it has a restart.
    fn step(&self, list: &EdgeList, keys: usize, hop: HopFactors) -> Self {
        let width = self.width;
        let queries = list.offsets.len() - 1;
        let mut bits = vec![0_u64; queries * width];
        bits.par_chunks_exact_mut(width).enumerate().for_each(|(query, row)| {
            if hop.step != 0.0 {
                for &key in list.row(query) {
                    let from = key as usize * width;
                    for (bits, more) in row.iter_mut().zip(&self.bits[from..from + width]) {
                        *bits |= more;
                    }
                }
            }
            if hop.restart != 0.0 && query < keys {
                set(row, query);
            }
        });
        Self { width, bits }
    }
}

/// Calls `visit` with the support of every Z_j, j from 1, over so many keys. `list_of` gives the list of a hop, counted
/// from 0.
pub fn each_hop<'a>(
    list_of: impl Fn(usize) -> &'a EdgeList,
    keys: usize,
    diffusion: &Factors,
    mut visit: impl FnMut(usize, &Support),
) {
    let mut support = Support::start(keys, diffusion.initial != 0.0);
    for (at, &hop) in diffusion.hops.iter().enumerate() {
        support = support.step(list_of(at), keys, hop);
        visit(at + 1, &support);
    }
}

/// Sets a bit of a row.
pub(super) fn set(row: &mut [u64], bit: usize) {
    row[bit / 64] |= 1 << (bit % 64);
}

/// Bits of a row.
pub(super) fn count(row: &[u64]) -> u64 {
    row.iter().map(|word| u64::from(word.count_ones())).sum()
}

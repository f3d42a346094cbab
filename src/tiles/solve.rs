//! The triangle of a block row: all hops at once, where keys do not come after their queries.
//!
//! Infinitely many hops, Z = c·A·Z + y, are forward substitution where A is lower triangular. What a block row takes from
//! earlier ones is a product that the value tile does; what its 64 rows take from each other is solved here. Rows go in the
//! value tile's register blocks of 6, 5 and 5: the sums over all rows that are solved are multiply-adds as in that tile, and
//! the small triangle that is left is solved in registers.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: see `lanes`.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;

use super::lanes::{Array, Vectors};
use super::{BLOCK, LANES, ROW_CUTS};

#[cfg(test)]
mod tests;

/// Solves (I − W) z = y, or (I − Wᵀ) z = y, in place, column by column, where W_ij is `factor[i] · p[i / 16][j][i % 16]` for
/// `j <= i < rows`, and 0 elsewhere whatever the panel holds: key `j` stands where query `j` stands, and later keys are not
/// seen. No W_ii may be 1 or near it: with the weights of a softmax times a step below 1 none is.
///
/// A weight of 0 adds nothing, whatever it meets: a pair that is not allowed has weight 0 in the panel, and so has one below
/// 2^[`LEAST_POWER`](super::LEAST_POWER), whose key then is as good as not seen. Rows that this matters for, since some number
/// is not finite, are solved again by the tile itself, pair by pair.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SolveCall {
    /// Probabilities, not yet divided by their sums: where the key at the first query's position stands in group 0 of the
    /// panel.
    pub p: *const f32,
    /// Floats from one group's panel to the next.
    pub p_stride: usize,
    /// Queries, which are as many keys, 1 to 64.
    pub rows: usize,
    /// Of every query the step divided by its sum of probabilities, `[rows]`; 0 for a query that sees no key.
    pub factor: *const f32,
    /// Row 0 of y, then of z.
    pub z: *mut f32,
    /// Floats from one of its rows to the next.
    pub z_stride: usize,
    /// Width of a row.
    pub width: usize,
}

impl SolveCall {
    /// Where the weight stands with which row `from` enters row `to`.
    #[inline(always)]
    unsafe fn weight<const TRANSPOSED: bool>(&self, to: usize, from: usize) -> *const f32 {
        let (query, key) = if TRANSPOSED { (from, to) } else { (to, from) };
        // SAFETY: both are below `rows`.
        unsafe { self.p.add(query / LANES * self.p_stride + key * LANES + query % LANES) }
    }
}

/// Columns of the widest register block.
const COLUMNS: usize = 4 * LANES;

/// Rows times their factors, of some columns: what the transposed product adds up.
#[repr(align(64))]
struct Scaled {
    _rows: [f32; BLOCK * COLUMNS],
}

/// Some columns of a call.
struct Columns<'c> {
    call: &'c SolveCall,
    /// 1 / (1 − W_ii).
    inverse: &'c [f32; BLOCK],
    /// First column.
    column: usize,
    /// Columns, where they do not fill a vector.
    left: usize,
    /// Row 0 of what products add up: rows of z, or those of [`Scaled`].
    solved: *mut f32,
    /// Floats from one of them to the next.
    stride: usize,
}

/// See [`SolveCall`].
///
/// # Safety
/// Contract of [`super`], and the CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn solve_rows<V: Vectors, const TRANSPOSED: bool>(c: &SolveCall) {
    // SAFETY: rows stay below `rows`, columns below `width`.
    unsafe {
        let mut inverse = [0.0; BLOCK];
        for r in 0..c.rows {
            inverse[r] = 1.0 / (1.0 - *c.factor.add(r) * *c.weight::<false>(r, r));
        }
        let mut scaled = MaybeUninit::<Scaled>::uninit();
        let vectors = if V::REGISTERS > 16 { 4 } else { 2 };
        let mut column = 0;
        while column < c.width {
            let left = c.width - column;
            let (solved, stride) = match TRANSPOSED {
                true => (scaled.as_mut_ptr().cast(), COLUMNS),
                false => (c.z.add(column), c.z_stride),
            };
            let columns = Columns { call: c, inverse: &inverse, column, left, solved, stride };
            column += if left >= vectors * V::WIDTH {
                match vectors {
                    4 => solve_columns::<V, 4, false, TRANSPOSED>(&columns),
                    _ => solve_columns::<V, 2, false, TRANSPOSED>(&columns),
                }
                vectors * V::WIDTH
            } else {
                match left >= V::WIDTH {
                    true => solve_columns::<V, 1, false, TRANSPOSED>(&columns),
                    false => solve_columns::<V, 1, true, TRANSPOSED>(&columns),
                }
                V::WIDTH
            };
        }
    }
}

/// All rows of `C` vectors of columns.
#[inline(always)]
unsafe fn solve_columns<V: Vectors, const C: usize, const CUT: bool, const TRANSPOSED: bool>(s: &Columns<'_>) {
    let rows = s.call.rows;
    let blocks = rows.div_ceil(LANES) * (ROW_CUTS.len() - 1);
    for step in 0..blocks {
        let block = if TRANSPOSED { blocks - 1 - step } else { step };
        let (group, cut) = (block / (ROW_CUTS.len() - 1), block % (ROW_CUTS.len() - 1));
        let first = group * LANES + ROW_CUTS[cut];
        let end = rows.min(group * LANES + ROW_CUTS[cut + 1]);
        // SAFETY: rows `first..end` are below `rows`, and those that they depend on are solved.
        unsafe {
            let finite = match end.saturating_sub(first) {
                0 => continue,
                1 => tile::<V, 1, C, CUT, TRANSPOSED, false>(s, first),
                2 => tile::<V, 2, C, CUT, TRANSPOSED, false>(s, first),
                3 => tile::<V, 3, C, CUT, TRANSPOSED, false>(s, first),
                4 => tile::<V, 4, C, CUT, TRANSPOSED, false>(s, first),
                5 => tile::<V, 5, C, CUT, TRANSPOSED, false>(s, first),
                _ => tile::<V, 6, C, CUT, TRANSPOSED, false>(s, first),
            };
            if !finite {
                for step in 0..end - first {
                    let row = if TRANSPOSED { end - 1 - step } else { first + step };
                    tile::<V, 1, C, CUT, TRANSPOSED, true>(s, row);
                }
            }
        }
    }
}

/// Rows `first..first + R`, `C` vectors of columns. Where not `EXACT`, returns whether all is finite; if not, y still stands
/// in z.
#[inline(always)]
unsafe fn tile<
    V: Vectors,
    const R: usize,
    const C: usize,
    const CUT: bool,
    const TRANSPOSED: bool,
    const EXACT: bool,
>(
    s: &Columns<'_>,
    first: usize,
) -> bool {
    // SAFETY: rows `first..first + R` are below `rows`, sums go over others below it; a cut vector touches `left` columns.
    unsafe {
        let c = s.call;
        let tail = V::first(if CUT { s.left } else { 0 });
        let zero = V::splat(0.0);
        let mut sums = [[zero; C]; R];
        if TRANSPOSED {
            let mut end = c.rows;
            while end > first + R {
                let from = (first + R).max((end - 1) / LANES * LANES);
                add_rows::<V, R, C, CUT, TRANSPOSED, EXACT>(&mut sums, s, first, from, end);
                end = from;
            }
        } else {
            add_rows::<V, R, C, CUT, TRANSPOSED, EXACT>(&mut sums, s, first, 0, first);
        }
        // Not a loop: the compiler would keep it, and the sums in memory.
        macro_rules! finish {
            ($($step:literal)*) => {$(
                if $step < R {
                    let r = if TRANSPOSED { R - 1 - $step } else { $step };
                    finish_row::<V, R, C, CUT, TRANSPOSED>(&mut sums, s, first, r);
                }
            )*};
        }
        finish!(0 1 2 3 4 5);
        if !EXACT {
            // What is not finite is not finite in all rows that are solved after it, whatever the weight: the last one tells.
            let last = if TRANSPOSED { 0 } else { R - 1 };
            let mut check = zero;
            for i in 0..C {
                check = V::fma(sums[last][i], zero, check);
            }
            let mut lanes = [0.0_f32; LANES];
            V::store(lanes.as_mut_ptr(), check);
            let mut finite = true;
            for lane in lanes {
                finite &= !lane.is_nan();
            }
            if !finite {
                return false;
            }
        }
        for r in 0..R {
            let z = c.z.add((first + r) * c.z_stride + s.column);
            for i in 0..C {
                let at = z.add(i * V::WIDTH);
                if CUT {
                    V::store_cut(at, tail, sums[r][i]);
                } else {
                    V::store(at, sums[r][i]);
                }
            }
        }
        true
    }
}

/// Solves row `r` of a tile, whose sum is complete, and adds it to those that are solved after it.
#[inline(always)]
unsafe fn finish_row<V: Vectors, const R: usize, const C: usize, const CUT: bool, const TRANSPOSED: bool>(
    sums: &mut [[V::Floats; C]; R],
    s: &Columns<'_>,
    first: usize,
    r: usize,
) {
    // SAFETY: as `tile`, with `r < R`.
    unsafe {
        let c = s.call;
        let tail = V::first(if CUT { s.left } else { 0 });
        let (factor, inverse) = (*c.factor.add(first + r), s.inverse[first + r]);
        let scale = V::splat(if TRANSPOSED { inverse } else { factor * inverse });
        let y = c.z.add((first + r) * c.z_stride + s.column);
        for i in 0..C {
            let at = y.add(i * V::WIDTH);
            let own = if CUT { V::load_cut(at, tail) } else { V::load(at) };
            sums[r][i] = V::fma(sums[r][i], scale, V::mul(own, V::splat(inverse)));
        }
        let mut row = sums[r];
        if TRANSPOSED {
            let scaled = s.solved.add((first + r) * s.stride);
            for i in 0..C {
                row[i] = V::mul(row[i], V::splat(factor));
                V::store(scaled.add(i * V::WIDTH), row[i]);
            }
        }
        for to in 0..R {
            if (TRANSPOSED && to < r) || (!TRANSPOSED && to > r) {
                let weight = V::splat(*c.weight::<TRANSPOSED>(first + to, first + r));
                for i in 0..C {
                    sums[to][i] = V::fma(row[i], weight, sums[to][i]);
                }
            }
        }
    }
}

/// Adds solved rows `from..end` to the sums of rows `first..first + R`, in the order in which they were solved, so that pairs
/// one by one add up to the same. Transposed, they are of one group.
#[inline(always)]
unsafe fn add_rows<
    V: Vectors,
    const R: usize,
    const C: usize,
    const CUT: bool,
    const TRANSPOSED: bool,
    const EXACT: bool,
>(
    sums: &mut [[V::Floats; C]; R],
    s: &Columns<'_>,
    first: usize,
    from: usize,
    end: usize,
) {
    if from == end {
        return;
    }
    // From a weight to that of the next sum.
    let apart = if TRANSPOSED { LANES } else { 1 };
    // SAFETY: rows `from..end` are solved; the others as in `tile`, whose rows are of one group.
    unsafe {
        let tail = V::first(if CUT { s.left } else { 0 });
        let start = if TRANSPOSED { end - 1 } else { from };
        let mut weights = s.call.weight::<TRANSPOSED>(first, start);
        let mut row = s.solved.add(start * s.stride).cast_const();
        for step in 0..end - from {
            let skipped = EXACT && {
                let query = if TRANSPOSED { start - step } else { first };
                *weights == 0.0 || *s.call.factor.add(query) == 0.0
            };
            if !skipped {
                let mut values = [V::splat(0.0); C];
                for i in 0..C {
                    let at = row.add(i * V::WIDTH);
                    // Scaled rows are padded.
                    values[i] = if CUT && !TRANSPOSED { V::load_cut(at, tail) } else { V::load(at) };
                }
                for r in 0..R {
                    let weight = V::splat(*weights.add(r * apart));
                    for i in 0..C {
                        sums[r][i] = V::fma(values[i], weight, sums[r][i]);
                    }
                }
            }
            if TRANSPOSED {
                weights = weights.wrapping_sub(1);
                row = row.wrapping_sub(s.stride);
            } else {
                weights = weights.wrapping_add(LANES);
                row = row.wrapping_add(s.stride);
            }
        }
    }
}

/// Solves (I − W) z = y, for any CPU.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn solve(call: *const SolveCall) {
    // SAFETY: the caller's contract.
    unsafe { solve_rows::<Array<4>, false>(&*call) }
}

/// Solves (I − Wᵀ) z = y, for any CPU.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn solve_transposed(call: *const SolveCall) {
    // SAFETY: the caller's contract.
    unsafe { solve_rows::<Array<4>, true>(&*call) }
}

//! Transposed values (SpMM with Pᵀ), for gradients: what a block of queries adds to the rows of its keys.
//!
//! The panel is the one of the value tile, but sums run over its lanes: 6 keys stay in registers over the 64 queries of
//! the block, a step loads the vectors of one query's row and broadcasts 6 weights.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: see `lanes`.
#![allow(clippy::needless_range_loop)]

use super::lanes::{Array, Vectors};
use super::{EdgeCall, LANES};

#[cfg(test)]
mod tests;

/// `out[key(j)][:] += factor · Σ_r p[r / 16][j][r % 16] · x[row(r)][:]` for `j < nkeys`, over `r < rows`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TransposedCall {
    /// Where the segment's first key stands in group 0 of the panel.
    pub p: *const f32,
    /// Floats from one group's panel to the next.
    pub p_stride: usize,
    /// Keys.
    pub nkeys: usize,
    /// Queries, 1 to 64.
    pub rows: usize,
    /// One word per key, or null where all is allowed. What is not allowed has weight 0 in the panel; a group of
    /// queries none of which is allowed is skipped.
    pub words: *const u64,
    /// Row 0 of the queries' rows.
    pub x: *const f32,
    /// Floats from one of them to the next.
    pub x_stride: usize,
    /// Row numbers of the queries, or null for rows `0..rows` from `x`.
    pub x_rows: *const u32,
    /// Width of a row.
    pub width: usize,
    /// Row 0 of the segment's keys in the result, or of all keys where `keys` is given.
    pub out: *mut f32,
    /// Floats from one key's row to the next.
    pub out_stride: usize,
    /// Row numbers of the keys, or null for rows `0..nkeys` from `out`.
    pub keys: *const u32,
    /// Factor on what is added.
    pub factor: f32,
    /// Not 0: rows of `x` may hold NaN or Inf, which must not meet the weight 0 of a forbidden pair; pairs are then
    /// taken one by one, and those of weight 0 left out.
    pub exact: usize,
}

/// Keys of a register tile.
const KEYS: usize = 6;

impl TransposedCall {
    /// The row number of query `r`.
    unsafe fn x_row(&self, r: usize) -> *const f32 {
        // SAFETY: `r < rows`.
        unsafe {
            let row = if self.x_rows.is_null() { r } else { *self.x_rows.add(r) as usize };
            self.x.add(row * self.x_stride)
        }
    }

    /// The row of key `j` in the result.
    unsafe fn out_row(&self, j: usize) -> *mut f32 {
        // SAFETY: `j < nkeys`.
        unsafe {
            let row = if self.keys.is_null() { j } else { *self.keys.add(j) as usize };
            self.out.add(row * self.out_stride)
        }
    }

    /// The queries that any of `count` keys from `j` on is allowed for.
    unsafe fn seen(&self, j: usize, count: usize) -> u64 {
        if self.words.is_null() {
            return u64::MAX;
        }
        // SAFETY: `j + count <= nkeys`.
        (0..count).fold(0, |seen, i| seen | unsafe { *self.words.add(j + i) })
    }
}

/// Pair by pair, without those that are not allowed or have no weight.
#[inline(always)]
unsafe fn pair_by_pair(c: &TransposedCall) {
    for j in 0..c.nkeys {
        for r in 0..c.rows {
            // SAFETY: `j < nkeys`, `r < rows`, columns below `width`.
            unsafe {
                if !c.words.is_null() && *c.words.add(j) >> r & 1 == 0 {
                    continue;
                }
                let weight = c.factor * *c.p.add(r / LANES * c.p_stride + j * LANES + r % LANES);
                if weight == 0.0 {
                    continue;
                }
                let (x, out) = (c.x_row(r), c.out_row(j));
                for column in 0..c.width {
                    *out.add(column) += weight * *x.add(column);
                }
            }
        }
    }
}

/// For any CPU.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn transposed(call: *const TransposedCall) {
    // SAFETY: the caller's contract.
    unsafe { register_tiles::<Array<4>>(&*call) }
}

/// `out[key(e)][:] += factor · s[e] · x[row(r)][:]` for the edges of every query of a block. A weight of 0 adds nothing,
/// whatever it meets.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ScatterCall {
    /// Queries, offsets, keys and weights, as for edge values; `q` are the rows `x`, `q_stride` and `q_rows` theirs,
    /// `dv` their width, `scale` the factor.
    pub edges: EdgeCall,
    /// Row 0 of all keys in the result.
    pub out: *mut f32,
    /// Floats from one key's row to the next.
    pub out_stride: usize,
}

/// See [`ScatterCall`]; where `FUSED`, products are added without a rounding between.
///
/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn scatter_edges<const FUSED: bool>(call: &ScatterCall) {
    let c = &call.edges;
    for r in 0..c.rows {
        // SAFETY: `r < rows`; edges lie between the row's offsets; columns below `dv`.
        unsafe {
            let base = *c.offsets as usize;
            let (begin, end) = (*c.offsets.add(r) as usize, *c.offsets.add(r + 1) as usize);
            let row = if c.q_rows.is_null() { r } else { *c.q_rows.add(r) as usize };
            let x = c.q.add(row * c.q_stride);
            for edge in begin..end {
                let weight = c.scale * *c.s.add(edge - base);
                if weight == 0.0 {
                    continue;
                }
                let out = call.out.add(*c.edge_keys.add(edge) as usize * call.out_stride);
                let mut column = 0;
                while column + LANES <= c.dv {
                    let (out, x) = (out.add(column).cast::<[f32; LANES]>(), x.add(column).cast::<[f32; LANES]>());
                    let (mut sums, x) = (out.read_unaligned(), x.read_unaligned());
                    for i in 0..LANES {
                        sums[i] = if FUSED { x[i].mul_add(weight, sums[i]) } else { sums[i] + weight * x[i] };
                    }
                    out.write_unaligned(sums);
                    column += LANES;
                }
                for column in column..c.dv {
                    *out.add(column) += weight * *x.add(column);
                }
            }
        }
    }
}

/// For any CPU.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn scatter(call: *const ScatterCall) {
    // SAFETY: the caller's contract.
    unsafe { scatter_edges::<false>(&*call) }
}

/// See [`TransposedCall`], in register tiles.
///
/// # Safety
/// Contract of [`super`], and the CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn register_tiles<V: Vectors>(c: &TransposedCall) {
    // SAFETY: keys `j .. j + count` are below `nkeys`.
    unsafe {
        if c.exact != 0 {
            return pair_by_pair(c);
        }
        let mut j = 0;
        while j < c.nkeys {
            let count = KEYS.min(c.nkeys - j);
            match count {
                1 => keys::<V, 1>(c, j),
                2 => keys::<V, 2>(c, j),
                3 => keys::<V, 3>(c, j),
                4 => keys::<V, 4>(c, j),
                5 => keys::<V, 5>(c, j),
                _ => keys::<V, KEYS>(c, j),
            }
            j += count;
        }
    }
}

/// Some keys over all columns.
#[inline(always)]
unsafe fn keys<V: Vectors, const R: usize>(c: &TransposedCall, j: usize) {
    // SAFETY: as the caller; columns stay below `width`.
    unsafe {
        let seen = c.seen(j, R);
        let vectors = if V::REGISTERS > 16 { 4 } else { 2 };
        let mut column = 0;
        while column + vectors * V::WIDTH <= c.width {
            match vectors {
                4 => tile::<V, R, 4, false>(c, j, seen, column, V::WIDTH),
                _ => tile::<V, R, 2, false>(c, j, seen, column, V::WIDTH),
            }
            column += vectors * V::WIDTH;
        }
        while column < c.width {
            let left = c.width - column;
            if left >= V::WIDTH {
                tile::<V, R, 1, false>(c, j, seen, column, V::WIDTH);
            } else {
                tile::<V, R, 1, true>(c, j, seen, column, left);
            }
            column += V::WIDTH;
        }
    }
}

/// `R` keys, `C` vectors of columns.
#[inline(always)]
unsafe fn tile<V: Vectors, const R: usize, const C: usize, const CUT: bool>(
    c: &TransposedCall,
    j: usize,
    seen: u64,
    column: usize,
    left: usize,
) {
    // SAFETY: `r < rows`, keys as the caller says; a cut vector touches `left` columns.
    unsafe {
        let tail = V::first(left);
        let zero = V::splat(0.0);
        let mut sums = [[zero; C]; R];
        for group in 0..c.rows.div_ceil(LANES) {
            if seen >> (group * LANES) & 0xFFFF == 0 {
                continue;
            }
            let start = group * LANES;
            let p = c.p.add(group * c.p_stride + j * LANES);
            let mut row = c.x.wrapping_add(start * c.x_stride + column);
            for lane in 0..LANES.min(c.rows - start) {
                let x = if c.x_rows.is_null() { row } else { c.x_row(start + lane).add(column) };
                row = row.wrapping_add(c.x_stride);
                let mut values = [zero; C];
                for i in 0..C {
                    let at = x.add(i * V::WIDTH);
                    values[i] = if CUT { V::load_cut(at, tail) } else { V::load(at) };
                }
                for r in 0..R {
                    let weight = V::splat(*p.add(r * LANES + lane));
                    for i in 0..C {
                        sums[r][i] = V::fma(values[i], weight, sums[r][i]);
                    }
                }
            }
        }
        let factor = V::splat(c.factor);
        for r in 0..R {
            let out = c.out_row(j + r).add(column);
            for i in 0..C {
                let at = out.add(i * V::WIDTH);
                if CUT {
                    V::store_cut(at, tail, V::fma(sums[r][i], factor, V::load_cut(at, tail)));
                } else {
                    V::store(at, V::fma(sums[r][i], factor, V::load(at)));
                }
            }
        }
    }
}

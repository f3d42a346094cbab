//! Dense work on rows: scaled, added, copied, multiplied with other rows, and dropped entries.
//!
//! A call works on up to 64 rows of `width` columns. Row `r` of an array lies at its base plus `number(r)` strides, where
//! the number comes from `rows`, or is `r`; one row is written once. Columns beyond `width` are never touched.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: see `lanes`.
#![allow(clippy::needless_range_loop)]

use super::calls::LANES;
use super::lanes::{Lanes, not_dropped};
use crate::dropout::hash;

#[cfg(test)]
mod tests;

/// Rows and what is done with them. A tile reads the fields that its formula names and no others.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RowsCall {
    /// Row 0 of x.
    pub x: *const f32,
    /// Floats from one row of x to the next.
    pub x_stride: usize,
    /// Row 0 of y.
    pub y: *const f32,
    /// Floats from one row of y to the next.
    pub y_stride: usize,
    /// Row 0 of w.
    pub w: *const f32,
    /// Floats from one row of w to the next.
    pub w_stride: usize,
    /// Row 0 of the result.
    pub out: *mut f32,
    /// Floats from one row of the result to the next.
    pub out_stride: usize,
    /// Row numbers, or null for rows `0..count`.
    pub rows: *const u32,
    /// Rows, 1 to 64.
    pub count: usize,
    /// Columns.
    pub width: usize,
    /// A factor for each row, by its place in the call, or null for 1.
    pub lanes_in: *const f32,
    /// A sum for each row, by its place in the call.
    pub lanes_out: *mut f32,
    /// Factor on all rows.
    pub factor: f32,
    /// Factor on the products with w; 0 leaves them out, and w is not read.
    pub restart: f32,
    /// [`crate::dropout::row_key`] of each row, by its place in the call.
    pub row_keys: *const u32,
    /// [`crate::dropout::threshold`] of the rate.
    pub threshold: u32,
    /// 1 / (1 − rate): factor on what is kept, or on the products with y.
    pub keep: f32,
}

/// `out[r] = factor · lanes_in[r] · x[r]`.
const SCALE: u8 = 0;
/// `out[r] += factor · x[r]`.
const ADD: u8 = 1;
/// `out[r] = x[r]`.
const COPY: u8 = 2;
/// `out[r][c] = 0` where `hash(row_keys[r], c) < threshold`, else `out[r][c] · keep`.
const DROP: u8 = 3;

impl RowsCall {
    /// The number of row `r`.
    #[inline(always)]
    unsafe fn number(&self, r: usize) -> usize {
        // SAFETY: `r < count`.
        if self.rows.is_null() { r } else { unsafe { *self.rows.add(r) as usize } }
    }

    /// The factor on row `r`.
    #[inline(always)]
    unsafe fn factor(&self, kind: u8, r: usize) -> f32 {
        match kind {
            // SAFETY: `r < count`.
            SCALE if !self.lanes_in.is_null() => self.factor * unsafe { *self.lanes_in.add(r) },
            DROP => self.keep,
            _ => self.factor,
        }
    }
}

/// The tiles for any CPU and for a family.
macro_rules! tiles {
    ($($(#[$doc:meta])* $name:ident, $vectors:ident: $kind:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The record's pointers hold what its fields say (contract of [`super`]).
        pub unsafe extern "C" fn $name(call: *const RowsCall) {
            // SAFETY: the caller's contract.
            unsafe { plain::<$kind>(&*call) }
        }

        /// The same by vectors.
        ///
        /// # Safety
        /// The same, and the CPU has the instructions.
        #[inline(always)]
        pub(super) unsafe fn $vectors<L: Lanes>(c: &RowsCall) {
            // SAFETY: the caller's.
            unsafe { vectors::<L, $kind>(c) }
        }
    )*};
}

tiles! {
    /// `out[r] = factor · lanes_in[r] · x[r]`; for any CPU.
    scale_rows, scale: SCALE;
    /// `out[r] += factor · x[r]`; for any CPU.
    add_rows, add: ADD;
    /// `out[r] = x[r]`; for any CPU.
    copy_rows, copy: COPY;
    /// `out[r][c] = 0` where [`hash`]`(row_keys[r], c) < threshold`, else `out[r][c] · keep`; for any CPU.
    drop_rows, drop: DROP;
}

/// Column by column.
unsafe fn plain<const KIND: u8>(c: &RowsCall) {
    for r in 0..c.count {
        // SAFETY: `r < count`, columns below `width`.
        unsafe {
            let (number, factor) = (c.number(r), c.factor(KIND, r));
            let (x, out) = (c.x.wrapping_add(number * c.x_stride), c.out.add(number * c.out_stride));
            for column in 0..c.width {
                let out = out.add(column);
                *out = match KIND {
                    SCALE => factor * *x.add(column),
                    ADD => *out + factor * *x.add(column),
                    COPY => *x.add(column),
                    // Selected: what is dropped is 0, whatever it was.
                    _ if hash(*c.row_keys.add(r), column as u32) < c.threshold => 0.0,
                    _ => *out * factor,
                };
            }
        }
    }
}

#[inline(always)]
unsafe fn vectors<L: Lanes, const KIND: u8>(c: &RowsCall) {
    for r in 0..c.count {
        // SAFETY: `r < count`, columns below `width`.
        unsafe {
            let number = c.number(r);
            let (x, out) = (c.x.wrapping_add(number * c.x_stride), c.out.add(number * c.out_stride));
            let factor = L::splat(c.factor(KIND, r));
            let key = L::splat_word(if KIND == DROP { *c.row_keys.add(r) } else { 0 });
            let mut column = 0;
            while column < c.width {
                let (x, out) = (x.wrapping_add(column), out.add(column));
                if c.width - column >= L::WIDTH {
                    let x = L::load(if KIND == DROP { out } else { x });
                    let before = if KIND == ADD { L::load(out) } else { x };
                    L::store(out, changed::<L, KIND>(c, x, before, factor, key, column));
                } else {
                    let tail = L::first(c.width - column);
                    let x = L::load_cut(if KIND == DROP { out } else { x }, tail);
                    let before = if KIND == ADD { L::load_cut(out, tail) } else { x };
                    L::store_cut(out, tail, changed::<L, KIND>(c, x, before, factor, key, column));
                }
                column += L::WIDTH;
            }
        }
    }
}

/// What becomes of a vector.
#[inline(always)]
unsafe fn changed<L: Lanes, const KIND: u8>(
    c: &RowsCall,
    x: L::Floats,
    before: L::Floats,
    factor: L::Floats,
    key: L::Words,
    column: usize,
) -> L::Floats {
    // SAFETY: the caller's: the CPU has the instructions.
    unsafe {
        match KIND {
            SCALE => L::mul(x, factor),
            ADD => L::fma(x, factor, before),
            COPY => x,
            _ => L::select(not_dropped::<L>(key, L::words_from(column as u32), c.threshold), L::mul(x, factor)),
        }
    }
}

/// `lanes_out[r] += lanes_in[r] · (keep · Σ x[r] y[r] − restart · Σ x[r] w[r])`; for any CPU.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn dot_rows(call: *const RowsCall) {
    // SAFETY: the caller's contract; `r < count`, columns below `width`.
    unsafe {
        let c = &*call;
        for r in 0..c.count {
            let number = c.number(r);
            let x = c.x.add(number * c.x_stride);
            let dot = |other: *const f32, stride: usize| {
                let other = other.add(number * stride);
                let mut sums = [0.0; LANES];
                let whole = c.width / LANES * LANES;
                for column in (0..whole).step_by(LANES) {
                    for i in 0..LANES {
                        sums[i] += *x.add(column + i) * *other.add(column + i);
                    }
                }
                (whole..c.width).fold(sums.iter().sum::<f32>(), |sum, column| sum + *x.add(column) * *other.add(column))
            };
            let mut sum = c.keep * dot(c.y, c.y_stride);
            if c.restart != 0.0 {
                sum -= c.restart * dot(c.w, c.w_stride);
            }
            *c.lanes_out.add(r) += if c.lanes_in.is_null() { 1.0 } else { *c.lanes_in.add(r) } * sum;
        }
    }
}

/// [`dot_rows`] by vectors: as many rows at a time as a vector has lanes, reduced together.
///
/// # Safety
/// The same, and the CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes>(c: &RowsCall) {
    let mut first = 0;
    while first < c.count {
        let count = L::WIDTH.min(c.count - first);
        // SAFETY: `first + count <= count` of the call.
        unsafe {
            let keep = L::first(count);
            let mut sum = L::mul(dots::<L>(c, c.y, c.y_stride, first, count), L::splat(c.keep));
            if c.restart != 0.0 {
                let restart = dots::<L>(c, c.w, c.w_stride, first, count);
                sum = L::sub(sum, L::mul(restart, L::splat(c.restart)));
            }
            let factors =
                if c.lanes_in.is_null() { L::splat(1.0) } else { L::load_cut(c.lanes_in.add(first), keep) };
            let out = c.lanes_out.add(first);
            L::store_cut(out, keep, L::fma(factors, sum, L::load_cut(out, keep)));
        }
        first += count;
    }
}

/// In lane `i < count` the product of row `first + i` of x and of another array.
#[inline(always)]
unsafe fn dots<L: Lanes>(c: &RowsCall, other: *const f32, stride: usize, first: usize, count: usize) -> L::Floats {
    // SAFETY: rows are below the call's `count`, columns below `width`.
    unsafe {
        let mut sums = [L::splat(0.0); LANES];
        for i in 0..L::WIDTH {
            if i < count {
                let number = c.number(first + i);
                let (x, other) = (c.x.add(number * c.x_stride), other.add(number * stride));
                let mut column = 0;
                while column + L::WIDTH <= c.width {
                    sums[i] = L::fma(L::load(x.add(column)), L::load(other.add(column)), sums[i]);
                    column += L::WIDTH;
                }
                if column < c.width {
                    let tail = L::first(c.width - column);
                    let other = L::load_cut(other.add(column), tail);
                    sums[i] = L::fma(L::load_cut(x.add(column), tail), other, sums[i]);
                }
            }
        }
        L::sums_across(&sums)
    }
}

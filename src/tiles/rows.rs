//! Operations row by row, without neighbors: what gradients do to rows of Z between hops.
//!
//! Plain loops over the columns of a row, which `family_table!` compiles once for each family.
#![allow(unsafe_code)]

use crate::dropout::hash;
use crate::dtype::{Dtype, Element};

/// Up to 64 rows of `width` columns. Row `r` of an operand lies at `base + number · stride`, where `number` is the entry
/// `r` of its list, or `r` where that is null. Operands that a tile does not name are not read.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RowsCall {
    /// First operand.
    pub x: *const f32,
    /// Floats from one of its rows to the next.
    pub x_stride: usize,
    /// Numbers of its rows, or null.
    pub x_rows: *const u32,
    /// Second operand.
    pub y: *const f32,
    /// As for x.
    pub y_stride: usize,
    /// As for x.
    pub y_rows: *const u32,
    /// Third operand.
    pub w: *const f32,
    /// As for x.
    pub w_stride: usize,
    /// As for x.
    pub w_rows: *const u32,
    /// What is written.
    pub out: *mut f32,
    /// As for x.
    pub out_stride: usize,
    /// As for x.
    pub out_rows: *const u32,
    /// Rows.
    pub count: usize,
    /// Columns.
    pub width: usize,
    /// A number for each row, or null for 1.
    pub lanes_in: *const f32,
    /// Numbers for each row that are added to.
    pub lanes_out: *mut f32,
    /// Factor.
    pub factor: f32,
    /// Factor on w; 0 leaves it out.
    pub restart: f32,
    /// Dropout's [`row_key`](crate::dropout::row_key) of each row.
    pub row_keys: *const u32,
    /// Dropout's threshold.
    pub threshold: u32,
    /// What dropout multiplies the rest with, or what products are multiplied with.
    pub keep: f32,
    /// Storage of the rows that a copy writes.
    pub dtype: Dtype,
}

impl RowsCall {
    #[inline(always)]
    unsafe fn row(base: *const f32, stride: usize, rows: *const u32, r: usize) -> *const f32 {
        // SAFETY: `r < count`, and the list names rows of the operand.
        unsafe {
            let number = if rows.is_null() { r } else { *rows.add(r) as usize };
            base.add(number * stride)
        }
    }

    #[inline(always)]
    unsafe fn x(&self, r: usize) -> *const f32 {
        // SAFETY: as `row`.
        unsafe { Self::row(self.x, self.x_stride, self.x_rows, r) }
    }

    #[inline(always)]
    unsafe fn out(&self, r: usize) -> *mut f32 {
        // SAFETY: as `row`.
        unsafe { Self::row(self.out, self.out_stride, self.out_rows, r).cast_mut() }
    }

    #[inline(always)]
    unsafe fn lane(&self, r: usize) -> f32 {
        // SAFETY: `r < count`.
        if self.lanes_in.is_null() { 1.0 } else { unsafe { *self.lanes_in.add(r) } }
    }
}

/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn copy(c: &RowsCall) {
    // SAFETY: rows below `count`, columns below `width`; rows of x and out do not overlap.
    unsafe {
        match c.dtype {
            Dtype::F32 => (0..c.count).for_each(|r| std::ptr::copy_nonoverlapping(c.x(r), c.out(r), c.width)),
            Dtype::Bf16 => round::<half::bf16>(c),
            Dtype::F16 => round::<half::f16>(c),
        }
    }
}

/// A copy to rows of T.
#[inline(always)]
unsafe fn round<T: Element>(c: &RowsCall) {
    for r in 0..c.count {
        // SAFETY: rows below `count`, columns below `width`; strides count elements of T.
        unsafe {
            let number = if c.out_rows.is_null() { r } else { *c.out_rows.add(r) as usize };
            let (x, out) = (c.x(r), c.out.cast::<T>().add(number * c.out_stride));
            for column in 0..c.width {
                out.add(column).write(T::nearest(*x.add(column)));
            }
        }
    }
}

/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn scale(c: &RowsCall) {
    for r in 0..c.count {
        // SAFETY: rows below `count`, columns below `width`.
        unsafe {
            let (x, out, factor) = (c.x(r), c.out(r), c.factor * c.lane(r));
            for column in 0..c.width {
                *out.add(column) = factor * *x.add(column);
            }
        }
    }
}

/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn add(c: &RowsCall) {
    for r in 0..c.count {
        // SAFETY: rows below `count`, columns below `width`.
        unsafe {
            let (x, out) = (c.x(r), c.out(r));
            for column in 0..c.width {
                *out.add(column) += c.factor * *x.add(column);
            }
        }
    }
}

/// Partial sums of a product of rows, so that it is done in vectors.
const SUMS: usize = 16;

#[inline(always)]
unsafe fn product(x: *const f32, y: *const f32, width: usize) -> f32 {
    let mut sums = [0.0_f32; SUMS];
    let whole = width / SUMS * SUMS;
    // SAFETY: columns stay below `width`.
    unsafe {
        for column in (0..whole).step_by(SUMS) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum += *x.add(column + lane) * *y.add(column + lane);
            }
        }
        for (lane, column) in (whole..width).enumerate() {
            sums[lane] += *x.add(column) * *y.add(column);
        }
    }
    sums.iter().sum()
}

/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn dot(c: &RowsCall) {
    for r in 0..c.count {
        // SAFETY: rows below `count`, columns below `width`; w is read only where it has a factor.
        unsafe {
            let x = c.x(r);
            let mut sum = c.keep * product(x, RowsCall::row(c.y, c.y_stride, c.y_rows, r), c.width);
            if c.restart != 0.0 {
                sum -= c.restart * product(x, RowsCall::row(c.w, c.w_stride, c.w_rows, r), c.width);
            }
            *c.lanes_out.add(r) += c.lane(r) * sum;
        }
    }
}

/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn drop(c: &RowsCall) {
    for r in 0..c.count {
        // SAFETY: rows below `count`, columns below `width`.
        unsafe {
            let (out, key) = (c.out(r), *c.row_keys.add(r));
            for column in 0..c.width {
                let x = out.add(column);
                // Selected: what is dropped is 0, whatever it was.
                *x = if hash(key, column as u32) < c.threshold { 0.0 } else { *x * c.keep };
            }
        }
    }
}

/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn sum(c: &RowsCall) {
    // SAFETY: lanes below `count`; one sum.
    unsafe {
        let all: f32 = (0..c.count).map(|r| c.lane(r)).sum();
        *c.lanes_out += c.factor * all;
    }
}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident = $body:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The record's pointers hold what its fields say (contract of [`super`]).
        pub unsafe extern "C" fn $name(call: *const RowsCall) {
            // SAFETY: the caller's contract.
            unsafe { $body(&*call) }
        }
    )*};
}

plain! {
    /// `out = x`, rounded to `dtype`.
    copy_rows = copy;
    /// `out = factor · lanes_in · x`.
    scale_rows = scale;
    /// `out += factor · x`.
    add_rows = add;
    /// `lanes_out += lanes_in · (keep · x · y − restart · x · w)`.
    dot_rows = dot;
    /// `out = 0` where dropout's hash of row and column is below `threshold`, else `keep · out`.
    drop_rows = drop;
    /// `lanes_out[0] += factor · Σ lanes_in`.
    sum_rows = sum;
}

/// The tiles of this file: copy, scale, add, dot, drop, sum.
pub type RowsTiles = [super::Tile<RowsCall>; 6];

/// For any CPU.
pub const PLAIN: RowsTiles = [copy_rows, scale_rows, add_rows, dot_rows, drop_rows, sum_rows];

#[cfg(test)]
mod tests;

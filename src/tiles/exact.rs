//! Values edge by edge, for blocks whose tile result is not finite.
//!
//! A value tile multiplies masked keys by probability 0, and 0 · NaN is NaN: a NaN or infinity in a masked value
//! row reaches queries that may not see it. Such a block is done again here, over allowed keys alone. Scalar, and
//! the same for every family: it runs only where an input or a result is not finite. Gradients take scattered edges this
//! way too, and leave out weights of 0.
#![allow(unsafe_code)]

use super::calls::{EdgeCall, LANES};

/// Values over allowed keys: `acc[r][:] (+)= Σ_j p[r / 16][j][r % 16] · v[key(j)][:]` for `r < rows`, over the `j`
/// whose word has bit `r`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ExactCall {
    /// Where the run's first key stands in group 0 of the panel.
    pub p: *const f32,
    /// Floats from one group's panel to the next.
    pub p_stride: usize,
    /// Row 0 of the run's values, or of the head's values where `keys` is given.
    pub v: *const f32,
    /// Floats from one value row to the next.
    pub v_stride: usize,
    /// Row numbers of the values, or null for rows `0..nkeys` from `v`.
    pub keys: *const u32,
    /// Keys.
    pub nkeys: usize,
    /// Width of a value row.
    pub dv: usize,
    /// Queries, 1 to 64.
    pub rows: usize,
    /// One word per key, or null where all is allowed.
    pub words: *const u64,
    /// Sums, `[rows][acc_stride]`.
    pub acc: *mut f32,
    /// Floats from one row of `acc` to the next.
    pub acc_stride: usize,
    /// 0: start from zero. 1: start from `acc`.
    pub accumulate: usize,
    /// Not 0: a weight of 0 adds nothing, whatever it meets. So it is backward: a key that is infinitely far from a query
    /// has weight 0, and its rows no part in the query's gradient.
    pub skip_zeros: usize,
}

/// See [`ExactCall`].
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn value_exact(call: *const ExactCall) {
    // SAFETY: the caller's contract; every index below stays under `rows`, `nkeys` and `dv`.
    unsafe {
        let c = &*call;
        for r in 0..c.rows {
            let acc = c.acc.add(r * c.acc_stride);
            if c.accumulate == 0 {
                for x in 0..c.dv {
                    *acc.add(x) = 0.0;
                }
            }
            for j in 0..c.nkeys {
                if !c.words.is_null() && *c.words.add(j) >> r & 1 == 0 {
                    continue;
                }
                let p = *c.p.add(r / LANES * c.p_stride + j * LANES + r % LANES);
                if c.skip_zeros != 0 && p == 0.0 {
                    continue;
                }
                let row = if c.keys.is_null() { j } else { *c.keys.add(j) as usize };
                let v = c.v.add(row * c.v_stride);
                for x in 0..c.dv {
                    *acc.add(x) = p.mul_add(*v.add(x), *acc.add(x));
                }
            }
        }
    }
}

/// Edge values as [`EdgeCall`] has them, without the edges of weight 0.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn edge_value_exact(call: *const EdgeCall) {
    // SAFETY: the caller's contract; `r < rows`, edges lie between the row's offsets, columns below `dv`.
    unsafe {
        let c = &*call;
        let base = *c.offsets as usize;
        for r in 0..c.rows {
            let acc = c.acc.add(r * c.acc_stride);
            if c.accumulate == 0 {
                std::slice::from_raw_parts_mut(acc, c.dv).fill(0.0);
            }
            for edge in *c.offsets.add(r) as usize..*c.offsets.add(r + 1) as usize {
                let weight = *c.s.add(edge - base);
                if weight == 0.0 {
                    continue;
                }
                let row = c.kv.add(*c.edge_keys.add(edge) as usize * c.kv_stride);
                for x in 0..c.dv {
                    *acc.add(x) = weight.mul_add(*row.add(x), *acc.add(x));
                }
            }
        }
    }
}

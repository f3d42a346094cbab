//! The softmax's own gradient over a panel, and dropout.
//!
//! A few operations an element, beside the tiles' multiply-adds for every column of a row.
#![allow(unsafe_code)]

use super::LANES;
use super::lanes::{Array, Vectors, kept};
use crate::dropout::hash;

/// Which weights of a panel are dropped: those of key `j` and query `i` where
/// [`hash`]`(row_keys[i], key number j) < threshold`. The others are multiplied by `keep`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Dropped {
    /// Of every query, [`crate::dropout::row_key`], `[groups * 16]`; null where nothing is dropped.
    pub row_keys: *const u32,
    /// Row numbers of the keys, or null for `first_key`, `first_key + key_step`, ...
    pub keys: *const u32,
    /// Number of the first key, where `keys` is null.
    pub first_key: usize,
    /// From one key to the next, where `keys` is null.
    pub key_step: usize,
    /// [`crate::dropout::threshold`] of the rate.
    pub threshold: u32,
    /// 1 / (1 − rate).
    pub keep: f32,
}

/// A panel, in place: `p = m ∘ p`, with m what [`Dropped`] says, where that is wanted, and, where `dp` is given,
/// `dp = scale · p ∘ (m ∘ dp − delta)`, with the p from before and 0 where that is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GradientCall {
    /// Probabilities: where the segment's first key stands in group 0 of the panel.
    pub p: *mut f32,
    /// Their gradient, in another panel; null where only weights are dropped.
    pub dp: *mut f32,
    /// Floats from one group's panel to the next.
    pub stride: usize,
    /// The same in the panel of `dp`.
    pub dp_stride: usize,
    /// Not 0: what dropout leaves of p is written in its place.
    pub leaves: usize,
    /// Keys, at least 1.
    pub nkeys: usize,
    /// Groups of 16 queries, 1 to 4.
    pub groups: usize,
    /// Σ_j p dp of every query, `[groups * 16]`.
    pub delta: *const f32,
    /// Factor on the gradient.
    pub scale: f32,
    /// Dropout.
    pub dropped: Dropped,
}

/// The same over the scattered edges of a block; edges as in [`super::EdgeCall`], key numbers from `edge_keys`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EdgeGradientCall {
    /// Probabilities of the block's edges.
    pub p: *mut f32,
    /// Their gradient, or null.
    pub dp: *mut f32,
    /// As in [`GradientCall`].
    pub leaves: usize,
    /// Queries, 1 to 64.
    pub rows: usize,
    /// `[rows + 1]` offsets of the block's queries into the head's edge list.
    pub offsets: *const u32,
    /// The head's edge list: key row numbers.
    pub edge_keys: *const u32,
    /// As in [`GradientCall`], `[rows]`.
    pub delta: *const f32,
    /// As in [`GradientCall`].
    pub scale: f32,
    /// Dropout; `keys`, `first_key` and `key_step` are not read.
    pub dropped: Dropped,
}

#[inline(always)]
fn gradient_of(p: f32, dp: f32, factor: f32, delta: f32, scale: f32) -> f32 {
    let ds = scale * p * (factor * dp - delta);
    // Whatever stands at a pair that is not allowed.
    if p == 0.0 { 0.0 } else { ds }
}

/// See [`GradientCall`], a vector of queries after the other.
///
/// # Safety
/// Contract of [`super`], and the CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn panel<V: Vectors>(c: &GradientCall) {
    // SAFETY: `part` lies in one of the groups, keys stay below `nkeys`, vectors within a key's lanes.
    unsafe {
        let d = &c.dropped;
        let (scale, zero) = (V::splat(c.scale), V::splat(0.0));
        for part in 0..c.groups * (LANES / V::WIDTH) {
            let first = part * V::WIDTH;
            let (group, lane) = (first / LANES, first % LANES);
            let (mut p, mut dp) = (c.p.add(group * c.stride + lane), c.dp.wrapping_add(group * c.dp_stride + lane));
            let minus = if c.dp.is_null() { zero } else { V::mul(V::load(c.delta.add(first)), V::splat(-1.0)) };
            let row_keys = if d.row_keys.is_null() { V::splat_word(0) } else { V::load_words(d.row_keys.add(first)) };
            for j in 0..c.nkeys {
                let weights = V::load(p);
                let mut factors = V::splat(1.0);
                if !d.row_keys.is_null() {
                    let key = if d.keys.is_null() { (d.first_key + j * d.key_step) as u32 } else { *d.keys.add(j) };
                    factors = V::select(kept::<V>(row_keys, key, d.threshold), V::splat(d.keep));
                }
                if !c.dp.is_null() {
                    let inner = V::fma(V::load(dp), factors, minus);
                    // Whatever stands at a pair that is not allowed.
                    V::store(dp, V::select(V::not_zero(weights), V::mul(V::mul(weights, scale), inner)));
                }
                if c.leaves != 0 && !d.row_keys.is_null() {
                    // Selected: what is dropped is 0, whatever it was.
                    V::store(p, V::select(V::not_zero(factors), V::mul(weights, factors)));
                }
                p = p.wrapping_add(LANES);
                dp = dp.wrapping_add(LANES);
            }
        }
    }
}

/// See [`EdgeGradientCall`].
///
/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn edges(c: &EdgeGradientCall) {
    let d = &c.dropped;
    // SAFETY: `r < rows`; edges lie between the row's offsets.
    unsafe {
        let base = *c.offsets as usize;
        for r in 0..c.rows {
            for edge in *c.offsets.add(r) as usize..*c.offsets.add(r + 1) as usize {
                let p = c.p.add(edge - base);
                let factor = match d.row_keys.is_null() {
                    true => 1.0,
                    false if hash(*d.row_keys.add(r), *c.edge_keys.add(edge)) >= d.threshold => d.keep,
                    false => 0.0,
                };
                if !c.dp.is_null() {
                    let dp = c.dp.add(edge - base);
                    *dp = gradient_of(*p, *dp, factor, *c.delta.add(r), c.scale);
                }
                if c.leaves != 0 {
                    *p = if factor == 0.0 { 0.0 } else { *p * factor };
                }
            }
        }
    }
}

/// See [`GradientCall`]; for any CPU.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn gradient(call: *const GradientCall) {
    // SAFETY: the caller's contract.
    unsafe { panel::<Array<LANES>>(&*call) }
}

/// See [`EdgeGradientCall`]; for any CPU.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn edge_gradient(call: *const EdgeGradientCall) {
    // SAFETY: the caller's contract.
    unsafe { edges(&*call) }
}

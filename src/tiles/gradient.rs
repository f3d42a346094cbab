//! The softmax's own gradient over a panel, and dropout.
//!
//! A few operations an element, beside the tiles' multiply-adds for every column of a row.
#![allow(unsafe_code)]
// As in the families: lanes are indexed by constant-trip loops.
#![allow(clippy::needless_range_loop)]

use super::LANES;
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

#[inline(always)]
unsafe fn panel(c: &GradientCall) {
    type Lanes = [f32; LANES];
    let d = &c.dropped;
    for group in 0..c.groups {
        // SAFETY: `group < groups`, keys stay below `nkeys`.
        unsafe {
            let (p, dp) = (c.p.add(group * c.stride), c.dp.wrapping_add(group * c.dp_stride));
            let delta =
                if c.dp.is_null() { [0.0; LANES] } else { c.delta.add(group * LANES).cast::<Lanes>().read_unaligned() };
            if d.row_keys.is_null() {
                for j in 0..c.nkeys {
                    let (p, dp) = (p.add(j * LANES).cast::<Lanes>(), dp.add(j * LANES).cast::<Lanes>());
                    let (weights, mut grads) = (p.read_unaligned(), dp.read_unaligned());
                    for i in 0..LANES {
                        grads[i] = gradient_of(weights[i], grads[i], 1.0, delta[i], c.scale);
                    }
                    dp.write_unaligned(grads);
                }
                continue;
            }
            let row_keys = d.row_keys.add(group * LANES).cast::<[u32; LANES]>().read_unaligned();
            for j in 0..c.nkeys {
                let key = if d.keys.is_null() { (d.first_key + j * d.key_step) as u32 } else { *d.keys.add(j) };
                let mut factors = [0.0; LANES];
                for i in 0..LANES {
                    factors[i] = if hash(row_keys[i], key) >= d.threshold { d.keep } else { 0.0 };
                }
                let p = p.add(j * LANES).cast::<Lanes>();
                let mut weights = p.read_unaligned();
                if !c.dp.is_null() {
                    let dp = dp.add(j * LANES).cast::<Lanes>();
                    let mut grads = dp.read_unaligned();
                    for i in 0..LANES {
                        grads[i] = gradient_of(weights[i], grads[i], factors[i], delta[i], c.scale);
                    }
                    dp.write_unaligned(grads);
                }
                if c.leaves == 0 {
                    continue;
                }
                for i in 0..LANES {
                    // Selected: what is dropped is 0, whatever it was.
                    weights[i] = if factors[i] == 0.0 { 0.0 } else { weights[i] * factors[i] };
                }
                p.write_unaligned(weights);
            }
        }
    }
}

#[inline(always)]
unsafe fn edges(c: &EdgeGradientCall) {
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
    unsafe { panel(&*call) }
}

/// See [`EdgeGradientCall`]; for any CPU.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn edge_gradient(call: *const EdgeGradientCall) {
    // SAFETY: the caller's contract.
    unsafe { edges(&*call) }
}

#[cfg(target_arch = "x86_64")]
macro_rules! vectorised {
    ($gradient:ident, $edge_gradient:ident, $module:ident, $vector:ident, $features:literal, $width:literal) => {
        mod $module {
            use super::{EdgeGradientCall, GradientCall};
            use crate::tiles::LANES;
            use crate::tiles::lanes::$vector::*;

            /// See [`GradientCall`].
            #[target_feature(enable = $features)]
            pub unsafe extern "C" fn $gradient(call: *const GradientCall) {
                // SAFETY: contract of `tiles`; `group < groups`, keys stay below `nkeys`, vectors within a key's lanes.
                unsafe {
                    let c = &*call;
                    let d = &c.dropped;
                    let (one, scale) = (splat(1.0), splat(c.scale));
                    for part in 0..c.groups * (LANES / $width) {
                        let (group, lane) = (part * $width / LANES, part * $width % LANES);
                        let (mut p, mut dp) =
                            (c.p.add(group * c.stride + lane), c.dp.wrapping_add(group * c.dp_stride + lane));
                        let at = group * LANES + lane;
                        let minus = if c.dp.is_null() { zero() } else { mul(load(c.delta.add(at)), splat(-1.0)) };
                        let row_keys = d.row_keys.wrapping_add(at);
                        for j in 0..c.nkeys {
                            let weights = load(p);
                            let factors = if d.row_keys.is_null() {
                                one
                            } else {
                                let key = match d.keys.is_null() {
                                    true => (d.first_key + j * d.key_step) as u32,
                                    false => *d.keys.add(j),
                                };
                                factors(row_keys, key, d.threshold, d.keep)
                            };
                            if !c.dp.is_null() {
                                let inner = fma(load(dp), factors, minus);
                                store(dp, where_some(weights, mul(mul(weights, scale), inner)));
                            }
                            if c.leaves != 0 && !d.row_keys.is_null() {
                                store(p, where_some(factors, mul(weights, factors)));
                            }
                            p = p.wrapping_add(LANES);
                            dp = dp.wrapping_add(LANES);
                        }
                    }
                }
            }

            /// See [`EdgeGradientCall`].
            #[target_feature(enable = $features)]
            pub unsafe extern "C" fn $edge_gradient(call: *const EdgeGradientCall) {
                // SAFETY: contract of `tiles`.
                unsafe { super::edges(&*call) }
            }
        }
        pub(super) use $module::{$edge_gradient, $gradient};
    };
}

#[cfg(target_arch = "x86_64")]
vectorised!(gradient_avx512, edge_gradient_avx512, avx512, f32x16, "avx512f,avx512vl,avx512dq", 16);
#[cfg(target_arch = "x86_64")]
vectorised!(gradient_avx2, edge_gradient_avx2, avx2, f32x8, "avx2,fma", 8);

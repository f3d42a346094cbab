//! Joining the parts of a softmax: what several calls computed over disjoint keys becomes one row.
//!
//! A part leaves its own normalised output, what it subtracted from the scores, and its sum. With m the largest of
//! what the parts subtracted, part p weighs w_p = sum_p · 2^(max_p − m), and the row is Σ w_p out_p / Σ w_p (Milakov and
//! Gimelshein 2018, section 3). A restart term in every part stays as it is, since weights add up to 1.
//!
//! Plain loops, compiled once for each instruction set.
#![allow(unsafe_code)]

use half::{bf16, f16};

use super::LANES;
use crate::dtype::{Dtype, Element};

/// Rows of several parts: `out[r][:] = Σ_p w_p[r] · partial[p][r][:]` for `r < rows`. An f32 output holds the first
/// part's rows before, and is joined in place.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct JoinCall {
    /// Row 0 of the first part's output; not read where that is `out`. Where the output is stored in 16 bits, its rows
    /// are written too.
    pub partial: *mut f32,
    /// Floats from one row of a part to the next.
    pub row_stride: usize,
    /// Floats from one part to the next.
    pub part_stride: usize,
    /// What the first part subtracted from the scores of its rows, in the base-2 domain; −inf where it has no key.
    pub max: *const f32,
    /// The first part's sums.
    pub sum: *const f32,
    /// Floats from one part's statistics to the next.
    pub statistics_stride: usize,
    /// Parts, at least 1.
    pub parts: usize,
    /// Rows.
    pub rows: usize,
    /// Width of a row.
    pub dv: usize,
    /// Row 0 of the output, of elements of `dtype`.
    pub out: *mut u8,
    /// Elements from one output row to the next.
    pub out_stride: usize,
    /// Storage of the output.
    pub dtype: Dtype,
    /// Where the joined maximum goes, or null.
    pub out_max: *mut f32,
    /// Where the joined sum goes; null together with `out_max`.
    pub out_sum: *mut f32,
}

/// See [`JoinCall`].
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn join(call: *const JoinCall) {
    // SAFETY: the caller's contract.
    unsafe { join_rows(&*call) }
}

/// See [`JoinCall`].
///
/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn join_rows(c: &JoinCall) {
    // SAFETY: the record's contract; rows stay below `rows`, parts below `parts`, columns below `dv`.
    unsafe {
        for first in (0..c.rows).step_by(LANES) {
            let count = LANES.min(c.rows - first);
            // Rows beyond the last have sum 0. Whole groups are read as one, which lets the loops below be vectors.
            let statistics = |base: *const f32, part: usize| {
                let from = base.add(part * c.statistics_stride + first);
                if count == LANES {
                    return from.cast::<[f32; LANES]>().read_unaligned();
                }
                std::array::from_fn(|r| if r < count { *from.add(r) } else { 0.0 })
            };
            let mut max = [f32::NEG_INFINITY; LANES];
            for part in 0..c.parts {
                let (maxima, sums) = (statistics(c.max, part), statistics(c.sum, part));
                for r in 0..LANES {
                    // A part without keys for this row has sum 0, and what it subtracted means nothing.
                    let found = if sums[r] == 0.0 { f32::NEG_INFINITY } else { maxima[r] };
                    max[r] = if found > max[r] { found } else { max[r] };
                }
            }
            let weight = |part: usize| {
                let (maxima, sums) = (statistics(c.max, part), statistics(c.sum, part));
                let mut weights = [0.0; LANES];
                for r in 0..LANES {
                    let factor = exp2(maxima[r] - max[r]);
                    weights[r] = if sums[r] == 0.0 { 0.0 } else { sums[r] * factor };
                }
                weights
            };
            let mut total = [0.0; LANES];
            for part in 0..c.parts {
                for (total, weight) in total.iter_mut().zip(weight(part)) {
                    *total += weight;
                }
            }
            for part in 0..c.parts {
                let weights = weight(part);
                for r in 0..count {
                    // A row without any key is what the first part left: the restart term alone.
                    let factor = if total[r] == 0.0 { f32::from(part == 0) } else { weights[r] / total[r] };
                    // Sums in 16 bits would be rounded at every part: they go into the first part's own rows.
                    let to = match c.dtype {
                        Dtype::F32 => c.out.cast::<f32>().add((first + r) * c.out_stride),
                        Dtype::Bf16 | Dtype::F16 => c.partial.add((first + r) * c.row_stride),
                    };
                    if part == 0 {
                        for column in 0..c.dv {
                            *to.add(column) *= factor;
                        }
                    } else if factor != 0.0 {
                        let from = c.partial.wrapping_add(part * c.part_stride + (first + r) * c.row_stride);
                        for column in 0..c.dv {
                            *to.add(column) += factor * *from.add(column);
                        }
                    }
                }
            }
            for r in first..first + count {
                let from = c.partial.wrapping_add(r * c.row_stride);
                match c.dtype {
                    Dtype::F32 => {}
                    Dtype::Bf16 => narrow::<bf16>(from, c.out.cast::<bf16>().add(r * c.out_stride), c.dv),
                    Dtype::F16 => narrow::<f16>(from, c.out.cast::<f16>().add(r * c.out_stride), c.dv),
                }
            }
            if !c.out_max.is_null() {
                for r in 0..count {
                    *c.out_max.add(first + r) = max[r];
                    *c.out_sum.add(first + r) = total[r];
                }
            }
        }
    }
}

/// Rounds a row to its storage type.
#[inline(always)]
unsafe fn narrow<T: Element>(from: *const f32, to: *mut T, dv: usize) {
    // SAFETY: the caller's: both are rows of `dv` elements.
    unsafe {
        for column in 0..dv {
            *to.add(column) = T::nearest(*from.add(column));
        }
    }
}

/// 2^x for x at most 0 (and −inf, NaN), without a branch, so that a loop over it is vectorised; relative error below
/// 2e-7. Degree-7 expansion of 2^r around 0 for |r| at most 1/2.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    // Below 2^-126 the result is taken as 0.
    let low = x < -126.0;
    let x = if low { -126.0 } else { x };
    // The whole part stands in the low bits of the shifted number.
    let shifted = x + 12_582_912.0;
    let whole = (shifted.to_bits() as i32).wrapping_sub(12_582_912.0_f32.to_bits() as i32);
    let r = x - (shifted - 12_582_912.0);
    let mut p = 1.525_273_4e-5_f32;
    for coefficient in
        [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, std::f32::consts::LN_2, 1.0]
    {
        p = p * r + coefficient;
    }
    let scale = f32::from_bits((whole.wrapping_add(127) as u32) << 23);
    if low { 0.0 } else { p * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_exact_enough() {
        for i in 0..=1_260_000 {
            let x = -(i as f32) * 1e-4;
            let (found, exact) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((found - exact).abs() <= 2e-7 * exact, "{x}: {found} and {exact}");
        }
        assert_eq!((exp2(0.0), exp2(-1.0), exp2(f32::NEG_INFINITY)), (1.0, 0.5, 0.0));
        assert!(exp2(f32::NAN).is_nan());
    }
}

//! Panels of probabilities in bf16: half the memory that P takes between hops.
//!
//! Probabilities are computed in f32 and rounded to nearest, ties to even. What is summed is what was rounded, so that
//! rows of the stored A still sum to 1: that takes a part of the error out which all keys of a row share.
//!
//! Plain loops over the 16 lanes of a key, compiled once for each instruction set.
#![allow(unsafe_code)]

use super::LANES;

/// A block row's panel in f32, and the same in bf16: `[group][key][16]`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PanelCall {
    /// Group 0, key 0 in f32.
    pub wide: *mut f32,
    /// Elements from one group to the next in f32.
    pub wide_stride: usize,
    /// Group 0, key 0 in bf16.
    pub half: *mut u16,
    /// Elements from one group to the next in bf16.
    pub half_stride: usize,
    /// Keys.
    pub nkeys: usize,
    /// Groups of 16 queries.
    pub groups: usize,
    /// Sums over the rounded probabilities are added here, `[64]` (narrowing).
    pub sum: *mut f32,
}

/// `half = bf16(wide)`, `sum += Σ half`.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn narrow(call: *const PanelCall) {
    // SAFETY: the caller's contract.
    unsafe { narrow_keys(&*call) }
}

/// `wide = half`.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn widen(call: *const PanelCall) {
    // SAFETY: the caller's contract.
    unsafe { widen_keys(&*call) }
}

/// See [`narrow`].
///
/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn narrow_keys(c: &PanelCall) {
    for group in 0..c.groups {
        // SAFETY: `group < groups`, keys stay below `nkeys`.
        unsafe {
            let sum = c.sum.add(group * LANES).cast::<[f32; LANES]>();
            let mut sums = sum.read_unaligned();
            for key in 0..c.nkeys {
                let wide = c.wide.add(group * c.wide_stride + key * LANES).cast::<[f32; LANES]>().read_unaligned();
                let mut half = [0; LANES];
                for lane in 0..LANES {
                    let bits = wide[lane].to_bits();
                    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
                    // Rounding could make infinity of a NaN.
                    let kept = if wide[lane].is_nan() { bits | 0x0040_0000 } else { rounded } >> 16;
                    half[lane] = kept as u16;
                    sums[lane] += f32::from_bits(kept << 16);
                }
                c.half.add(group * c.half_stride + key * LANES).cast::<[u16; LANES]>().write_unaligned(half);
            }
            sum.write_unaligned(sums);
        }
    }
}

/// See [`widen`].
///
/// # Safety
/// Contract of [`super`].
#[inline(always)]
pub(super) unsafe fn widen_keys(c: &PanelCall) {
    for group in 0..c.groups {
        for key in 0..c.nkeys {
            // SAFETY: `group < groups`, `key < nkeys`.
            unsafe {
                let half = c.half.add(group * c.half_stride + key * LANES).cast::<[u16; LANES]>().read_unaligned();
                let wide = half.map(|bits| f32::from_bits(u32::from(bits) << 16));
                c.wide.add(group * c.wide_stride + key * LANES).cast::<[f32; LANES]>().write_unaligned(wide);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::target::Isa;
    use crate::tiles::tests::families;

    /// Both ways of every family, over panels with gaps between their groups.
    #[test]
    fn panels_round_to_nearest_and_sum_what_they_store() {
        type Way = unsafe extern "C" fn(*const PanelCall);
        let mut ways = vec![(narrow as Way, widen as Way, Isa::Portable)];
        ways.extend(families().into_iter().map(|family| (family.narrow_panel, family.widen_panel, family.isa)));
        for (narrow, widen, isa) in ways {
            for (groups, nkeys) in [(1, 1), (4, 7), (3, 320)] {
                let (wide_stride, half_stride) = ((nkeys + 2) * LANES, (nkeys | 1) * LANES);
                let mut wide: Vec<f32> = (0..groups * wide_stride).map(|i| (i as f32 * 0.37).sin().abs()).collect();
                wide[3] = f32::NAN;
                wide[5] = 0.0;
                wide[7] = f32::from_bits(0x3f80_8000);
                let given = wide.clone();
                let mut half = vec![0x1234_u16; groups * half_stride];
                let mut sum = vec![1.0_f32; groups * LANES];
                let call = PanelCall {
                    wide: wide.as_mut_ptr(),
                    wide_stride,
                    half: half.as_mut_ptr(),
                    half_stride,
                    nkeys,
                    groups,
                    sum: sum.as_mut_ptr(),
                };
                // SAFETY: the buffers hold what the record says.
                unsafe {
                    narrow(&call);
                    widen(&call);
                }
                for group in 0..groups {
                    for lane in 0..LANES {
                        let mut expected = 1.0_f32;
                        for key in 0..nkeys {
                            let at = group * wide_stride + key * LANES + lane;
                            let rounded = bf16::from_f32(given[at]).to_f32();
                            expected += rounded;
                            assert!(wide[at].to_bits() == rounded.to_bits() || wide[at].is_nan() && rounded.is_nan());
                        }
                        let found = sum[group * LANES + lane];
                        assert!(found == expected || found.is_nan() && expected.is_nan(), "{isa} {found} {expected}");
                    }
                    let gap = &half[group * half_stride + nkeys * LANES..(group + 1) * half_stride];
                    assert!(gap.iter().all(|&bits| bits == 0x1234));
                }
            }
        }
    }
}

//! Score mods that are common enough for tiles of their own: softcap and alibi, in AVX-512 and in AVX2.
//!
//! One pass over a panel of scores reads each vector, modifies it, takes it up in the maximum and writes it back. All
//! other mods are code made with the kernel (`codegen/portable/mods`), with vectors a quarter or half as wide.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: iterator chains would call through closures that do not
// carry the target feature.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::{LANES, ModCall};

/// What a pass does.
const SOFTCAP: u8 = 0;
const ALIBI: u8 = 1;

/// `(2^f − 1) / f` for |f| ≤ 1/2, constant term first: minimax, relative error 1.1e-8.
const POWER: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_5, 0.055_503_573, 0.009_618_237, 0.001_339_073_6, 0.000_154_035_14];

/// From here on, tanh is 1 in f32, and e^2x is still far from infinite (in powers of two).
const HIGHEST: f32 = 40.0;

/// The factors of a call: on the score before the function, and behind it.
fn factors(c: &ModCall, kind: u8) -> (f32, f32) {
    match kind {
        // What tanh x is made of, 2x log2 e, comes in the panel already.
        SOFTCAP => (1.0, c.constant * c.factor),
        _ => (c.factor, c.constant * c.factor),
    }
}

/// See [`super::Family::softcap`].
pub(super) unsafe extern "C" fn softcap_avx512(call: *const ModCall) {
    // SAFETY: contract of `super`; a family exists only where the CPU has its instructions.
    unsafe { avx512::run::<SOFTCAP>(&*call) }
}

/// See [`super::Family::alibi`].
pub(super) unsafe extern "C" fn alibi_avx512(call: *const ModCall) {
    // SAFETY: as above.
    unsafe { avx512::run::<ALIBI>(&*call) }
}

/// See [`super::Family::softcap`].
pub(super) unsafe extern "C" fn softcap_avx2(call: *const ModCall) {
    // SAFETY: as above.
    unsafe { avx2::run::<SOFTCAP>(&*call) }
}

/// See [`super::Family::alibi`].
pub(super) unsafe extern "C" fn alibi_avx2(call: *const ModCall) {
    // SAFETY: as above.
    unsafe { avx2::run::<ALIBI>(&*call) }
}

/// Position of key `j`, as a float.
///
/// # Safety
/// `j < nkeys`, and `c` keeps the contract of [`super`].
#[inline]
unsafe fn key(c: &ModCall, j: usize) -> f32 {
    // SAFETY: the caller's.
    if c.keys.is_null() { (c.first_key + j * c.key_step) as f32 } else { unsafe { *c.keys.add(j) as f32 } }
}

mod avx512 {
    use super::*;

    /// Keys whose vectors are under way together.
    const KEYS: usize = 4;

    /// Group by group, then key by key.
    #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
    pub(super) unsafe fn run<const KIND: u8>(c: &ModCall) {
        for group in 0..c.groups {
            // SAFETY: `group < groups`.
            unsafe { if c.words.is_null() { panel::<KIND, false>(c, group) } else { panel::<KIND, true>(c, group) } }
        }
    }

    /// One group.
    ///
    /// # Safety
    /// `group < groups`, and `c` keeps the contract of `super`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
    unsafe fn panel<const KIND: u8, const MASKED: bool>(c: &ModCall, group: usize) {
        let (before, behind) = factors(c, KIND);
        let (before, behind) = (_mm512_set1_ps(before), _mm512_set1_ps(behind));
        // SAFETY: `group < groups`, keys stay below `nkeys`; words hold 16 bits a group, positions and maxima 16
        // numbers.
        unsafe {
            let s = c.s.add(group * c.s_stride);
            let words = c.words.cast::<u16>().wrapping_add(group);
            let mut query = _mm512_setzero_ps();
            if KIND == ALIBI {
                query = _mm512_cvtepi32_ps(_mm512_loadu_si512(c.positions.add(group * LANES).cast()));
            }
            let mut max = [_mm512_set1_ps(f32::NEG_INFINITY); KEYS];
            let mut j = 0;
            while j < c.nkeys {
                let count = (c.nkeys - j).min(KEYS);
                let mut keep = [u16::MAX; KEYS];
                if MASKED {
                    let mut any = 0;
                    for i in 0..KEYS {
                        keep[i] = if i < count { *words.add(4 * (j + i)) } else { 0 };
                        any |= keep[i];
                    }
                    if any == 0 {
                        j += count;
                        continue;
                    }
                }
                let at = s.add(j * LANES);
                if count == KEYS {
                    for i in 0..KEYS {
                        let score = _mm512_load_ps(at.add(i * LANES));
                        let number = if KIND == ALIBI { key(c, j + i) } else { 0.0 };
                        let score = element::<KIND>(score, number, query, before, behind);
                        _mm512_store_ps(at.add(i * LANES), score);
                        // The second operand is returned where one is NaN.
                        max[i] = if MASKED {
                            _mm512_mask_max_ps(max[i], keep[i], score, max[i])
                        } else {
                            _mm512_max_ps(score, max[i])
                        };
                    }
                } else {
                    for i in 0..count {
                        let score = _mm512_load_ps(at.add(i * LANES));
                        let number = if KIND == ALIBI { key(c, j + i) } else { 0.0 };
                        let score = element::<KIND>(score, number, query, before, behind);
                        _mm512_store_ps(at.add(i * LANES), score);
                        max[0] = _mm512_mask_max_ps(max[0], keep[i], score, max[0]);
                    }
                }
                j += count;
            }
            if !c.max.is_null() {
                let at = c.max.add(group * LANES);
                let pairs = [_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3])];
                let max = _mm512_max_ps(_mm512_max_ps(pairs[0], pairs[1]), _mm512_loadu_ps(at));
                _mm512_storeu_ps(at, max);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
    fn element<const KIND: u8>(s: __m512, key: f32, query: __m512, before: __m512, behind: __m512) -> __m512 {
        match KIND {
            SOFTCAP => tanh_of_power(s, behind),
            _ => {
                let distance = _mm512_sub_ps(_mm512_set1_ps(key), query);
                _mm512_fmadd_ps(s, before, _mm512_mul_ps(distance, behind))
            }
        }
    }

    /// `factor` · (2^y − 1) / (2^y + 1), which is factor · tanh x for y = 2x log2 e; the tangent to 4 ulp.
    ///
    /// With y = n + f, 2^y − 1 is 2^n (2^f − 1) + (2^n − 1), which keeps its digits where y is small. The factor goes
    /// into 2^n, and comes out again of the sum below. The quotient is a reciprocal to 14 bits and a step
    /// of Newton's on the result.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
    fn tanh_of_power(y: __m512, factor: __m512) -> __m512 {
        let one = _mm512_set1_ps(1.0);
        // Once a call: the loops around keep it in a register.
        let inverse = _mm512_div_ps(one, factor);
        // The second operand is returned where one is NaN. Below, 2^n becomes 0 by itself.
        let y = _mm512_min_ps(_mm512_set1_ps(HIGHEST), y);
        // Round to nearest, to 0 fraction bits, no precision exception; 0 for an infinity.
        let f = _mm512_reduce_ps::<0x08>(y);
        let n = _mm512_sub_ps(y, f);
        let mut p = _mm512_set1_ps(POWER[5]);
        for i in (0..5).rev() {
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(POWER[i]));
        }
        let scale = _mm512_scalef_ps(factor, n);
        let less_one = _mm512_fmadd_ps(_mm512_mul_ps(f, p), scale, _mm512_sub_ps(scale, factor));
        let sum = _mm512_fmadd_ps(less_one, inverse, _mm512_set1_ps(2.0));
        let reciprocal = _mm512_rcp14_ps(sum);
        let quotient = _mm512_mul_ps(less_one, reciprocal);
        _mm512_fmadd_ps(quotient, _mm512_fnmadd_ps(sum, reciprocal, one), quotient)
    }
}

mod avx2 {
    use super::*;

    /// Floats in a vector.
    const W: usize = 8;

    /// Half a group at a time, then key by key.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run<const KIND: u8>(c: &ModCall) {
        for half in 0..c.groups * 2 {
            // SAFETY: `half < 2 groups`.
            unsafe { if c.words.is_null() { panel::<KIND, false>(c, half) } else { panel::<KIND, true>(c, half) } }
        }
    }

    /// Half a group.
    ///
    /// # Safety
    /// `half < 2 groups`, and `c` keeps the contract of `super`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn panel<const KIND: u8, const MASKED: bool>(c: &ModCall, half: usize) {
        let (before, behind) = factors(c, KIND);
        let (before, behind) = (_mm256_set1_ps(before), _mm256_set1_ps(behind));
        // SAFETY: keys stay below `nkeys`; words hold 8 bits a half, positions and maxima 8 numbers.
        unsafe {
            let s = c.s.add(half / 2 * c.s_stride + half % 2 * W);
            let words = c.words.cast::<u8>().wrapping_add(half);
            let mut query = _mm256_setzero_ps();
            if KIND == ALIBI {
                query = _mm256_cvtepi32_ps(_mm256_loadu_si256(c.positions.add(half * W).cast()));
            }
            let lowest = _mm256_set1_ps(f32::NEG_INFINITY);
            let mut max = [lowest; 2];
            for j in 0..c.nkeys {
                let bits = if MASKED { *words.add(8 * j) } else { u8::MAX };
                if bits == 0 {
                    continue;
                }
                let at = s.add(j * LANES);
                let score = _mm256_load_ps(at);
                let number = if KIND == ALIBI { key(c, j) } else { 0.0 };
                let score = element::<KIND>(score, number, query, before, behind);
                _mm256_store_ps(at, score);
                let side = j % 2;
                // The second operand is returned where one is NaN.
                let with = _mm256_max_ps(score, max[side]);
                max[side] = if MASKED { _mm256_blendv_ps(max[side], with, expand(bits)) } else { with };
            }
            if !c.max.is_null() {
                let at = c.max.add(half * W);
                let max = _mm256_max_ps(_mm256_max_ps(max[0], max[1]), _mm256_loadu_ps(at));
                _mm256_storeu_ps(at, max);
            }
        }
    }

    /// Mask of the lanes whose bit is set in `bits`, lane 0 for bit 0.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn expand(bits: u8) -> __m256 {
        let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits.into()), lane), lane))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn element<const KIND: u8>(s: __m256, key: f32, query: __m256, before: __m256, behind: __m256) -> __m256 {
        match KIND {
            SOFTCAP => _mm256_mul_ps(tanh_of_power(s), behind),
            _ => {
                let distance = _mm256_sub_ps(_mm256_set1_ps(key), query);
                _mm256_fmadd_ps(s, before, _mm256_mul_ps(distance, behind))
            }
        }
    }

    /// As in AVX-512, with the power of two made of its exponent's bits and a division.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn tanh_of_power(y: __m256) -> __m256 {
        let magic = _mm256_set1_ps(12_582_912.0 + 127.0);
        // The second operand is returned where one is NaN.
        let y = _mm256_min_ps(_mm256_set1_ps(HIGHEST), y);
        let y = _mm256_max_ps(_mm256_set1_ps(-HIGHEST), y);
        let t = _mm256_add_ps(y, magic);
        let f = _mm256_sub_ps(y, _mm256_sub_ps(t, magic));
        let mut p = _mm256_set1_ps(POWER[5]);
        for i in (0..5).rev() {
            p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(POWER[i]));
        }
        let one = _mm256_set1_ps(1.0);
        let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(t)));
        let less_one = _mm256_fmadd_ps(_mm256_mul_ps(f, p), scale, _mm256_sub_ps(scale, one));
        _mm256_div_ps(less_one, _mm256_add_ps(less_one, _mm256_set1_ps(2.0)))
    }
}

#[cfg(test)]
mod tests;

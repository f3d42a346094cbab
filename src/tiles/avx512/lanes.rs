//! Vectors of 16 floats: AVX-512 F, VL, DQ and BW.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: iterator chains would call through closures.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use crate::tiles::lanes::{HIGHEST, Lanes, POWER, Vectors, operations, polynomial};
use crate::tiles::{LANES, LEAST_POWER};

/// AVX-512 F, VL, DQ and BW.
pub(in crate::tiles) struct Avx512;

/// Adds neighboring 128-bit quarters: `[a0 + a1, a2 + a3, b0 + b1, b2 + b3]`.
#[inline(always)]
unsafe fn add_quarters(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the contract of `Vectors`.
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b)) }
}

impl Vectors for Avx512 {
    const WIDTH: usize = 16;
    const REGISTERS: usize = 32;
    type Floats = __m512;
    type Words = __m512i;
    type Mask = __mmask16;

    operations! {
        fn first(count: usize) -> __mmask16 { ((1u32 << count) - 1) as __mmask16 }
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(at: *const f32) -> __m512 { _mm512_loadu_ps(at) }
        fn store(at: *mut f32, x: __m512) { _mm512_storeu_ps(at, x) }
        fn load_cut(at: *const f32, keep: __mmask16) -> __m512 { _mm512_maskz_loadu_ps(keep, at) }
        fn store_cut(at: *mut f32, keep: __mmask16, x: __m512) { _mm512_mask_storeu_ps(at, keep, x) }
        fn mul(x: __m512, y: __m512) -> __m512 { _mm512_mul_ps(x, y) }
        fn fma(x: __m512, y: __m512, z: __m512) -> __m512 { _mm512_fmadd_ps(x, y, z) }
        fn select(keep: __mmask16, x: __m512) -> __m512 { _mm512_maskz_mov_ps(keep, x) }
        fn not_zero(x: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(x, _mm512_setzero_ps()) }

        fn splat_word(x: u32) -> __m512i { _mm512_set1_epi32(x.cast_signed()) }
        fn load_words(at: *const u32) -> __m512i { _mm512_loadu_si512(at.cast()) }
        fn xor(x: __m512i, y: __m512i) -> __m512i { _mm512_xor_si512(x, y) }
        fn mul_words(x: __m512i, y: __m512i) -> __m512i { _mm512_mullo_epi32(x, y) }
        fn shift_right<const BITS: i32>(x: __m512i) -> __m512i {
            _mm512_srlv_epi32(x, _mm512_set1_epi32(BITS))
        }
        fn at_least(x: __m512i, y: __m512i) -> __mmask16 { _mm512_cmpge_epu32_mask(x, y) }
    }
}

impl Lanes for Avx512 {
    operations! {
        fn mask(bits: u32) -> __mmask16 { bits as __mmask16 }
        fn store_first(at: *mut f32, count: usize, x: __m512) { Self::store_cut(at, Self::first(count), x) }
        fn load_ints(at: *const i32) -> __m512 { _mm512_cvtepi32_ps(_mm512_loadu_si512(at.cast())) }
        fn add(x: __m512, y: __m512) -> __m512 { _mm512_add_ps(x, y) }
        fn sub(x: __m512, y: __m512) -> __m512 { _mm512_sub_ps(x, y) }
        fn max(x: __m512, y: __m512) -> __m512 { _mm512_max_ps(x, y) }
        fn max_cut(x: __m512, y: __m512, keep: __mmask16) -> __m512 { _mm512_mask_max_ps(y, keep, x, y) }
        fn sum(x: __m512) -> f32 { _mm512_reduce_add_ps(x) }
        fn largest(x: __m512) -> f32 { _mm512_reduce_max_ps(x) }
        // Transpose and add: 16 vectors to 8, 4, 2, 1.
        fn sums_across(vectors: &[__m512; LANES]) -> __m512 {
            let mut four = [_mm512_setzero_ps(); 4];
            for i in 0..4 {
                let mut two = [_mm512_setzero_pd(); 2];
                for k in 0..2 {
                    let (a, b) = (vectors[4 * i + 2 * k], vectors[4 * i + 2 * k + 1]);
                    two[k] = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
                }
                four[i] = _mm512_add_ps(
                    _mm512_castpd_ps(_mm512_unpacklo_pd(two[0], two[1])),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(two[0], two[1])),
                );
            }
            add_quarters(add_quarters(four[0], four[1]), add_quarters(four[2], four[3]))
        }
        // Rows are read as four 128-bit pieces per register, so that the 4 × 4 transposes stay within pieces.
        fn load_columns(rows: &[*const f32; LANES], column: usize) -> [__m512; 4] {
            let mut w = [_mm512_setzero_ps(); 4];
            for i in 0..4 {
                let a = _mm512_castps128_ps512(_mm_loadu_ps(rows[i].add(column)));
                let a = _mm512_insertf32x4::<1>(a, _mm_loadu_ps(rows[4 + i].add(column)));
                let a = _mm512_insertf32x4::<2>(a, _mm_loadu_ps(rows[8 + i].add(column)));
                w[i] = _mm512_insertf32x4::<3>(a, _mm_loadu_ps(rows[12 + i].add(column)));
            }
            let ab = _mm512_castps_pd(_mm512_unpacklo_ps(w[0], w[1]));
            let cd = _mm512_castps_pd(_mm512_unpacklo_ps(w[2], w[3]));
            let ef = _mm512_castps_pd(_mm512_unpackhi_ps(w[0], w[1]));
            let gh = _mm512_castps_pd(_mm512_unpackhi_ps(w[2], w[3]));
            [
                _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
                _mm512_castpd_ps(_mm512_unpacklo_pd(ef, gh)),
                _mm512_castpd_ps(_mm512_unpackhi_pd(ef, gh)),
            ]
        }

        // To 1.5 ulp. On [0, 1) a polynomial of degree 5 with value 1 at 0 (minimax, relative error 8.3e-8); `reduce`
        // takes x's fraction (0 for an infinity) and `scalef` applies its floor. What is flushed would make subnormal
        // products in the value tile, at a microcode assist each (250 times slower when measured).
        fn exp2(x: __m512, keep: __mmask16) -> __m512 {
            // Round towards −inf to 0 fraction bits, no precision exception.
            let f = _mm512_reduce_ps::<0x09>(x);
            let p = polynomial::<Self>(f, &[1.0, 0.693_151_3, 0.240_164_44, 0.055_799_913, 0.009_017_031, 0.001_867_13]);
            // NaN is not less.
            let keep = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(keep, x, _mm512_set1_ps(LEAST_POWER));
            _mm512_maskz_scalef_ps(keep, p, x)
        }
        // The tangent to 4 ulp. With y = n + f, 2^y − 1 is 2^n (2^f − 1) + (2^n − 1), which keeps its digits where y is
        // small. The factor goes into 2^n, and comes out again of the sum below. The quotient is a reciprocal to 14 bits
        // and a step of Newton's on the result.
        fn tanh_of_power(y: __m512, factor: __m512) -> __m512 {
            let one = _mm512_set1_ps(1.0);
            // Once a call: the loops around keep it in a register.
            let inverse = _mm512_div_ps(one, factor);
            // The second operand is returned where one is NaN. Below, 2^n becomes 0 by itself.
            let y = _mm512_min_ps(_mm512_set1_ps(HIGHEST), y);
            // Round to nearest, to 0 fraction bits, no precision exception; 0 for an infinity.
            let f = _mm512_reduce_ps::<0x08>(y);
            let n = _mm512_sub_ps(y, f);
            let p = polynomial::<Self>(f, &POWER);
            let scale = _mm512_scalef_ps(factor, n);
            let less_one = _mm512_fmadd_ps(_mm512_mul_ps(f, p), scale, _mm512_sub_ps(scale, factor));
            let sum = _mm512_fmadd_ps(less_one, inverse, _mm512_set1_ps(2.0));
            let reciprocal = _mm512_rcp14_ps(sum);
            let quotient = _mm512_mul_ps(less_one, reciprocal);
            _mm512_fmadd_ps(quotient, _mm512_fnmadd_ps(sum, reciprocal, one), quotient)
        }

        fn widen_bf16(at: *const u16) -> __m512 {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
        fn narrow_bf16(at: *mut u16, x: __m512) {
            let bits = _mm512_castps_si512(x);
            let high = _mm512_srli_epi32::<16>(bits);
            // Half of the last place, less a bit where that place is even: a tie then does not carry.
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let words = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
            _mm256_storeu_si256(at.cast(), _mm512_cvtepi32_epi16(words));
        }
        fn widen_f16(at: *const u16) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
        fn narrow_f16(at: *mut u16, x: __m512) {
            _mm256_storeu_si256(at.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        }
    }
}

//! Vectors of 8 floats: AVX2 with FMA and F16C.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: iterator chains would call through closures.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use crate::tiles::lanes::{HIGHEST, Lanes, POWER, Vectors, operations, polynomial};
use crate::tiles::{LANES, LEAST_POWER};

/// AVX2 with FMA and F16C.
pub(in crate::tiles) struct Avx2;

/// The number that leaves a sum no fraction bits, and whose low bits are then a whole number plus 127.
const MAGIC: f32 = 12_582_912.0 + 127.0;

impl Vectors for Avx2 {
    const WIDTH: usize = 8;
    const REGISTERS: usize = 16;
    type Floats = __m256;
    type Words = __m256i;
    type Mask = __m256i;

    operations! {
        fn first(count: usize) -> __m256i {
            _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
        }
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn load(at: *const f32) -> __m256 { _mm256_loadu_ps(at) }
        fn store(at: *mut f32, x: __m256) { _mm256_storeu_ps(at, x) }
        fn load_cut(at: *const f32, keep: __m256i) -> __m256 { _mm256_maskload_ps(at, keep) }
        fn store_cut(at: *mut f32, keep: __m256i, x: __m256) { _mm256_maskstore_ps(at, keep, x) }
        fn mul(x: __m256, y: __m256) -> __m256 { _mm256_mul_ps(x, y) }
        fn fma(x: __m256, y: __m256, z: __m256) -> __m256 { _mm256_fmadd_ps(x, y, z) }
        fn select(keep: __m256i, x: __m256) -> __m256 { _mm256_and_ps(_mm256_castsi256_ps(keep), x) }
        fn not_zero(x: __m256) -> __m256i {
            _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NEQ_UQ>(x, _mm256_setzero_ps()))
        }

        fn splat_word(x: u32) -> __m256i { _mm256_set1_epi32(x.cast_signed()) }
        fn load_words(at: *const u32) -> __m256i { _mm256_loadu_si256(at.cast()) }
        fn xor(x: __m256i, y: __m256i) -> __m256i { _mm256_xor_si256(x, y) }
        fn mul_words(x: __m256i, y: __m256i) -> __m256i { _mm256_mullo_epi32(x, y) }
        fn shift_right<const BITS: i32>(x: __m256i) -> __m256i { _mm256_srli_epi32::<BITS>(x) }
        fn at_least(x: __m256i, y: __m256i) -> __m256i { _mm256_cmpeq_epi32(_mm256_max_epu32(x, y), x) }
    }
}

impl Lanes for Avx2 {
    operations! {
        fn mask(bits: u32) -> __m256i {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits.cast_signed()), lane), lane)
        }
        // A store with a mask takes many times as long here.
        fn store_first(at: *mut f32, count: usize, x: __m256) {
            if count == 8 { Self::store(at, x) } else { Self::store_cut(at, Self::first(count), x) }
        }
        fn load_ints(at: *const i32) -> __m256 { _mm256_cvtepi32_ps(_mm256_loadu_si256(at.cast())) }
        fn add(x: __m256, y: __m256) -> __m256 { _mm256_add_ps(x, y) }
        fn sub(x: __m256, y: __m256) -> __m256 { _mm256_sub_ps(x, y) }
        fn max(x: __m256, y: __m256) -> __m256 { _mm256_max_ps(x, y) }
        fn max_cut(x: __m256, y: __m256, keep: __m256i) -> __m256 {
            _mm256_blendv_ps(y, _mm256_max_ps(x, y), _mm256_castsi256_ps(keep))
        }
        fn sum(x: __m256) -> f32 {
            let mut lanes = [0.0; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), x);
            lanes.into_iter().sum()
        }
        fn largest(x: __m256) -> f32 {
            let mut lanes = [0.0; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), x);
            lanes.into_iter().fold(lanes[0], f32::max)
        }
        // Transpose and add: 8 vectors to 4, 2, 1.
        fn sums_across(vectors: &[__m256; LANES]) -> __m256 {
            let mut two = [_mm256_setzero_ps(); 2];
            for i in 0..2 {
                let mut pair = [_mm256_setzero_pd(); 2];
                for k in 0..2 {
                    let (a, b) = (vectors[4 * i + 2 * k], vectors[4 * i + 2 * k + 1]);
                    pair[k] = _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
                }
                two[i] = _mm256_add_ps(
                    _mm256_castpd_ps(_mm256_unpacklo_pd(pair[0], pair[1])),
                    _mm256_castpd_ps(_mm256_unpackhi_pd(pair[0], pair[1])),
                );
            }
            let (low, high) = (_mm256_permute2f128_ps::<0x20>(two[0], two[1]), _mm256_permute2f128_ps::<0x31>(two[0], two[1]));
            _mm256_add_ps(low, high)
        }
        // Rows are read as two 128-bit pieces per register, so that the 4 × 4 transposes stay within pieces.
        fn load_columns(rows: &[*const f32; LANES], column: usize) -> [__m256; 4] {
            let mut w = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let a = _mm256_castps128_ps256(_mm_loadu_ps(rows[i].add(column)));
                w[i] = _mm256_insertf128_ps::<1>(a, _mm_loadu_ps(rows[4 + i].add(column)));
            }
            let ab = _mm256_castps_pd(_mm256_unpacklo_ps(w[0], w[1]));
            let cd = _mm256_castps_pd(_mm256_unpacklo_ps(w[2], w[3]));
            let ef = _mm256_castps_pd(_mm256_unpackhi_ps(w[0], w[1]));
            let gh = _mm256_castps_pd(_mm256_unpackhi_ps(w[2], w[3]));
            [
                _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
                _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)),
                _mm256_castpd_ps(_mm256_unpacklo_pd(ef, gh)),
                _mm256_castpd_ps(_mm256_unpackhi_pd(ef, gh)),
            ]
        }

        // To 2 ulp. x = n + f with n the nearest integer, found by adding a number so large that the sum has no fraction
        // bits; its low bits are then n + 127, the exponent of 2^n. On [-1/2, 1/2] a polynomial of degree 5 (minimax,
        // relative error 7.5e-8). The last step multiplies rather than adds exponents, so that NaN survives.
        fn exp2(x: __m256, keep: __m256i) -> __m256 {
            let magic = _mm256_set1_ps(MAGIC);
            // NaN is not less; the operands' order lets it through `min`.
            let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(LEAST_POWER));
            let x = _mm256_min_ps(_mm256_set1_ps(128.0), x);
            let t = _mm256_add_ps(x, magic);
            let f = _mm256_sub_ps(x, _mm256_sub_ps(t, magic));
            let p = polynomial::<Self>(f, &[1.000_000_1, 0.693_146_94, 0.240_221_2, 0.055_507_13, 0.009_675_541, 0.001_327_647_2]);
            let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(t)));
            _mm256_and_ps(_mm256_mul_ps(p, power), _mm256_and_ps(normal, _mm256_castsi256_ps(keep)))
        }
        // As in AVX-512, with the power of two made of its exponent's bits and a division.
        fn tanh_of_power(y: __m256, factor: __m256) -> __m256 {
            let magic = _mm256_set1_ps(MAGIC);
            // The second operand is returned where one is NaN.
            let y = _mm256_min_ps(_mm256_set1_ps(HIGHEST), y);
            let y = _mm256_max_ps(_mm256_set1_ps(-HIGHEST), y);
            let t = _mm256_add_ps(y, magic);
            let f = _mm256_sub_ps(y, _mm256_sub_ps(t, magic));
            let p = polynomial::<Self>(f, &POWER);
            let one = _mm256_set1_ps(1.0);
            let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(t)));
            let less_one = _mm256_fmadd_ps(_mm256_mul_ps(f, p), scale, _mm256_sub_ps(scale, one));
            _mm256_mul_ps(_mm256_div_ps(less_one, _mm256_add_ps(less_one, _mm256_set1_ps(2.0))), factor)
        }

        fn widen_bf16(at: *const u16) -> __m256 {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
        fn narrow_bf16(at: *mut u16, x: __m256) {
            let bits = _mm256_castps_si256(x);
            let high = _mm256_srli_epi32::<16>(bits);
            // Half of the last place, less a bit where that place is even: a tie then does not carry.
            let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
            let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
            let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let words = _mm256_blendv_epi8(rounded, quiet, nan);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(words, words));
            _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(packed));
        }
        fn widen_f16(at: *const u16) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
        fn narrow_f16(at: *mut u16, x: __m256) {
            _mm_storeu_si128(at.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        }
    }
}

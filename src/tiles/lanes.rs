//! Vectors of f32 by one set of names, for tiles that are written once for all instruction sets.
#![allow(unsafe_code)]

/// Functions that all have the same features.
macro_rules! with_features {
    ($features:literal $(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? { $body:expr })*) => {
        $(
            /// # Safety
            /// Addresses are of as many floats as the vector, or its tail, has.
            #[inline]
            #[target_feature(enable = $features)]
            pub unsafe fn $name($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the caller's contract.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
        )*
    };
}

/// AVX-512 F, VL and DQ.
pub(super) mod f32x16 {
    use std::arch::x86_64::*;

    use crate::dropout::{COLUMN, FIRST, SECOND};

    with_features! {
        "avx512f,avx512vl,avx512dq"
        fn first(count: usize) -> __mmask16 { ((1u32 << count) - 1) as __mmask16 }
        fn zero() -> __m512 { _mm512_setzero_ps() }
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn fma(x: __m512, y: __m512, z: __m512) -> __m512 { _mm512_fmadd_ps(x, y, z) }
        fn load(at: *const f32) -> __m512 { _mm512_loadu_ps(at) }
        fn store(at: *mut f32, x: __m512) { _mm512_storeu_ps(at, x) }
        fn load_cut(at: *const f32, tail: __mmask16) -> __m512 { _mm512_maskz_loadu_ps(tail, at) }
        fn store_cut(at: *mut f32, tail: __mmask16, x: __m512) { _mm512_mask_storeu_ps(at, tail, x) }
        fn mul(x: __m512, y: __m512) -> __m512 { _mm512_mul_ps(x, y) }
        fn where_some(p: __m512, x: __m512) -> __m512 {
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(p, _mm512_setzero_ps()), x)
        }
        fn factors(row_keys: *const u32, key: u32, threshold: u32, keep: f32) -> __m512 {
            {
                let column = _mm512_set1_epi32(key.wrapping_mul(COLUMN) as i32);
                let mut x = _mm512_xor_si512(_mm512_loadu_si512(row_keys.cast()), column);
                x = _mm512_xor_si512(x, _mm512_srli_epi32::<16>(x));
                x = _mm512_mullo_epi32(x, _mm512_set1_epi32(FIRST as i32));
                x = _mm512_xor_si512(x, _mm512_srli_epi32::<15>(x));
                x = _mm512_mullo_epi32(x, _mm512_set1_epi32(SECOND as i32));
                x = _mm512_xor_si512(x, _mm512_srli_epi32::<16>(x));
                let kept = _mm512_cmpge_epu32_mask(x, _mm512_set1_epi32(threshold as i32));
                _mm512_maskz_mov_ps(kept, _mm512_set1_ps(keep))
            }
        }
    }
}

/// AVX2 with FMA.
pub(super) mod f32x8 {
    use std::arch::x86_64::*;

    use crate::dropout::{COLUMN, FIRST, SECOND};

    with_features! {
        "avx2,fma"
        fn first(count: usize) -> __m256i {
            _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
        }
        fn zero() -> __m256 { _mm256_setzero_ps() }
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn fma(x: __m256, y: __m256, z: __m256) -> __m256 { _mm256_fmadd_ps(x, y, z) }
        fn load(at: *const f32) -> __m256 { _mm256_loadu_ps(at) }
        fn store(at: *mut f32, x: __m256) { _mm256_storeu_ps(at, x) }
        fn load_cut(at: *const f32, tail: __m256i) -> __m256 { _mm256_maskload_ps(at, tail) }
        fn store_cut(at: *mut f32, tail: __m256i, x: __m256) { _mm256_maskstore_ps(at, tail, x) }
        fn mul(x: __m256, y: __m256) -> __m256 { _mm256_mul_ps(x, y) }
        fn where_some(p: __m256, x: __m256) -> __m256 {
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(p, _mm256_setzero_ps()), x)
        }
        fn factors(row_keys: *const u32, key: u32, threshold: u32, keep: f32) -> __m256 {
            {
                let column = _mm256_set1_epi32(key.wrapping_mul(COLUMN) as i32);
                let mut x = _mm256_xor_si256(_mm256_loadu_si256(row_keys.cast()), column);
                x = _mm256_xor_si256(x, _mm256_srli_epi32::<16>(x));
                x = _mm256_mullo_epi32(x, _mm256_set1_epi32(FIRST as i32));
                x = _mm256_xor_si256(x, _mm256_srli_epi32::<15>(x));
                x = _mm256_mullo_epi32(x, _mm256_set1_epi32(SECOND as i32));
                x = _mm256_xor_si256(x, _mm256_srli_epi32::<16>(x));
                let kept = _mm256_cmpeq_epi32(_mm256_max_epu32(x, _mm256_set1_epi32(threshold as i32)), x);
                _mm256_and_ps(_mm256_castsi256_ps(kept), _mm256_set1_ps(keep))
            }
        }
    }
}

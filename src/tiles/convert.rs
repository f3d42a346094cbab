//! Rows of 16-bit numbers to f32 and back.
//!
//! In: rows of stored elements, dense or by row number. Out: rows of f32, and the other way. Widening is exact.
//! Narrowing rounds to the nearest, to even in a tie; NaN stays NaN. No element beyond a row's last is touched.
#![allow(unsafe_code)]

use half::{bf16, f16};

use crate::dtype::Element;

/// Rows of stored elements.
#[derive(Clone, Copy)]
pub(super) struct StoredRows {
    /// Row 0.
    pub base: *const u16,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Row numbers, or null for rows `0..count` from `base`.
    pub rows: *const u32,
    /// Rows.
    pub count: usize,
    /// Elements of a row.
    pub width: usize,
}

impl StoredRows {
    /// Rows that are fetched ahead where no prefetcher could know them.
    const AHEAD: usize = 8;

    /// Row `i`.
    ///
    /// # Safety
    /// `i < count`, and `rows` holds `count` numbers of rows at `base`.
    #[inline(always)]
    unsafe fn row(&self, i: usize) -> *const u16 {
        // SAFETY: the caller's.
        let row = if self.rows.is_null() { i } else { unsafe { *self.rows.add(i) as usize } };
        self.base.wrapping_add(row * self.stride)
    }

    /// Fetches a listed row that comes soon after row `i`.
    ///
    /// # Safety
    /// As [`Self::row`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn fetch(&self, i: usize) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        /// Elements of a cache line.
        const LINE: usize = 32;
        let ahead = i + Self::AHEAD;
        if !self.rows.is_null() && ahead < self.count {
            // SAFETY: a row of the list; a prefetch itself never faults.
            unsafe {
                let row = self.row(ahead);
                for x in (0..self.width).step_by(LINE) {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(x).cast());
                }
            }
        }
    }
}

/// One storage type on one instruction set.
pub(super) trait Convert {
    /// `to[i][x] = from[i][x]`, with `to_stride` floats from one row of `to` to the next.
    ///
    /// # Safety
    /// The CPU has the instructions; `from`'s rows can be read and `count` rows of `width` floats at `to` written.
    unsafe fn widen(from: &StoredRows, to: *mut f32, to_stride: usize);

    /// `to[i][x] = from[i][x]`, rounded; the rows of `to` are written.
    ///
    /// # Safety
    /// As [`Self::widen`], the other way round; nobody else has `to`.
    unsafe fn narrow(from: *const f32, from_stride: usize, to: &StoredRows);
}

/// Elements one by one: any machine.
pub(super) struct Plain<T>(std::marker::PhantomData<T>);

/// A 16-bit element as bits.
pub(super) trait Bits: Element {
    /// From its bits.
    fn of(bits: u16) -> Self;
    /// Its bits.
    fn bits(self) -> u16;
}

impl Bits for bf16 {
    fn of(bits: u16) -> Self {
        Self::from_bits(bits)
    }

    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl Bits for f16 {
    fn of(bits: u16) -> Self {
        Self::from_bits(bits)
    }

    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl<T: Bits> Convert for Plain<T> {
    unsafe fn widen(from: &StoredRows, to: *mut f32, to_stride: usize) {
        for i in 0..from.count {
            // SAFETY: the caller's; `i < count` and `x < width`.
            unsafe {
                let (row, to) = (from.row(i), to.add(i * to_stride));
                for x in 0..from.width {
                    *to.add(x) = T::of(*row.add(x)).widen();
                }
            }
        }
    }

    unsafe fn narrow(from: *const f32, from_stride: usize, to: &StoredRows) {
        for i in 0..to.count {
            // SAFETY: as above.
            unsafe {
                let (from, row) = (from.add(i * from_stride), to.row(i).cast_mut());
                for x in 0..to.width {
                    *row.add(x) = T::nearest(*from.add(x)).bits();
                }
            }
        }
    }
}

/// The loops over rows for one vector width. A row's end is done by a whole vector that ends there, over what is done
/// already; only rows narrower than a vector go element by element.
#[cfg(target_arch = "x86_64")]
macro_rules! converter {
    ($(#[$doc:meta])* $name:ident, $type:ty, $lanes:literal, $features:literal, $widen:path, $narrow:path) => {
        $(#[$doc])*
        pub struct $name;

        impl Convert for $name {
            unsafe fn widen(from: &StoredRows, to: *mut f32, to_stride: usize) {
                #[target_feature(enable = $features)]
                unsafe fn rows(from: &StoredRows, to: *mut f32, to_stride: usize) {
                    for i in 0..from.count {
                        // SAFETY: `i < count`; every vector ends at or before the row's last element.
                        unsafe {
                            from.fetch(i);
                            let (row, to) = (from.row(i), to.add(i * to_stride));
                            for x in (0..from.width / $lanes).map(|vector| vector * $lanes) {
                                $widen(row.add(x), to.add(x));
                            }
                            if !from.width.is_multiple_of($lanes) {
                                let x = from.width - $lanes;
                                $widen(row.add(x), to.add(x));
                            }
                        }
                    }
                }
                if from.width < $lanes {
                    // SAFETY: the caller's.
                    return unsafe { Plain::<$type>::widen(from, to, to_stride) };
                }
                // SAFETY: the caller's.
                unsafe { rows(from, to, to_stride) }
            }

            unsafe fn narrow(from: *const f32, from_stride: usize, to: &StoredRows) {
                #[target_feature(enable = $features)]
                unsafe fn rows(from: *const f32, from_stride: usize, to: &StoredRows) {
                    for i in 0..to.count {
                        // SAFETY: as in `widen`.
                        unsafe {
                            let (from, row) = (from.add(i * from_stride), to.row(i).cast_mut());
                            for x in (0..to.width / $lanes).map(|vector| vector * $lanes) {
                                $narrow(from.add(x), row.add(x));
                            }
                            if !to.width.is_multiple_of($lanes) {
                                let x = to.width - $lanes;
                                $narrow(from.add(x), row.add(x));
                            }
                        }
                    }
                }
                if to.width < $lanes {
                    // SAFETY: the caller's.
                    return unsafe { Plain::<$type>::narrow(from, from_stride, to) };
                }
                // SAFETY: the caller's.
                unsafe { rows(from, from_stride, to) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2Bf16, Avx2F16, Avx512Bf16, Avx512F16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Convert, Plain, StoredRows, bf16, f16};

    converter!(
        /// bf16 with AVX2.
        Avx2Bf16, bf16, 8, "avx2", widen_bf16_avx2, narrow_bf16_avx2
    );
    converter!(
        /// f16 with F16C.
        Avx2F16, f16, 8, "avx2,f16c", widen_f16_avx2, narrow_f16_avx2
    );
    converter!(
        /// bf16 with AVX-512 F.
        Avx512Bf16, bf16, 16, "avx512f", widen_bf16_avx512, narrow_bf16_avx512
    );
    converter!(
        /// f16 with AVX-512 F.
        Avx512F16, f16, 16, "avx512f", widen_f16_avx512, narrow_f16_avx512
    );

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn widen_bf16_avx2(from: *const u16, to: *mut f32) {
        // SAFETY: the caller's: 8 elements at both.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn narrow_bf16_avx2(from: *const f32, to: *mut u16) {
        // SAFETY: the caller's: 8 elements at both.
        unsafe {
            let x = _mm256_loadu_ps(from);
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
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn widen_f16_avx2(from: *const u16, to: *mut f32) {
        // SAFETY: the caller's: 8 elements at both.
        unsafe { _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn narrow_f16_avx2(from: *const f32, to: *mut u16) {
        // SAFETY: the caller's: 8 elements at both.
        unsafe {
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from));
            _mm_storeu_si128(to.cast(), half);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen_bf16_avx512(from: *const u16, to: *mut f32) {
        // SAFETY: the caller's: 16 elements at both.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_storeu_ps(to, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)));
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn narrow_bf16_avx512(from: *const f32, to: *mut u16) {
        // SAFETY: the caller's: 16 elements at both.
        unsafe {
            let x = _mm512_loadu_ps(from);
            let bits = _mm512_castps_si512(x);
            let high = _mm512_srli_epi32::<16>(bits);
            // As `narrow_bf16_avx2`.
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let words = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(words));
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen_f16_avx512(from: *const u16, to: *mut f32) {
        // SAFETY: the caller's: 16 elements at both.
        unsafe { _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn narrow_f16_avx512(from: *const f32, to: *mut u16) {
        // SAFETY: the caller's: 16 elements at both.
        unsafe {
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(from));
            _mm256_storeu_si256(to.cast(), half);
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiles::guard::GuardedBuffer;

    /// Every converter that this CPU runs, with its element type.
    fn for_each(mut check: impl FnMut(&'static str, Way)) {
        check("bf16 plain", Way::of::<Plain<bf16>, bf16>());
        check("f16 plain", Way::of::<Plain<f16>, f16>());
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                check("bf16 avx2", Way::of::<Avx2Bf16, bf16>());
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
                check("f16 avx2", Way::of::<Avx2F16, f16>());
            }
            if is_x86_feature_detected!("avx512f") {
                check("bf16 avx512", Way::of::<Avx512Bf16, bf16>());
                check("f16 avx512", Way::of::<Avx512F16, f16>());
            }
        }
    }

    struct Way {
        widen: unsafe fn(&StoredRows, *mut f32, usize),
        narrow: unsafe fn(*const f32, usize, &StoredRows),
        wide: fn(u16) -> f32,
        nearest: fn(f32) -> u16,
    }

    impl Way {
        fn of<C: Convert, T: Bits>() -> Self {
            Self {
                widen: C::widen,
                narrow: C::narrow,
                wide: |bits| T::of(bits).widen(),
                nearest: |x| T::nearest(x).bits(),
            }
        }
    }

    fn same(x: f32, y: f32) -> bool {
        x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan()
    }

    #[test]
    fn all_numbers_widen_exactly_and_come_back() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for_each(|name, way| {
            let rows = StoredRows { base: all.as_ptr(), stride: 64, rows: std::ptr::null(), count: 1024, width: 64 };
            let mut wide = vec![0.0_f32; 1 << 16];
            // SAFETY: 1024 rows of 64 in both; the CPU was asked.
            unsafe { (way.widen)(&rows, wide.as_mut_ptr(), 64) };
            let mut back = vec![0_u16; 1 << 16];
            let to = StoredRows { base: back.as_mut_ptr(), ..rows };
            // SAFETY: as above, and `back` is borrowed by nobody else.
            unsafe { (way.narrow)(wide.as_ptr(), 64, &to) };
            for (&bits, (&x, &again)) in all.iter().zip(wide.iter().zip(&back)) {
                assert!(same(x, (way.wide)(bits)), "{name}: {bits:#x} became {x:e}");
                assert!(bits == again || x.is_nan() && (way.wide)(again).is_nan(), "{name}: {bits:#x} {again:#x}");
            }
        });
    }

    #[test]
    fn narrowing_rounds_to_the_nearest_and_to_even() {
        // Every number of the 16-bit types, what lies in the middle between neighbors, and their f32 neighbors.
        let mut numbers = vec![f32::NAN, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(0x7f80_0001), f32::from_bits(1)];
        for bits in (0..=u16::MAX).step_by(3) {
            for x in [bf16::from_bits(bits).to_f32(), f16::from_bits(bits).to_f32()] {
                for offset in [0x8000, 0x18000, 0x1000, 0x3000] {
                    let tie = f32::from_bits(x.to_bits().wrapping_add(offset));
                    let beside = |step: u32| f32::from_bits(tie.to_bits().wrapping_add(step));
                    numbers.extend([tie, beside(1), beside(u32::MAX)]);
                }
            }
        }
        numbers.truncate(numbers.len() / 64 * 64);
        for_each(|name, way| {
            let mut found = vec![0_u16; numbers.len()];
            let count = numbers.len() / 64;
            let to = StoredRows { base: found.as_mut_ptr(), stride: 64, rows: std::ptr::null(), count, width: 64 };
            // SAFETY: `count` rows of 64 in both; the CPU was asked.
            unsafe { (way.narrow)(numbers.as_ptr(), 64, &to) };
            for (&x, &bits) in numbers.iter().zip(&found) {
                let (found, nearest) = ((way.wide)(bits), (way.wide)((way.nearest)(x)));
                assert!(same(found, nearest), "{name}: {x:e} became {found:e}, not {nearest:e}");
            }
        });
    }

    #[test]
    fn rows_of_any_width_are_read_and_written_to_their_last_element() {
        for width in 1..70 {
            let (count, stride) = (5, width + 3);
            let list: Vec<u32> = vec![4, 0, 3, 3, 1];
            let stored: Vec<u16> = (0..4 * stride + width).map(|i| 0x3c00 + i as u16).collect();
            for_each(|name, way| {
                for listed in [false, true] {
                    let from = GuardedBuffer::new(&stored);
                    let numbers = GuardedBuffer::new(&list);
                    let rows = if listed { numbers.as_ptr() } else { std::ptr::null() };
                    let rows = StoredRows { base: from.as_ptr(), stride, rows, count, width };
                    let mut wide = vec![-1.0_f32; count * 80];
                    // SAFETY: five rows of at most 69 in 80; row numbers are below 5.
                    unsafe { (way.widen)(&rows, wide.as_mut_ptr(), 80) };
                    for i in 0..count {
                        let row = if listed { list[i] as usize } else { i };
                        for x in 0..width {
                            assert_eq!(wide[i * 80 + x], (way.wide)(stored[row * stride + x]), "{name} {width}");
                        }
                    }
                }
                let mut to = GuardedBuffer::new(&vec![7_u16; 4 * stride + width]);
                let numbers: Vec<u32> = vec![4, 0, 3, 2, 1];
                let base = to.as_mut_ptr().cast_const();
                let rows = StoredRows { base, stride, rows: numbers.as_ptr(), count, width };
                let wide: Vec<f32> = (0..count * 80).map(|i| i as f32).collect();
                // SAFETY: as above; `to` is borrowed by nobody else.
                unsafe { (way.narrow)(wide.as_ptr(), 80, &rows) };
                for (i, &row) in numbers.iter().enumerate() {
                    for x in 0..stride.min(to.len() - row as usize * stride) {
                        let expected = if x < width { (way.nearest)(wide[i * 80 + x]) } else { 7 };
                        assert_eq!(to[row as usize * stride + x], expected, "{name} {width}");
                    }
                }
            });
        }
    }
}

//! Rows of 16-bit numbers to f32 and back.
//!
//! In: rows of stored elements, dense or by row number. Out: rows of f32, and the other way. Widening is exact.
//! Narrowing rounds to the nearest, to even in a tie; NaN stays NaN. No element beyond a row's last is touched.
#![allow(unsafe_code)]

use half::{bf16, f16};

use super::lanes::Lanes;
use super::prefetch;
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
    #[inline(always)]
    unsafe fn fetch(&self, i: usize) {
        let ahead = i + Self::AHEAD;
        if !self.rows.is_null() && ahead < self.count {
            // SAFETY: a row of the list.
            let row = unsafe { self.row(ahead) };
            // A line has twice as many of these elements as floats.
            for x in (0..self.width).step_by(2 * prefetch::LINE) {
                prefetch::into_l1(row.wrapping_add(x));
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

/// A 16-bit element as bits, and vectors of it.
pub(super) trait Bits: Element {
    /// From its bits.
    fn of(bits: u16) -> Self;
    /// Its bits.
    fn bits(self) -> u16;
    /// Reads a vector.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn load<L: Lanes>(at: *const u16) -> L::Floats;
    /// Writes a vector, rounded.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn store<L: Lanes>(at: *mut u16, x: L::Floats);
}

macro_rules! bits {
    ($type:ty, $widen:ident, $narrow:ident) => {
        impl Bits for $type {
            fn of(bits: u16) -> Self {
                Self::from_bits(bits)
            }

            fn bits(self) -> u16 {
                self.to_bits()
            }

            #[inline(always)]
            unsafe fn load<L: Lanes>(at: *const u16) -> L::Floats {
                // SAFETY: the caller's.
                unsafe { L::$widen(at) }
            }

            #[inline(always)]
            unsafe fn store<L: Lanes>(at: *mut u16, x: L::Floats) {
                // SAFETY: the caller's.
                unsafe { L::$narrow(at, x) }
            }
        }
    };
}

bits!(bf16, widen_bf16, narrow_bf16);
bits!(f16, widen_f16, narrow_f16);

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

/// [`Convert::widen`] by vectors. A row's end is done by a whole vector that ends there, over what is done already; only
/// rows narrower than a vector go element by element.
///
/// # Safety
/// As [`Convert::widen`].
#[inline(always)]
pub(super) unsafe fn widen_rows<L: Lanes, T: Bits>(from: &StoredRows, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's; `i < count`, and every vector ends at or before the row's last element.
    unsafe {
        if from.width < L::WIDTH {
            return Plain::<T>::widen(from, to, to_stride);
        }
        for i in 0..from.count {
            from.fetch(i);
            let (row, to) = (from.row(i), to.add(i * to_stride));
            for x in (0..from.width / L::WIDTH).map(|vector| vector * L::WIDTH) {
                L::store(to.add(x), T::load::<L>(row.add(x)));
            }
            if !from.width.is_multiple_of(L::WIDTH) {
                let x = from.width - L::WIDTH;
                L::store(to.add(x), T::load::<L>(row.add(x)));
            }
        }
    }
}

/// [`Convert::narrow`] by vectors, as [`widen_rows`].
///
/// # Safety
/// As [`Convert::narrow`].
#[inline(always)]
pub(super) unsafe fn narrow_rows<L: Lanes, T: Bits>(from: *const f32, from_stride: usize, to: &StoredRows) {
    // SAFETY: as `widen_rows`.
    unsafe {
        if to.width < L::WIDTH {
            return Plain::<T>::narrow(from, from_stride, to);
        }
        for i in 0..to.count {
            let (from, row) = (from.add(i * from_stride), to.row(i).cast_mut());
            for x in (0..to.width / L::WIDTH).map(|vector| vector * L::WIDTH) {
                T::store::<L>(row.add(x), L::load(from.add(x)));
            }
            if !to.width.is_multiple_of(L::WIDTH) {
                let x = to.width - L::WIDTH;
                T::store::<L>(row.add(x), L::load(from.add(x)));
            }
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
            use crate::target::Isa;
            use crate::tiles::{avx2, avx512};
            if Isa::Avx2.available() {
                check("bf16 avx2", Way::of::<avx2::Stored<bf16>, bf16>());
                check("f16 avx2", Way::of::<avx2::Stored<f16>, f16>());
            }
            if Isa::Avx512.available() {
                check("bf16 avx512", Way::of::<avx512::Stored<bf16>, bf16>());
                check("f16 avx512", Way::of::<avx512::Stored<f16>, f16>());
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

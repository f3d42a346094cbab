//! Vectors of one instruction set, by one set of names: what tiles that are written once for all of them are written in.
//!
//! A tile's body is a generic `#[inline(always)]` function over [`Lanes`]. `family_table!` puts it into an `extern "C"`
//! function that has the family's features; body and operations are inlined there, and only there do the intrinsics become
//! instructions. Bodies use loops with constant trip counts and no closures around operations: a closure is a function
//! without the features.
#![allow(unsafe_code)]

use std::array::from_fn;

use super::LANES;
use crate::dropout::{COLUMN, FIRST, SECOND};

/// The vectors of one instruction set, or [`Array`] ones. [`LANES`] is a multiple of [`Self::WIDTH`].
///
/// # Safety
/// All functions ask that the CPU has the instruction set's features. Addresses are of as many elements as a vector has,
/// those of `cut` functions of as many as the mask has lanes, and need no alignment.
pub(super) trait Vectors {
    /// Floats in a vector.
    const WIDTH: usize;
    /// Vector registers.
    const REGISTERS: usize;
    /// `WIDTH` f32.
    type Floats: Copy;
    /// `WIDTH` u32.
    type Words: Copy;
    /// A bit, or more, for each lane.
    type Mask: Copy;

    /// The first `count` lanes, 0 to `WIDTH`.
    unsafe fn first(count: usize) -> Self::Mask;
    unsafe fn splat(x: f32) -> Self::Floats;
    unsafe fn load(at: *const f32) -> Self::Floats;
    unsafe fn store(at: *mut f32, x: Self::Floats);
    /// 0 in other lanes, which are not touched in memory.
    unsafe fn load_cut(at: *const f32, keep: Self::Mask) -> Self::Floats;
    unsafe fn store_cut(at: *mut f32, keep: Self::Mask, x: Self::Floats);
    unsafe fn mul(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    /// `x · y + z`, rounded once, but by [`Array`] twice.
    unsafe fn fma(x: Self::Floats, y: Self::Floats, z: Self::Floats) -> Self::Floats;
    /// `x` in lanes of the mask, 0 in others.
    unsafe fn select(keep: Self::Mask, x: Self::Floats) -> Self::Floats;
    /// Lanes that are not 0, NaN among them.
    unsafe fn not_zero(x: Self::Floats) -> Self::Mask;

    unsafe fn splat_word(x: u32) -> Self::Words;
    unsafe fn load_words(at: *const u32) -> Self::Words;
    unsafe fn xor(x: Self::Words, y: Self::Words) -> Self::Words;
    /// The low halves of the products.
    unsafe fn mul_words(x: Self::Words, y: Self::Words) -> Self::Words;
    unsafe fn shift_right<const BITS: i32>(x: Self::Words) -> Self::Words;
    /// Lanes in which `x >= y`.
    unsafe fn at_least(x: Self::Words, y: Self::Words) -> Self::Mask;
}

/// What a family's vectors can do beside, for tiles that the portable family emits.
///
/// # Safety
/// As [`Vectors`].
pub(super) trait Lanes: Vectors {
    /// The lanes whose bit is set, lane 0 for bit 0.
    unsafe fn mask(bits: u32) -> Self::Mask;
    /// Stores the first `count` lanes.
    unsafe fn store_first(at: *mut f32, count: usize, x: Self::Floats);
    /// Rounded to nearest.
    unsafe fn load_ints(at: *const i32) -> Self::Floats;
    unsafe fn add(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    unsafe fn sub(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    /// The larger; `y` where one is NaN.
    unsafe fn max(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    /// `max(x, y)` in lanes of the mask, `y` in others.
    unsafe fn max_cut(x: Self::Floats, y: Self::Floats, keep: Self::Mask) -> Self::Floats;
    /// The sum of all lanes.
    unsafe fn sum(x: Self::Floats) -> f32;
    /// The largest of all lanes, none of which is NaN.
    unsafe fn largest(x: Self::Floats) -> f32;
    /// In lane `i` the sum of vector `i`; reads `WIDTH` vectors.
    unsafe fn sums_across(vectors: &[Self::Floats; LANES]) -> Self::Floats;
    /// Columns `0..4` of rows `0..WIDTH` from `column` on, a vector each; reads `WIDTH` addresses.
    unsafe fn load_columns(rows: &[*const f32; LANES], column: usize) -> [Self::Floats; 4];

    /// 2^x in lanes of the mask, 0 in others; 0 below 2^[`LEAST_POWER`](super::LEAST_POWER), NaN for NaN.
    unsafe fn exp2(x: Self::Floats, keep: Self::Mask) -> Self::Floats;
    /// `factor · (2^y − 1) / (2^y + 1)`, which is factor · tanh x for y = 2x log2 e.
    unsafe fn tanh_of_power(y: Self::Floats, factor: Self::Floats) -> Self::Floats;

    unsafe fn widen_bf16(at: *const u16) -> Self::Floats;
    /// Rounds to nearest, ties to even; NaN stays NaN.
    unsafe fn narrow_bf16(at: *mut u16, x: Self::Floats);
    unsafe fn widen_f16(at: *const u16) -> Self::Floats;
    /// Rounds to nearest, ties to even; NaN stays NaN.
    unsafe fn narrow_f16(at: *mut u16, x: Self::Floats);
}

/// Implements functions of [`Vectors`] and [`Lanes`] by expressions.
macro_rules! operations {
    ($(fn $name:ident $(<const $bits:ident: $kind:ty>)? ($($arg:ident: $ty:ty),*) $(-> $out:ty)? $body:block)*) => {$(
        #[inline(always)]
        unsafe fn $name $(<const $bits: $kind>)? ($($arg: $ty),*) $(-> $out)? {
            // SAFETY: the contract of `Vectors`.
            #[allow(unused_unsafe)]
            unsafe { $body }
        }
    )*};
}
pub(super) use operations;

/// `(2^f − 1) / f` for |f| ≤ 1/2, constant term first: minimax, relative error 1.1e-8.
pub(super) const POWER: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_5, 0.055_503_573, 0.009_618_237, 0.001_339_073_6, 0.000_154_035_14];
/// From here on, tanh is 1 in f32, and e^2x is still far from infinite (in powers of two).
pub(super) const HIGHEST: f32 = 40.0;

/// The polynomial of degree 5 with these factors, constant term first.
///
/// # Safety
/// The CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn polynomial<L: Lanes>(x: L::Floats, factors: &[f32; 6]) -> L::Floats {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = L::splat(factors[5]);
        for i in (0..5).rev() {
            sum = L::fma(sum, x, L::splat(factors[i]));
        }
        sum
    }
}

/// The bits of part `part` of a block, `WIDTH` queries, in the word of key `key`.
///
/// # Safety
/// `words` holds more than `key` words.
#[inline(always)]
pub(super) unsafe fn part_bits<L: Lanes>(words: *const u64, key: usize, part: usize) -> u32 {
    // SAFETY: the caller's; a word has 64 / WIDTH parts. Little-endian, as all instruction sets here.
    unsafe {
        match L::WIDTH {
            16 => (*words.cast::<u16>().add(4 * key + part)).into(),
            8 => (*words.cast::<u8>().add(8 * key + part)).into(),
            width => (*words.add(key) >> (part * width)) as u32 & ((1 << width) - 1),
        }
    }
}

/// All vectors joined into one, in pairs of neighbors; their number is a power of two.
///
/// # Safety
/// The CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn tree<L: Lanes, const N: usize>(
    mut vectors: [L::Floats; N],
    join: unsafe fn(L::Floats, L::Floats) -> L::Floats,
) -> L::Floats {
    let mut count = N;
    while count > 1 {
        count /= 2;
        for i in 0..count {
            // SAFETY: the caller's.
            vectors[i] = unsafe { join(vectors[2 * i], vectors[2 * i + 1]) };
        }
    }
    vectors[0]
}

/// The lanes in which [`crate::dropout::hash`]`(row_keys, key)` is at least the threshold.
///
/// # Safety
/// The CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn kept<V: Vectors>(row_keys: V::Words, key: u32, threshold: u32) -> V::Mask {
    // SAFETY: the caller's.
    unsafe {
        let mut x = V::xor(row_keys, V::splat_word(key.wrapping_mul(COLUMN)));
        x = V::xor(x, V::shift_right::<16>(x));
        x = V::mul_words(x, V::splat_word(FIRST));
        x = V::xor(x, V::shift_right::<15>(x));
        x = V::mul_words(x, V::splat_word(SECOND));
        x = V::xor(x, V::shift_right::<16>(x));
        V::at_least(x, V::splat_word(threshold))
    }
}

/// `W` lanes without intrinsics, for any CPU: what tiles are compiled with that the portable family does not emit.
pub(super) struct Array<const W: usize>;

impl<const W: usize> Vectors for Array<W> {
    const WIDTH: usize = W;
    const REGISTERS: usize = 16;
    type Floats = [f32; W];
    type Words = [u32; W];
    /// All bits of a lane.
    type Mask = [u32; W];

    operations! {
        fn first(count: usize) -> [u32; W] { from_fn(|i| if i < count { u32::MAX } else { 0 }) }
        fn splat(x: f32) -> [f32; W] { [x; W] }
        fn load(at: *const f32) -> [f32; W] { at.cast::<[f32; W]>().read_unaligned() }
        fn store(at: *mut f32, x: [f32; W]) { at.cast::<[f32; W]>().write_unaligned(x) }
        fn load_cut(at: *const f32, keep: [u32; W]) -> [f32; W] { from_fn(|i| if keep[i] != 0 { *at.add(i) } else { 0.0 }) }
        fn store_cut(at: *mut f32, keep: [u32; W], x: [f32; W]) {
            for i in (0..W).filter(|&i| keep[i] != 0) {
                *at.add(i) = x[i];
            }
        }
        fn mul(x: [f32; W], y: [f32; W]) -> [f32; W] { from_fn(|i| x[i] * y[i]) }
        fn fma(x: [f32; W], y: [f32; W], z: [f32; W]) -> [f32; W] { from_fn(|i| x[i] * y[i] + z[i]) }
        fn select(keep: [u32; W], x: [f32; W]) -> [f32; W] { from_fn(|i| f32::from_bits(x[i].to_bits() & keep[i])) }
        fn not_zero(x: [f32; W]) -> [u32; W] { x.map(|x| if x == 0.0 { 0 } else { u32::MAX }) }

        fn splat_word(x: u32) -> [u32; W] { [x; W] }
        fn load_words(at: *const u32) -> [u32; W] { at.cast::<[u32; W]>().read_unaligned() }
        fn xor(x: [u32; W], y: [u32; W]) -> [u32; W] { from_fn(|i| x[i] ^ y[i]) }
        fn mul_words(x: [u32; W], y: [u32; W]) -> [u32; W] { from_fn(|i| x[i].wrapping_mul(y[i])) }
        fn shift_right<const BITS: i32>(x: [u32; W]) -> [u32; W] { x.map(|x| x >> BITS) }
        fn at_least(x: [u32; W], y: [u32; W]) -> [u32; W] { from_fn(|i| if x[i] >= y[i] { u32::MAX } else { 0 }) }
    }
}

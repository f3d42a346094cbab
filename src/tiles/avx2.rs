//! Tiles in AVX2 with FMA: 16 registers of 8 floats, so that a group of 16 queries is two vectors.
//!
//! Score and value keep 6 × 2 sums in registers; a step loads 2 vectors and broadcasts 6 floats for 12
//! multiply-adds. Tails go through `maskload`, which never touches a masked lane. Rows of q, k, v, out and rv are
//! read and written to their last element and no further. All other tiles are written once for all families.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: iterator chains would call through closures that do not
// carry the target feature.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use self::lanes::Avx2;
use super::lanes::{Lanes, Vectors};
use super::split::{self, SCORE_KEYS, ScoreKernel, ScoreTile, VALUE_ROWS, ValueKernel, ValueTile};
use super::{LANES, ScoreCall, ValueCall};

mod lanes;

super::family_table::family_table!(Avx2, Avx2, "avx2,fma,f16c", score: score, value: value, dots: None);

/// Floats in a vector.
const W: usize = 8;

/// Steps of score and value between two branches: the loop's own instructions take FMA ports too, and a short trip
/// count keeps its exit predicted.
const UNROLL: usize = 4;

/// See [`ScoreCall`].
unsafe extern "C" fn score(call: *const ScoreCall) {
    const KERNELS: [ScoreKernel; SCORE_KEYS] =
        [score_tile::<1>, score_tile::<2>, score_tile::<3>, score_tile::<4>, score_tile::<5>, score_tile::<6>];
    // SAFETY: contract of `super`; a family exists only where the CPU has its instructions.
    unsafe { split::score::<4>(&*call, &KERNELS) }
}

/// `K` keys, group after group.
#[target_feature(enable = "avx2,fma")]
unsafe fn score_tile<const K: usize>(t: &ScoreTile) {
    let keys = t.keys;
    let (mut start, mut s, mut max, mut words) = (t.qt, t.s, t.max, t.words);
    for _ in 0..t.groups {
        let mut sums = [[_mm256_setzero_ps(); 2]; K];
        // SAFETY: `keys` point at rows of `d` floats, `start` at a panel of `d` times 16, `s` at a group's panel.
        unsafe {
            let (mut qt, mut x) = (start, 0);
            while x + UNROLL <= t.d {
                for u in 0..UNROLL {
                    score_step(&mut sums, qt.add(u * LANES), &keys, x + u);
                }
                qt = qt.add(UNROLL * LANES);
                x += UNROLL;
            }
            while x < t.d {
                score_step(&mut sums, qt, &keys, x);
                qt = qt.add(LANES);
                x += 1;
            }
            for k in 0..K {
                for h in 0..2 {
                    _mm256_store_ps(s.add(k * LANES + h * W), sums[k][h]);
                }
            }
            if !max.is_null() {
                raise_max(&sums, words, max);
                max = max.add(LANES);
            }
        }
        start = start.wrapping_add(t.qt_stride);
        s = s.wrapping_add(t.s_stride);
        if !words.is_null() {
            words = words.wrapping_add(1);
        }
    }
}

/// Takes one group's scores up in its maximum.
///
/// # Safety
/// `max` holds 16 floats, `words` (or null) one word per key, of which this group's 16 bits are read.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn raise_max<const K: usize>(sums: &[[__m256; 2]; K], words: *const u16, max: *mut f32) {
    for h in 0..2 {
        // SAFETY: the caller's.
        unsafe {
            let at = max.add(h * W);
            let mut max = _mm256_loadu_ps(at);
            for k in 0..K {
                // The second operand is returned where one is NaN.
                let with = _mm256_max_ps(sums[k][h], max);
                max = if words.is_null() {
                    with
                } else {
                    let bits = *words.add(4 * k).cast::<u8>().add(h);
                    _mm256_blendv_ps(max, with, _mm256_castsi256_ps(Avx2::mask(bits.into())))
                };
            }
            _mm256_storeu_ps(at, max);
        }
    }
}

/// Column `x` of [`score_tile`].
///
/// # Safety
/// As `score_tile`, with `x < d` and `qt` at column `x`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn score_step<const K: usize>(
    sums: &mut [[__m256; 2]; K],
    qt: *const f32,
    keys: &[*const f32; SCORE_KEYS],
    x: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let q = [_mm256_load_ps(qt), _mm256_load_ps(qt.add(W))];
        for k in 0..K {
            let key = _mm256_broadcast_ss(&*keys[k].add(x));
            sums[k][0] = _mm256_fmadd_ps(q[0], key, sums[k][0]);
            sums[k][1] = _mm256_fmadd_ps(q[1], key, sums[k][1]);
        }
    }
}

/// The micro-kernels of one row count.
macro_rules! value_kernels {
    ($rows:literal) => {
        [
            [value_tile::<$rows, 1, false>, value_tile::<$rows, 1, true>],
            [value_tile::<$rows, 2, false>, value_tile::<$rows, 2, true>],
        ]
    };
}

/// See [`ValueCall`].
unsafe extern "C" fn value(call: *const ValueCall) -> u64 {
    const KERNELS: [[[ValueKernel; 2]; 2]; VALUE_ROWS] = [
        value_kernels!(1),
        value_kernels!(2),
        value_kernels!(3),
        value_kernels!(4),
        value_kernels!(5),
        value_kernels!(6),
    ];
    // SAFETY: contract of `super`; a family exists only where the CPU has its instructions.
    unsafe { split::value::<2, W>(&*call, &KERNELS) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn value_tile<const R: usize, const C: usize, const CUT: bool>(t: &ValueTile) -> bool {
    let mut sums = [[_mm256_setzero_ps(); C]; R];
    // SAFETY: the tile's rows and columns lie in the record's arrays; `tail` cuts the last vector of rows that are
    // not padded.
    unsafe {
        let tail = Avx2::first(if CUT { t.tail } else { W });
        if t.accumulate {
            for r in 0..R {
                for c in 0..C {
                    sums[r][c] = _mm256_load_ps(t.acc.add(r * t.acc_stride + c * W));
                }
            }
        }
        if t.offsets.is_null() {
            let (mut p, mut v) = (t.p, t.v);
            for _ in 0..t.nkeys / UNROLL {
                for _ in 0..UNROLL {
                    value_step::<R, C, CUT>(&mut sums, p, v, tail);
                    p = p.wrapping_add(LANES);
                    v = v.wrapping_add(t.v_stride);
                }
            }
            for _ in 0..t.nkeys % UNROLL {
                value_step::<R, C, CUT>(&mut sums, p, v, tail);
                p = p.wrapping_add(LANES);
                v = v.wrapping_add(t.v_stride);
            }
        } else {
            let (mut p, mut offset) = (t.p, t.offsets);
            for _ in 0..t.nkeys / 2 {
                value_step::<R, C, CUT>(&mut sums, p, t.v.add(*offset), tail);
                value_step::<R, C, CUT>(&mut sums, p.add(LANES), t.v.add(*offset.add(1)), tail);
                p = p.add(2 * LANES);
                offset = offset.add(2);
            }
            if t.nkeys % 2 == 1 {
                value_step::<R, C, CUT>(&mut sums, p, t.v.add(*offset), tail);
            }
        }
        if t.out.is_null() {
            for r in 0..R {
                for c in 0..C {
                    _mm256_store_ps(t.acc.add(r * t.acc_stride + c * W), sums[r][c]);
                }
            }
            return false;
        }
        // A finite x adds 0, any other makes NaN.
        let mut check = _mm256_setzero_ps();
        for r in 0..R {
            let row = if t.out_rows.is_null() { r } else { *t.out_rows.add(r) as usize };
            let factor = _mm256_set1_ps(*t.factor.add(r));
            let out = t.out.add(row * t.out_stride);
            for c in 0..C {
                let cut = CUT && c == C - 1;
                let mut x = _mm256_mul_ps(sums[r][c], factor);
                if !t.rv.is_null() {
                    let at = t.rv.add(row * t.rv_stride + c * W);
                    let rv = if cut { _mm256_maskload_ps(at, tail) } else { _mm256_loadu_ps(at) };
                    x = _mm256_fmadd_ps(rv, _mm256_set1_ps(t.restart), x);
                }
                if cut {
                    x = _mm256_and_ps(x, _mm256_castsi256_ps(tail));
                    _mm256_maskstore_ps(out.add(c * W), tail, x);
                } else {
                    _mm256_storeu_ps(out.add(c * W), x);
                }
                check = _mm256_fmadd_ps(x, _mm256_setzero_ps(), check);
            }
        }
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(check, check)) != 0
    }
}

/// One key of [`value_tile`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn value_step<const R: usize, const C: usize, const CUT: bool>(
    sums: &mut [[__m256; C]; R],
    p: *const f32,
    v: *const f32,
    tail: __m256i,
) {
    let mut values = [_mm256_setzero_ps(); C];
    // SAFETY: as `value_tile`.
    unsafe {
        for c in 0..C {
            values[c] =
                if CUT && c == C - 1 { _mm256_maskload_ps(v.add(c * W), tail) } else { _mm256_loadu_ps(v.add(c * W)) };
        }
        for r in 0..R {
            let weight = _mm256_broadcast_ss(&*p.add(r));
            for c in 0..C {
                sums[r][c] = _mm256_fmadd_ps(values[c], weight, sums[r][c]);
            }
        }
    }
}

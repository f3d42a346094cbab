//! Tiles in AVX-512 F, VL, DQ and BW: 32 registers of 16 floats, mask registers for tails and masked lanes.
//!
//! Score and value keep 6 × 4 sums in registers; a step loads 4 vectors and broadcasts 6 floats for 24
//! multiply-adds. Rows of q, k, v, out and rv are read and written to their last element and no further.
//! All other tiles are written once for all families.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: iterator chains would call through closures that do not
// carry the target feature.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::split::{self, FETCH_KEYS, SCORE_KEYS, ScoreKernel, ScoreTile, VALUE_ROWS, ValueKernel, ValueTile};
use super::{LANES, ScoreCall, ValueCall, dots, prefetch};

mod lanes;

super::family_table::family_table!(
    Avx512, lanes::Avx512, "avx2,fma,f16c,avx512f,avx512vl,avx512dq,avx512bw",
    score: score, value: value, dots: Some(dots::DOTS)
);

/// Steps of score and value between two branches: the loop's own instructions take FMA ports too, and a short trip
/// count keeps its exit predicted.
const UNROLL: usize = 4;

/// See [`ScoreCall`].
unsafe extern "C" fn score(call: *const ScoreCall) {
    const KERNELS: [ScoreKernel; SCORE_KEYS] =
        [score_row::<1>, score_row::<2>, score_row::<3>, score_row::<4>, score_row::<5>, score_row::<6>];
    // SAFETY: contract of `super`; a family exists only where the CPU has its instructions.
    unsafe { split::score::<4>(&*call, &KERNELS) }
}

/// `K` keys times all the tile's groups at once. Eight sums or fewer leave the FMA pipes waiting: they are split.
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn score_row<const K: usize>(t: &ScoreTile) {
    // SAFETY: the caller's; the shapes hold the tile's groups.
    unsafe {
        match (t.groups, K) {
            (1, _) => score_tile::<K, 1, 2>(t),
            (2, 5..) => score_tile::<K, 2, 1>(t),
            (2, _) => score_tile::<K, 2, 2>(t),
            (3, 3..) => score_tile::<K, 3, 1>(t),
            (3, _) => score_tile::<K, 3, 2>(t),
            (_, 3..) => score_tile::<K, 4, 1>(t),
            _ => score_tile::<K, 4, 2>(t),
        }
    }
}

/// `K` keys times `G` groups; `CHAINS` sums of each score, where one would leave the FMA pipes waiting.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn score_tile<const K: usize, const G: usize, const CHAINS: usize>(t: &ScoreTile) {
    let keys = t.keys;
    let mut chains = [[[_mm512_setzero_ps(); G]; K]; CHAINS];
    // SAFETY: `keys` point at rows of `d` floats, `qt` at `G` panels of `d` vectors.
    unsafe {
        let (mut qt, mut x, mut ahead) = (t.qt, 0, t.ahead);
        while x + UNROLL <= t.d {
            if G >= 2 {
                ahead.some();
            }
            // Two lines every four columns, and six keys are three lines of each eight columns.
            if !t.next.is_null() && x < t.d / 4 * 3 {
                prefetch::into_l1(t.next.wrapping_add(8 * x));
                prefetch::into_l1(t.next.wrapping_add(8 * x + LANES));
            }
            for u in 0..UNROLL {
                score_step(&mut chains[u % CHAINS], qt.add(u * LANES), t.qt_stride, &keys, x + u);
            }
            qt = qt.add(UNROLL * LANES);
            x += UNROLL;
        }
        while x < t.d {
            score_step(&mut chains[0], qt, t.qt_stride, &keys, x);
            qt = qt.add(LANES);
            x += 1;
        }
    }
    let mut sums = chains[0];
    if CHAINS == 2 {
        for k in 0..K {
            for g in 0..G {
                sums[k][g] = _mm512_add_ps(sums[k][g], chains[1][k][g]);
            }
        }
    }
    for g in 0..G {
        for k in 0..K {
            // SAFETY: the panel holds the tile's keys and groups.
            unsafe { _mm512_store_ps(t.s.add(g * t.s_stride + k * LANES), sums[k][g]) };
        }
    }
    if t.max.is_null() {
        return;
    }
    for g in 0..G {
        // SAFETY: `max` holds 16 floats, `words` one word per key, of which this group's 16 bits are read.
        unsafe {
            let at = t.max.add(g * LANES);
            let mut max = _mm512_loadu_ps(at);
            for k in 0..K {
                // The second operand is returned where one is NaN.
                max = if t.words.is_null() {
                    _mm512_max_ps(sums[k][g], max)
                } else {
                    _mm512_mask_max_ps(max, *t.words.add(4 * k + g), sums[k][g], max)
                };
            }
            _mm512_storeu_ps(at, max);
        }
    }
}

/// Column `x` of [`score_tile`].
///
/// # Safety
/// As `score_tile`, with `x < d` and `qt` at column `x` of the first group.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn score_step<const K: usize, const G: usize>(
    sums: &mut [[__m512; G]; K],
    qt: *const f32,
    qt_stride: usize,
    keys: &[*const f32; SCORE_KEYS],
    x: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut q = [_mm512_setzero_ps(); G];
        for g in 0..G {
            q[g] = _mm512_load_ps(qt.add(g * qt_stride));
        }
        for k in 0..K {
            let key = _mm512_set1_ps(*keys[k].add(x));
            for g in 0..G {
                sums[k][g] = _mm512_fmadd_ps(q[g], key, sums[k][g]);
            }
        }
    }
}

/// The micro-kernels of one row count.
macro_rules! value_kernels {
    ($rows:literal) => {
        [
            [value_tile::<$rows, 1, false>, value_tile::<$rows, 1, true>],
            [value_tile::<$rows, 2, false>, value_tile::<$rows, 2, true>],
            [value_tile::<$rows, 3, false>, value_tile::<$rows, 3, true>],
            [value_tile::<$rows, 4, false>, value_tile::<$rows, 4, true>],
        ]
    };
}

/// See [`ValueCall`].
unsafe extern "C" fn value(call: *const ValueCall) -> u64 {
    const KERNELS: [[[ValueKernel; 2]; 4]; VALUE_ROWS] = [
        value_kernels!(1),
        value_kernels!(2),
        value_kernels!(3),
        value_kernels!(4),
        value_kernels!(5),
        value_kernels!(6),
    ];
    // SAFETY: contract of `super`; a family exists only where the CPU has its instructions.
    unsafe { split::value::<4, LANES>(&*call, &KERNELS) }
}

#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn value_tile<const R: usize, const C: usize, const CUT: bool>(t: &ValueTile) -> bool {
    let tail = if CUT { u16::MAX >> (LANES - t.tail) } else { u16::MAX };
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    // SAFETY: the tile's rows and columns lie in the record's arrays; `tail` cuts the last vector of rows that are
    // not padded.
    unsafe {
        if t.accumulate {
            for r in 0..R {
                for c in 0..C {
                    sums[r][c] = _mm512_load_ps(t.acc.add(r * t.acc_stride + c * LANES));
                }
            }
        }
        if t.offsets.is_null() {
            let (mut p, mut v, mut ahead) = (t.p, t.v, t.ahead);
            for _ in 0..t.nkeys / FETCH_KEYS {
                ahead.some();
                for _ in 0..FETCH_KEYS {
                    if R == VALUE_ROWS {
                        // Once per group: its first row block is the one with most rows.
                        prefetch::into_l2(p.wrapping_add(t.p_ahead));
                    }
                    value_step::<R, C, CUT>(&mut sums, p, v, tail);
                    p = p.wrapping_add(LANES);
                    v = v.wrapping_add(t.v_stride);
                }
            }
            for _ in 0..t.nkeys % FETCH_KEYS {
                value_step::<R, C, CUT>(&mut sums, p, v, tail);
                p = p.wrapping_add(LANES);
                v = v.wrapping_add(t.v_stride);
            }
        } else {
            let (mut p, mut offset) = (t.p, t.offsets);
            for _ in 0..t.nkeys / 2 {
                if R == VALUE_ROWS {
                    for line in 0..2 {
                        prefetch::into_l2(p.wrapping_add(t.p_ahead + line * LANES));
                    }
                }
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
                    _mm512_store_ps(t.acc.add(r * t.acc_stride + c * LANES), sums[r][c]);
                }
            }
            return false;
        }
        // A finite x adds 0, any other makes NaN.
        let mut check = [_mm512_setzero_ps(); C];
        for r in 0..R {
            let row = if t.out_rows.is_null() { r } else { *t.out_rows.add(r) as usize };
            let factor = _mm512_set1_ps(*t.factor.add(r));
            let out = t.out.add(row * t.out_stride);
            for c in 0..C {
                let keep = if CUT && c == C - 1 { tail } else { u16::MAX };
                let mut x = _mm512_mul_ps(sums[r][c], factor);
                if !t.rv.is_null() {
                    let rv = _mm512_maskz_loadu_ps(keep, t.rv.add(row * t.rv_stride + c * LANES));
                    x = _mm512_fmadd_ps(rv, _mm512_set1_ps(t.restart), x);
                }
                _mm512_mask_storeu_ps(out.add(c * LANES), keep, x);
                check[c] = _mm512_mask3_fmadd_ps(x, _mm512_setzero_ps(), check[c], keep);
            }
        }
        let mut bad = 0;
        for c in 0..C {
            bad |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(check[c], check[c]);
        }
        bad != 0
    }
}

/// One key of [`value_tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn value_step<const R: usize, const C: usize, const CUT: bool>(
    sums: &mut [[__m512; C]; R],
    p: *const f32,
    v: *const f32,
    tail: __mmask16,
) {
    let mut values = [_mm512_setzero_ps(); C];
    // SAFETY: as `value_tile`.
    unsafe {
        for c in 0..C {
            values[c] = if CUT && c == C - 1 {
                _mm512_maskz_loadu_ps(tail, v.add(c * LANES))
            } else {
                _mm512_loadu_ps(v.add(c * LANES))
            };
        }
        for r in 0..R {
            let weight = _mm512_set1_ps(*p.add(r));
            for c in 0..C {
                sums[r][c] = _mm512_fmadd_ps(values[c], weight, sums[r][c]);
            }
        }
    }
}

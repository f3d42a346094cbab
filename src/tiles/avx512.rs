//! Tiles in AVX-512 F, VL and DQ: 32 registers of 16 floats, mask registers for tails and masked lanes.
//!
//! Score and value keep 6 × 4 sums in registers; a step loads 4 vectors and broadcasts 6 floats for 24
//! multiply-adds. Rows of q, k, v, out and rv are read and written to their last element and no further.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: iterator chains would call through closures that do not
// carry the target feature.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::elementwise;
use super::gradient;
use super::half_panel;
use super::join::join_avx512;
use super::split::{
    self, EdgeRange, FETCH_KEYS, SCORE_KEYS, ScoreKernel, ScoreTile, VALUE_ROWS, ValueKernel, ValueTile,
};
use super::transposed;
use super::{EdgeCall, ExpCall, Family, LANES, LEAST_POWER, PackCall, ScoreCall, ValueCall};
use crate::target::Isa;

/// The family. Handed out only by [`super::family`], which asks the CPU.
pub(super) const FAMILY: Family = Family {
    isa: Isa::Avx512,
    pack,
    score,
    exp,
    value,
    edge_score,
    edge_exp,
    edge_value,
    join: join_avx512,
    narrow_panel: half_panel::narrow_avx512,
    widen_panel: half_panel::widen_avx512,
    softcap: elementwise::softcap_avx512,
    alibi: elementwise::alibi_avx512,
    transposed: transposed::transposed_avx512,
    scatter: transposed::scatter_avx512,
    gradient: gradient::gradient_avx512,
    edge_gradient: gradient::edge_gradient_avx512,
    rows: super::rows::AVX512,
};

/// Steps of score and value between two branches: the loop's own instructions take FMA ports too, and a short trip
/// count keeps its exit predicted.
const UNROLL: usize = 4;

/// Mask of the first `count` lanes, 0 to 16.
const fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// See [`PackCall`].
///
/// Sixteen rows are read as four 128-bit pieces per register, so that the 4 × 4 transposes stay within pieces.
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe extern "C" fn pack(call: *const PackCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    let scale = _mm512_set1_ps(c.scale);
    for group in 0..c.count.div_ceil(LANES) {
        let lanes = (c.count - group * LANES).min(LANES);
        let keep = first(lanes);
        let mut rows = [c.q; LANES];
        for i in 0..LANES {
            // Lanes beyond the last query read that query again and are zeroed below.
            let at = group * LANES + i.min(lanes - 1);
            // SAFETY: `at < count`.
            rows[i] = unsafe {
                let row = if c.rows.is_null() { at } else { *c.rows.add(at) as usize };
                c.q.add(row * c.q_stride)
            };
        }
        // SAFETY: every read ends at or before column `d` of an existing row; `out` is `[groups][d][16]`.
        unsafe {
            let out = c.out.add(group * c.d * LANES);
            let mut x = 0;
            while x + 4 <= c.d {
                let mut w = [_mm512_setzero_ps(); 4];
                for i in 0..4 {
                    let a = _mm512_castps128_ps512(_mm_loadu_ps(rows[i].add(x)));
                    let a = _mm512_insertf32x4::<1>(a, _mm_loadu_ps(rows[4 + i].add(x)));
                    let a = _mm512_insertf32x4::<2>(a, _mm_loadu_ps(rows[8 + i].add(x)));
                    w[i] = _mm512_insertf32x4::<3>(a, _mm_loadu_ps(rows[12 + i].add(x)));
                }
                let ab = _mm512_castps_pd(_mm512_unpacklo_ps(w[0], w[1]));
                let cd = _mm512_castps_pd(_mm512_unpacklo_ps(w[2], w[3]));
                let ef = _mm512_castps_pd(_mm512_unpackhi_ps(w[0], w[1]));
                let gh = _mm512_castps_pd(_mm512_unpackhi_ps(w[2], w[3]));
                let columns = [
                    _mm512_unpacklo_pd(ab, cd),
                    _mm512_unpackhi_pd(ab, cd),
                    _mm512_unpacklo_pd(ef, gh),
                    _mm512_unpackhi_pd(ef, gh),
                ];
                for i in 0..4 {
                    let column = _mm512_maskz_mul_ps(keep, _mm512_castpd_ps(columns[i]), scale);
                    _mm512_store_ps(out.add((x + i) * LANES), column);
                }
                x += 4;
            }
            for x in x..c.d {
                for i in 0..LANES {
                    *out.add(x * LANES + i) = if i < lanes { *rows[i].add(x) * c.scale } else { 0.0 };
                }
            }
        }
    }
}

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
                _mm_prefetch::<_MM_HINT_T0>(t.next.wrapping_add(8 * x).cast());
                _mm_prefetch::<_MM_HINT_T0>(t.next.wrapping_add(8 * x + LANES).cast());
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

/// 2^x to 1.5 ulp where `keep`, else 0; 0 below 2^[`LEAST_POWER`], NaN for NaN.
///
/// On [0, 1) a polynomial of degree 5 with value 1 at 0 (minimax, relative error 8.3e-8); `reduce` takes x's
/// fraction (0 for an infinity) and `scalef` applies its floor. What is flushed would make subnormal products in the
/// value tile, at a microcode assist each (250 times slower when measured).
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
fn exp2(x: __m512, keep: __mmask16) -> __m512 {
    // Round towards −inf to 0 fraction bits, no precision exception.
    let f = _mm512_reduce_ps::<0x09>(x);
    let p = _mm512_set1_ps(0.001_867_13);
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.009_017_031));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.055_799_913));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240_164_44));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693_151_3));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0));
    // NaN is not less.
    let keep = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(keep, x, _mm512_set1_ps(LEAST_POWER));
    _mm512_maskz_scalef_ps(keep, p, x)
}

/// See [`ExpCall`].
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe extern "C" fn exp(call: *const ExpCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    for group in 0..c.groups {
        // SAFETY: `group < groups`, and keys stay below `nkeys`.
        unsafe {
            let panel = c.s.add(group * c.s_stride);
            let sum = c.sum.add(group * LANES);
            let max = _mm512_loadu_ps(c.max.add(group * LANES));
            let words = if c.words.is_null() { std::ptr::null() } else { c.words.cast::<u16>().add(group) };
            let add = if words.is_null() {
                exp_panel::<false>(panel, c.nkeys, words, max)
            } else {
                exp_panel::<true>(panel, c.nkeys, words, max)
            };
            _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), add));
        }
    }
}

/// One group of [`exp`]: four keys at a time, with a sum each; returns the sums.
///
/// # Safety
/// `panel` holds `nkeys` vectors; `words` as [`ScoreTile::words`] where `MASKED`.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn exp_panel<const MASKED: bool>(panel: *mut f32, nkeys: usize, words: *const u16, max: __m512) -> __m512 {
    let mut sums = [_mm512_setzero_ps(); 4];
    // A loop of its own for whole fours: with the rest in it, the compiler keeps the sums in memory.
    let whole = nkeys / 4 * 4;
    for key in (0..whole).step_by(4) {
        // SAFETY: `key + 3 < nkeys`.
        unsafe {
            let at = panel.add(key * LANES);
            let mut keep = [u16::MAX; 4];
            if MASKED {
                for i in 0..4 {
                    keep[i] = *words.add(4 * (key + i));
                }
                if keep == [0; 4] {
                    for i in 0..4 {
                        _mm512_store_ps(at.add(i * LANES), _mm512_setzero_ps());
                    }
                    continue;
                }
            }
            for i in 0..4 {
                let p = exp2(_mm512_sub_ps(_mm512_load_ps(at.add(i * LANES)), max), keep[i]);
                _mm512_store_ps(at.add(i * LANES), p);
                sums[i] = _mm512_add_ps(sums[i], p);
            }
        }
    }
    for key in whole..nkeys {
        // SAFETY: `key < nkeys`.
        unsafe {
            let at = panel.add(key * LANES);
            let keep = if MASKED { *words.add(4 * key) } else { u16::MAX };
            // What no query sees may hold anything, subnormal numbers too.
            let p = if keep == 0 { _mm512_setzero_ps() } else { exp2(_mm512_sub_ps(_mm512_load_ps(at), max), keep) };
            _mm512_store_ps(at, p);
            sums[0] = _mm512_add_ps(sums[0], p);
        }
    }
    _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]))
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
    let tail = if CUT { first(t.tail) } else { u16::MAX };
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
                        _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(t.p_ahead).cast());
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
                        _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(t.p_ahead + line * LANES).cast());
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

/// See [`EdgeCall`]: sixteen dots at a time, reduced together.
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe extern "C" fn edge_score(call: *const EdgeCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    for r in 0..c.rows {
        // SAFETY: `r < rows`; edges stay between the row's offsets.
        unsafe {
            let EdgeRange { base, begin: mut edge, end, .. } = EdgeRange::new(c, r);
            let row = if c.q_rows.is_null() { r } else { *c.q_rows.add(r) as usize };
            let q = c.q.add(row * c.q_stride);
            let mut max = _mm512_set1_ps(*c.max.add(r));
            if c.d == WIDTH {
                let scale = _mm512_set1_ps(c.scale);
                let q: [__m512; WIDTH / LANES] =
                    std::array::from_fn(|x| _mm512_mul_ps(_mm512_loadu_ps(q.add(x * LANES)), scale));
                // A few edges at the end are left to shorter code.
                while edge < end && end - edge > LANES / 2 {
                    let count = (end - edge).min(LANES);
                    let dots = dots_of_width(c, q, edge, count - 1);
                    let keep = first(count);
                    _mm512_mask_storeu_ps(c.s.add(edge - base), keep, dots);
                    max = _mm512_mask_max_ps(max, keep, dots, max);
                    edge += count;
                }
            }
            while edge < end {
                let count = (end - edge).min(LANES);
                let mut keys = [c.kv; LANES];
                for i in 0..LANES {
                    // Lanes beyond the last edge read the first again.
                    let at = edge + if i < count { i } else { 0 };
                    keys[i] = c.kv.add(*c.edge_keys.add(at) as usize * c.kv_stride);
                }
                let dots = match count {
                    1..=4 => dots::<4>(q, &keys, c.d, c.scale),
                    5..=8 => dots::<8>(q, &keys, c.d, c.scale),
                    _ => dots::<16>(q, &keys, c.d, c.scale),
                };
                let keep = first(count);
                _mm512_mask_storeu_ps(c.s.add(edge - base), keep, dots);
                max = _mm512_mask_max_ps(max, keep, dots, max);
                edge += count;
            }
            *c.max.add(r) = _mm512_reduce_max_ps(max);
        }
    }
}

/// The width of keys that has code of its own.
const WIDTH: usize = 64;

/// `q · key(edge + i)` in lane `i`, and that of edge `edge + last` in lanes beyond `last`: the query stays in registers.
///
/// # Safety
/// As [`edge_score`], with `d` of [`WIDTH`]; `edge + last` is an edge of the block.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn dots_of_width(c: &EdgeCall, q: [__m512; WIDTH / LANES], edge: usize, last: usize) -> __m512 {
    let mut sums = [_mm512_setzero_ps(); LANES];
    for i in 0..LANES {
        // SAFETY: the caller's.
        unsafe {
            let key = c.kv.add(*c.edge_keys.add(edge + i.min(last)) as usize * c.kv_stride);
            sums[i] = _mm512_mul_ps(_mm512_loadu_ps(key), q[0]);
            for x in 1..WIDTH / LANES {
                sums[i] = _mm512_fmadd_ps(_mm512_loadu_ps(key.add(x * LANES)), q[x], sums[i]);
            }
        }
    }
    add_across(&sums)
}

/// `scale · q · keys[i]` in lane `i < N`, 0 beyond.
///
/// # Safety
/// `q` and every key point at `d` floats.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn dots<const N: usize>(q: *const f32, keys: &[*const f32; LANES], d: usize, scale: f32) -> __m512 {
    let scale = _mm512_set1_ps(scale);
    let mut sums = [_mm512_setzero_ps(); LANES];
    // SAFETY: reads stay below column `d`.
    unsafe {
        let mut x = 0;
        while x + LANES <= d {
            let query = _mm512_mul_ps(_mm512_loadu_ps(q.add(x)), scale);
            for i in 0..N {
                sums[i] = _mm512_fmadd_ps(_mm512_loadu_ps(keys[i].add(x)), query, sums[i]);
            }
            x += LANES;
        }
        if x < d {
            let keep = first(d - x);
            let query = _mm512_mul_ps(_mm512_maskz_loadu_ps(keep, q.add(x)), scale);
            for i in 0..N {
                sums[i] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(keep, keys[i].add(x)), query, sums[i]);
            }
        }
    }
    add_across(&sums)
}

/// The sum of vector `i` in lane `i`: transpose and add, 16 vectors to 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
fn add_across(sums: &[__m512; LANES]) -> __m512 {
    let mut four = [_mm512_setzero_ps(); 4];
    for i in 0..4 {
        let mut two = [_mm512_setzero_pd(); 2];
        for k in 0..2 {
            let (a, b) = (sums[4 * i + 2 * k], sums[4 * i + 2 * k + 1]);
            two[k] = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        }
        four[i] = _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(two[0], two[1])),
            _mm512_castpd_ps(_mm512_unpackhi_pd(two[0], two[1])),
        );
    }
    let low = add_quarters(four[0], four[1]);
    let high = add_quarters(four[2], four[3]);
    add_quarters(low, high)
}

/// Adds neighboring 128-bit quarters: `[a0 + a1, a2 + a3, b0 + b1, b2 + b3]`.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
fn add_quarters(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b))
}

/// See [`EdgeCall`].
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe extern "C" fn edge_exp(call: *const EdgeCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    for r in 0..c.rows {
        // SAFETY: `r < rows`; edges stay between the row's offsets.
        unsafe {
            let EdgeRange { base, begin: mut edge, end, .. } = EdgeRange::new(c, r);
            let max = _mm512_set1_ps(*c.max.add(r));
            let mut sum = _mm512_setzero_ps();
            while edge < end {
                let count = (end - edge).min(LANES);
                let keep = first(count);
                let at = c.s.add(edge - base);
                let p = exp2(_mm512_sub_ps(_mm512_maskz_loadu_ps(keep, at), max), keep);
                _mm512_mask_storeu_ps(at, keep, p);
                sum = _mm512_add_ps(sum, p);
                edge += count;
            }
            *c.sum.add(r) += _mm512_reduce_add_ps(sum);
        }
    }
}

/// See [`EdgeCall`].
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe extern "C" fn edge_value(call: *const EdgeCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    for r in 0..c.rows {
        let mut column = 0;
        while column < c.dv {
            let left = c.dv - column;
            let tail = (left - 1) % LANES + 1;
            // SAFETY: `r < rows`, `column < dv`.
            unsafe {
                match left.div_ceil(LANES) {
                    1 if tail < LANES => edge_columns::<1, true>(c, r, column, tail),
                    2 if tail < LANES => edge_columns::<2, true>(c, r, column, tail),
                    3 if tail < LANES => edge_columns::<3, true>(c, r, column, tail),
                    4 if tail < LANES => edge_columns::<4, true>(c, r, column, tail),
                    1 => edge_columns::<1, false>(c, r, column, tail),
                    2 => edge_columns::<2, false>(c, r, column, tail),
                    3 => edge_columns::<3, false>(c, r, column, tail),
                    _ => edge_columns::<4, false>(c, r, column, LANES),
                }
            }
            column += 4 * LANES;
        }
    }
}

/// `C` vectors of one row of [`edge_value`]; odd and even edges have sums of their own, to hide the latency.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe fn edge_columns<const C: usize, const CUT: bool>(c: &EdgeCall, r: usize, column: usize, tail: usize) {
    let tail = first(tail);
    let mut even = [[_mm512_setzero_ps(); C]; 1];
    let mut odd = [[_mm512_setzero_ps(); C]; 1];
    // SAFETY: contract of `super`; `tail` cuts the last vector at `dv`.
    unsafe {
        let range = EdgeRange::new(c, r);
        let EdgeRange { base, begin: mut edge, end, .. } = range;
        let acc = c.acc.add(r * c.acc_stride + column);
        if c.accumulate != 0 {
            for i in 0..C {
                even[0][i] = _mm512_loadu_ps(acc.add(i * LANES));
            }
        }
        let v = c.kv.add(column);
        while edge < end {
            range.fetch(c, v, edge, C * LANES);
            range.fetch(c, v, edge + 1, C * LANES);
            let key = *c.edge_keys.add(edge) as usize;
            value_step::<1, C, CUT>(&mut even, c.s.add(edge - base), v.add(key * c.kv_stride), tail);
            if edge + 1 < end {
                let key = *c.edge_keys.add(edge + 1) as usize;
                value_step::<1, C, CUT>(&mut odd, c.s.add(edge + 1 - base), v.add(key * c.kv_stride), tail);
            }
            edge += 2;
        }
        for i in 0..C {
            _mm512_storeu_ps(acc.add(i * LANES), _mm512_add_ps(even[0][i], odd[0][i]));
        }
    }
}

//! Tiles in AVX2 with FMA: 16 registers of 8 floats, so that a group of 16 queries is two vectors.
//!
//! Score and value keep 6 × 2 sums in registers; a step loads 2 vectors and broadcasts 6 floats for 12
//! multiply-adds. Tails go through `maskload`, which never touches a masked lane. Rows of q, k, v, out and rv are
//! read and written to their last element and no further.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: iterator chains would call through closures that do not
// carry the target feature.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::elementwise;
use super::gradient;
use super::half_panel;
use super::join::join_avx2;
use super::split::{self, EdgeRange, SCORE_KEYS, ScoreKernel, ScoreTile, VALUE_ROWS, ValueKernel, ValueTile};
use super::transposed;
use super::{EdgeCall, ExpCall, Family, LANES, LEAST_POWER, PackCall, ScoreCall, ValueCall};
use crate::target::Isa;

/// The family. Handed out only by [`super::family`], which asks the CPU.
pub(super) const FAMILY: Family = Family {
    isa: Isa::Avx2,
    pack,
    score,
    exp,
    value,
    edge_score,
    edge_exp,
    edge_value,
    join: join_avx2,
    narrow_panel: half_panel::narrow_avx2,
    widen_panel: half_panel::widen_avx2,
    softcap: elementwise::softcap_avx2,
    alibi: elementwise::alibi_avx2,
    transposed: transposed::transposed_avx2,
    scatter: transposed::scatter_avx2,
    gradient: gradient::gradient_avx2,
    edge_gradient: gradient::edge_gradient_avx2,
    rows: super::rows::AVX2,
};

/// Floats in a vector.
const W: usize = 8;

/// Steps of score and value between two branches: the loop's own instructions take FMA ports too, and a short trip
/// count keeps its exit predicted.
const UNROLL: usize = 4;

/// Mask of the first `count` lanes, 0 to 8.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn first(count: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// Mask of the lanes whose bit is set in `bits`, lane 0 for bit 0.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn expand(bits: u8) -> __m256 {
    let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits.into()), lane), lane))
}

/// See [`PackCall`].
///
/// Eight rows are read as two 128-bit pieces per register, so that the 4 × 4 transposes stay within pieces.
#[target_feature(enable = "avx2,fma")]
unsafe extern "C" fn pack(call: *const PackCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    let scale = _mm256_set1_ps(c.scale);
    for half in 0..c.count.div_ceil(LANES) * 2 {
        let lanes = c.count.saturating_sub(half * W).min(W);
        let keep = _mm256_castsi256_ps(first(lanes));
        let mut rows = [c.q; W];
        for i in 0..W {
            // Lanes beyond the last query read that query again and are zeroed below.
            let at = (half * W + i).min(c.count - 1);
            // SAFETY: `at < count`.
            rows[i] = unsafe {
                let row = if c.rows.is_null() { at } else { *c.rows.add(at) as usize };
                c.q.add(row * c.q_stride)
            };
        }
        // SAFETY: every read ends at or before column `d` of an existing row; `out` is `[groups][d][16]`.
        unsafe {
            let out = c.out.add(half / 2 * c.d * LANES + half % 2 * W);
            let mut x = 0;
            while x + 4 <= c.d {
                let mut w = [_mm256_setzero_ps(); 4];
                for i in 0..4 {
                    let a = _mm256_castps128_ps256(_mm_loadu_ps(rows[i].add(x)));
                    w[i] = _mm256_insertf128_ps::<1>(a, _mm_loadu_ps(rows[4 + i].add(x)));
                }
                let ab = _mm256_castps_pd(_mm256_unpacklo_ps(w[0], w[1]));
                let cd = _mm256_castps_pd(_mm256_unpacklo_ps(w[2], w[3]));
                let ef = _mm256_castps_pd(_mm256_unpackhi_ps(w[0], w[1]));
                let gh = _mm256_castps_pd(_mm256_unpackhi_ps(w[2], w[3]));
                let columns = [
                    _mm256_unpacklo_pd(ab, cd),
                    _mm256_unpackhi_pd(ab, cd),
                    _mm256_unpacklo_pd(ef, gh),
                    _mm256_unpackhi_pd(ef, gh),
                ];
                for i in 0..4 {
                    let column = _mm256_and_ps(_mm256_mul_ps(_mm256_castpd_ps(columns[i]), scale), keep);
                    _mm256_store_ps(out.add((x + i) * LANES), column);
                }
                x += 4;
            }
            for x in x..c.d {
                for i in 0..W {
                    *out.add(x * LANES + i) = if i < lanes { *rows[i].add(x) * c.scale } else { 0.0 };
                }
            }
        }
    }
}

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
                    _mm256_blendv_ps(max, with, expand(bits))
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

/// 2^x to 2 ulp; 0 below 2^[`LEAST_POWER`], infinity from 2^127.5, NaN for NaN.
///
/// x = n + f with n the nearest integer, found by adding a number so large that the sum has no fraction bits; its
/// low bits are then n + 127, the exponent of 2^n. On [-1/2, 1/2] a polynomial of degree 5 (minimax, relative error
/// 7.5e-8). The last step multiplies rather than adds exponents, so that NaN survives.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp2(x: __m256) -> __m256 {
    let magic = _mm256_set1_ps(12_582_912.0 + 127.0);
    // NaN is not less; the operands' order lets it through `min`.
    let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(LEAST_POWER));
    let x = _mm256_min_ps(_mm256_set1_ps(128.0), x);
    let t = _mm256_add_ps(x, magic);
    let f = _mm256_sub_ps(x, _mm256_sub_ps(t, magic));
    let p = _mm256_set1_ps(0.001_327_647_2);
    let p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.009_675_541));
    let p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.055_507_13));
    let p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.240_221_2));
    let p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.693_146_94));
    let p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.000_000_1));
    let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(t)));
    _mm256_and_ps(_mm256_mul_ps(p, power), normal)
}

/// See [`ExpCall`].
#[target_feature(enable = "avx2,fma")]
unsafe extern "C" fn exp(call: *const ExpCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    for half in 0..c.groups * 2 {
        let (group, lane) = (half / 2, half % 2 * W);
        // SAFETY: `group < groups`, and keys stay below `nkeys`.
        unsafe {
            let panel = c.s.add(group * c.s_stride + lane);
            let sum = c.sum.add(half * W);
            let max = _mm256_loadu_ps(c.max.add(half * W));
            let words = if c.words.is_null() { std::ptr::null() } else { c.words.cast::<u8>().add(half) };
            let add = if words.is_null() {
                exp_panel::<false>(panel, c.nkeys, words, max)
            } else {
                exp_panel::<true>(panel, c.nkeys, words, max)
            };
            _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), add));
        }
    }
}

/// Half a group of [`exp`]: two keys at a time, with a sum each; returns the sums.
///
/// # Safety
/// `panel` holds `nkeys` vectors, 16 floats apart; `words` the 8 bits of the first key where `MASKED`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn exp_panel<const MASKED: bool>(panel: *mut f32, nkeys: usize, words: *const u8, max: __m256) -> __m256 {
    let mut sums = [_mm256_setzero_ps(); 2];
    let mut key = 0;
    while key < nkeys {
        let count = (nkeys - key).min(2);
        for i in 0..2 {
            if i < count {
                // SAFETY: `key + i < nkeys`.
                unsafe {
                    let at = panel.add((key + i) * LANES);
                    let bits = if MASKED { *words.add(8 * (key + i)) } else { u8::MAX };
                    let mut p = _mm256_setzero_ps();
                    if bits != 0 {
                        p = exp2(_mm256_sub_ps(_mm256_load_ps(at), max));
                        if MASKED {
                            p = _mm256_and_ps(p, expand(bits));
                        }
                        sums[i] = _mm256_add_ps(sums[i], p);
                    }
                    _mm256_store_ps(at, p);
                }
            }
        }
        key += count;
    }
    _mm256_add_ps(sums[0], sums[1])
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
    let tail = first(if CUT { t.tail } else { W });
    let mut sums = [[_mm256_setzero_ps(); C]; R];
    // SAFETY: the tile's rows and columns lie in the record's arrays; `tail` cuts the last vector of rows that are
    // not padded.
    unsafe {
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

/// See [`EdgeCall`]: eight dots at a time, reduced together.
#[target_feature(enable = "avx2,fma")]
unsafe extern "C" fn edge_score(call: *const EdgeCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    for r in 0..c.rows {
        // SAFETY: `r < rows`; edges stay between the row's offsets.
        unsafe {
            let EdgeRange { base, begin: mut edge, end, .. } = EdgeRange::new(c, r);
            let row = if c.q_rows.is_null() { r } else { *c.q_rows.add(r) as usize };
            let q = c.q.add(row * c.q_stride);
            let mut max = _mm256_set1_ps(*c.max.add(r));
            while edge < end {
                let count = (end - edge).min(W);
                let mut keys = [c.kv; W];
                for i in 0..W {
                    // Lanes beyond the last edge read the first again.
                    let at = edge + if i < count { i } else { 0 };
                    keys[i] = c.kv.add(*c.edge_keys.add(at) as usize * c.kv_stride);
                }
                let dots = match (c.d, count) {
                    (_, ..=4) => dots::<0, 4>(q, &keys, c.d, c.scale),
                    (64, _) => dots::<64, 8>(q, &keys, 64, c.scale),
                    _ => dots::<0, 8>(q, &keys, c.d, c.scale),
                };
                let keep = first(count);
                // The second operand is returned where one is NaN.
                max = _mm256_blendv_ps(max, _mm256_max_ps(dots, max), _mm256_castsi256_ps(keep));
                let at = c.s.add(edge - base);
                if count == W {
                    _mm256_storeu_ps(at, dots);
                } else {
                    _mm256_maskstore_ps(at, keep, dots);
                }
                edge += count;
            }
            let mut lanes = [0.0; W];
            _mm256_storeu_ps(lanes.as_mut_ptr(), max);
            *c.max.add(r) = lanes.into_iter().fold(lanes[0], f32::max);
        }
    }
}

/// `scale · q · keys[i]` in lane `i < N`, 0 beyond. `D` is `d` where known when compiled, else 0.
///
/// # Safety
/// `q` and every key point at `d` floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots<const D: usize, const N: usize>(q: *const f32, keys: &[*const f32; W], d: usize, scale: f32) -> __m256 {
    let d = if D == 0 { d } else { D };
    let scale = _mm256_set1_ps(scale);
    let mut sums = [_mm256_setzero_ps(); W];
    // SAFETY: reads stay below column `d`.
    unsafe {
        let mut x = 0;
        while x + W <= d {
            let query = _mm256_mul_ps(_mm256_loadu_ps(q.add(x)), scale);
            for i in 0..N {
                sums[i] = _mm256_fmadd_ps(_mm256_loadu_ps(keys[i].add(x)), query, sums[i]);
            }
            x += W;
        }
        if x < d {
            let keep = first(d - x);
            let query = _mm256_mul_ps(_mm256_maskload_ps(q.add(x), keep), scale);
            for i in 0..N {
                sums[i] = _mm256_fmadd_ps(_mm256_maskload_ps(keys[i].add(x), keep), query, sums[i]);
            }
        }
    }
    // Transpose and add: 8 vectors to 4, 2, 1.
    let mut two = [_mm256_setzero_ps(); 2];
    for i in 0..2 {
        let mut pair = [_mm256_setzero_pd(); 2];
        for k in 0..2 {
            let (a, b) = (sums[4 * i + 2 * k], sums[4 * i + 2 * k + 1]);
            pair[k] = _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
        }
        two[i] = _mm256_add_ps(
            _mm256_castpd_ps(_mm256_unpacklo_pd(pair[0], pair[1])),
            _mm256_castpd_ps(_mm256_unpackhi_pd(pair[0], pair[1])),
        );
    }
    _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(two[0], two[1]), _mm256_permute2f128_ps::<0x31>(two[0], two[1]))
}

/// See [`EdgeCall`].
#[target_feature(enable = "avx2,fma")]
unsafe extern "C" fn edge_exp(call: *const EdgeCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    for r in 0..c.rows {
        // SAFETY: `r < rows`; edges stay between the row's offsets.
        unsafe {
            let EdgeRange { base, begin: mut edge, end, .. } = EdgeRange::new(c, r);
            let max = _mm256_set1_ps(*c.max.add(r));
            let mut sum = _mm256_setzero_ps();
            while edge < end {
                let count = (end - edge).min(W);
                let keep = first(count);
                let at = c.s.add(edge - base);
                let p = exp2(_mm256_sub_ps(_mm256_maskload_ps(at, keep), max));
                let p = _mm256_and_ps(p, _mm256_castsi256_ps(keep));
                _mm256_maskstore_ps(at, keep, p);
                sum = _mm256_add_ps(sum, p);
                edge += count;
            }
            let mut lanes = [0.0; W];
            _mm256_storeu_ps(lanes.as_mut_ptr(), sum);
            *c.sum.add(r) += lanes.into_iter().sum::<f32>();
        }
    }
}

/// See [`EdgeCall`].
#[target_feature(enable = "avx2,fma")]
unsafe extern "C" fn edge_value(call: *const EdgeCall) {
    // SAFETY: contract of `super`.
    let c = unsafe { &*call };
    for r in 0..c.rows {
        let mut column = 0;
        while column < c.dv {
            let left = c.dv - column;
            // SAFETY: `r < rows`, `column < dv`.
            column += unsafe {
                if left >= 8 * W {
                    edge_columns::<8, false>(c, r, column, W)
                } else if left >= 4 * W {
                    edge_columns::<4, false>(c, r, column, W)
                } else if left >= W {
                    edge_columns::<1, false>(c, r, column, W)
                } else {
                    edge_columns::<1, true>(c, r, column, left)
                }
            };
        }
    }
}

/// `C` vectors of one row of [`edge_value`]; returns their columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn edge_columns<const C: usize, const CUT: bool>(c: &EdgeCall, r: usize, column: usize, tail: usize) -> usize {
    let tail = first(tail);
    let mut sums = [[_mm256_setzero_ps(); C]; 1];
    // SAFETY: contract of `super`; `tail` cuts the last vector at `dv`.
    unsafe {
        let range = EdgeRange::new(c, r);
        let acc = c.acc.add(r * c.acc_stride + column);
        if c.accumulate != 0 {
            for i in 0..C {
                sums[0][i] = _mm256_loadu_ps(acc.add(i * W));
            }
        }
        let v = c.kv.add(column);
        for edge in range.begin..range.end {
            range.fetch(c, v, edge, C * W);
            let key = *c.edge_keys.add(edge) as usize;
            value_step::<1, C, CUT>(&mut sums, c.s.add(edge - range.base), v.add(key * c.kv_stride), tail);
        }
        for i in 0..C {
            _mm256_storeu_ps(acc.add(i * W), sums[0][i]);
        }
    }
    C * W
}

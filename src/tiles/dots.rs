//! Scores of bf16 tensors by dot products of pairs (AVX512-BF16): queries are packed as pairs along their width, keys
//! are read where they lie, and products are summed in f32.
//!
//! In and out: as the wrappers for pack and score in [`stored`](super::stored), which these two replace together. The
//! products of two bf16 numbers are exact; the factor on the queries is applied to the sums. The instruction takes
//! subnormal numbers for 0. Values have no such tile: probabilities rounded to bf16 would err more than the rounding
//! of inputs and output alone. Widths of 1 leave no place for the factor and are not served.
#![allow(unsafe_code)]
// As `avx512`.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::peak::CHAINS;
use super::split::{self, SCORE_KEYS, ScoreKernel, ScoreTile};
use super::stored::{Dots, StoredCall, record};
use super::{LANES, PackCall, ScoreCall};

/// What the family of AVX-512 has where the CPU has AVX512-BF16 too.
pub(super) const DOTS: Dots =
    Dots { available: || is_x86_feature_detected!("avx512bf16"), pack, score, chains, products: 32 };

/// Packs queries as `[group][pairs + 1][16]` words: word `p` of a query holds its columns 2p (low half) and 2p + 1 (0
/// beyond the last), and the vector behind them the factor. Lanes beyond the last query are 0.
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
unsafe extern "C" fn pack(call: *const StoredCall) {
    // SAFETY: contract of `super` for the record, with rows of bf16.
    let (_, c) = unsafe { record::<PackCall>(call) };
    let pairs = c.d.div_ceil(2);
    for group in 0..c.count.div_ceil(LANES) {
        let lanes = (c.count - group * LANES).min(LANES);
        let keep = ((1u32 << lanes) - 1) as __mmask16;
        let mut rows = [c.q.cast::<u16>(); LANES];
        for i in 0..LANES {
            // Lanes beyond the last query read that query again and are zeroed below.
            let at = group * LANES + i.min(lanes - 1);
            // SAFETY: `at < count`.
            rows[i] = unsafe {
                let row = if c.rows.is_null() { at } else { *c.rows.add(at) as usize };
                rows[i].add(row * c.q_stride)
            };
        }
        // SAFETY: reads end at or before column `d`; `out` holds 16 d floats a group, `pairs + 1 <= d` vectors.
        unsafe {
            let out = c.out.cast::<u32>().add(group * (pairs + 1) * LANES);
            let mut p = 0;
            while 2 * (p + 4) <= c.d {
                // Sixteen rows as four 128-bit pieces a register, transposed within pieces (as the f32 tile).
                let mut w = [_mm512_setzero_si512(); 4];
                for i in 0..4 {
                    let piece = |row: usize| _mm_loadu_si128(rows[row].add(2 * p).cast());
                    let a = _mm512_castsi128_si512(piece(i));
                    let a = _mm512_inserti32x4::<1>(a, piece(4 + i));
                    let a = _mm512_inserti32x4::<2>(a, piece(8 + i));
                    w[i] = _mm512_inserti32x4::<3>(a, piece(12 + i));
                }
                let (ab, cd) = (_mm512_unpacklo_epi32(w[0], w[1]), _mm512_unpacklo_epi32(w[2], w[3]));
                let (ef, gh) = (_mm512_unpackhi_epi32(w[0], w[1]), _mm512_unpackhi_epi32(w[2], w[3]));
                let columns = [
                    _mm512_unpacklo_epi64(ab, cd),
                    _mm512_unpackhi_epi64(ab, cd),
                    _mm512_unpacklo_epi64(ef, gh),
                    _mm512_unpackhi_epi64(ef, gh),
                ];
                for i in 0..4 {
                    let column = _mm512_maskz_mov_epi32(keep, columns[i]);
                    _mm512_store_si512(out.add((p + i) * LANES).cast(), column);
                }
                p += 4;
            }
            for p in p..pairs {
                for i in 0..LANES {
                    let low = u32::from(*rows[i].add(2 * p));
                    let high = if 2 * p + 1 < c.d { u32::from(*rows[i].add(2 * p + 1)) } else { 0 };
                    *out.add(p * LANES + i) = if i < lanes { low | high << 16 } else { 0 };
                }
            }
            _mm512_store_ps(out.add(pairs * LANES).cast(), _mm512_set1_ps(c.scale));
        }
    }
}

/// See [`ScoreCall`]; queries as [`pack`] leaves them, keys of bf16.
unsafe extern "C" fn score(call: *const StoredCall) {
    const EVEN: [ScoreKernel; SCORE_KEYS] = [
        score_row::<1, false>,
        score_row::<2, false>,
        score_row::<3, false>,
        score_row::<4, false>,
        score_row::<5, false>,
        score_row::<6, false>,
    ];
    const ODD: [ScoreKernel; SCORE_KEYS] = [
        score_row::<1, true>,
        score_row::<2, true>,
        score_row::<3, true>,
        score_row::<4, true>,
        score_row::<5, true>,
        score_row::<6, true>,
    ];
    // SAFETY: contract of `super`; the wrapper is chosen only where the CPU has its instructions. A group of queries is
    // `pairs + 1` vectors, which is all that `d` is read for on the way to the kernels.
    unsafe {
        let (_, c) = record::<ScoreCall>(call);
        let wide = ScoreCall { d: c.d.div_ceil(2) + 1, ..*c };
        split::score::<2>(&wide, if c.d.is_multiple_of(2) { &EVEN } else { &ODD });
    }
}

/// `K` keys times all the tile's groups; `ODD` where the last pair is a single column.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bf16")]
unsafe fn score_row<const K: usize, const ODD: bool>(t: &ScoreTile) {
    // SAFETY: the caller's; the shapes hold the tile's groups.
    unsafe {
        match t.groups {
            1 => score_tile::<K, 1, ODD>(t),
            2 => score_tile::<K, 2, ODD>(t),
            3 => score_tile::<K, 3, ODD>(t),
            _ => score_tile::<K, 4, ODD>(t),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bf16")]
unsafe fn score_tile<const K: usize, const G: usize, const ODD: bool>(t: &ScoreTile) {
    let mut sums = [[_mm512_setzero_ps(); G]; K];
    let pairs = t.d - 1;
    // SAFETY: `qt` points at `G` groups of `pairs + 1` vectors, `keys` at rows of `2 pairs` columns, one less where
    // `ODD`.
    unsafe {
        for p in 0..pairs {
            let mut q = [_mm512_setzero_ps(); G];
            for g in 0..G {
                q[g] = _mm512_load_ps(t.qt.add(g * t.qt_stride + p * LANES));
            }
            for k in 0..K {
                let key = t.keys[k].cast::<u16>().add(2 * p);
                let pair = if ODD && p == pairs - 1 { u32::from(*key) } else { key.cast::<u32>().read_unaligned() };
                let pair = bf16_pairs(_mm512_set1_epi32(pair.cast_signed()));
                for g in 0..G {
                    sums[k][g] = _mm512_dpbf16_ps(sums[k][g], bf16_pairs(_mm512_castps_si512(q[g])), pair);
                }
            }
        }
        for g in 0..G {
            let scale = _mm512_load_ps(t.qt.add(g * t.qt_stride + pairs * LANES));
            for k in 0..K {
                sums[k][g] = _mm512_mul_ps(sums[k][g], scale);
                _mm512_store_ps(t.s.add(g * t.s_stride + k * LANES), sums[k][g]);
            }
        }
        if t.max.is_null() {
            return;
        }
        for g in 0..G {
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

/// The same bits as pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn bf16_pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without an invalid pattern.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// As [`chains`](super::peak::chains), of dot products.
#[target_feature(enable = "avx512f,avx512bf16")]
fn chains(steps: usize) -> f32 {
    let ones = _mm512_set1_ps(std::hint::black_box(1.0));
    let pairs = _mm512_cvtne2ps_pbh(ones, ones);
    let mut sums = [ones; CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
        }
    }
    let mut total = sums[0];
    for sum in &sums[1..] {
        total = _mm512_add_ps(total, *sum);
    }
    _mm512_cvtss_f32(total)
}

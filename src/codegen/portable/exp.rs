//! Probability tile: `2^(s − max)` in place, row sums on the way.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::field;
use crate::codegen::emit::Emit;
use crate::tiles::{ExpCall, LEAST_POWER};

/// Keys whose vectors are computed side by side.
const KEYS: i64 = 2;

/// Emits the body: eight queries at a time down all keys, their maxima and sums in registers.
pub(super) fn emit(e: &mut Emit, record: Value) -> Vec<Value> {
    let groups = field!(e, record, ExpCall, groups);
    let halves = e.b.ins().ishl_imm_u(groups, 1);
    let zero = e.int(0);
    e.for_range(zero, halves, 1, &[], |e, half, _| {
        let group = e.b.ins().ushr_imm_u(half, 1);
        let odd = e.b.ins().band_imm_u(half, 1);
        let s = field!(e, record, ExpCall, s);
        let stride = field!(e, record, ExpCall, s_stride);
        let panel = e.row(s, group, stride);
        let panel = e.offset(panel, odd, 32);
        let max = field!(e, record, ExpCall, max);
        let max = e.offset(max, half, 32);
        let max = [e.load(types::F32X4, max, 0), e.load(types::F32X4, max, 16)];
        let sum = field!(e, record, ExpCall, sum);
        let sum = e.offset(sum, half, 32);
        let sums = [e.load(types::F32X4, sum, 0), e.load(types::F32X4, sum, 16)];
        let words = field!(e, record, ExpCall, words);
        let nkeys = field!(e, record, ExpCall, nkeys);
        let run = |e: &mut Emit, words: Option<Value>| {
            let mask = words.map(|words| Mask { words, half, probes: e.lane_probes(half) });
            let (next, sums) = e.while_less(zero, nkeys, KEYS, KEYS - 1, &sums, |e, key, sums| {
                keys(e, panel, key, KEYS, mask.as_ref(), max, sums)
            });
            let (_, sums) =
                e.while_less(next, nkeys, 1, 0, &sums, |e, key, sums| keys(e, panel, key, 1, mask.as_ref(), max, sums));
            sums
        };
        let sums = e.if_else(words, |e| run(e, Some(words)), |e| run(e, None));
        e.store(sums[0], sum, 0);
        e.store(sums[1], sum, 16);
        Vec::new()
    });
    Vec::new()
}

/// `2^x` of several vectors, 0 below 2^[`LEAST_POWER`], NaN for NaN.
pub(super) fn probabilities(e: &mut Emit, xs: &[Value]) -> Vec<Value> {
    let least = e.constant(LEAST_POWER);
    let powers = e.exp2(xs);
    let kept = powers.iter().zip(xs).map(|(&power, &x)| {
        let keep = e.b.ins().fcmp(FloatCC::UnorderedOrGreaterThanOrEqual, x, least);
        e.keep(keep, power)
    });
    kept.collect()
}

/// Mask words, and which eight of their bits are meant.
struct Mask {
    words: Value,
    half: Value,
    probes: [Value; 2],
}

/// The probabilities of `count` keys from `key` on for eight queries; returns the raised sums.
fn keys(
    e: &mut Emit,
    panel: Value,
    key: Value,
    count: i64,
    mask: Option<&Mask>,
    max: [Value; 2],
    sums: &[Value],
) -> Vec<Value> {
    let at = e.offset(panel, key, 64);
    let mut shifted = Vec::new();
    for k in 0..count as i32 {
        for (side, &max) in max.iter().enumerate() {
            let score = e.load(types::F32X4, at, 64 * k + 16 * side as i32);
            shifted.push(e.b.ins().fsub(score, max));
        }
    }
    let mut powers = probabilities(e, &shifted);
    if let Some(&Mask { words, half, probes }) = mask {
        let word = e.offset(words, key, 8);
        for (k, pair) in powers.chunks_mut(2).enumerate() {
            let allowed = e.lane_masks(word, 8 * k as i32, half, probes);
            for (power, allowed) in pair.iter_mut().zip(allowed) {
                *power = e.keep(allowed, *power);
            }
        }
    }
    let mut sums = sums.to_vec();
    for (index, &power) in powers.iter().enumerate() {
        e.store(power, at, 16 * (index % 2) as i32 + 64 * (index / 2) as i32);
        sums[index % 2] = e.b.ins().fadd(sums[index % 2], power);
    }
    sums
}

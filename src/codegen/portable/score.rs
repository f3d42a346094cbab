//! Score tile (SDDMM): register blocks of 5 keys by 8 queries.

use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::field;
use crate::codegen::emit::Emit;
use crate::tiles::ScoreCall;

/// Keys in a register block. With two vectors of queries, ten accumulators, two query vectors, a broadcast key
/// and a copy fill 14 of 16 vector registers.
const KEYS: usize = 5;
/// Steps along the width per round of the inner loop.
const UNROLL: usize = 4;

/// Emits the body. Key blocks run outermost, so that a long run of keys passes through the cache once, while the
/// packed queries stay in it.
///
/// The last block repeats the last key in its free places: the same scores are stored to the same place again,
/// so no code for shorter blocks exists.
///
/// What a key block needs after its inner loop (places, words) waits in the frame rather than in values: kept in
/// values it takes the registers of the key addresses, and the inner loop reloads those at every step.
pub(super) fn emit(e: &mut Emit, record: Value, d: usize) -> Vec<Value> {
    let nkeys = field!(e, record, ScoreCall, nkeys);
    let block = Block {
        record,
        keys: e.stack(8 * KEYS as u32),
        places: e.stack(8 * KEYS as u32),
        words: e.stack(8 * KEYS as u32),
    };
    let zero = e.int(0);
    e.for_range(zero, nkeys, KEYS as i64, &[], |e, first, _| {
        let last = e.b.ins().iadd_imm_s(nkeys, -1);
        let places: Vec<Value> = (0..KEYS as i64)
            .map(|r| {
                let place = e.b.ins().iadd_imm_s(first, r);
                e.b.ins().umin(place, last)
            })
            .collect();
        let keys = key_addresses(e, record, &places);
        let words = words(e, record, &places);
        let union = words[1..].iter().fold(words[0], |union, &word| e.b.ins().bor(union, word));
        for r in 0..KEYS {
            e.store(keys[r], block.keys, 8 * r as i32);
            let place = e.b.ins().ishl_imm_u(places[r], 6);
            e.store(place, block.places, 8 * r as i32);
            e.store(words[r], block.words, 8 * r as i32);
        }
        let groups = field!(e, record, ScoreCall, groups);
        let halves = e.b.ins().ishl_imm_u(groups, 1);
        e.for_range(zero, halves, 1, &[], |e, half, _| {
            let shift = e.b.ins().ishl_imm_u(half, 3);
            let wanted = e.b.ins().ushr(union, shift);
            let wanted = e.b.ins().band_imm_u(wanted, 0xff);
            e.if_true(wanted, |e| emit_half(e, &block, half, d));
            Vec::new()
        });
        Vec::new()
    });
    Vec::new()
}

/// A block of keys, its parts in the frame, [`KEYS`] of each.
struct Block {
    record: Value,
    /// Addresses of the keys.
    keys: Value,
    /// Byte offsets of their scores within a group's panel.
    places: Value,
    /// Their words.
    words: Value,
}

/// Scores of one key block with the eight queries of `half`.
fn emit_half(e: &mut Emit, block: &Block, half: Value, d: usize) {
    let group = e.b.ins().ushr_imm_u(half, 1);
    let odd = e.b.ins().band_imm_u(half, 1);
    let qt = field!(e, block.record, ScoreCall, qt);
    let packed = e.offset(qt, group, 64 * d as i64);
    let packed = e.offset(packed, odd, 32);
    let keys: Vec<Value> = (0..KEYS as i32).map(|r| e.load(e.ptr, block.keys, 8 * r)).collect();
    let sums = products(e, &keys, packed, d);
    let s = field!(e, block.record, ScoreCall, s);
    let stride = field!(e, block.record, ScoreCall, s_stride);
    let group = e.b.ins().ushr_imm_u(half, 1);
    let panel = e.row(s, group, stride);
    let odd = e.b.ins().band_imm_u(half, 1);
    let panel = e.offset(panel, odd, 32);
    for r in 0..KEYS {
        let place = e.load(e.ptr, block.places, 8 * r as i32);
        let at = e.b.ins().iadd(panel, place);
        e.store(sums[2 * r], at, 0);
        e.store(sums[2 * r + 1], at, 16);
    }
    update_max(e, block, half, &sums);
}

/// Where the keys at `places` begin.
fn key_addresses(e: &mut Emit, record: Value, places: &[Value]) -> Vec<Value> {
    let k = field!(e, record, ScoreCall, k);
    let stride = field!(e, record, ScoreCall, k_stride);
    let keys = field!(e, record, ScoreCall, keys);
    let rows = e.if_else(
        keys,
        |e| {
            places
                .iter()
                .map(|&place| {
                    let at = e.offset(keys, place, 4);
                    e.load_u32(at, 0)
                })
                .collect()
        },
        |_| places.to_vec(),
    );
    rows.iter().map(|&row| e.row(k, row, stride)).collect()
}

/// The words of the keys at `places`; all ones where the record has none.
fn words(e: &mut Emit, record: Value, places: &[Value]) -> Vec<Value> {
    let words = field!(e, record, ScoreCall, words);
    e.if_else(
        words,
        |e| {
            places
                .iter()
                .map(|&place| {
                    let at = e.offset(words, place, 8);
                    e.load(types::I64, at, 0)
                })
                .collect()
        },
        |e| vec![e.b.ins().iconst(types::I64, -1); places.len()],
    )
}

/// The dot products of every key with eight packed queries: two vectors per key, key by key.
fn products(e: &mut Emit, keys: &[Value], packed: Value, d: usize) -> Vec<Value> {
    let none = e.constant(0.0);
    let mut sums = vec![none; 2 * keys.len()];
    let whole = d / UNROLL * UNROLL;
    if whole > 0 {
        let (start, end) = (e.int(0), e.int(4 * whole as i64));
        sums = e.for_range(start, end, 4 * UNROLL as i64, &sums, |e, byte, sums| {
            let keys: Vec<Value> = keys.iter().map(|&key| e.b.ins().iadd(key, byte)).collect();
            let packed = e.offset(packed, byte, 16);
            let mut sums = sums.to_vec();
            for step in 0..UNROLL as i32 {
                accumulate(e, &keys, 4 * step, packed, 64 * step, &mut sums);
            }
            sums
        });
    }
    for x in whole as i32..d as i32 {
        accumulate(e, keys, 4 * x, packed, 64 * x, &mut sums);
    }
    sums
}

/// One step along the width.
fn accumulate(e: &mut Emit, keys: &[Value], key_offset: i32, packed: Value, offset: i32, sums: &mut [Value]) {
    let low = e.load(types::F32X4, packed, offset);
    let high = e.load(types::F32X4, packed, offset + 16);
    for (r, &key) in keys.iter().enumerate() {
        // The copy of `low` that the first product needs is free; the second takes the broadcast's register.
        let key = e.load_splat(key, key_offset);
        sums[2 * r] = e.mul_add(low, key, sums[2 * r]);
        sums[2 * r + 1] = e.mul_add(key, high, sums[2 * r + 1]);
    }
}

/// Raises the running maximum of eight queries, where the record has one, by the allowed scores.
fn update_max(e: &mut Emit, block: &Block, half: Value, sums: &[Value]) {
    let max = field!(e, block.record, ScoreCall, max);
    e.if_true(max, |e| {
        let at = e.offset(max, half, 32);
        let before = [e.load(types::F32X4, at, 0), e.load(types::F32X4, at, 16)];
        let masked = field!(e, block.record, ScoreCall, words);
        let after = e.if_else(
            masked,
            |e| {
                let probes = e.lane_probes(half);
                let mut best = before.to_vec();
                for (r, pair) in sums.chunks(2).enumerate() {
                    let allowed = e.lane_masks(block.words, 8 * r as i32, half, probes);
                    for ((&score, &allowed), best) in pair.iter().zip(&allowed).zip(&mut best) {
                        let score = e.select(allowed, score, *best);
                        *best = e.max(score, *best);
                    }
                }
                best
            },
            |e| {
                let mut best = before.to_vec();
                for pair in sums.chunks(2) {
                    for (&score, best) in pair.iter().zip(&mut best) {
                        *best = e.max(score, *best);
                    }
                }
                best
            },
        );
        e.store(after[0], at, 0);
        e.store(after[1], at, 16);
    });
}

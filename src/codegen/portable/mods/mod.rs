//! Score mods as vector code: a pass over a panel of scores, and one over the scores of scattered edges.
//!
//! In: a [`ModsPlan`]. Out: functions that take one pointer to a [`ModCall`] or an [`EdgeModCall`]. A panel has
//! queries in its lanes, four vectors of them for each key; edges have keys in theirs, four edges of a query at a
//! time. Addresses come from indices that the plan's verifier has proved, for lanes beyond the last query too, since
//! these repeat its position.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, types};

use super::field;
use crate::codegen::emit::Emit;
use crate::plan::ModsPlan;
use crate::tiles::{EdgeModCall, LANES, ModCall};

pub(super) mod gradient;
mod lower;
mod math;
#[cfg(test)]
mod tests;

use lower::{Lanes, Lower, Position, are_consecutive};

/// Vectors of a group's 16 queries.
const VECTORS: usize = LANES / 4;
/// Byte offsets of a group's vectors.
const OFFSETS: [i32; VECTORS] = [0, 16, 32, 48];

/// Emits the pass over a panel.
pub(super) fn emit(e: &mut Emit, record: Value, plan: &ModsPlan) -> Vec<Value> {
    let inputs = field!(e, record, ModCall, inputs);
    let head = field!(e, record, ModCall, head);
    let mut lower = Lower::new(e, &plan.mods, inputs, head);
    let groups = field!(e, record, ModCall, groups);
    let zero = e.int(0);
    e.for_range(zero, groups, 1, &[], |e, group, _| {
        let positions = field!(e, record, ModCall, positions);
        let positions = e.offset(positions, group, (LANES * 4) as i64);
        let consecutive = plan.mods.uses_query().then(|| {
            let integers = OFFSETS.map(|offset| e.load(types::I32X4, positions, offset)).to_vec();
            let consecutive = are_consecutive(e, &integers);
            let query = Position::new(e, Lanes::Each(integers));
            (query, consecutive)
        });
        match consecutive {
            Some((query, consecutive)) => lower.hoist(e, query, Some(consecutive)),
            // No query is read; the first key stands in for its position.
            None => {
                let none = e.lanes([0; 4], types::I32X4);
                let query = Position::new(e, Lanes::Same(none));
                lower.hoist(e, query, None);
            }
        }
        let s = field!(e, record, ModCall, s);
        let stride = field!(e, record, ModCall, s_stride);
        let panel = e.row(s, group, stride);
        let pass = Pass { record, lower: &lower, factor: plan.factor, panel, group };
        if !plan.fused {
            pass.walk(e, &[], |e, pass, key, _| {
                pass.scores(e, key);
                Vec::new()
            });
            return Vec::new();
        }
        let max = field!(e, record, ModCall, max);
        let max = e.offset(max, group, (LANES * 4) as i64);
        let before = OFFSETS.map(|offset| e.load(types::F32X4, max, offset));
        let words = field!(e, record, ModCall, words);
        let after = e.if_else(
            words,
            |e| pass.walk(e, &before, |e, pass, key, best| pass.masked(e, words, key, best)),
            |e| {
                pass.walk(e, &before, |e, pass, key, best| {
                    let scores = pass.scores(e, key);
                    scores.iter().zip(best).map(|(&score, &best)| e.max(score, best)).collect()
                })
            },
        );
        for (offset, best) in OFFSETS.into_iter().zip(after) {
            e.store(best, max, offset);
        }
        Vec::new()
    });
    Vec::new()
}

/// The pass over one group of a panel.
struct Pass<'a, 'm> {
    record: Value,
    lower: &'a Lower<'m>,
    factor: f32,
    panel: Value,
    group: Value,
}

impl Pass<'_, '_> {
    /// Runs `body` for every key of the segment, with its carried values.
    fn walk(
        &self,
        e: &mut Emit,
        carried: &[Value],
        body: impl FnOnce(&mut Emit, &Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let zero = e.int(0);
        let nkeys = field!(e, self.record, ModCall, nkeys);
        e.for_range(zero, nkeys, 1, carried, |e, key, carried| body(e, self, key, carried))
    }

    /// Modifies the group's scores of one key, in place.
    fn scores(&self, e: &mut Emit, key: Value) -> Vec<Value> {
        let keys = field!(e, self.record, ModCall, keys);
        let first = field!(e, self.record, ModCall, first_key);
        let step = field!(e, self.record, ModCall, key_step);
        let position = key_position(e, keys, (first, step), key);
        let at = e.offset(self.panel, key, (LANES * 4) as i64);
        let scores = OFFSETS.map(|offset| e.load(types::F32X4, at, offset)).to_vec();
        let scores = self.lower.apply(e, &position, scores);
        let scores = finish(e, scores, self.factor);
        for (offset, &score) in OFFSETS.into_iter().zip(&scores) {
            e.store(score, at, offset);
        }
        scores
    }

    /// The same for a key with a mask word; nothing where no query of the group may see it.
    fn masked(&self, e: &mut Emit, words: Value, key: Value, best: &[Value]) -> Vec<Value> {
        let word = e.offset(words, key, 8);
        let word = e.offset(word, self.group, 2);
        let bits = e.b.ins().uload16(types::I32, MemFlagsData::new().with_notrap(), word, 0);
        e.if_else(
            bits,
            |e| {
                let scores = self.scores(e, key);
                let wide = e.b.ins().splat(types::I32X4, bits);
                let masks = [0, 4, 8, 12].map(|first| {
                    let probes = e.lanes([1 << first, 2 << first, 4 << first, 8 << first], types::I32X4);
                    let hit = e.b.ins().band(wide, probes);
                    e.b.ins().icmp(IntCC::Equal, hit, probes)
                });
                let pick = |(i, &score): (usize, &Value)| {
                    let allowed = e.select(masks[i], score, best[i]);
                    e.max(allowed, best[i])
                };
                scores.iter().enumerate().map(pick).collect()
            },
            |_| best.to_vec(),
        )
    }
}

/// The position of key `key` of a segment: out of `keys`, or counted from `first` in steps where that is null.
fn key_position(e: &mut Emit, keys: Value, (first, step): (Value, Value), key: Value) -> Position {
    let number = e.if_else(
        keys,
        |e| {
            let at = e.offset(keys, key, 4);
            vec![e.load_u32(at, 0)]
        },
        |e| {
            let behind = e.b.ins().imul(key, step);
            vec![e.b.ins().iadd(first, behind)]
        },
    );
    let number = e.low_half(number[0]);
    let integers = e.b.ins().splat(types::I32X4, number);
    Position::new(e, Lanes::Same(integers))
}

fn finish(e: &mut Emit, scores: Vec<Value>, factor: f32) -> Vec<Value> {
    if factor == 1.0 {
        return scores;
    }
    let factor = e.constant(factor);
    scores.into_iter().map(|score| e.b.ins().fmul(score, factor)).collect()
}

/// Emits the pass over scattered edges. The last round of a query repeats its last edge in its free places: read
/// before anything is written, it is written three times with the same result.
pub(super) fn emit_edges(e: &mut Emit, record: Value, plan: &ModsPlan) -> Vec<Value> {
    let inputs = field!(e, record, EdgeModCall, inputs);
    let head = field!(e, record, EdgeModCall, head);
    let mut lower = Lower::new(e, &plan.mods, inputs, head);
    let rows = field!(e, record, EdgeModCall, rows);
    let offsets = field!(e, record, EdgeModCall, offsets);
    let keys = field!(e, record, EdgeModCall, edge_keys);
    let base = e.load_u32(offsets, 0);
    let keys = e.offset(keys, base, 4);
    let zero = e.int(0);
    e.for_range(zero, rows, 1, &[], |e, row, _| {
        let at = e.offset(offsets, row, 4);
        let [first, end] = [0, 4].map(|offset| {
            let edge = e.load_u32(at, offset);
            e.b.ins().isub(edge, base)
        });
        let positions = field!(e, record, EdgeModCall, positions);
        let position = e.offset(positions, row, 4);
        let position = e.load(types::I32, position, 0);
        let integers = Lanes::Same(e.b.ins().splat(types::I32X4, position));
        let query = Position::new(e, integers);
        lower.hoist(e, query, None);
        let max = field!(e, record, EdgeModCall, max);
        let max = e.offset(max, row, 4);
        let before = e.load_splat(max, 0);
        let s = field!(e, record, EdgeModCall, s);
        let best = e.for_range(first, end, 4, &[before], |e, edge, best| {
            let last = e.b.ins().iadd_imm_s(end, -1);
            let edges = [0, 1, 2, 3].map(|r| {
                let edge = e.b.ins().iadd_imm_s(edge, r);
                e.b.ins().smin(edge, last)
            });
            let places = edges.map(|edge| e.offset(s, edge, 4));
            let scores = lanes_at(e, &places, types::F32);
            let of_keys = edges.map(|edge| e.offset(keys, edge, 4));
            let numbers = lanes_at(e, &of_keys, types::I32);
            let key = Position::new(e, Lanes::Each(vec![numbers]));
            let scores = lower.apply(e, &key, vec![scores]);
            let scores = finish(e, scores, plan.factor)[0];
            for (lane, &place) in (0u8..).zip(&places) {
                let score = e.b.ins().extractlane(scores, lane);
                e.store(score, place, 0);
            }
            vec![e.max(scores, best[0])]
        });
        // A lane at a time: `max` keeps its second operand where a score is NaN.
        let lanes: Vec<Value> = (0..4u8).map(|lane| e.b.ins().extractlane(best[0], lane)).collect();
        let best = lanes[1..].iter().fold(lanes[0], |best, &lane| {
            let greater = e.b.ins().fcmp(FloatCC::GreaterThan, lane, best);
            e.b.ins().select(greater, lane, best)
        });
        e.store(best, max, 0);
        Vec::new()
    });
    Vec::new()
}

/// Four 32-bit numbers from four addresses.
fn lanes_at(e: &mut Emit, places: &[Value; 4], ty: Type) -> Value {
    let first = e.load(ty, places[0], 0);
    let mut vector = e.b.ins().splat(ty.by(4).unwrap_or(types::F32X4), first);
    for (lane, &place) in (1u8..).zip(&places[1..]) {
        let value = e.load(ty, place, 0);
        vector = e.b.ins().insertlane(vector, value, lane);
    }
    vector
}

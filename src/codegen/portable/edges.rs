//! Scattered edges: dot products, probabilities and sums row by row.

use core::mem::offset_of;

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};

use super::exp::probabilities;
use super::{condition_mask, field};
use crate::codegen::emit::Emit;
use crate::tiles::EdgeCall;

/// Edges whose dot products are computed side by side.
const EDGES: i64 = 4;
/// Columns of values kept in registers over a row's edges.
const COLUMNS: usize = 32;

/// A row's edges: `[first, end)` of the scores, and the keys with the same numbering.
struct Row {
    first: Value,
    end: Value,
    /// Edge list, such that edge `first` of the scores is at `first`.
    keys: Value,
}

/// Runs `body` for every row of the block.
fn for_rows(e: &mut Emit, record: Value, body: impl FnOnce(&mut Emit, Value, &Row)) {
    let rows = field!(e, record, EdgeCall, rows);
    let offsets = field!(e, record, EdgeCall, offsets);
    let keys = field!(e, record, EdgeCall, edge_keys);
    let base = e.load_u32(offsets, 0);
    let keys = e.offset(keys, base, 4);
    let zero = e.int(0);
    e.for_range(zero, rows, 1, &[], |e, row, _| {
        let at = e.offset(offsets, row, 4);
        let first = e.load_u32(at, 0);
        let end = e.load_u32(at, 4);
        let first = e.b.ins().isub(first, base);
        let end = e.b.ins().isub(end, base);
        body(e, row, &Row { first, end, keys });
        Vec::new()
    });
}

/// Where the key or value row of edge `edge` begins.
fn edge_row(e: &mut Emit, record: Value, row: &Row, edge: Value) -> Value {
    let at = e.offset(row.keys, edge, 4);
    let number = e.load_u32(at, 0);
    let base = field!(e, record, EdgeCall, kv);
    let stride = field!(e, record, EdgeCall, kv_stride);
    e.row(base, number, stride)
}

/// Emits `s[e] = (scale · q[r]) · k[key(e)]` and the running maximum. Four edges share the loads of the query; the
/// last round repeats the last edge in its free places.
pub(super) fn emit_score(e: &mut Emit, record: Value, d: usize) -> Vec<Value> {
    let scale = e.load(types::F32, record, offset_of!(EdgeCall, scale) as i32);
    let s = field!(e, record, EdgeCall, s);
    let max = field!(e, record, EdgeCall, max);
    for_rows(e, record, |e, place, row| {
        let numbers = field!(e, record, EdgeCall, q_rows);
        let number = e.row_number(numbers, place);
        let q = field!(e, record, EdgeCall, q);
        let stride = field!(e, record, EdgeCall, q_stride);
        let q = e.row(q, number, stride);
        let max = e.offset(max, place, 4);
        let before = e.load_splat(max, 0);
        let best = e.for_range(row.first, row.end, EDGES, &[before], |e, edge, best| {
            let last = e.b.ins().iadd_imm_s(row.end, -1);
            let edges: Vec<Value> = (0..EDGES)
                .map(|r| {
                    let edge = e.b.ins().iadd_imm_s(edge, r);
                    e.b.ins().smin(edge, last)
                })
                .collect();
            let keys: Vec<Value> = edges.iter().map(|&edge| edge_row(e, record, row, edge)).collect();
            let scores = dots(e, (q, scale), &keys, d);
            for (lane, &edge) in (0u8..).zip(&edges) {
                let score = e.b.ins().extractlane(scores, lane);
                let at = e.offset(s, edge, 4);
                e.store(score, at, 0);
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
    });
    Vec::new()
}

/// The dot products of `scale · q` with four keys, one per lane. The factor goes onto the query as it does in packing: a
/// product of query and key may leave the range of f32 where the score does not.
fn dots(e: &mut Emit, (q, scale): (Value, Value), keys: &[Value], d: usize) -> Value {
    let scale = e.splat(scale);
    let none = e.constant(0.0);
    let whole = d / 4 * 4;
    let mut sums = vec![none; keys.len()];
    if whole > 0 {
        let (start, end) = (e.int(0), e.int(4 * whole as i64));
        sums = e.for_range(start, end, 16, &sums, |e, byte, sums| {
            let at = e.b.ins().iadd(q, byte);
            let q = e.load(types::F32X4, at, 0);
            let q = e.b.ins().fmul(q, scale);
            keys.iter()
                .zip(sums)
                .map(|(&key, &sum)| {
                    let at = e.b.ins().iadd(key, byte);
                    let key = e.load(types::F32X4, at, 0);
                    e.mul_add(key, q, sum)
                })
                .collect()
        });
    }
    let lanes = e.transpose([sums[0], sums[1], sums[2], sums[3]]);
    let low = e.b.ins().fadd(lanes[0], lanes[1]);
    let high = e.b.ins().fadd(lanes[2], lanes[3]);
    let mut total = e.b.ins().fadd(low, high);
    for x in whole..d {
        let mut column = e.load_splat(keys[0], 4 * x as i32);
        for (lane, &key) in (1u8..).zip(&keys[1..]) {
            let value = e.load(types::F32, key, 4 * x as i32);
            column = e.b.ins().insertlane(column, value, lane);
        }
        let q = e.load_splat(q, 4 * x as i32);
        let q = e.b.ins().fmul(q, scale);
        total = e.mul_add(column, q, total);
    }
    total
}

/// Emits `s[e] = 2^(s[e] − max[r])` and the sums.
pub(super) fn emit_exp(e: &mut Emit, record: Value) -> Vec<Value> {
    let s = field!(e, record, EdgeCall, s);
    let max = field!(e, record, EdgeCall, max);
    let sum = field!(e, record, EdgeCall, sum);
    for_rows(e, record, |e, place, row| {
        let max = e.offset(max, place, 4);
        let max = e.load_splat(max, 0);
        let none = e.constant(0.0);
        let (next, sums) = e.while_less(row.first, row.end, 4, 3, &[none], |e, edge, sums| {
            let at = e.offset(s, edge, 4);
            let score = e.load(types::F32X4, at, 0);
            let power = power(e, score, max);
            e.store(power, at, 0);
            vec![e.b.ins().fadd(sums[0], power)]
        });
        let at = e.offset(sum, place, 4);
        let before = e.load(types::F32, at, 0);
        let sums = e.sum_lanes(sums[0]);
        let total = e.b.ins().fadd(before, sums);
        let (_, total) = e.while_less(next, row.end, 1, 0, &[total], |e, edge, total| {
            let at = e.offset(s, edge, 4);
            let score = e.load_splat(at, 0);
            let power = power(e, score, max);
            let power = e.b.ins().extractlane(power, 0u8);
            e.store(power, at, 0);
            vec![e.b.ins().fadd(total[0], power)]
        });
        e.store(total[0], at, 0);
    });
    Vec::new()
}

fn power(e: &mut Emit, score: Value, max: Value) -> Value {
    let shifted = e.b.ins().fsub(score, max);
    probabilities(e, &[shifted])[0]
}

/// Emits `acc[r][:] (+)= Σ_e s[e] · v[key(e)][:]`: whole runs of 32 columns, then the rest.
pub(super) fn emit_value(e: &mut Emit, record: Value, dv: usize) -> Vec<Value> {
    let s = field!(e, record, EdgeCall, s);
    let accumulate = field!(e, record, EdgeCall, accumulate);
    let keep = condition_mask(e, accumulate);
    for_rows(e, record, |e, place, row| {
        let acc = field!(e, record, EdgeCall, acc);
        let stride = field!(e, record, EdgeCall, acc_stride);
        let acc = e.row(acc, place, stride);
        let whole = dv / COLUMNS * COLUMNS;
        if whole > 0 {
            let (start, end) = (e.int(0), e.int(4 * whole as i64));
            e.for_range(start, end, 4 * COLUMNS as i64, &[], |e, byte, _| {
                columns(e, record, row, (s, acc, keep), byte, COLUMNS);
                Vec::new()
            });
        }
        if whole < dv {
            let byte = e.int(4 * whole as i64);
            columns(e, record, row, (s, acc, keep), byte, dv - whole);
        }
    });
    Vec::new()
}

/// Sums `width` columns from `byte` on over a row's edges: vectors, then up to three single columns.
fn columns(e: &mut Emit, record: Value, row: &Row, (s, acc, keep): (Value, Value, Value), byte: Value, width: usize) {
    let pieces: Vec<(Type, i32)> = (0..width / 4)
        .map(|index| (types::F32X4, 16 * index as i32))
        .chain((width / 4 * 4..width).map(|column| (types::F32, 4 * column as i32)))
        .collect();
    let acc = e.b.ins().iadd(acc, byte);
    let keep_scalar = e.b.ins().extractlane(keep, 0u8);
    let before: Vec<Value> = pieces
        .iter()
        .map(|&(ty, offset)| {
            let value = e.load(ty, acc, offset);
            e.b.ins().band(value, if ty == types::F32 { keep_scalar } else { keep })
        })
        .collect();
    let sums = e.for_range(row.first, row.end, 1, &before, |e, edge, sums| {
        let at = e.offset(s, edge, 4);
        let p = e.load(types::F32, at, 0);
        let wide = e.splat(p);
        let v = edge_row(e, record, row, edge);
        let v = e.b.ins().iadd(v, byte);
        pieces
            .iter()
            .zip(sums)
            .map(|(&(ty, offset), &sum)| {
                let value = e.load(ty, v, offset);
                e.mul_add(value, if ty == types::F32 { p } else { wide }, sum)
            })
            .collect()
    });
    for (&(_, offset), &sum) in pieces.iter().zip(&sums) {
        e.store(sum, acc, offset);
    }
}

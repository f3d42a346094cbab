//! Value tile (SpMM): register blocks of 6, 5 and 5 queries by 8 columns.
//!
//! Four functions: `value` walks the keys in chunks and the register row blocks ([`ROW_CUTS`]); `value_rows6` and
//! `value_rows5` do a row block's whole columns, `value_columns` the columns that do not fill 8. They are
//! functions of their own because the inner loops leave no vector register free.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use cranelift_module::{FuncId, Module};

use super::{Compiler, condition_mask, field};
use crate::codegen::emit::Emit;
use crate::error::Result;
use crate::tiles::{LANES, ROW_CUTS, ValueCall};

/// Columns in a register block.
const COLUMNS: usize = 8;
/// Keys per round of the inner loop.
const UNROLL: i64 = 4;
/// Keys per pass over the row blocks: their values and probabilities stay in the first-level cache, and the
/// offsets of their rows fit a small table.
const CHUNK: i64 = 128;
/// Columns that `value_columns` does at once.
const NARROW: usize = 4;
/// Columns per round of the epilogue.
const RUN: usize = 16;

/// Defines the tile and the functions that it calls.
pub(super) fn define(compiler: &mut Compiler, dv: usize) -> Result<FuncId> {
    let pointer = compiler.pointer();
    let params = [pointer; Rows::PARAMS];
    let [six, five] = if dv >= COLUMNS {
        let mut add = |rows: usize| {
            let name = format!("value_rows{rows}");
            compiler.add(&name, &params, &[], |e, p, _| {
                emit_rows(e, &Rows::new(p), rows, dv / COLUMNS * COLUMNS);
                Vec::new()
            })
        };
        [Some(add(6)?), Some(add(5)?)]
    } else {
        [None; 2]
    };
    let narrow = if dv.is_multiple_of(COLUMNS) {
        None
    } else {
        Some(compiler.add("value_columns", &params, &[], |e, p, _| {
            emit_columns(e, &Rows::new(p), dv);
            Vec::new()
        })?)
    };
    compiler.add("value", &[pointer], &[types::I64], |e, p, module| {
        let mut import = |id: Option<FuncId>| {
            id.map(|id| {
                let function = module.declare_func_in_func(id, e.b.func);
                // Each function may lie in a mapping of its own, out of reach of a near call.
                e.b.func.dfg.ext_funcs[function].colocated = false;
                function
            })
        };
        let (six, five, narrow) = (import(six), import(five), import(narrow));
        let mut call = |e: &mut Emit, block: usize, rows: &Rows| {
            let whole = if ROW_CUTS[block + 1] - ROW_CUTS[block] == 6 { six } else { five };
            for function in [whole, narrow].into_iter().flatten() {
                e.b.ins().call(function, &rows.values());
            }
        };
        emit_walk(e, p[0], &mut call);
        vec![emit_finish(e, p[0], dv)]
    })
}

/// What a register row block is given.
struct Rows {
    /// Column 0 of the value row at offset 0.
    v: Value,
    /// Byte offsets of the chunk's value rows from `v`.
    table: Value,
    /// Probabilities of the chunk's first key, at the first lane of the group.
    p: Value,
    /// First key of the chunk that is not trimmed.
    from: Value,
    /// One past the last such key.
    to: Value,
    /// Sums of the row block's first query.
    acc: Value,
    /// Bytes from one row of sums to the next.
    acc_stride: Value,
    /// Number of the last row within the row block, at most its height - 1.
    last: Value,
    /// First lane of the row block within its group; read by `value_columns` only.
    lane: Value,
    /// 1: start from `acc`; 0: from zero.
    accumulate: Value,
}

impl Rows {
    const PARAMS: usize = 10;

    fn new(params: &[Value]) -> Self {
        Self {
            v: params[0],
            table: params[1],
            p: params[2],
            from: params[3],
            to: params[4],
            acc: params[5],
            acc_stride: params[6],
            last: params[7],
            lane: params[8],
            accumulate: params[9],
        }
    }

    fn values(&self) -> [Value; Self::PARAMS] {
        [
            self.v,
            self.table,
            self.p,
            self.from,
            self.to,
            self.acc,
            self.acc_stride,
            self.last,
            self.lane,
            self.accumulate,
        ]
    }
}

/// The walk over chunks of keys and row blocks. Without keys it makes one round, which only zeroes `acc`.
fn emit_walk(e: &mut Emit, record: Value, call: &mut dyn FnMut(&mut Emit, usize, &Rows)) {
    let nkeys = field!(e, record, ValueCall, nkeys);
    let rows = field!(e, record, ValueCall, rows);
    let v = field!(e, record, ValueCall, v);
    let accumulate = field!(e, record, ValueCall, accumulate);
    let acc_stride = field!(e, record, ValueCall, acc_stride);
    let acc_stride = e.b.ins().ishl_imm_u(acc_stride, 2);
    let table = e.stack(8 * CHUNK as u32);
    let (zero, one) = (e.int(0), e.int(1));
    let end = e.b.ins().umax(nkeys, one);
    e.for_range(zero, end, CHUNK, &[], |e, chunk, _| {
        let rest = e.b.ins().isub(nkeys, chunk);
        let most = e.int(CHUNK);
        let count = e.b.ins().umin(rest, most);
        fill_table(e, record, table, chunk, count);
        let later = e.b.ins().icmp_imm_s(IntCC::NotEqual, chunk, 0);
        let later = e.b.ins().uextend(e.ptr, later);
        let accumulate = e.b.ins().bor(accumulate, later);
        let step = LANES as i64;
        e.for_range(zero, rows, step, &[], |e, row, _| {
            let group = e.b.ins().ushr_imm_u(row, i64::from(LANES.trailing_zeros()));
            let p = field!(e, record, ValueCall, p);
            let p_stride = field!(e, record, ValueCall, p_stride);
            let p = e.row(p, group, p_stride);
            let p = e.offset(p, chunk, 64);
            let group_block = e.b.ins().imul_imm_s(group, ROW_CUTS.len() as i64 - 1);
            for block in 0..ROW_CUTS.len() - 1 {
                let (lane, height) = (ROW_CUTS[block] as i64, ROW_CUTS[block + 1] - ROW_CUTS[block]);
                let first = e.b.ins().iadd_imm_s(row, lane);
                let present = e.b.ins().icmp(IntCC::UnsignedLessThan, first, rows);
                e.if_true(present, |e| {
                    let index = e.b.ins().iadd_imm_s(group_block, block as i64);
                    let (front, back) = trims(e, record, index);
                    // Bounds within the chunk; `from >= to` leaves nothing to add.
                    let from = e.b.ins().isub(front, chunk);
                    let from = e.b.ins().smax(from, zero);
                    let to = e.b.ins().isub(rest, back);
                    let to = e.b.ins().smin(to, count);
                    let left = e.b.ins().isub(rows, first);
                    let left = e.b.ins().iadd_imm_s(left, -1);
                    let highest = e.int(height as i64 - 1);
                    let last = e.b.ins().umin(left, highest);
                    let acc = field!(e, record, ValueCall, acc);
                    let skipped = e.b.ins().imul(first, acc_stride);
                    let acc = e.b.ins().iadd(acc, skipped);
                    let lane = e.int(lane);
                    let rows = Rows { v, table, p, from, to, acc, acc_stride, last, lane, accumulate };
                    call(e, block, &rows);
                });
            }
            Vec::new()
        });
        Vec::new()
    });
}

/// Byte offsets of the value rows of the chunk's keys: one table serves runs and gathered keys, so the inner
/// loops exist once.
fn fill_table(e: &mut Emit, record: Value, table: Value, chunk: Value, count: Value) {
    let keys = field!(e, record, ValueCall, keys);
    let stride = field!(e, record, ValueCall, v_stride);
    let stride = e.b.ins().ishl_imm_u(stride, 2);
    let zero = e.int(0);
    e.if_else(
        keys,
        |e| {
            let keys = e.offset(keys, chunk, 4);
            e.for_range(zero, count, 1, &[], |e, key, _| {
                let at = e.offset(keys, key, 4);
                let row = e.load_u32(at, 0);
                let offset = e.b.ins().imul(row, stride);
                let at = e.offset(table, key, 8);
                e.store(offset, at, 0);
                Vec::new()
            });
            Vec::new()
        },
        |e| {
            let first = e.b.ins().imul(chunk, stride);
            e.for_range(zero, count, 1, &[first], |e, key, offset| {
                let at = e.offset(table, key, 8);
                e.store(offset[0], at, 0);
                vec![e.b.ins().iadd(offset[0], stride)]
            });
            Vec::new()
        },
    );
}

/// How many keys row block `index` skips at the front and at the back of the run.
fn trims(e: &mut Emit, record: Value, index: Value) -> (Value, Value) {
    let trims = field!(e, record, ValueCall, trims);
    let found = e.if_else(
        trims,
        |e| {
            let at = e.offset(trims, index, 8);
            vec![e.load_u32(at, 0), e.load_u32(at, 4)]
        },
        |e| vec![e.int(0); 2],
    );
    (found[0], found[1])
}

/// A row block of `height` queries over all whole blocks of columns.
///
/// Rows past the last one are computed like the others (their lanes exist in the panel), read the sums of the
/// last row, and are stored before it to the same place: the last row's own sums are what remains there.
fn emit_rows(e: &mut Emit, rows: &Rows, height: usize, columns: usize) {
    let keep = condition_mask(e, rows.accumulate);
    let first_lane = e.offset(rows.p, rows.lane, 4);
    let (zero, end) = (e.int(0), e.int(4 * columns as i64));
    e.for_range(zero, end, 4 * COLUMNS as i64, &[], |e, column, _| {
        let v = e.b.ins().iadd(rows.v, column);
        let acc = e.b.ins().iadd(rows.acc, column);
        let places: Vec<Value> = (0..height as i64)
            .map(|r| {
                let row = e.int(r);
                let row = e.b.ins().umin(row, rows.last);
                let skipped = e.b.ins().imul(row, rows.acc_stride);
                e.b.ins().iadd(acc, skipped)
            })
            .collect();
        let mut sums = Vec::new();
        for &place in &places {
            for side in 0..2 {
                let before = e.load(types::F32X4, place, 16 * side);
                sums.push(e.b.ins().band(before, keep));
            }
        }
        let (next, sums) = e.while_less(rows.from, rows.to, UNROLL, UNROLL - 1, &sums, |e, key, sums| {
            add_keys(e, rows.table, v, first_lane, key, UNROLL, sums)
        });
        let (_, sums) = e.while_less(next, rows.to, 1, 0, &sums, |e, key, sums| {
            add_keys(e, rows.table, v, first_lane, key, 1, sums)
        });
        for (r, &place) in places.iter().enumerate().rev() {
            e.store(sums[2 * r], place, 0);
            e.store(sums[2 * r + 1], place, 16);
        }
        Vec::new()
    });
}

/// Adds `count` keys from `key` on to the sums of a row block.
fn add_keys(e: &mut Emit, table: Value, v: Value, p: Value, key: Value, count: i64, sums: &[Value]) -> Vec<Value> {
    let table = e.offset(table, key, 8);
    let p = e.offset(p, key, 64);
    let mut sums = sums.to_vec();
    for k in 0..count as i32 {
        let offset = e.load(e.ptr, table, 8 * k);
        let v = e.b.ins().iadd(v, offset);
        let low = e.load(types::F32X4, v, 0);
        let high = e.load(types::F32X4, v, 16);
        for r in 0..sums.len() / 2 {
            let p = e.load_splat(p, 64 * k + 4 * r as i32);
            sums[2 * r] = e.mul_add(low, p, sums[2 * r]);
            sums[2 * r + 1] = e.mul_add(p, high, sums[2 * r + 1]);
        }
    }
    sums
}

/// The columns of a row block that do not fill a register block, transposed: queries in the lanes, one value
/// broadcast per column, so that nothing past the last column is read. Eight lanes hold the row block.
fn emit_columns(e: &mut Emit, rows: &Rows, dv: usize) {
    let half = e.int(LANES as i64 / 2);
    let start = e.b.ins().umin(rows.lane, half);
    let p = e.offset(rows.p, start, 4);
    let skipped = e.b.ins().isub(rows.lane, start);
    let staged = e.stack((NARROW * 32) as u32);
    let mut first = dv / COLUMNS * COLUMNS;
    while first < dv {
        let width = NARROW.min(dv - first);
        let none = e.constant(0.0);
        let v = e.b.ins().iadd_imm_s(rows.v, 4 * first as i64);
        let sums = e.for_range(rows.from, rows.to, 1, &vec![none; 2 * width], |e, key, sums| {
            let at = e.offset(p, key, 64);
            let low = e.load(types::F32X4, at, 0);
            let high = e.load(types::F32X4, at, 16);
            let at = e.offset(rows.table, key, 8);
            let offset = e.load(e.ptr, at, 0);
            let v = e.b.ins().iadd(v, offset);
            let mut sums = sums.to_vec();
            for column in 0..width {
                let value = e.load_splat(v, 4 * column as i32);
                sums[2 * column] = e.mul_add(low, value, sums[2 * column]);
                sums[2 * column + 1] = e.mul_add(value, high, sums[2 * column + 1]);
            }
            sums
        });
        for (index, &sum) in sums.iter().enumerate() {
            e.store(sum, staged, 16 * index as i32);
        }
        let zero = e.int(0);
        let end = e.b.ins().iadd_imm_s(rows.last, 1);
        e.for_range(zero, end, 1, &[], |e, row, _| {
            let lane = e.b.ins().iadd(row, skipped);
            let from = e.offset(staged, lane, 4);
            let moved = e.b.ins().imul(row, rows.acc_stride);
            let acc = e.b.ins().iadd(rows.acc, moved);
            for column in 0..width {
                let place = 4 * (first + column) as i32;
                let sum = e.load(types::F32, from, 32 * column as i32);
                let sum = e.if_else(
                    rows.accumulate,
                    |e| {
                        let before = e.load(types::F32, acc, place);
                        vec![e.b.ins().fadd(before, sum)]
                    },
                    |_| vec![sum],
                );
                e.store(sum[0], acc, place);
            }
            Vec::new()
        });
        first += width;
    }
}

/// The epilogue: writes the output rows where the record has them. Returns 1 where one of them is not finite.
fn emit_finish(e: &mut Emit, record: Value, dv: usize) -> Value {
    let out = field!(e, record, ValueCall, out);
    let found = e.if_else(out, |e| vec![finish_rows(e, record, dv)], |e| vec![e.b.ins().iconst(types::I64, 0)]);
    found[0]
}

/// One output row's addresses and factors.
struct Finish {
    acc: Value,
    out: Value,
    /// Null where there is no restart term.
    rv: Value,
    factor: Value,
    restart: Value,
}

fn finish_rows(e: &mut Emit, record: Value, dv: usize) -> Value {
    let rows = field!(e, record, ValueCall, rows);
    let zero = e.int(0);
    let clean = [e.constant(0.0), e.b.ins().f32const(0.0)];
    let seen = e.for_range(zero, rows, 1, &clean, |e, row, seen| {
        let numbers = field!(e, record, ValueCall, out_rows);
        let number = e.row_number(numbers, row);
        let acc = field!(e, record, ValueCall, acc);
        let stride = field!(e, record, ValueCall, acc_stride);
        let acc = e.row(acc, row, stride);
        let out = field!(e, record, ValueCall, out);
        let stride = field!(e, record, ValueCall, out_stride);
        let out = e.row(out, number, stride);
        let rv = field!(e, record, ValueCall, rv);
        let stride = field!(e, record, ValueCall, rv_stride);
        let rv = e.if_else(rv, |e| vec![e.row(rv, number, stride)], |_| vec![rv])[0];
        let factor = field!(e, record, ValueCall, factor);
        let factor = e.offset(factor, row, 4);
        let factor = e.load(types::F32, factor, 0);
        let restart = e.load(types::F32, record, core::mem::offset_of!(ValueCall, restart) as i32);
        let finish = Finish { acc, out, rv, factor, restart };
        let (mut vector, mut scalar) = (seen[0], seen[1]);
        let (runs, whole) = (dv / RUN * RUN, dv / 4 * 4);
        if runs > 0 {
            let end = e.int(4 * runs as i64);
            vector = e.for_range(zero, end, 4 * RUN as i64, &[vector], |e, byte, seen| {
                vec![finish_columns(e, &finish, types::F32X4, byte, RUN / 4, seen[0])]
            })[0];
        }
        if runs < whole {
            let byte = e.int(4 * runs as i64);
            vector = finish_columns(e, &finish, types::F32X4, byte, (whole - runs) / 4, vector);
        }
        if whole < dv {
            let byte = e.int(4 * whole as i64);
            scalar = finish_columns(e, &finish, types::F32, byte, dv - whole, scalar);
        }
        vec![vector, scalar]
    });
    let scalar = e.splat(seen[1]);
    let seen = e.b.ins().bor(seen[0], scalar);
    let bad = e.b.ins().fcmp(FloatCC::Unordered, seen, seen);
    let any = e.b.ins().vany_true(bad);
    e.b.ins().uextend(types::I64, any)
}

/// Finishes `count` vectors or single columns from `byte` on; or-s into `seen` what is NaN where a result is not
/// finite.
fn finish_columns(e: &mut Emit, row: &Finish, ty: Type, byte: Value, count: usize, seen: Value) -> Value {
    let wide = |e: &mut Emit, factor: Value| if ty == types::F32 { factor } else { e.splat(factor) };
    let offset = |index: usize| index as i32 * ty.bytes() as i32;
    let factor = wide(e, row.factor);
    let acc = e.b.ins().iadd(row.acc, byte);
    let scaled: Vec<Value> = (0..count)
        .map(|index| {
            let sum = e.load(ty, acc, offset(index));
            e.b.ins().fmul(sum, factor)
        })
        .collect();
    let results = e.if_else(
        row.rv,
        |e| {
            let restart = wide(e, row.restart);
            let rv = e.b.ins().iadd(row.rv, byte);
            let terms = scaled.iter().enumerate().map(|(index, &scaled)| {
                let value = e.load(ty, rv, offset(index));
                let term = e.b.ins().fmul(value, restart);
                e.b.ins().fadd(scaled, term)
            });
            terms.collect()
        },
        |_| scaled.clone(),
    );
    let out = e.b.ins().iadd(row.out, byte);
    results.iter().enumerate().fold(seen, |seen, (index, &result)| {
        e.store(result, out, offset(index));
        // x - x is 0 for a finite x and NaN otherwise, and a NaN's bits stay those of a NaN whatever is or-ed in.
        let difference = e.b.ins().fsub(result, result);
        e.b.ins().bor(seen, difference)
    })
}

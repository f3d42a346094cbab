//! Softmax bookkeeping over the 64 queries of a block row, and the output row's finish.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::kernel::{Bytes, Kernel, Row};
use super::tables::Section;
use super::{KernelArgs, TileFn};
use crate::tiles::{LANES, ValueCall};

/// By how much a maximum, in powers of two, must pass what is subtracted before everything is corrected.
const SLACK: f32 = 8.0;
const GROUP_BYTES: i64 = (LANES * size_of::<f32>()) as i64;
/// Byte offsets of a group's four vectors.
const VECTORS: [i32; 4] = [0, 16, 32, 48];

/// Where a row's output goes.
#[derive(Clone, Copy)]
pub(super) struct Output {
    /// Row 0 of the head's output.
    pub out: Value,
    /// Elements from one output row to the next.
    pub out_stride: Value,
    /// Factor on the row of V that is added; 0 for none.
    pub restart: Value,
}

impl Kernel<'_, '_> {
    /// After the maxima of a step: what the exponential subtracts, and by how much everything summed so far
    /// shrinks (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3).
    ///
    /// The subtracted value follows the maximum only when that has passed it by more than [`SLACK`]: probabilities
    /// up to 2^8 are as exact as those up to 1, and most steps then correct nothing. A row that has met no allowed
    /// key yet has maximum −inf; 0 is subtracted there instead, so that nothing becomes −inf − (−inf).
    pub fn update(&mut self, row: Row) {
        let [max, old, reference, sum, correction] =
            [self.scratch.max, self.scratch.old, self.scratch.reference, self.scratch.sum, self.scratch.correction]
                .map(|offset| self.local(offset));
        let lowest = self.e.constant(f32::NEG_INFINITY);
        let one = self.e.constant(1.0);
        let slack = self.e.constant(SLACK);
        let moved = self.moved;
        let none = self.e.b.ins().iconst(types::I8, 0);
        self.e.store(none, moved, 0);
        self.for_groups(row, |kernel, at| {
            let e = &mut kernel.e;
            let [max, old, reference, sum, correction] =
                [max, old, reference, sum, correction].map(|base| e.b.ins().iadd(base, at));
            let maxima = VECTORS.map(|offset| e.load(types::F32X4, max, offset));
            let shifts: Vec<Value> = VECTORS
                .iter()
                .zip(maxima)
                .map(|(&offset, maximum)| {
                    let before = e.load(types::F32X4, old, offset);
                    let bound = e.b.ins().fadd(before, slack);
                    let passed = e.b.ins().fcmp(FloatCC::GreaterThan, maximum, bound);
                    let now = e.select(passed, maximum, before);
                    e.store(now, old, offset);
                    let seen = e.b.ins().fcmp(FloatCC::NotEqual, now, lowest);
                    let seen = e.as_f32(seen);
                    // All zeros is 0.0: what has no key yet subtracts nothing.
                    let subtracted = e.b.ins().band(now, seen);
                    e.store(subtracted, reference, offset);
                    e.b.ins().fsub(before, subtracted)
                })
                .collect();
            for (offset, factor) in VECTORS.into_iter().zip(e.exp2(&shifts)) {
                let sums = e.load(types::F32X4, sum, offset);
                let sums = e.b.ins().fmul(sums, factor);
                e.store(sums, sum, offset);
                e.store(factor, correction, offset);
                let differs = e.b.ins().fcmp(FloatCC::NotEqual, factor, one);
                let differs = e.b.ins().vany_true(differs);
                let so_far = e.load(types::I8, moved, 0);
                let so_far = e.b.ins().bor(so_far, differs);
                e.store(so_far, moved, 0);
            }
        });
    }

    /// [`Self::update`] at a row's first step: nothing was summed that could shrink.
    pub fn first_update(&mut self, row: Row) {
        let [max, old, reference] =
            [self.scratch.max, self.scratch.old, self.scratch.reference].map(|offset| self.local(offset));
        let lowest = self.e.constant(f32::NEG_INFINITY);
        self.for_groups(row, |kernel, at| {
            let e = &mut kernel.e;
            let [max, old, reference] = [max, old, reference].map(|base| e.b.ins().iadd(base, at));
            for offset in VECTORS {
                let maximum = e.load(types::F32X4, max, offset);
                let seen = e.b.ins().fcmp(FloatCC::GreaterThan, maximum, lowest);
                let now = e.select(seen, maximum, lowest);
                e.store(now, old, offset);
                let seen = e.as_f32(seen);
                let subtracted = e.b.ins().band(now, seen);
                e.store(subtracted, reference, offset);
            }
        });
    }

    /// Shrinks the sums of values by the corrections of [`Self::update`], if there are sums already.
    pub fn rescale(&mut self, row: Row) {
        let started = self.e.field(self.records.value, offset_of!(ValueCall, accumulate));
        let moved = self.e.load(types::I8, self.moved, 0);
        let moved = self.e.b.ins().uextend(types::I64, moved);
        let started = self.e.b.ins().band(started, moved);
        let acc = self.local(self.scratch.acc);
        let correction = self.local(self.scratch.correction);
        let stride = self.scratch.acc_stride;
        self.if_else(
            started,
            |kernel| {
                let zero = kernel.e.int(0);
                kernel.for_range(zero, row.count, 1, |kernel, r| {
                    let e = &mut kernel.e;
                    let factor = e.offset(correction, r, 4);
                    let factor = e.load_splat(factor, 0);
                    let acc = e.offset(acc, r, (stride * size_of::<f32>()) as i64);
                    // `stride` is a multiple of 16 floats.
                    let (start, end) = (e.int(0), e.int((stride * size_of::<f32>()) as i64));
                    kernel.for_range(start, end, GROUP_BYTES, |kernel, column| {
                        let e = &mut kernel.e;
                        let at = e.b.ins().iadd(acc, column);
                        for offset in VECTORS {
                            let value = e.load(types::F32X4, at, offset);
                            let value = e.b.ins().fmul(value, factor);
                            e.store(value, at, offset);
                        }
                    });
                });
            },
            |_| {},
        );
    }

    /// `to[i] = step / from[i]` for the row's queries, 0 where `from` is 0 (no allowed key); `step` 1 where it is
    /// not given.
    pub fn invert(&mut self, row: Row, from: Value, to: Value, step: Option<f32>) {
        let step = self.e.constant(step.unwrap_or(1.0));
        let zero = self.e.constant(0.0);
        self.for_groups(row, |kernel, at| {
            let e = &mut kernel.e;
            let [from, to] = [from, to].map(|base| e.b.ins().iadd(base, at));
            for offset in VECTORS {
                let sum = e.load(types::F32X4, from, offset);
                let quotient = e.b.ins().fdiv(step, sum);
                let some = e.b.ins().fcmp(FloatCC::NotEqual, sum, zero);
                let some = e.as_f32(some);
                let quotient = e.b.ins().band(quotient, some);
                e.store(quotient, to, offset);
            }
        });
    }

    /// `to[i] = from[i]` for the row's queries.
    pub fn copy_lanes(&mut self, row: Row, from: Value, to: Value) {
        self.for_groups(row, |kernel, at| {
            let e = &mut kernel.e;
            let [from, to] = [from, to].map(|base| e.b.ins().iadd(base, at));
            for offset in VECTORS {
                let value = e.load(types::F32X4, from, offset);
                e.store(value, to, offset);
            }
        });
    }

    /// `to[i] = factor · from[i]` for the row's queries.
    pub fn scale_lanes(&mut self, row: Row, from: Value, to: Value, factor: Value) {
        let factor = self.e.splat(factor);
        self.for_groups(row, |kernel, at| {
            let e = &mut kernel.e;
            let [from, to] = [from, to].map(|base| e.b.ins().iadd(base, at));
            for offset in VECTORS {
                let value = e.load(types::F32X4, from, offset);
                let value = e.b.ins().fmul(value, factor);
                e.store(value, to, offset);
            }
        });
    }

    /// Hands what was subtracted and the row sums to the caller, who makes log-sum-exp of them, if it asked.
    pub fn store_statistics(&mut self, row: Row) {
        let wanted = self.arg(offset_of!(KernelArgs, row_max));
        self.if_else(
            wanted,
            |kernel| {
                let row_sum = kernel.arg(offset_of!(KernelArgs, row_sum));
                let one = kernel.e.int(1);
                for (from, to) in [(kernel.scratch.old, wanted), (kernel.scratch.sum, row_sum)] {
                    let from = kernel.local(from);
                    let (to, rows) = kernel.rows_of(row, to, one, Bytes::FLOAT);
                    let zero = kernel.e.int(0);
                    kernel.for_range(zero, row.count, 1, |kernel, r| {
                        let at = kernel.e.offset(from, r, 4);
                        let value = kernel.e.load(types::F32, at, 0);
                        let number = kernel.e.row_number(rows, r);
                        let at = kernel.e.offset(to, number, 4);
                        kernel.e.store(value, at, 0);
                    });
                }
            },
            |_| {},
        );
    }

    /// Writes the row's output `factor · acc + restart · v`, and keeps the value tile's flag.
    pub fn write_output(&mut self, row: Row, output: Output) {
        let record = self.records.value;
        let none = self.e.int(0);
        self.set(record, offset_of!(ValueCall, nkeys), none);
        self.set(record, offset_of!(ValueCall, trims), none);
        self.begin_output(row, output);
        let flag = self.call(TileFn::Value, record);
        self.end_output(row, output, flag);
    }

    /// Makes the next value call the row's last one: it writes the output from its registers.
    pub fn begin_output(&mut self, row: Row, Output { out, out_stride, restart }: Output) {
        let record = self.records.value;
        let v = self.arg(offset_of!(KernelArgs, v));
        let v_stride = self.arg(offset_of!(KernelArgs, v_stride));
        let (out, rows) = self.rows_of(row, out, out_stride, self.out_element);
        let (v, _) = self.rows_of(row, v, v_stride, self.element);
        let none = self.e.int(0);
        let rv = if self.plan.restart_folded {
            let restarts = self.restarts(restart);
            self.e.b.ins().select(restarts, v, none)
        } else {
            none
        };
        self.set(record, offset_of!(ValueCall, out), out);
        self.set(record, offset_of!(ValueCall, out_stride), out_stride);
        self.set(record, offset_of!(ValueCall, out_rows), rows);
        self.set(record, offset_of!(ValueCall, rv), rv);
        self.set(record, offset_of!(ValueCall, rv_stride), v_stride);
        self.set(record, offset_of!(ValueCall, restart), restart);
    }

    /// After the call that [`Self::begin_output`] prepared: keeps its flag, and adds an unfused restart.
    pub fn end_output(&mut self, row: Row, Output { out, out_stride, restart }: Output, flag: Option<Value>) {
        let none = self.e.int(0);
        self.e.store(flag.unwrap_or(none), self.flag, 0);
        self.set(self.records.value, offset_of!(ValueCall, out), none);
        if self.plan.restart_folded {
            return;
        }
        let v = self.arg(offset_of!(KernelArgs, v));
        let v_stride = self.arg(offset_of!(KernelArgs, v_stride));
        let (out, rows) = self.rows_of(row, out, out_stride, self.out_element);
        let (v, _) = self.rows_of(row, v, v_stride, self.element);
        let restarts = self.restarts(restart);
        self.if_else(
            restarts,
            |kernel| kernel.add_restart(row, (out, out_stride), (v, v_stride), rows, restart),
            |_| {},
        );
    }

    /// Whether there is a restart term; where there is none, no value is read for it.
    fn restarts(&mut self, restart: Value) -> Value {
        let zero = self.e.b.ins().f32const(0.0);
        self.e.b.ins().fcmp(FloatCC::NotEqual, restart, zero)
    }

    /// The unfused operation `restart`: `out[row] += restart · v[row]`; in f32 alone, the plan sees to that.
    fn add_restart(
        &mut self,
        row: Row,
        (out, out_stride): (Value, Value),
        (v, v_stride): (Value, Value),
        rows: Value,
        restart: Value,
    ) {
        let zero = self.e.int(0);
        let width = self.e.int(self.plan.value_dim as i64);
        self.for_range(zero, row.count, 1, |kernel, r| {
            let number = kernel.e.row_number(rows, r);
            let out = kernel.e.row(out, number, out_stride);
            let v = kernel.e.row(v, number, v_stride);
            let zero = kernel.e.int(0);
            kernel.for_range(zero, width, 1, |kernel, column| {
                let e = &mut kernel.e;
                let [out, v] = [out, v].map(|base| e.offset(base, column, 4));
                let (value, sum) = (e.load(types::F32, v, 0), e.load(types::F32, out, 0));
                let term = e.b.ins().fmul(value, restart);
                let sum = e.b.ins().fadd(sum, term);
                e.store(sum, out, 0);
            });
        });
    }

    /// The factors of hop `hop`: step and restart.
    pub fn hop_factors(&mut self, hop: Value) -> (Value, Value) {
        let hops = self.section(Section::Hops);
        let at = self.e.offset(hops, hop, 8);
        (self.e.load(types::F32, at, 0), self.e.load(types::F32, at, 4))
    }

    fn for_groups(&mut self, row: Row, body: impl FnOnce(&mut Self, Value)) {
        let zero = self.e.int(0);
        let end = self.e.b.ins().imul_imm_s(row.groups, GROUP_BYTES);
        self.for_range(zero, end, GROUP_BYTES, body);
    }
}

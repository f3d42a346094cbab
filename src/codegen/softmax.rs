//! Softmax bookkeeping over the 64 queries of a block row.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::KernelArgs;
use super::context::{Context, LANE_BYTES, Row};
use crate::tiles::LANES;

/// By how much a maximum, in powers of two, must pass what is subtracted before everything is corrected.
const SLACK: f32 = 8.0;
const GROUP_BYTES: i64 = (LANES * size_of::<f32>()) as i64;
/// Byte offsets of a group's four vectors.
const VECTORS: [i32; 4] = [0, 16, 32, 48];

impl Context<'_, '_> {
    /// After the maxima of a step: what the exponential subtracts, and by how much everything summed so far
    /// shrinks (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3).
    ///
    /// The subtracted value follows the maximum only when that has passed it by more than [`SLACK`]: probabilities
    /// up to 2^8 are as exact as those up to 1, and most steps then correct nothing. A row that has met no allowed
    /// key yet has maximum −inf; 0 is subtracted there instead, so that nothing becomes −inf − (−inf).
    pub fn update(&mut self, row: Row) {
        let [max, old, reference, sum, correction] = {
            let local = &self.layout().local;
            [local.max, local.old, local.reference, local.sum, local.correction].map(|offset| self.local(offset))
        };
        let lowest = self.e.constant(f32::NEG_INFINITY);
        let one = self.e.constant(1.0);
        let slack = self.e.constant(SLACK);
        let moved = self.moved;
        let none = self.e.b.ins().iconst(types::I8, 0);
        self.e.store(none, moved, 0);
        self.for_groups(row, |cx, at| {
            let e = &mut cx.e;
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
        let [max, old, reference] = {
            let local = &self.layout().local;
            [local.max, local.old, local.reference].map(|offset| self.local(offset))
        };
        let lowest = self.e.constant(f32::NEG_INFINITY);
        self.for_groups(row, |cx, at| {
            let e = &mut cx.e;
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

    /// Shrinks sums of values, `[rows][stride]`, by the corrections of [`Self::update`], if it corrected anything and
    /// `started` is not 0.
    pub fn rescale(&mut self, row: Row, acc: Value, started: Value) {
        let moved = self.e.load(types::I8, self.moved, 0);
        let moved = self.e.b.ins().uextend(types::I64, moved);
        let started = self.e.b.ins().band(started, moved);
        let correction = self.local(self.layout().local.correction);
        let stride = self.layout().local.acc_stride;
        self.if_true(started, |cx| {
            let zero = cx.e.int(0);
            cx.for_range(zero, row.count, 1, |cx, r| {
                let e = &mut cx.e;
                let factor = e.offset(correction, r, 4);
                let factor = e.load_splat(factor, 0);
                let acc = e.offset(acc, r, (stride * size_of::<f32>()) as i64);
                // `stride` is a multiple of 16 floats.
                let (start, end) = (e.int(0), e.int((stride * size_of::<f32>()) as i64));
                cx.for_range(start, end, GROUP_BYTES, |cx, column| {
                    let e = &mut cx.e;
                    let at = e.b.ins().iadd(acc, column);
                    for offset in VECTORS {
                        let value = e.load(types::F32X4, at, offset);
                        let value = e.b.ins().fmul(value, factor);
                        e.store(value, at, offset);
                    }
                });
            });
        });
    }

    /// `to[i] = step / from[i]` for the row's queries, 0 where `from` is 0 (no allowed key); `step`, a scalar, is 1 where it
    /// is not given.
    pub fn invert(&mut self, row: Row, from: Value, to: Value, step: Option<Value>) {
        let step = match step {
            Some(step) => self.e.splat(step),
            None => self.e.constant(1.0),
        };
        let zero = self.e.constant(0.0);
        self.for_groups(row, |cx, at| {
            let e = &mut cx.e;
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
        self.for_groups(row, |cx, at| {
            let e = &mut cx.e;
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
        self.for_groups(row, |cx, at| {
            let e = &mut cx.e;
            let [from, to] = [from, to].map(|base| e.b.ins().iadd(base, at));
            for offset in VECTORS {
                let value = e.load(types::F32X4, from, offset);
                let value = e.b.ins().fmul(value, factor);
                e.store(value, to, offset);
            }
        });
    }

    /// Maxima and sums of a row that has met no key.
    pub fn begin_statistics(&mut self) {
        let lowest = self.e.constant(f32::NEG_INFINITY);
        let zero = self.e.constant(0.0);
        let local = &self.layout().local;
        let [max, old, sum] = [local.max, local.old, local.sum].map(|offset| self.local(offset));
        let (start, end) = (self.e.int(0), self.e.int(LANE_BYTES));
        self.for_range(start, end, 16, |cx, lane| {
            for (base, value) in [(max, lowest), (old, lowest), (sum, zero)] {
                let at = cx.e.b.ins().iadd(base, lane);
                cx.e.store(value, at, 0);
            }
        });
    }

    /// `to[i] = value` for the row's queries.
    pub fn fill_lanes(&mut self, row: Row, to: Value, value: Value) {
        let value = self.e.splat(value);
        self.for_groups(row, |cx, at| {
            let e = &mut cx.e;
            let to = e.b.ins().iadd(to, at);
            for offset in VECTORS {
                e.store(value, to, offset);
            }
        });
    }

    /// Hands what was subtracted and the row sums to the caller, who makes log-sum-exp of them, if it asked.
    pub fn store_statistics(&mut self, row: Row) {
        let wanted = self.arg(offset_of!(KernelArgs, row_max));
        self.if_true(wanted, |cx| {
            let row_sum = cx.arg(offset_of!(KernelArgs, row_sum));
            let local = &cx.layout().local;
            for (from, to) in [(local.old, wanted), (local.sum, row_sum)] {
                let from = cx.local(from);
                let (to, numbers) = if cx.plan.is_ordered() {
                    (to, cx.order_of(row))
                } else {
                    (cx.e.offset(to, row.place, 4), cx.e.int(0))
                };
                let zero = cx.e.int(0);
                cx.for_range(zero, row.count, 1, |cx, r| {
                    let at = cx.e.offset(from, r, 4);
                    let value = cx.e.load(types::F32, at, 0);
                    let number = cx.e.row_number(numbers, r);
                    let at = cx.e.offset(to, number, 4);
                    cx.e.store(value, at, 0);
                });
            }
        });
    }

    fn for_groups(&mut self, row: Row, body: impl FnOnce(&mut Self, Value)) {
        let zero = self.e.int(0);
        let end = self.e.b.ins().imul_imm_s(row.groups, GROUP_BYTES);
        self.for_range(zero, end, GROUP_BYTES, body);
    }
}

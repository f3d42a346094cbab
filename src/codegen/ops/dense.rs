//! Operations row by row, without neighbors, and the join of a head's parts.

use std::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value, types};

use crate::codegen::context::{Context, Row};
use crate::codegen::records::{JoinRecord, RowsRecord};
use crate::codegen::{KernelArgs, TileFn};
use crate::dtype::Dtype;
use crate::mask::QUERY_BLOCK;
use crate::plan::{Dense, DenseKind, Lanes, RowOp};

/// An operation row by row.
pub(in crate::codegen) struct DenseRows {
    dense: Dense,
    record: RowsRecord,
}

impl DenseRows {
    pub fn new(cx: &mut Context, dense: Dense) -> Self {
        let record = RowsRecord::new(cx);
        record.width(cx, dense.x.width);
        let dtype = dense.out.map_or(Dtype::F32, |out| out.dtype);
        let dtype = cx.e.b.ins().iconst(types::I8, dtype as i64);
        record.dtype(cx, dtype);
        Self { dense, record }
    }

    pub fn row(&self, cx: &mut Context, row: Row) {
        let (dense, record) = (self.dense, self.record);
        // All rows of an operation lie by number, or all by place.
        let x = cx.rows_of(row, dense.x);
        record.x(cx, x.base);
        record.x_stride(cx, x.stride);
        record.x_rows(cx, x.numbers);
        if let Some(y) = dense.y {
            let y = cx.rows_of(row, y);
            record.y(cx, y.base);
            record.y_stride(cx, y.stride);
            record.y_rows(cx, y.numbers);
        }
        match dense.w {
            Some(w) => {
                let w = cx.rows_of(row, w);
                let factor = cx.factor(dense.w_factor);
                record.w(cx, w.base);
                record.w_stride(cx, w.stride);
                record.w_rows(cx, w.numbers);
                record.restart(cx, factor);
            }
            None => record.restart(cx, 0.0_f32),
        }
        if let Some(out) = dense.out {
            let out = cx.rows_of(row, out);
            record.out(cx, out.base);
            record.out_stride(cx, out.stride);
            record.out_rows(cx, out.numbers);
        }
        let lanes = lanes_at(cx, row, dense.lanes);
        record.lanes_in(cx, lanes);
        record.count(cx, row.count);
        if let Some((sums, from_zero)) = dense.sums {
            let sums = lanes_at(cx, row, sums);
            if from_zero {
                let zero = cx.e.b.ins().f32const(0.0);
                cx.fill_lanes(row, sums, zero);
            }
            record.lanes_out(cx, sums);
        }
        let address = record.address();
        match dense.kind {
            DenseKind::Copy => _ = cx.call(TileFn::CopyRows, address),
            DenseKind::Scale | DenseKind::Add => {
                let factor = cx.factor(dense.factor);
                record.factor(cx, factor);
                let tile = if dense.kind == DenseKind::Scale { TileFn::ScaleRows } else { TileFn::AddRows };
                cx.call(tile, address);
            }
            DenseKind::Dot => {
                // Products are those of rows before dropout scaled what it left.
                let keep = match dense.hop {
                    true => {
                        let one = cx.e.b.ins().f32const(1.0);
                        let keep = cx.arg_f32(offset_of!(KernelArgs, hop_keep));
                        cx.e.b.ins().fdiv(one, keep)
                    }
                    false => cx.e.b.ins().f32const(1.0),
                };
                record.keep(cx, keep);
                cx.call(TileFn::DotRows, address);
            }
            DenseKind::Drop => {
                let row_keys = cx.row_keys(row, offset_of!(KernelArgs, hop_keys));
                cx.if_true(row_keys, |cx| {
                    let threshold = cx.arg_i32(offset_of!(KernelArgs, hop_threshold));
                    let keep = cx.arg_f32(offset_of!(KernelArgs, hop_keep));
                    record.row_keys(cx, row_keys);
                    record.threshold(cx, threshold);
                    record.keep(cx, keep);
                    cx.call(TileFn::DropRows, address);
                });
            }
        }
    }
}

/// Where numbers of the rows' queries are.
fn lanes_at(cx: &mut Context, row: Row, lanes: Lanes) -> Value {
    let local = &cx.layout().local;
    match lanes {
        Lanes::One => cx.e.int(0),
        Lanes::OwnSum => {
            let (sum, inverse) = (cx.local(local.sum), cx.local(local.inverse));
            cx.invert(row, sum, inverse, None);
            inverse
        }
        Lanes::Local(which) => cx.local(local.lanes[which]),
        Lanes::Kept(kept) => cx.kept_lanes(row, kept),
    }
}

/// The sum of the rows' numbers, for what the call gives for the head.
pub(in crate::codegen) struct SumRows {
    x: Lanes,
    record: RowsRecord,
}

impl SumRows {
    pub fn new(cx: &mut Context, x: Lanes, column: u32, factor: f32) -> Self {
        let record = RowsRecord::new(cx);
        // The last of the inputs, `[heads, columns]`.
        let input = cx.plan.mods.as_ref().map_or(0, |mods| mods.mods.inputs.len());
        let columns = cx.plan.body.given.as_ref().map_or(0, |given| given.columns);
        let [head, gradients] = [offset_of!(KernelArgs, head), offset_of!(KernelArgs, input_gradients)];
        let (head, gradients) = (cx.arg(head), cx.arg(gradients));
        let gradient = cx.e.field(gradients, input * size_of::<*mut f32>());
        let row = cx.e.offset(gradient, head, (columns * size_of::<f32>()) as i64);
        let at = cx.e.b.ins().iadd_imm_s(row, i64::from(column) * size_of::<f32>() as i64);
        record.lanes_out(cx, at);
        record.factor(cx, factor);
        Self { x, record }
    }

    pub fn row(&self, cx: &mut Context, row: Row) {
        let lanes = lanes_at(cx, row, self.x);
        self.record.lanes_in(cx, lanes);
        self.record.count(cx, row.count);
        cx.call(TileFn::SumRows, self.record.address());
    }
}

/// Joins the outputs of a head's parts, for the queries (not places) `64 first_row .. 64 end_row` of a call.
pub(in crate::codegen) fn join(cx: &mut Context, op: &RowOp) {
    let &RowOp::Join { x, out, max, sum } = op else { return };
    let record = JoinRecord::new(cx);
    let (q_len, parts) = (cx.plan.shape.q_len, cx.plan.parts);
    let (first, end) = cx.rows_of_call();
    let [first, end] = [first, end].map(|row| cx.e.b.ins().imul_imm_s(row, QUERY_BLOCK as i64));
    let all = cx.e.int(q_len as i64);
    let end = cx.e.b.ins().smin(end, all);
    let rows = cx.e.b.ins().isub(end, first);
    record.rows(cx, rows);

    let (partial, stride) = cx.all_rows(x);
    let partial = cx.e.row(partial, first, stride);
    // Where the output holds part 0, the first rows in workspace are those of part 1.
    let part_stride = cx.e.b.ins().imul_imm_s(stride, q_len as i64);
    let before = cx.plan.first_part_apart() as i64 * size_of::<f32>() as i64;
    let before = cx.e.b.ins().imul_imm_s(part_stride, before);
    let partial = cx.e.b.ins().isub(partial, before);
    record.partial(cx, partial);
    record.row_stride(cx, stride);
    record.part_stride(cx, part_stride);
    let one = cx.e.int(1);
    let [max, sum] = [max, sum].map(|operand| {
        let base = cx.operand(operand);
        cx.e.row(base, first, one)
    });
    record.max(cx, max);
    record.sum(cx, sum);
    record.statistics_stride(cx, q_len);
    record.parts(cx, parts);
    record.dv(cx, out.width);

    let (to, out_stride) = cx.all_rows(out);
    let to = cx.row_at(to, first, out_stride, out.dtype.bytes());
    let dtype = cx.e.b.ins().iconst(types::I8, cx.plan.shape.dtype as i64);
    record.out(cx, to);
    record.out_stride(cx, out_stride);
    record.dtype(cx, dtype);
    let [out_max, out_sum] = [offset_of!(KernelArgs, row_max), offset_of!(KernelArgs, row_sum)].map(|field| {
        let base = cx.arg(field);
        let at = cx.e.row(base, first, one);
        // Null stays null.
        cx.e.b.ins().select(base, at, base)
    });
    record.out_max(cx, out_max);
    record.out_sum(cx, out_sum);
    cx.call(TileFn::Join, record.address());
}

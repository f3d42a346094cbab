//! `join_parts`: the outputs of a head's parts become its output.

use std::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, types};

use super::kernel::Kernel;
use super::{KernelArgs, TileFn};
use crate::mask::QUERY_BLOCK;
use crate::tiles::join::JoinCall;

/// Writes the function; it joins the queries (not places) `64 first_row .. 64 end_row`.
pub(super) fn write(mut kernel: Kernel<'_, '_>) {
    let record = kernel.e.stack(size_of::<JoinCall>() as u32);
    let block = QUERY_BLOCK as i64;
    let first = kernel.arg(offset_of!(KernelArgs, first_row));
    let end = kernel.arg(offset_of!(KernelArgs, end_row));
    let first = kernel.e.b.ins().imul_imm_s(first, block);
    let end = kernel.e.b.ins().imul_imm_s(end, block);
    let all = kernel.e.int(kernel.plan.q_len as i64);
    let end = kernel.e.b.ins().smin(end, all);
    let rows = kernel.e.b.ins().isub(end, first);
    kernel.set(record, offset_of!(JoinCall, rows), rows);

    let scratch = kernel.scratch;
    let (q_len, parts) = (kernel.plan.q_len as i64, kernel.plan.parts as i64);
    let stride = kernel.e.int(scratch.acc_stride as i64);
    let one = kernel.e.int(1);
    for (field, offset, stride) in [
        (offset_of!(JoinCall, partial), scratch.partial, stride),
        (offset_of!(JoinCall, max), scratch.partial_max, one),
        (offset_of!(JoinCall, sum), scratch.partial_sum, one),
    ] {
        let base = kernel.shared(offset);
        let at = kernel.e.row(base, first, stride);
        kernel.set(record, field, at);
    }
    // Where the output holds part 0, the first rows in scratch are those of part 1.
    let before = kernel.plan.first_part_apart() as i64 * q_len * (scratch.acc_stride * size_of::<f32>()) as i64;
    let partial = kernel.e.field(record, offset_of!(JoinCall, partial));
    let partial = kernel.e.b.ins().iadd_imm_s(partial, -before);
    kernel.set(record, offset_of!(JoinCall, partial), partial);
    kernel.set(record, offset_of!(JoinCall, row_stride), stride);
    kernel.set_int(record, offset_of!(JoinCall, part_stride), q_len * scratch.acc_stride as i64);
    kernel.set_int(record, offset_of!(JoinCall, statistics_stride), q_len);
    kernel.set_int(record, offset_of!(JoinCall, parts), parts);
    kernel.set_int(record, offset_of!(JoinCall, dv), kernel.plan.value_dim as i64);

    let out = kernel.arg(offset_of!(KernelArgs, target));
    let out_stride = kernel.arg(offset_of!(KernelArgs, target_stride));
    let at = kernel.tensor_row(out, first, out_stride, kernel.element);
    kernel.set(record, offset_of!(JoinCall, out), at);
    let dtype = kernel.e.b.ins().iconst(types::I8, kernel.plan.dtype as i64);
    kernel.set(record, offset_of!(JoinCall, dtype), dtype);
    kernel.set(record, offset_of!(JoinCall, out_stride), out_stride);
    for (field, argument) in [
        (offset_of!(JoinCall, out_max), offset_of!(KernelArgs, row_max)),
        (offset_of!(JoinCall, out_sum), offset_of!(KernelArgs, row_sum)),
    ] {
        let base = kernel.arg(argument);
        let at = kernel.e.row(base, first, one);
        // Null stays null.
        let at = kernel.e.b.ins().select(base, at, base);
        kernel.set(record, field, at);
    }
    kernel.call(TileFn::Join, record);
    kernel.finish();
}

//! Packs queries into panels, four rows by four columns at a time through a transpose in registers.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::field;
use crate::codegen::emit::Emit;
use crate::tiles::{LANES, PackCall};

/// Emits the body. Lanes beyond the last query read the last query's row and are cleared by a mask.
pub(super) fn emit(e: &mut Emit, record: Value, d: usize) -> Vec<Value> {
    let count = field!(e, record, PackCall, count);
    let out = field!(e, record, PackCall, out);
    let scale = e.load(types::F32, record, core::mem::offset_of!(PackCall, scale) as i32);
    let scale = e.splat(scale);
    let zero = e.int(0);
    let end = e.b.ins().iadd_imm_s(count, LANES as i64 - 1);
    let end = e.b.ins().band_imm_s(end, -(LANES as i64));
    e.for_range(zero, end, 4, &[], |e, first, _| {
        let rows = row_addresses(e, record, first, count);
        let group = e.b.ins().ushr_imm_u(first, i64::from(LANES.trailing_zeros()));
        let lane = e.b.ins().band_imm_u(first, LANES as i64 - 1);
        let panel = e.offset(out, group, (4 * LANES * d) as i64);
        let panel = e.offset(panel, lane, 4);
        let left = e.b.ins().isub(count, first);
        let left = e.b.ins().ireduce(types::I32, left);
        let left = e.b.ins().splat(types::I32X4, left);
        let lanes = e.lanes([0, 1, 2, 3], types::I32X4);
        let present = e.b.ins().icmp(IntCC::SignedGreaterThan, left, lanes);
        let present = e.as_f32(present);
        let whole = d / 4 * 4;
        if whole > 0 {
            let (start, end) = (e.int(0), e.int(4 * whole as i64));
            e.for_range(start, end, 16, &[], |e, byte, _| {
                let loaded: Vec<Value> = rows
                    .iter()
                    .map(|&row| {
                        let at = e.b.ins().iadd(row, byte);
                        e.load(types::F32X4, at, 0)
                    })
                    .collect();
                let columns = e.transpose([loaded[0], loaded[1], loaded[2], loaded[3]]);
                let at = e.offset(panel, byte, LANES as i64);
                for (x, column) in columns.into_iter().enumerate() {
                    let scaled = e.b.ins().fmul(column, scale);
                    let kept = e.b.ins().band(scaled, present);
                    e.store(kept, at, (4 * LANES * x) as i32);
                }
                Vec::new()
            });
        }
        for x in whole..d {
            let mut column = e.load_splat(rows[0], 4 * x as i32);
            for (lane, &row) in (1u8..).zip(&rows[1..]) {
                let value = e.load(types::F32, row, 4 * x as i32);
                column = e.b.ins().insertlane(column, value, lane);
            }
            let scaled = e.b.ins().fmul(column, scale);
            let kept = e.b.ins().band(scaled, present);
            e.store(kept, panel, (4 * LANES * x) as i32);
        }
        Vec::new()
    });
    Vec::new()
}

/// Where four rows from place `first` on begin.
fn row_addresses(e: &mut Emit, record: Value, first: Value, count: Value) -> Vec<Value> {
    let q = field!(e, record, PackCall, q);
    let stride = field!(e, record, PackCall, q_stride);
    let numbers = field!(e, record, PackCall, rows);
    let last = e.b.ins().iadd_imm_s(count, -1);
    (0..4)
        .map(|r| {
            let place = e.b.ins().iadd_imm_s(first, r);
            let place = e.b.ins().umin(place, last);
            let number = e.row_number(numbers, place);
            e.row(q, number, stride)
        })
        .collect()
}

//! Scattered edges, for a batch of block rows at a time: first all scores, then all values.
//!
//! Every edge reads a row of K, and later one of V (or Z), for itself alone. Row by row both tensors would pass through
//! L2 in turn, and so would the panels of stored probabilities; over a batch the edges read one tensor, which stays
//! there. The sums of a batch wait in `acc`, where the block rows take them up; with them, in `flash`, what their
//! online softmax starts from. A row without edges starts as if there were none in the kernel.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::kernel::{Kernel, Row};
use super::tables::Section;
use super::{KernelArgs, TileFn};
use crate::mask::QUERY_BLOCK;
use crate::plan::EDGE_STATISTICS as STATISTICS;
use crate::tiles::{BLOCK, EdgeCall, ValueCall};

/// Bytes of one array over the queries of a block row.
const LANE_BYTES: i64 = (QUERY_BLOCK * size_of::<f32>()) as i64;

impl Kernel<'_, '_> {
    /// Whether any mask has scattered edges.
    pub fn has_edges(&self) -> bool {
        self.plan.masks.iter().any(|mask| !mask.edges.keys.is_empty())
    }

    /// Number of the row within its batch.
    fn in_batch(&mut self, t: Value) -> Value {
        self.e.b.ins().band_imm_u(t, self.scratch.batch as i64 - 1)
    }

    /// Sums of the value tile for block row `t`.
    pub fn sums_of(&mut self, t: Value) -> Value {
        let acc = self.local(self.scratch.acc);
        if self.scratch.batch == 1 {
            return acc;
        }
        let place = self.in_batch(t);
        self.e.offset(acc, place, (BLOCK * self.scratch.acc_stride * size_of::<f32>()) as i64)
    }

    /// Where the edge scores of a batch's row stand (`flash`).
    fn batch_edges(&mut self, row: Row) -> Value {
        let offsets = self.section(Section::EdgeOffsets);
        let at = self.e.offset(offsets, row.place, size_of::<u32>() as i64);
        let first = self.e.load_u32(at, 0);
        let batch = (self.scratch.batch * QUERY_BLOCK) as i64;
        let start = self.e.b.ins().band_imm_s(row.place, -batch);
        let at = self.e.offset(offsets, start, size_of::<u32>() as i64);
        let start = self.e.load_u32(at, 0);
        let edge = self.e.b.ins().isub(first, start);
        let edges = self.local(self.scratch.edges);
        self.e.offset(edges, edge, size_of::<f32>() as i64)
    }

    /// Edges of the row, as a number that is 0 where there are none.
    fn edges_in(&mut self, row: Row) -> Value {
        let offsets = self.section(Section::EdgeOffsets);
        let at = self.e.offset(offsets, row.place, size_of::<u32>() as i64);
        let first = self.e.load_u32(at, 0);
        let end = self.e.offset(at, row.count, size_of::<u32>() as i64);
        let end = self.e.load_u32(end, 0);
        self.e.b.ins().isub(end, first)
    }

    /// Runs `body` for every block row of `first .. end` that has edges, with the edge record set for it.
    fn for_edge_rows(&mut self, first: Value, end: Value, body: impl FnOnce(&mut Self, Row)) {
        self.for_range(first, end, 1, |kernel, t| {
            let row = kernel.row(t, t);
            let edges = kernel.edges_in(row);
            kernel.if_else(
                edges,
                |kernel| {
                    kernel.begin_edges(row);
                    body(kernel, row);
                },
                |_| {},
            );
        });
    }

    /// Sets the fields of the edge record that change with the row.
    fn begin_edges(&mut self, row: Row) {
        let record = self.records.edge;
        let q = self.arg(offset_of!(KernelArgs, q));
        let q_stride = self.arg(offset_of!(KernelArgs, q_stride));
        let (q, rows) = self.rows_of(row, q, q_stride, self.element);
        self.set(record, offset_of!(EdgeCall, q), q);
        self.set(record, offset_of!(EdgeCall, q_rows), rows);
        self.set(record, offset_of!(EdgeCall, rows), row.count);
        let offsets = self.section(Section::EdgeOffsets);
        let offsets = self.e.offset(offsets, row.place, size_of::<u32>() as i64);
        self.set(record, offset_of!(EdgeCall, offsets), offsets);
        self.set(record, offset_of!(EdgeCall, acc), row.acc);
    }

    /// Scores of the row's scattered edges into `s`, with the row maxima.
    fn edge_scores(&mut self, s: Value) {
        let record = self.records.edge;
        let k = self.arg(offset_of!(KernelArgs, k));
        let k_stride = self.arg(offset_of!(KernelArgs, k_stride));
        // Score mods take the maximum after them; what the tile finds goes where the next update writes anyway.
        let mods = self.plan.mods.is_some();
        let max = self.local(if mods { self.scratch.correction } else { self.scratch.max });
        self.set(record, offset_of!(EdgeCall, kv), k);
        self.set(record, offset_of!(EdgeCall, kv_stride), k_stride);
        self.set(record, offset_of!(EdgeCall, s), s);
        self.set(record, offset_of!(EdgeCall, max), max);
        self.call(TileFn::EdgeScore, record);
        if mods {
            self.mods_edges(s);
        }
    }

    /// Probabilities of the edges scored last, and their sums.
    fn edge_exp(&mut self) {
        let record = self.records.edge;
        let reference = self.local(self.scratch.reference);
        let sum = self.local(self.scratch.sum);
        self.set(record, offset_of!(EdgeCall, max), reference);
        self.set(record, offset_of!(EdgeCall, sum), sum);
        self.call(TileFn::EdgeExp, record);
    }

    /// Starts the row's sums with the values of its scattered edges.
    fn edge_values(&mut self, s: Value, v: Value, v_stride: Value) {
        let record = self.records.edge;
        self.set(record, offset_of!(EdgeCall, s), s);
        self.set(record, offset_of!(EdgeCall, kv), v);
        self.set(record, offset_of!(EdgeCall, kv_stride), v_stride);
        self.set_int(record, offset_of!(EdgeCall, accumulate), 0);
        self.call(TileFn::EdgeValue, record);
    }

    /// `flash`: scores, probabilities and, where the hop `applies`, values of a batch's edges.
    pub fn flash_edges(&mut self, first: Value, end: Value, applies: bool) {
        self.for_edge_rows(first, end, |kernel, row| {
            kernel.begin_mods(row);
            kernel.begin_statistics();
            let s = kernel.batch_edges(row);
            kernel.edge_scores(s);
            kernel.update(row);
            kernel.edge_exp();
            kernel.keep_statistics(row);
        });
        if applies {
            self.for_edge_rows(first, end, |kernel, row| kernel.flash_edge_values(row));
        }
    }

    fn flash_edge_values(&mut self, row: Row) {
        let s = self.batch_edges(row);
        let v = self.arg(offset_of!(KernelArgs, v));
        let v_stride = self.arg(offset_of!(KernelArgs, v_stride));
        self.edge_values(s, v, v_stride);
    }

    /// `flash`: starts a row from what its edges left behind. A row that is done again does their values again, since
    /// the first attempt has added to them.
    pub fn start_from_edges(&mut self, row: Row, applies: bool, redo: bool) {
        if !self.has_edges() {
            return;
        }
        let edges = self.edges_in(row);
        self.if_else(
            edges,
            |kernel| {
                kernel.fetch_statistics(row, STATISTICS);
                if applies {
                    kernel.set_int(kernel.records.value, offset_of!(ValueCall, accumulate), 1);
                    kernel.once_more(redo, |kernel| {
                        kernel.begin_edges(row);
                        kernel.flash_edge_values(row);
                    });
                }
            },
            |_| {},
        );
    }

    /// `resident`: scores of a batch's edges, into the stored probabilities, and their maxima.
    pub fn stored_edge_scores(&mut self, first: Value, end: Value) {
        self.for_edge_rows(first, end, |kernel, row| {
            kernel.begin_mods(row);
            kernel.begin_statistics();
            let s = kernel.stored_edges(row);
            kernel.edge_scores(s);
            kernel.keep_statistics(row);
        });
    }

    /// `resident`: the row's maxima start with those of its edges.
    pub fn start_from_edge_maxima(&mut self, row: Row) {
        if self.has_edges() {
            let edges = self.edges_in(row);
            self.if_else(edges, |kernel| kernel.fetch_statistics(row, 1), |_| {});
        }
    }

    /// `resident`: probabilities of the row's edges, and their sums.
    pub fn stored_edge_exp(&mut self, row: Row) {
        if self.has_edges() {
            let edges = self.edges_in(row);
            self.if_else(
                edges,
                |kernel| {
                    kernel.begin_edges(row);
                    let s = kernel.stored_edges(row);
                    kernel.set(kernel.records.edge, offset_of!(EdgeCall, s), s);
                    kernel.edge_exp();
                },
                |_| {},
            );
        }
    }

    /// `resident`: values of a batch's edges in one hop.
    pub fn stored_edge_values(&mut self, first: Value, end: Value, source: (Value, Value)) {
        self.for_edge_rows(first, end, |kernel, row| kernel.stored_edge_values_of(row, source));
    }

    fn stored_edge_values_of(&mut self, row: Row, source: (Value, Value)) {
        let s = self.stored_edges(row);
        self.edge_values(s, source.0, source.1);
    }

    /// `resident`: starts the row's sums from those of its edges, which are computed again where the row is.
    pub fn start_from_edge_values(&mut self, row: Row, source: (Value, Value), redo: bool) {
        if !self.has_edges() {
            return;
        }
        let edges = self.edges_in(row);
        let some = self.e.b.ins().icmp_imm_u(IntCC::NotEqual, edges, 0);
        let some = self.e.b.ins().uextend(types::I64, some);
        self.set(self.records.value, offset_of!(ValueCall, accumulate), some);
        self.once_more(redo, |kernel| {
            kernel.if_else(
                edges,
                |kernel| {
                    kernel.begin_edges(row);
                    kernel.stored_edge_values_of(row, source);
                },
                |_| {},
            );
        });
    }

    /// Runs `body` where a row is being redone exactly.
    fn once_more(&mut self, redo: bool, body: impl FnOnce(&mut Self)) {
        if redo {
            let exact = self.is_exact();
            self.if_else(exact, body, |_| {});
        }
    }

    /// Where the statistics of a batch's row wait.
    fn waiting(&mut self, row: Row) -> Value {
        let state = self.local(self.scratch.edge_state);
        let place = self.in_batch(row.t);
        self.e.offset(state, place, STATISTICS as i64 * LANE_BYTES)
    }

    /// The arrays that wait, in order.
    fn statistics(&mut self) -> [Value; STATISTICS] {
        [self.scratch.max, self.scratch.old, self.scratch.reference, self.scratch.sum].map(|offset| self.local(offset))
    }

    fn keep_statistics(&mut self, row: Row) {
        let waiting = self.waiting(row);
        for (index, from) in self.statistics().into_iter().enumerate() {
            let to = self.e.b.ins().iadd_imm_s(waiting, index as i64 * LANE_BYTES);
            self.copy_lanes(from, to);
        }
    }

    fn fetch_statistics(&mut self, row: Row, count: usize) {
        let waiting = self.waiting(row);
        for (index, to) in self.statistics().into_iter().take(count).enumerate() {
            let from = self.e.b.ins().iadd_imm_s(waiting, index as i64 * LANE_BYTES);
            self.copy_lanes(from, to);
        }
    }

    fn copy_lanes(&mut self, from: Value, to: Value) {
        let (start, end) = (self.e.int(0), self.e.int(LANE_BYTES));
        self.for_range(start, end, 16, |kernel, lane| {
            let e = &mut kernel.e;
            let [from, to] = [from, to].map(|base| e.b.ins().iadd(base, lane));
            let lanes = e.load(types::F32X4, from, 0);
            e.store(lanes, to, 0);
        });
    }
}

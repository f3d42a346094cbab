//! Scattered edges of `flash`, for a batch of block rows at a time: first all scores and probabilities, then all values.
//!
//! Every edge reads a row of K, and later one of V, for itself alone. Row by row both tensors would pass through L2 in
//! turn; over a batch the edges read one of them at a time, which stays there. The sums of a batch wait in `acc`, where
//! the block rows take them up, with what their online softmax starts from. Strategies that store P need no batches:
//! each of their functions reads one tensor.

use std::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value};

use super::KernelArgs;
use super::kernel::{Kernel, Row};
use super::tables::Section;
use crate::mask::QUERY_BLOCK;
use crate::plan::EDGE_STATISTICS;
use crate::tiles::{BLOCK, EdgeCall, ValueCall};

/// Bytes of one array over the queries of a block row.
const LANE_BYTES: i64 = (QUERY_BLOCK * size_of::<f32>()) as i64;

impl Kernel<'_, '_> {
    /// Whether edges are computed batch by batch.
    pub fn batches_edges(&self) -> bool {
        self.scratch.batch > 1
    }

    /// Number of block row `t` within its batch.
    fn in_batch(&mut self, t: Value) -> Value {
        self.e.b.ins().band_imm_u(t, self.scratch.batch as i64 - 1)
    }

    /// Sums of the value tile for block row `t`.
    pub fn sums_of(&mut self, t: Value) -> Value {
        let acc = self.local(self.scratch.acc);
        if !self.batches_edges() {
            return acc;
        }
        let place = self.in_batch(t);
        self.e.offset(acc, place, (BLOCK * self.scratch.acc_stride * size_of::<f32>()) as i64)
    }

    /// Scores, probabilities and, where the hop `applies`, values of the edges of block rows `first .. end`, which are
    /// of one batch.
    pub fn batch_of_edges(&mut self, first: Value, end: Value, applies: bool) {
        self.for_edge_rows(first, end, |kernel, row| {
            kernel.begin_mods(row);
            kernel.begin_statistics();
            let s = kernel.batch_scores(row);
            kernel.edge_scores(s);
            kernel.update(row);
            kernel.edge_exp(s);
            let waiting = kernel.waiting(row);
            for (index, from) in kernel.statistics().into_iter().enumerate() {
                let to = kernel.e.b.ins().iadd_imm_s(waiting, index as i64 * LANE_BYTES);
                kernel.copy_lanes(row, from, to);
            }
        });
        if applies {
            self.for_edge_rows(first, end, |kernel, row| kernel.batch_values(row));
        }
    }

    /// Starts a row from what its edges left behind. A row that is done again does their values again, since the first
    /// attempt has added to them.
    pub fn start_from_edges(&mut self, row: Row, applies: bool, redo: bool) {
        let edges = self.edges_in(row);
        self.if_else(
            edges,
            |kernel| {
                let waiting = kernel.waiting(row);
                for (index, to) in kernel.statistics().into_iter().enumerate() {
                    let from = kernel.e.b.ins().iadd_imm_s(waiting, index as i64 * LANE_BYTES);
                    kernel.copy_lanes(row, from, to);
                }
                if !applies {
                    return;
                }
                kernel.set_int(kernel.records.value, offset_of!(ValueCall, accumulate), 1);
                if redo {
                    let exact = kernel.is_exact();
                    let again = |kernel: &mut Self| {
                        kernel.begin_edges(row);
                        kernel.batch_values(row);
                    };
                    kernel.if_else(exact, again, |_| {});
                }
            },
            |_| {},
        );
    }

    fn batch_values(&mut self, row: Row) {
        let s = self.batch_scores(row);
        let v = self.arg(offset_of!(KernelArgs, v));
        let v_stride = self.arg(offset_of!(KernelArgs, v_stride));
        self.edge_values(s, v, v_stride);
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
        let offsets = self.edge_offset(row.place);
        self.set(record, offset_of!(EdgeCall, q), q);
        self.set(record, offset_of!(EdgeCall, q_rows), rows);
        self.set(record, offset_of!(EdgeCall, rows), row.count);
        self.set(record, offset_of!(EdgeCall, offsets), offsets);
        self.set(record, offset_of!(EdgeCall, acc), row.acc);
    }

    /// Address of the offset of a place's first edge.
    fn edge_offset(&mut self, place: Value) -> Value {
        let offsets = self.section(Section::EdgeOffsets);
        self.e.offset(offsets, place, size_of::<u32>() as i64)
    }

    /// Edges of the row; 0 where there are none.
    fn edges_in(&mut self, row: Row) -> Value {
        let at = self.edge_offset(row.place);
        let first = self.e.load_u32(at, 0);
        let end = self.e.offset(at, row.count, size_of::<u32>() as i64);
        let end = self.e.load_u32(end, 0);
        self.e.b.ins().isub(end, first)
    }

    /// Where the scores of the row's edges stand, behind those of the batch's rows before it.
    fn batch_scores(&mut self, row: Row) -> Value {
        let at = self.edge_offset(row.place);
        let first = self.e.load_u32(at, 0);
        let start = self.e.b.ins().band_imm_s(row.place, -((self.scratch.batch * QUERY_BLOCK) as i64));
        let at = self.edge_offset(start);
        let start = self.e.load_u32(at, 0);
        let edge = self.e.b.ins().isub(first, start);
        let edges = self.local(self.scratch.edges);
        self.e.offset(edges, edge, size_of::<f32>() as i64)
    }

    /// Where the statistics of a batch's row wait.
    fn waiting(&mut self, row: Row) -> Value {
        let statistics = self.local(self.scratch.edge_statistics);
        let place = self.in_batch(row.t);
        self.e.offset(statistics, place, EDGE_STATISTICS as i64 * LANE_BYTES)
    }

    /// The arrays that wait, in order.
    fn statistics(&mut self) -> [Value; EDGE_STATISTICS] {
        [self.scratch.max, self.scratch.old, self.scratch.reference, self.scratch.sum].map(|offset| self.local(offset))
    }
}

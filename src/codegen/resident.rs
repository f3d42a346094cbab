//! `resident`: probabilities of all block rows stored once, then one SpMM per hop.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::KernelArgs;
use super::kernel::{Kernel, Row};
use super::softmax::Output;
use super::steps::{Panel, StepKind};
use super::tables::Section;
use crate::tiles::LANES;

/// Writes the function that stores P, unnormalised, and 1 / its row sums.
pub(super) fn write_probabilities(mut kernel: Kernel<'_, '_>) {
    kernel.fill_records();
    kernel.for_rows(Kernel::stored_edge_scores, |kernel, row, steps| {
        kernel.begin_row(row, steps);
        kernel.start_from_edge_maxima(row);
        let panel = kernel.stored_panel(row);
        // The whole row's maximum first: nothing of P is corrected later.
        kernel.for_steps(row, steps, |kernel, step| match step {
            StepKind::Joint(source) => {
                kernel.for_pieces(row, source, |kernel, piece| kernel.score_piece(row, panel, piece));
            }
            StepKind::Stream(_) => {}
        });
        kernel.update(row);
        kernel.stored_edge_exp(row);
        kernel.for_steps(row, steps, |kernel, step| match step {
            StepKind::Joint(source) => {
                kernel.for_pieces(row, source, |kernel, piece| kernel.exp_piece(panel, piece));
            }
            StepKind::Stream(_) => {}
        });
        let sum = kernel.local(kernel.scratch.sum);
        let inverse = kernel.inverse(row);
        kernel.invert(row, sum, inverse, None);
        kernel.store_statistics(row);
    });
    kernel.finish();
}

/// Writes the function of one hop: `Z' = step · A Z + restart · V`, from V or a buffer of Z, into the other
/// buffer or the output.
pub(super) fn write_hop(mut kernel: Kernel<'_, '_>) {
    kernel.fill_records();
    let hop = kernel.arg(offset_of!(KernelArgs, hop));
    let (step, restart) = kernel.hop_factors(hop);
    let zero = kernel.e.b.ins().f32const(0.0);
    let applies = kernel.e.b.ins().fcmp(FloatCC::NotEqual, step, zero);
    let source = kernel.hop_source(hop);
    let target = kernel.hop_target(hop);
    kernel.widen_hop(hop);
    let edges = |kernel: &mut Kernel<'_, '_>, first, end| {
        kernel.if_else(applies, |kernel| kernel.stored_edge_values(first, end, source), |_| {});
    };
    kernel.for_rows(edges, |kernel, row, steps| {
        let redo = kernel.has_masks(steps);
        let factor = kernel.local(kernel.scratch.factor);
        let inverse = kernel.inverse(row);
        kernel.scale_lanes(row, inverse, factor, step);
        let panel = kernel.stored_panel(row);
        let fused = kernel.ends_in_run(steps);
        let output = Output { out: target.0, out_stride: target.1, restart };
        kernel.redo_if_not_finite(redo, |kernel| {
            kernel.begin_values(row);
            kernel.if_else(
                applies,
                |kernel| {
                    kernel.start_from_edge_values(row, source, redo);
                    kernel.for_steps(row, steps, |kernel, step| match step {
                        StepKind::Joint(runs) => {
                            let output = (fused && runs.is_last()).then_some(output);
                            kernel.values(row, panel, runs, source, redo, output);
                        }
                        StepKind::Stream(_) => {}
                    });
                },
                |kernel| {
                    if fused {
                        kernel.write_output(row, output);
                    }
                },
            );
            if !fused {
                kernel.write_output(row, output);
            }
        });
    });
    kernel.finish();
}

impl Kernel<'_, '_> {
    /// The row's panel of stored probabilities.
    fn stored_panel(&mut self, row: Row) -> Panel {
        let table = self.section(Section::StoredPanels);
        let entry = self.e.offset(table, row.t, 16);
        let start = self.e.field(entry, 0);
        let keys = self.e.field(entry, 8);
        let panels = self.section(Section::SharedPanels);
        let shared = self.shared(0);
        let panels = self.e.b.ins().iadd(shared, panels);
        let base = self.e.offset(panels, start, 4);
        let padded = self.e.b.ins().bor_imm_u(keys, 1);
        let stride = self.e.b.ins().ishl_imm_u(padded, i64::from(LANES.trailing_zeros()));
        Panel { base, stride }
    }

    /// Where the row's edge probabilities are stored.
    pub fn stored_edges(&mut self, row: Row) -> Value {
        let offsets = self.section(Section::EdgeOffsets);
        let at = self.e.offset(offsets, row.place, 4);
        let first = self.e.load_u32(at, 0);
        let edges = self.section(Section::SharedEdges);
        let shared = self.shared(0);
        let edges = self.e.b.ins().iadd(shared, edges);
        self.e.offset(edges, first, 4)
    }

    /// Where 1 / the row sums of the row are stored.
    fn inverse(&mut self, row: Row) -> Value {
        let inverse = self.shared(self.scratch.inverse);
        self.e.offset(inverse, row.place, 4)
    }

    /// Row 0 of what a hop reads, and its stride: V first, then the buffers of Z in turn.
    fn hop_source(&mut self, hop: Value) -> (Value, Value) {
        let v = self.arg(offset_of!(KernelArgs, v));
        let v_stride = self.arg(offset_of!(KernelArgs, v_stride));
        let before = self.e.b.ins().iadd_imm_s(hop, -1);
        let z = self.z_buffer(before);
        let is_first = self.e.b.ins().icmp_imm_u(IntCC::Equal, hop, 0);
        let stride = self.e.int(self.scratch.acc_stride as i64);
        (self.e.b.ins().select(is_first, v, z), self.e.b.ins().select(is_first, v_stride, stride))
    }

    /// Row 0 of what a hop writes, and its stride: the buffers of Z in turn, the output last.
    fn hop_target(&mut self, hop: Value) -> (Value, Value) {
        let out = self.arg(offset_of!(KernelArgs, out));
        let out_stride = self.arg(offset_of!(KernelArgs, out_stride));
        let z = self.z_buffer(hop);
        let last = self.plan.hops.len() as i64 - 1;
        let is_last = self.e.b.ins().icmp_imm_u(IntCC::Equal, hop, last);
        let stride = self.e.int(self.scratch.acc_stride as i64);
        (self.e.b.ins().select(is_last, out, z), self.e.b.ins().select(is_last, out_stride, stride))
    }

    /// The buffer that hop `hop` writes.
    fn z_buffer(&mut self, hop: Value) -> Value {
        let [even, odd] = self.scratch.z.map(|offset| self.shared(offset));
        let parity = self.e.b.ins().band_imm_u(hop, 1);
        let parity = self.e.b.ins().ireduce(types::I8, parity);
        self.e.b.ins().select(parity, odd, even)
    }
}

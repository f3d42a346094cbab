//! `flash`: one hop, online softmax over the steps of a block row, P never stored.

use std::mem::offset_of;

use cranelift_codegen::ir::InstBuilder;

use super::KernelArgs;
use super::kernel::{Kernel, Row};
use super::softmax::Output;
use super::steps::{Panel, StepKind};
use crate::plan::CHUNK_KEYS;

/// Writes the function.
pub(super) fn write(mut kernel: Kernel<'_, '_>) {
    kernel.fill_records();
    kernel.widen_parts();
    // Row by row: pack, then step by step scores, maxima, exponentials and values, then the output.
    let applies = kernel.plan.hops[0].step != 0.0;
    let edges = |kernel: &mut Kernel<'_, '_>, first, end| kernel.flash_edges(first, end, applies);
    kernel.for_rows(edges, |kernel, row, steps| {
        let redo = applies && kernel.has_masks(steps);
        kernel.redo_if_not_finite(redo, |kernel| {
            kernel.begin_row(row, steps);
            kernel.start_from_edges(row, applies, redo);
            let fused = applies && kernel.ends_in_run(steps);
            kernel.for_steps(row, steps, |kernel, step| kernel.flash_step(row, step, applies, redo, fused));
            if !fused {
                let output = kernel.flash_output(row);
                kernel.write_output(row, output);
            }
        });
        kernel.store_statistics(row);
    });
    kernel.finish();
}

impl<'p> Kernel<'_, 'p> {
    fn flash_step(&mut self, row: Row, step: StepKind<'p>, applies: bool, redo: bool, fused: bool) {
        let base = self.local(self.scratch.panel);
        let stride = self.e.int(self.scratch.panel_stride as i64);
        let panel = Panel { base, stride };
        let v = self.arg(offset_of!(KernelArgs, v));
        let v_stride = self.arg(offset_of!(KernelArgs, v_stride));
        match step {
            StepKind::Joint(source) => {
                self.for_pieces(row, source, |kernel, piece| kernel.score_piece(row, panel, piece));
                self.update(row);
                self.for_pieces(row, source, |kernel, piece| kernel.exp_piece(panel, piece));
                if applies {
                    self.rescale(row);
                    // The row's sums are final before its last values: its factor is known when they are added.
                    let output = (fused && source.is_last()).then(|| self.flash_output(row));
                    self.values(row, panel, source, (v, v_stride), redo, output);
                }
            }
            StepKind::Stream(stretch) => {
                let (start, len) = self.stretch(row, stretch);
                let end = self.e.b.ins().iadd(start, len);
                let most = self.e.int(i64::from(CHUNK_KEYS));
                self.for_range(start, end, i64::from(CHUNK_KEYS), |kernel, key| {
                    let left = kernel.e.b.ins().isub(end, key);
                    let len = kernel.e.b.ins().smin(left, most);
                    let chunk = kernel.chunk(key, len);
                    kernel.score_piece(row, panel, chunk);
                    kernel.update(row);
                    kernel.exp_piece(panel, chunk);
                    if applies {
                        kernel.rescale(row);
                        kernel.value_run(panel, chunk, v, v_stride);
                    }
                });
            }
        }
    }

    /// The factors of the row's output, from its sums, and where it goes.
    fn flash_output(&mut self, row: Row) -> Output {
        let hop = self.plan.hops[0];
        let sum = self.local(self.scratch.sum);
        let factor = self.local(self.scratch.factor);
        self.invert(row, sum, factor, Some(hop.step as f32));
        let out = self.arg(offset_of!(KernelArgs, out));
        let out_stride = self.arg(offset_of!(KernelArgs, out_stride));
        let restart = self.e.b.ins().f32const(hop.restart as f32);
        Output { out, out_stride, restart }
    }
}

//! `flash`: one hop, online softmax over the steps of a block row, P never stored. The first hop of `recompute` is the
//! same, and keeps what the others need of its softmax.

use std::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value};

use super::kernel::{Kernel, Row, Steps};
use super::softmax::Output;
use super::steps::{Panel, StepKind};
use super::{KernelArgs, TileFn};
use crate::plan::Walk;
use crate::tiles::{EdgeCall, ValueCall};

/// Writes the function.
pub(super) fn write<'p>(mut kernel: Kernel<'_, 'p>) {
    kernel.fill_records();
    let recomputes = kernel.plan.walk == Walk::Recompute;
    if recomputes {
        let hop = kernel.arg(offset_of!(KernelArgs, hop));
        kernel.widen_hop(hop);
    } else {
        kernel.widen_parts();
    }
    // Row by row: pack, then step by step scores, maxima, exponentials and values, then the output.
    let applies = kernel.plan.hops[0].step != 0.0;
    let batches = kernel.batches_edges();
    let write_row = |kernel: &mut Kernel<'_, 'p>, row: Row, steps: Steps<'p>| {
        let redo = applies && kernel.has_masks(steps);
        kernel.redo_if_not_finite(redo, |kernel| {
            kernel.begin_row(row, steps);
            if batches {
                kernel.start_from_edges(row, applies, redo);
            }
            let fused = applies && kernel.ends_in_run(steps);
            kernel.for_steps(row, steps, |kernel, step| kernel.flash_step(row, step, applies, redo, fused));
            if !fused {
                let output = kernel.flash_output(row);
                kernel.write_output(row, output);
            }
        });
        if recomputes {
            kernel.keep_statistics(row);
        }
        kernel.store_statistics(row);
    };
    if batches {
        kernel.for_batches(|kernel, first, end| kernel.batch_of_edges(first, end, applies), write_row);
    } else {
        kernel.for_rows(write_row);
    }
    kernel.finish();
}

impl<'p> Kernel<'_, 'p> {
    fn flash_step(&mut self, row: Row, step: StepKind<'p>, applies: bool, redo: bool, fused: bool) {
        let panel = self.local_panel();
        let v = self.arg(offset_of!(KernelArgs, v));
        let v_stride = self.arg(offset_of!(KernelArgs, v_stride));
        match step {
            // They came first.
            StepKind::Edges if self.batches_edges() => {}
            StepKind::Edges => {
                let s = self.local(self.scratch.edges);
                self.edge_scores(s);
                self.update(row);
                self.edge_exp(s);
                if applies {
                    // The first step of a row: sums start here.
                    self.edge_values(s, v, v_stride);
                }
            }
            StepKind::Joint(source) => {
                self.for_pieces(row, source, |kernel, piece| kernel.score_piece(row, panel, piece));
                let first = source.is_first();
                if first {
                    self.first_update(row)
                } else {
                    self.update(row)
                }
                self.for_pieces(row, source, |kernel, piece| kernel.exp_piece(panel, piece));
                if applies {
                    if !first {
                        self.rescale(row);
                    }
                    // The row's sums are final before its last values: its factor is known when they are added.
                    let output = (fused && source.is_last()).then(|| self.flash_output(row));
                    self.values(row, panel, source, (v, v_stride), redo, output);
                }
            }
            StepKind::Stream(stretch) => self.for_chunks(row, stretch, |kernel, chunk| {
                kernel.score_piece(row, panel, chunk);
                kernel.update(row);
                kernel.exp_piece(panel, chunk);
                if applies {
                    kernel.rescale(row);
                    kernel.value_run(row, panel, chunk, v, v_stride);
                }
            }),
        }
    }

    /// The factors of the row's output, from its sums, and where it goes.
    fn flash_output(&mut self, row: Row) -> Output {
        let hop = self.plan.hops[0];
        let sum = self.local(self.scratch.sum);
        let factor = self.local(self.scratch.factor);
        self.invert(row, sum, factor, Some(hop.step as f32));
        let out = self.arg(offset_of!(KernelArgs, target));
        let out_stride = self.arg(offset_of!(KernelArgs, target_stride));
        let restart = self.e.b.ins().f32const(hop.restart as f32);
        Output { out, out_stride, restart }
    }

    /// The worker's own panel.
    pub fn local_panel(&mut self) -> Panel {
        let base = self.local(self.scratch.panel);
        let stride = self.e.int(self.scratch.panel_stride as i64);
        Panel { base, stride }
    }

    /// Scores of the row's scattered edges into `s`, with the row maxima.
    pub fn edge_scores(&mut self, s: Value) {
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
            if self.is_gradient_pass {
                self.keep_raw_edges(s);
            }
            self.mods_edges(s);
        }
    }

    /// Probabilities of the edges scored last, which stand in `s`, and their sums.
    pub fn edge_exp(&mut self, s: Value) {
        let record = self.records.edge;
        let reference = self.local(self.scratch.reference);
        let sum = self.local(self.scratch.sum);
        self.set(record, offset_of!(EdgeCall, max), reference);
        self.set(record, offset_of!(EdgeCall, sum), sum);
        self.call(TileFn::EdgeExp, record);
        self.drop_edges(s);
    }

    /// Starts the row's sums with the values of its scattered edges.
    pub fn edge_values(&mut self, s: Value, v: Value, v_stride: Value) {
        self.edge_values_by(TileFn::EdgeValue, s, v, v_stride);
    }

    /// The same by another tile.
    pub fn edge_values_by(&mut self, tile: TileFn, s: Value, v: Value, v_stride: Value) {
        let record = self.records.edge;
        self.set(record, offset_of!(EdgeCall, s), s);
        self.set(record, offset_of!(EdgeCall, kv), v);
        self.set(record, offset_of!(EdgeCall, kv_stride), v_stride);
        self.set_int(record, offset_of!(EdgeCall, accumulate), 0);
        self.call(tile, record);
        self.set_int(self.records.value, offset_of!(ValueCall, accumulate), 1);
    }
}

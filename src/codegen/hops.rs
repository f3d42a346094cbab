//! Strategies that store P: probabilities of block rows, then one SpMM per hop.
//!
//! `resident` has a panel for every block row. A sweep has a ring of them: block row `t` stands in slot `t` modulo the
//! number of slots.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};

use super::kernel::{Kernel, Row, Steps};
use super::softmax::Output;
use super::steps::{Panel, StepKind};
use super::tables::Section;
use super::{KernelArgs, TileFn};
use crate::mask::QUERY_BLOCK;
use crate::plan::Walk;
use crate::tiles::half_panel::PanelCall;
use crate::tiles::{ExpCall, LANES};

/// Writes the function that stores P, unnormalised, and 1 / its row sums.
pub(super) fn write_probabilities(mut kernel: Kernel<'_, '_>) {
    kernel.fill_records();
    kernel.for_rows(|kernel, row, steps| {
        kernel.begin_row(row, steps);
        let panel = kernel.wide_panel(row);
        // The whole row's maximum first: nothing of P is corrected later.
        kernel.for_steps(row, steps, |kernel, step| match step {
            StepKind::Edges => {
                let s = kernel.stored_edges(row);
                kernel.edge_scores(s);
            }
            StepKind::Joint(source) => {
                kernel.for_pieces(row, source, |kernel, piece| kernel.score_piece(row, panel, piece));
            }
            StepKind::Stream(_) => {}
        });
        kernel.first_update(row);
        if !kernel.plan.store.is_f32() {
            // What is summed is what is stored, and not yet known: these sums go where nothing reads them.
            let unused = kernel.local(kernel.scratch.correction);
            kernel.set(kernel.records.exp, offset_of!(ExpCall, sum), unused);
        }
        kernel.for_steps(row, steps, |kernel, step| match step {
            StepKind::Edges => {
                let s = kernel.stored_edges(row);
                kernel.edge_exp(s);
            }
            StepKind::Joint(source) => {
                kernel.for_pieces(row, source, |kernel, piece| kernel.exp_piece(panel, piece));
            }
            StepKind::Stream(_) => {}
        });
        kernel.half_panel(row, TileFn::NarrowPanel);
        let sum = kernel.local(kernel.scratch.sum);
        let inverse = kernel.lanes_of(row, kernel.scratch.inverse);
        kernel.invert(row, sum, inverse, None);
        kernel.store_statistics(row);
    });
    kernel.finish();
}

/// Writes the function of one hop: `target = step · A source + restart · V`.
pub(super) fn write_hop(mut kernel: Kernel<'_, '_>) {
    kernel.fill_records();
    let hop = Hop::begin(&mut kernel);
    kernel.for_rows(|kernel, row, steps| {
        kernel.half_panel(row, TileFn::WidenPanel);
        kernel.hop_row(row, steps, hop, |kernel, step, redo, output| {
            let panel = kernel.wide_panel(row);
            match step {
                StepKind::Edges => {
                    let s = kernel.stored_edges(row);
                    kernel.edge_values(s, hop.source.0, hop.source.1);
                }
                StepKind::Joint(runs) => kernel.values(row, panel, runs, hop.source, redo, output),
                StepKind::Stream(_) => {}
            }
        });
    });
    kernel.finish();
}

/// Writes the function that moves the rows `first_row .. end_row` of the source (rows, not block rows) to the target:
/// the newest rows of a Z, to the front of their buffer.
pub(super) fn write_slide(mut kernel: Kernel<'_, '_>) {
    let [from, to, first, end] = [
        offset_of!(KernelArgs, source),
        offset_of!(KernelArgs, target),
        offset_of!(KernelArgs, first_row),
        offset_of!(KernelArgs, end_row),
    ]
    .map(|field| kernel.arg(field));
    let row_bytes = (kernel.scratch.acc_stride * size_of::<f32>()) as i64;
    let [first, end] = [first, end].map(|row| kernel.e.b.ins().imul_imm_s(row, row_bytes));
    let bytes = kernel.e.b.ins().isub(end, first);
    let [from, to] = [from, to].map(|base| kernel.e.b.ins().iadd(base, first));
    kernel.e.move_bytes(to, from, bytes);
    kernel.finish();
}

/// What the rows of a hop share.
#[derive(Clone, Copy)]
pub(super) struct Hop {
    /// Row 0 of what is read, and elements to the next row.
    pub source: (Value, Value),
    target: (Value, Value),
    step: Value,
    restart: Value,
    /// Whether the step is not 0: a hop without it reads nothing.
    applies: Value,
}

impl Hop {
    /// Reads the call's arguments.
    pub fn begin(kernel: &mut Kernel<'_, '_>) -> Self {
        let hop = kernel.arg(offset_of!(KernelArgs, hop));
        let (step, restart) = kernel.hop_factors(hop);
        let zero = kernel.e.b.ins().f32const(0.0);
        let applies = kernel.e.b.ins().fcmp(FloatCC::NotEqual, step, zero);
        let [source, source_stride, target, target_stride] = [
            offset_of!(KernelArgs, source),
            offset_of!(KernelArgs, source_stride),
            offset_of!(KernelArgs, target),
            offset_of!(KernelArgs, target_stride),
        ]
        .map(|field| kernel.arg(field));
        kernel.widen_hop(hop);
        Self { source: (source, source_stride), target: (target, target_stride), step, restart, applies }
    }
}

impl<'p> Kernel<'_, 'p> {
    /// One block row of a hop; `body` adds a step's values, and is told whether the row may be redone and where the
    /// row's last run writes.
    pub fn hop_row(
        &mut self,
        row: Row,
        steps: Steps<'p>,
        hop: Hop,
        body: impl Fn(&mut Self, StepKind<'p>, bool, Option<Output>),
    ) {
        let redo = self.has_masks(steps);
        let factor = self.local(self.scratch.factor);
        let inverse = self.lanes_of(row, self.scratch.inverse);
        self.scale_lanes(row, inverse, factor, hop.step);
        let fused = self.ends_in_run(steps);
        let output = Output { out: hop.target.0, out_stride: hop.target.1, restart: hop.restart };
        self.redo_if_not_finite(redo, |kernel| {
            kernel.begin_values(row);
            kernel.if_else(
                hop.applies,
                |kernel| {
                    kernel.bring_next_outputs_near(row, hop.target);
                    kernel.for_steps(row, steps, |kernel, step| {
                        let last = matches!(step, StepKind::Joint(runs) if fused && runs.is_last());
                        body(kernel, step, redo, last.then_some(output));
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
    }

    /// The row's 64 floats in an array of the head: by place, or by slot of the ring.
    pub fn lanes_of(&mut self, row: Row, offset: usize) -> Value {
        let base = self.shared(offset);
        let slot = self.slot(row);
        self.e.offset(base, slot, (QUERY_BLOCK * size_of::<f32>()) as i64)
    }

    /// Where in the head's arrays the row stands.
    fn slot(&mut self, row: Row) -> Value {
        if self.plan.walk != Walk::Sweep {
            return row.t;
        }
        match self.plan.ring_slots() {
            1 => self.e.int(0),
            slots => {
                let slots = self.e.int(slots as i64);
                self.e.b.ins().urem(row.t, slots)
            }
        }
    }

    /// The row's panel of probabilities in f32: the stored one, or the worker's copy of it.
    fn wide_panel(&mut self, row: Row) -> Panel {
        if self.plan.store.is_f32() { self.stored_panel(row) } else { self.local_panel() }
    }

    /// Where P is stored in bf16: rounds the worker's panel into the stored one, or reads it back.
    fn half_panel(&mut self, row: Row, tile: TileFn) {
        if self.plan.store.is_f32() {
            return;
        }
        let record = self.records.panel;
        let (wide, half) = (self.local_panel(), self.stored_panel(row));
        let table = self.section(Section::StoredPanels);
        let entry = self.e.offset(table, row.t, 16);
        let keys = self.e.field(entry, 8);
        let sum = self.local(self.scratch.sum);
        for (field, value) in [
            (offset_of!(PanelCall, wide), wide.base),
            (offset_of!(PanelCall, wide_stride), wide.stride),
            (offset_of!(PanelCall, half), half.base),
            (offset_of!(PanelCall, half_stride), half.stride),
            (offset_of!(PanelCall, nkeys), keys),
            (offset_of!(PanelCall, groups), row.groups),
            (offset_of!(PanelCall, sum), sum),
        ] {
            self.set(record, field, value);
        }
        self.call(tile, record);
    }

    /// The row's panel of stored probabilities.
    pub fn stored_panel(&mut self, row: Row) -> Panel {
        let panels = self.shared(self.scratch.stored);
        let bytes = self.plan.store.bytes() as i64;
        if self.plan.walk == Walk::Sweep {
            let slot = self.slot(row);
            let stride = self.e.int(self.scratch.panel_stride as i64);
            let floats = (self.scratch.panel_stride * (QUERY_BLOCK / LANES)) as i64;
            let base = self.e.offset(panels, slot, floats * bytes);
            return Panel { base, stride };
        }
        let table = self.section(Section::StoredPanels);
        let entry = self.e.offset(table, row.t, 16);
        let start = self.e.field(entry, 0);
        let keys = self.e.field(entry, 8);
        let base = self.e.offset(panels, start, bytes);
        let padded = self.e.b.ins().bor_imm_u(keys, 1);
        let stride = self.e.b.ins().ishl_imm_u(padded, i64::from(LANES.trailing_zeros()));
        Panel { base, stride }
    }

    /// Where the row's edge probabilities are stored.
    pub fn stored_edges(&mut self, row: Row) -> Value {
        let edges = self.shared(self.scratch.stored_edges);
        if self.plan.walk == Walk::Sweep {
            let slot = self.slot(row);
            return self.e.offset(edges, slot, (self.scratch.edge_slot * size_of::<f32>()) as i64);
        }
        let offsets = self.section(Section::EdgeOffsets);
        let at = self.e.offset(offsets, row.place, 4);
        let first = self.e.load_u32(at, 0);
        self.e.offset(edges, first, 4)
    }
}

//! Kernels for training: the adjoint of a hop, the gradient of P and of the scores, and dropout.
//!
//! A hop backwards takes P from where the hop took it and adds, block row by block row, to the rows of the keys. The
//! gradient's pass computes a block row's P again from its log-sum-exp, beside it the gradient of P by one score tile
//! over the Z of all hops, and from both what q, k and, where there is one hop, v get.

use std::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::kernel::{Bytes, Kernel, Row, Steps};
use super::steps::{Operands, Panel, StepKind};
use super::tables::Section;
use super::{KernelArgs, TileFn, TrainingArgs};
use crate::mask::QUERY_BLOCK;
use crate::tiles::exact::ExactCall;
use crate::tiles::gradient::{Dropped, EdgeGradientCall, GradientCall};
use crate::tiles::mod_gradients::{EdgeModGradientCall, ModGradientCall};
use crate::tiles::transposed::{ScatterCall, TransposedCall};
use crate::tiles::{Ahead, EdgeCall, PackCall, ScoreCall, ValueCall};

/// Addresses of the call records that only kernels for training have.
#[derive(Clone, Copy)]
pub(super) struct TrainingRecords {
    pack: Value,
    score: Value,
    gradient: Value,
    transposed: Value,
    edge: Value,
    edge_gradient: Value,
    scatter: Value,
    mods: Value,
    edge_mods: Value,
}

/// Row 0 of a tensor of f32, and elements to the next row.
type Tensor = (Value, Value);

impl TrainingRecords {
    /// Reserves them by `record`, which takes bytes.
    pub fn new(record: &mut impl FnMut(usize) -> Value) -> Self {
        Self {
            pack: record(size_of::<PackCall>()),
            score: record(size_of::<ScoreCall>()),
            gradient: record(size_of::<GradientCall>()),
            transposed: record(size_of::<TransposedCall>()),
            edge: record(size_of::<EdgeCall>()),
            edge_gradient: record(size_of::<EdgeGradientCall>()),
            scatter: record(size_of::<ScatterCall>()),
            mods: record(size_of::<ModGradientCall>()),
            edge_mods: record(size_of::<EdgeModGradientCall>()),
        }
    }
}

/// Writes the adjoint of a hop: `target += Pᵀ source`, where the source's rows already hold their step and, where P is
/// stored, 1 / row sum.
pub(super) fn write_adjoint_hop(mut kernel: Kernel<'_, '_>) {
    kernel.fill_records();
    let [source, source_stride, target, target_stride] = [
        offset_of!(KernelArgs, source),
        offset_of!(KernelArgs, source_stride),
        offset_of!(KernelArgs, target),
        offset_of!(KernelArgs, target_stride),
    ]
    .map(|field| kernel.arg(field));
    let (x, out) = ((source, source_stride), (target, target_stride));
    let stored = kernel.plan.walk.stores_p();
    let dv = kernel.plan.value_dim;
    kernel.for_rows(|kernel, row, steps| {
        if stored {
            kernel.begin_values(row);
            kernel.begin_training(row);
        } else {
            kernel.begin_again(row, steps);
        }
        kernel.for_steps(row, steps, |kernel, step| match step {
            StepKind::Edges => {
                let s = if stored {
                    kernel.stored_edges(row)
                } else {
                    let s = kernel.local(kernel.scratch.edges);
                    kernel.edge_scores(s);
                    kernel.edge_exp(s);
                    s
                };
                kernel.scatter(row, s, x, out, dv);
            }
            StepKind::Joint(source) => {
                let panel = if stored { kernel.stored_panel(row) } else { kernel.local_panel() };
                kernel.for_pieces(row, source, |kernel, piece| {
                    if !stored {
                        kernel.score_piece(row, panel, piece);
                        kernel.exp_piece(panel, piece);
                    }
                    kernel.transposed(row, panel, piece, x, out, dv);
                });
            }
            StepKind::Stream(stretch) => kernel.for_chunks(row, stretch, |kernel, chunk| {
                let panel = kernel.local_panel();
                kernel.score_piece(row, panel, chunk);
                kernel.exp_piece(panel, chunk);
                kernel.transposed(row, panel, chunk, x, out, dv);
            }),
        });
    });
    kernel.finish();
}

/// Writes the gradient's pass: from P and all Z, what q, k and, where the arguments give it, v get.
pub(super) fn write_gradient(mut kernel: Kernel<'_, '_>) {
    kernel.is_gradient_pass = true;
    kernel.drops = false;
    kernel.fill_records();
    let pass = Pass::begin(&mut kernel);
    kernel.for_rows(|kernel, row, steps| {
        kernel.begin_again(row, steps);
        kernel.pack_gradient(row, pass);
        kernel.for_steps(row, steps, |kernel, step| match step {
            StepKind::Edges => kernel.gradient_edges(row, pass),
            StepKind::Joint(source) => {
                kernel.for_pieces(row, source, |kernel, piece| kernel.gradient_piece(row, piece, pass));
                let panel = kernel.gradient_panel();
                kernel.values(row, panel, source, pass.k, true, None);
            }
            StepKind::Stream(stretch) => kernel.for_chunks(row, stretch, |kernel, chunk| {
                kernel.gradient_piece(row, chunk, pass);
                let panel = kernel.gradient_panel();
                let exact = kernel.is_exact();
                kernel.if_else(
                    exact,
                    |kernel| kernel.value_exact(panel, chunk, pass.k.0, pass.k.1),
                    |kernel| {
                        kernel.value_run(row, panel, chunk, pass.k.0, pass.k.1);
                    },
                );
            }),
        });
        kernel.write_query_gradient(row, pass);
    });
    kernel.finish();
}

/// The tensors of the gradient's pass.
#[derive(Clone, Copy)]
struct Pass {
    q: Tensor,
    k: Tensor,
    /// All Z, side by side.
    z: Tensor,
    /// Their gradients, side by side.
    g: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    accumulate: Value,
}

impl Pass {
    /// Reads the call's arguments and sets what no row changes.
    fn begin(kernel: &mut Kernel<'_, '_>) -> Self {
        let [q, q_stride, k, k_stride, z, z_stride, dq, dq_stride] = [
            offset_of!(KernelArgs, q),
            offset_of!(KernelArgs, q_stride),
            offset_of!(KernelArgs, k),
            offset_of!(KernelArgs, k_stride),
            offset_of!(KernelArgs, source),
            offset_of!(KernelArgs, source_stride),
            offset_of!(KernelArgs, target),
            offset_of!(KernelArgs, target_stride),
        ]
        .map(|field| kernel.arg(field));
        let [g, g_stride, dk, dk_stride, dv, dv_stride, accumulate, exact] = [
            offset_of!(TrainingArgs, g),
            offset_of!(TrainingArgs, g_stride),
            offset_of!(TrainingArgs, dk),
            offset_of!(TrainingArgs, dk_stride),
            offset_of!(TrainingArgs, dv),
            offset_of!(TrainingArgs, dv_stride),
            offset_of!(TrainingArgs, accumulate),
            offset_of!(TrainingArgs, exact),
        ]
        .map(|field| kernel.training(field));
        // No row is done again: whether pairs must be left out one by one is known before.
        kernel.e.store(exact, kernel.exact, 0);
        let d = kernel.plan.head_dim as i64;
        let (value, exact_record, edge) = (kernel.records.value, kernel.records.exact, kernel.records.edge);
        kernel.set_int(value, offset_of!(ValueCall, dv), d);
        kernel.set_int(exact_record, offset_of!(ExactCall, dv), d);
        kernel.set_int(exact_record, offset_of!(ExactCall, skip_zeros), 1);
        if kernel.has_edges() {
            kernel.set_int(edge, offset_of!(EdgeCall, dv), d);
        }
        let (ones, one) = (kernel.local(kernel.scratch.factor), kernel.e.constant(1.0));
        for lane in (0..QUERY_BLOCK as i32).step_by(4) {
            kernel.e.store(one, ones, 4 * lane);
        }
        Self {
            q: (q, q_stride),
            k: (k, k_stride),
            z: (z, z_stride),
            g: (g, g_stride),
            dq: (dq, dq_stride),
            dk: (dk, dk_stride),
            dv: (dv, dv_stride),
            accumulate,
        }
    }
}

impl<'p> Kernel<'_, 'p> {
    /// Reads a field of the arguments for training.
    fn training(&mut self, offset: usize) -> Value {
        let args = self.arg(offset_of!(KernelArgs, training));
        self.e.field(args, offset)
    }

    /// Writes the fields of the records for training that are the same in every call.
    pub fn fill_training_records(&mut self) {
        let (Some(records), Some(training)) = (self.records.training, self.plan.training) else { return };
        let depth = self.plan.gradient_depth() as i64;
        let gt = self.local(self.scratch.gradient.gt);
        let g_stride = self.training(offset_of!(TrainingArgs, g_stride));
        let one = self.e.b.ins().f32const(1.0);
        self.set(records.pack, offset_of!(PackCall, q_stride), g_stride);
        self.set_int(records.pack, offset_of!(PackCall, d), depth);
        self.set(records.pack, offset_of!(PackCall, out), gt);
        self.set(records.pack, offset_of!(PackCall, scale), one);
        self.set(records.score, offset_of!(ScoreCall, qt), gt);
        self.set_int(records.score, offset_of!(ScoreCall, d), depth);
        self.set_int(records.score, offset_of!(ScoreCall, max), 0);
        for slot in 0..4 {
            let place = offset_of!(ScoreCall, ahead) + slot * size_of::<Ahead>() + offset_of!(Ahead, count);
            self.set_int(records.score, place, 0);
        }
        let args = self.arg(offset_of!(KernelArgs, training));
        let threshold = self.e.load(types::I32, args, offset_of!(TrainingArgs, threshold) as i32);
        let keep = self.e.load(types::F32, args, offset_of!(TrainingArgs, keep) as i32);
        // With score mods the factor is on what comes before them.
        let scale = if self.plan.mods.is_some() { 1.0 } else { training.scale };
        let scale = self.e.b.ins().f32const(scale);
        let key_step = if self.has_key_steps() { self.section(Section::KeyStep) } else { self.e.int(1) };
        for (record, place, scale_at) in [
            (records.gradient, offset_of!(GradientCall, dropped), offset_of!(GradientCall, scale)),
            (records.edge_gradient, offset_of!(EdgeGradientCall, dropped), offset_of!(EdgeGradientCall, scale)),
        ] {
            self.set(record, scale_at, scale);
            self.set(record, place + offset_of!(Dropped, threshold), threshold);
            self.set(record, place + offset_of!(Dropped, keep), keep);
            self.set(record, place + offset_of!(Dropped, key_step), key_step);
        }
        let exact = self.training(offset_of!(TrainingArgs, exact));
        self.set(records.transposed, offset_of!(TransposedCall, exact), exact);
        self.set(records.transposed, offset_of!(TransposedCall, factor), one);
        if self.has_edges() {
            let keys = self.section(Section::EdgeKeys);
            self.set(records.edge_gradient, offset_of!(EdgeGradientCall, edge_keys), keys);
            let edges = offset_of!(ScatterCall, edges);
            self.set(records.scatter, edges + offset_of!(EdgeCall, edge_keys), keys);
            self.set(records.scatter, edges + offset_of!(EdgeCall, scale), one);
            self.set(records.edge, offset_of!(EdgeCall, edge_keys), keys);
            self.set(records.edge, offset_of!(EdgeCall, scale), one);
            self.set(records.edge, offset_of!(EdgeCall, q_stride), g_stride);
            self.set_int(records.edge, offset_of!(EdgeCall, d), depth);
        }
        self.fill_mod_gradients(training.scale);
    }

    /// Writes the fields of the records of mods backwards that are the same in every call.
    fn fill_mod_gradients(&mut self, scale: f32) {
        let (Some(TrainingRecords { mods, edge_mods, .. }), Some([.., positions])) =
            (self.records.training, self.records.mods)
        else {
            return;
        };
        let head = self.arg(offset_of!(KernelArgs, head));
        let inputs = self.arg(offset_of!(KernelArgs, inputs));
        let gradients = self.training(offset_of!(TrainingArgs, inputs));
        let step = if self.has_key_steps() { self.section(Section::KeyStep) } else { self.e.int(1) };
        let factor = self.e.b.ins().f32const(scale);
        for (field, value) in [
            (offset_of!(ModGradientCall, positions), positions),
            (offset_of!(ModGradientCall, key_step), step),
            (offset_of!(ModGradientCall, head), head),
            (offset_of!(ModGradientCall, inputs), inputs),
            (offset_of!(ModGradientCall, gradients), gradients),
            (offset_of!(ModGradientCall, factor), factor),
        ] {
            self.set(mods, field, value);
        }
        if self.has_edges() {
            let keys = self.section(Section::EdgeKeys);
            for (field, value) in [
                (offset_of!(EdgeModGradientCall, edge_keys), keys),
                (offset_of!(EdgeModGradientCall, positions), positions),
                (offset_of!(EdgeModGradientCall, head), head),
                (offset_of!(EdgeModGradientCall, inputs), inputs),
                (offset_of!(EdgeModGradientCall, gradients), gradients),
                (offset_of!(EdgeModGradientCall, factor), factor),
            ] {
                self.set(edge_mods, field, value);
            }
        }
    }

    /// Sets the fields of those records that change with the row.
    pub fn begin_training(&mut self, row: Row) {
        let Some(records) = self.records.training else { return };
        let lanes = |kernel: &mut Self, field| {
            let base = kernel.training(field);
            let at = kernel.e.offset(base, row.place, 4);
            // Null stays null.
            let none = kernel.e.int(0);
            kernel.e.b.ins().select(base, at, none)
        };
        let delta = lanes(self, offset_of!(TrainingArgs, delta));
        let row_keys = lanes(self, offset_of!(TrainingArgs, row_keys));
        let dropped = offset_of!(GradientCall, dropped) + offset_of!(Dropped, row_keys);
        self.set(records.gradient, offset_of!(GradientCall, delta), delta);
        self.set(records.gradient, offset_of!(GradientCall, groups), row.groups);
        self.set(records.gradient, dropped, row_keys);
        self.set(records.score, offset_of!(ScoreCall, groups), row.groups);
        self.set(records.transposed, offset_of!(TransposedCall, rows), row.count);
        self.set(records.mods, offset_of!(ModGradientCall, groups), row.groups);
        self.set(records.mods, offset_of!(ModGradientCall, count), row.count);
        if self.has_edges() {
            let offsets = self.section(Section::EdgeOffsets);
            let offsets = self.e.offset(offsets, row.place, size_of::<u32>() as i64);
            let edges = offset_of!(ScatterCall, edges);
            for (record, offsets_at, rows_at) in [
                (records.edge_gradient, offset_of!(EdgeGradientCall, offsets), offset_of!(EdgeGradientCall, rows)),
                (records.scatter, edges + offset_of!(EdgeCall, offsets), edges + offset_of!(EdgeCall, rows)),
                (records.edge, offset_of!(EdgeCall, offsets), offset_of!(EdgeCall, rows)),
                (records.edge_mods, offset_of!(EdgeModGradientCall, offsets), offset_of!(EdgeModGradientCall, rows)),
            ] {
                self.set(record, offsets_at, offsets);
                self.set(record, rows_at, row.count);
            }
            let dropped = offset_of!(EdgeGradientCall, dropped) + offset_of!(Dropped, row_keys);
            self.set(records.edge_gradient, offset_of!(EdgeGradientCall, delta), delta);
            self.set(records.edge_gradient, dropped, row_keys);
        }
    }

    /// Begins a row whose softmax is computed again from its log-sum-exp, which leaves P normalised.
    fn begin_again(&mut self, row: Row, steps: Steps<'p>) {
        self.begin_row(row, steps);
        let references = self.training(offset_of!(TrainingArgs, references));
        let references = self.e.offset(references, row.place, 4);
        let reference = self.local(self.scratch.reference);
        self.copy_lanes(row, references, reference);
    }

    /// Drops weights of a piece of a panel, as the call's rate says.
    pub fn drop_piece(&mut self, panel: Panel, piece: Operands) {
        self.dropped(|kernel, record| {
            kernel.set_int(record, offset_of!(GradientCall, dp), 0);
            kernel.gradient_record(panel, piece);
            kernel.call(TileFn::Gradient, record);
        });
    }

    /// Drops weights of the row's edges.
    pub fn drop_edges(&mut self, s: Value) {
        let Some(TrainingRecords { edge_gradient: record, .. }) = self.records.training else { return };
        self.dropped(|kernel, _| {
            kernel.set_int(record, offset_of!(EdgeGradientCall, dp), 0);
            kernel.set(record, offset_of!(EdgeGradientCall, p), s);
            kernel.call(TileFn::EdgeGradient, record);
        });
    }

    /// Runs `body` with the record of the panel's gradient where the call drops weights.
    fn dropped(&mut self, body: impl FnOnce(&mut Self, Value)) {
        let Some(TrainingRecords { gradient: record, .. }) = self.records.training else { return };
        if !self.drops {
            return;
        }
        let row_keys = self.training(offset_of!(TrainingArgs, row_keys));
        self.if_else(row_keys, |kernel| body(kernel, record), |_| {});
    }

    fn gradient_record(&mut self, panel: Panel, piece: Operands) {
        let Some(TrainingRecords { gradient: record, .. }) = self.records.training else { return };
        let dropped = offset_of!(GradientCall, dropped);
        let p = self.panel_at(panel.base, piece.at);
        self.set(record, offset_of!(GradientCall, p), p);
        self.set(record, offset_of!(GradientCall, stride), panel.stride);
        self.set(record, offset_of!(GradientCall, nkeys), piece.len);
        self.set(record, dropped + offset_of!(Dropped, keys), piece.list);
        self.set(record, dropped + offset_of!(Dropped, first_key), piece.start);
    }

    /// The worker's panel of gradients.
    fn gradient_panel(&mut self) -> Panel {
        let base = self.local(self.scratch.gradient.panel);
        let stride = self.e.int(self.scratch.panel_stride as i64);
        Panel { base, stride }
    }

    /// Packs the row's gradients of Z.
    fn pack_gradient(&mut self, row: Row, pass: Pass) {
        let Some(TrainingRecords { pack, edge, .. }) = self.records.training else { return };
        let (g, rows) = self.rows_of(row, pass.g.0, pass.g.1, Bytes::FLOAT);
        self.set(pack, offset_of!(PackCall, q), g);
        self.set(pack, offset_of!(PackCall, rows), rows);
        self.set(pack, offset_of!(PackCall, count), row.count);
        self.call(TileFn::GradientPack, pack);
        if self.has_edges() {
            self.set(edge, offset_of!(EdgeCall, q), g);
            self.set(edge, offset_of!(EdgeCall, q_rows), rows);
        }
    }

    /// P of a piece and its gradient, from both that of the scores, and what the piece's keys and values get.
    fn gradient_piece(&mut self, row: Row, piece: Operands, pass: Pass) {
        let Some(TrainingRecords { score, gradient, .. }) = self.records.training else { return };
        let (panel, gradients) = (self.local_panel(), self.gradient_panel());
        self.score_piece(row, panel, piece);
        self.exp_piece(panel, piece);
        let dp = self.panel_at(gradients.base, piece.at);
        let z = self.tensor_row(pass.z.0, piece.start, pass.z.1, Bytes::FLOAT);
        let z_stride = self.key_stride(pass.z.1, piece);
        let words = self.words(piece);
        self.set(score, offset_of!(ScoreCall, k), z);
        self.set(score, offset_of!(ScoreCall, k_stride), z_stride);
        self.set(score, offset_of!(ScoreCall, keys), piece.list);
        self.set(score, offset_of!(ScoreCall, nkeys), piece.len);
        self.set(score, offset_of!(ScoreCall, words), words);
        self.set(score, offset_of!(ScoreCall, s), dp);
        self.set(score, offset_of!(ScoreCall, s_stride), gradients.stride);
        self.call(TileFn::GradientScore, score);
        self.gradient_record(panel, piece);
        self.set(gradient, offset_of!(GradientCall, dp), dp);
        self.call(TileFn::Gradient, gradient);
        self.mod_gradients(gradients, piece, words);
        let dv = self.plan.value_dim;
        self.if_else(pass.dv.0, |kernel| kernel.transposed(row, panel, piece, pass.g, pass.dv, dv), |_| {});
        let d = self.plan.head_dim;
        self.transposed(row, gradients, piece, pass.q, pass.dk, d);
    }

    /// The same of the row's scattered edges; starts the row's sums.
    fn gradient_edges(&mut self, row: Row, pass: Pass) {
        let Some(TrainingRecords { edge, edge_gradient, .. }) = self.records.training else { return };
        let (p, dp) = (self.local(self.scratch.edges), self.local(self.scratch.gradient.edges));
        self.edge_scores(p);
        self.edge_exp(p);
        // The maximum is of no use here; it goes where nothing is read.
        let unused = self.local(self.scratch.correction);
        self.set(edge, offset_of!(EdgeCall, kv), pass.z.0);
        self.set(edge, offset_of!(EdgeCall, kv_stride), pass.z.1);
        self.set(edge, offset_of!(EdgeCall, s), dp);
        self.set(edge, offset_of!(EdgeCall, max), unused);
        self.call(TileFn::GradientEdgeScore, edge);
        self.set(edge_gradient, offset_of!(EdgeGradientCall, p), p);
        self.set(edge_gradient, offset_of!(EdgeGradientCall, dp), dp);
        self.call(TileFn::EdgeGradient, edge_gradient);
        self.edge_mod_gradients(dp);
        let (d, dv) = (self.plan.head_dim, self.plan.value_dim);
        self.if_else(pass.dv.0, |kernel| kernel.scatter(row, p, pass.g, pass.dv, dv), |_| {});
        self.scatter(row, dp, pass.q, pass.dk, d);
        let exact = self.is_exact();
        self.if_else(
            exact,
            |kernel| kernel.edge_values_by(TileFn::EdgeValueExact, dp, pass.k.0, pass.k.1),
            |kernel| kernel.edge_values(dp, pass.k.0, pass.k.1),
        );
    }

    /// Keeps the scores of a piece, which start at `s`, as they are before their mods.
    pub fn keep_raw(&mut self, row: Row, (s, stride): Tensor, piece: Operands) {
        let raw = self.local(self.scratch.gradient.raw);
        let raw = self.panel_at(raw, piece.at);
        self.for_panel(row, s, stride, piece.len, |kernel, from, group, key| {
            let to = kernel.e.row(raw, group, stride);
            let to = kernel.panel_at(to, key);
            for offset in [0, 16, 32, 48] {
                let score = kernel.e.load(types::F32X4, from, offset);
                kernel.e.store(score, to, offset);
            }
        });
    }

    /// The same of the row's edges.
    pub fn keep_raw_edges(&mut self, s: Value) {
        let record = self.records.edge;
        let raw = self.local(self.scratch.gradient.raw_edges);
        let offsets = self.e.field(record, offset_of!(EdgeCall, offsets));
        let rows = self.e.field(record, offset_of!(EdgeCall, rows));
        let first = self.e.load_u32(offsets, 0);
        let end = self.e.offset(offsets, rows, size_of::<u32>() as i64);
        let end = self.e.load_u32(end, 0);
        let count = self.e.b.ins().isub(end, first);
        let bytes = self.e.b.ins().imul_imm_s(count, size_of::<f32>() as i64);
        self.e.move_bytes(raw, s, bytes);
    }

    /// Takes the gradients of a piece's scores back through the mods.
    fn mod_gradients(&mut self, gradients: Panel, piece: Operands, words: Value) {
        let Some(TrainingRecords { mods: record, .. }) = self.records.training else { return };
        if self.plan.mods.is_none() {
            return;
        }
        let raw = self.local(self.scratch.gradient.raw);
        let raw = self.panel_at(raw, piece.at);
        let d = self.panel_at(gradients.base, piece.at);
        for (field, value) in [
            (offset_of!(ModGradientCall, s), raw),
            (offset_of!(ModGradientCall, s_stride), gradients.stride),
            (offset_of!(ModGradientCall, d), d),
            (offset_of!(ModGradientCall, d_stride), gradients.stride),
            (offset_of!(ModGradientCall, nkeys), piece.len),
            (offset_of!(ModGradientCall, words), words),
            (offset_of!(ModGradientCall, keys), piece.list),
            (offset_of!(ModGradientCall, first_key), piece.start),
        ] {
            self.set(record, field, value);
        }
        self.call(TileFn::ModGradients, record);
    }

    /// The same of the row's edges, whose gradients stand at `d`.
    fn edge_mod_gradients(&mut self, d: Value) {
        let Some(TrainingRecords { edge_mods: record, .. }) = self.records.training else { return };
        if self.plan.mods.is_none() {
            return;
        }
        let raw = self.local(self.scratch.gradient.raw_edges);
        self.set(record, offset_of!(EdgeModGradientCall, s), raw);
        self.set(record, offset_of!(EdgeModGradientCall, d), d);
        self.call(TileFn::EdgeModGradients, record);
    }

    /// Adds to the rows of a piece's keys: `out += weightsᵀ x`.
    fn transposed(&mut self, row: Row, weights: Panel, piece: Operands, x: Tensor, out: Tensor, width: usize) {
        let Some(TrainingRecords { transposed: record, .. }) = self.records.training else { return };
        let p = self.panel_at(weights.base, piece.at);
        let words = self.words(piece);
        let (rows, numbers) = self.rows_of(row, x.0, x.1, Bytes::FLOAT);
        let to = self.tensor_row(out.0, piece.start, out.1, Bytes::FLOAT);
        let to_stride = self.key_stride(out.1, piece);
        for (field, value) in [
            (offset_of!(TransposedCall, p), p),
            (offset_of!(TransposedCall, p_stride), weights.stride),
            (offset_of!(TransposedCall, nkeys), piece.len),
            (offset_of!(TransposedCall, words), words),
            (offset_of!(TransposedCall, x), rows),
            (offset_of!(TransposedCall, x_stride), x.1),
            (offset_of!(TransposedCall, x_rows), numbers),
            (offset_of!(TransposedCall, out), to),
            (offset_of!(TransposedCall, out_stride), to_stride),
            (offset_of!(TransposedCall, keys), piece.list),
        ] {
            self.set(record, field, value);
        }
        self.set_int(record, offset_of!(TransposedCall, width), width as i64);
        self.call(TileFn::Transposed, record);
    }

    /// Adds to the rows of the keys of the row's edges.
    fn scatter(&mut self, row: Row, weights: Value, x: Tensor, out: Tensor, width: usize) {
        let Some(TrainingRecords { scatter: record, .. }) = self.records.training else { return };
        let (rows, numbers) = self.rows_of(row, x.0, x.1, Bytes::FLOAT);
        let edges = offset_of!(ScatterCall, edges);
        for (field, value) in [
            (edges + offset_of!(EdgeCall, q), rows),
            (edges + offset_of!(EdgeCall, q_stride), x.1),
            (edges + offset_of!(EdgeCall, q_rows), numbers),
            (edges + offset_of!(EdgeCall, s), weights),
            (offset_of!(ScatterCall, out), out.0),
            (offset_of!(ScatterCall, out_stride), out.1),
        ] {
            self.set(record, field, value);
        }
        self.set_int(record, edges + offset_of!(EdgeCall, dv), width as i64);
        self.call(TileFn::Scatter, record);
    }

    /// Writes the row's gradient of queries, or adds to it.
    fn write_query_gradient(&mut self, row: Row, pass: Pass) {
        let record = self.records.value;
        let (out, rows) = self.rows_of(row, pass.dq.0, pass.dq.1, Bytes::FLOAT);
        let (none, one) = (self.e.int(0), self.e.b.ins().f32const(1.0));
        // What is there comes in as the restart term.
        let before = self.e.b.ins().select(pass.accumulate, out, none);
        for (field, value) in [
            (offset_of!(ValueCall, nkeys), none),
            (offset_of!(ValueCall, trims), none),
            (offset_of!(ValueCall, out), out),
            (offset_of!(ValueCall, out_stride), pass.dq.1),
            (offset_of!(ValueCall, out_rows), rows),
            (offset_of!(ValueCall, rv), before),
            (offset_of!(ValueCall, rv_stride), pass.dq.1),
            (offset_of!(ValueCall, restart), one),
        ] {
            self.set(record, field, value);
        }
        self.call(TileFn::Value, record);
        self.set(record, offset_of!(ValueCall, out), none);
    }
}

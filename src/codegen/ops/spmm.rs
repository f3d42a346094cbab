//! Products of weights with rows of keys, and transposed with rows of queries.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};

use super::exp::Half;
use crate::codegen::context::{Context, Row};
use crate::codegen::records::{EdgeRecord, ExactRecord, Hints, ScatterRecord, TransposedRecord, ValueRecord};
use crate::codegen::tables::Section;
use crate::codegen::walk::{Masked, Near, Operands, Source, StepKind, Steps};
use crate::codegen::{KernelArgs, TileFn};
use crate::plan::{Lanes, Panel, RowOp, Rows};
use crate::tiles::{BLOCK, ValueCall};

/// `out = factor · (P z) / l + plus`.
pub(in crate::codegen) struct Spmm {
    p: Panel,
    z: Rows,
    l: Lanes,
    out: Rows,
    factor: usize,
    plus: Option<(Rows, usize)>,
    pub of_gradient: bool,
    applies: bool,
    half: Option<Half>,
    record: ValueRecord,
    exact_record: ExactRecord,
    edge: Option<EdgeRecord>,
    /// 1 while a block row is done again because its result was not finite, or where that is known before; on the stack.
    exact: Value,
    /// What the value tile said of the row's output, on the stack.
    flag: Value,
    tiles: [TileFn; 3],
}

impl Spmm {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let &RowOp::Spmm { p, z, l, out, factor, plus, of_gradient, applies, widen } = op else { return None };
        let record = ValueRecord::new(cx);
        let exact_record = ExactRecord::new(cx);
        let exact = cx.e.stack(size_of::<u64>() as u32);
        let flag = cx.e.stack(size_of::<u64>() as u32);
        let local = &cx.layout().local;
        let acc = cx.local(local.acc);
        let factors = cx.local(local.factor);
        record.dv(cx, z.width);
        record.acc(cx, acc);
        record.acc_stride(cx, local.acc_stride);
        record.factor(cx, factors);
        // A row without keys, and a product that is left out, finish without a run before, and runs before a row's last
        // carry no output: the tile forms addresses from these all the same.
        record.p(cx, 0_i64);
        record.p_stride(cx, 0_i64);
        record.v(cx, 0_i64);
        record.v_stride(cx, 0_i64);
        record.keys(cx, 0_i64);
        record.out(cx, 0_i64);
        record.out_stride(cx, 0_i64);
        record.out_rows(cx, 0_i64);
        record.rv(cx, 0_i64);
        record.rv_stride(cx, 0_i64);
        record.restart(cx, 0.0_f32);
        Hints::of_value(record).clear(cx);
        exact_record.dv(cx, z.width);
        exact_record.acc(cx, acc);
        exact_record.acc_stride(cx, local.acc_stride);
        exact_record.skip_zeros(cx, i64::from(of_gradient));
        if of_gradient {
            // No row is done again: whether pairs must be left out one by one is known before.
            let known = cx.arg(offset_of!(KernelArgs, exact));
            cx.e.store(known, exact, 0);
        }
        let edge = cx.has_edges().then(|| {
            let edge = EdgeRecord::at_rest(cx);
            let keys = cx.section(Section::EdgeKeys);
            edge.dv(cx, z.width);
            edge.edge_keys(cx, keys);
            edge.acc(cx, acc);
            edge.acc_stride(cx, local.acc_stride);
            edge
        });
        let half = widen.then(|| Half::new(cx, p));
        let tiles =
            [TileFn::Value, TileFn::EdgeValue, TileFn::EdgeValueExact].map(|tile| tile.of_width(z.width, cx.plan));
        Some(Self {
            p,
            z,
            l,
            out,
            factor,
            plus,
            of_gradient,
            applies,
            half,
            record,
            exact_record,
            edge,
            exact,
            flag,
            tiles,
        })
    }

    /// Whether the product is left out, and the output is made of other rows alone.
    pub const fn is_left_out(&self) -> bool {
        !self.applies
    }

    /// Whether the row's last run may write the output: not where the output's rows are among those that are read.
    pub fn fuses_output(&self, steps: Steps<'_>) -> bool {
        self.applies && !self.of_gradient && self.out.at != self.z.at && steps.end_in_run()
    }

    /// Whether a row of these steps may have to be done again.
    pub fn may_redo(&self, steps: Steps<'_>) -> bool {
        self.applies && !self.of_gradient && steps.has_masks()
    }

    pub fn begin(&self, cx: &mut Context, row: Row) {
        self.record.rows(cx, row.count);
        self.exact_record.rows(cx, row.count);
        self.begin_edges(cx, row);
        if let Some(half) = &self.half {
            half.call(cx, row, TileFn::WidenPanel);
        }
    }

    /// What of [`Self::begin`] concerns scattered edges.
    pub fn begin_edges(&self, cx: &mut Context, row: Row) {
        let Some(edge) = self.edge else { return };
        let offsets = cx.edge_offset(row.place);
        edge.rows(cx, row.count);
        edge.offsets(cx, offsets);
        if cx.function.edge_rows > 1 {
            let acc = self.sums_of(cx, row);
            edge.acc(cx, acc);
        }
    }

    /// Starts the row's sums.
    pub fn begin_sums(&self, cx: &mut Context, row: Row) {
        self.record.accumulate(cx, 0_i64);
        if cx.function.edge_rows > 1 {
            let acc = self.sums_of(cx, row);
            self.record.acc(cx, acc);
            self.exact_record.acc(cx, acc);
        }
    }

    /// Says that sums have begun.
    pub fn have_begun(&self, cx: &mut Context) {
        self.record.accumulate(cx, 1_i64);
    }

    /// Sums of the row, those of its place in a batch where edges are computed batch by batch.
    fn sums_of(&self, cx: &mut Context, row: Row) -> Value {
        let local = &cx.layout().local;
        let acc = cx.local(local.acc);
        if cx.function.edge_rows <= 1 {
            return acc;
        }
        let place = cx.in_batch(row.t);
        cx.e.offset(acc, place, (BLOCK * local.acc_stride * size_of::<f32>()) as i64)
    }

    /// The whole row, from weights that are there.
    pub fn row<'p>(&self, cx: &mut Context<'_, 'p>, row: Row, steps: Steps<'p>) {
        self.row_behind(cx, row, steps, &|_| {});
    }

    /// The same behind something that is done before the row, and again where the row is done again.
    pub fn row_behind<'a, 'p>(
        &self,
        cx: &mut Context<'a, 'p>,
        row: Row,
        steps: Steps<'p>,
        before: &dyn Fn(&mut Context<'a, 'p>),
    ) {
        let fused = self.fuses_output(steps);
        let redo = self.may_redo(steps);
        self.redo_if_not_finite(cx, redo, |cx| {
            before(cx);
            self.begin_sums(cx, row);
            if self.applies {
                self.prefetch_next_outputs(cx, row);
                // The factor of the output is known before its last values are added.
                if fused {
                    self.factors(cx, row);
                }
                cx.for_steps(row, steps, &|cx, step| match step {
                    StepKind::Edges => self.edges(cx, row),
                    StepKind::Joint(source) => self.joint(cx, row, source, redo, fused && source.is_last()),
                    StepKind::Stream(stretch) => cx.for_chunks(row, stretch, &|cx, chunk| self.chunk(cx, row, chunk)),
                });
            }
            if !fused {
                self.finish(cx, row);
            }
        });
    }

    /// Runs `body`, which writes the row's output, and once more pair by pair where the value tile's flag says that a result
    /// is not finite: a NaN or Inf value of a forbidden pair may have met its probability 0.
    pub fn redo_if_not_finite<'a, 'p>(
        &self,
        cx: &mut Context<'a, 'p>,
        redo: bool,
        body: impl FnOnce(&mut Context<'a, 'p>),
    ) {
        if self.of_gradient {
            return body(cx);
        }
        let zero = cx.e.int(0);
        cx.e.store(zero, self.exact, 0);
        if !redo {
            return body(cx);
        }
        let (again, after) = (cx.e.b.create_block(), cx.e.b.create_block());
        cx.e.b.ins().jump(again, &[]);
        cx.e.b.switch_to_block(again);
        body(cx);
        let flag = cx.e.field(self.flag, 0);
        let was_exact = self.is_exact(cx);
        let one = cx.e.int(1);
        cx.e.store(one, self.exact, 0);
        let more = cx.e.b.ins().icmp(IntCC::UnsignedGreaterThan, flag, was_exact);
        cx.e.b.ins().brif(more, again, &[], after, &[]);
        cx.e.b.seal_block(again);
        cx.e.b.seal_block(after);
        cx.e.b.switch_to_block(after);
    }

    /// Whether the row is done pair by pair; not 0 if so.
    pub fn is_exact(&self, cx: &mut Context) -> Value {
        cx.e.field(self.exact, 0)
    }

    /// Corrects the sums by what the online softmax found, where there are any.
    pub fn rescale(&self, cx: &mut Context, row: Row) {
        if self.applies {
            let started = cx.e.field(self.record.address(), offset_of!(ValueCall, accumulate));
            let acc = self.sums_of(cx, row);
            cx.rescale(row, acc, started);
        }
    }

    /// The factors of the row's output.
    pub fn factors(&self, cx: &mut Context, row: Row) {
        factors(cx, row, self.l, self.factor);
    }

    /// Adds the values of a joint step to the row's sums, and writes the output behind the last run if asked to.
    ///
    /// Runs go across masked pieces, where probabilities are 0; the exact redo goes piece by piece and leaves
    /// masked pairs out.
    pub fn joint<'p>(&self, cx: &mut Context<'_, 'p>, row: Row, source: Source<'p>, redo: bool, output: bool) {
        if !self.applies {
            return;
        }
        let runs = |cx: &mut Context<'_, 'p>| {
            cx.for_runs(row, source, &|cx, run, last| {
                if output && last {
                    self.begin_output(cx, row);
                    let flag = self.run(cx, row, run);
                    self.end_output(cx, flag);
                } else {
                    self.run(cx, row, run);
                }
            });
        };
        if !redo && !self.of_gradient {
            return runs(cx);
        }
        let exact = self.is_exact(cx);
        cx.if_else(
            exact,
            |cx| {
                cx.for_pieces(row, source, &|cx, piece| {
                    // What it prefetches is for its scores.
                    let piece = Operands { near: Near::Nothing, ..piece };
                    match piece.masked {
                        // Weights of 0 are everywhere there.
                        _ if self.of_gradient => self.pairs(cx, row, piece),
                        Masked::No => _ = self.run(cx, row, piece),
                        Masked::Yes => self.pairs(cx, row, piece),
                        Masked::Perhaps => {
                            cx.if_else(piece.aux, |cx| self.pairs(cx, row, piece), |cx| _ = self.run(cx, row, piece))
                        }
                    }
                });
                if output {
                    self.finish(cx, row);
                }
            },
            runs,
        );
    }

    /// Adds the values of a chunk of unmasked keys.
    pub fn chunk(&self, cx: &mut Context, row: Row, chunk: Operands) {
        if !self.applies {
            return;
        }
        if !self.of_gradient {
            self.run(cx, row, chunk);
            return;
        }
        let exact = self.is_exact(cx);
        cx.if_else(exact, |cx| self.pairs(cx, row, chunk), |cx| _ = self.run(cx, row, chunk));
    }

    /// Starts the row's sums with the values of its scattered edges.
    pub fn edges(&self, cx: &mut Context, row: Row) {
        let (Some(edge), true) = (self.edge, self.applies) else { return };
        let s = cx.edges(row, self.p);
        let (kv, stride) = cx.all_rows(self.z);
        edge.s(cx, s);
        edge.kv(cx, kv);
        edge.kv_stride(cx, stride);
        edge.accumulate(cx, 0_i64);
        let (address, wide) = (edge.address(), self.z.dtype.is_f32());
        if self.of_gradient {
            let exact = self.is_exact(cx);
            cx.if_else(exact, |cx| _ = cx.call(self.tiles[2], address), |cx| _ = cx.call(self.tiles[1], address));
        } else if wide {
            cx.call(self.tiles[1], address);
        } else {
            cx.call_stored(self.tiles[1], address, (false, false));
        }
        self.have_begun(cx);
    }

    /// Adds one run to the row's sums; a piece without mask is a run without trims.
    fn run(&self, cx: &mut Context, row: Row, run: Operands) -> Option<Value> {
        let record = self.record;
        let (v, v_stride) = cx.keys_of(self.z, run);
        let panel = cx.panel(row, self.p);
        let p = cx.panel_at(panel.base, run.at);
        record.p(cx, p);
        record.p_stride(cx, panel.stride);
        record.v(cx, v);
        record.v_stride(cx, v_stride);
        record.keys(cx, run.list);
        record.nkeys(cx, run.len);
        record.trims(cx, run.aux);
        let hints = Hints::of_value(record);
        let around = cx.around;
        match run.near {
            Near::Nothing | Near::Entry(..) => {}
            Near::Chunk => {
                if let Some(keys) = around.keys {
                    let next = cx.e.b.ins().iadd(run.start, run.len);
                    cx.prefetch_keys(hints, 0, keys, next, run.len);
                }
            }
            Near::Row(share) => cx.prefetch_share(hints, row, share, around),
        }
        let flag = self.call(cx);
        // The prefetches of a hop stand before its first run.
        if run.near.is_some() || !cx.function.spread {
            hints.clear(cx);
        }
        self.have_begun(cx);
        flag
    }

    fn call(&self, cx: &mut Context) -> Option<Value> {
        let (values, out) = (self.z.dtype.is_f32(), self.out.dtype.is_f32());
        let wide = values && out && self.plus.is_none_or(|(rows, _)| rows.dtype.is_f32());
        let address = self.record.address();
        if wide { cx.call(self.tiles[0], address) } else { cx.call_stored(self.tiles[0], address, (values, out)) }
    }

    /// Adds one run to the row's sums, pair by pair.
    fn pairs(&self, cx: &mut Context, row: Row, piece: Operands) {
        let record = self.exact_record;
        let (v, v_stride) = cx.keys_of(self.z, piece);
        let panel = cx.panel(row, self.p);
        let p = cx.panel_at(panel.base, piece.at);
        let accumulate = cx.e.field(self.record.address(), offset_of!(ValueCall, accumulate));
        record.p(cx, p);
        record.p_stride(cx, panel.stride);
        record.v(cx, v);
        record.v_stride(cx, v_stride);
        record.keys(cx, piece.list);
        record.nkeys(cx, piece.len);
        record.words(cx, piece.aux);
        record.accumulate(cx, accumulate);
        let address = record.address();
        if self.z.dtype.is_f32() {
            cx.call(TileFn::ValueExact, address);
        } else {
            cx.call_stored(TileFn::ValueExact, address, (false, false));
        }
        self.have_begun(cx);
    }

    /// Writes the row's output from its sums.
    pub fn finish(&self, cx: &mut Context, row: Row) {
        self.factors(cx, row);
        self.record.nkeys(cx, 0_i64);
        self.record.trims(cx, 0_i64);
        self.begin_output(cx, row);
        let flag = self.call(cx);
        self.end_output(cx, flag);
    }

    /// Makes the next value call the row's last one: it writes the output from its registers.
    fn begin_output(&self, cx: &mut Context, row: Row) {
        let record = self.record;
        let out = cx.rows_of(row, self.out);
        record.out(cx, out.base);
        record.out_stride(cx, out.stride);
        record.out_rows(cx, out.numbers);
        if let Some((rows, factor)) = self.plus {
            let plus = cx.rows_of(row, rows);
            let factor = cx.factor(factor);
            record.rv(cx, plus.base);
            record.rv_stride(cx, plus.stride);
            record.restart(cx, factor);
        }
    }

    /// After the call that [`Self::begin_output`] prepared: keeps its flag.
    fn end_output(&self, cx: &mut Context, flag: Option<Value>) {
        let none = cx.e.int(0);
        cx.e.store(flag.unwrap_or(none), self.flag, 0);
        self.record.out(cx, none);
    }

    /// What the next block row's outputs are made of besides sums: the rows that are written, and those that are added,
    /// which a sweep has last read some rows ago.
    fn prefetch_next_outputs(&self, cx: &mut Context, row: Row) {
        if self.of_gradient || cx.function.spread {
            return;
        }
        let hints = Hints::of_value(self.record);
        if let Some((plus, _)) = self.plus {
            cx.prefetch_rows(hints, 0, plus, row, true);
        }
        cx.prefetch_rows(hints, 1, self.out, row, true);
    }
}

/// The factors of a row's products, over the row sums.
pub(in crate::codegen) fn factors(cx: &mut Context, row: Row, l: Lanes, factor: usize) {
    let local = &cx.layout().local;
    let (sum, factors) = (cx.local(local.sum), cx.local(local.factor));
    let factor = cx.factor(factor);
    match l {
        Lanes::OwnSum => cx.invert(row, sum, factors, Some(factor)),
        Lanes::Kept(kept) => {
            let inverse = cx.kept_lanes(row, kept);
            cx.scale_lanes(row, inverse, factors, factor);
        }
        Lanes::Local(_) | Lanes::One => cx.fill_lanes(row, factors, factor),
    }
}

/// `out += Pᵀ x`.
pub(in crate::codegen) struct SpmmT {
    p: Panel,
    x: Rows,
    out: Rows,
    record: TransposedRecord,
    edge: Option<ScatterRecord>,
}

impl SpmmT {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let &RowOp::SpmmT { p, x, out } = op else { return None };
        let record = TransposedRecord::new(cx);
        let exact = cx.arg(offset_of!(KernelArgs, exact));
        record.exact(cx, exact);
        record.factor(cx, 1.0_f32);
        record.width(cx, x.width);
        let edge = cx.has_edges().then(|| {
            let edge = ScatterRecord::new(cx);
            let keys = cx.section(Section::EdgeKeys);
            edge.edge_keys(cx, keys);
            edge.scale(cx, 1.0_f32);
            edge.dv(cx, x.width);
            edge
        });
        Some(Self { p, x, out, record, edge })
    }

    pub fn begin(&self, cx: &mut Context, row: Row) {
        let x = cx.rows_of(row, self.x);
        self.record.rows(cx, row.count);
        self.record.x(cx, x.base);
        self.record.x_stride(cx, x.stride);
        self.record.x_rows(cx, x.numbers);
        if let Some(edge) = self.edge {
            let offsets = cx.edge_offset(row.place);
            edge.rows(cx, row.count);
            edge.offsets(cx, offsets);
            edge.q(cx, x.base);
            edge.q_stride(cx, x.stride);
            edge.q_rows(cx, x.numbers);
        }
    }

    pub fn piece(&self, cx: &mut Context, row: Row, piece: Operands) {
        let record = self.record;
        let panel = cx.panel(row, self.p);
        let p = cx.panel_at(panel.base, piece.at);
        let words = cx.words(piece);
        let (out, out_stride) = cx.keys_of(self.out, piece);
        record.p(cx, p);
        record.p_stride(cx, panel.stride);
        record.nkeys(cx, piece.len);
        record.words(cx, words);
        record.out(cx, out);
        record.out_stride(cx, out_stride);
        record.keys(cx, piece.list);
        cx.call(TileFn::Transposed, record.address());
    }

    pub fn edges(&self, cx: &mut Context, row: Row) {
        let Some(edge) = self.edge else { return };
        let s = cx.edges(row, self.p);
        let (out, stride) = cx.all_rows(self.out);
        edge.s(cx, s);
        edge.out(cx, out);
        edge.out_stride(cx, stride);
        cx.call(TileFn::Scatter, edge.address());
    }
}

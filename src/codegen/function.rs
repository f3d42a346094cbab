//! One function of a kernel: its operations on block row after block row.
//!
//! In: a [`RowFunction`](crate::plan::RowFunction) of the plan. Out: Cranelift code. Over whole rows, operations follow
//! each other; those that stand together and work on pairs share one walk over the row's pieces. By keys, all operations
//! on pairs are done for one step of the row before the next.

use cranelift_codegen::ir::{InstBuilder, Value};

use super::context::{Around, Context, Row};
use super::ops::{Code, Spmm, join};
use super::walk::{Source, StepKind, Steps};
use crate::mask::QUERY_BLOCK;
use crate::plan::{EDGE_STATISTICS, RowOp};

/// Operations that follow each other, by how they walk a row.
enum Phase<'c> {
    /// One on rows.
    Row(&'c Code),
    /// Some on pairs, piece by piece.
    Pairs(&'c [Code]),
    /// One over whole rows: a product, run by run.
    Whole(&'c Code),
}

/// Writes the function.
pub(super) fn write(mut cx: Context<'_, '_>) {
    if let [op @ RowOp::Join { .. }] = cx.function.ops.as_slice() {
        join(&mut cx, op);
        return cx.finish();
    }
    cx.around = around(&cx);
    let ops = &cx.function.ops;
    let codes: Vec<Code> = ops.iter().filter_map(|op| Code::new(&mut cx, op)).collect();
    let (first, end) = cx.rows_of_call();
    if !cx.function.has_pairs() {
        cx.for_bare_rows(first, end, &|cx, row| codes.iter().for_each(|code| code.row(cx, row)));
    } else if cx.function.edge_rows > 1 {
        cx.for_batches(first, end, &codes);
    } else if cx.function.by_keys {
        cx.for_rows(first, end, &|cx, row, steps| row_by_keys(cx, row, steps, &codes));
    } else {
        cx.for_rows(first, end, &|cx, row, steps| whole_row(cx, row, steps, &codes));
    }
    cx.finish();
}

/// The rows around the function's tiles.
fn around(cx: &Context<'_, '_>) -> Around {
    let mut around = Around { values: cx.function.values, ..Around::default() };
    for op in &cx.function.ops {
        match *op {
            RowOp::Sddmm { of_queries: true, y, queries, .. } => {
                (around.keys, around.queries) = (Some(y), Some(queries))
            }
            RowOp::Spmm { of_gradient: false, out, .. } | RowOp::Solve { out, .. } => around.outputs = Some(out),
            _ => {}
        }
    }
    around
}

/// Cuts operations into phases: before exponentials of maxima that the function finds, all scores must be there.
fn phases(codes: &[Code]) -> Vec<Phase<'_>> {
    let mut phases = Vec::new();
    let mut at = 0;
    while at < codes.len() {
        match &codes[at] {
            code if code.is_on_rows() => {
                phases.push(Phase::Row(code));
                at += 1;
            }
            code if code.is_over_rows() => {
                phases.push(Phase::Whole(code));
                at += 1;
            }
            _ => {
                let joins = |code: &Code| !code.is_on_rows() && !code.is_over_rows() && !code.needs_own_max();
                let more = codes[at + 1..].iter().take_while(|code| joins(code)).count();
                phases.push(Phase::Pairs(&codes[at..=at + more]));
                at += 1 + more;
            }
        }
    }
    phases
}

/// A block row, one operation after the other.
fn whole_row<'p>(cx: &mut Context<'_, 'p>, row: Row, steps: Steps<'p>, codes: &[Code]) {
    begin(cx, row, codes);
    for phase in phases(codes) {
        match phase {
            Phase::Row(code) => code.row(cx, row),
            Phase::Whole(code) => code.over_row(cx, row, steps),
            Phase::Pairs(codes) => {
                if codes.iter().any(Code::needs_own_max) {
                    // The whole row's maximum is known: nothing is corrected later.
                    cx.first_update(row);
                }
                cx.for_steps(row, steps, &|cx, step| match step {
                    StepKind::Edges => codes.iter().for_each(|code| code.edges(cx, row)),
                    StepKind::Joint(source) => pieces(cx, row, source, codes),
                    StepKind::Stream(_) => {}
                });
                codes.iter().for_each(|code| code.finish(cx, row));
            }
        }
    }
    keep(cx, row);
}

/// A block row, some keys after the other.
fn row_by_keys<'a, 'p>(cx: &mut Context<'a, 'p>, row: Row, steps: Steps<'p>, codes: &[Code]) {
    let first = codes.iter().position(|code| !code.is_on_rows()).unwrap_or(codes.len());
    let behind = codes.iter().rposition(|code| !code.is_on_rows()).map_or(first, |last| last + 1);
    let (before, pairs, after) = (&codes[..first], &codes[first..behind], &codes[behind..]);
    let product = pairs.iter().find_map(|code| match code {
        Code::Spmm(product) => Some(product),
        _ => None,
    });
    for code in before {
        // Edges read their queries in place.
        let packs_for_nobody = matches!(code, Code::Pack(_)) && steps.only_edges();
        if !packs_for_nobody {
            code.row(cx, row);
        }
    }
    let phases = phases(pairs);
    let redo = product.is_some_and(|product| product.may_redo(steps));
    let fused = product.is_some_and(|product| product.fuses_output(steps));
    let body = |cx: &mut Context<'a, 'p>| {
        begin(cx, row, pairs);
        if let Some(product) = product {
            product.begin_sums(cx, row);
            if cx.function.edge_rows > 1 {
                start_from_edges(cx, row, product, redo);
            }
        }
        cx.for_steps(row, steps, &|cx, step| match step {
            // They came first.
            StepKind::Edges if cx.function.edge_rows > 1 => {}
            StepKind::Edges => {
                for code in pairs {
                    if code.needs_own_max() {
                        cx.update(row);
                    }
                    code.edges(cx, row);
                }
            }
            StepKind::Joint(source) => {
                let online = cx.function.is_online();
                for phase in &phases {
                    match phase {
                        Phase::Pairs(codes) => {
                            if codes.iter().any(Code::needs_own_max) {
                                if source.is_first() { cx.first_update(row) } else { cx.update(row) }
                            }
                            pieces(cx, row, source, codes);
                        }
                        Phase::Whole(Code::Spmm(product)) => {
                            if online && !source.is_first() {
                                product.rescale(cx, row);
                            }
                            // The row's sums are final before its last values: its factor is known when they are added.
                            let output = fused && source.is_last();
                            if output {
                                product.factors(cx, row);
                            }
                            product.joint(cx, row, source, redo, output);
                        }
                        Phase::Row(_) | Phase::Whole(_) => {}
                    }
                }
            }
            StepKind::Stream(stretch) => cx.for_chunks(row, stretch, &|cx, chunk| {
                for code in pairs {
                    if code.needs_own_max() {
                        cx.update(row);
                    }
                    match code {
                        Code::Spmm(product) => {
                            if cx.function.is_online() {
                                product.rescale(cx, row);
                            }
                            product.chunk(cx, row, chunk);
                        }
                        code => code.piece(cx, row, chunk),
                    }
                }
            }),
        });
        if let (Some(product), false) = (product, fused) {
            product.finish(cx, row);
        }
    };
    match product {
        Some(product) => product.redo_if_not_finite(cx, redo, body),
        None => body(cx),
    }
    keep(cx, row);
    after.iter().for_each(|code| code.row(cx, row));
}

/// Operations on pairs, piece by piece.
fn pieces<'p>(cx: &mut Context<'_, 'p>, row: Row, source: Source<'p>, codes: &[Code]) {
    cx.for_pieces(row, source, &|cx, piece| codes.iter().for_each(|code| code.piece(cx, row, piece)));
}

/// What every operation sets at the beginning of a row, and a softmax that has met no key.
fn begin(cx: &mut Context<'_, '_>, row: Row, codes: &[Code]) {
    if cx.has_softmax() {
        cx.begin_statistics();
    }
    codes.iter().for_each(|code| code.begin(cx, row));
}

/// Behind a row's last operation on pairs: what is kept of its softmax.
fn keep(cx: &mut Context<'_, '_>, row: Row) {
    let statistics = cx.function.statistics;
    let local = &cx.layout().local;
    if let Some(kept) = statistics.keep_max {
        let from = cx.local(if statistics.exp_of_own_max { local.old } else { local.max });
        let to = cx.kept_lanes(row, kept);
        cx.copy_lanes(row, from, to);
    }
    if let Some(kept) = statistics.keep_sum {
        let sum = cx.local(local.sum);
        let to = cx.kept_lanes(row, kept);
        cx.invert(row, sum, to, None);
    }
    if statistics.to_caller {
        cx.store_statistics(row);
    }
}

/// Starts a row from what its edges left behind. A row that is done again does their values again, since the first
/// attempt has added to them.
fn start_from_edges(cx: &mut Context<'_, '_>, row: Row, product: &Spmm, redo: bool) {
    let edges = cx.edge_count(row);
    cx.if_true(edges, |cx| {
        let waiting = cx.waiting(row);
        for (index, to) in cx.waiting_statistics().into_iter().enumerate() {
            let from = cx.e.b.ins().iadd_imm_s(waiting, index as i64 * super::context::LANE_BYTES);
            cx.copy_lanes(row, from, to);
        }
        if product.is_left_out() {
            return;
        }
        product.have_begun(cx);
        if redo {
            let exact = product.is_exact(cx);
            cx.if_true(exact, |cx| {
                product.begin_edges(cx, row);
                product.edges(cx, row);
            });
        }
    });
}

impl<'p> Context<'_, 'p> {
    /// Whether the function has maxima or sums of a softmax.
    fn has_softmax(&self) -> bool {
        self.function.statistics.finds_max || self.function.ops.iter().any(|op| matches!(op, RowOp::Exp { .. }))
    }

    /// Walks block rows in batches, whose scattered edges come first.
    ///
    /// Every edge reads a row of K, and later one of V, for itself alone. Row by row both tensors would pass through L2
    /// in turn; over a batch the edges read one of them at a time, which stays there. The sums of a batch wait in
    /// workspace, where the block rows take them up, with what their online softmax starts from.
    fn for_batches(&mut self, first: Value, end: Value, codes: &[Code]) {
        let batch = self.function.edge_rows as i64;
        let shift = i64::from(batch.trailing_zeros());
        let up = self.e.b.ins().iadd_imm_s(end, batch - 1);
        let [first_batch, end_batch] = [first, up].map(|row| self.e.b.ins().ushr_imm_u(row, shift));
        self.for_range(first_batch, end_batch, 1, |cx, number| {
            let from = cx.e.b.ins().ishl_imm_u(number, shift);
            let to = cx.e.b.ins().iadd_imm_s(from, batch);
            let from = cx.e.b.ins().smax(from, first);
            let to = cx.e.b.ins().smin(to, end);
            cx.batch_of_edges(from, to, codes);
            cx.for_rows(from, to, &|cx, row, steps| row_by_keys(cx, row, steps, codes));
        });
    }

    /// Scores, probabilities and values of the edges of block rows `first .. end`, which are of one batch.
    fn batch_of_edges(&mut self, first: Value, end: Value, codes: &[Code]) {
        self.for_edge_rows(first, end, &|cx, row| {
            let pairs = || codes.iter().filter(|code| !code.is_on_rows() && !matches!(code, Code::Spmm(_)));
            cx.begin_statistics();
            pairs().for_each(|code| code.begin_edges(cx, row));
            for code in pairs() {
                if code.needs_own_max() {
                    cx.update(row);
                }
                code.edges(cx, row);
            }
            let waiting = cx.waiting(row);
            for (index, from) in cx.waiting_statistics().into_iter().enumerate() {
                let to = cx.e.b.ins().iadd_imm_s(waiting, index as i64 * super::context::LANE_BYTES);
                cx.copy_lanes(row, from, to);
            }
        });
        for code in codes {
            if let Code::Spmm(product) = code
                && !product.is_left_out()
            {
                self.for_edge_rows(first, end, &|cx, row| {
                    product.begin_edges(cx, row);
                    product.edges(cx, row);
                });
            }
        }
    }

    /// Runs `body` for every block row of `first .. end` that has edges.
    fn for_edge_rows(&mut self, first: Value, end: Value, body: &dyn Fn(&mut Self, Row)) {
        self.for_range(first, end, 1, |cx, t| {
            let row = cx.row(t, t);
            let edges = cx.edge_count(row);
            cx.if_true(edges, |cx| body(cx, row));
        });
    }

    /// Scattered edges of the row; 0 where there are none.
    pub fn edge_count(&mut self, row: Row) -> Value {
        let at = self.edge_offset(row.place);
        let first = self.e.load_u32(at, 0);
        let end = self.e.offset(at, row.count, size_of::<u32>() as i64);
        let end = self.e.load_u32(end, 0);
        self.e.b.ins().isub(end, first)
    }

    /// Number of block row `t` within its batch.
    pub fn in_batch(&mut self, t: Value) -> Value {
        self.e.b.ins().band_imm_u(t, self.function.edge_rows as i64 - 1)
    }

    /// Where the pairs of the row's edges stand, behind those of the batch's rows before it.
    pub fn edges_in_batch(&mut self, row: Row, base: Value) -> Value {
        if self.function.edge_rows <= 1 {
            return base;
        }
        let at = self.edge_offset(row.place);
        let first = self.e.load_u32(at, 0);
        let start = self.e.b.ins().band_imm_s(row.place, -((self.function.edge_rows * QUERY_BLOCK) as i64));
        let at = self.edge_offset(start);
        let start = self.e.load_u32(at, 0);
        let edge = self.e.b.ins().isub(first, start);
        self.e.offset(base, edge, size_of::<f32>() as i64)
    }

    /// Where the statistics of a batch's row wait.
    fn waiting(&mut self, row: Row) -> Value {
        let statistics = self.local(self.layout().local.edge_statistics);
        let place = self.in_batch(row.t);
        self.e.offset(statistics, place, EDGE_STATISTICS as i64 * super::context::LANE_BYTES)
    }

    /// The arrays that wait, in order.
    fn waiting_statistics(&mut self) -> [Value; EDGE_STATISTICS] {
        let local = &self.layout().local;
        [local.max, local.old, local.reference, local.sum].map(|offset| self.local(offset))
    }
}

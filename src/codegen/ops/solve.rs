//! Hops without end: a block row solved after those before it, and the adjoint from the last row to the first.

use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::spmm::{self, Spmm, SpmmT};
use crate::codegen::TileFn;
use crate::codegen::context::{Context, Row};
use crate::codegen::records::{DiagonalRecord, RowsRecord, SolveRecord};
use crate::codegen::tables::Section;
use crate::codegen::walk::{StepKind, Steps};
use crate::dtype::Dtype;
use crate::mask::QUERY_BLOCK;
use crate::plan::{Lanes, Panel, RowOp, Rows, RowsAt};
use crate::tiles::LANES;

/// The weights between a row's queries and their own keys, in a panel of their own.
struct Diagonal {
    p: Panel,
    record: DiagonalRecord,
    panel: Value,
}

impl Diagonal {
    fn new(cx: &mut Context, p: Panel, width: usize) -> Self {
        let record = DiagonalRecord::new(cx);
        let panel = cx.local(cx.layout().local.diagonal);
        record.out(cx, panel);
        record.width(cx, width);
        if cx.has_edges() {
            let keys = cx.section(Section::EdgeKeys);
            record.edge_keys(cx, keys);
        }
        Self { p, record, panel }
    }

    /// Clears the panel, and rows of z if they are given.
    fn clear(&self, cx: &mut Context, row: Row, z: Option<(Value, Value)>) {
        let record = self.record;
        record.rows(cx, row.count);
        record.place(cx, row.place);
        match z {
            Some((base, stride)) => {
                record.z(cx, base);
                record.z_stride(cx, stride);
            }
            None => record.z(cx, 0_i64),
        }
        cx.call(TileFn::DiagonalClear, record.address());
    }

    /// Gathers the row's weights, whose panel is complete.
    fn gather<'p>(&self, cx: &mut Context<'_, 'p>, row: Row, steps: Steps<'p>) {
        let record = self.record;
        cx.for_steps(row, steps, &|cx, step| match step {
            StepKind::Edges => {
                let s = cx.edges(row, self.p);
                let offsets = cx.edge_offset(row.place);
                record.p(cx, s);
                record.offsets(cx, offsets);
                cx.call(TileFn::DiagonalEdges, record.address());
            }
            StepKind::Joint(source) => cx.for_pieces(row, source, &|cx, piece| {
                let panel = cx.panel(row, self.p);
                let p = cx.panel_at(panel.base, piece.at);
                record.p(cx, p);
                record.p_stride(cx, panel.stride);
                record.nkeys(cx, piece.len);
                record.first_key(cx, piece.start);
                record.keys(cx, piece.list);
                cx.call(TileFn::DiagonalPieces, record.address());
            }),
            // Whole rows have one panel.
            StepKind::Stream(_) => {}
        });
    }
}

/// A record of the tiles that solve, over a gathered panel.
fn solve_record(cx: &mut Context, diagonal: &Diagonal, width: usize) -> SolveRecord {
    let record = SolveRecord::new(cx);
    let factors = cx.local(cx.layout().local.factor);
    record.p(cx, diagonal.panel);
    record.p_stride(cx, QUERY_BLOCK * LANES);
    record.factor(cx, factors);
    record.width(cx, width);
    record
}

/// z = factor · (P z) / l + plus.
pub(in crate::codegen) struct Solve {
    product: Spmm,
    out: Rows,
    diagonal: Diagonal,
    record: SolveRecord,
}

impl Solve {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let &RowOp::Solve { p, l, out, factor, plus } = op else { return None };
        // What earlier rows give is a product with rows that are there, among which the row's own are 0.
        let product = RowOp::Spmm {
            p,
            z: out,
            l,
            out,
            factor,
            plus: Some(plus),
            of_gradient: false,
            applies: true,
            widen: false,
        };
        let product = Spmm::new(cx, &product)?;
        let diagonal = Diagonal::new(cx, p, out.width);
        let record = solve_record(cx, &diagonal, out.width);
        Some(Self { product, out, diagonal, record })
    }

    pub fn begin(&self, cx: &mut Context, row: Row) {
        self.product.begin(cx, row);
    }

    pub fn row<'p>(&self, cx: &mut Context<'_, 'p>, row: Row, steps: Steps<'p>) {
        let rows = cx.rows_of(row, self.out);
        self.product.row_behind(cx, row, steps, &|cx| self.diagonal.clear(cx, row, Some((rows.base, rows.stride))));
        self.diagonal.gather(cx, row, steps);
        self.record.rows(cx, row.count);
        self.record.z(cx, rows.base);
        self.record.z_stride(cx, rows.stride);
        cx.call(TileFn::Solve, self.record.address());
    }
}

/// w = Pᵀ (factor · w / l) + x.
pub(in crate::codegen) struct SolveT {
    x: Rows,
    l: Lanes,
    out: Rows,
    factor: usize,
    diagonal: Diagonal,
    record: SolveRecord,
    /// What goes to earlier rows: the solved ones, with their factors, in the worker's sums.
    scatter: SpmmT,
    /// Row by row.
    add: RowsRecord,
    scale: RowsRecord,
    copy: RowsRecord,
}

impl SolveT {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let &RowOp::SolveT { p, x, l, out, factor } = op else { return None };
        let scaled = Rows { at: RowsAt::Sums, ..out };
        let scatter = SpmmT::new(cx, &RowOp::SpmmT { p, x: scaled, out })?;
        let diagonal = Diagonal::new(cx, p, out.width);
        let record = solve_record(cx, &diagonal, out.width);
        let [add, scale, copy] = std::array::from_fn(|_| {
            let record = RowsRecord::new(cx);
            record.width(cx, out.width);
            for rows in [RowsRecord::x_rows, RowsRecord::y_rows, RowsRecord::w_rows, RowsRecord::out_rows] {
                rows(record, cx, 0_i64);
            }
            record.lanes_in(cx, 0_i64);
            record.factor(cx, 1.0_f32);
            let dtype = cx.e.b.ins().iconst(types::I8, Dtype::F32 as i64);
            record.dtype(cx, dtype);
            record
        });
        let factors = cx.local(cx.layout().local.factor);
        scale.lanes_in(cx, factors);
        Some(Self { x, l, out, factor, diagonal, record, scatter, add, scale, copy })
    }

    pub fn row<'p>(&self, cx: &mut Context<'_, 'p>, row: Row, steps: Steps<'p>) {
        let [x, own] = [self.x, self.out].map(|rows| cx.rows_of(row, rows));
        let (sums, sums_stride) = cx.all_rows(Rows { at: RowsAt::Sums, ..self.out });
        let solved = cx.local(cx.layout().local.solved);
        // What later rows gave is there.
        self.add.x(cx, x.base);
        self.add.x_stride(cx, x.stride);
        self.add.out(cx, own.base);
        self.add.out_stride(cx, own.stride);
        self.add.count(cx, row.count);
        cx.call(TileFn::AddRows, self.add.address());
        spmm::factors(cx, row, self.l, self.factor);
        self.diagonal.clear(cx, row, None);
        self.diagonal.gather(cx, row, steps);
        self.record.rows(cx, row.count);
        self.record.z(cx, own.base);
        self.record.z_stride(cx, own.stride);
        cx.call(TileFn::SolveTransposed, self.record.address());
        // The product goes to all keys of the row. Its own rows are solved: they are put back behind it.
        self.scale.x(cx, own.base);
        self.scale.x_stride(cx, own.stride);
        self.scale.out(cx, sums);
        self.scale.out_stride(cx, sums_stride);
        self.scale.count(cx, row.count);
        cx.call(TileFn::ScaleRows, self.scale.address());
        self.copy.count(cx, row.count);
        self.copy_rows(cx, (own.base, own.stride), (solved, sums_stride));
        self.scatter.begin(cx, row);
        cx.for_steps(row, steps, &|cx, step| match step {
            StepKind::Edges => self.scatter.edges(cx, row),
            StepKind::Joint(source) => {
                cx.for_pieces(row, source, &|cx, piece| self.scatter.piece(cx, row, piece));
            }
            StepKind::Stream(_) => {}
        });
        self.copy_rows(cx, (solved, sums_stride), (own.base, own.stride));
    }

    fn copy_rows(&self, cx: &mut Context, from: (Value, Value), to: (Value, Value)) {
        let record = self.copy;
        record.x(cx, from.0);
        record.x_stride(cx, from.1);
        record.out(cx, to.0);
        record.out_stride(cx, to.1);
        cx.call(TileFn::CopyRows, record.address());
    }
}

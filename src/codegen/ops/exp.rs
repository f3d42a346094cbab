//! Exponentials, dropout of weights, and the gradient of a softmax.

use std::mem::offset_of;

use crate::codegen::context::{Context, Row};
use crate::codegen::records::{EdgeGradientRecord, EdgeRecord, ExpRecord, GradientRecord, HalfRecord};
use crate::codegen::tables::Section;
use crate::codegen::walk::Operands;
use crate::codegen::{KernelArgs, TileFn};
use crate::plan::{Kept, Lanes, Panel, RowOp};

/// `p = 2^(s − m)` and row sums.
pub(in crate::codegen) struct Exp {
    s: Panel,
    m: Option<Kept>,
    masked: bool,
    half: Option<Half>,
    record: ExpRecord,
    edge: Option<EdgeRecord>,
}

impl Exp {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let &RowOp::Exp { s, m, masked, half } = op else { return None };
        let record = ExpRecord::new(cx);
        let local = &cx.layout().local;
        let reference = cx.local(local.reference);
        // What is summed is what is stored, and that is not known yet: these sums go where nothing reads them.
        let sum = cx.local(if half { local.correction } else { local.sum });
        record.max(cx, reference);
        record.sum(cx, sum);
        let edge = cx.has_edges().then(|| {
            let edge = EdgeRecord::at_rest(cx);
            let keys = cx.section(Section::EdgeKeys);
            let sum = cx.local(cx.layout().local.sum);
            edge.edge_keys(cx, keys);
            edge.max(cx, reference);
            edge.sum(cx, sum);
            edge
        });
        let half = half.then(|| Half::new(cx, s));
        Some(Self { s, m, masked, half, record, edge })
    }

    /// Whether maxima are those that the function itself finds.
    pub const fn is_of_own_max(&self) -> bool {
        self.m.is_none()
    }

    pub fn begin(&self, cx: &mut Context, row: Row) {
        self.record.groups(cx, row.groups);
        self.begin_edges(cx, row);
        if let Some(m) = self.m {
            let from = cx.kept_lanes(row, m);
            let max = cx.local(cx.layout().local.max);
            cx.copy_lanes(row, from, max);
            cx.first_update(row);
        }
    }

    /// What of [`Self::begin`] concerns scattered edges.
    pub fn begin_edges(&self, cx: &mut Context, row: Row) {
        if let Some(edge) = self.edge {
            let offsets = cx.edge_offset(row.place);
            edge.rows(cx, row.count);
            edge.offsets(cx, offsets);
        }
    }

    pub fn piece(&self, cx: &mut Context, row: Row, piece: Operands) {
        let record = self.record;
        let panel = cx.panel(row, self.s);
        let s = cx.panel_at(panel.base, piece.at);
        let words = if self.masked { cx.words(piece) } else { cx.e.int(0) };
        record.s(cx, s);
        record.s_stride(cx, panel.stride);
        record.nkeys(cx, piece.len);
        record.words(cx, words);
        cx.call(TileFn::Exp, record.address());
    }

    pub fn edges(&self, cx: &mut Context, row: Row) {
        let Some(edge) = self.edge else { return };
        let s = cx.edges(row, self.s);
        edge.s(cx, s);
        cx.call(TileFn::EdgeExp, edge.address());
    }

    /// Behind the row's last keys: rounds what is kept in bf16.
    pub fn finish(&self, cx: &mut Context, row: Row) {
        if let Some(half) = &self.half {
            half.call(cx, row, TileFn::NarrowPanel);
        }
    }
}

/// The way between the worker's panel and one that is kept in bf16.
pub(in crate::codegen) struct Half {
    panel: Panel,
    record: HalfRecord,
}

impl Half {
    pub fn new(cx: &mut Context, panel: Panel) -> Self {
        Self { panel, record: HalfRecord::new(cx) }
    }

    pub fn call(&self, cx: &mut Context, row: Row, tile: TileFn) {
        let Some(kept) = self.panel.kept else { return };
        let wide = cx.panel(row, self.panel);
        let half = cx.kept_panel(row, kept, size_of::<u16>());
        let keys = cx.kept_keys(row);
        let sum = cx.local(cx.layout().local.sum);
        let record = self.record;
        record.wide(cx, wide.base);
        record.wide_stride(cx, wide.stride);
        record.half(cx, half.base);
        record.half_stride(cx, half.stride);
        record.nkeys(cx, keys);
        record.groups(cx, row.groups);
        record.sum(cx, sum);
        cx.call(tile, record.address());
    }
}

/// The gradient of a softmax, or dropout of weights alone.
pub(in crate::codegen) struct Weights {
    p: Panel,
    dp: Option<Panel>,
    delta: Lanes,
    dropout: bool,
    record: GradientRecord,
    edge: Option<EdgeGradientRecord>,
}

impl Weights {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let (p, dp, delta, factor, dropout, leaves) = match *op {
            RowOp::SoftmaxGradient { p, dp, delta, factor, dropout, leaves } => {
                (p, Some(dp), delta, factor, dropout, leaves)
            }
            RowOp::DropPanel { p } => (p, None, Lanes::One, 1.0, true, true),
            _ => return None,
        };
        let record = GradientRecord::new(cx);
        let (threshold, keep) =
            (cx.arg_i32(offset_of!(KernelArgs, threshold)), cx.arg_f32(offset_of!(KernelArgs, keep)));
        let key_step = cx.key_step();
        record.threshold(cx, threshold);
        record.keep(cx, keep);
        record.key_step(cx, key_step);
        record.scale(cx, factor);
        record.leaves(cx, i64::from(leaves));
        let edge = cx.has_edges().then(|| {
            let edge = EdgeGradientRecord::new(cx);
            let keys = cx.section(Section::EdgeKeys);
            edge.edge_keys(cx, keys);
            edge.threshold(cx, threshold);
            edge.keep(cx, keep);
            edge.scale(cx, factor);
            edge.leaves(cx, i64::from(leaves));
            edge
        });
        Some(Self { p, dp, delta, dropout, record, edge })
    }

    pub fn begin(&self, cx: &mut Context, row: Row) {
        let delta = match self.delta {
            Lanes::Kept(kept) => cx.kept_lanes(row, kept),
            Lanes::Local(which) => cx.local(cx.layout().local.lanes[which]),
            Lanes::One | Lanes::OwnSum => cx.e.int(0),
        };
        let row_keys = if self.dropout { cx.row_keys(row, offset_of!(KernelArgs, row_keys)) } else { cx.e.int(0) };
        self.record.delta(cx, delta);
        self.record.groups(cx, row.groups);
        self.record.row_keys(cx, row_keys);
        if let Some(edge) = self.edge {
            let offsets = cx.edge_offset(row.place);
            edge.offsets(cx, offsets);
            edge.rows(cx, row.count);
            edge.delta(cx, delta);
            edge.row_keys(cx, row_keys);
        }
    }

    pub fn piece(&self, cx: &mut Context, row: Row, piece: Operands) {
        self.where_wanted(cx, |this, cx| {
            let record = this.record;
            let panel = cx.panel(row, this.p);
            let p = cx.panel_at(panel.base, piece.at);
            let (dp, dp_stride) = match this.dp {
                Some(dp) => {
                    let panel = cx.panel(row, dp);
                    (cx.panel_at(panel.base, piece.at), panel.stride)
                }
                None => (cx.e.int(0), cx.e.int(0)),
            };
            record.p(cx, p);
            record.dp(cx, dp);
            record.stride(cx, panel.stride);
            record.dp_stride(cx, dp_stride);
            record.nkeys(cx, piece.len);
            record.keys(cx, piece.list);
            record.first_key(cx, piece.start);
            cx.call(TileFn::Gradient, record.address());
        });
    }

    pub fn edges(&self, cx: &mut Context, row: Row) {
        let Some(edge) = self.edge else { return };
        self.where_wanted(cx, |this, cx| {
            let p = cx.edges(row, this.p);
            let dp = match this.dp {
                Some(dp) => cx.edges(row, dp),
                None => cx.e.int(0),
            };
            edge.p(cx, p);
            edge.dp(cx, dp);
            cx.call(TileFn::EdgeGradient, edge.address());
        });
    }

    /// Dropout alone is left out where the call drops nothing.
    fn where_wanted(&self, cx: &mut Context, body: impl FnOnce(&Self, &mut Context)) {
        if self.dp.is_some() {
            return body(self, cx);
        }
        let wanted = cx.arg(offset_of!(KernelArgs, row_keys));
        cx.if_true(wanted, |cx| body(self, cx));
    }
}

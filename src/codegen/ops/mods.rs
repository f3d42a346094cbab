//! Score mods, forward and backward.

use std::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value, types};

use crate::codegen::context::{Context, Row};
use crate::codegen::records::{EdgeModGradientRecord, EdgeModRecord, ModGradientRecord, ModRecord};
use crate::codegen::tables::Section;
use crate::codegen::walk::Operands;
use crate::codegen::{KernelArgs, TileFn};
use crate::mask::QUERY_BLOCK;
use crate::plan::{ModsBy, Panel, RowOp};
use crate::spec::score::ScoreMod;

/// `s = factor · mods(s)`.
pub(in crate::codegen) struct Mods {
    s: Panel,
    masked: bool,
    max: bool,
    positions: Value,
    record: ModRecord,
    edge: Option<EdgeModRecord>,
}

impl Mods {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let &RowOp::Mods { s, factor, masked, max } = op else { return None };
        let plan = cx.plan.mods.as_ref()?;
        let record = ModRecord::new(cx);
        let positions = cx.e.stack((QUERY_BLOCK * size_of::<i32>()) as u32);
        let (head, inputs) = (cx.arg(offset_of!(KernelArgs, head)), cx.arg(offset_of!(KernelArgs, inputs)));
        // A maximum that nobody wants goes where nothing is read; without fusion the pass takes none.
        let local = &cx.layout().local;
        let found = match (plan.fused, max) {
            (_, true) => cx.local(local.max),
            (true, false) => cx.local(local.correction),
            (false, false) => cx.e.int(0),
        };
        let edge_max = cx.local(if max { local.max } else { local.correction });
        let key_step = cx.key_step();
        record.max(cx, found);
        record.positions(cx, positions);
        record.key_step(cx, key_step);
        record.head(cx, head);
        record.inputs(cx, inputs);
        let constant = match (plan.by, plan.mods.mods.first()) {
            (ModsBy::Softcap, Some(ScoreMod::Softcap(cap))) => cx.e.b.ins().f32const(*cap as f32),
            (ModsBy::Alibi, _) => {
                // The only table of constants: the slopes.
                let slopes = cx.e.field(inputs, plan.mods.inputs.len() * size_of::<usize>());
                let slope = cx.e.offset(slopes, head, 4);
                cx.e.load(types::F32, slope, 0)
            }
            _ => cx.e.b.ins().f32const(0.0),
        };
        record.constant(cx, constant);
        record.factor(cx, factor);
        let edge = cx.has_edges().then(|| {
            let edge = EdgeModRecord::new(cx);
            let keys = cx.section(Section::EdgeKeys);
            edge.edge_keys(cx, keys);
            edge.max(cx, edge_max);
            edge.positions(cx, positions);
            edge.head(cx, head);
            edge.inputs(cx, inputs);
            edge
        });
        Some(Self { s, masked, max, positions, record, edge })
    }

    pub fn begin(&self, cx: &mut Context, row: Row) {
        self.record.groups(cx, row.groups);
        self.begin_edges(cx, row);
    }

    /// What of [`Self::begin`] concerns scattered edges, and the positions of the row's queries.
    pub fn begin_edges(&self, cx: &mut Context, row: Row) {
        if let Some(edge) = self.edge {
            let offsets = cx.edge_offset(row.place);
            edge.rows(cx, row.count);
            edge.offsets(cx, offsets);
        }
        write_positions(cx, row, self.positions);
    }

    pub fn piece(&self, cx: &mut Context, row: Row, piece: Operands) {
        let record = self.record;
        let panel = cx.panel(row, self.s);
        let s = cx.panel_at(panel.base, piece.at);
        let words = if self.masked || self.max { cx.words(piece) } else { cx.e.int(0) };
        record.s(cx, s);
        record.s_stride(cx, panel.stride);
        record.nkeys(cx, piece.len);
        record.words(cx, words);
        record.keys(cx, piece.list);
        record.first_key(cx, piece.start);
        cx.call(TileFn::Mods, record.address());
    }

    pub fn edges(&self, cx: &mut Context, row: Row) {
        let Some(edge) = self.edge else { return };
        let s = cx.edges(row, self.s);
        edge.s(cx, s);
        cx.call(TileFn::EdgeMods, edge.address());
    }
}

/// `ds = factor · mods'(raw) ∘ ds`.
pub(in crate::codegen) struct ModsGradient {
    raw: Panel,
    ds: Panel,
    positions: Value,
    record: ModGradientRecord,
    edge: Option<EdgeModGradientRecord>,
}

impl ModsGradient {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let &RowOp::ModsGradient { raw, ds, factor } = op else { return None };
        let record = ModGradientRecord::new(cx);
        let positions = cx.e.stack((QUERY_BLOCK * size_of::<i32>()) as u32);
        let [head, inputs, gradients] =
            [offset_of!(KernelArgs, head), offset_of!(KernelArgs, inputs), offset_of!(KernelArgs, input_gradients)]
                .map(|field| cx.arg(field));
        let key_step = cx.key_step();
        record.positions(cx, positions);
        record.key_step(cx, key_step);
        record.head(cx, head);
        record.inputs(cx, inputs);
        record.gradients(cx, gradients);
        record.factor(cx, factor);
        let edge = cx.has_edges().then(|| {
            let edge = EdgeModGradientRecord::new(cx);
            let keys = cx.section(Section::EdgeKeys);
            edge.edge_keys(cx, keys);
            edge.positions(cx, positions);
            edge.head(cx, head);
            edge.inputs(cx, inputs);
            edge.gradients(cx, gradients);
            edge.factor(cx, factor);
            edge
        });
        Some(Self { raw, ds, positions, record, edge })
    }

    pub fn begin(&self, cx: &mut Context, row: Row) {
        self.record.groups(cx, row.groups);
        self.record.count(cx, row.count);
        if let Some(edge) = self.edge {
            let offsets = cx.edge_offset(row.place);
            edge.rows(cx, row.count);
            edge.offsets(cx, offsets);
        }
        write_positions(cx, row, self.positions);
    }

    pub fn piece(&self, cx: &mut Context, row: Row, piece: Operands) {
        let record = self.record;
        let (raw, ds) = (cx.panel(row, self.raw), cx.panel(row, self.ds));
        let [s, d] = [raw, ds].map(|panel| cx.panel_at(panel.base, piece.at));
        let words = cx.words(piece);
        record.s(cx, s);
        record.s_stride(cx, raw.stride);
        record.d(cx, d);
        record.d_stride(cx, ds.stride);
        record.nkeys(cx, piece.len);
        record.words(cx, words);
        record.keys(cx, piece.list);
        record.first_key(cx, piece.start);
        cx.call(TileFn::ModGradients, record.address());
    }

    pub fn edges(&self, cx: &mut Context, row: Row) {
        let Some(edge) = self.edge else { return };
        let [s, d] = [self.raw, self.ds].map(|panel| cx.edges(row, panel));
        edge.s(cx, s);
        edge.d(cx, d);
        cx.call(TileFn::EdgeModGradients, edge.address());
    }
}

/// Writes the positions of the row's queries, where the mods read them; lanes beyond the last one repeat its position, so
/// that an index that is proved for every query holds for them.
fn write_positions(cx: &mut Context, row: Row, positions: Value) {
    let Some(mods) = cx.plan.mods.as_ref().map(|plan| &plan.mods).filter(|mods| mods.uses_query()) else { return };
    let q_offset = mods.positions.q_offset;
    let last = cx.e.b.ins().iadd_imm_s(row.count, -1);
    if cx.plan.is_ordered() {
        let order = cx.order_of(row);
        let (zero, end) = (cx.e.int(0), cx.e.int(QUERY_BLOCK as i64));
        cx.for_range(zero, end, 1, |cx, lane| {
            let e = &mut cx.e;
            let place = e.b.ins().smin(lane, last);
            let at = e.offset(order, place, 4);
            let query = e.load_u32(at, 0);
            let position = e.b.ins().iadd_imm_s(query, q_offset);
            let position = e.low_half(position);
            let at = e.offset(positions, lane, 4);
            e.store(position, at, 0);
        });
        return;
    }
    let e = &mut cx.e;
    let first = e.b.ins().iadd_imm_s(row.place, q_offset);
    let [first, last] = [first, last].map(|x| {
        let x = e.low_half(x);
        e.b.ins().splat(types::I32X4, x)
    });
    for lane in (0..QUERY_BLOCK as u32).step_by(4) {
        let lanes = e.lanes([lane, lane + 1, lane + 2, lane + 3], types::I32X4);
        let place = e.b.ins().smin(lanes, last);
        let position = e.b.ins().iadd(place, first);
        e.store(position, positions, 4 * lane as i32);
    }
}

//! Packing, scores, and what is done to a panel of scores where tiles have not done it.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value, types};

use crate::codegen::TileFn;
use crate::codegen::context::{Context, PanelAt, Row};
use crate::codegen::records::{EdgeRecord, Hints, PackRecord, ScoreRecord};
use crate::codegen::tables::Section;
use crate::codegen::walk::{Near, Operands};
use crate::plan::{ModsBy, Packed, Panel, RowOp, Rows};
use crate::spec::score::ScoreMod;
use crate::tiles::{LANES, softcap_scale};

/// Byte offsets of a group's four vectors.
const VECTORS: [i32; 4] = [0, 16, 32, 48];

/// `out = factor · x`, packed.
pub(in crate::codegen) struct Pack {
    x: Rows,
    out: Packed,
    record: PackRecord,
    tile: TileFn,
}

impl Pack {
    pub fn new(cx: &mut Context, x: Rows, factor: f32, out: Packed) -> Self {
        let record = PackRecord::new(cx);
        let (_, stride) = cx.all_rows(x);
        record.q_stride(cx, stride);
        record.d(cx, x.width);
        // What the softcap divides by goes into the queries.
        let scores =
            cx.function.ops.iter().any(|op| matches!(op, RowOp::Sddmm { of_queries: true, x, .. } if *x == out));
        let mods = cx.plan.mods.as_ref().filter(|_| scores || cx.function.ops.len() == 1);
        let by_mods = match mods.map(|plan| (plan.by, plan.mods.mods.as_slice())) {
            Some((ModsBy::Softcap, [ScoreMod::Softcap(cap)])) => softcap_scale(*cap) as f32,
            _ => 1.0,
        };
        record.scale(cx, factor * by_mods);
        let tile = TileFn::Pack.of_width(x.width, cx.plan);
        Self { x, out, record, tile }
    }

    pub fn row(&self, cx: &mut Context, row: Row) {
        let rows = cx.rows_of(row, self.x);
        let out = cx.packed(row, self.out, self.x.width);
        self.record.q(cx, rows.base);
        self.record.rows(cx, rows.numbers);
        self.record.count(cx, row.count);
        self.record.out(cx, out);
        let address = self.record.address();
        if self.x.dtype.is_f32() {
            cx.call(self.tile, address);
        } else {
            cx.call_stored(self.tile, address, (false, false));
        }
    }
}

/// Scores on the neighbor pairs.
pub(in crate::codegen) struct Sddmm {
    x: Packed,
    queries: Rows,
    y: Rows,
    s: Panel,
    masked: bool,
    max: bool,
    of_queries: bool,
    record: ScoreRecord,
    edge: Option<EdgeRecord>,
    tiles: [TileFn; 2],
}

impl Sddmm {
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        let &RowOp::Sddmm { x, queries, edge_factor, y, s, masked, max, of_queries } = op else { return None };
        let record = ScoreRecord::new(cx);
        record.d(cx, y.width);
        let found = if max { cx.local(cx.layout().local.max) } else { cx.e.int(0) };
        record.max(cx, found);
        Hints::of_score(record).clear(cx);
        let edge = cx.has_edges().then(|| {
            let edge = EdgeRecord::at_rest(cx);
            let (_, stride) = cx.all_rows(queries);
            let keys = cx.section(Section::EdgeKeys);
            edge.q_stride(cx, stride);
            edge.d(cx, y.width);
            edge.edge_keys(cx, keys);
            edge.scale(cx, edge_factor);
            edge
        });
        let tiles = [TileFn::Score, TileFn::EdgeScore].map(|tile| tile.of_width(y.width, cx.plan));
        Some(Self { x, queries, y, s, masked, max, of_queries, record, edge, tiles })
    }

    pub fn begin(&self, cx: &mut Context, row: Row) {
        let qt = cx.packed(row, self.x, self.y.width);
        self.record.qt(cx, qt);
        self.record.groups(cx, row.groups);
        self.begin_edges(cx, row);
    }

    /// What of [`Self::begin`] concerns scattered edges.
    pub fn begin_edges(&self, cx: &mut Context, row: Row) {
        let Some(edge) = self.edge else { return };
        let rows = cx.rows_of(row, self.queries);
        let offsets = cx.edge_offset(row.place);
        edge.q(cx, rows.base);
        edge.q_rows(cx, rows.numbers);
        edge.rows(cx, row.count);
        edge.offsets(cx, offsets);
    }

    pub fn piece(&self, cx: &mut Context, row: Row, piece: Operands) {
        let record = self.record;
        let panel = cx.panel(row, self.s);
        let (k, k_stride) = cx.keys_of(self.y, piece);
        let s = cx.panel_at(panel.base, piece.at);
        let words = if self.masked { cx.words(piece) } else { cx.e.int(0) };
        record.k(cx, k);
        record.k_stride(cx, k_stride);
        record.keys(cx, piece.list);
        record.nkeys(cx, piece.len);
        record.words(cx, words);
        record.s(cx, s);
        record.s_stride(cx, panel.stride);
        let prefetches = self.of_queries && piece.near.is_some();
        if prefetches {
            self.prefetch(cx, row, piece);
        }
        let address = record.address();
        if self.y.dtype.is_f32() {
            cx.call(self.tiles[0], address);
        } else {
            cx.call_stored(self.tiles[0], address, (false, false));
        }
        if prefetches {
            Hints::of_score(record).clear(cx);
        }
    }

    fn prefetch(&self, cx: &mut Context, row: Row, piece: Operands) {
        let hints = Hints::of_score(self.record);
        let around = cx.around;
        match piece.near {
            Near::Nothing => {}
            Near::Chunk => {
                if let Some(values) = around.values {
                    cx.prefetch_keys(hints, 0, values, piece.start, piece.len);
                }
            }
            Near::Row(share) => cx.prefetch_share(hints, row, share, around),
            Near::Entry(first, count, is_last) => {
                let rows = cx.e.b.ins().imul(row.count, is_last);
                let row = Row { count: rows, ..row };
                if let Some(queries) = around.queries {
                    cx.prefetch_rows(hints, 2, queries, row, true);
                }
                if let (true, Some(outputs)) = (cx.function.spread, around.outputs) {
                    cx.prefetch_rows(hints, 3, outputs, row, false);
                }
                cx.prefetch_keys(hints, 0, self.y, first, count);
                if let Some(values) = around.values {
                    let none = cx.e.int(0);
                    let count = cx.e.b.ins().select(piece.list, none, piece.len);
                    cx.prefetch_keys(hints, 1, values, piece.start, count);
                }
            }
        }
    }

    pub fn edges(&self, cx: &mut Context, row: Row) {
        let Some(edge) = self.edge else { return };
        let (kv, stride) = cx.all_rows(self.y);
        let s = cx.edges(row, self.s);
        // A maximum that nobody wants goes where nothing is read.
        let local = &cx.layout().local;
        let max = cx.local(if self.max { local.max } else { local.correction });
        edge.kv(cx, kv);
        edge.kv_stride(cx, stride);
        edge.s(cx, s);
        edge.max(cx, max);
        let address = edge.address();
        if self.y.dtype.is_f32() {
            cx.call(self.tiles[1], address);
        } else {
            cx.call_stored(self.tiles[1], address, (false, false));
        }
    }
}

/// `s = factor · s` over a panel.
pub(super) fn scale(cx: &mut Context, row: Row, (s, factor): (Panel, f32), piece: Operands) {
    let factor = cx.e.constant(factor);
    let panel = cx.panel(row, s);
    for_panel(cx, row, panel, piece, &|cx, address, _, _| {
        for offset in VECTORS {
            let score = cx.e.load(types::F32X4, address, offset);
            let scaled = cx.e.b.ins().fmul(score, factor);
            cx.e.store(scaled, address, offset);
        }
    });
}

/// A copy of a panel.
pub(super) fn copy(cx: &mut Context, row: Row, (from, to): (Panel, Panel), piece: Operands) {
    let (from, to) = (cx.panel(row, from), cx.panel(row, to));
    let start = cx.panel_at(to.base, piece.at);
    for_panel(cx, row, from, piece, &|cx, from, group, key| {
        let at = cx.e.row(start, group, to.stride);
        let at = cx.panel_at(at, key);
        for offset in VECTORS {
            let score = cx.e.load(types::F32X4, from, offset);
            cx.e.store(score, at, offset);
        }
    });
}

/// The same of the row's scattered edges.
pub(super) fn copy_edges(cx: &mut Context, row: Row, (from, to): (Panel, Panel)) {
    let [from, to] = [from, to].map(|panel| cx.edges(row, panel));
    let count = cx.edge_count(row);
    let bytes = cx.e.b.ins().imul_imm_s(count, size_of::<f32>() as i64);
    cx.e.move_bytes(to, from, bytes);
}

/// −inf at pairs of a panel that are not neighbors.
pub(super) fn mask(cx: &mut Context, row: Row, s: Panel, piece: Operands) {
    let lowest = cx.e.constant(f32::NEG_INFINITY);
    let panel = cx.panel(row, s);
    let words = cx.words(piece);
    let no_words = cx.e.b.ins().icmp_imm_u(IntCC::Equal, words, 0);
    for_panel(cx, row, panel, piece, &|cx, address, group, key| {
        let ones = cx.e.b.ins().iconst(types::I64, -1);
        let at = cx.e.offset(words, key, 8);
        // Without words nothing is read: the address is replaced by one that is always readable.
        let at = cx.e.b.ins().select(no_words, address, at);
        let word = cx.e.load(types::I64, at, 0);
        let word = cx.e.b.ins().select(no_words, ones, word);
        let shift = cx.e.b.ins().imul_imm_s(group, LANES as i64);
        let bits = cx.e.b.ins().ushr(word, shift);
        let bits = cx.e.b.ins().ireduce(types::I32, bits);
        for (vector, offset) in (0_u32..).zip(VECTORS) {
            let score = cx.e.load(types::F32X4, address, offset);
            let wide = cx.e.b.ins().splat(types::I32X4, bits);
            let first = 4 * vector;
            let probes = cx.e.lanes([1 << first, 2 << first, 4 << first, 8 << first], types::I32X4);
            let hit = cx.e.b.ins().band(wide, probes);
            let allowed = cx.e.b.ins().icmp(IntCC::Equal, hit, probes);
            let allowed = cx.e.as_f32(allowed);
            let score = cx.e.b.ins().bitselect(allowed, score, lowest);
            cx.e.store(score, address, offset);
        }
    });
}

/// The row maxima of a panel.
pub(super) fn rowmax(cx: &mut Context, row: Row, s: Panel, piece: Operands) {
    let panel = cx.panel(row, s);
    let max = cx.local(cx.layout().local.max);
    for_panel(cx, row, panel, piece, &|cx, address, group, _| {
        let max = cx.e.offset(max, group, (LANES * 4) as i64);
        for offset in VECTORS {
            let score = cx.e.load(types::F32X4, address, offset);
            let so_far = cx.e.load(types::F32X4, max, offset);
            let larger = cx.e.max(score, so_far);
            cx.e.store(larger, max, offset);
        }
    });
}

/// The row maxima of scattered edges.
pub(super) fn rowmax_edges(cx: &mut Context, row: Row, s: Panel) {
    let s = cx.edges(row, s);
    let max = cx.local(cx.layout().local.max);
    let offsets = cx.edge_offset(row.place);
    let base = cx.e.load_u32(offsets, 0);
    let zero = cx.e.int(0);
    cx.for_range(zero, row.count, 1, |cx, r| {
        let at = cx.e.offset(offsets, r, 4);
        let [first, end] = [0, 4].map(|offset| {
            let edge = cx.e.load_u32(at, offset);
            cx.e.b.ins().isub(edge, base)
        });
        let max = cx.e.offset(max, r, 4);
        cx.for_range(first, end, 1, |cx, edge| {
            let at = cx.e.offset(s, edge, 4);
            let [score, so_far] = [at, max].map(|address| cx.e.load(types::F32, address, 0));
            let greater = cx.e.b.ins().fcmp(FloatCC::GreaterThan, score, so_far);
            let larger = cx.e.b.ins().select(greater, score, so_far);
            cx.e.store(larger, max, 0);
        });
    });
}

/// For every group and key of a piece: the address of its 16 lanes, the group and the key.
pub(super) fn for_panel(
    cx: &mut Context,
    row: Row,
    panel: PanelAt,
    piece: Operands,
    body: &dyn Fn(&mut Context, Value, Value, Value),
) {
    let start = cx.panel_at(panel.base, piece.at);
    let zero = cx.e.int(0);
    cx.for_range(zero, row.groups, 1, |cx, group| {
        let base = cx.e.row(start, group, panel.stride);
        cx.for_range(zero, piece.len, 1, |cx, key| {
            let address = cx.panel_at(base, key);
            body(cx, address, group, key);
        });
    });
}

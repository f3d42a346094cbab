//! What all operations of a function share: its arguments, tables, workspace and tiles.

use std::mem::offset_of;

use cranelift_codegen::ir::{
    ExtFuncData, ExternalName, FuncRef, Function, InstBuilder, UserExternalName, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::FunctionBuilderContext;

use super::emit::{Emit, signature};
use super::records::StoredRecord;
use super::tables::{Section, Starts};
use super::{KernelArgs, OperandArgs, TileFn};
use crate::mask::QUERY_BLOCK;
use crate::plan::{Kept, Layout, MaskPlan, Packed, Panel, RowFunction, Rows, RowsAt, VerifiedPlan};
use crate::tiles::LANES;
use crate::tiles::stored::{WIDE_OUT, WIDE_VALUES};

/// Bytes of 64 floats: one array over the queries of a block.
pub(super) const LANE_BYTES: i64 = (QUERY_BLOCK * size_of::<f32>()) as i64;

/// Writes one function of a kernel.
pub(super) struct Context<'a, 'p> {
    pub e: Emit<'a>,
    pub plan: &'p VerifiedPlan,
    pub function: &'p RowFunction,
    /// The masks of the function's walk.
    pub masks: &'p [MaskPlan],
    pub starts: Starts,
    /// The rows around the function's tiles.
    pub around: Around,
    /// 1 when the last update corrected anything, one byte on the stack.
    pub moved: Value,
    /// The function's argument.
    args: Value,
    convention: CallConv,
    tiles: [Option<FuncRef>; 2 * TileFn::ALL.len()],
    /// The record of wrappers around tiles, where tensors are stored in 16 bits.
    stored: Option<StoredRecord>,
}

/// A block row that is being walked.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Number of the row.
    pub t: Value,
    /// Place of its first query, 64 t.
    pub place: Value,
    /// Number of the row within its run (constant rows).
    pub in_run: Value,
    /// Its queries, 1 to 64.
    pub count: Value,
    /// Groups of 16 queries.
    pub groups: Value,
}

/// A panel of pairs: where its group 0 starts, and floats to the next group.
#[derive(Clone, Copy)]
pub(super) struct PanelAt {
    pub base: Value,
    pub stride: Value,
}

/// Rows of a block row: row 0, elements to the next, and the list of row numbers or null.
#[derive(Clone, Copy)]
pub(super) struct RowsOf {
    pub base: Value,
    pub stride: Value,
    pub numbers: Value,
}

/// The rows around a function's tiles, for prefetches.
#[derive(Clone, Copy, Default)]
pub(super) struct Around {
    pub queries: Option<Rows>,
    pub keys: Option<Rows>,
    pub values: Option<Rows>,
    pub outputs: Option<Rows>,
}

impl<'a> AsMut<Emit<'a>> for Context<'a, '_> {
    fn as_mut(&mut self) -> &mut Emit<'a> {
        &mut self.e
    }
}

impl<'a, 'p> Context<'a, 'p> {
    pub fn new(
        plan: &'p VerifiedPlan,
        code: &'p RowFunction,
        function: &'a mut Function,
        builder: &'a mut FunctionBuilderContext,
        isa: &dyn TargetIsa,
    ) -> Self {
        let (mut e, params) = Emit::new(function, builder, isa);
        let moved = e.stack(size_of::<u64>() as u32);
        let masks = &plan.walks[code.walk].masks;
        let mut this = Self {
            e,
            plan,
            function: code,
            masks,
            // What differs from mask to mask is read from the tables.
            starts: Starts::new(&masks[0]),
            around: Around::default(),
            moved,
            args: params[0],
            convention: isa.default_call_conv(),
            tiles: [None; 2 * TileFn::ALL.len()],
            stored: None,
        };
        if !plan.shape.dtype.is_f32() {
            let record = StoredRecord::new(&mut this);
            let buffer = this.local(plan.layout().local.widened);
            record.buffer(&mut this, buffer);
            this.stored = Some(record);
        }
        this
    }

    /// Returns from the function.
    pub fn finish(self) {
        self.e.finish(&[]);
    }

    pub fn layout(&self) -> &'p Layout {
        self.plan.layout()
    }

    /// Reads a pointer-sized field of the arguments.
    pub fn arg(&mut self, offset: usize) -> Value {
        self.e.field(self.args, offset)
    }

    /// Reads an f32 of the arguments.
    pub fn arg_f32(&mut self, offset: usize) -> Value {
        self.e.load(types::F32, self.args, offset as i32)
    }

    /// Reads an i32 of the arguments.
    pub fn arg_i32(&mut self, offset: usize) -> Value {
        self.e.load(types::I32, self.args, offset as i32)
    }

    /// A factor of the call.
    pub fn factor(&mut self, number: usize) -> Value {
        self.arg_f32(offset_of!(KernelArgs, factors) + number * size_of::<f32>())
    }

    /// Where an operand of the call is.
    pub fn operand(&mut self, number: usize) -> Value {
        self.arg(offset_of!(KernelArgs, operands) + number * size_of::<OperandArgs>() + offset_of!(OperandArgs, base))
    }

    /// Elements from one row of an operand to the next.
    pub fn operand_stride(&mut self, number: usize) -> Value {
        self.arg(offset_of!(KernelArgs, operands) + number * size_of::<OperandArgs>() + offset_of!(OperandArgs, stride))
    }

    /// The address of a section of the tables, or the number that stands in its place in the header.
    pub fn section(&mut self, section: Section) -> Value {
        let tables = self.arg(offset_of!(KernelArgs, tables));
        let offset = self.e.load(types::I64, tables, (section as usize * size_of::<u64>()) as i32);
        match section {
            Section::KeyStep => offset,
            _ => self.e.b.ins().iadd(tables, offset),
        }
    }

    /// An address in the worker's workspace.
    pub fn local(&mut self, offset: usize) -> Value {
        let base = self.arg(offset_of!(KernelArgs, local));
        self.e.b.ins().iadd_imm_s(base, offset as i64)
    }

    /// Calls a tile with its record.
    pub fn call(&mut self, tile: TileFn, record: Value) -> Option<Value> {
        let function = self.tile(tile, 0);
        let call = self.e.b.ins().call(function, &[record]);
        self.e.b.inst_results(call).first().copied()
    }

    /// Calls a tile that touches tensors, by way of its wrapper where they are stored in 16 bits: `values` says that what
    /// it reads is f32 all the same, `out` that what it writes is.
    pub fn call_stored(&mut self, tile: TileFn, record: Value, (values, out): (bool, bool)) -> Option<Value> {
        let Some(stored) = self.stored else { return self.call(tile, record) };
        let direct = self.tile(tile, 0);
        let ptr = self.e.ptr;
        let address = self.e.b.ins().func_addr(ptr, direct);
        stored.tile(self, address);
        stored.call(self, record);
        let wide = if values { WIDE_VALUES } else { 0 } | if out { WIDE_OUT } else { 0 };
        stored.wide(self, wide as i64);
        let wrapper = self.tile(tile, TileFn::ALL.len());
        let address = stored.address();
        let call = self.e.b.ins().call(wrapper, &[address]);
        self.e.b.inst_results(call).first().copied()
    }

    /// A tile, or its wrapper behind all tiles, declared where it is first called.
    fn tile(&mut self, tile: TileFn, behind: usize) -> FuncRef {
        let index = behind + tile as usize;
        if let Some(known) = self.tiles[index] {
            return known;
        }
        let returns: &[_] = if tile.returns_flag() { &[types::I64] } else { &[] };
        let signature = signature(self.convention, &[self.e.ptr], returns);
        let function = &mut self.e.b.func;
        let signature = function.import_signature(signature);
        let name = function.declare_imported_user_function(UserExternalName { namespace: 0, index: index as u32 });
        let name = ExternalName::user(name);
        let found = function.import_function(ExtFuncData { name, signature, colocated: false, patchable: false });
        self.tiles[index] = Some(found);
        found
    }

    /// The address of row `index` of rows with elements of so many bytes.
    pub fn row_at(&mut self, base: Value, index: Value, stride: Value, bytes: usize) -> Value {
        let elements = self.e.b.ins().imul(index, stride);
        self.e.offset(base, elements, bytes as i64)
    }

    /// Row 0 and the stride of rows that lie by number: of keys, or of queries as a whole.
    pub fn all_rows(&mut self, rows: Rows) -> (Value, Value) {
        match rows.at {
            RowsAt::Operand(number) => (self.operand(number), self.operand_stride(number)),
            RowsAt::Local(which) => {
                let (offset, stride) = self.layout().local.rows[which];
                (self.local(offset), self.e.int(stride as i64))
            }
            RowsAt::Sums => {
                let local = &self.layout().local;
                (self.local(local.acc), self.e.int(local.acc_stride as i64))
            }
        }
    }

    /// The rows of a block row: where they start, or row 0 with the list of their numbers.
    pub fn rows_of(&mut self, row: Row, rows: Rows) -> RowsOf {
        let (base, stride) = self.all_rows(rows);
        match rows.at {
            RowsAt::Local(_) | RowsAt::Sums => RowsOf { base, stride, numbers: self.e.int(0) },
            RowsAt::Operand(_) if self.plan.is_ordered() => RowsOf { base, stride, numbers: self.order_of(row) },
            RowsAt::Operand(_) => {
                let base = self.row_at(base, row.place, stride, rows.dtype.bytes());
                RowsOf { base, stride, numbers: self.e.int(0) }
            }
        }
    }

    /// The numbers of a block row's queries.
    pub fn order_of(&mut self, row: Row) -> Value {
        let order = self.section(Section::Order);
        self.e.offset(order, row.place, size_of::<u32>() as i64)
    }

    /// Where in an array that is kept by block row the row stands.
    pub fn slot(&mut self, row: Row, kept: Kept) -> Value {
        match kept.ring {
            0 => row.t,
            1 => self.e.int(0),
            slots => {
                let slots = self.e.int(i64::from(slots));
                self.e.b.ins().urem(row.t, slots)
            }
        }
    }

    /// The row's 64 numbers of an array that is kept.
    pub fn kept_lanes(&mut self, row: Row, kept: Kept) -> Value {
        let base = self.operand(kept.operand);
        let slot = self.slot(row, kept);
        self.e.offset(base, slot, LANE_BYTES)
    }

    /// The row's packed queries.
    pub fn packed(&mut self, row: Row, packed: Packed, width: usize) -> Value {
        match packed {
            Packed::Local(which) => self.local(self.layout().local.packed[which]),
            Packed::Kept(kept) => {
                let base = self.operand(kept.operand);
                let slot = self.slot(row, kept);
                self.e.offset(base, slot, width as i64 * LANE_BYTES)
            }
        }
    }

    /// The row's panel in f32: the worker's own, or the kept one.
    pub fn panel(&mut self, row: Row, panel: Panel) -> PanelAt {
        match panel {
            Panel { local: Some(which), .. } => {
                let base = self.local(self.layout().local.panels[which]);
                PanelAt { base, stride: self.e.int(self.layout().panel_stride as i64) }
            }
            Panel { kept: Some(kept), .. } => self.kept_panel(row, kept, size_of::<f32>()),
            Panel { .. } => PanelAt { base: self.e.int(0), stride: self.e.int(0) },
        }
    }

    /// The row's kept panel, of elements of so many bytes.
    pub fn kept_panel(&mut self, row: Row, kept: Kept, bytes: usize) -> PanelAt {
        let panels = self.operand(kept.operand);
        if kept.ring > 0 {
            let slot = self.slot(row, kept);
            let ring_stride = self.layout().ring_stride;
            let floats = ring_stride * (QUERY_BLOCK / LANES);
            let base = self.e.offset(panels, slot, (floats * bytes) as i64);
            return PanelAt { base, stride: self.e.int(ring_stride as i64) };
        }
        let table = self.section(Section::StoredPanels);
        let entry = self.e.offset(table, row.t, 16);
        let start = self.e.field(entry, 0);
        let keys = self.e.field(entry, 8);
        let base = self.e.offset(panels, start, bytes as i64);
        let padded = self.e.b.ins().bor_imm_u(keys, 1);
        let stride = self.e.b.ins().ishl_imm_u(padded, i64::from(LANES.trailing_zeros()));
        PanelAt { base, stride }
    }

    /// Keys of the row's kept panel.
    pub fn kept_keys(&mut self, row: Row) -> Value {
        let table = self.section(Section::StoredPanels);
        let entry = self.e.offset(table, row.t, 16);
        self.e.field(entry, 8)
    }

    /// The pairs of the row's scattered edges beside a panel.
    pub fn edges(&mut self, row: Row, panel: Panel) -> Value {
        if let (Some(kept), true) = (panel.kept, panel.local.is_none()) {
            return self.kept_edges(row, kept);
        }
        if let Some(kept) = panel.kept {
            // Edges stay in f32 where they are kept.
            return self.kept_edges(row, kept);
        }
        let base = self.local(self.layout().local.edges[panel.local.unwrap_or(0)]);
        self.edges_in_batch(row, base)
    }

    fn kept_edges(&mut self, row: Row, kept: Kept) -> Value {
        let base = self.operand(kept.operand + 1);
        if kept.ring > 0 {
            let slot = self.slot(row, kept);
            return self.e.offset(base, slot, (self.layout().edge_slot * size_of::<f32>()) as i64);
        }
        let at = self.edge_offset(row.place);
        let first = self.e.load_u32(at, 0);
        self.e.offset(base, first, 4)
    }

    /// Address of the offset of a place's first edge.
    pub fn edge_offset(&mut self, place: Value) -> Value {
        let offsets = self.section(Section::EdgeOffsets);
        self.e.offset(offsets, place, size_of::<u32>() as i64)
    }

    /// Whether any mask has scattered edges.
    pub fn has_edges(&self) -> bool {
        self.plan.has_edges()
    }

    /// The address of key `at` in a group's panel.
    pub fn panel_at(&mut self, panel: Value, at: Value) -> Value {
        self.e.offset(panel, at, (LANES * size_of::<f32>()) as i64)
    }

    /// Rows of K and V from one key of a range to the next.
    pub fn key_step(&mut self) -> Value {
        if self.plan.has_key_steps() { self.section(Section::KeyStep) } else { self.e.int(1) }
    }

    /// Runs a loop of the emitter with the context in its body.
    pub fn for_range(&mut self, start: Value, end: Value, step: i64, body: impl FnOnce(&mut Self, Value)) {
        let open = self.e.open_loop(start, end, &[]);
        body(self, open.index);
        self.e.close_loop(open, step, &[]);
    }

    /// Runs one of two branches.
    pub fn if_else(&mut self, condition: Value, then: impl FnOnce(&mut Self), otherwise: impl FnOnce(&mut Self)) {
        let (yes, no, after) = (self.e.b.create_block(), self.e.b.create_block(), self.e.b.create_block());
        self.e.b.ins().brif(condition, yes, &[], no, &[]);
        self.e.b.seal_block(yes);
        self.e.b.seal_block(no);
        self.e.b.switch_to_block(yes);
        then(self);
        self.e.b.ins().jump(after, &[]);
        self.e.b.switch_to_block(no);
        otherwise(self);
        self.e.b.ins().jump(after, &[]);
        self.e.b.seal_block(after);
        self.e.b.switch_to_block(after);
    }

    /// Runs `then` where `condition` is not 0.
    pub fn if_true(&mut self, condition: Value, then: impl FnOnce(&mut Self)) {
        self.if_else(condition, then, |_| {});
    }
}

//! What the functions of a kernel share: arguments, call records, the walk over block rows.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    ExtFuncData, ExternalName, FuncRef, Function, InstBuilder, UserExternalName, Value, types,
};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::FunctionBuilderContext;

use super::emit::{Emit, signature};
use super::gradient::TrainingRecords;
use super::tables::{Section, Starts};
use super::{KernelArgs, TileFn, is_ordered};
use crate::mask::QUERY_BLOCK;
use crate::plan::{KernelPlan, RowPlan, Scratch, Step};
use crate::tiles::exact::ExactCall;
use crate::tiles::half_panel::PanelCall;
use crate::tiles::stored::{StoredCall, WIDE_OUT};
use crate::tiles::{
    AHEAD_LINES, Ahead, EdgeCall, EdgeModCall, ExpCall, LANES, ModCall, PackCall, ScoreCall, ValueCall,
};

/// Bytes of 64 floats: one array over the queries of a block.
const LANE_BYTES: i64 = (QUERY_BLOCK * size_of::<f32>()) as i64;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Which hint of which record brings memory near.
#[derive(Clone, Copy)]
pub(super) enum Hint {
    /// One of the four of a score call.
    Score(usize),
    /// One of the two of a value call.
    Value(usize),
}

impl Hint {
    /// All that there are.
    const ALL: [Self; 6] =
        [Self::Score(0), Self::Score(1), Self::Score(2), Self::Score(3), Self::Value(0), Self::Value(1)];

    /// The record and where the hint stands in it.
    fn place(self, records: Records) -> (Value, usize) {
        match self {
            Self::Score(slot) => (records.score, offset_of!(ScoreCall, ahead) + slot * size_of::<Ahead>()),
            Self::Value(slot) => (records.value, offset_of!(ValueCall, ahead) + slot * size_of::<Ahead>()),
        }
    }
}

/// Writes one function of a kernel.
pub(super) struct Kernel<'a, 'p> {
    pub e: Emit<'a>,
    pub plan: &'p KernelPlan,
    pub scratch: Scratch,
    pub starts: Starts,
    /// The function's argument.
    pub args: Value,
    /// Call records on the stack.
    pub records: Records,
    /// 1 while a block row is redone because its result was not finite, else 0; on the stack.
    pub exact: Value,
    /// 1 when the last update corrected anything, one byte on the stack.
    pub moved: Value,
    /// What the value tile said of the row's output, on the stack.
    pub flag: Value,
    tiles: [FuncRef; TileFn::ALL.len()],
    /// What stands between the kernel and its tiles where tensors are stored in 16 bits.
    stored: Option<Stored>,
    /// Bytes of an element of q, k and v.
    pub element: Bytes,
    /// Bytes of an element of what the value tile reads: V, or Z in f32.
    pub value_element: Bytes,
    /// Bytes of an element of what the value tile writes: the output, or Z in f32.
    pub out_element: Bytes,
    /// Whether this is the gradient's pass, which keeps scores as they are before their mods.
    pub is_gradient_pass: bool,
    /// Whether weights are dropped as soon as they are known.
    pub drops: bool,
}

/// Bytes of an element, as the power of two.
#[derive(Clone, Copy)]
pub(super) enum Bytes {
    Known(u8),
    AtRunTime(Value),
}

impl Bytes {
    /// Of an f32.
    pub const FLOAT: Self = Self::Known(2);
}

/// [`StoredCall`], and the wrappers that take it.
#[derive(Clone, Copy)]
struct Stored {
    record: Value,
    wrappers: [FuncRef; TileFn::ALL.len()],
}

/// Addresses of the call records. Fields that never change are written once, at the function's start.
#[derive(Clone, Copy)]
pub(super) struct Records {
    pub pack: Value,
    pub score: Value,
    pub exp: Value,
    pub value: Value,
    pub exact: Value,
    pub edge: Value,
    pub panel: Value,
    /// Where the kernel has score mods: the records of their passes over panels and over edges, and the positions
    /// of the row's queries, i32 `[64]`.
    pub mods: Option<[Value; 3]>,
    /// Those of a kernel for training.
    pub training: Option<TrainingRecords>,
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
    /// Its sums, `[64][acc_stride]`.
    pub acc: Value,
}

/// Rows of a tensor, for [`Kernel::bring_near`].
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Row 0 of the tensor.
    pub base: Value,
    /// Elements from one row to the next.
    pub stride: Value,
    /// The first row wanted.
    pub first: Value,
    /// Rows from it to the next one wanted.
    pub apart: Value,
    pub element: Bytes,
    pub width: usize,
}

/// Where the steps of a row are found.
#[derive(Clone, Copy)]
pub(super) enum Steps<'p> {
    /// Known now.
    Constant(&'p [Step]),
    /// In the tables.
    Table,
}

impl<'a, 'p> Kernel<'a, 'p> {
    pub fn new(
        plan: &'p KernelPlan,
        function: &'a mut Function,
        context: &'a mut FunctionBuilderContext,
        isa: &dyn TargetIsa,
    ) -> Self {
        let none = import(function, isa, TileFn::Pack, TileFn::Pack as usize);
        let tiles = std::array::from_fn(|index| match TileFn::ALL[index] {
            TileFn::Pack => none,
            // Nothing calls them.
            TileFn::Mods | TileFn::EdgeMods | TileFn::ModGradients | TileFn::EdgeModGradients
                if plan.mods.is_none() =>
            {
                none
            }
            TileFn::NarrowPanel | TileFn::WidenPanel if plan.store.is_f32() => none,
            tile if tile.trains() && plan.training.is_none() => none,
            tile => import(function, isa, tile, index),
        });
        let wrappers = (!plan.dtype.is_f32()).then(|| {
            std::array::from_fn(|index| match TileFn::ALL[index] {
                tile if tile.touches_tensors() => import(function, isa, tile, TileFn::ALL.len() + index),
                _ => tiles[index],
            })
        });
        let (mut e, params) = Emit::new(function, context, isa);
        let mut record = |bytes: usize| e.stack(bytes as u32);
        // A kernel without score mods has no room for their records.
        let mod_records = plan
            .mods
            .is_some()
            .then(|| [size_of::<ModCall>(), size_of::<EdgeModCall>(), QUERY_BLOCK * size_of::<i32>()].map(&mut record));
        let records = Records {
            pack: record(size_of::<PackCall>()),
            score: record(size_of::<ScoreCall>()),
            exp: record(size_of::<ExpCall>()),
            value: record(size_of::<ValueCall>()),
            exact: record(size_of::<ExactCall>()),
            edge: record(size_of::<EdgeCall>()),
            panel: record(if plan.store.is_f32() { 8 } else { size_of::<PanelCall>() }),
            mods: mod_records,
            training: plan.training.is_some().then(|| TrainingRecords::new(&mut record)),
        };
        let exact = record(size_of::<u64>());
        let moved = record(size_of::<u64>());
        let flag = record(size_of::<u64>());
        let stored = wrappers.map(|wrappers| Stored { record: record(size_of::<StoredCall>()), wrappers });
        let element = Bytes::Known(plan.dtype.bytes().trailing_zeros() as u8);
        // What differs from mask to mask is read from the tables.
        let mask = &plan.masks[0];
        let (scratch, starts) = (Scratch::new(plan, mask), Starts::new(mask));
        Self {
            e,
            plan,
            scratch,
            starts,
            args: params[0],
            records,
            exact,
            moved,
            flag,
            tiles,
            stored,
            element,
            value_element: element,
            out_element: element,
            is_gradient_pass: false,
            drops: plan.training.is_some_and(|training| training.dropout),
        }
    }

    /// Returns from the function.
    pub fn finish(self) {
        self.e.finish(&[]);
    }

    /// Reads a field of the arguments.
    pub fn arg(&mut self, offset: usize) -> Value {
        self.e.field(self.args, offset)
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

    /// An address in the worker's scratch.
    pub fn local(&mut self, offset: usize) -> Value {
        let base = self.arg(offset_of!(KernelArgs, local));
        self.e.b.ins().iadd_imm_s(base, offset as i64)
    }

    /// An address in the head's scratch.
    pub fn shared(&mut self, offset: usize) -> Value {
        let base = self.arg(offset_of!(KernelArgs, shared));
        self.e.b.ins().iadd_imm_s(base, offset as i64)
    }

    /// Writes a field of a record.
    pub fn set(&mut self, record: Value, offset: usize, value: Value) {
        self.e.store(value, record, offset as i32);
    }

    /// Writes an integer or null field of a record.
    pub fn set_int(&mut self, record: Value, offset: usize, value: i64) {
        let value = self.e.int(value);
        self.set(record, offset, value);
    }

    /// Calls a tile with its record.
    pub fn call(&mut self, tile: TileFn, record: Value) -> Option<Value> {
        let tile = match tile {
            // What the gradient's pass sums are rows as wide as keys.
            TileFn::Value | TileFn::EdgeValue if self.is_gradient_pass => tile.of_gradient(),
            tile => tile,
        };
        let (function, record) = match self.stored {
            Some(stored) if tile.touches_tensors() => {
                let ptr = self.e.ptr;
                let address = self.e.b.ins().func_addr(ptr, self.tiles[tile as usize]);
                self.set(stored.record, offset_of!(StoredCall, tile), address);
                self.set(stored.record, offset_of!(StoredCall, call), record);
                (stored.wrappers[tile as usize], stored.record)
            }
            _ => (self.tiles[tile as usize], record),
        };
        let call = self.e.b.ins().call(function, &[record]);
        self.e.b.inst_results(call).first().copied()
    }

    /// Writes the fields of all records that are the same in every call.
    pub fn fill_records(&mut self) {
        let Records { pack, score, exp, value, exact, edge, .. } = self.records;
        let (d, dv) = (self.plan.head_dim as i64, self.plan.value_dim as i64);
        let acc = self.local(self.scratch.acc);
        let acc_stride = self.scratch.acc_stride as i64;
        let q_stride = self.arg(offset_of!(KernelArgs, q_stride));
        let qt = self.local(self.scratch.qt);
        let max = self.local(self.scratch.max);
        let reference = self.local(self.scratch.reference);
        let sum = self.local(self.scratch.sum);
        let factor = self.local(self.scratch.factor);

        self.set(pack, offset_of!(PackCall, q_stride), q_stride);
        self.set_int(pack, offset_of!(PackCall, d), d);
        self.set(pack, offset_of!(PackCall, out), qt);
        let scale = self.plan.scores.pack_scale * self.mods_scale();
        let scale = self.e.b.ins().f32const(scale);
        self.set(pack, offset_of!(PackCall, scale), scale);

        self.set(score, offset_of!(ScoreCall, qt), qt);
        self.set_int(score, offset_of!(ScoreCall, d), d);
        let max_in_tile = if self.plan.scores.fused { max } else { self.e.int(0) };
        self.set(score, offset_of!(ScoreCall, max), max_in_tile);

        self.bring_nothing_near();

        self.set(exp, offset_of!(ExpCall, max), reference);
        self.set(exp, offset_of!(ExpCall, sum), sum);

        self.set_int(value, offset_of!(ValueCall, dv), dv);
        self.set(value, offset_of!(ValueCall, acc), acc);
        self.set_int(value, offset_of!(ValueCall, acc_stride), acc_stride);
        self.set(value, offset_of!(ValueCall, factor), factor);
        self.set_int(value, offset_of!(ValueCall, out), 0);
        // A row without keys, and a hop with step 0, finish without a run before: no panel, no keys. The tile forms
        // addresses from these all the same.
        self.set_int(value, offset_of!(ValueCall, p), 0);
        self.set_int(value, offset_of!(ValueCall, p_stride), 0);
        self.set_int(value, offset_of!(ValueCall, v), 0);
        self.set_int(value, offset_of!(ValueCall, v_stride), 0);
        self.set_int(value, offset_of!(ValueCall, keys), 0);
        // Runs before a row's first finish carry no output, and the tile forms addresses from these all the same.
        self.set_int(value, offset_of!(ValueCall, out_stride), 0);
        self.set_int(value, offset_of!(ValueCall, out_rows), 0);
        self.set_int(value, offset_of!(ValueCall, rv), 0);
        self.set_int(value, offset_of!(ValueCall, rv_stride), 0);

        self.set_int(exact, offset_of!(ExactCall, dv), dv);
        self.set(exact, offset_of!(ExactCall, acc), acc);
        self.set_int(exact, offset_of!(ExactCall, acc_stride), acc_stride);
        self.set_int(exact, offset_of!(ExactCall, skip_zeros), 0);

        if let Some(stored) = self.stored {
            let buffer = self.local(self.scratch.widened);
            self.set(stored.record, offset_of!(StoredCall, buffer), buffer);
            self.set_int(stored.record, offset_of!(StoredCall, wide), 0);
        }

        if self.has_edges() {
            let offsets = self.section(Section::EdgeOffsets);
            let keys = self.section(Section::EdgeKeys);
            self.set(edge, offset_of!(EdgeCall, q_stride), q_stride);
            self.set_int(edge, offset_of!(EdgeCall, d), d);
            self.set_int(edge, offset_of!(EdgeCall, dv), dv);
            self.set(edge, offset_of!(EdgeCall, offsets), offsets);
            self.set(edge, offset_of!(EdgeCall, edge_keys), keys);
            self.set(edge, offset_of!(EdgeCall, acc), acc);
            self.set_int(edge, offset_of!(EdgeCall, acc_stride), acc_stride);
            // The panel's own factor, where there is one, goes onto edge scores here as well.
            let scores = self.plan.scores;
            let scale = self.e.b.ins().f32const(scores.pack_scale * scores.panel_scale.unwrap_or(1.0));
            self.set(edge, offset_of!(EdgeCall, scale), scale);
        }
        self.fill_mod_records();
        self.fill_training_records();
    }

    /// Whether keys of a range may lie apart.
    pub fn has_key_steps(&self) -> bool {
        self.plan.masks.iter().any(|mask| mask.key_step != 1)
    }

    /// Where tensors are stored in 16 bits: outputs of parts are f32 until they are joined.
    pub fn widen_parts(&mut self) {
        if let Some(stored) = self.stored.filter(|_| self.plan.parts > 1) {
            self.set_int(stored.record, offset_of!(StoredCall, wide), WIDE_OUT as i64);
            self.out_element = Bytes::FLOAT;
        }
    }

    /// Where tensors are stored in 16 bits: hops after the first read Z, and hops before the last write Z, in f32.
    pub fn widen_hop(&mut self, hop: Value) {
        let Some(stored) = self.stored else { return };
        let last = self.plan.hops.len() as i64 - 1;
        let values = self.e.b.ins().icmp_imm_u(IntCC::NotEqual, hop, 0);
        let out = self.e.b.ins().icmp_imm_u(IntCC::NotEqual, hop, last);
        let [values, out] = [values, out].map(|condition| self.e.b.ins().uextend(types::I64, condition));
        let out_bit = self.e.b.ins().ishl_imm_u(out, i64::from(WIDE_OUT.trailing_zeros()));
        let wide = self.e.b.ins().bor(values, out_bit);
        self.set(stored.record, offset_of!(StoredCall, wide), wide);
        // Two bytes, or four.
        let [values, out] = [values, out].map(|wide| Bytes::AtRunTime(self.e.b.ins().iadd_imm_s(wide, 1)));
        (self.value_element, self.out_element) = (values, out);
    }

    /// The address of row `index` of a tensor.
    pub fn tensor_row(&mut self, base: Value, index: Value, stride: Value, element: Bytes) -> Value {
        let elements = self.e.b.ins().imul(index, stride);
        let bytes = match element {
            Bytes::Known(shift) => self.e.b.ins().ishl_imm_u(elements, i64::from(shift)),
            Bytes::AtRunTime(shift) => self.e.b.ins().ishl(elements, shift),
        };
        self.e.b.ins().iadd(base, bytes)
    }

    /// Whether any mask has scattered edges.
    pub fn has_edges(&self) -> bool {
        self.plan.masks.iter().any(|mask| !mask.edges.keys.is_empty())
    }

    /// Walks the block rows of this call that the plan knows, in order.
    pub fn for_rows(&mut self, body: impl Fn(&mut Self, Row, Steps<'p>)) {
        let first = self.arg(offset_of!(KernelArgs, first_row));
        let end = self.arg(offset_of!(KernelArgs, end_row));
        self.for_rows_of(first, end, body);
    }

    /// The same in batches, whose scattered edges come first: `edges` takes the block rows from one to another.
    pub fn for_batches(
        &mut self,
        edges: impl FnOnce(&mut Self, Value, Value),
        body: impl Fn(&mut Self, Row, Steps<'p>),
    ) {
        let first = self.arg(offset_of!(KernelArgs, first_row));
        let end = self.arg(offset_of!(KernelArgs, end_row));
        let batch = self.scratch.batch as i64;
        let shift = i64::from(batch.trailing_zeros());
        let up = self.e.b.ins().iadd_imm_s(end, batch - 1);
        let [first_batch, end_batch] = [first, up].map(|row| self.e.b.ins().ushr_imm_u(row, shift));
        self.for_range(first_batch, end_batch, 1, |kernel, number| {
            let from = kernel.e.b.ins().ishl_imm_u(number, shift);
            let to = kernel.e.b.ins().iadd_imm_s(from, batch);
            let from = kernel.e.b.ins().smax(from, first);
            let to = kernel.e.b.ins().smin(to, end);
            edges(kernel, from, to);
            kernel.for_rows_of(from, to, body);
        });
    }

    fn for_rows_of(&mut self, first: Value, end: Value, body: impl Fn(&mut Self, Row, Steps<'p>)) {
        // A kernel of several masks has only table rows, the same for each.
        let rows: &'p [RowPlan] = &self.plan.masks[0].rows;
        for group in rows.chunk_by(|a, b| a.table && b.table) {
            let (run_first, last) = (group[0].first, &group[group.len() - 1]);
            let run_end = last.first + last.count;
            let run_first = self.e.int(i64::from(run_first));
            let run_end = self.e.int(i64::from(run_end));
            let start = self.e.b.ins().smax(first, run_first);
            let stop = self.e.b.ins().smin(end, run_end);
            let steps = if group[0].table { Steps::Table } else { Steps::Constant(&group[0].steps) };
            self.for_range(start, stop, 1, |kernel, t| {
                let row = kernel.row(t, run_first);
                body(kernel, row, steps);
            });
        }
    }

    /// Block row `t` of a run that starts at `run_first`.
    pub fn row(&mut self, t: Value, run_first: Value) -> Row {
        let place = self.e.b.ins().ishl_imm_u(t, i64::from(QUERY_BLOCK.trailing_zeros()));
        let in_run = self.e.b.ins().isub(t, run_first);
        let block = self.e.int(QUERY_BLOCK as i64);
        let count = if self.plan.q_len.is_multiple_of(QUERY_BLOCK) {
            block
        } else {
            let end = self.e.int(self.plan.q_len as i64);
            let left = self.e.b.ins().isub(end, place);
            self.e.b.ins().smin(left, block)
        };
        let up = self.e.b.ins().iadd_imm_s(count, LANES as i64 - 1);
        let groups = self.e.b.ins().ushr_imm_u(up, i64::from(LANES.trailing_zeros()));
        let acc = self.sums_of(t);
        Row { t, place, in_run, count, groups, acc }
    }

    /// Where the row's queries (or outputs) start, and the list of their row numbers or null.
    pub fn rows_of(&mut self, row: Row, base: Value, stride: Value, element: Bytes) -> (Value, Value) {
        if is_ordered(self.plan) {
            let order = self.section(Section::Order);
            let order = self.e.offset(order, row.place, size_of::<u32>() as i64);
            return (base, order);
        }
        let at = self.tensor_row(base, row.place, stride, element);
        (at, self.e.int(0))
    }

    /// Packs the row's queries where a step needs them so, and sets the fields that hold its number of queries and groups.
    pub fn begin_row(&mut self, row: Row, steps: Steps<'p>) {
        let Records { pack, score, exp, edge, .. } = self.records;
        let q = self.arg(offset_of!(KernelArgs, q));
        let q_stride = self.arg(offset_of!(KernelArgs, q_stride));
        let (q, rows) = self.rows_of(row, q, q_stride, self.element);
        self.set(pack, offset_of!(PackCall, q), q);
        self.set(pack, offset_of!(PackCall, rows), rows);
        self.set(pack, offset_of!(PackCall, count), row.count);
        // Edges read their queries in place.
        let only_edges = matches!(steps, Steps::Constant(steps) if steps.iter().all(|step| *step == Step::Edges));
        if !only_edges {
            self.call(TileFn::Pack, pack);
        }
        self.set(score, offset_of!(ScoreCall, groups), row.groups);
        self.set(exp, offset_of!(ExpCall, groups), row.groups);
        self.begin_values(row);
        if self.has_edges() {
            self.set(edge, offset_of!(EdgeCall, q), q);
            self.set(edge, offset_of!(EdgeCall, q_rows), rows);
        }
        self.begin_mods(row);
        self.begin_training(row);
        self.begin_statistics();
    }

    /// Maxima and sums of a row that has met no key.
    pub fn begin_statistics(&mut self) {
        let lowest = self.e.constant(f32::NEG_INFINITY);
        let zero = self.e.constant(0.0);
        let max = self.local(self.scratch.max);
        let old = self.local(self.scratch.old);
        let sum = self.local(self.scratch.sum);
        let (start, end) = (self.e.int(0), self.e.int(LANE_BYTES));
        self.for_range(start, end, 16, |kernel, lane| {
            for (base, value) in [(max, lowest), (old, lowest), (sum, zero)] {
                let at = kernel.e.b.ins().iadd(base, lane);
                kernel.e.store(value, at, 0);
            }
        });
    }

    /// Asks the next score or value call to bring rows of a tensor near.
    pub fn bring_near(&mut self, hint: Hint, tensor: Rows, rows: Value) {
        let Rows { base, stride, first, apart, element, width } = tensor;
        let (record, place) = hint.place(self.records);
        let start = self.tensor_row(base, first, stride, element);
        let line = LINE_BYTES / self.plan.dtype.bytes();
        let stride = self.e.b.ins().imul(stride, apart);
        // Rows that follow each other closely are one region; of others, the first lines of each are brought.
        let closely = self.e.b.ins().icmp_imm_u(IntCC::Equal, stride, width as i64);
        let lines = self.e.b.ins().imul_imm_s(rows, width.div_ceil(line) as i64);
        let whole = self.e.b.ins().iadd_imm_s(lines, AHEAD_LINES as i64 - 1);
        let whole = self.e.b.ins().ushr_imm_u(whole, i64::from(AHEAD_LINES.trailing_zeros()));
        let count = self.e.b.ins().select(closely, whole, rows);
        let zero = self.e.int(0);
        let one = self.e.int(1);
        let row_step = self.tensor_row(zero, stride, one, element);
        let together = self.e.int((AHEAD_LINES * LINE_BYTES) as i64);
        let step = self.e.b.ins().select(closely, together, row_step);
        self.set(record, place + offset_of!(Ahead, start), start);
        self.set(record, place + offset_of!(Ahead, count), count);
        self.set(record, place + offset_of!(Ahead, step), step);
    }

    /// Takes back what [`Self::bring_near`] asked for.
    pub fn bring_nothing_near(&mut self) {
        for hint in Hint::ALL {
            let (record, place) = hint.place(self.records);
            self.set_int(record, place + offset_of!(Ahead, count), 0);
        }
    }

    /// The queries of the next block row. Where rows have an order, it is taken to go on as its next two rows do.
    pub fn bring_queries_near(&mut self, hint: Hint, row: Row) {
        let q = self.arg(offset_of!(KernelArgs, q));
        let q_stride = self.arg(offset_of!(KernelArgs, q_stride));
        let next = self.e.b.ins().iadd_imm_s(row.place, QUERY_BLOCK as i64);
        let (first, apart) = self.order_at(next);
        let (element, width) = (self.element, self.plan.head_dim);
        self.bring_near(hint, Rows { base: q, stride: q_stride, first, apart, element, width }, row.count);
    }

    /// The row's own outputs.
    pub fn bring_outputs_near(&mut self, hint: Hint, row: Row) {
        let out = self.arg(offset_of!(KernelArgs, target));
        let out_stride = self.arg(offset_of!(KernelArgs, target_stride));
        let (first, apart) = self.order_at(row.place);
        let (element, width) = (self.out_element, self.plan.value_dim);
        self.bring_near(hint, Rows { base: out, stride: out_stride, first, apart, element, width }, row.count);
    }

    /// What the next block row's outputs are made of besides sums: the rows that are written, and those of V for the
    /// restart, which a sweep has last read some rows ago. By hints of the next value call.
    pub fn bring_next_outputs_near(&mut self, row: Row, (out, out_stride): (Value, Value)) {
        let next = self.e.b.ins().iadd_imm_s(row.place, QUERY_BLOCK as i64);
        let (first, apart) = self.order_at(next);
        let width = self.plan.value_dim;
        let v = self.arg(offset_of!(KernelArgs, v));
        let v_stride = self.arg(offset_of!(KernelArgs, v_stride));
        let values = Rows { base: v, stride: v_stride, first, apart, element: self.element, width };
        self.bring_near(Hint::Value(0), values, row.count);
        let outputs = Rows { base: out, stride: out_stride, first, apart, element: self.out_element, width };
        self.bring_near(Hint::Value(1), outputs, row.count);
    }

    /// The query at a place, and how far from it the one at the next place is.
    fn order_at(&mut self, place: Value) -> (Value, Value) {
        if !is_ordered(self.plan) {
            return (place, self.e.int(1));
        }
        let order = self.section(Section::Order);
        let at = self.e.offset(order, place, size_of::<u32>() as i64);
        let first = self.e.load_u32(at, 0);
        let second = self.e.load_u32(at, 4);
        (first, self.e.b.ins().isub(second, first))
    }

    /// Keys `first .. first + count`.
    pub fn bring_keys_near(&mut self, hint: Hint, first: Value, count: Value) {
        let base = self.arg(offset_of!(KernelArgs, k));
        let stride = self.arg(offset_of!(KernelArgs, k_stride));
        let apart = self.key_step();
        let (element, width) = (self.element, self.plan.head_dim);
        self.bring_near(hint, Rows { base, stride, first, apart, element, width }, count);
    }

    /// Values `first .. first + count`.
    pub fn bring_values_near(&mut self, hint: Hint, first: Value, count: Value) {
        let base = self.arg(offset_of!(KernelArgs, v));
        let stride = self.arg(offset_of!(KernelArgs, v_stride));
        let apart = self.key_step();
        let (element, width) = (self.element, self.plan.value_dim);
        self.bring_near(hint, Rows { base, stride, first, apart, element, width }, count);
    }

    /// Rows of K and V from one key of a range to the next.
    fn key_step(&mut self) -> Value {
        if self.has_key_steps() { self.section(Section::KeyStep) } else { self.e.int(1) }
    }

    /// Sets the fields of the value records that hold the row's number of queries, and starts sums at zero.
    pub fn begin_values(&mut self, row: Row) {
        let Records { value, exact, edge, .. } = self.records;
        self.set(value, offset_of!(ValueCall, rows), row.count);
        self.set(exact, offset_of!(ExactCall, rows), row.count);
        self.set_int(value, offset_of!(ValueCall, accumulate), 0);
        if self.batches_edges() {
            self.set(value, offset_of!(ValueCall, acc), row.acc);
            self.set(exact, offset_of!(ExactCall, acc), row.acc);
        } else if self.has_edges() {
            self.set(edge, offset_of!(EdgeCall, rows), row.count);
            let offsets = self.section(Section::EdgeOffsets);
            let offsets = self.e.offset(offsets, row.place, size_of::<u32>() as i64);
            self.set(edge, offset_of!(EdgeCall, offsets), offsets);
        }
    }

    /// Whether the row is being redone exactly; not 0 if so.
    pub fn is_exact(&mut self) -> Value {
        self.e.field(self.exact, 0)
    }

    /// Runs `row_body`, which writes the row's output, and once more with `is_exact` set where the value tile's flag
    /// says that a result is not finite: a NaN or Inf value of a forbidden pair may have met its probability 0.
    pub fn redo_if_not_finite(&mut self, redo: bool, row_body: impl FnOnce(&mut Self)) {
        let zero = self.e.int(0);
        self.e.store(zero, self.exact, 0);
        if !redo {
            row_body(self);
            return;
        }
        let (again, after) = (self.e.b.create_block(), self.e.b.create_block());
        self.e.b.ins().jump(again, &[]);
        self.e.b.switch_to_block(again);
        row_body(self);
        let flag = self.e.field(self.flag, 0);
        let was_exact = self.is_exact();
        let one = self.e.int(1);
        self.e.store(one, self.exact, 0);
        let more = self.e.b.ins().icmp(IntCC::UnsignedGreaterThan, flag, was_exact);
        self.e.b.ins().brif(more, again, &[], after, &[]);
        self.e.b.seal_block(again);
        self.e.b.seal_block(after);
        self.e.b.switch_to_block(after);
    }

    /// Runs a loop of the emitter with the kernel in its body.
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

    /// The address of key `at` in a group's panel.
    pub fn panel_at(&mut self, panel: Value, at: Value) -> Value {
        self.e.offset(panel, at, (LANES * size_of::<f32>()) as i64)
    }
}

fn import(function: &mut Function, isa: &dyn TargetIsa, tile: TileFn, index: usize) -> FuncRef {
    let returns: &[_] = if tile.returns_flag() { &[types::I64] } else { &[] };
    let signature = function.import_signature(signature(isa.default_call_conv(), &[isa.pointer_type()], returns));
    let name = function.declare_imported_user_function(UserExternalName { namespace: 0, index: index as u32 });
    function.import_function(ExtFuncData {
        name: ExternalName::user(name),
        signature,
        colocated: false,
        patchable: false,
    })
}

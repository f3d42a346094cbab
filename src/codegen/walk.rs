//! The walk over block rows: rows of a call, steps of a row, pieces and runs of a step, from constants or from tables.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::KernelArgs;
use super::context::{Around, Context, Row};
use super::records::Hints;
use super::tables::{EDGE_STEP, ENTRY_WORDS, NONE, Section};
use crate::mask::QUERY_BLOCK;
use crate::plan::{Piece, PieceKeys, RowPlan, Rows, RowsAt, Share, Step, Stretch, ValueRun, of_pieces, of_runs};
use crate::program::BlockTest;
use crate::tiles::{AHEAD_LINES, LANES, ROW_BLOCKS};

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Where the steps of a row are found.
#[derive(Clone, Copy)]
pub(super) enum Steps<'p> {
    /// Known now.
    Constant(&'p [Step]),
    /// In the tables.
    Table,
}

/// What a step is, with where its pieces are.
#[derive(Clone, Copy)]
pub(super) enum StepKind<'p> {
    Edges,
    Joint(Source<'p>),
    Stream(Stretch),
}

/// Where a joint step stands in its row, as far as that is known when code is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct InRow {
    /// Whether nothing was scored before it.
    pub first: bool,
    /// Whether nothing comes behind it.
    pub last: bool,
}

/// Where pieces and runs of a joint step are found.
#[derive(Clone, Copy)]
pub(super) enum Source<'p> {
    /// Known now.
    Constant(&'p [Piece], &'p [ValueRun], InRow),
    /// Address of the step's entry.
    Table(Value),
}

/// Operands of one piece or run.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// First key, 0 for a list.
    pub start: Value,
    /// Keys.
    pub len: Value,
    /// Address of the list, or 0.
    pub list: Value,
    /// Address of mask words (a piece) or trims (a run), or 0.
    pub aux: Value,
    /// Where the first key stands in the panel.
    pub at: Value,
    /// Whether mask words may exist.
    pub masked: Masked,
    /// What its call prefetches.
    pub near: Near,
}

/// What is known of a piece's mask when code is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Masked {
    Yes,
    No,
    Perhaps,
}

/// What a score or value call prefetches.
#[derive(Clone, Copy)]
pub(super) enum Near {
    Nothing,
    /// With a chunk: its values while it is scored, the keys of the next chunk while its values are added.
    Chunk,
    /// With a piece or run of a constant row. Each call takes a share, so that fetches are spread over the whole row.
    Row(Share),
    /// The piece's own values, the keys of the piece behind it in the tables (its first key, number of keys), and with
    /// the step's last piece (1, else 0) what concerns the whole row.
    Entry(Value, Value, Value),
}

impl Near {
    pub const fn is_some(self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Chunk | Self::Entry(..) => true,
            Self::Row(share) => share.is_some(),
        }
    }
}

impl Source<'_> {
    /// Whether this is known to be the row's first step.
    pub const fn is_first(self) -> bool {
        matches!(self, Self::Constant(_, _, InRow { first: true, .. }))
    }

    /// Whether this is known to be the row's last step.
    pub const fn is_last(self) -> bool {
        matches!(self, Self::Constant(_, _, InRow { last: true, .. }))
    }
}

impl<'p> Steps<'p> {
    /// Whether a row of these steps can need the exact redo.
    pub fn has_masks(self) -> bool {
        match self {
            Self::Table => true,
            Self::Constant(steps) => steps.iter().any(|step| match step {
                Step::Joint { pieces, .. } => pieces.iter().any(|piece| piece.mask.is_some()),
                Step::Edges | Step::Stream(_) => false,
            }),
        }
    }

    /// Whether the row's output can be written by its last run, while the sums are in registers.
    pub fn end_in_run(self) -> bool {
        match self {
            Self::Constant(steps) => matches!(steps.last(), Some(Step::Joint { runs, .. }) if !runs.is_empty()),
            Self::Table => false,
        }
    }

    /// Whether the row is known to have scattered edges alone.
    pub fn only_edges(self) -> bool {
        matches!(self, Self::Constant(steps) if steps.iter().all(|step| *step == Step::Edges))
    }
}

impl<'p> Context<'_, 'p> {
    /// The block rows of the call: the first, and the one behind the last.
    pub fn rows_of_call(&mut self) -> (Value, Value) {
        (self.arg(offset_of!(KernelArgs, first_row)), self.arg(offset_of!(KernelArgs, end_row)))
    }

    /// Walks block rows `first .. end`, in order.
    pub fn for_rows(&mut self, first: Value, end: Value, body: &dyn Fn(&mut Self, Row, Steps<'p>)) {
        // A kernel of several masks has only table rows, the same for each.
        let rows: &'p [RowPlan] = &self.masks[0].rows;
        for group in rows.chunk_by(|a, b| a.table && b.table) {
            let (run_first, last) = (group[0].first, &group[group.len() - 1]);
            let run_end = last.first + last.count;
            let run_first = self.e.int(i64::from(run_first));
            let run_end = self.e.int(i64::from(run_end));
            let start = self.e.b.ins().smax(first, run_first);
            let stop = self.e.b.ins().smin(end, run_end);
            let steps = if group[0].table { Steps::Table } else { Steps::Constant(&group[0].steps) };
            self.for_range(start, stop, 1, |cx, t| {
                let row = cx.row(t, run_first);
                body(cx, row, steps);
            });
        }
    }

    /// Walks block rows without regard to their keys.
    pub fn for_bare_rows(&mut self, first: Value, end: Value, body: &dyn Fn(&mut Self, Row)) {
        self.for_range(first, end, 1, |cx, t| {
            let row = cx.row(t, t);
            body(cx, row);
        });
    }

    /// Block row `t` of a run that starts at `run_first`.
    pub fn row(&mut self, t: Value, run_first: Value) -> Row {
        let q_len = self.plan.shape.q_len;
        let place = self.e.b.ins().ishl_imm_u(t, i64::from(QUERY_BLOCK.trailing_zeros()));
        let in_run = self.e.b.ins().isub(t, run_first);
        let block = self.e.int(QUERY_BLOCK as i64);
        let count = if q_len.is_multiple_of(QUERY_BLOCK) {
            block
        } else {
            let end = self.e.int(q_len as i64);
            let left = self.e.b.ins().isub(end, place);
            self.e.b.ins().smin(left, block)
        };
        let up = self.e.b.ins().iadd_imm_s(count, LANES as i64 - 1);
        let groups = self.e.b.ins().ushr_imm_u(up, i64::from(LANES.trailing_zeros()));
        Row { t, place, in_run, count, groups }
    }

    /// Runs `body` for every step of the row.
    pub fn for_steps(&mut self, row: Row, steps: Steps<'p>, body: &dyn Fn(&mut Self, StepKind<'p>)) {
        match steps {
            Steps::Constant(steps) => {
                for (index, step) in steps.iter().enumerate() {
                    let in_row = InRow { first: index == 0, last: index + 1 == steps.len() };
                    let kind = match step {
                        Step::Edges => StepKind::Edges,
                        Step::Joint { pieces, runs } => StepKind::Joint(Source::Constant(pieces, runs, in_row)),
                        Step::Stream(stretch) => StepKind::Stream(*stretch),
                    };
                    body(self, kind);
                }
            }
            Steps::Table => {
                let rows = self.section(Section::Rows);
                let entry = self.e.offset(rows, row.t, 8);
                let first = self.e.load_u32(entry, 0);
                let count = self.e.load_u32(entry, 4);
                let end = self.e.b.ins().iadd(first, count);
                let table = self.section(Section::Steps);
                let has_edges = self.has_edges();
                self.for_range(first, end, 1, |cx, index| {
                    let step = cx.e.offset(table, index, 16);
                    if !has_edges {
                        body(cx, StepKind::Joint(Source::Table(step)));
                        return;
                    }
                    let pieces = cx.e.load_u32(step, 4);
                    let is_edges = cx.e.b.ins().icmp_imm_u(IntCC::Equal, pieces, i64::from(EDGE_STEP));
                    cx.if_else(
                        is_edges,
                        |cx| body(cx, StepKind::Edges),
                        |cx| body(cx, StepKind::Joint(Source::Table(step))),
                    );
                });
            }
        }
    }

    /// Runs `body` for every piece of a joint step.
    pub fn for_pieces(&mut self, row: Row, source: Source<'p>, body: &dyn Fn(&mut Self, Operands)) {
        match source {
            Source::Constant(pieces, ..) => {
                // A kernel of several masks has no constant rows.
                let shares = of_pieces(pieces, self.masks[0].key_step, self.function.spread);
                for (piece, share) in pieces.iter().zip(shares) {
                    let list = self.starts.list(piece.keys);
                    let aux = self.starts.word(piece.mask);
                    let mut operands = self.constant(row, piece.keys, piece.at, list);
                    if let Some(address) = self.entry_address(Section::Words, aux, 8) {
                        operands.aux = address;
                        operands.masked = Masked::Yes;
                    }
                    operands.near = Near::Row(share);
                    body(self, operands);
                }
            }
            Source::Table(step) => self.for_entries(step, 0, Section::Pieces, (Section::Words, 8), body),
        }
    }

    /// Runs `body` for every value run of a joint step; it is told which one is known to be the step's last.
    pub fn for_runs(&mut self, row: Row, source: Source<'p>, body: &dyn Fn(&mut Self, Operands, bool)) {
        const TRIM_BYTES: i64 = (ROW_BLOCKS * size_of::<[u32; 2]>()) as i64;
        match source {
            Source::Constant(pieces, runs, _) => {
                let shares = of_runs(pieces, runs, self.masks[0].key_step, self.function.spread);
                for (index, (run, share)) in runs.iter().zip(shares).enumerate() {
                    let list = self.starts.list(run.keys);
                    let mut operands = self.constant(row, run.keys, run.at, list);
                    if let Some(address) = self.entry_address(Section::Trims, run.trims.unwrap_or(NONE), TRIM_BYTES) {
                        operands.aux = address;
                    }
                    operands.near = Near::Row(share);
                    body(self, operands, index + 1 == runs.len());
                }
            }
            Source::Table(step) => {
                self.for_entries(step, 8, Section::Runs, (Section::Trims, TRIM_BYTES), &|cx, run| body(cx, run, false));
            }
        }
    }

    /// Runs `body` for every chunk of a stretch of unmasked keys.
    pub fn for_chunks(&mut self, row: Row, stretch: Stretch, body: &dyn Fn(&mut Self, Operands)) {
        let (start, len) = self.stretch(row, stretch);
        let end = self.e.b.ins().iadd(start, len);
        let chunk = i64::from(self.plan.tuning.chunk_keys);
        let most = self.e.int(chunk);
        self.for_range(start, end, chunk, |cx, key| {
            let left = cx.e.b.ins().isub(end, key);
            let len = cx.e.b.ins().smin(left, most);
            let zero = cx.e.int(0);
            let (masked, near) = (Masked::No, Near::Chunk);
            body(cx, Operands { start: key, len, list: zero, aux: zero, at: zero, masked, near });
        });
    }

    fn entry_address(&mut self, section: Section, index: u32, bytes: i64) -> Option<Value> {
        if index == NONE {
            return None;
        }
        let base = self.section(section);
        Some(self.e.b.ins().iadd_imm_s(base, i64::from(index) * bytes))
    }

    fn constant(&mut self, row: Row, keys: PieceKeys, at: u32, list: u32) -> Operands {
        let (start, len) = match keys {
            PieceKeys::Range(stretch) => self.stretch(row, stretch),
            PieceKeys::List { len, .. } => (self.e.int(0), self.e.int(i64::from(len))),
        };
        let zero = self.e.int(0);
        let list = self.entry_address(Section::Lists, list, 4).unwrap_or(zero);
        let at = self.e.int(i64::from(at));
        Operands { start, len, list, aux: zero, at, masked: Masked::No, near: Near::Nothing }
    }

    /// First key and number of keys of a stretch in this row.
    fn stretch(&mut self, row: Row, stretch: Stretch) -> (Value, Value) {
        let mut affine = |base: u32, step: u32| {
            let base = self.e.int(i64::from(base));
            match step {
                0 => base,
                step => {
                    let moved = self.e.b.ins().imul_imm_s(row.in_run, i64::from(step));
                    self.e.b.ins().iadd(base, moved)
                }
            }
        };
        (affine(stretch.start, stretch.start_step), affine(stretch.len, stretch.len_step))
    }

    fn for_entries(
        &mut self,
        step: Value,
        field: i32,
        entries: Section,
        (aux, aux_bytes): (Section, i64),
        body: &dyn Fn(&mut Self, Operands),
    ) {
        let first = self.e.load_u32(step, field);
        let count = self.e.load_u32(step, field + 4);
        let end = self.e.b.ins().iadd(first, count);
        let table = self.section(entries);
        let lists = self.section(Section::Lists);
        let aux_table = self.section(aux);
        let masked = if aux == Section::Words { Masked::Perhaps } else { Masked::No };
        self.for_range(first, end, 1, |cx, index| {
            let entry = cx.e.offset(table, index, (ENTRY_WORDS * size_of::<u32>()) as i64);
            let [start, len, at] = [0, 4, 8].map(|offset| cx.e.load_u32(entry, offset));
            let list = cx.optional(entry, 12, lists, 4);
            let aux = cx.optional(entry, 16, aux_table, aux_bytes);
            let near = match entries {
                Section::Pieces => {
                    let next = (ENTRY_WORDS * size_of::<u32>()) as i32;
                    let keys = cx.e.load_u32(entry, next);
                    let count = cx.e.load_u32(entry, next + 4);
                    let list = cx.e.load_u32(entry, next + 12);
                    let is_range = cx.e.b.ins().icmp_imm_u(IntCC::Equal, list, i64::from(NONE));
                    let none = cx.e.int(0);
                    let count = cx.e.b.ins().select(is_range, count, none);
                    let behind = cx.e.b.ins().iadd_imm_s(index, 1);
                    let is_last = cx.e.b.ins().icmp(IntCC::Equal, behind, end);
                    Near::Entry(keys, count, cx.e.b.ins().uextend(types::I64, is_last))
                }
                _ => Near::Nothing,
            };
            body(cx, Operands { start, len, list, aux, at, masked, near });
        });
    }

    /// The address of an entry whose index stands in a table, or 0 where the index is [`NONE`].
    fn optional(&mut self, entry: Value, offset: i32, base: Value, bytes: i64) -> Value {
        let index = self.e.load_u32(entry, offset);
        let address = self.e.offset(base, index, bytes);
        let is_none = self.e.b.ins().icmp_imm_u(IntCC::Equal, index, i64::from(NONE));
        let zero = self.e.int(0);
        self.e.b.ins().select(is_none, zero, address)
    }

    /// Elements from one key of a piece to the next; `stride` is that from row to row.
    pub fn key_stride(&mut self, stride: Value, piece: Operands) -> Value {
        if !self.plan.has_key_steps() {
            return stride;
        }
        let step = self.section(Section::KeyStep);
        let apart = self.e.b.ins().imul(stride, step);
        self.e.b.ins().select(piece.list, stride, apart)
    }

    /// The first row of a piece's keys in `rows`, and elements to the next.
    pub fn keys_of(&mut self, rows: Rows, piece: Operands) -> (Value, Value) {
        let (base, stride) = self.all_rows(rows);
        let first = self.row_at(base, piece.start, stride, rows.dtype.bytes());
        (first, self.key_stride(stride, piece))
    }

    /// The words a piece is tested against, or 0.
    pub fn words(&mut self, piece: Operands) -> Value {
        if self.plan.block_test == BlockTest::Partial || piece.masked == Masked::Yes {
            return piece.aux;
        }
        let ones = self.section(Section::Ones);
        let has_words = self.e.b.ins().icmp_imm_u(IntCC::NotEqual, piece.aux, 0);
        self.e.b.ins().select(has_words, piece.aux, ones)
    }

    /// Asks the next call of a record to prefetch rows: `rows` of them from `first` on, `apart` rows from one another.
    fn prefetch(&mut self, hints: Hints, slot: usize, of: Rows, (first, apart): (Value, Value), rows: Value) {
        let RowsAt::Operand(_) = of.at else { return };
        let (base, stride) = self.all_rows(of);
        let bytes = of.dtype.bytes();
        let start = self.row_at(base, first, stride, bytes);
        let line = LINE_BYTES / self.plan.shape.dtype.bytes();
        let stride = self.e.b.ins().imul(stride, apart);
        // Rows that follow each other closely are one region; of others, the first lines of each are fetched.
        let closely = self.e.b.ins().icmp_imm_u(IntCC::Equal, stride, of.width as i64);
        let lines = self.e.b.ins().imul_imm_s(rows, of.width.div_ceil(line) as i64);
        let whole = self.e.b.ins().iadd_imm_s(lines, AHEAD_LINES as i64 - 1);
        let whole = self.e.b.ins().ushr_imm_u(whole, i64::from(AHEAD_LINES.trailing_zeros()));
        let count = self.e.b.ins().select(closely, whole, rows);
        let zero = self.e.int(0);
        let one = self.e.int(1);
        let row_step = self.row_at(zero, stride, one, bytes);
        let together = self.e.int((AHEAD_LINES * LINE_BYTES) as i64);
        let step = self.e.b.ins().select(closely, together, row_step);
        hints.set(self, slot, (start, count, step));
    }

    /// Prefetches keys or values `first .. first + count`.
    pub fn prefetch_keys(&mut self, hints: Hints, slot: usize, of: Rows, first: Value, count: Value) {
        let apart = self.key_step();
        self.prefetch(hints, slot, of, (first, apart), count);
    }

    /// Prefetches rows of the block row, or of the next one. Where rows have an order, it is taken to go on as its first
    /// two rows do.
    pub fn prefetch_rows(&mut self, hints: Hints, slot: usize, of: Rows, row: Row, next: bool) {
        let place = if next { self.e.b.ins().iadd_imm_s(row.place, QUERY_BLOCK as i64) } else { row.place };
        let from = if self.plan.is_ordered() {
            let order = self.section(Section::Order);
            let at = self.e.offset(order, place, size_of::<u32>() as i64);
            let first = self.e.load_u32(at, 0);
            let second = self.e.load_u32(at, 4);
            (first, self.e.b.ins().isub(second, first))
        } else {
            (place, self.e.int(1))
        };
        self.prefetch(hints, slot, of, from, row.count);
    }

    /// Prefetches a share of what concerns the whole row, in the order in which it is needed. What of it the function has
    /// not, is left out.
    pub fn prefetch_share(&mut self, hints: Hints, row: Row, share: Share, around: Around) {
        let mut slot = 0;
        let mut next = || {
            slot += 1;
            slot - 1
        };
        if let (true, Some(queries)) = (share.queries, around.queries) {
            self.prefetch_rows(hints, next(), queries, row, true);
        }
        if let (Some(stretch), Some(keys)) = (share.keys, around.keys) {
            let (first, count) = self.stretch(row, stretch);
            self.prefetch_keys(hints, next(), keys, first, count);
        }
        if let (Some(stretch), Some(values)) = (share.values, around.values) {
            let (first, count) = self.stretch(row, stretch);
            self.prefetch_keys(hints, next(), values, first, count);
        }
        if let (true, Some(outputs)) = (share.outputs, around.outputs) {
            self.prefetch_rows(hints, next(), outputs, row, false);
        }
    }
}

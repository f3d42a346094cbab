//! Pieces and runs of a step: operands for the tiles, from constants or from tables.

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::kernel::{Hint, Kernel, Records, Row, Steps};
use super::softmax::Output;
use super::tables::{EDGE_STEP, ENTRY_WORDS, NONE, Section};
use super::{KernelArgs, TileFn};
use crate::plan::{Piece, PieceKeys, Step, Stretch, ValueRun, Walk};
use crate::tiles::exact::ExactCall;
use crate::tiles::{ExpCall, LANES, ROW_BLOCKS, ScoreCall, ValueCall};

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
    aux: Value,
    /// Where the first key stands in the panel.
    pub at: Value,
    /// Whether mask words may exist.
    masked: Masked,
    /// What the score tile brings near on the way.
    near: Near,
}

/// What a score or value call brings near.
#[derive(Clone, Copy)]
enum Near {
    Nothing,
    /// With a chunk: its values while it is scored, the keys of the next chunk while its values are added.
    Chunk,
    /// With a piece or run of a constant row. Each call brings a share, so that fetches are spread over the whole row.
    Row(Share),
    /// The piece's own values, the keys of the piece behind it in the tables (its first key, number of keys), and with
    /// the step's last piece (1, else 0) what concerns the whole row.
    Entry(Value, Value, Value),
}

/// What a call brings near that concerns the whole row; keys and values are so many from this one on (from the run's
/// first row).
#[derive(Clone, Copy, Default)]
struct Share {
    keys: Option<Stretch>,
    values: Option<Stretch>,
    /// The next row's.
    queries: bool,
    /// The row's own.
    outputs: bool,
}

/// The longest piece that is not `other`: long enough to hide what it brings near.
fn lead(pieces: &[Piece], other: Option<usize>) -> Option<usize> {
    (0..pieces.len()).filter(|&index| Some(index) != other).max_by_key(|&index| pieces[index].keys.len())
}

/// The keys that the next row meets first: where pieces move on with the rows, they stand behind this row's last ones.
fn next_keys(pieces: &[Piece], key_step: u32) -> Option<Stretch> {
    let moving = pieces.iter().filter_map(|piece| match piece.keys {
        PieceKeys::Range(stretch) if stretch.start_step != 0 => Some(stretch),
        _ => None,
    });
    let last = moving.max_by_key(|stretch| stretch.start + stretch.len * key_step)?;
    let (start, len) = (last.start + last.len * key_step, last.start_step / key_step);
    Some(Stretch { start, len, len_step: 0, ..last })
}

/// What is known of a piece's mask when code is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Masked {
    Yes,
    No,
    Perhaps,
}

/// A panel of scores: where its group 0 starts, and floats to the next group.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub base: Value,
    pub stride: Value,
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
pub(super) struct Place {
    /// Whether nothing was scored before it.
    pub first: bool,
    /// Whether nothing comes behind it.
    pub last: bool,
}

/// Where pieces and runs of a joint step are found.
#[derive(Clone, Copy)]
pub(super) enum Source<'p> {
    /// Known now.
    Constant(&'p [Piece], &'p [ValueRun], Place),
    /// Address of the step's entry.
    Table(Value),
}

impl Near {
    fn is_some(self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Chunk | Self::Entry(..) => true,
            Self::Row(Share { keys, values, queries, outputs }) => {
                keys.is_some() || values.is_some() || queries || outputs
            }
        }
    }
}

impl Source<'_> {
    /// Whether this is known to be the row's first step.
    pub fn is_first(self) -> bool {
        matches!(self, Self::Constant(_, _, Place { first: true, .. }))
    }

    /// Whether this is known to be the row's last step.
    pub fn is_last(self) -> bool {
        matches!(self, Self::Constant(_, _, Place { last: true, .. }))
    }
}

impl<'p> Kernel<'_, 'p> {
    /// Runs `body` for every step of the row.
    pub fn for_steps(&mut self, row: Row, steps: Steps<'p>, body: impl Fn(&mut Self, StepKind<'p>)) {
        match steps {
            Steps::Constant(steps) => {
                for (index, step) in steps.iter().enumerate() {
                    let place = Place { first: index == 0, last: index + 1 == steps.len() };
                    let kind = match step {
                        Step::Edges => StepKind::Edges,
                        Step::Joint { pieces, runs } => StepKind::Joint(Source::Constant(pieces, runs, place)),
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
                self.for_range(first, end, 1, |kernel, index| {
                    let step = kernel.e.offset(table, index, 16);
                    if !has_edges {
                        body(kernel, StepKind::Joint(Source::Table(step)));
                        return;
                    }
                    let pieces = kernel.e.load_u32(step, 4);
                    let is_edges = kernel.e.b.ins().icmp_imm_u(IntCC::Equal, pieces, i64::from(EDGE_STEP));
                    kernel.if_else(
                        is_edges,
                        |kernel| body(kernel, StepKind::Edges),
                        |kernel| body(kernel, StepKind::Joint(Source::Table(step))),
                    );
                });
            }
        }
    }

    /// Whether a row of these steps can need the exact redo.
    pub fn has_masks(&self, steps: Steps<'p>) -> bool {
        match steps {
            Steps::Table => true,
            Steps::Constant(steps) => steps.iter().any(|step| match step {
                Step::Joint { pieces, .. } => pieces.iter().any(|piece| piece.mask.is_some()),
                Step::Edges | Step::Stream(_) => false,
            }),
        }
    }

    /// Runs `body` for every piece of a joint step.
    pub fn for_pieces(&mut self, row: Row, source: Source<'p>, body: impl Fn(&mut Self, Operands)) {
        match source {
            Source::Constant(pieces, ..) => {
                let first = lead(pieces, None);
                let second = lead(pieces, first).or(first);
                // A kernel of several masks has no constant rows.
                let next = next_keys(pieces, self.plan.masks[0].key_step);
                // The value tile of `flash` brings the rest.
                let alone = self.plan.walk != Walk::Flash;
                for (index, piece) in pieces.iter().enumerate() {
                    let list = self.starts.list(piece.keys);
                    let aux = self.starts.word(piece.mask);
                    let mut operands = self.constant(row, piece.keys, piece.at, list);
                    if let Some(address) = self.entry_address(Section::Words, aux, 8) {
                        operands.aux = address;
                        operands.masked = Masked::Yes;
                    }
                    let (leads, follows) = (Some(index) == first, Some(index) == second);
                    operands.near = Near::Row(Share {
                        values: next.filter(|_| leads),
                        keys: next.filter(|_| alone && leads),
                        queries: alone && follows,
                        outputs: !alone && follows,
                    });
                    body(self, operands);
                }
            }
            Source::Table(step) => self.for_entries(step, 0, Section::Pieces, Section::Words, 8, body),
        }
    }

    /// Runs `body` for every value run of a joint step; it is told which one is known to be the step's last.
    fn for_runs(&mut self, row: Row, source: Source<'p>, body: impl Fn(&mut Self, Operands, bool)) {
        const TRIM_BYTES: i64 = (ROW_BLOCKS * size_of::<[u32; 2]>()) as i64;
        match source {
            Source::Constant(pieces, runs, _) => {
                let keys = next_keys(pieces, self.plan.masks[0].key_step);
                for (index, run) in runs.iter().enumerate() {
                    let list = self.starts.list(run.keys);
                    let mut operands = self.constant(row, run.keys, run.at, list);
                    if let Some(address) = self.entry_address(Section::Trims, run.trims.unwrap_or(NONE), TRIM_BYTES) {
                        operands.aux = address;
                    }
                    let last = index + 1 == runs.len();
                    if last && self.plan.walk == Walk::Flash {
                        operands.near = Near::Row(Share { keys, queries: true, ..Share::default() });
                    }
                    body(self, operands, last);
                }
            }
            Source::Table(step) => {
                self.for_entries(step, 8, Section::Runs, Section::Trims, TRIM_BYTES, |kernel, run| {
                    body(kernel, run, false);
                });
            }
        }
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
    pub fn stretch(&mut self, row: Row, stretch: Stretch) -> (Value, Value) {
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
        aux: Section,
        aux_bytes: i64,
        body: impl Fn(&mut Self, Operands),
    ) {
        let first = self.e.load_u32(step, field);
        let count = self.e.load_u32(step, field + 4);
        let end = self.e.b.ins().iadd(first, count);
        let table = self.section(entries);
        let lists = self.section(Section::Lists);
        let aux_table = self.section(aux);
        let masked = if aux == Section::Words { Masked::Perhaps } else { Masked::No };
        self.for_range(first, end, 1, |kernel, index| {
            let entry = kernel.e.offset(table, index, (ENTRY_WORDS * size_of::<u32>()) as i64);
            let [start, len, at] = [0, 4, 8].map(|offset| kernel.e.load_u32(entry, offset));
            let list = kernel.optional(entry, 12, lists, 4);
            let aux = kernel.optional(entry, 16, aux_table, aux_bytes);
            let near = match entries {
                Section::Pieces => {
                    let next = (ENTRY_WORDS * size_of::<u32>()) as i32;
                    let keys = kernel.e.load_u32(entry, next);
                    let count = kernel.e.load_u32(entry, next + 4);
                    let list = kernel.e.load_u32(entry, next + 12);
                    let is_range = kernel.e.b.ins().icmp_imm_u(IntCC::Equal, list, i64::from(NONE));
                    let none = kernel.e.int(0);
                    let count = kernel.e.b.ins().select(is_range, count, none);
                    let behind = kernel.e.b.ins().iadd_imm_s(index, 1);
                    let is_last = kernel.e.b.ins().icmp(IntCC::Equal, behind, end);
                    Near::Entry(keys, count, kernel.e.b.ins().uextend(types::I64, is_last))
                }
                _ => Near::Nothing,
            };
            body(kernel, Operands { start, len, list, aux, at, masked, near });
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

    /// Scores of a piece, with the row maximum; mask and maximum are passes of their own where they were not
    /// fused.
    pub fn score_piece(&mut self, row: Row, panel: Panel, piece: Operands) {
        let record = self.records.score;
        let k = self.arg(offset_of!(KernelArgs, k));
        let k_stride = self.arg(offset_of!(KernelArgs, k_stride));
        let k = self.tensor_row(k, piece.start, k_stride, self.element);
        let k_stride = self.key_stride(k_stride, piece);
        let s = self.panel_at(panel.base, piece.at);
        let words = self.words(piece);
        let fused = self.plan.scores.fused;
        // Behind score mods the tile takes no maximum, but may leave out what no query sees.
        let masked_later = self.plan.mods.as_ref().is_some_and(|mods| mods.fused);
        let in_tile = if fused || masked_later { words } else { self.e.int(0) };
        self.set(record, offset_of!(ScoreCall, k), k);
        self.set(record, offset_of!(ScoreCall, k_stride), k_stride);
        self.set(record, offset_of!(ScoreCall, keys), piece.list);
        self.set(record, offset_of!(ScoreCall, nkeys), piece.len);
        self.set(record, offset_of!(ScoreCall, words), in_tile);
        self.set(record, offset_of!(ScoreCall, s), s);
        self.set(record, offset_of!(ScoreCall, s_stride), panel.stride);
        match piece.near {
            Near::Nothing => {}
            Near::Chunk => self.bring_values_near(Hint::Score(0), piece.start, piece.len),
            Near::Row(share) => self.bring_share_near(row, share, Hint::Score),
            Near::Entry(first, count, is_last) => {
                let rows = self.e.b.ins().imul(row.count, is_last);
                let row = Row { count: rows, ..row };
                self.bring_queries_near(Hint::Score(2), row);
                if self.plan.walk == Walk::Flash {
                    self.bring_outputs_near(Hint::Score(3), row);
                }
                self.bring_keys_near(Hint::Score(0), first, count);
                let none = self.e.int(0);
                let values = self.e.b.ins().select(piece.list, none, piece.len);
                self.bring_values_near(Hint::Score(1), piece.start, values);
            }
        }
        self.call(TileFn::Score, record);
        if piece.near.is_some() {
            self.bring_nothing_near();
        }
        if let Some(factor) = self.plan.scores.panel_scale {
            let factor = self.e.constant(factor);
            self.for_panel(row, s, panel.stride, piece.len, |kernel, address, _, _| {
                for offset in [0, 16, 32, 48] {
                    let score = kernel.e.load(types::F32X4, address, offset);
                    let scaled = kernel.e.b.ins().fmul(score, factor);
                    kernel.e.store(scaled, address, offset);
                }
            });
        }
        if self.records.mods.is_some() {
            if self.is_gradient_pass {
                self.keep_raw(row, (s, panel.stride), piece);
            }
            self.mods_piece((s, panel.stride), piece, in_tile);
        }
        if !fused && !masked_later {
            self.mask_and_rowmax(row, s, panel.stride, piece, words);
        }
    }

    /// Brings a share of what concerns the whole row near, by hints of the next score or value call.
    fn bring_share_near(&mut self, row: Row, share: Share, hint: fn(usize) -> Hint) {
        let mut slots = 0..;
        let mut next = || hint(slots.next().unwrap_or(0));
        // In the order in which they are needed.
        if share.queries {
            self.bring_queries_near(next(), row);
        }
        if let Some(keys) = share.keys {
            let (first, count) = self.stretch(row, keys);
            self.bring_keys_near(next(), first, count);
        }
        if let Some(values) = share.values {
            let (first, count) = self.stretch(row, values);
            self.bring_values_near(next(), first, count);
        }
        if share.outputs {
            self.bring_outputs_near(next(), row);
        }
    }

    /// The unfused operations `mask` and `rowmax` over one piece.
    fn mask_and_rowmax(&mut self, row: Row, s: Value, stride: Value, piece: Operands, words: Value) {
        let lowest = self.e.constant(f32::NEG_INFINITY);
        let max = self.local(self.scratch.max);
        let no_words = self.e.b.ins().icmp_imm_u(IntCC::Equal, words, 0);
        self.for_panel(row, s, stride, piece.len, |kernel, address, group, key| {
            let ones = kernel.e.b.ins().iconst(types::I64, -1);
            let at = kernel.e.offset(words, key, 8);
            // Without words nothing is read: the address is replaced by one that is always readable.
            let at = kernel.e.b.ins().select(no_words, address, at);
            let word = kernel.e.load(types::I64, at, 0);
            let word = kernel.e.b.ins().select(no_words, ones, word);
            let shift = kernel.e.b.ins().imul_imm_s(group, LANES as i64);
            let bits = kernel.e.b.ins().ushr(word, shift);
            let bits = kernel.e.b.ins().ireduce(types::I32, bits);
            let max = kernel.e.offset(max, group, (LANES * 4) as i64);
            for vector in 0..4 {
                let offset = vector * 16;
                let score = kernel.e.load(types::F32X4, address, offset);
                let allowed = kernel.allowed_lanes(bits, vector as u32 * 4);
                let score = kernel.e.b.ins().bitselect(allowed, score, lowest);
                kernel.e.store(score, address, offset);
                let so_far = kernel.e.load(types::F32X4, max, offset);
                let larger = kernel.e.max(score, so_far);
                kernel.e.store(larger, max, offset);
            }
        });
    }

    /// Lane `i` all ones where bit `first + i` is set.
    fn allowed_lanes(&mut self, bits: Value, first: u32) -> Value {
        let wide = self.e.b.ins().splat(types::I32X4, bits);
        let probes = self.e.lanes([1 << first, 2 << first, 4 << first, 8 << first], types::I32X4);
        let hit = self.e.b.ins().band(wide, probes);
        let mask = self.e.b.ins().icmp(IntCC::Equal, hit, probes);
        self.e.as_f32(mask)
    }

    /// For every group and key of a piece: the address of its 16 lanes, the group and the key.
    pub fn for_panel(
        &mut self,
        row: Row,
        s: Value,
        stride: Value,
        len: Value,
        body: impl Fn(&mut Self, Value, Value, Value),
    ) {
        let zero = self.e.int(0);
        self.for_range(zero, row.groups, 1, |kernel, group| {
            let base = kernel.e.row(s, group, stride);
            kernel.for_range(zero, len, 1, |kernel, key| {
                let address = kernel.panel_at(base, key);
                body(kernel, address, group, key);
            });
        });
    }

    /// Floats from one key of a piece to the next; `stride` is that from row to row.
    pub fn key_stride(&mut self, stride: Value, piece: Operands) -> Value {
        if !self.has_key_steps() {
            return stride;
        }
        let step = self.section(Section::KeyStep);
        let apart = self.e.b.ins().imul(stride, step);
        self.e.b.ins().select(piece.list, stride, apart)
    }

    /// The words a piece is tested against, or 0.
    pub fn words(&mut self, piece: Operands) -> Value {
        if !self.plan.scores.test_every || piece.masked == Masked::Yes {
            return piece.aux;
        }
        let ones = self.section(Section::Ones);
        let has_words = self.e.b.ins().icmp_imm_u(IntCC::NotEqual, piece.aux, 0);
        self.e.b.ins().select(has_words, piece.aux, ones)
    }

    /// Probabilities of a piece, in place, and their sums.
    pub fn exp_piece(&mut self, panel: Panel, piece: Operands) {
        let record = self.records.exp;
        let s = self.panel_at(panel.base, piece.at);
        let words = if self.plan.scores.exp_masked { self.words(piece) } else { self.e.int(0) };
        self.set(record, offset_of!(ExpCall, s), s);
        self.set(record, offset_of!(ExpCall, s_stride), panel.stride);
        self.set(record, offset_of!(ExpCall, nkeys), piece.len);
        self.set(record, offset_of!(ExpCall, words), words);
        self.call(TileFn::Exp, record);
        self.drop_piece(panel, piece);
    }

    /// Whether the row's output can be written by its last value run, while the sums are in registers.
    pub fn ends_in_run(&self, steps: Steps<'p>) -> bool {
        let last = match steps {
            Steps::Constant(steps) => steps.last(),
            Steps::Table => None,
        };
        self.plan.restart_folded && matches!(last, Some(Step::Joint { runs, .. }) if !runs.is_empty())
    }

    /// Adds the values of a joint step to the row's sums, and writes the output behind the last run where it is
    /// given.
    ///
    /// Runs go across masked pieces, where probabilities are 0; the exact redo goes piece by piece and leaves
    /// masked pairs out.
    pub fn values(
        &mut self,
        row: Row,
        panel: Panel,
        source: Source<'p>,
        (v, v_stride): (Value, Value),
        redo: bool,
        output: Option<Output>,
    ) {
        let runs = |kernel: &mut Self| {
            kernel.for_runs(row, source, |kernel, run, last| match output.filter(|_| last) {
                None => {
                    kernel.value_run(row, panel, run, v, v_stride);
                }
                Some(output) => {
                    kernel.begin_output(row, output);
                    let flag = kernel.value_run(row, panel, run, v, v_stride);
                    kernel.end_output(row, output, flag);
                }
            });
        };
        if !redo {
            runs(self);
            return;
        }
        let exact = self.is_exact();
        self.if_else(
            exact,
            |kernel| {
                kernel.for_pieces(row, source, |kernel, piece| {
                    // What it brings near is for its scores.
                    let piece = Operands { near: Near::Nothing, ..piece };
                    match piece.masked {
                        // Weights of 0 are everywhere there.
                        _ if kernel.is_gradient_pass => kernel.value_exact(panel, piece, v, v_stride),
                        Masked::No => {
                            kernel.value_run(row, panel, piece, v, v_stride);
                        }
                        Masked::Yes => kernel.value_exact(panel, piece, v, v_stride),
                        Masked::Perhaps => kernel.if_else(
                            piece.aux,
                            |kernel| kernel.value_exact(panel, piece, v, v_stride),
                            |kernel| {
                                kernel.value_run(row, panel, piece, v, v_stride);
                            },
                        ),
                    }
                });
                if let Some(output) = output {
                    kernel.write_output(row, output);
                }
            },
            runs,
        );
    }

    /// Adds one run to the row's sums; a piece without mask is a run without trims.
    pub fn value_run(&mut self, row: Row, panel: Panel, run: Operands, v: Value, v_stride: Value) -> Option<Value> {
        let record = self.records.value;
        let v = self.tensor_row(v, run.start, v_stride, self.value_element);
        let v_stride = self.key_stride(v_stride, run);
        let p = self.panel_at(panel.base, run.at);
        self.set(record, offset_of!(ValueCall, p), p);
        self.set(record, offset_of!(ValueCall, p_stride), panel.stride);
        self.set(record, offset_of!(ValueCall, v), v);
        self.set(record, offset_of!(ValueCall, v_stride), v_stride);
        self.set(record, offset_of!(ValueCall, keys), run.list);
        self.set(record, offset_of!(ValueCall, nkeys), run.len);
        self.set(record, offset_of!(ValueCall, trims), run.aux);
        match run.near {
            Near::Nothing | Near::Entry(..) => {}
            Near::Chunk => {
                let next = self.e.b.ins().iadd(run.start, run.len);
                self.bring_keys_near(Hint::Value(0), next, run.len);
            }
            Near::Row(share) => self.bring_share_near(row, share, Hint::Value),
        }
        let flag = self.call(TileFn::Value, record);
        // A hop's hints stand before its first run.
        if run.near.is_some() || self.plan.walk != Walk::Flash {
            self.bring_nothing_near();
        }
        self.set_int(record, offset_of!(ValueCall, accumulate), 1);
        flag
    }

    /// Adds one run to the row's sums, pair by pair.
    pub fn value_exact(&mut self, panel: Panel, piece: Operands, v: Value, v_stride: Value) {
        let Records { exact: record, value, .. } = self.records;
        let v = self.tensor_row(v, piece.start, v_stride, self.value_element);
        let v_stride = self.key_stride(v_stride, piece);
        let p = self.panel_at(panel.base, piece.at);
        let accumulate = self.e.field(value, offset_of!(ValueCall, accumulate));
        self.set(record, offset_of!(ExactCall, p), p);
        self.set(record, offset_of!(ExactCall, p_stride), panel.stride);
        self.set(record, offset_of!(ExactCall, v), v);
        self.set(record, offset_of!(ExactCall, v_stride), v_stride);
        self.set(record, offset_of!(ExactCall, keys), piece.list);
        self.set(record, offset_of!(ExactCall, nkeys), piece.len);
        self.set(record, offset_of!(ExactCall, words), piece.aux);
        self.set(record, offset_of!(ExactCall, accumulate), accumulate);
        self.call(TileFn::ValueExact, record);
        self.set_int(value, offset_of!(ValueCall, accumulate), 1);
    }

    /// Runs `body` for every chunk of a stretch of unmasked keys.
    pub fn for_chunks(&mut self, row: Row, stretch: Stretch, body: impl FnOnce(&mut Self, Operands)) {
        let (start, len) = self.stretch(row, stretch);
        let end = self.e.b.ins().iadd(start, len);
        let chunk = i64::from(self.plan.tuning.chunk_keys);
        let most = self.e.int(chunk);
        self.for_range(start, end, chunk, |kernel, key| {
            let left = kernel.e.b.ins().isub(end, key);
            let len = kernel.e.b.ins().smin(left, most);
            let chunk = kernel.chunk(key, len);
            body(kernel, chunk);
        });
    }

    /// Operands of a chunk of unmasked keys at the start of the panel.
    fn chunk(&mut self, start: Value, len: Value) -> Operands {
        let zero = self.e.int(0);
        Operands { start, len, list: zero, aux: zero, at: zero, masked: Masked::No, near: Near::Chunk }
    }
}

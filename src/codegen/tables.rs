//! What a kernel reads of its plan at run time: one buffer per mask, a header of section offsets in front.

use crate::mask::QUERY_BLOCK;
use crate::plan::{KernelPlan, MaskPlan, Piece, PieceKeys, Step, ValueRun, Walk};
use crate::program::BlockTest;

/// Sections of the buffer, each 64-byte aligned; the header holds their byte offsets in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Section {
    /// u32 query at each place.
    Order,
    /// u64 mask words, table behind table.
    Words,
    /// u64 words of ones, as many as the widest panel has keys.
    Ones,
    /// u32 gathered keys, list behind list.
    Lists,
    /// `[12][2]` u32 trims, table behind table.
    Trims,
    /// u32 `[q_len + 1]` offsets.
    EdgeOffsets,
    /// u32 keys of edges.
    EdgeKeys,
    /// Per block row, `[first step, steps]` u32.
    Rows,
    /// Per step, `[first piece, pieces, first run, runs]` u32.
    Steps,
    /// [`ENTRY_WORDS`] u32 a piece.
    Pieces,
    /// [`ENTRY_WORDS`] u32 a run.
    Runs,
    /// Per block row, `[start in floats, keys]` u64 of its stored panel.
    StoredPanels,
    /// Not a section: rows of K and V from one key of a range to the next.
    KeyStep,
}

const HEADER_WORDS: usize = 16;

/// u32 of a piece or run: start, len, at, list entry, aux (first word of the mask, or trims), padding. A list
/// entry or aux of [`NONE`] means that there is none.
pub(super) const ENTRY_WORDS: usize = 6;
/// No list, no mask, no trims.
pub(super) const NONE: u32 = u32::MAX;
/// Marks, as its number of pieces, the step of scattered edges.
pub(super) const EDGE_STEP: u32 = u32::MAX;

/// The tables of one mask.
#[derive(Debug, Clone)]
pub struct Tables {
    /// 64-byte alignment of sections is relative to this buffer's start, which is 8-byte aligned.
    buffer: Vec<u64>,
}

impl Tables {
    /// The tables of `mask`, one of those of `walk`, in `plan`.
    pub fn new(plan: &KernelPlan, walk: &Walk, mask: &MaskPlan) -> Self {
        let mut writer = Writer { buffer: vec![0; HEADER_WORDS] };
        let identity: Vec<u32>;
        let order: &[u32] = match &mask.order {
            Some(order) => order,
            // Masks of one kernel share its code, which reads an order if any of them has one.
            None if plan.is_ordered() => {
                identity = (0..plan.shape.q_len as u32).collect();
                &identity
            }
            None => &[],
        };
        // Hints look one block row further.
        let beyond = if order.is_empty() { 0 } else { QUERY_BLOCK + 2 };
        writer.words32(Section::Order, order.iter().copied().chain(std::iter::repeat_n(0, beyond)));
        writer.words64(Section::Words, mask.words.iter().flatten().copied());
        let ones = if plan.block_test == BlockTest::Every { mask.panel_keys } else { 0 };
        writer.words64(Section::Ones, std::iter::repeat_n(u64::MAX, ones));
        writer.words32(Section::Lists, mask.lists.iter().flatten().copied());
        writer.words32(Section::Trims, mask.trims.iter().flatten().flatten().copied());
        // Masks of one kernel share its code, which looks for edges in every row if any of them has some.
        let bare = if mask.edges.offsets.is_empty() { plan.shape.q_len + 1 } else { 0 };
        writer.words32(Section::EdgeOffsets, mask.edges.offsets.iter().copied().chain(std::iter::repeat_n(0, bare)));
        writer.words32(Section::EdgeKeys, mask.edges.keys.iter().copied());
        let starts = Starts::new(mask);
        starts.write_rows(plan, mask, &mut writer);
        if !walk.by_keys {
            writer.words64(Section::StoredPanels, mask.stored_panels().flat_map(|(start, keys)| [start, keys]));
        }
        writer.buffer[Section::KeyStep as usize] = u64::from(mask.key_step);
        Self { buffer: writer.buffer }
    }

    /// What [`super::KernelArgs::tables`] points to.
    pub fn as_ptr(&self) -> *const u64 {
        self.buffer.as_ptr()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.buffer.as_slice())
    }
}

/// Where every mask table and list starts in its section.
pub(super) struct Starts {
    words: Vec<u32>,
    lists: Vec<u32>,
}

impl Starts {
    pub(super) fn new(mask: &MaskPlan) -> Self {
        let running = |lens: &mut dyn Iterator<Item = usize>| {
            let mut sum = 0;
            let starts = lens.map(|len| {
                sum += len as u32;
                sum - len as u32
            });
            starts.collect::<Vec<_>>()
        };
        Self {
            words: running(&mut mask.words.iter().map(Vec::len)),
            lists: running(&mut mask.lists.iter().map(Vec::len)),
        }
    }

    /// First word of a piece's mask in the section of words.
    pub(super) fn word(&self, mask: Option<(u32, u32)>) -> u32 {
        mask.map_or(NONE, |(table, first)| self.words[table as usize] + first)
    }

    /// First entry of a list piece in the section of lists.
    pub(super) fn list(&self, keys: PieceKeys) -> u32 {
        match keys {
            PieceKeys::Range(_) => NONE,
            PieceKeys::List { list, first, .. } => self.lists[list as usize] + first,
        }
    }

    fn entry(&self, keys: PieceKeys, at: u32, aux: u32) -> [u32; ENTRY_WORDS] {
        let start = match keys {
            PieceKeys::Range(stretch) => stretch.start,
            PieceKeys::List { .. } => 0,
        };
        [start, keys.len(), at, self.list(keys), aux, 0]
    }

    /// Rows, steps, pieces and runs of the rows that are walked from tables.
    fn write_rows(&self, plan: &KernelPlan, mask: &MaskPlan, writer: &mut Writer) {
        let (mut steps, mut pieces, mut runs) = (Vec::<u32>::new(), Vec::<u32>::new(), Vec::<u32>::new());
        let mut rows = if mask.rows.iter().any(|row| row.table) { vec![0; 2 * plan.block_rows()] } else { Vec::new() };
        for row in mask.rows.iter().filter(|row| row.table) {
            let entry = [(steps.len() / 4) as u32, row.steps.len() as u32];
            for t in row.first..row.first + row.count {
                rows[2 * t as usize..][..2].copy_from_slice(&entry);
            }
            for step in &row.steps {
                let place = ((pieces.len() / ENTRY_WORDS) as u32, (runs.len() / ENTRY_WORDS) as u32);
                match step {
                    Step::Edges => steps.extend([0, EDGE_STEP, 0, 0]),
                    Step::Joint { pieces: of_step, runs: runs_of_step } => {
                        let lens = (of_step.len() as u32, runs_of_step.len() as u32);
                        steps.extend([place.0, lens.0, place.1, lens.1]);
                        for &Piece { keys, mask, at } in of_step {
                            pieces.extend(self.entry(keys, at, self.word(mask)));
                        }
                        for &ValueRun { keys, trims, at } in runs_of_step {
                            runs.extend(self.entry(keys, at, trims.unwrap_or(NONE)));
                        }
                    }
                    // The plan's verifier refuses it.
                    Step::Stream(_) => {}
                }
            }
        }
        writer.words32(Section::Rows, rows);
        writer.words32(Section::Steps, steps);
        // Hints look one piece further.
        pieces.extend([0; ENTRY_WORDS]);
        writer.words32(Section::Pieces, pieces);
        writer.words32(Section::Runs, runs);
    }
}

struct Writer {
    buffer: Vec<u64>,
}

impl Writer {
    fn begin(&mut self, section: Section) {
        self.buffer.resize(self.buffer.len().next_multiple_of(8), 0);
        self.buffer[section as usize] = (self.buffer.len() * size_of::<u64>()) as u64;
    }

    fn words64(&mut self, section: Section, words: impl IntoIterator<Item = u64>) {
        self.begin(section);
        self.buffer.extend(words);
    }

    fn words32(&mut self, section: Section, words: impl IntoIterator<Item = u32>) {
        self.begin(section);
        let mut words = words.into_iter();
        while let Some(low) = words.next() {
            let high = words.next().unwrap_or(0);
            // In memory order on either endianness.
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&low.to_ne_bytes());
            bytes[4..].copy_from_slice(&high.to_ne_bytes());
            self.buffer.push(u64::from_ne_bytes(bytes));
        }
    }
}

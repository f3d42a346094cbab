//! Block rows, cut into steps.
//!
//! Walked by keys, one step's scores are kept in a panel that stays in the L2 cache: short segments share a *joint* step
//! (maximum first, then the exponential), a long or growing run of keys is a *stream*, walked in chunks with
//! an online softmax. Otherwise the whole row is one joint step.

use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

use super::Tuning;
use crate::mask::{HeadMask, KeyOrder, Keys, QUERY_BLOCK, RowRun, Segment};
use crate::tiles::{LANES, ROW_BLOCKS, ROW_CUTS};

/// Row runs that get code of their own, with their key ranges as arithmetic in the row number; all other rows
/// are walked from tables.
const CONSTANT_RUNS: usize = 2;
/// Rows from which a run earns code of its own.
const CONSTANT_ROWS: u32 = 4;

/// Block rows `first .. first + count`, all walked the same way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowPlan {
    /// First block row.
    pub first: u32,
    /// Block rows; where `table`, all of the same keys.
    pub count: u32,
    /// Walked from tables instead of by code of its own.
    pub table: bool,
    /// What to do, in order.
    pub steps: Vec<Step>,
}

/// A part of a block row whose scores share one panel and one update of the row maxima.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The row's scattered edges.
    Edges,
    /// Pieces side by side in one panel.
    Joint {
        /// For the score tile and the exponential.
        pieces: Vec<Piece>,
        /// The same keys for the value tile.
        runs: Vec<ValueRun>,
    },
    /// Unmasked keys in chunks of at most [`Tuning::chunk_keys`].
    Stream(Stretch),
}

/// Keys `start + i·start_step .. + len + i·len_step` in block row `first + i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Stretch {
    /// First key in the run's first row.
    pub start: u32,
    /// Keys in the run's first row.
    pub len: u32,
    /// Keys by which the start moves from row to row.
    pub start_step: u32,
    /// Keys by which the length grows from row to row.
    pub len_step: u32,
}

/// Keys of a piece or a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKeys {
    /// Contiguous.
    Range(Stretch),
    /// Entries `first .. first + len` of list `list`.
    List {
        /// Index in [`super::MaskPlan::lists`].
        list: u32,
        /// First entry.
        first: u32,
        /// Entries.
        len: u32,
    },
}

/// Keys for one call of the score tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Piece {
    /// Which keys.
    pub keys: PieceKeys,
    /// Index in [`super::MaskPlan::words`] and the first word there; `None` where all is allowed.
    pub mask: Option<(u32, u32)>,
    /// Where the first key stands in the panel.
    pub at: u32,
}

/// Keys for one call of the value tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ValueRun {
    /// Which keys.
    pub keys: PieceKeys,
    /// Index in [`super::MaskPlan::trims`]; `None` where nothing can be skipped.
    pub trims: Option<u32>,
    /// Where the first key stands in the panel.
    pub at: u32,
}

impl Stretch {
    const fn fixed(start: u32, len: u32) -> Self {
        Self { start, len, start_step: 0, len_step: 0 }
    }

    /// The same stretch seen from row `first + i`, without steps.
    const fn in_row(self, i: u32) -> Self {
        Self::fixed(self.start + i * self.start_step, self.len + i * self.len_step)
    }
}

impl PieceKeys {
    /// Keys in the run's first row.
    pub const fn len(self) -> u32 {
        match self {
            Self::Range(stretch) => stretch.len,
            Self::List { len, .. } => len,
        }
    }

    /// Whether the first row holds no key.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Keys by which the piece grows from row to row.
    pub const fn len_step(self) -> u32 {
        match self {
            Self::Range(stretch) => stretch.len_step,
            Self::List { .. } => 0,
        }
    }
}

impl RowPlan {
    /// Keys of all panels of all rows of the run together.
    pub fn keys(&self) -> u64 {
        (0..u64::from(self.count)).map(|i| self.first_row_keys() + i * self.row_growth()).sum()
    }

    /// Keys of the joint steps of the run's first row.
    pub fn first_row_keys(&self) -> u64 {
        self.pieces().map(|piece| u64::from(piece.keys.len())).sum()
    }

    /// Keys by which a row's joint steps grow from row to row.
    pub fn row_growth(&self) -> u64 {
        self.pieces().map(|piece| u64::from(piece.keys.len_step())).sum()
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.steps.iter().flat_map(|step| match step {
            Step::Joint { pieces, .. } => pieces.as_slice(),
            Step::Edges | Step::Stream(_) => &[],
        })
    }

    /// Keys of the widest panel that a step of the run needs.
    pub(super) fn widest_panel(&self, tuning: Tuning) -> u64 {
        let last = u64::from(self.count.saturating_sub(1));
        let widest = self.steps.iter().map(|step| match step {
            Step::Edges => 0,
            Step::Joint { pieces, .. } => {
                let keys =
                    pieces.iter().map(|piece| u64::from(piece.keys.len()) + last * u64::from(piece.keys.len_step()));
                keys.sum()
            }
            Step::Stream(_) => u64::from(tuning.chunk_keys),
        });
        widest.max().unwrap_or(0)
    }
}

/// Distinct trims, by content.
#[derive(Debug, Default)]
pub(super) struct Trims {
    tables: Vec<[[u32; 2]; ROW_BLOCKS]>,
    index: std::collections::HashMap<[[u32; 2]; ROW_BLOCKS], u32>,
}

impl Trims {
    pub(super) fn into_tables(self) -> Vec<[[u32; 2]; ROW_BLOCKS]> {
        self.tables
    }

    fn intern(&mut self, trims: [[u32; 2]; ROW_BLOCKS]) -> Option<u32> {
        if trims == [[0; 2]; ROW_BLOCKS] {
            return None;
        }
        Some(*self.index.entry(trims).or_insert_with(|| {
            self.tables.push(trims);
            (self.tables.len() - 1) as u32
        }))
    }
}

/// Cuts the rows of one head's mask into steps, of some keys each or of whole rows. `alone` says that it is the kernel's
/// only mask, so that its runs may have code of their own.
pub(super) fn plan_rows(
    mask: &HeadMask,
    kv_len: usize,
    alone: bool,
    (by_keys, tuning): (bool, Tuning),
    trims: &mut Trims,
) -> Vec<RowPlan> {
    // A few queries over many keys, as in decoding, are one row whose keys are streamed.
    let least = if mask.rows.len() == 1 { 1 } else { CONSTANT_ROWS };
    let mut by_count: Vec<usize> = (0..mask.rows.len()).filter(|&i| mask.rows[i].count >= least).collect();
    by_count.sort_by_key(|&i| std::cmp::Reverse(mask.rows[i].count));
    by_count.truncate(if alone { CONSTANT_RUNS } else { 0 });
    let mut plans = Vec::new();
    for (i, run) in mask.rows.iter().enumerate() {
        // Two growing segments would make the place of the second a function of the row.
        let growing = run.segments.iter().filter(|s| len_step(s) != 0).count();
        let affine = run.segments.iter().all(|segment| stays_affine(mask.keys, kv_len, run, segment));
        if by_count.contains(&i) && affine && (by_keys || growing <= 1) {
            let steps = plan_steps(mask, kv_len, &run.segments, (by_keys, tuning), true, trims);
            plans.push(RowPlan { first: run.first, count: run.count, table: false, steps });
        } else if run.segments.iter().all(|segment| !moves(segment)) {
            let steps = plan_steps(mask, kv_len, &run.segments, (by_keys, tuning), false, trims);
            plans.push(RowPlan { first: run.first, count: run.count, table: true, steps });
        } else {
            for row in 0..run.count {
                let segments = segments_in_row(run, row);
                let steps = plan_steps(mask, kv_len, &segments, (by_keys, tuning), false, trims);
                plans.push(RowPlan { first: run.first + row, count: 1, table: true, steps });
            }
        }
    }
    plans
}

/// Whether the segment's keys are others in every row.
fn moves(segment: &Segment) -> bool {
    matches!(segment.keys, Keys::Range { start_step, len_step, .. } if start_step != 0 || len_step != 0)
}

/// Whether the segment's keys in memory are as affine in the row as their numbers: a moving segment must stay in its
/// residue class over all rows of the run, and none may grow, since runs of every `step`-th key are not streamed.
fn stays_affine(keys: KeyOrder, kv_len: usize, run: &RowRun, segment: &Segment) -> bool {
    match (keys, segment.keys) {
        (KeyOrder::Identity, _) | (KeyOrder::Residue(_), Keys::List { .. }) => true,
        (KeyOrder::Residue(_), Keys::Range { start_step: 0, len_step, .. }) => len_step == 0,
        (KeyOrder::Residue(_), Keys::Range { start, len, start_step, len_step }) => {
            let last = start + (run.count - 1) * start_step + len - 1;
            len_step == 0 && keys.class_of(start, kv_len) == keys.class_of(last, kv_len)
        }
    }
}

fn len_step(segment: &Segment) -> u32 {
    match segment.keys {
        Keys::Range { len_step, .. } => len_step,
        Keys::List { .. } => 0,
    }
}

fn segments_in_row(run: &RowRun, row: u32) -> Vec<Segment> {
    let shifted = run.segments.iter().map(|segment| {
        let keys = match segment.keys {
            Keys::Range { start, len, start_step, len_step } => {
                let Stretch { start, len, .. } = Stretch { start, len, start_step, len_step }.in_row(row);
                Keys::Range { start, len, start_step: 0, len_step: 0 }
            }
            list @ Keys::List { .. } => list,
        };
        Segment { keys, mask: segment.mask }
    });
    shifted.filter(|segment| !matches!(segment.keys, Keys::Range { len: 0, .. })).collect()
}

/// Keys in memory, and their mask table with the first word there.
type Located = (PieceKeys, Option<(u32, u32)>);

/// A segment's keys where they lie in memory, with their first mask word: cut where a residue class ends.
fn located(mask: &HeadMask, kv_len: usize, segment: &Segment) -> SmallVec<[Located; 2]> {
    let words = |first| segment.mask.map(|table| (table, first));
    match segment.keys {
        Keys::List { list } => {
            let len = mask.lists[list as usize].len() as u32;
            smallvec![(PieceKeys::List { list, first: 0, len }, words(0))]
        }
        Keys::Range { start, len, start_step, len_step } if mask.keys == KeyOrder::Identity => {
            smallvec![(PieceKeys::Range(Stretch { start, len, start_step, len_step }), words(0))]
        }
        Keys::Range { start, len, start_step, len_step } => {
            let step = mask.keys.step();
            let mut parts = SmallVec::new();
            let mut done = 0;
            while done < len {
                let class = mask.keys.class_of(start + done, kv_len);
                let here = (len - done).min(mask.keys.numbers(class, kv_len).end - (start + done));
                let start = mask.keys.key_at(start + done, kv_len);
                let stretch = Stretch { start, len: here, start_step: start_step * step, len_step };
                parts.push((PieceKeys::Range(stretch), words(done)));
                done += here;
            }
            parts
        }
    }
}

fn plan_steps(
    mask: &HeadMask,
    kv_len: usize,
    segments: &[Segment],
    (by_keys, tuning): (bool, Tuning),
    constant: bool,
    trims: &mut Trims,
) -> Vec<Step> {
    let Tuning { joint_keys, chunk_keys, .. } = tuning;
    let mut steps = Vec::new();
    if !mask.edges.keys.is_empty() {
        steps.push(Step::Edges);
    }
    let step = mask.keys.step();
    let fixed: u64 = segments.iter().filter(|s| len_step(s) == 0).map(|s| mask.segment_len(s, 0) as u64).sum();
    let mut joint: Vec<Located> = Vec::new();
    let mut growing = None;
    for (keys, mask) in segments.iter().flat_map(|segment| located(mask, kv_len, segment)) {
        match (by_keys, keys) {
            (false, PieceKeys::Range(stretch)) if stretch.len_step != 0 => growing = Some((keys, mask)),
            (false, _) => joint.push((keys, mask)),
            (true, PieceKeys::Range(stretch))
                if constant
                    && step == 1
                    && mask.is_none()
                    && (stretch.len_step != 0 || (fixed > u64::from(joint_keys) && stretch.len > chunk_keys)) =>
            {
                steps.push(Step::Stream(stretch));
            }
            (true, _) if fixed <= u64::from(joint_keys) => joint.push((keys, mask)),
            (true, _) => {
                for first in (0..keys.len()).step_by(chunk_keys as usize) {
                    let len = chunk_keys.min(keys.len() - first);
                    joint.push((part(keys, first, len, step), mask.map(|(words, before)| (words, before + first))));
                }
            }
        }
    }
    // Last, so that no piece stands behind it at a place that depends on the row.
    joint.extend(growing);
    let mut pieces = Vec::new();
    let mut at = 0;
    for (keys, words) in joint {
        if by_keys && at + keys.len() > joint_keys && at > 0 {
            steps.push(joint_step(mask, std::mem::take(&mut pieces), trims));
            at = 0;
        }
        pieces.push(Piece { keys, mask: words, at });
        at += keys.len();
    }
    if !pieces.is_empty() {
        steps.push(joint_step(mask, pieces, trims));
    }
    steps
}

/// Keys `first .. first + len` of a piece without steps, or with a moving start.
fn part(keys: PieceKeys, first: u32, len: u32, step: u32) -> PieceKeys {
    match keys {
        PieceKeys::Range(stretch) => PieceKeys::Range(Stretch { start: stretch.start + first * step, len, ..stretch }),
        PieceKeys::List { list, .. } => PieceKeys::List { list, first, len },
    }
}

fn joint_step(mask: &HeadMask, pieces: Vec<Piece>, trims: &mut Trims) -> Step {
    let mut runs = Vec::new();
    let mut i = 0;
    while i < pieces.len() {
        let mut keys = pieces[i].keys;
        let mut end = i + 1;
        // Probabilities of forbidden pairs are 0, so the value tile may run across the border of a mask.
        while let (PieceKeys::Range(run), Some(PieceKeys::Range(next))) = (keys, pieces.get(end).map(|p| p.keys)) {
            if run.len_step != 0
                || run.start + run.len * mask.keys.step() != next.start
                || run.start_step != next.start_step
            {
                break;
            }
            keys = PieceKeys::Range(Stretch { len: run.len + next.len, len_step: next.len_step, ..run });
            end += 1;
        }
        let trims = trims.intern(trims_of(mask, &pieces[i..end]));
        runs.push(ValueRun { keys, trims, at: pieces[i].at });
        i = end;
    }
    Step::Joint { pieces, runs }
}

/// For every register row block, how many keys at the front and at the back of the pieces no row attends to.
fn trims_of(mask: &HeadMask, pieces: &[Piece]) -> [[u32; 2]; ROW_BLOCKS] {
    let mut trims = [[0; 2]; ROW_BLOCKS];
    for (block, trim) in trims.iter_mut().enumerate() {
        let (group, cut) = (block / 3, block % 3);
        let bits = row_bits(LANES * group + ROW_CUTS[cut], LANES * group + ROW_CUTS[cut + 1]);
        let front = idle_keys(mask, pieces.iter(), bits, false);
        let len: u32 = pieces.iter().map(|piece| piece.keys.len()).sum();
        // A growing run ends in keys that all rows attend to, except in rows where it is empty.
        let grows = pieces.iter().any(|piece| piece.keys.len_step() != 0);
        *trim = match (front == len, grows) {
            (_, true) => [0, 0],
            (true, false) => [len, 0],
            (false, false) => [front, idle_keys(mask, pieces.iter().rev(), bits, true)],
        };
    }
    trims
}

fn row_bits(from: usize, to: usize) -> u64 {
    (u64::MAX >> (QUERY_BLOCK - (to - from))) << from
}

fn idle_keys<'a>(mask: &HeadMask, pieces: impl Iterator<Item = &'a Piece>, bits: u64, backwards: bool) -> u32 {
    let mut idle = 0;
    for piece in pieces {
        let Some((table, first)) = piece.mask else { break };
        let words = &mask.words[table as usize][first as usize..(first + piece.keys.len()) as usize];
        let untouched = |word: &&u64| **word & bits == 0;
        let count = match backwards {
            false => words.iter().take_while(untouched).count(),
            true => words.iter().rev().take_while(untouched).count(),
        };
        idle += count as u32;
        if count < words.len() {
            break;
        }
    }
    idle
}

//! From a pattern to block rows: `Pattern -> BlockMask`.
//!
//! In: a [`Pattern`] and how much memory the mask may take. Out: a [`BlockMask`] whose segments are maximal
//! contiguous runs of one kind. Refused: lengths beyond 32 bits, and masks that would pass the limit.
//!
//! A block row asks the pattern for bounds. What every query has is full without a further look; what some
//! query may have is evaluated, 64 keys at a time, to exact words, unless a row before it had the same
//! question at another shift. Rows that are provably shifted copies are not looked at at all
//! ([`super::shifted_rows`]). So a row costs its undecided key blocks, not its keys.

use std::ops::Range;

use rayon::prelude::*;
use smallvec::SmallVec;

use super::decode::{split_keys, stack_heads};
use super::edge_rule::EdgeRule;
use super::order::{Stretch, identity, row_order};
use super::patches::patch_order;
use super::row_runs::RowRuns;
use super::shifted_rows::{Attempts, Row};
use super::tables::Table;
use super::{BlockMask, Edges, HeadMask, KeyOrder, Keys, QUERY_BLOCK, RowOrder, Segment};
use crate::error::{Error, Result};
use crate::limits::Allowance;
use crate::pattern::regroup::Regrouped;
use crate::pattern::{Cover, KeySet, Pattern};

/// Builds the block mask of a pattern with the default [`EdgeRule`], within what it may take: bytes of memory, or an
/// [`Allowance`].
///
/// # Errors
///
/// [`Error::Memory`] when the mask would take more memory than it may, [`Error::Limit`] when it takes too long,
/// [`Error::Unsupported`] when a length or the number of scattered edges does not fit in 32 bits, or the pattern waits for
/// run-time inputs.
pub fn build(pattern: &Pattern, allowance: impl Into<Allowance>) -> Result<BlockMask> {
    build_with(pattern, allowance.into(), &EdgeRule::default())
}

/// [`build`] where queries and keys keep their order: for hops without end, whose rows follow each other.
///
/// # Errors
///
/// As [`build`].
pub fn build_in_order(pattern: &Pattern, allowance: impl Into<Allowance>) -> Result<BlockMask> {
    build_with(pattern, allowance.into(), &EdgeRule { in_order: true, ..EdgeRule::default() })
}

/// [`build`] with a rule of one's own.
///
/// # Errors
///
/// As [`build`].
pub fn build_with(pattern: &Pattern, allowance: Allowance, rule: &EdgeRule) -> Result<BlockMask> {
    check_lengths(pattern)?;
    pattern.require_bound()?;
    let mut mask = BlockMask {
        q_len: pattern.q_len,
        kv_len: pattern.kv_len,
        parts: 1,
        stack: 1,
        masks: Vec::new(),
        mask_of_head: Vec::new(),
    };
    let classes = pattern.head_classes();
    let first_of = |head: usize| classes.iter().position(|&class| class == classes[head]).unwrap_or(head);
    let mut taken = 0;
    // Heads that differ are built side by side, a few at a time, as if none of them took memory from the others.
    let mut ahead = std::collections::VecDeque::new();
    let side_by_side = if pattern.q_len < MANY_QUERIES { 1 } else { rayon::current_num_threads() };
    for head in 0..pattern.heads {
        if first_of(head) < head {
            mask.mask_of_head.push(mask.mask_of_head[first_of(head)]);
            continue;
        }
        if ahead.is_empty() && side_by_side > 1 {
            let next: Vec<usize> =
                (head..pattern.heads).filter(|&head| first_of(head) == head).take(side_by_side).collect();
            ahead.extend(
                next.into_par_iter().map(|head| build_head(pattern, head, rule, allowance, taken)).collect::<Vec<_>>(),
            );
        }
        let built = match ahead.pop_front() {
            Some(Ok((head_mask, bytes))) if taken + bytes <= allowance.memory => Ok((head_mask, bytes)),
            Some(Err(error)) => Err(error),
            _ => build_head(pattern, head, rule, allowance, taken),
        };
        let (head_mask, bytes) = built?;
        let number = mask.masks.iter().position(|other| *other == head_mask).unwrap_or_else(|| {
            taken += bytes;
            mask.masks.push(head_mask);
            mask.masks.len() - 1
        });
        mask.mask_of_head.push(number as u32);
    }
    Ok(mask)
}

/// [`build`] for kernels that can join parts: a union that is dense in no single order of rows is split, where that
/// is cheaper than its scattered edges. `group` neighboring heads share keys and values: their queries stand in one
/// row where each has one.
///
/// # Errors
///
/// As [`build`].
pub fn build_in_parts(pattern: &Pattern, allowance: impl Into<Allowance>, group: usize) -> Result<BlockMask> {
    let allowance = allowance.into();
    let mut rule = EdgeRule::default();
    if pattern.q_len == 1 && group > rule.few_queries as usize {
        // Enough queries once the heads stand together.
        rule.few_queries = 0;
        let mask = build_with(pattern, allowance, &rule)?;
        return Ok(split_keys(stack_heads(&mask, group).unwrap_or(mask)));
    }
    check_lengths(pattern)?;
    let parts = split(pattern, allowance, &rule)?;
    let built = parts.iter().map(|part| build_with(part, allowance, &rule)).collect::<Result<Vec<_>>>()?;
    let mut joined = BlockMask { parts: built.len(), masks: Vec::new(), mask_of_head: Vec::new(), ..built[0].clone() };
    for head in 0..pattern.heads {
        let mut first = 0;
        for part in &built {
            joined.mask_of_head.push(first + part.mask_of_head[head]);
            first += part.masks.len() as u32;
        }
    }
    joined.masks = built.into_iter().flat_map(|part| part.masks).collect();
    Ok(split_keys(joined))
}

/// The parts of a pattern that pay as masks of their own, or the whole of it.
pub(super) fn split(pattern: &Pattern, allowance: Allowance, rule: &EdgeRule) -> Result<Vec<Pattern>> {
    let mut failed = None;
    let parts = pattern.parts(|part| {
        let modulus = part.modulus();
        if regroup_step(part).is_none() || pattern.heads == 0 {
            return false;
        }
        match build_head(part, 0, rule, allowance, 0) {
            Ok((mask, _)) => {
                // Beside others, its pairs would be edges or, if they are near each other, masked to one in `modulus`.
                let beside = mask.counts(part.q_len).nnz() * modulus.min(u64::from(rule.edge_cost));
                rule.cost(&mask, part.q_len) + u64::from(rule.part_cost) * part.q_len as u64 <= beside
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    });
    failed.map_or(Ok(parts), Err)
}

pub(super) fn check_lengths(pattern: &Pattern) -> Result<()> {
    for (what, length) in [("queries", pattern.q_len), ("keys", pattern.kv_len)] {
        // Sums of a start and a length must fit as well.
        if length > (u32::MAX / 2) as usize {
            return Err(Error::unsupported(format!("{length} {what}"), format!("at most {} are", u32::MAX / 2)));
        }
    }
    Ok(())
}

/// Queries of a residue class from which regrouping pays: a group of lanes.
const LEAST_CLASS: usize = 16;

/// The step by which a pattern should be regrouped, if at all.
fn regroup_step(pattern: &Pattern) -> Option<u32> {
    let step = u32::try_from(pattern.modulus()).ok().filter(|&step| step > 1)?;
    (pattern.q_len / step as usize >= LEAST_CLASS).then_some(step)
}

/// The mask of one head, and its bytes.
fn build_head(
    pattern: &Pattern,
    head: usize,
    rule: &EdgeRule,
    allowance: Allowance,
    taken: u64,
) -> Result<(HeadMask, u64)> {
    let built = build_head_within(pattern, head, rule, allowance, taken, u64::MAX)?;
    built.ok_or_else(|| Error::internal("mask", "a mask without a budget has passed it", pattern.print()))
}

/// [`build_head`] that looks at no more than about `budget` words; `None` where that is not enough.
pub(super) fn build_head_within(
    pattern: &Pattern,
    head: usize,
    rule: &EdgeRule,
    allowance: Allowance,
    taken: u64,
    budget: u64,
) -> Result<Option<(HeadMask, u64)>> {
    let pattern = &*pattern.of_head(head);
    let run = |pattern: &Pattern, rows| {
        HeadBuilder { budget, ..HeadBuilder::new(pattern, head, rule, allowance, taken, rows) }.run()
    };
    if rule.in_order {
        return run(pattern, identity(pattern.q_len));
    }
    let Some(step) = regroup_step(pattern) else {
        let Some((mask, bytes)) = run(pattern, row_order(pattern, head))? else { return Ok(None) };
        if let Some(rows) = patch_order(pattern, head)
            && let Ok(Some((patches, bytes))) = run(pattern, rows)
            && rule.cost(&patches, pattern.q_len) < rule.cost(&mask, pattern.q_len)
        {
            return Ok(Some((patches, bytes)));
        }
        return Ok(Some((mask, bytes)));
    };
    let Regrouped { pattern, order, classes } = pattern.regrouped(step);
    let stretch = |places: &Range<usize>| Stretch { place: places.start, query: places.start, len: places.len() };
    let rows = (RowOrder::Permuted(order), classes.iter().map(stretch).collect());
    let built = run(&pattern, rows)?;
    Ok(built.map(|(mask, bytes)| (HeadMask { keys: KeyOrder::Residue(step), ..mask }, bytes)))
}

/// The queries of one block row, as ranges in the order of their places.
type Queries = SmallVec<[Range<usize>; 2]>;

/// Keys of one kind in a row: full, or partial with words from `words` on in the row's buffer.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u32,
    len: u32,
    words: Option<usize>,
}

/// Exact words of a key range, remembered by its place relative to the row's first query.
#[derive(Debug)]
struct Remembered {
    /// The first query modulo the block, first key minus first query, and how the leaves that have no period
    /// are decided: with these equal, the row is a shift of the one that was evaluated.
    question: (usize, i64, u64),
    words: Vec<u64>,
}

/// How many ranges are remembered at once; a window has two edges, a union of leaves a few more.
const REMEMBERED: usize = 16;
/// Keys of the longest range that is remembered.
const LONGEST_REMEMBERED: usize = 4096;
/// Rows with more undecided ranges than this are evaluated without asking the memory.
const FEW_RANGES: usize = 8;

/// Rows with at least this many undecided ranges are scattered query by query, if bounds allow: their words are
/// nearly empty, and 64 queries over all those blocks are more of them than pairs.
const MANY_RANGES: usize = 128;

/// Queries from which on heads are built side by side.
const MANY_QUERIES: usize = 1024;
/// Key blocks of a row from which its queries are shared out to threads.
const MANY_BLOCKS: usize = 32;

/// Keys of an interval that are scattered without asking whether every query has them.
const SHORT_INTERVAL: i64 = 8;

/// Builds the mask of one head, row by row.
pub(super) struct HeadBuilder<'a> {
    pattern: &'a Pattern,
    head: usize,
    rule: &'a EdgeRule,
    allowance: Allowance,
    /// Bytes of the heads before.
    taken: u64,
    order: RowOrder,
    stretches: Vec<Stretch>,
    rows: RowRuns,
    words: Table<u64>,
    edges: Edges,
    /// The row under construction.
    segments: Vec<Segment>,
    pieces: Vec<Piece>,
    row_words: Vec<u64>,
    edge_columns: Vec<(u32, u64)>,
    /// Scratch of exact evaluation: undecided key blocks, their bits by query and then by key, each query's words.
    blocks: Vec<u32>,
    bits: Vec<u64>,
    query_words: Vec<u64>,
    remembered: Vec<Remembered>,
    next_remembered: usize,
    /// One word a key, all 0 between rows; empty until a row scatters into it.
    columns: Vec<u64>,
    /// Keys of `columns` that a short interval set.
    touched: Vec<u32>,
    /// Whether the bounds of a single query were once found inexact.
    bounds_are_loose: bool,
    /// Words that may be looked at, and how many were.
    budget: u64,
    spent: u64,
}

impl<'a> HeadBuilder<'a> {
    pub(super) fn new(
        pattern: &'a Pattern,
        head: usize,
        rule: &'a EdgeRule,
        allowance: Allowance,
        taken: u64,
        (order, stretches): (RowOrder, Vec<Stretch>),
    ) -> Self {
        Self {
            pattern,
            head,
            rule,
            allowance,
            taken,
            order,
            stretches,
            rows: RowRuns::default(),
            words: Table::default(),
            edges: Edges::default(),
            segments: Vec::new(),
            pieces: Vec::new(),
            row_words: Vec::new(),
            edge_columns: Vec::new(),
            blocks: Vec::new(),
            bits: Vec::new(),
            query_words: Vec::new(),
            remembered: Vec::new(),
            next_remembered: 0,
            columns: Vec::new(),
            touched: Vec::new(),
            bounds_are_loose: false,
            budget: u64::MAX,
            spent: 0,
        }
    }

    /// Builds all rows that the stretches hold; `None` where that takes more than the budget. Tells the mask's bytes.
    pub(super) fn run(mut self) -> Result<Option<(HeadMask, u64)>> {
        let places = self.places();
        let block_rows = places.div_ceil(QUERY_BLOCK);
        let mut copies = Attempts::default();
        let mut row = 0;
        let mut stretch = 0;
        while row < block_rows {
            let place = row * QUERY_BLOCK;
            while self.stretches[stretch].place + self.stretches[stretch].len <= place {
                stretch += 1;
                // The next stretch may be another residue class, where equal questions have other answers.
                self.remembered.clear();
                self.next_remembered = 0;
            }
            let queries = self.queries_at(stretch, place);
            self.build_row(place, &queries)?;
            self.rows.push(1, &self.segments);
            row += 1;
            if self.edge_columns.is_empty() && queries.len() == 1 && queries[0].len() == QUERY_BLOCK {
                let on = self.stretches[stretch];
                let more = (on.place + on.len - place) / QUERY_BLOCK - 1;
                let built =
                    Row { pattern: self.pattern, head: self.head, query: queries[0].start, segments: &self.segments };
                let copied = copies.append(&mut self.rows, &built, more);
                row += copied;
                // The offsets of rows without edges, had there been edges before.
                self.finish_edge_rows((row * QUERY_BLOCK).min(places));
            }
            self.check()?;
            self.spent += (self.row_words.len().max(self.bits.len()) + 8 * self.pieces.len() + QUERY_BLOCK) as u64;
            if self.spent > self.budget {
                return Ok(None);
            }
        }
        let bytes = self.bytes() - self.taken;
        let mask = HeadMask {
            order: self.order,
            keys: KeyOrder::Identity,
            rows: self.rows.finish(),
            words: self.words.finish(),
            lists: Vec::new(),
            edges: self.edges,
        };
        Ok(Some((mask, bytes)))
    }

    /// Places that the stretches hold: all queries, unless some rows alone were asked for.
    fn places(&self) -> usize {
        self.stretches.last().map_or(0, |on| on.place + on.len)
    }

    /// The queries of the block row at `place`, which lies on stretch number `stretch`.
    fn queries_at(&self, stretch: usize, place: usize) -> Queries {
        let end = (place + QUERY_BLOCK).min(self.places());
        let mut queries = Queries::new();
        for on in self.stretches[stretch..].iter().take_while(|on| on.place < end) {
            let (from, to) = (place.max(on.place), end.min(on.place + on.len));
            queries.push(on.query + from - on.place..on.query + to - on.place);
        }
        queries
    }

    /// Leaves the segments of the row in `segments` and appends its edges.
    fn build_row(&mut self, place: usize, queries: &Queries) -> Result<()> {
        let count: usize = queries.iter().map(Range::len).sum();
        let live = u64::MAX >> (QUERY_BLOCK - count);
        let cover = self.bounds(queries);
        let undecided = cover.some.difference(&cover.all);
        self.pieces.clear();
        self.row_words.clear();
        self.collect_pieces(&cover.all, &undecided, queries, live);
        self.choose_segments();
        self.append_edges(place, count)
    }

    /// Bounds of a row, clipped to the keys there are.
    fn bounds(&self, queries: &Queries) -> Cover {
        let mut ranges = queries.iter().map(|range| self.pattern.cover(self.head, range.clone()));
        let mut cover = ranges.next().unwrap_or_default();
        for more in ranges {
            cover.some = cover.some.union(&more.some);
            cover.all = cover.all.intersection(&more.all);
        }
        let kv_len = self.pattern.kv_len as i64;
        Cover { some: cover.some.clip(0, kv_len), all: cover.all.clip(0, kv_len) }
    }

    /// Full and partial pieces in ascending order of keys. `full` and `undecided` are disjoint.
    fn collect_pieces(&mut self, full: &KeySet, undecided: &KeySet, queries: &Queries, live: u64) {
        let ranges = undecided.intervals();
        let few = ranges.len() <= FEW_RANGES && queries.len() == 1;
        let scattered = !few && ranges.len() >= MANY_RANGES && self.scatter(full, queries);
        if !few && !scattered {
            self.evaluate(ranges, queries);
        }
        let mut block = 0;
        let mut full = full.intervals().iter().peekable();
        for &(lo, hi) in ranges {
            while let Some(&&(start, end)) = full.peek().filter(|interval| interval.0 < lo) {
                self.add_full(start as u32, (end - start) as u32);
                full.next();
            }
            if few {
                self.add_by_memory(lo, hi, queries, live);
                continue;
            }
            if scattered {
                for key in lo..hi {
                    let word = std::mem::take(&mut self.columns[key as usize]);
                    self.add_word(key as u32, word, live);
                }
                continue;
            }
            while i64::from(self.blocks[block]) < lo / 64 {
                block += 1;
            }
            for key in lo..hi {
                if i64::from(self.blocks[block]) < key / 64 {
                    block += 1;
                }
                self.add_word(key as u32, self.bits[block * 64 + (key % 64) as usize], live);
            }
        }
        for &(start, end) in full {
            self.add_full(start as u32, (end - start) as u32);
        }
        if scattered {
            // Bits of keys that every query has were set with the others and not read.
            for &key in &self.touched {
                self.columns[key as usize] = 0;
            }
        }
    }

    /// Adds the keys `lo..hi` of a row of contiguous queries, from memory where the same question was answered
    /// for a row before.
    fn add_by_memory(&mut self, lo: i64, hi: i64, queries: &Queries, live: u64) {
        let range = queries[0].clone();
        let first = (lo % 64) as usize;
        let keys = first..first + (hi - lo) as usize;
        // The answers of a short last row have fewer bits, and long ones are rarely asked for twice.
        let signature = (range.len() == QUERY_BLOCK && keys.len() <= LONGEST_REMEMBERED)
            .then(|| self.pattern.shift_signature(self.head, &range, &(lo..hi), QUERY_BLOCK as u64))
            .flatten();
        let Some(signature) = signature else {
            self.evaluate(&[(lo, hi)], queries);
            for (key, at) in (lo..hi).zip(keys) {
                self.add_word(key as u32, self.bits[at], live);
            }
            return;
        };
        let question = (range.start % QUERY_BLOCK, lo - range.start as i64, signature);
        let known =
            self.remembered.iter().position(|entry| entry.question == question && entry.words.len() == keys.len());
        let number = known.unwrap_or_else(|| {
            self.evaluate(&[(lo, hi)], queries);
            let entry = Remembered { question, words: self.bits[keys].to_vec() };
            let number = self.next_remembered;
            if number == self.remembered.len() {
                self.remembered.push(entry);
            } else {
                self.remembered[number] = entry;
            }
            self.next_remembered = (number + 1) % REMEMBERED;
            number
        });
        let words = std::mem::take(&mut self.remembered[number].words);
        for (key, &word) in (lo..hi).zip(&words) {
            self.add_word(key as u32, word, live);
        }
        self.remembered[number].words = words;
    }

    /// Leaves in `columns` the word of every key outside `full`, from the bounds of single queries; false, and
    /// no words, where those are not exact. This costs the pairs of the row, however many blocks they lie in.
    fn scatter(&mut self, full: &KeySet, queries: &Queries) -> bool {
        if self.bounds_are_loose {
            return false;
        }
        let pattern = self.pattern;
        self.columns.resize(pattern.kv_len, 0);
        self.touched.clear();
        for (place, query) in queries.iter().cloned().flatten().enumerate() {
            let bit = 1 << place;
            if !pattern.each_cover(self.head, query, &mut |cover| self.scatter_cover(cover, bit, full)) {
                self.bounds_are_loose = true;
                self.columns.fill(0);
                return false;
            }
        }
        true
    }

    /// Adds one query's bit to the keys that a part of the pattern allows it; false where the part's bounds are
    /// not exact.
    fn scatter_cover(&mut self, Cover { some, all }: Cover, bit: u64, full: &KeySet) -> bool {
        if some != all {
            return false;
        }
        let kv_len = self.pattern.kv_len as i64;
        for &(lo, hi) in some.intervals() {
            let (lo, hi) = (lo.max(0), hi.min(kv_len));
            if hi - lo <= SHORT_INTERVAL {
                for key in lo..hi {
                    self.columns[key as usize] |= bit;
                    self.touched.push(key as u32);
                }
            } else {
                for &(lo, hi) in KeySet::span(lo, hi).difference(full).intervals() {
                    self.columns[lo as usize..hi as usize].iter_mut().for_each(|word| *word |= bit);
                }
            }
        }
        true
    }

    /// Leaves in `blocks` the key blocks of `ranges` and in `bits` one word a key of theirs.
    fn evaluate(&mut self, ranges: &[(i64, i64)], queries: &Queries) {
        self.blocks.clear();
        for &(lo, hi) in ranges {
            let first = (lo / 64) as u32;
            let from = self.blocks.last().map_or(first, |&last| first.max(last + 1));
            self.blocks.extend(from..=((hi - 1) / 64) as u32);
        }
        self.bits.clear();
        self.bits.resize(self.blocks.len() * 64, 0);
        let (pattern, head, blocks) = (self.pattern, self.head, &self.blocks);
        if blocks.is_empty() {
            return;
        }
        let queries: SmallVec<[usize; QUERY_BLOCK]> = queries.iter().cloned().flatten().collect();
        self.query_words.resize(queries.len() * blocks.len(), 0);
        let rows = self.query_words.chunks_exact_mut(blocks.len()).zip(&queries);
        if blocks.len() < MANY_BLOCKS {
            rows.for_each(|(words, &query)| pattern.words(head, query, blocks, words));
        } else {
            let mut rows: Vec<_> = rows.collect();
            rows.par_iter_mut().for_each(|(words, query)| pattern.words(head, **query, blocks, words));
        }
        for (place, words) in self.query_words.chunks_exact(blocks.len()).take(queries.len()).enumerate() {
            for (block, &word) in words.iter().enumerate() {
                self.bits[block * 64 + place] = word;
            }
        }
        for block in self.bits.as_chunks_mut::<64>().0 {
            transpose(block);
        }
    }

    fn add_full(&mut self, start: u32, len: u32) {
        match self.pieces.last_mut() {
            Some(last) if last.words.is_none() && last.start + last.len == start => last.len += len,
            _ => self.pieces.push(Piece { start, len, words: None }),
        }
    }

    fn add_word(&mut self, key: u32, word: u64, live: u64) {
        if word == 0 {
            return;
        }
        if word == live {
            return self.add_full(key, 1);
        }
        match self.pieces.last_mut() {
            Some(last) if last.words.is_some() && last.start + last.len == key => last.len += 1,
            _ => self.pieces.push(Piece { start: key, len: 1, words: Some(self.row_words.len()) }),
        }
        self.row_words.push(word);
    }

    /// Turns pieces into segments and edge columns, as [`EdgeRule`] decides.
    fn choose_segments(&mut self) {
        self.segments.clear();
        self.edge_columns.clear();
        for piece in &self.pieces {
            let Piece { start, len, words } = *piece;
            if self.pattern.q_len <= self.rule.few_queries as usize {
                let word = |at: u32| {
                    words.map_or(u64::MAX >> (QUERY_BLOCK - self.pattern.q_len), |from| {
                        self.row_words[from + at as usize]
                    })
                };
                self.edge_columns.extend((0..len).map(|at| (start + at, word(at))));
                continue;
            }
            let Some(from) = words else {
                self.segments.push(range(start, len, None));
                continue;
            };
            let words = &self.row_words[from..from + len as usize];
            if self.rule.keeps_run(words) {
                let mask = self.words.intern(words);
                self.segments.push(range(start, len, Some(mask)));
                continue;
            }
            let mut at = 0;
            while at < words.len() {
                let kept = words[at..].iter().take_while(|&&word| self.rule.keeps_column(word)).count();
                if kept > 0 {
                    let mask = self.words.intern(&words[at..at + kept]);
                    self.segments.push(range(start + at as u32, kept as u32, Some(mask)));
                    at += kept;
                } else {
                    self.edge_columns.push((start + at as u32, words[at]));
                    at += 1;
                }
            }
        }
    }

    /// Appends the pairs of `edge_columns` by place; `count` queries stand from `place` on.
    fn append_edges(&mut self, place: usize, count: usize) -> Result<()> {
        if self.edge_columns.is_empty() && self.edges.offsets.is_empty() {
            return Ok(());
        }
        if self.edges.offsets.is_empty() {
            self.edges.offsets.push(0);
            self.finish_edge_rows(place);
        }
        let mut ends = [0u64; QUERY_BLOCK];
        for &(_, word) in &self.edge_columns {
            each_bit(word, |bit| ends[bit] += 1);
        }
        let mut next = [0usize; QUERY_BLOCK];
        let mut total = self.edges.keys.len() as u64;
        for bit in 0..count {
            next[bit] = total as usize;
            total += ends[bit];
            let Ok(offset) = u32::try_from(total) else {
                return Err(Error::unsupported(
                    "more than 4,294,967,295 scattered edges in one head",
                    "edge offsets are 32 bits wide",
                ));
            };
            self.edges.offsets.push(offset);
        }
        self.edges.keys.resize(total as usize, 0);
        for &(key, word) in &self.edge_columns {
            each_bit(word, |bit| {
                self.edges.keys[next[bit]] = key;
                next[bit] += 1;
            });
        }
        Ok(())
    }

    /// Gives all places before `place` that have no offset yet an empty list; nothing where there are no edges.
    fn finish_edge_rows(&mut self, place: usize) {
        if let Some(&last) = self.edges.offsets.last()
            && self.edges.offsets.len() <= place
        {
            self.edges.offsets.resize(place + 1, last);
        }
    }

    fn bytes(&self) -> u64 {
        let edges = 4 * (self.edges.keys.len() + self.edges.offsets.len()) as u64;
        let order = if self.order == RowOrder::Identity { 0 } else { 4 * self.pattern.q_len as u64 };
        self.taken + self.rows.bytes() + self.words.bytes() + edges + order
    }

    fn check(&self) -> Result<()> {
        let (given, limit) = (self.bytes(), self.allowance.memory);
        if given > limit {
            return Err(Error::Memory { what: "the block mask".into(), given, limit });
        }
        self.allowance.check_time()
    }
}

fn range(start: u32, len: u32, mask: Option<u32>) -> Segment {
    Segment { keys: Keys::Range { start, len, start_step: 0, len_step: 0 }, mask }
}

/// Calls `visit` with the number of each set bit, ascending.
fn each_bit(mut word: u64, mut visit: impl FnMut(usize)) {
    while word != 0 {
        visit(word.trailing_zeros() as usize);
        word &= word - 1;
    }
}

/// Transposes a 64 × 64 bit matrix: bit `j` of word `i` becomes bit `i` of word `j`. Quadrants are swapped, then
/// their quadrants (Warren, "Hacker's Delight", section 7-3).
fn transpose(matrix: &mut [u64; 64]) {
    let mut half = 32;
    let mut low = u64::MAX >> 32;
    while half > 0 {
        let mut row = 0;
        while row < 64 {
            let swap = ((matrix[row] >> half) ^ matrix[row + half]) & low;
            matrix[row] ^= swap << half;
            matrix[row + half] ^= swap;
            row = (row + half + 1) & !half;
        }
        half /= 2;
        low ^= low << half;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposition_swaps_rows_and_bits() {
        let mut seed = 1u64;
        let before: [u64; 64] = std::array::from_fn(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed ^ (seed >> 29)
        });
        let mut after = before;
        transpose(&mut after);
        for (i, row) in before.iter().enumerate() {
            for (j, column) in after.iter().enumerate() {
                assert_eq!((row >> j) & 1, (column >> i) & 1);
            }
        }
    }
}

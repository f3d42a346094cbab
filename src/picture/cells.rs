//! Counting the pairs of a mask into cells.
//!
//! Every count is exact: of a run of keys in arithmetic, of a masked key by the bits of its word. A block row costs its
//! segments times the cells that they touch, whatever lies within.

use std::ops::Range;

use super::{Cell, KINDS, Panel, Picture};
use crate::error::Result;
use crate::mask::{HeadMask, KeyOrder, Keys, QUERY_BLOCK, Segment, build_one_head, build_some_rows};
use crate::pattern::{KeySet, Pattern};

/// Words of 64 points that a mask is built of for a picture; one that needs more is drawn from some of its rows.
const BUDGET: u64 = 3_000_000;
/// Longest sequence whose mask is tried to be built whole.
const WHOLE: usize = 1 << 22;
/// Fewest rows of cells to which a picture is cut where single rows cost much.
const FEWEST_ROWS: u64 = 24;

/// How fine a picture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail {
    /// Most rows of cells.
    pub rows: usize,
    /// Most columns of cells.
    pub columns: usize,
}

/// Draws a head of a pattern. `in_parts` as for kernels of one hop ([`crate::mask::build_in_parts`]); `memory_limit` is
/// in bytes.
///
/// # Errors
/// As [`crate::mask::build`].
pub fn of_pattern(
    pattern: &Pattern,
    head: usize,
    in_parts: bool,
    detail: Detail,
    memory_limit: u64,
) -> Result<Picture> {
    let title = format!("head {head}");
    if (pattern.q_len == 0 || pattern.q_len.max(pattern.kv_len) <= WHOLE)
        && let Some(masks) = build_one_head(pattern, head, in_parts, memory_limit, BUDGET)?
    {
        return Ok(of_mask(pattern, head, &masks.iter().collect::<Vec<_>>(), detail));
    }
    // One row in the middle tells what rows cost.
    let blocks = pattern.q_len.div_ceil(QUERY_BLOCK);
    let probe = build_some_rows(pattern, head, &[(blocks / 2) as u32], memory_limit)?;
    let cost = work(&probe).max(QUERY_BLOCK as u64);
    let most = detail.rows.clamp(1, blocks) as u64;
    let rows = (BUDGET / cost).clamp(FEWEST_ROWS.min(most), most) as usize;
    let each = (BUDGET / cost / rows as u64).clamp(1, 4) as usize;
    // The middles of equal stretches of each row of cells.
    let mut chosen: Vec<u32> = Vec::new();
    let mut first = 0;
    for row in 0..rows {
        let after = (row + 1) * blocks / rows;
        let each = each.min(after - first);
        chosen.extend((0..each).map(|i| (first + (2 * i + 1) * (after - first) / (2 * each)) as u32));
        first = after;
    }
    let mask = build_some_rows(pattern, head, &chosen, memory_limit)?;
    let mut counter = Counter { sampled: true, ..Counter::new(pattern, head, Detail { rows, ..detail }) };
    counter.add(&mask, chosen.len() * QUERY_BLOCK);
    let note =
        format!("each row of cells is drawn from {} of its {} queries", each * QUERY_BLOCK, pattern.q_len / rows);
    Ok(counter.picture(title, note))
}

/// Draws a head from all its masks, one a part.
pub fn of_mask(pattern: &Pattern, head: usize, masks: &[&HeadMask], detail: Detail) -> Picture {
    let mut counter = Counter::new(pattern, head, detail);
    for (part, mask) in masks.iter().enumerate() {
        counter.add(mask, pattern.q_len);
        if part == 0 {
            counter.queries_are_counted = true;
        }
    }
    counter.picture(format!("head {head}"), String::new())
}

/// About how many words, edges and segments a row holds.
fn work(row: &HeadMask) -> u64 {
    let segments: usize = row.rows.iter().map(|run| run.segments.len()).sum();
    (row.edges.keys.len() + row.words.iter().map(Vec::len).sum::<usize>() + 4 * segments) as u64
}

/// Pairs of each kind in each cell, and how many pairs were looked at.
struct Counter {
    q_len: usize,
    kv_len: usize,
    rows: usize,
    columns: usize,
    /// `[rows][columns][kinds]`
    counts: Vec<[u64; KINDS.len()]>,
    /// Queries that were looked at, by row of cells.
    queries: Vec<u64>,
    queries_are_counted: bool,
    /// Whether rows stand for others. Global queries then are left out, and what they see is added.
    sampled: bool,
    global_keys: KeySet,
    global_queries: Vec<u32>,
}

const FULL: usize = 0;
const PARTIAL: usize = 1;
const SCATTERED: usize = 2;
const GLOBAL: usize = 3;

/// Queries of one block row that fall into one row of cells: their bits, those of global queries apart.
#[derive(Debug, Clone, Copy)]
struct Group {
    row: usize,
    bits: u64,
    global: bool,
}

impl Counter {
    fn new(pattern: &Pattern, head: usize, detail: Detail) -> Self {
        let rows = detail.rows.clamp(1, pattern.q_len.max(1));
        let columns = detail.columns.clamp(1, pattern.kv_len.max(1));
        Self {
            q_len: pattern.q_len,
            kv_len: pattern.kv_len,
            rows,
            columns,
            counts: vec![[0; KINDS.len()]; rows * columns],
            queries: vec![0; rows],
            queries_are_counted: false,
            sampled: false,
            global_keys: pattern.global_keys(head),
            global_queries: pattern.dense_queries(head),
        }
    }

    fn row_of(&self, query: usize) -> usize {
        query * self.rows / self.q_len
    }

    fn column_of(&self, key: usize) -> usize {
        key * self.columns / self.kv_len
    }

    /// The keys of a column of cells.
    fn keys_of(&self, column: usize) -> Range<usize> {
        (column * self.kv_len).div_ceil(self.columns)..((column + 1) * self.kv_len).div_ceil(self.columns)
    }

    /// Adds the pairs of a mask with so many places.
    fn add(&mut self, mask: &HeadMask, places: usize) {
        let mut groups: Vec<Group> = Vec::new();
        let mut columns: Vec<(usize, u64, u64)> = Vec::new();
        for run in &mask.rows {
            for (at, block) in run.block_rows().enumerate() {
                let from = block as usize * QUERY_BLOCK;
                let queries = from..(from + QUERY_BLOCK).min(places).min(self.places_of(mask));
                self.group(mask, queries, &mut groups);
                for segment in &run.segments {
                    self.add_segment(mask, segment, at as u32, &groups, &mut columns);
                }
                if !mask.edges.keys.is_empty() {
                    self.add_edges(mask, from, &groups);
                }
            }
        }
    }

    fn places_of(&self, mask: &HeadMask) -> usize {
        match &mask.order {
            crate::mask::RowOrder::Identity => self.q_len,
            crate::mask::RowOrder::Permuted(order) => order.len(),
        }
    }

    /// Sorts the queries of a block row into groups.
    fn group(&mut self, mask: &HeadMask, places: Range<usize>, groups: &mut Vec<Group>) {
        groups.clear();
        for (bit, place) in places.enumerate() {
            let query = mask.order.query_at(place);
            let (row, global) = (self.row_of(query), self.global_queries.binary_search(&(query as u32)).is_ok());
            if self.sampled && global {
                continue;
            }
            if !self.queries_are_counted {
                self.queries[row] += 1;
            }
            // Neighbors mostly share a group, which then is the last one.
            match groups.iter_mut().rev().find(|group| (group.row, group.global) == (row, global)) {
                Some(group) => group.bits |= 1 << bit,
                None => groups.push(Group { row, bits: 1 << bit, global }),
            }
        }
    }

    fn count(&mut self, row: usize, column: usize, kind: usize, pairs: u64) {
        self.counts[row * self.columns + column][kind] += pairs;
    }

    fn add_segment(
        &mut self,
        mask: &HeadMask,
        segment: &Segment,
        row: u32,
        groups: &[Group],
        columns: &mut Vec<(usize, u64, u64)>,
    ) {
        let numbers = segment.keys.range_at(row);
        let Some(words) = segment.mask else {
            columns.clear();
            match (segment.keys, numbers) {
                (Keys::List { list }, _) => self.list_columns(&mask.lists[list as usize], mask.keys, columns),
                (Keys::Range { .. }, Some(numbers)) => self.range_columns(numbers, mask.keys, columns),
                (Keys::Range { .. }, None) => {}
            }
            for &Group { row, bits, global } in groups {
                let queries = u64::from(bits.count_ones());
                for &(column, keys, of_global) in &*columns {
                    let plain = if global { 0 } else { keys - of_global };
                    self.count(row, column, FULL, queries * plain);
                    self.count(row, column, GLOBAL, queries * (keys - plain));
                }
            }
            return;
        };
        let words = &mask.words[words as usize];
        let list = match segment.keys {
            Keys::List { list } => Some(&mask.lists[list as usize]),
            Keys::Range { .. } => None,
        };
        let start = numbers.map_or(0, |numbers| numbers.start);
        for (at, &word) in words.iter().enumerate() {
            let number = list.map_or(start + at as u32, |list| list[at]);
            let key = mask.keys.key_at(number, self.kv_len) as usize;
            let (column, of_global) = (self.column_of(key), self.global_keys.contains(key as i64));
            for &Group { row, bits, global } in groups {
                let kind = if global || of_global { GLOBAL } else { PARTIAL };
                self.count(row, column, kind, u64::from((word & bits).count_ones()));
            }
        }
    }

    /// Keys, and global keys among them, by column of cells.
    fn list_columns(&self, numbers: &[u32], order: KeyOrder, columns: &mut Vec<(usize, u64, u64)>) {
        for &number in numbers {
            let key = order.key_at(number, self.kv_len) as usize;
            columns.push((self.column_of(key), 1, u64::from(self.global_keys.contains(key as i64))));
        }
    }

    /// The same for a run of numbers.
    fn range_columns(&self, numbers: Range<u32>, order: KeyOrder, columns: &mut Vec<(usize, u64, u64)>) {
        if let KeyOrder::Residue(step) = order {
            let mut numbers = numbers;
            while numbers.start < numbers.end {
                let class = order.numbers(order.class_of(numbers.start, self.kv_len), self.kv_len);
                let end = class.end.min(numbers.end);
                self.stride_columns(numbers.start..end, order, step as usize, columns);
                numbers.start = end;
            }
            return;
        }
        let keys = numbers.start as usize..numbers.end as usize;
        if keys.is_empty() {
            return;
        }
        let apart = self.global_keys.clip(keys.start as i64, keys.end as i64);
        for column in self.column_of(keys.start)..=self.column_of(keys.end - 1) {
            let of = self.keys_of(column);
            let (from, to) = (of.start.max(keys.start), of.end.min(keys.end));
            let of_global = if apart.is_empty() { 0 } else { apart.clip(from as i64, to as i64).len() };
            columns.push((column, (to - from) as u64, of_global));
        }
    }

    /// The same for numbers of one residue class, which are keys a step apart.
    fn stride_columns(&self, numbers: Range<u32>, order: KeyOrder, step: usize, columns: &mut Vec<(usize, u64, u64)>) {
        let first = order.key_at(numbers.start, self.kv_len) as usize;
        let count = numbers.len();
        let mut at = 0;
        while at < count {
            let key = first + at * step;
            let column = self.column_of(key);
            let next = (self.keys_of(column).end - key).div_ceil(step).min(count - at);
            let of_global = if self.global_keys.is_empty() {
                0
            } else {
                (0..next).filter(|i| self.global_keys.contains((key + i * step) as i64)).count()
            };
            columns.push((column, next as u64, of_global as u64));
            at += next;
        }
    }

    fn add_edges(&mut self, mask: &HeadMask, first: usize, groups: &[Group]) {
        for &Group { row, mut bits, global } in groups {
            while bits != 0 {
                let place = first + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                for &number in mask.edges_of(place) {
                    let key = mask.keys.key_at(number, self.kv_len) as usize;
                    let apart = global || self.global_keys.contains(key as i64);
                    self.count(row, self.column_of(key), if apart { GLOBAL } else { SCATTERED }, 1);
                }
            }
        }
    }

    /// The share of a row's queries that are global and were not looked at: they see every key.
    fn global_share(&self, row: usize) -> f64 {
        if !self.sampled || self.q_len == 0 {
            return 0.0;
        }
        let queries = (row * self.q_len).div_ceil(self.rows)..((row + 1) * self.q_len).div_ceil(self.rows);
        let before = |end: usize| self.global_queries.partition_point(|&query| (query as usize) < end);
        (before(queries.end) - before(queries.start)) as f64 / queries.len().max(1) as f64
    }

    fn picture(self, title: String, note: String) -> Picture {
        let mut shares = vec![0.0; KINDS.len()];
        let mut cells = Vec::with_capacity(self.counts.len());
        for (at, counts) in self.counts.iter().enumerate() {
            let (row, column) = (at / self.columns, at % self.columns);
            let keys = self.keys_of(column).len() as f64;
            let all = self.queries[row] as f64 * keys;
            let global = self.global_share(row);
            let mut of_cell = counts.map(|count| if all > 0.0 { count as f64 / all * (1.0 - global) } else { 0.0 });
            of_cell[GLOBAL] += global;
            // Of equally many the first: full before partial.
            let class = (0..of_cell.len()).rev().max_by(|&a, &b| of_cell[a].total_cmp(&of_cell[b])).unwrap_or(FULL);
            cells.push(Cell { class, share: of_cell.iter().sum::<f64>().min(1.0) });
            // A row of cells weighs as many queries as it stands for.
            let queries = ((row + 1) * self.q_len).div_ceil(self.rows) - (row * self.q_len).div_ceil(self.rows);
            let weight = queries as f64 * keys / (self.q_len as f64 * self.kv_len as f64).max(1.0);
            shares.iter_mut().zip(of_cell).for_each(|(sum, share)| *sum += weight * share);
        }
        Picture {
            title: title.clone(),
            q_len: self.q_len,
            kv_len: self.kv_len,
            rows: self.rows,
            columns: self.columns,
            classes: &KINDS,
            panels: vec![Panel { title, cells, shares }],
            note,
        }
    }
}

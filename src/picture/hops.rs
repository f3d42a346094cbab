//! One panel a hop: the keys that reach each query after 1, 2, … hops.
//!
//! Short sequences are followed token by token. Longer ones are cut into blocks, and a block reaches another where any
//! pair of theirs is allowed, so that the picture shows at most more than there is; its note says so.

use super::cells::{Detail, of_pattern};
use super::{Cell, Panel, Picture, REACHED};
use crate::analysis::{EdgeList, Support, each_hop};
use crate::error::Result;
use crate::pattern::Pattern;
use crate::spec::Factors;

/// Longest sequence that is followed token by token.
const EXACT: usize = 4096;
/// Words that may be joined for it, over all hops.
const EXACT_WORDS: u64 = 1 << 30;
/// Most blocks a side beyond.
const BLOCKS: usize = 256;
/// Most panels of one picture.
const PANELS: usize = 12;

/// Draws how far a head reaches over the hops of a diffusion.
///
/// # Errors
/// As [`of_pattern`].
pub fn of_hops(
    pattern: &Pattern,
    diffusion: &Factors,
    head: usize,
    detail: Detail,
    memory_limit: u64,
) -> Result<Picture> {
    pattern.require_bound()?;
    let longest = pattern.q_len.max(pattern.kv_len);
    if longest <= EXACT && Support::bytes(pattern.q_len, pattern.kv_len) <= memory_limit {
        let lists: Vec<EdgeList> = patterns(pattern).map(|pattern| EdgeList::build(pattern, head)).collect();
        let most = lists.iter().map(|list| list.keys.len()).max().unwrap_or(0);
        let words = most as u64 * pattern.kv_len.div_ceil(64) as u64;
        if words * diffusion.hops.len() as u64 <= EXACT_WORDS {
            let rows = detail.rows.clamp(1, pattern.q_len.max(1));
            let columns = detail.columns.clamp(1, pattern.kv_len.max(1));
            return Ok(Drawing { lengths: (pattern.q_len, pattern.kv_len), grid: (rows, columns), title: title(head) }
                .draw(&lists, pattern, pattern.kv_len, diffusion, String::new()));
        }
    }
    let side = detail.rows.min(detail.columns).min(BLOCKS);
    let cut = |pattern: &Pattern, side: usize| {
        of_pattern(pattern, head, false, Detail { rows: side, columns: side }, memory_limit)
    };
    let mut blocks = cut(pattern, side)?;
    let mut side = side;
    if blocks.rows != blocks.columns && pattern.q_len == pattern.kv_len {
        side = blocks.rows.min(blocks.columns);
        blocks = cut(pattern, side)?;
    }
    let mut lists = vec![edges_between(&blocks)];
    let mut sampled = blocks.note.clone();
    for other in pattern.others() {
        let picture = cut(other, side)?;
        lists.push(edges_between(&picture));
        if sampled.is_empty() {
            sampled = picture.note;
        }
    }
    let mut note = format!(
        "followed on a grid of {} × {} blocks, where a block reaches another if any pair of theirs is allowed",
        blocks.rows, blocks.columns
    );
    // A sample of rows may miss pairs; then the picture bounds nothing.
    note += &if sampled.is_empty() { ": at most so much is reached".into() } else { format!("; {sampled}") };
    let drawing =
        Drawing { lengths: (pattern.q_len, pattern.kv_len), grid: (blocks.rows, blocks.columns), title: title(head) };
    Ok(drawing.draw(&lists, pattern, blocks.columns, diffusion, note))
}

/// The pattern and those of hops that have others.
fn patterns(pattern: &Pattern) -> impl Iterator<Item = &Pattern> {
    [pattern].into_iter().chain(pattern.others())
}

/// The blocks between which any pair is allowed.
fn edges_between(blocks: &Picture) -> EdgeList {
    let mut list = EdgeList { offsets: vec![0], keys: Vec::new() };
    for row in blocks.panels[0].cells.chunks(blocks.columns) {
        let some = row.iter().enumerate().filter(|(_, cell)| cell.share > 0.0);
        list.keys.extend(some.map(|(column, _)| column as u32));
        list.offsets.push(list.keys.len());
    }
    list
}

fn title(head: usize) -> String {
    format!("head {head}: reach over the hops")
}

struct Drawing {
    lengths: (usize, usize),
    grid: (usize, usize),
    title: String,
}

impl Drawing {
    /// Follows the lists of the pattern and of its hops over so many keys, which may be blocks.
    fn draw(
        self,
        lists: &[EdgeList],
        pattern: &Pattern,
        keys: usize,
        diffusion: &Factors,
        mut note: String,
    ) -> Picture {
        let queries = lists[0].offsets.len() - 1;
        let (rows, columns) = self.grid;
        let hops = diffusion.hops.len();
        let mut panels = Vec::new();
        let mut before: Option<Support> = None;
        each_hop(
            |hop| &lists[pattern.index_of_hop(hop)],
            keys,
            diffusion,
            |hop, support| {
                if hop < PANELS || hop == hops {
                    panels.push(panel(hop, support, before.as_ref(), (queries, keys), (rows, columns)));
                }
                before = Some(support.clone());
            },
        );
        if hops > PANELS {
            let left_out = format!("hops {PANELS} to {} are left out", hops - 1);
            note = if note.is_empty() { left_out } else { format!("{note}; {left_out}") };
        }
        Picture {
            title: self.title,
            q_len: self.lengths.0,
            kv_len: self.lengths.1,
            rows,
            columns,
            classes: &REACHED,
            panels,
            note,
        }
    }
}

/// Counts bits into cells, those that were there before the hop apart.
fn panel(
    hop: usize,
    support: &Support,
    before: Option<&Support>,
    (queries, keys): (usize, usize),
    (rows, columns): (usize, usize),
) -> Panel {
    let mut counts = vec![[0_u64; 2]; rows * columns];
    let mut queries_of = vec![0_u64; rows];
    for (query, row) in support.rows().enumerate() {
        let at = query * rows / queries;
        queries_of[at] += 1;
        let old = before.map(|before| &before.bits[query * before.width..(query + 1) * before.width]);
        for (number, &word) in row.iter().enumerate() {
            let known = word & old.map_or(0, |old| old[number]);
            for (class, mut bits) in [known, word & !known].into_iter().enumerate() {
                while bits != 0 {
                    let column = (number * 64 + bits.trailing_zeros() as usize) * columns / keys;
                    // All keys of the word that lie in this column at once.
                    let end = ((column + 1) * keys).div_ceil(columns) - number * 64;
                    let inside = if end >= 64 { bits } else { bits & ((1 << end) - 1) };
                    counts[at * columns + column][class] += u64::from(inside.count_ones());
                    bits &= !inside;
                }
            }
        }
    }
    let keys_of = |column: usize| ((column + 1) * keys).div_ceil(columns) - (column * keys).div_ceil(columns);
    let cells = counts.iter().enumerate().map(|(at, [old, new])| {
        let all = queries_of[at / columns] as f64 * keys_of(at % columns) as f64;
        let share = if all > 0.0 { (old + new) as f64 / all } else { 0.0 };
        Cell { class: usize::from(new > old), share }
    });
    let all = (queries as f64 * keys as f64).max(1.0);
    let total = |class: usize| counts.iter().map(|counts| counts[class]).sum::<u64>() as f64 / all;
    let after = if hop == 1 { "after 1 hop".into() } else { format!("after {hop} hops") };
    Panel { title: after, cells: cells.collect(), shares: vec![total(0), total(1)] }
}

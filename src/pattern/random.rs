//! `random` and `random_cells`: drawn keys for every query, and cells drawn from the whole matrix.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::draw::Draw;
use super::listed::Listed;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, Scope, leaf};
use super::rows::{Part, Rows, take_bits};
use crate::error::Result;
use crate::limits::Limit;

/// `random`
pub const RANDOM: NodeDef = NodeDef {
    name: "random",
    meaning: "a query attends to that many distinct keys drawn for it (all where fewer exist)",
    args: &[
        ArgDef { name: "keys_per_query", kind: Kind::Integer, default: None, meaning: "keys drawn for each query" },
        ArgDef { name: "seed", kind: Kind::Seed, default: None, meaning: "another seed, another choice" },
        ArgDef { name: "per_head", kind: Kind::Flag, default: Some("false"), meaning: "every head draws its own" },
        ArgDef {
            name: "among",
            kind: Kind::Choice(&["all", "past"]),
            default: Some("all"),
            meaning: "past: only from k <= q",
        },
    ],
    forms: &[],
    example: "random: {keys_per_query: 8, seed: 1}",
    read: read_random,
};

/// `random_cells`
pub const RANDOM_CELLS: NodeDef = NodeDef {
    name: "random_cells",
    meaning: "that many distinct (query, key) pairs drawn from the whole matrix",
    args: &[
        ArgDef { name: "count", kind: Kind::Integer, default: None, meaning: "pairs in all" },
        ArgDef { name: "seed", kind: Kind::Seed, default: None, meaning: "another seed, another choice" },
    ],
    forms: &[],
    example: "random_cells: {count: \"8*n\", seed: 1}",
    read: read_cells,
};

/// Refuses to list more than memory is meant for, before any is taken.
pub(super) fn check_edges(args: &Args<'_>, count: u128) -> Result<()> {
    if count <= u128::from(args.source.limits.get(Limit::Edges)) {
        return Ok(());
    }
    let message = format!("`{}` lists {count} pairs at this length", args.node);
    Err(args.source.beyond(args.at, Limit::Edges, message))
}

fn read_random<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let count = args.int("keys_per_query", 0, None)?;
    let (seed, per_head) = (args.seed()?, args.flag("per_head")?);
    let past = args.choice("among", &["all", "past"])? == "past";
    Ok(Box::new(move |scope| {
        let kv_len = scope.kv_len as u32;
        let count = count.at_most(scope, i64::from(kv_len))? as u32;
        let heads = if per_head { scope.heads } else { 1 };
        let first = scope.first();
        let edges = scope.q_len * count as usize;
        // Empty rows take memory too.
        check_edges(&args, edges.max(scope.q_len) as u128 * heads as u128)?;
        let draw_head = |head: usize| {
            let mut draw = Draw::new(seed, Draw::KEYS + head as u64);
            // Rows belong to the number of the query, so that draws depend on the lengths and not on where the
            // queries stand.
            let mut rows = Rows::build(scope.q_len, edges, |q, keys| {
                let bound = if past { (first + q as i64 + 1).clamp(0, i64::from(kv_len)) as u32 } else { kv_len };
                draw.distinct_in_any_order(count, bound, keys);
            });
            rows.sort();
            rows
        };
        let among = if past { "past" } else { "all" };
        let text = format!("random: {{keys_per_query: {count}, seed: {seed}, per_head: {per_head}, among: {among}}}");
        leaf(Listed { rows: (0..heads).map(draw_head).collect(), first, text })
    }))
}

fn read_cells<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let count = args.int("count", 0, None)?;
    let seed = args.seed()?;
    Ok(Box::new(move |scope| {
        let cells = scope.q_len as u64 * scope.kv_len as u64;
        let count = (count.at(scope)? as u64).min(cells);
        check_edges(&args, u128::from(count))?;
        let text = format!("random_cells: {{count: {count}, seed: {seed}}}");
        leaf(Listed { rows: vec![draw_cells(scope, count, cells, seed)], first: scope.first(), text })
    }))
}

/// `count` distinct ones of all `cells`, uniformly: cells are drawn one after another, and those that were
/// drawn before do not count. Where more than half are wanted, the others are drawn and left out.
fn draw_cells(scope: &Scope, count: u64, cells: u64, seed: u64) -> Rows {
    let (q_len, kv_len) = (scope.q_len, scope.kv_len as u32);
    let inverted = count > cells / 2;
    let wanted = if inverted { cells - count } else { count } as usize;
    let mut draw = Draw::new(seed, Draw::CELLS);
    let mut cell = || (draw.below(q_len as u32), draw.below(kv_len));
    // Exactly as many as are wanted, so that no distinct cell is ever one too many; then, cell by cell, as
    // many as were drawn twice.
    let groups = q_len.div_ceil(GROUP);
    let share = wanted / groups.max(1);
    let mut cells: Vec<Cells> = (0..groups).map(|_| Cells::with_capacity(share + share / 16)).collect();
    for _ in 0..wanted {
        let (q, k) = cell();
        let group = &mut cells[q as usize / GROUP];
        group.rows.push((q as usize % GROUP) as u16);
        group.keys.push(k);
    }
    let by_row = |buffer: &mut Vec<u32>, (group, cells): (usize, Cells)| {
        cells.by_row(GROUP.min(q_len - group * GROUP), kv_len, buffer)
    };
    let mut parts: Vec<Part> = cells.into_par_iter().enumerate().map_init(Vec::new, by_row).collect();
    let distinct: usize = parts.iter().map(Part::edges).sum();
    let mut more = BTreeSet::new();
    while distinct + more.len() < wanted {
        let (q, k) = cell();
        if parts[q as usize / GROUP].row(q as usize % GROUP).binary_search(&k).is_err() {
            more.insert((q, k));
        }
    }
    let more: Vec<(u32, u32)> = more.into_iter().collect();
    for more in more.chunk_by(|a, b| a.0 as usize / GROUP == b.0 as usize / GROUP) {
        parts[more[0].0 as usize / GROUP].insert(more.iter().map(|&(q, k)| (q as usize % GROUP, k)));
    }
    let rows = Rows::of_parts(parts, GROUP);
    if !inverted {
        return rows;
    }
    Rows::build(q_len, count as usize, |q, keys| {
        let mut left_out = rows.row(q).iter().peekable();
        keys.extend((0..kv_len).filter(|k| left_out.next_if(|out| *out == k).is_none()));
    })
}

/// Rows whose cells are sorted at a time: few enough that the places where the next key of each row goes are near, and
/// that their numbers have 16 bits.
const GROUP: usize = 4096;

/// Cells of a group of rows, in the order in which they were drawn.
struct Cells {
    /// The row in the group.
    rows: Vec<u16>,
    keys: Vec<u32>,
}

impl Cells {
    fn with_capacity(cells: usize) -> Self {
        Self { rows: Vec::with_capacity(cells), keys: Vec::with_capacity(cells) }
    }

    /// The cells as ascending rows without repetitions: a counting sort by row, then each row by itself.
    fn by_row(self, rows: usize, kv_len: u32, buffer: &mut Vec<u32>) -> Part {
        let mut next = vec![0_u32; rows + 1];
        for &row in &self.rows {
            next[usize::from(row) + 1] += 1;
        }
        for row in 0..rows {
            next[row + 1] += next[row];
        }
        let starts = next.clone();
        buffer.resize(self.keys.len(), 0);
        for (&row, &key) in self.rows.iter().zip(&self.keys) {
            let next = &mut next[usize::from(row)];
            buffer[*next as usize] = key;
            *next += 1;
        }
        let mut bits = vec![0_u64; kv_len.div_ceil(64) as usize];
        Part::build(self.keys, rows, |row, out| {
            let row = &mut buffer[starts[row] as usize..starts[row + 1] as usize];
            if bits.len() <= 4 * row.len() {
                for &key in row.iter() {
                    bits[key as usize / 64] |= 1 << (key % 64);
                }
                take_bits(&mut bits, out);
                return;
            }
            row.sort_unstable();
            let start = out.len();
            for &key in row.iter() {
                if out.len() == start || out.last() != Some(&key) {
                    out.push(key);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Align;

    /// The definition: cells one after another, those that were drawn before left out.
    #[test]
    fn cells_are_the_first_distinct_ones_that_are_drawn() {
        for (q_len, kv_len, count) in [(10_000, 300, 60_000), (GROUP, 50, 900), (GROUP + 1, 3, 5000), (70, 90, 3000)] {
            let mut draw = Draw::new(5, Draw::CELLS);
            let mut expected = BTreeSet::new();
            while expected.len() < count {
                expected.insert((draw.below(q_len as u32), draw.below(kv_len as u32)));
            }
            let scope = Scope { q_len, kv_len, head_dim: 1, heads: 1, align: Align::End };
            let rows = draw_cells(&scope, count as u64, (q_len * kv_len) as u64, 5);
            assert_eq!(rows.count(), q_len);
            let found = (0..q_len).flat_map(|q| rows.row(q).iter().map(move |&k| (q as u32, k)));
            assert!(found.eq(expected.iter().copied()), "{count} of {q_len} x {kv_len}");
            for range in [0..q_len, 0..1, GROUP - 3..GROUP + 2, GROUP..GROUP + 1, q_len - 1..q_len + 5, q_len..q_len] {
                let keys = expected.iter().filter(|cell| range.contains(&(cell.0 as usize))).map(|cell| cell.1);
                assert!(rows.union(range.clone()).into_iter().eq(keys.collect::<BTreeSet<_>>()), "rows {range:?}");
            }
        }
    }
}

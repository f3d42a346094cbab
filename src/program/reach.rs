//! How far block rows reach: what decides at which shift one operation may follow another in a loop.
//!
//! In: a block mask. Out: how many block rows a row reads behind itself and ahead of itself at most, or why the order of
//! rows says nothing about the order of keys.

use std::cell::OnceCell;

use serde::{Deserialize, Serialize};

use super::Program;
use crate::mask::{BlockMask, HeadMask, Keys, QUERY_BLOCK, RowOrder, RowRun, Segment};

/// The reach of a mask, looked at where it is first needed: on a large random mask that takes a while.
#[derive(Debug)]
pub struct KnownReach<'a> {
    program: &'a Program,
    known: OnceCell<Reaches>,
}

impl<'a> KnownReach<'a> {
    /// That of a program, not looked at yet.
    pub fn new(program: &'a Program) -> Self {
        Self { program, known: OnceCell::new() }
    }

    /// What rows reach.
    pub fn get(&self) -> &Reaches {
        self.known.get_or_init(|| self.program.reaches())
    }

    /// The masks.
    pub fn sets(&self) -> impl Iterator<Item = &'a BlockMask> {
        self.program.sets()
    }
}

/// How far block rows reach, counted in block rows: a row `t` reads rows `t - behind ..= t + ahead` of Z at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reach {
    /// Rows behind itself.
    pub behind: u32,
    /// Rows ahead of itself: by so many each hop of a sweep lags behind the one before.
    pub ahead: u32,
}

impl Reach {
    /// What covers both.
    pub fn join(self, other: Self) -> Self {
        Self { behind: self.behind.max(other.behind), ahead: self.ahead.max(other.ahead) }
    }

    /// Of a block row `t` that reads the places `first ..= last`.
    pub fn of(t: u32, first: u32, last: u32) -> Self {
        let block = QUERY_BLOCK as u32;
        Self { behind: t.saturating_sub(first / block), ahead: (last / block).saturating_sub(t) }
    }

    /// Rows of P that are alive at once in a sweep of `hops` hops.
    pub fn ring_slots(self, hops: usize) -> usize {
        hops.saturating_sub(1) * self.ahead as usize + 1
    }

    /// Block rows of a Z that are alive at once.
    pub const fn window(self) -> usize {
        self.behind as usize + self.ahead as usize + 1
    }
}

/// What a mask's block rows reach, or why hops cannot follow its rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Reaches {
    /// Places of queries and numbers of keys are the same, and rows reach this far; the row that reaches furthest ahead.
    Band(Reach, u32),
    /// They are not.
    Unordered(String),
}

impl Program {
    /// How far the rows of all sets reach.
    pub fn reaches(&self) -> Reaches {
        let mut all = reaches(&self.neighbors);
        for other in &self.others {
            all = match (all, reaches(other)) {
                (Reaches::Band(a, row), Reaches::Band(b, other)) => {
                    Reaches::Band(a.join(b), if b.ahead > a.ahead { other } else { row })
                }
                (why @ Reaches::Unordered(_), _) | (_, why) => why,
            };
        }
        all
    }
}

/// How far the rows of all masks reach.
pub fn reaches(neighbors: &BlockMask) -> Reaches {
    let mut all = (Reach::default(), 0);
    for mask in &neighbors.masks {
        if !follows_keys(mask, neighbors.kv_len) {
            return Reaches::Unordered(unordered(mask, neighbors));
        }
        let mut see = |t: u32, first: u32, last: u32| {
            let reach = Reach::of(t, first, last);
            all = (all.0.join(reach), if reach.ahead > all.0.ahead { t } else { all.1 });
        };
        for run in &mask.rows {
            for segment in &run.segments {
                // Starts and ends move evenly, so that the first and the last row of a run reach furthest.
                for row in [0, run.count - 1] {
                    match segment.keys {
                        Keys::Range { start, start_step, .. } => {
                            let start = start + row * start_step;
                            if let Some(len) = mask.segment_len(segment, row).checked_sub(1) {
                                see(run.first + row, start, start + len as u32);
                            }
                        }
                        Keys::List { list } => {
                            let list = &mask.lists[list as usize];
                            if let (Some(&first), Some(&last)) = (list.first(), list.last()) {
                                see(run.first + row, first, last);
                            }
                        }
                    }
                }
            }
        }
        for (place, ends) in mask.edges.offsets.windows(2).enumerate() {
            let keys = &mask.edges.keys[ends[0] as usize..ends[1] as usize];
            if let (Some(&first), Some(&last)) = (keys.first(), keys.last()) {
                see((place / QUERY_BLOCK) as u32, first, last);
            }
        }
    }
    Reaches::Band(all.0, all.1)
}

/// Whether no query meets a key behind its own place, in masks whose rows stand in the order of keys: what the solve of
/// hops without end goes by.
pub fn is_lower_triangular(neighbors: &BlockMask) -> bool {
    let q_len = neighbors.q_len;
    neighbors.parts == 1
        && neighbors.stack == 1
        && neighbors.masks.iter().all(|mask| {
            let in_order = matches!(mask.order, RowOrder::Identity) && mask.keys.step() == 1;
            // All keys of a place lie at it or before it: of key `key`, no bit of a query before it is set.
            let serves = |t: u32, key: u32, word: u64| {
                let first = t * QUERY_BLOCK as u32;
                match key.checked_sub(first) {
                    None | Some(0) => true,
                    Some(ahead) if (ahead as usize) < QUERY_BLOCK => word & ((1 << ahead) - 1) == 0,
                    Some(_) => word == 0,
                }
            };
            let full = |t: u32| match q_len - t as usize * QUERY_BLOCK {
                rows if rows < QUERY_BLOCK => (1_u64 << rows) - 1,
                _ => u64::MAX,
            };
            let segments = mask.rows.iter().flat_map(|run| run.segments.iter().map(move |segment| (run, segment)));
            let rows = |(run, segment): (&RowRun, &Segment)| {
                // Keys move as rows do, or less: the first row of a run has the latest ones, beside the last.
                [0, run.count - 1].into_iter().all(|row| {
                    let t = run.first + row;
                    let word = |at: usize| segment.mask.map_or(full(t), |table| mask.words[table as usize][at]);
                    let len = mask.segment_len(segment, row);
                    match segment.keys {
                        Keys::Range { start, start_step, .. } => {
                            let start = start + row * start_step;
                            // Keys before the row's own are as good as each other.
                            let own = ((t as usize * QUERY_BLOCK).saturating_sub(start as usize)).min(len);
                            (own..len).all(|at| serves(t, start + at as u32, word(at)))
                        }
                        Keys::List { list } => {
                            let list = &mask.lists[list as usize];
                            list.iter().enumerate().all(|(at, &key)| serves(t, key, word(at)))
                        }
                    }
                })
            };
            let edges = mask.edges.offsets.windows(2).enumerate().all(|(place, ends)| {
                let keys = &mask.edges.keys[ends[0] as usize..ends[1] as usize];
                keys.last().is_none_or(|&last| last as usize <= place)
            });
            in_order && edges && segments.into_iter().all(rows)
        })
}

/// Whether query `i` of the mask's order is key number `i`.
fn follows_keys(mask: &HeadMask, kv_len: usize) -> bool {
    match (&mask.order, mask.keys) {
        (RowOrder::Identity, keys) => keys.step() == 1,
        (RowOrder::Permuted(order), keys) => {
            order.len() == kv_len && order.iter().zip(0..).all(|(&query, number)| query == keys.key_at(number, kv_len))
        }
    }
}

/// Why rows stand in another order than keys: the global queries that were moved to the end, if there are any.
fn unordered(mask: &HeadMask, neighbors: &BlockMask) -> String {
    let mut global = Vec::new();
    if let (Some(run), RowOrder::Permuted(order)) = (mask.rows.last(), &mask.order) {
        let row = run.count - 1;
        let mut keys = [0; QUERY_BLOCK];
        for segment in &run.segments {
            for (place, count) in keys.iter_mut().enumerate() {
                *count += match segment.mask {
                    None => mask.segment_len(segment, row),
                    Some(table) => mask.words[table as usize].iter().filter(|&word| word >> place & 1 == 1).count(),
                };
            }
        }
        let first = (run.first + row) as usize * QUERY_BLOCK;
        for (place, count) in keys.iter_mut().enumerate() {
            if let [from, to, ..] = mask.edges.offsets.get(first + place..).unwrap_or(&[]) {
                *count += (to - from) as usize;
            }
        }
        let here = order.iter().skip(first);
        global = here.zip(keys).filter(|&(_, keys)| 2 * keys > neighbors.kv_len).map(|(&query, _)| query).collect();
        global.sort_unstable();
    }
    match global[..] {
        [] => "rows stand in another order than keys".to_owned(),
        [only] => format!("global row {only} reaches every row"),
        [first, .., last] if last as usize - first as usize + 1 == global.len() => {
            format!("global rows {first}..{last} reach every row")
        }
        [first, .., last] => format!("{} global rows among {first}..{last} reach every row", global.len()),
    }
}

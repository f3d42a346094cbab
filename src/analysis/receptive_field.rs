//! Keys reached: the support of each row of Z_j, as a share of all keys.
//!
//! Up to [`EXACT`] keys every row is followed, as a bit matrix, if that does not take too long; else a sample of rows,
//! each with a bounded amount of work.

use std::sync::OnceLock;

use rayon::prelude::*;
use serde::Serialize;

use super::support::{count, set};
use super::{Diffused, EdgeList, Journey, KeyFinder, Searcher, Support, Walk, each_hop};
use crate::pattern::Pattern;
use crate::spec::{Factors, HopFactors};

/// Words of 64 keys that may be joined, over all heads and hops.
const BUDGET: u64 = 8_000_000_000;
/// Longest sequence that is followed in full.
const EXACT: usize = 4096;
/// Rows that are sampled beyond.
const SAMPLE: usize = 32;
/// Rows of the pattern that all sampled rows together may visit, over all heads.
const VISITS: usize = 4_000_000;

/// Reach after each hop, over all heads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReceptiveField {
    /// One entry a hop.
    pub hops: Vec<Reach>,
    /// Rows per head that were followed; all of them where this is the number of queries.
    pub rows: usize,
    /// Why less than everything is here; empty otherwise.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Share of the keys that reach a query.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reach {
    /// Counted from 1.
    pub hop: usize,
    /// Mean over the queries.
    pub mean: f64,
    /// Least over the queries.
    pub minimum: f64,
    /// The first query that has the least.
    pub worst: Place,
}

/// A query of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Query head.
    pub head: usize,
    /// Query, counted from 0.
    pub query: usize,
}

/// Follows the support of Z_1 to Z_K. `memory_limit` in bytes bounds the bit matrices.
/// `walks` are those of the distinct heads, with their numbers.
pub fn receptive_field(
    pattern: &Pattern,
    walks: &[(usize, Walk<'_>)],
    diffused: &Diffused,
    memory_limit: u64,
) -> ReceptiveField {
    let factors = &diffused.factors;
    let hops = &factors.hops;
    if pattern.q_len == 0 || pattern.kv_len == 0 || hops.is_empty() {
        return ReceptiveField { hops: Vec::new(), rows: 0, note: String::new() };
    }
    if walks.is_empty() {
        return decoding(pattern);
    }
    if !pattern.others().is_empty() {
        return of_own_patterns(pattern, factors, memory_limit);
    }
    if diffused.limit.is_some() && walks.iter().all(|(_, walk)| walk.is_causal()) {
        return in_the_limit(walks);
    }
    let matrices = Support::bytes(pattern.q_len, pattern.kv_len);
    let width = pattern.q_len.max(pattern.kv_len).div_ceil(64) as u64;
    let pairs: u64 = walks.iter().map(|(_, walk)| walk.pairs()).sum();
    let quick = (pairs * width).saturating_mul(hops.len() as u64) <= BUDGET;
    if pattern.q_len.max(pattern.kv_len) <= EXACT && matrices <= memory_limit && quick {
        let each: Vec<Vec<Shares>> =
            walks.iter().map(|(head, walk)| weighed(exact(pattern, *head, factors), walk.heads())).collect();
        return ReceptiveField { hops: join(&each), rows: pattern.q_len, note: String::new() };
    }
    let rows = SAMPLE.min(pattern.q_len);
    // The middle of each share of the queries: neither end, where global tokens stand more often than not.
    let queries: Vec<usize> = (0..rows).map(|i| (2 * i + 1) * pattern.q_len / (2 * rows)).collect();
    // The walks of all lengths are joined for each hop.
    let joins = (hops.len() * hops.len() / 2) as u64 * width;
    if joins.saturating_mul((rows * walks.len()) as u64) > BUDGET {
        let note = "its hops are too many to follow from every head".into();
        return ReceptiveField { hops: Vec::new(), rows: 0, note };
    }
    let visits = VISITS / (walks.len() * rows);
    let initial = factors.initial != 0.0;
    let each: Vec<Option<Vec<Shares>>> = walks
        .iter()
        .flat_map(|(head, walk)| {
            let everything = OnceLock::new();
            let follow = |searcher: &mut Searcher, &query: &usize| {
                let shares = sampled((walk, searcher), (*head, query), initial, hops, visits, &everything);
                shares.map(|shares| weighed(shares, walk.heads()))
            };
            queries.par_iter().map_init(Searcher::default, follow).collect::<Vec<_>>()
        })
        .collect();
    let done: Vec<Vec<Shares>> = each.iter().flatten().cloned().collect();
    let mut note = format!("{rows} rows of each head were followed");
    if done.len() < each.len() {
        note += &format!(
            "; {} of {} reached too many keys to follow and were left out",
            each.len() - done.len(),
            each.len()
        );
    }
    ReceptiveField { hops: join(&done), rows, note }
}

/// The reach of hops that have patterns of their own, if they are followed in full.
fn of_own_patterns(pattern: &Pattern, factors: &Factors, memory_limit: u64) -> ReceptiveField {
    let none = |note: &str| ReceptiveField { hops: Vec::new(), rows: 0, note: note.into() };
    if pattern.q_len.max(pattern.kv_len) > EXACT || Support::bytes(pattern.q_len, pattern.kv_len) > memory_limit {
        return none("hops with patterns of their own are followed up to 4096 tokens");
    }
    let whole = [pattern].into_iter().chain(pattern.others());
    let heads = if whole.clone().any(Pattern::depends_on_head) { pattern.heads } else { 1 };
    let width = pattern.kv_len.div_ceil(64) as u64;
    let mut left = BUDGET;
    let mut each = Vec::new();
    for head in 0..heads {
        let lists: Vec<EdgeList> = whole.clone().map(|pattern| EdgeList::build(pattern, head)).collect();
        let pairs = |hop: usize| lists[pattern.index_of_hop(hop)].keys.len() as u64;
        let words: u64 = (0..factors.hops.len()).map(|hop| pairs(hop) * width).sum();
        if words > left {
            return none("its hops are too many to follow from every head");
        }
        left -= words;
        each.push(shares_of_hops(pattern, head, &lists, factors));
    }
    ReceptiveField { hops: join(&each), rows: pattern.q_len, note: String::new() }
}

/// The reach of hops without end over causal patterns: all that paths of any length lead to, in one entry, whose hop is the
/// last that adds a key to one of the queries that were followed.
fn in_the_limit(walks: &[(usize, Walk<'_>)]) -> ReceptiveField {
    let n = walks.first().map_or(0, |(_, walk)| walk.queries());
    let pairs: u64 = walks.iter().map(|(_, walk)| walk.pairs()).sum();
    let all = n <= EXACT && pairs.saturating_mul(n as u64) <= BUDGET;
    let rows = if all { n } else { SAMPLE.min(n) };
    let queries: Vec<usize> = (0..rows).map(|i| (2 * i + 1) * n / (2 * rows)).collect();
    let mut last = 0;
    let mut each = Vec::new();
    for (head, walk) in walks {
        let follow = |searcher: &mut Searcher, &query: &usize| walk.follow(query, searcher);
        let journeys: Vec<Journey> = queries.par_iter().map_init(Searcher::default, follow).collect();
        last = journeys.iter().map(|journey| journey.hops).fold(last, usize::max);
        let shares = journeys.iter().zip(&queries).map(|(journey, &query)| {
            let share = journey.reached as f64 / walk.keys() as f64;
            vec![Shares { mean: share, minimum: share, worst: Place { head: *head, query }, heads: walk.heads() }]
        });
        each.extend(shares);
    }
    let note = if all { String::new() } else { format!("{rows} rows of each head were followed") };
    let hops = join(&each).into_iter().map(|reach| Reach { hop: last.max(1), ..reach }).collect();
    ReceptiveField { hops, rows, note }
}

/// The reach of single queries whose heads stand in one row, which have one hop.
fn decoding(pattern: &Pattern) -> ReceptiveField {
    let classes = pattern.head_classes();
    let distinct = (0..pattern.heads).filter(|&head| !classes[..head].contains(&classes[head]));
    let each: Vec<Vec<Shares>> = distinct
        .map(|head| {
            let mut finder = KeyFinder::default();
            let degrees: Vec<u64> = (0..pattern.q_len).map(|query| finder.count(pattern, head, query)).collect();
            let share = |keys: u64| keys as f64 / pattern.kv_len as f64;
            let (query, &least) = degrees.iter().enumerate().min_by_key(|&(_, keys)| keys).unwrap_or((0, &0));
            let mean = share(degrees.iter().sum()) / pattern.q_len as f64;
            let alike = classes.iter().filter(|&&class| class == classes[head]).count();
            weighed(vec![Shares { mean, minimum: share(least), worst: Place { head, query }, heads: 1 }], alike)
        })
        .collect();
    ReceptiveField { hops: join(&each), rows: pattern.q_len, note: String::new() }
}

/// Shares of some rows after one hop.
#[derive(Debug, Clone, Copy)]
struct Shares {
    mean: f64,
    minimum: f64,
    worst: Place,
    /// Heads that have them.
    heads: usize,
}

/// The same shares, of so many heads.
fn weighed(shares: Vec<Shares>, heads: usize) -> Vec<Shares> {
    shares.into_iter().map(|shares| Shares { heads, ..shares }).collect()
}

/// Means of means and minima of minima; each entry has one item a hop.
fn join(each: &[Vec<Shares>]) -> Vec<Reach> {
    let Some(first) = each.first() else { return Vec::new() };
    (0..first.len())
        .map(|hop| {
            // Of equally small ones the first.
            let least = each.iter().min_by(|a, b| a[hop].minimum.total_cmp(&b[hop].minimum)).unwrap_or(first)[hop];
            let heads = each.iter().map(|shares| shares[hop].heads).sum::<usize>() as f64;
            let mean = each.iter().map(|shares| shares[hop].heads as f64 * shares[hop].mean).sum::<f64>() / heads;
            Reach { hop: hop + 1, mean, minimum: least.minimum, worst: least.worst }
        })
        .collect()
}

/// Shares of all rows.
fn exact(pattern: &Pattern, head: usize, diffusion: &Factors) -> Vec<Shares> {
    shares_of_hops(pattern, head, &[EdgeList::build(pattern, head)], diffusion)
}

/// Shares of all rows by the lists of the pattern and of the others that hops have.
fn shares_of_hops(pattern: &Pattern, head: usize, lists: &[EdgeList], diffusion: &Factors) -> Vec<Shares> {
    let (q_len, kv_len) = (pattern.q_len, pattern.kv_len);
    let mut shares = Vec::new();
    each_hop(
        |hop| &lists[pattern.index_of_hop(hop)],
        kv_len,
        diffusion,
        |_, support| {
            let counts: Vec<u64> = support.rows().map(count).collect();
            let (query, least) = counts.iter().enumerate().min_by_key(|&(_, count)| count).unwrap_or((0, &0));
            shares.push(Shares {
                mean: counts.iter().sum::<u64>() as f64 / (q_len as f64 * kv_len as f64),
                minimum: *least as f64 / kv_len as f64,
                worst: Place { head, query },
                heads: 1,
            });
        },
    );
    shares
}

/// Support of one row of Z_1 to Z_K. `None` when more than `visits` rows would have to be visited.
/// `everything` remembers the keys of all queries, which is where most walks end.
///
/// Row q of Z_t holds V at walks[t] (q's keys' keys, t times over) and, for every hop with a restart, at the
/// walks that lead to it.
fn sampled(
    (walk, searcher): (&Walk<'_>, &mut Searcher),
    (head, query): (usize, usize),
    initial: bool,
    hops: &[HopFactors],
    visits: usize,
    everything: &OnceLock<Vec<u64>>,
) -> Option<Vec<Shares>> {
    let width = walk.keys().max(walk.queries()).div_ceil(64);
    let mut start = vec![0_u64; width];
    set(&mut start, query);
    let mut walks = vec![start];
    let mut visited = 0;
    for _ in hops {
        let last = &walks[walks.len() - 1];
        let reached = count(last) as usize;
        let mut step = || {
            let mut keys = walk.keys_of(last, searcher);
            keys.resize(width, 0);
            keys
        };
        if reached == walk.queries() {
            let next = everything.get_or_init(step).clone();
            walks.push(next);
            continue;
        }
        visited += reached;
        if visited > visits {
            return None;
        }
        let next = step();
        walks.push(next);
    }
    let support = |t: usize| {
        let mut reached = vec![0_u64; width];
        let mut join = |walk: &[u64]| reached.iter_mut().zip(walk).for_each(|(bits, more)| *bits |= more);
        // From Z_t down: the factors of the hop that made Z_j apply to walks of length t − j.
        for j in (1..=t).rev() {
            if hops[j - 1].restart != 0.0 {
                join(&walks[t - j]);
            }
            if hops[j - 1].step == 0.0 {
                return count(&reached);
            }
        }
        if initial {
            join(&walks[t]);
        }
        count(&reached)
    };
    let share = |t| support(t) as f64 / walk.keys() as f64;
    let of_row = |t| {
        let share = share(t);
        Shares { mean: share, minimum: share, worst: Place { head, query }, heads: 1 }
    };
    Some((1..=hops.len()).map(of_row).collect())
}

#[cfg(test)]
pub(super) fn both_ways(pattern: &Pattern, head: usize, initial: bool, hops: &[HopFactors]) -> [Vec<(f64, f64)>; 2] {
    let diffusion = Factors { initial: f64::from(u8::from(initial)), hops: hops.to_vec() };
    let exact = exact(pattern, head, &diffusion).iter().map(|shares| (shares.mean, shares.minimum)).collect();
    let mask = crate::mask::build(pattern, u64::MAX).expect("a mask");
    let walk = Walk::new(&mask, head).expect("no rows of several heads");
    let mut searcher = Searcher::default();
    let rows: Vec<Vec<Shares>> = (0..pattern.q_len)
        .filter_map(|query| sampled((&walk, &mut searcher), (head, query), initial, hops, usize::MAX, &OnceLock::new()))
        .collect();
    [exact, join(&rows).iter().map(|reach| (reach.mean, reach.minimum)).collect()]
}

//! What paths of several hops can do: how many it takes to reach everything, and what weight far tokens get.

use rayon::prelude::*;
use serde::Serialize;

use super::{Diffused, Place, Searcher, Walk};
use crate::spec::Factors;

/// Longest sequence from whose every query paths are followed, and most pairs that they may pass in all.
const ALL: usize = 1024;
const VISITS: u64 = 4_000_000_000;
/// Queries of a head from which they are followed beyond, the first and the last among them.
const SAMPLE: usize = 32;
/// Heads that are followed beyond.
const HEADS: usize = 4;
/// Additions that far weight may take.
const BUDGET: u64 = 400_000_000;

/// How far paths lead that may have any number of hops. A query reaches itself in none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReachEverything {
    /// Hops after which every query that was followed has reached every key that it can ever reach.
    pub hops: usize,
    /// The first query that needs so many.
    pub slowest: Place,
    /// Queries that were followed.
    pub followed: usize,
    /// Of them, those that never reach every key.
    pub never_all: usize,
    /// The first of them that reaches fewest keys, and how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least: Option<(Place, usize)>,
    /// Whether every query of every head was followed.
    pub all_followed: bool,
}

/// Follows the paths from all or some queries; `None` where queries and keys are not the same tokens. `walks` are those
/// of the distinct heads, with their numbers.
pub fn reach_everything(walks: &[(usize, Walk<'_>)]) -> Option<ReachEverything> {
    let (_, first) = walks.first()?;
    let n = first.queries();
    if n == 0 || n != first.keys() {
        return None;
    }
    let pairs: u64 = walks.iter().map(|(_, walk)| walk.pairs()).sum();
    let all = n <= ALL && pairs.saturating_mul(n as u64) <= VISITS;
    let walks = if all { walks } else { &walks[..walks.len().min(HEADS)] };
    let queries: Vec<usize> =
        if all { (0..n).collect() } else { (0..SAMPLE).map(|i| i * (n - 1) / (SAMPLE - 1)).collect() };
    let journeys: Vec<(Place, super::Journey)> = walks
        .iter()
        .flat_map(|(head, walk)| {
            let follow =
                |searcher: &mut Searcher, &query: &usize| (Place { head: *head, query }, walk.follow(query, searcher));
            queries.par_iter().map_init(Searcher::default, follow).collect::<Vec<_>>()
        })
        .collect();
    // Of equals the first.
    let slowest = journeys.iter().rev().max_by_key(|(_, journey)| journey.hops)?;
    let short = || journeys.iter().filter(|(_, journey)| journey.reached < n);
    let least = short().min_by_key(|(_, journey)| journey.reached);
    Some(ReachEverything {
        hops: slowest.1.hops,
        slowest: slowest.0,
        followed: journeys.len(),
        never_all: short().count(),
        least: least.map(|(place, journey)| (*place, journey.reached)),
        all_followed: all,
    })
}

/// The weight that diffusion gives to keys far away, where all allowed pairs have the same score: the mean over the
/// heads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FarWeight {
    /// What queries of the last quarter give to all keys of the first.
    pub back: f64,
    /// What queries of the first quarter give to all keys of the last.
    pub ahead: f64,
    /// What full attention gives to them.
    pub full: f64,
}

/// Applies the diffused operator, a limit up to its tolerance, to the keys of the first and of the last quarter; `None` where there are no quarters or
/// that takes too long.
pub fn far_weight(walks: &[(usize, Walk<'_>)], diffused: &Diffused) -> Option<FarWeight> {
    let diffusion = &diffused.factors;
    let (_, first) = walks.first()?;
    let (q_len, kv_len) = (first.queries(), first.keys());
    let (queries, keys) = (q_len / 4, kv_len / 4);
    let cost: u64 = walks.iter().map(|(_, walk)| walk.cost()).sum::<u64>() * 2 * diffusion.hops.len() as u64;
    if queries == 0 || keys == 0 || cost > BUDGET || diffused.is_cut_off() {
        return None;
    }
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let (mut back, mut ahead) = (0.0, 0.0);
    for (_, walk) in walks {
        let weights = |keys: std::ops::Range<usize>| {
            let v: Vec<f64> = (0..kv_len).map(|key| f64::from(u8::from(keys.contains(&key)))).collect();
            diffuse(walk, diffusion, &v)
        };
        let alike = walk.heads() as f64;
        back += alike * mean(&weights(0..keys)[q_len - queries..]);
        ahead += alike * mean(&weights(kv_len - keys..kv_len)[..queries]);
    }
    let heads = walks.iter().map(|(_, walk)| walk.heads()).sum::<usize>() as f64;
    Some(FarWeight { back: back / heads, ahead: ahead / heads, full: keys as f64 / kv_len as f64 })
}

/// Z_K of a column V, by the definition.
fn diffuse(walk: &Walk<'_>, diffusion: &Factors, v: &[f64]) -> Vec<f64> {
    let mut z: Vec<f64> = v.iter().map(|v| diffusion.initial * v).collect();
    for hop in &diffusion.hops {
        let mut next = vec![0.0; walk.queries()];
        if hop.step != 0.0 {
            walk.apply(&z, &mut next);
        }
        for (query, next) in next.iter_mut().enumerate() {
            *next = hop.step * *next + v.get(query).map_or(0.0, |v| hop.restart * v);
        }
        z = next;
    }
    z
}

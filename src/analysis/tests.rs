use std::ops::Range;
use std::sync::Arc;

use super::receptive_field::both_ways;
use super::*;
use crate::pattern::{Cover, KeySet, Leaf, Tree};
use crate::spec::{Align, HopFactors};

/// A leaf given by its predicate over (head, q, k).
#[derive(Debug)]
struct Points(fn(usize, usize, usize) -> bool);

impl Leaf for Points {
    fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        (self.0)(head, q as usize, k)
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        Cover { some: KeySet::everything(), all: KeySet::empty() }
    }

    fn print(&self) -> String {
        "points".into()
    }
}

fn pattern(n: usize, allows: fn(usize, usize, usize) -> bool) -> Pattern {
    Pattern { q_len: n, kv_len: n, heads: 1, align: Align::End, tree: Tree::Leaf(Arc::new(Points(allows))) }
}

fn hops(factors: &[(f64, f64)]) -> Vec<HopFactors> {
    factors.iter().map(|&(step, restart)| HopFactors { step, restart }).collect()
}

#[test]
fn edge_lists_hold_exactly_the_allowed_pairs() {
    for n in [0, 1, 63, 64, 65, 130] {
        let pattern = pattern(n, |_, q, k| (q * 7 + k * 3) % 5 == 0 || q == k);
        let list = EdgeList::build(&pattern, 0);
        for q in 0..n {
            let expected: Vec<u32> = (0..n).filter(|&k| pattern.allows(0, q, k)).map(|k| k as u32).collect();
            assert_eq!(list.row(q), expected);
        }
    }
}

#[test]
fn a_chain_reaches_one_key_further_each_hop() {
    // Every query sees the key before it: after j hops one key is reached, none from the first j rows.
    let chain = pattern(100, |_, q, k| k + 1 == q);
    let [exact, sampled] = both_ways(&chain, 0, true, &hops(&[(1.0, 0.0); 3]));
    assert_eq!(exact, [(0.0099, 0.0), (0.0098, 0.0), (0.0097, 0.0)]);
    close(&sampled, &exact);
    // With a restart the reach of all lower hops stays.
    let [exact, sampled] = both_ways(&chain, 0, true, &hops(&[(0.9, 0.1); 2]));
    close(&exact, &[(0.0199, 0.01), (0.0297, 0.01)]);
    close(&sampled, &exact);
}

#[test]
fn both_ways_agree_on_any_factors() {
    let uneven = pattern(90, |_, q, k| (q * 7 + k * 3) % 11 == 0 || k + 2 == q);
    for factors in [&[(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)][..], &[(0.9, 0.1), (1.0, 0.0), (1.0, 0.0)]] {
        for initial in [true, false] {
            let [exact, sampled] = both_ways(&uneven, 0, initial, &hops(factors));
            close(&sampled, &exact);
        }
    }
}

fn close(a: &[(f64, f64)], b: &[(f64, f64)]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a.0 - b.0).abs() < 1e-12 && (a.1 - b.1).abs() < 1e-12, "{a:?} against {b:?}");
    }
}

#[test]
fn gaps_of_known_walks() {
    let gap = |pattern: &Pattern| {
        let nnz = EdgeList::build(pattern, 0).keys.len() as u64;
        spectral_gap(pattern, 0, nnz, u64::MAX)
    };
    // Full: one step mixes. Self only: nothing ever does.
    assert_eq!(gap(&pattern(50, |_, _, _| true)).spectral_gap, Some(1.0));
    assert!(gap(&pattern(50, |_, q, k| q == k)).spectral_gap.unwrap() < 1e-9);
    // Causal: the matrix is triangular with 1, 1/2, 1/3, ... on the diagonal.
    let causal = gap(&pattern(40, |_, q, k| k <= q));
    assert!((causal.spectral_gap.unwrap() - 0.5).abs() < 0.01, "{causal:?}");
    // A lazy cycle of n: eigenvalues (1 + 2 cos(2 pi j / n)) / 3.
    let cycle = gap(&pattern(64, |_, q, k| q == k || (q + 1) % 64 == k || (k + 1) % 64 == q));
    let expected = 1.0 - (1.0 + 2.0 * (std::f64::consts::TAU / 64.0).cos()) / 3.0;
    assert!((cycle.spectral_gap.unwrap() / expected - 1.0).abs() < 0.02, "{cycle:?} against {expected}");
}

#[test]
fn there_is_no_gap_without_keys() {
    let none = spectral_gap(&pattern(4, |_, q, _| q > 0), 1, 12, u64::MAX);
    assert_eq!(none.spectral_gap, None);
    assert_eq!(none.spectral_gap_note, "1 queries have no key, so the walk ends there");
    let large = spectral_gap(&pattern(4, |_, _, _| true), 0, 1 << 40, u64::MAX);
    assert!(large.spectral_gap_note.contains("too many"), "{large:?}");
}

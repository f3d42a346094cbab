use std::ops::Range;
use std::sync::Arc;

use super::receptive_field::both_ways;
use super::*;
use crate::pattern::{Cover, HopPatterns, KeySet, Leaf, Tree};
use crate::spec::{Align, Factors, HopFactors};

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
    let (tree, hops) = (Tree::Leaf(Arc::new(Points(allows))), HopPatterns::default());
    Pattern { q_len: n, kv_len: n, heads: 1, align: Align::End, tree, hops }
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

fn mask_of(pattern: &Pattern) -> BlockMask {
    crate::mask::build(pattern, u64::MAX).unwrap_or_else(|error| panic!("{error}"))
}

/// Gaps of a pattern of one head.
fn gap(pattern: &Pattern, diffusion: &Factors) -> SpectralGap {
    let mask = mask_of(pattern);
    let walks: Vec<(usize, Walk<'_>)> = Walk::new(&mask, 0).map(|walk| (0, walk)).into_iter().collect();
    spectral_gap(pattern, &walks, &diffusion.clone().into())
}

fn near(found: Option<f64>, expected: f64, relative: f64) {
    let found = found.unwrap_or_else(|| panic!("nothing, expected {expected}"));
    assert!((found - expected).abs() <= relative * expected.abs().max(1e-12), "{found}, expected {expected}");
}

#[test]
fn gaps_of_known_walks() {
    let plain = Factors::restart(1, 0.0);
    // Full: one step mixes. Self only: nothing ever does.
    near(gap(&pattern(50, |_, _, _| true), &plain).spectral_gap, 1.0, 1e-12);
    assert!(gap(&pattern(50, |_, q, k| q == k), &plain).spectral_gap.unwrap() < 1e-9);
    // Causal: the matrix is triangular with 1, 1/2, 1/3, ... on the diagonal.
    let causal = gap(&pattern(40, |_, q, k| k <= q), &plain);
    near(causal.spectral_gap, 0.5, 1e-12);
    assert_eq!(causal.spectral_gap_residual, Some(0.0));
    // A lazy cycle of n: eigenvalues (1 + 2 cos(2 pi j / n)) / 3.
    let cycle = gap(&pattern(64, |_, q, k| q == k || (q + 1) % 64 == k || (k + 1) % 64 == q), &plain);
    near(cycle.spectral_gap, 1.0 - (1.0 + 2.0 * (std::f64::consts::TAU / 64.0).cos()) / 3.0, 0.02);
    // One way round, lazily: (1 + e^(2 pi i j / n)) / 2, a complex pair.
    let round = gap(&pattern(16, |_, q, k| q == k || (q + 1) % 16 == k), &plain);
    let angle = std::f64::consts::TAU / 16.0;
    near(round.spectral_gap, 1.0 - ((2.0 + 2.0 * angle.cos()) / 4.0).sqrt(), 0.02);
    near(round.second_eigenvalue.map(|value| value[1].abs()), angle.sin() / 2.0, 0.02);
    // A lone pair of sides: from one side to the other and back, with eigenvalue -1.
    let sides = gap(&pattern(20, |_, q, k| (q + k) % 2 == 1), &plain);
    assert!(sides.spectral_gap.unwrap() < 1e-9, "{sides:?}");
    near(sides.second_eigenvalue.map(|value| value[0]), -1.0, 1e-9);
}

#[test]
fn parts_that_never_meet_have_no_gap() {
    for text in ["{chunk: {size: 50}}", "{window: {radius: 40, dilation: 2}}"] {
        let spec = crate::spec::parse(&format!("name: x\nhead_dim: 4\npattern: {text}\n"), "<text>").unwrap();
        let apart = gap(&crate::pattern::resolve(&spec, 2000, 2000).unwrap(), &Factors::restart(1, 0.0));
        assert_eq!((apart.spectral_gap, apart.spectral_gap_residual), (Some(0.0), Some(0.0)), "{text}");
    }
}

#[test]
fn a_slow_walk_settles() {
    // A window over a long path: 1 - λ2 is about the variance of a step times (π / n)² / 2, and 0.8 % more with the ends.
    let n = 8192;
    let spec = crate::spec::parse("name: x\nhead_dim: 4\npattern: {window: {radius: 64}}\n", "<text>").unwrap();
    let slow = gap(&crate::pattern::resolve(&spec, n, n).unwrap(), &Factors::restart(1, 0.0));
    let variance = 64.0 * 65.0 / 3.0;
    near(slow.spectral_gap, 1.008 * variance * (std::f64::consts::PI / n as f64).powi(2) / 2.0, 0.01);
    assert_eq!(slow.spectral_gap_note, "");
}

#[test]
fn the_diffused_gap_is_the_polynomial_of_the_eigenvalue() {
    let causal = pattern(40, |_, q, k| k <= q);
    // p(x) = 0.81 x² + 0.09 x + 0.1, and λ2 = 1/2.
    let restart = gap(&causal, &Factors::restart(2, 0.1));
    near(restart.diffused_gap, 1.0 - (0.81 / 4.0 + 0.09 / 2.0 + 0.1), 1e-12);
    near(gap(&causal, &Factors::restart(1, 0.0)).diffused_gap, 0.5, 1e-12);
    // p(1) need not be 1: (2 + 3/2) / 5.
    near(gap(&causal, &Factors::polynomial(&[2.0, 3.0])).diffused_gap, 1.0 - 3.5 / 5.0, 1e-12);
    assert_eq!(gap(&causal, &Factors::polynomial(&[1.0, -1.0])).diffused_gap, None);
    // Against the eigenvalue of the diffused operator itself, on a symmetric walk: (1 + 2 cos) / 3.
    let cycle =
        gap(&pattern(64, |_, q, k| q == k || (q + 1) % 64 == k || (k + 1) % 64 == q), &Factors::restart(3, 0.2));
    let x = (1.0 + 2.0 * (std::f64::consts::TAU / 64.0).cos()) / 3.0;
    let z = (0..3).fold(1.0, |z, _| 0.8 * x * z + 0.2);
    near(cycle.diffused_gap, 1.0 - z, 0.02);
}

#[test]
fn there_is_no_gap_without_keys() {
    let none = gap(&pattern(4, |_, q, _| q > 0), &Factors::restart(1, 0.0));
    assert_eq!(none.spectral_gap, None);
    assert_eq!(none.spectral_gap_note, "1 queries have no key, so the walk ends there");
}

/// Patterns whose masks have every form: runs, words, edges, permuted rows, residue classes, lists of parts.
fn patterns_of_every_form() -> Vec<Pattern> {
    let texts = [
        "causal",
        "{window: {radius: 20}}",
        "{window: {radius: 9, dilation: 4}}",
        "{any: [{window: {radius: 5}}, {global: {tokens: [3, 170]}}, {random: {keys_per_query: 4, seed: 1}}]}",
        "{all: [causal, {any: [{window: {radius: 7}}, {strided: {step: 8, mode: diagonal}}]}]}",
        "{where: \"(q * 7 + k * 3) % 11 == 0\"}",
    ];
    let resolve = |text: &&str| {
        let text = format!("name: x\nhead_dim: 4\npattern: {text}\n");
        let spec = crate::spec::parse(&text, "<text>").unwrap_or_else(|error| panic!("{error}"));
        crate::pattern::resolve(&spec, 300, 300).unwrap_or_else(|error| panic!("{error}"))
    };
    texts.iter().map(resolve).collect()
}

#[test]
fn walks_step_as_the_edge_list_says() {
    for pattern in patterns_of_every_form() {
        let list = EdgeList::build(&pattern, 0);
        for mask in [mask_of(&pattern), crate::mask::build_in_parts(&pattern, u64::MAX, 1).unwrap()] {
            let walk = Walk::new(&mask, 0).expect("no rows of several heads");
            let x: Vec<f64> = (0..300).map(|i| (i as f64 * 0.7).sin() + 0.3).collect();
            let mut y = vec![f64::NAN; 300];
            walk.apply(&x, &mut y);
            for (query, y) in y.iter().enumerate() {
                let keys = list.row(query);
                let sum: f64 = keys.iter().map(|&key| x[key as usize]).sum();
                let expected = sum / keys.len().max(1) as f64;
                assert!((y - expected).abs() < 1e-12, "{query}: {y} against {expected}");
                assert_eq!(walk.degrees()[query] as usize, keys.len());
            }
            let causal = (0..300).all(|query| list.row(query).iter().all(|&key| key as usize <= query));
            assert_eq!(walk.is_causal(), causal);
        }
    }
}

#[test]
fn journeys_are_those_of_a_plain_search() {
    for pattern in patterns_of_every_form() {
        let list = EdgeList::build(&pattern, 0);
        let mask = mask_of(&pattern);
        let walk = Walk::new(&mask, 0).expect("no rows of several heads");
        let mut searcher = Searcher::default();
        for from in [0, 17, 150, 299] {
            let mut hops = vec![usize::MAX; 300];
            hops[from] = 0;
            let mut queue = std::collections::VecDeque::from([from]);
            while let Some(query) = queue.pop_front() {
                for &key in list.row(query) {
                    if hops[key as usize] == usize::MAX {
                        hops[key as usize] = hops[query] + 1;
                        queue.push_back(key as usize);
                    }
                }
            }
            let reached = hops.iter().filter(|&&hops| hops != usize::MAX);
            let expected = Journey { hops: reached.clone().copied().max().unwrap(), reached: reached.count() };
            assert_eq!(walk.follow(from, &mut searcher), expected, "from {from}");
        }
    }
}

#[test]
fn everything_is_reached_or_never() {
    let everything = |pattern: &Pattern| {
        let mask = mask_of(pattern);
        let walks = [(0, Walk::new(&mask, 0).expect("no rows of several heads"))];
        reach_everything(&walks).expect("tokens")
    };
    let window = everything(&pattern(100, |_, q, k| q.abs_diff(k) <= 3));
    assert_eq!((window.hops, window.slowest.query, window.never_all), (33, 0, 0));
    assert!(window.all_followed && window.followed == 100);
    let causal = everything(&pattern(100, |_, q, k| k <= q));
    assert_eq!((causal.hops, causal.never_all), (1, 99));
    assert_eq!(causal.least, Some((Place { head: 0, query: 0 }, 1)));
}

#[test]
fn far_weight_of_known_patterns() {
    let weight = |pattern: &Pattern, diffusion: &Factors| {
        let mask = mask_of(pattern);
        let walks = [(0, Walk::new(&mask, 0).expect("no rows of several heads"))];
        far_weight(&walks, &diffusion.clone().into())
    };
    let full = weight(&pattern(64, |_, _, _| true), &Factors::restart(3, 0.0)).expect("tokens");
    assert!((full.back - 0.25).abs() < 1e-12 && (full.ahead - 0.25).abs() < 1e-12 && full.full == 0.25);
    // A restart keeps a tenth of every query at home.
    let kept = weight(&pattern(64, |_, _, _| true), &Factors::restart(1, 0.1)).expect("tokens");
    assert!((kept.back - 0.9 * 0.25).abs() < 1e-12);
    // Causal, one hop: query q gives 16 / (q + 1) to the first 16 keys, and nothing goes ahead.
    let causal = weight(&pattern(64, |_, q, k| k <= q), &Factors::restart(1, 0.0)).expect("tokens");
    let expected = (48..64).map(|q| 16.0 / f64::from(q + 1)).sum::<f64>() / 16.0;
    assert!((causal.back - expected).abs() < 1e-12 && causal.ahead == 0.0);
    assert_eq!(weight(&pattern(3, |_, _, _| true), &Factors::restart(1, 0.0)), None);
}

#[test]
fn balance_counts_keys_and_block_rows() {
    let of = |pattern: &Pattern| {
        let mask = mask_of(pattern);
        balance(&mask, &[(0, Walk::new(&mask, 0).expect("no rows of several heads"))]).expect("queries")
    };
    let even = of(&pattern(640, |_, _, _| true));
    assert_eq!((even.fewest_keys, even.most_keys, even.most.query), (640, 640, 0));
    assert!((even.busiest_tenth - 0.1).abs() < 1e-12 && (even.block_row_peak - 1.0).abs() < 1e-12);
    let causal = of(&pattern(640, |_, q, k| k <= q));
    assert_eq!((causal.fewest_keys, causal.most_keys, causal.most.query), (1, 640, 639));
    assert!((causal.mean_keys - 320.5).abs() < 1e-12 && causal.block_row_peak > 1.5);
    let busiest: u32 = (577..=640).sum();
    assert!((causal.busiest_tenth - f64::from(busiest) / 205_120.0).abs() < 1e-12);
    assert!(causal.profile.len() == 64 && causal.profile.is_sorted() && causal.profile[0] == 5.5);
}

#[test]
fn means_count_every_head() {
    // Three heads see everything, one itself alone.
    let text = "name: x\nheads: 4\nhead_dim: 4\npattern:\n  per_head:\n    - {heads: \"0..3\", pattern: full}\n    \
                - {heads: [3], pattern: {window: {radius: 0}}}\n";
    let spec = crate::spec::parse(text, "<text>").unwrap_or_else(|error| panic!("{error}"));
    for n in [80, 8000] {
        let pattern = crate::pattern::resolve(&spec, n, n).unwrap();
        let mask = mask_of(&pattern);
        let found = analyse(&pattern, &mask, &spec, &Diffused::new(&spec, None), u64::MAX);
        let mean = (3.0 + 1.0 / n as f64) / 4.0;
        assert!((found.density - mean).abs() < 1e-12);
        let reach = found.receptive_field.hops[0];
        assert!((reach.mean - mean).abs() < 1e-12 && reach.worst.head == 3, "{reach:?}");
        let balance = found.balance.expect("queries");
        assert!((balance.mean_keys - mean * n as f64).abs() < 1e-9 && balance.fewest_keys == 1, "{balance:?}");
        assert!((balance.busiest_tenth - 0.1 / mean).abs() < 1e-9, "{balance:?}");
        assert!((balance.profile[0] - mean * n as f64).abs() < 1e-6);
        let far = found.far_weight.expect("quarters");
        assert!((far.back - 0.75 * 0.25).abs() < 1e-12 && (far.ahead - 0.75 * 0.25).abs() < 1e-12, "{far:?}");
        assert_eq!(found.spectral_gap.spectral_gap, Some(0.0));
    }
}

/// What a spec may ask for without end is sampled, or left out with a reason.
#[test]
fn looking_has_an_end() {
    let found = |pattern: &str, heads: usize, hops: usize, n: usize, memory: u64| {
        let text = format!(
            "name: x\nheads: {heads}\nhead_dim: 4\npattern: {pattern}\ndiffusion: {{hops: {hops}, alpha: 0.1}}\n"
        );
        let spec = crate::spec::parse(&text, "<text>").unwrap_or_else(|error| panic!("{error}"));
        let pattern = crate::pattern::resolve(&spec, n, n).unwrap();
        analyse(&pattern, &mask_of(&pattern), &spec, &Diffused::new(&spec, None), memory)
    };
    let dense = found("full", 1, 64, 4096, u64::MAX).receptive_field;
    assert_eq!((dense.rows, dense.hops.len()), (32, 64), "{}", dense.note);
    let heads: Vec<String> =
        (0..5).map(|h| format!("{{heads: [{h}], pattern: {{window: {{radius: {h}}}}}}}")).collect();
    let long = found(&format!("{{per_head: [{}]}}", heads.join(", ")), 5, 1024, 8000, u64::MAX).receptive_field;
    assert!(long.hops.is_empty() && long.note.contains("too many to follow"), "{}", long.note);
    let everyone = found("full", 1, 1, 1024, u64::MAX).reach_everything.expect("tokens");
    assert!(everyone.all_followed);
    // Nearly full, and no two heads alike: more pairs than are passed from every query.
    let heads: Vec<String> =
        (0..5).map(|h| format!("{{heads: [{h}], pattern: {{window: {{radius: {}}}}}}}", 1000 + h)).collect();
    let some = found(&format!("{{per_head: [{}]}}", heads.join(", ")), 5, 1, 1024, u64::MAX);
    let some = some.reach_everything.expect("tokens");
    assert!(!some.all_followed && some.followed == 4 * 32, "{some:?}");
    let scarce = found("{window: {radius: 5}}", 2, 3, 300, 1000);
    assert_eq!(scarce.nnz, 2 * (300 * 11 - 30));
    assert!(scarce.receptive_field.hops.is_empty() && scarce.receptive_field.note == SCARCE);
    assert!(scarce.spectral_gap.spectral_gap.is_none() && scarce.spectral_gap.spectral_gap_note == SCARCE);
    assert!(scarce.reach_everything.is_none() && scarce.far_weight.is_none() && scarce.balance.is_none());
}

fn looked_at(text: &str, numbers: Option<&[f64]>, n: usize) -> Analysis {
    let spec = crate::spec::parse(&format!("name: x\nhead_dim: 4\n{text}\n"), "<text>");
    let spec = spec.unwrap_or_else(|error| panic!("{error}"));
    let pattern = crate::pattern::resolve(&spec, n, n).unwrap();
    analyse(&pattern, &mask_of(&pattern), &spec, &Diffused::new(&spec, numbers), u64::MAX)
}

#[test]
fn the_limit_has_a_closed_form() {
    // Query 0 has itself, query 1 both: λ2 = 1/2, and α / (1 − (1 − α) λ2) = 0.2 / 0.6.
    let two = looked_at("pattern: causal\ndiffusion: {hops: all, alpha: 0.2}", None, 2);
    near(two.spectral_gap.diffused_gap, 1.0 - 0.2 / 0.6, 1e-12);
    // Many hops come close to it, also where eigenvalues are complex.
    let ring = "pattern: {where: \"q == k or (q + 1) % 16 == k\"}";
    let limit = looked_at(&format!("{ring}\ndiffusion: {{hops: all, alpha: {{input: a}}}}"), Some(&[0.3]), 16);
    let hops = looked_at(&format!("{ring}\ndiffusion: {{hops: 200, alpha: 0.3}}"), None, 16);
    near(limit.spectral_gap.diffused_gap, hops.spectral_gap.diffused_gap.unwrap(), 1e-9);
    // A window of one key back reaches everything before, and the hops that it takes are one less than tokens.
    let chain = "pattern: {window: {left: 1, right: 0}}";
    let limit = looked_at(&format!("{chain}\ndiffusion: {{hops: all, alpha: 0.5}}"), None, 100);
    let [reach] = limit.receptive_field.hops.as_slice() else { panic!("{:?}", limit.receptive_field) };
    assert_eq!((reach.hop, limit.receptive_field.rows), (99, 100));
    assert!((reach.mean - 0.505).abs() < 1e-12 && (reach.minimum - 0.01).abs() < 1e-12, "{reach:?}");
    let hops = looked_at(&format!("{chain}\ndiffusion: {{hops: 400, alpha: 0.5}}"), None, 100);
    let (limit, hops) = (limit.far_weight.unwrap(), hops.far_weight.unwrap());
    assert!((limit.back - hops.back).abs() < 1e-6 && limit.ahead == 0.0, "{limit:?} {hops:?}");
    // Long sequences take no longer for it.
    let long = looked_at("pattern: {window: {left: 64, right: 0}}\ndiffusion: {hops: all, alpha: 0.1}", None, 1 << 16);
    assert_eq!((long.receptive_field.rows, long.receptive_field.hops.len()), (32, 1));
    assert!((long.receptive_field.hops[0].mean - 0.5).abs() < 0.01, "{:?}", long.receptive_field);
}

#[test]
fn numbers_of_a_call_stand_in_for_typical_ones() {
    let gap = |diffusion: &str, numbers: Option<&[f64]>| {
        looked_at(&format!("pattern: causal\ndiffusion: {diffusion}"), numbers, 30).spectral_gap.diffused_gap
    };
    assert_eq!(gap("{hops: 3, alpha: {input: a}}", Some(&[0.4])), gap("{hops: 3, alpha: 0.4}", None));
    assert_eq!(gap("{hops: 3, alpha: {input: a}}", None), gap("{hops: 3, alpha: 0.1}", None));
    let theta = "{coefficients: {input: theta}, hops: 2}";
    assert_eq!(gap(theta, Some(&[0.5, 0.25, 2.0])), gap("{coefficients: [0.5, 0.25, 2.0]}", None));
}

#[test]
fn hops_with_patterns_of_their_own_reach_what_both_reach() {
    // Rows, then columns, of a fold of 8 by 8.
    let text = "pattern: {axial: {shape: [8, 8], axes: [0]}}\n\
                diffusion: {hops: [{pattern: {axial: {shape: [8, 8], axes: [1]}}}, {}], alpha: 0}";
    let found = looked_at(text, None, 64);
    let means: Vec<f64> = found.receptive_field.hops.iter().map(|reach| reach.mean).collect();
    assert_eq!(means, [0.125, 1.0]);
    assert!(found.far_weight.is_none() && found.reach_everything.is_none());
    assert!(found.spectral_gap.spectral_gap_note.contains("patterns of their own"));
}

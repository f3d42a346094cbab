//! The model's own sense: more work takes longer, and nothing is ever negative or not a number.

use proptest::prelude::*;

use super::*;
use crate::{mask, pattern, spec};

const WALKS: [Walk; 6] = [
    Walk::Once,
    Walk::Stored { element: 4 },
    Walk::Stored { element: 2 },
    Walk::Again,
    Walk::Sweep { behind: 3, lag: 3, element: 4 },
    Walk::Sweep { behind: 3, lag: 0, element: 2 },
];

fn work(pattern: &str, n: usize) -> Work {
    let text = format!("name: x\nhead_dim: 64\npattern: {pattern}\n");
    let spec = spec::parse(&text, "<text>").unwrap();
    let mask = mask::build(&pattern::resolve(&spec, n, n).unwrap(), u64::MAX).unwrap();
    Work::of(&mask.masks[0], n, n)
}

fn problem(hops: usize, threads: usize) -> Problem {
    Problem { isa: Isa::Avx512, threads, head_dim: 64, value_dim: 64, hops, element: 4, mod_operations: 0 }
}

#[test]
fn a_window_is_counted_as_tiles_compute_it() {
    let work = work("{window: {radius: 128}}", 4096);
    let inner = 62.0 * 64.0;
    assert!(work.score_elements > inner * 257.0 && work.score_elements < 64.0 * 64.0 * (257.0 + 21.0), "{work:?}");
    assert!(work.value_elements > inner * 257.0 && work.value_elements <= work.panel_elements, "{work:?}");
    assert_eq!((work.block_rows, work.row_keys, work.edges), (64.0, 320.0, 0.0));
    // 64 new keys a row, and the first row's.
    assert!(work.new_keys < 2.0 * 4096.0 && work.new_keys >= 4096.0, "{work:?}");
    assert!(work.runs < work.pieces, "the three pieces of a row are one run: {work:?}");
}

#[test]
fn random_edges_reach_everything_and_near_ones_do_not() {
    let random = work("{random: {keys_per_query: 8, seed: 1}}", 2048);
    assert!(random.edges > 0.9 * 8.0 * 2048.0 && random.edge_reach > 1500.0, "{random:?}");
    let near = work("{where: \"abs(q - k) % 7 == 3 and abs(q - k) < 40\"}", 2048);
    assert!(near.edges == 0.0 || near.edge_reach < 200.0, "{near:?}");
}

#[test]
fn time_grows_with_length_and_hops() {
    for walk in WALKS {
        for pattern in ["{window: {radius: 100}}", "causal", "{random: {keys_per_query: 20, seed: 1}}"] {
            let at = |n, hops, threads| {
                forecast(&problem(hops, threads), &[(work(pattern, n), 4)], walk, &Facts::TYPICAL).seconds
            };
            for threads in [1, 2, 7] {
                assert!(at(512, 1, threads) < at(1024, 1, threads) && at(1024, 1, threads) < at(4096, 1, threads));
                let (one, two, five) = (at(1024, 1, threads), at(1024, 2, threads), at(1024, 5, threads));
                match walk {
                    Walk::Once => assert_eq!(one, five),
                    _ => assert!(one < two && two < five, "{walk:?} {pattern}: {one} {two} {five}"),
                }
            }
        }
    }
}

#[test]
fn hops_cost_what_their_arithmetic_costs() {
    let at = |hops, walk| {
        forecast(&problem(hops, 1), &[(work("{window: {radius: 128}}", 4096), 1)], walk, &Facts::TYPICAL).seconds
    };
    let one = at(1, Walk::Once);
    let ratio = |walk| at(5, walk) / one;
    assert!((2.0..3.3).contains(&ratio(Walk::Stored { element: 4 })));
    assert!((2.0..3.1).contains(&ratio(Walk::Sweep { behind: 3, lag: 3, element: 4 })));
    assert!((4.0..5.5).contains(&ratio(Walk::Again)));
}

#[test]
fn two_threads_take_half_as_long_where_heads_divide() {
    let masks = [(work("{window: {radius: 128}}", 4096), 4)];
    for walk in WALKS {
        let at = |threads| forecast(&problem(5, threads), &masks, walk, &Facts::TYPICAL).seconds;
        assert!((1.8..2.1).contains(&(at(1) / at(2))), "{walk:?}: {}", at(1) / at(2));
    }
    // Three heads on two threads take as long as four.
    let at = |heads| {
        let masks = [(masks[0].0, heads)];
        forecast(&problem(5, 2), &masks, Walk::Stored { element: 4 }, &Facts::TYPICAL).seconds
    };
    assert!((at(3) / at(4) - 1.0).abs() < 0.01);
}

proptest! {
    #[test]
    fn every_forecast_is_a_time(
        numbers in proptest::array::uniform12(0.0..1e9_f64),
        hops in 1..40_usize,
        threads in 1..300_usize,
        heads in 0..200_usize,
        dims in (1..513_usize, 1..513_usize),
        element in prop_oneof![Just(2_usize), Just(4)],
        bandwidths in proptest::array::uniform4(prop_oneof![Just(f64::NAN), Just(0.0), 1e-3..1e3_f64]),
    ) {
        let [block_rows, score_elements, value_elements, exp_elements, panel_elements, keys, row_keys, new_keys, pieces,
            runs, edges, edge_reach] = numbers;
        let work = Work { in_order: hops % 2 == 0, block_rows, score_elements, value_elements, exp_elements, panel_elements, keys, row_keys,
            new_keys, pieces, runs, edges, edge_reach };
        let facts = Facts { read_gb_per_s: bandwidths, read_gb_per_s_all: bandwidths, ..Facts::TYPICAL };
        for isa in Isa::ALL {
            let problem = Problem { isa, threads, head_dim: dims.0, value_dim: dims.1, hops, element, mod_operations: hops };
            for walk in WALKS {
                let forecast = forecast(&problem, &[(work, heads), (Work::default(), 1)], walk, &facts);
                prop_assert!(forecast.seconds.is_finite() && forecast.seconds >= 0.0, "{forecast:?}");
                prop_assert!(forecast.parts().iter().all(|part| part.is_finite() && *part >= 0.0), "{forecast:?}");
            }
        }
    }
}

//! Every recipe makes nests that the verifier accepts, over patterns, hops, mods, dropout and passes left out.

mod simulation;
mod verifier;

use super::*;
use crate::program::{derive_gradient, parse, verify};
use crate::{mask, pattern, spec};

fn program(text: &str, n: usize) -> Program {
    let spec = spec::parse(text, "<text>").unwrap_or_else(|error| panic!("{error}"));
    let neighbors = mask::build(&pattern::resolve(&spec, n, n).unwrap(), u64::MAX).unwrap();
    program::build(&spec, neighbors).unwrap()
}

const PATTERNS: [&str; 5] = [
    "{window: {radius: 70}}",
    "causal",
    "{window: {left: 100, right: 0}}",
    "{any: [{window: {radius: 8}}, {global: {tokens: [40, 300]}}]}",
    "{any: [{window: {radius: 20}}, {random: {keys_per_query: 3, seed: 2}}]}",
];

const HOPS: [&str; 7] = [
    "{hops: 0, alpha: 0.5}",
    "{hops: 1}",
    "{hops: 1, alpha: 0.1}",
    "{hops: 2}",
    "{hops: 3, alpha: 0.1, store: bf16}",
    "{coefficients: [0.5, 0, -0.25, 2]}",
    "{hops: 5, alpha: 1}",
];

fn text(pattern: &str, hops: &str, more: &str) -> String {
    format!("name: x\nheads: 2\nhead_dim: 8\nvalue_dim: 5\npattern: {pattern}\ndiffusion: {hops}\n{more}")
}

/// Every nest of a program, verified.
fn nests(program: &Program, without: &[String]) -> Vec<(Strategy, Program)> {
    let built = verify(program.clone()).unwrap_or_else(|error| panic!("{error}")).into_inner();
    assert_eq!(parse(&built.print()).unwrap(), built);
    let fused = verify(run(built, without).unwrap()).unwrap_or_else(|error| panic!("{error}")).into_inner();
    assert_eq!(parse(&fused.print()).unwrap(), fused);
    let mut nests = Vec::new();
    for Candidate { strategy, nest } in candidates(&fused, without, Some(Strategy::WAVEFRONT), None) {
        let Ok((body, _)) = nest else { continue };
        let nested = Program { body, ..fused.clone() };
        let nested =
            verify(nested).unwrap_or_else(|error| panic!("{strategy} without {without:?}: {error}")).into_inner();
        assert_eq!(parse(&nested.print()).unwrap(), nested);
        nests.push((strategy, nested));
    }
    nests
}

#[test]
fn every_recipe_makes_legal_nests() {
    let mut found = 0;
    for pattern in PATTERNS {
        for hops in HOPS {
            for more in ["", "score: {mods: [softcap: 20, alibi]}\n", "dtype: bf16\n"] {
                let built = program(&text(pattern, hops, more), 500);
                found += nests(&built, &[]).len();
                for dropout in [false, true] {
                    found += nests(&derive_gradient(built.clone(), dropout).unwrap(), &[]).len();
                }
            }
        }
    }
    assert!(found > 600, "{found}");
}

#[test]
fn every_pass_may_be_left_out() {
    let passes = PASSES.iter().map(|pass| pass.name).chain(nest_passes().into_iter().map(|pass| pass.name));
    let mut without: Vec<Vec<String>> = passes.map(|name| vec![name.to_owned()]).collect();
    without.push(without.concat());
    for more in ["", "score: {mods: [softcap: 20]}\n"] {
        for (pattern, hops) in [(PATTERNS[0], HOPS[2]), (PATTERNS[2], HOPS[4]), (PATTERNS[4], HOPS[5])] {
            let built = program(&text(pattern, hops, more), 500);
            for without in &without {
                assert!(nests(&built, without).iter().any(|(strategy, _)| *strategy == Strategy::RESIDENT));
                for dropout in [false, true] {
                    let nests = nests(&derive_gradient(built.clone(), dropout).unwrap(), without);
                    assert!(!nests.is_empty(), "{without:?}");
                }
            }
        }
    }
}

/// A recipe is for operations that stand apart: what its passes would make of a nest is no business of theirs.
#[test]
fn nests_are_not_nested_again() {
    for hops in HOPS {
        let built = program(&text(PATTERNS[2], hops, ""), 300);
        for program in [built.clone(), derive_gradient(built, true).unwrap()] {
            for (_, nested) in nests(&program, &[]) {
                for (again, verdict) in verdicts(&nested, &[]) {
                    let Err(why) = verdict else { panic!("{again} of a nest:\n{}", nested.print()) };
                    assert!(why.contains("nest already") || why.contains("gradient"), "{again}: {why}");
                }
            }
        }
    }
}

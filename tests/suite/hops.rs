//! Strategies: when each is legal and what is said of it, that those which store P agree bit for bit, P in bf16,
//! sequences of a million tokens.

use crate::common::{Numbers, Oracle, Tensors, compile, families, options, spec_of, spec_with, strategies};
use hopweave::compiler::{self, Compiled, Options};
use hopweave::passes::Strategy;
use hopweave::spec::{Inputs, PatternSpec};
use hopweave::target::Isa;
use hopweave::{interpreter, pattern};
use ndarray::Array4;

/// Patterns with how far a block row of 64 queries reaches behind itself and ahead, in block rows.
const BANDS: [(&str, u32, u32); 9] = [
    ("{window: {radius: 9}}", 1, 1),
    ("{window: {radius: 64}}", 1, 1),
    ("{window: {radius: 65}}", 2, 2),
    ("{window: {left: 200, right: 3}}", 4, 1),
    ("{window: {left: 3, right: 130}}", 1, 3),
    ("{window: {left: 70, right: 0}}", 2, 0),
    ("{chunk: {size: 64}}", 0, 0),
    ("{chunk: {size: 96, stride: 48}}", 2, 2),
    ("{all: [causal, {any: [{window: {radius: 20}}, {random: {keys_per_query: 3, seed: 2, among: past}}]}]}", 11, 0),
];

#[test]
fn how_far_rows_reach_decides_which_strategies_are_legal() {
    for (pattern, behind, ahead) in BANDS {
        for hops in [2, 4, 9] {
            let spec = spec_of(pattern, 4, 4, &format!("{{hops: {hops}, alpha: 0.1}}"));
            let n = 64 * 12 - 5;
            let legal = strategies(&spec, n);
            // A ring that would hold all of P is no ring.
            let fits = (hops - 1) * ahead < 12;
            assert_eq!(legal.contains(&Strategy::WAVEFRONT), fits, "{pattern} {hops}");
            assert_eq!(legal.contains(&Strategy::TRIANGULAR), ahead == 0, "{pattern} {hops}");
            assert!(legal.contains(&Strategy::RESIDENT) && legal.contains(&Strategy::RECOMPUTE));
            assert!(!legal.contains(&Strategy::FLASH));
            if fits {
                let compiled = compile(&spec, n, &options(Isa::Portable, Some(Strategy::WAVEFRONT)));
                let reach = compiled.kernel.plan().reach.expect("a sweep goes by its reach");
                assert_eq!((reach.behind, reach.ahead), (behind, ahead), "{pattern}");
            }
        }
    }
}

#[test]
fn an_illegal_strategy_is_refused_with_the_rows_that_forbid_it() {
    let refusal = |pattern: &str, strategy| {
        let spec = spec_of(pattern, 4, 4, "{hops: 5, alpha: 0.1}");
        match compiler::compile(&spec, 512, 512, &options(Isa::Portable, Some(strategy))) {
            Err(error @ hopweave::Error::Unsupported { .. }) => error.to_string(),
            other => panic!("{pattern}: {:?}", other.map(drop)),
        }
    };
    let global = "{any: [{window: {radius: 8}}, {global: {tokens: {first: 64}}}]}";
    let said = refusal(global, Strategy::WAVEFRONT);
    assert!(said.contains("rows 0..63 reach 7 block rows ahead") && said.contains("legal here: resident"), "{said}");
    let few = "{any: [{window: {radius: 8}}, {global: {tokens: [40, 41, 77, 300]}}]}";
    let said = refusal(few, Strategy::WAVEFRONT);
    assert!(said.contains("4 global rows among 40..300 reach every row"), "{said}");
    let said = refusal("{window: {radius: 8}}", Strategy::TRIANGULAR);
    assert!(said.contains("reach 1 block rows ahead"), "{said}");
    let said = refusal("full", Strategy::WAVEFRONT);
    assert!(said.contains("rows 0..63 reach 7 block rows ahead"), "{said}");
    // One global query among many ordinary ones is edges.
    let spec = spec_of("{any: [{window: {radius: 8}}, {global: {tokens: [77]}}]}", 4, 4, "{hops: 5, alpha: 0.1}");
    for n in [512, 4096] {
        let Err(error) = compiler::compile(&spec, n, n, &options(Isa::Portable, Some(Strategy::WAVEFRONT))) else {
            panic!("wavefront was accepted");
        };
        assert!(error.to_string().contains("global row 77 reaches every row"), "{error}");
    }
    // What is chosen instead is told with the same sentences.
    let spec = spec_of(global, 4, 4, "{hops: 5, alpha: 0.1}");
    let chosen = compile(&spec, 512, &options(Isa::Portable, None));
    let reasons = &chosen.kernel.plan().reasons;
    assert!(reasons.iter().any(|reason| reason.starts_with("wavefront: no, rows 0..63")), "{reasons:?}");
}

/// A row is computed by the same code from the same numbers, whatever waits where: resident, wavefront and triangular
/// do not differ by a bit, on any number of threads, whether their borders fall together or not.
#[test]
fn strategies_that_store_p_agree_bit_for_bit() {
    let mut sweeps = 0;
    for (pattern, ..) in BANDS {
        for (n, hops) in [(130, 2), (64 * 9 + 1, 3), (64 * 25 - 1, 5), (64 * 31, 2)] {
            for store in ["f32", "bf16"] {
                let diffusion = format!("{{hops: {hops}, alpha: 0.1, store: {store}}}");
                let spec = spec_with(&spec_of(pattern, 8, 7, &diffusion).print(), &["heads=1", "kv_heads=1"]);
                let tensors = Tensors::random(&spec, 1, n, n as u64);
                let legal = strategies(&spec, n);
                for isa in families() {
                    let resident = tensors.run(&compile(&spec, n, &options(isa, Some(Strategy::RESIDENT))));
                    for &strategy in legal.iter().filter(|strategy| strategy.sweeps()) {
                        for threads in [1, 2, 3, 5] {
                            let compiled = compile(&spec, n, &Options { threads, ..options(isa, Some(strategy)) });
                            let found = tensors.run(&compiled);
                            let what = format!("{pattern} n {n} hops {hops} {store} {isa} {strategy} {threads}");
                            assert_eq!(found.out, resident.out, "{what}");
                            assert_eq!(found.lse, resident.lse, "{what}");
                            sweeps += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(sweeps >= 200 * families().len(), "{sweeps}");
}

#[test]
fn p_in_bf16_errs_by_its_rounding_and_its_rows_still_sum_to_one() {
    let patterns = BANDS.iter().map(|band| band.0).chain([
        "full",
        "causal",
        "{any: [{window: {radius: 9}}, {global: {tokens: {first: 7}}}, {random: {keys_per_query: 4, seed: 7}}]}",
    ]);
    for pattern in patterns {
        let (n, hops) = (331, 3);
        let spec = spec_of(pattern, 16, 20, "{hops: 3, alpha: 0.2, store: bf16}");
        let tensors = Tensors::random(&spec, 1, n, 5);
        let resolved = pattern::resolve(&spec, n, n).expect("a pattern");
        let oracle = Oracle::new(&resolved, &spec, &tensors);
        let largest = tensors.v.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let mut constant = tensors.clone();
        constant.v.fill(-0.75);
        for isa in families() {
            for strategy in strategies(&spec, n) {
                let compiled = compile(&spec, n, &options(isa, Some(strategy)));
                let what = format!("{pattern} {isa} {strategy}");
                assert_eq!(compiled.kernel.plan().store().is_f32(), !strategy.stores_p(), "{what}");
                let found = tensors.run(&compiled);
                // A probability is off by 2^-9 of itself, and so is their sum: the mean by twice that at most.
                let bound = f64::from(largest) * f64::from(hops) / 256.0;
                let error = |(&x, &y): (&f32, &f64)| (f64::from(x) - y).abs();
                let worst = found.out.iter().zip(&oracle.out).map(error).fold(0.0, f64::max);
                assert!(worst <= bound, "{what}: {worst} is more than {bound}");
                let found = constant.run(&compiled);
                assert!(found.out.iter().all(|x| (x + 0.75).abs() < 2e-6), "{what}");
            }
        }
    }
}

#[test]
fn p_in_bf16_takes_half_the_scratch() {
    let scratch = |store: &str| {
        let spec = spec_of("full", 64, 64, &format!("{{hops: 3, alpha: 0.1, store: {store}}}"));
        compile(&spec, 4096, &options(Isa::Portable, Some(Strategy::RESIDENT))).kernel.scratch_bytes(1) as f64
    };
    let share = scratch("bf16") / scratch("f32");
    assert!((0.5..0.6).contains(&share), "{share}");
}

/// Rows near the ends, at block borders, and where stretches of two threads meet.
fn sampled_rows_conform(compiled: &Compiled, spec: &PatternSpec, n: usize) {
    let mut numbers = Numbers(7);
    let mut tensor = |width| {
        Array4::from_shape_simple_fn((1, 1, n, width), || (numbers.bits() >> 40) as f32 / (1 << 22) as f32 - 2.0)
    };
    let (q, k, v) = (tensor(spec.head_dim), tensor(spec.head_dim), tensor(spec.value_dim));
    let found = compiled.kernel.forward(q.view(), k.view(), v.view()).expect("a result");
    let queries = [0, 64, n / 3, n / 2 - 1, n - 1];
    let sample = interpreter::run_rows(
        &compiled.pattern,
        spec,
        q.view(),
        k.view(),
        v.view(),
        &Inputs::none(),
        &[(0, 0)],
        &queries,
        u64::MAX,
    );
    let sample = sample.expect("a sample");
    assert_eq!(sample.rows.len(), queries.len());
    for row in sample.rows {
        for (x, &expected) in row.out.iter().enumerate() {
            let found = f64::from(found.out[[0, 0, row.query, x]]);
            assert!((found - expected).abs() < 2e-6, "query {}: {found}, not {expected}", row.query);
        }
        assert!((f64::from(found.lse[[0, 0, row.query]]) - row.lse).abs() < 1e-5);
    }
}

#[test]
fn a_million_tokens_run_in_scratch_that_does_not_grow() {
    let n = 1_000_000;
    for (pattern, strategy) in
        [("{window: {radius: 128}}", Strategy::WAVEFRONT), ("{window: {left: 128, right: 0}}", Strategy::TRIANGULAR)]
    {
        let diffusion = "{hops: 5, alpha: 0.1}";
        let wide = spec_with(&spec_of(pattern, 64, 64, diffusion).print(), &["heads=1", "kv_heads=1"]);
        let two = Options { threads: 2, ..options(Isa::best(), Some(strategy)) };
        let scratch = |n| compile(&wide, n, &two).kernel.scratch_bytes(1);
        assert!(scratch(n) <= 64 << 20, "{}", scratch(n));
        assert_eq!(scratch(n), scratch(4096), "{pattern}");
        // The numbers themselves at a smaller width.
        let spec = spec_with(&spec_of(pattern, 4, 4, diffusion).print(), &["heads=1", "kv_heads=1"]);
        sampled_rows_conform(&compile(&spec, n, &two), &spec, n);
    }
}

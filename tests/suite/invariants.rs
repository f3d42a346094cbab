//! What must hold whatever the oracle says: rows of A sum to 1, reachability, permutations, threads, passes,
//! strategies; NaN and infinities along allowed edges only; and one case that was computed on paper.

use crate::common::{Numbers, Oracle, Tensors, compile, families, options, oracle, spec_of, spec_with, strategies};
use hopweave::compiler::{self, Options};
use hopweave::passes::Strategy;
use hopweave::spec::PatternSpec;
use hopweave::target::Isa;
use hopweave::{Error, passes, pattern};
use ndarray::{Array2, Array4, Axis, s};

/// Patterns that between them have full and masked blocks, shifted runs, gathered lists, dense rows, scattered
/// edges, and queries without keys.
const PATTERNS: [(&str, &str); 6] = [
    ("causal", "causal"),
    ("window", "{window: {radius: 20}}"),
    ("full", "full"),
    ("globals", "{any: [{window: {radius: 5}}, {global: {tokens: {random: {count: 9, seed: 3}}}}]}"),
    ("edges", "{any: [{random: {keys_per_query: 4, seed: 7}}, {random_cells: {count: \"5*n\", seed: 2}}]}"),
    ("holes", "{all: [{where: \"q % 3 != 1\"}, {strided: {step: 7, mode: diagonal}}, {not: {sink: 70}}]}"),
];

/// Calls `test` with every family and strategy that is legal at length `n` of every pattern at the diffusion.
fn everywhere(n: usize, diffusions: &[&str], mut test: impl FnMut(&PatternSpec, &Options, &str)) {
    for (name, text) in PATTERNS {
        for diffusion in diffusions {
            let spec = spec_of(text, 6, 5, diffusion);
            for isa in families() {
                for strategy in strategies(&spec, n) {
                    let what = format!("{name} {diffusion} {isa} {strategy}");
                    test(&spec, &options(isa, Some(strategy)), &what);
                }
            }
        }
    }
}

/// Which keys each query of head `h` may see.
fn allowed(spec: &PatternSpec, n: usize, h: usize) -> Array2<bool> {
    let pattern = pattern::resolve(spec, n, n).expect("a pattern");
    Array2::from_shape_fn((n, n), |(q, k)| pattern.allows(h, q, k))
}

#[test]
fn constant_values_stay_constant() {
    let n = 150;
    everywhere(n, &["{hops: 1}", "{hops: 3, alpha: 0.1}"], |spec, options, what| {
        let mut tensors = Tensors::random(spec, 1, n, 1);
        tensors.v.fill(-0.75);
        let found = tensors.run(&compile(spec, n, options));
        for h in 0..2 {
            let allowed = allowed(spec, n, h);
            let closed = allowed.rows().into_iter().all(|row| row.iter().any(|&x| x));
            for (q, row) in allowed.rows().into_iter().enumerate() {
                // A row of A sums to 1, or to 0 where it is empty; what is left of V then is the restart.
                let one_hop = spec.diffusion.hops() == 1;
                let expected = match (row.iter().any(|&x| x), one_hop) {
                    (true, true) => -0.75,
                    (true, false) if closed => -0.75,
                    (true, false) => continue,
                    (false, true) => 0.0,
                    (false, false) => 0.1 * -0.75,
                };
                let out = found.out.slice(s![0, h, q, ..]);
                assert!(out.iter().all(|x| (x - expected).abs() < 1e-6), "{what} query {q}: {out}");
                assert_eq!(found.lse[(0, h, q)] == f32::NEG_INFINITY, !row.iter().any(|&x| x), "{what} query {q}");
            }
        }
    });
}

#[test]
fn alpha_one_returns_the_values() {
    everywhere(131, &["{hops: 1, alpha: 1}", "{hops: 4, alpha: 1}", "{hops: 0}"], |spec, options, what| {
        let tensors = Tensors::random(spec, 2, 131, 2);
        assert_eq!(tensors.run(&compile(spec, 131, options)).out, tensors.v, "{what}");
    });
}

#[test]
fn one_hop_without_restart_is_attention() {
    everywhere(131, &["{hops: 1, alpha: 0}"], |spec, options, what| {
        let plain = spec_with(&spec.source.text.replace("diffusion: {hops: 1, alpha: 0}\n", ""), &[]);
        let tensors = Tensors::random(spec, 1, 131, 2);
        let (a, b) = (tensors.run(&compile(spec, 131, options)), tensors.run(&compile(&plain, 131, options)));
        assert_eq!((a.out, a.lse), (b.out, b.lse), "{what}");
    });
}

#[test]
fn support_is_what_the_hops_reach() {
    let n = 131;
    for hops in [1, 2, 3] {
        everywhere(n, &[&format!("{{hops: {hops}, alpha: 0}}")], |spec, options, what| {
            let compiled = compile(spec, n, options);
            let edges = allowed(spec, n, 0);
            let mut tensors = Tensors::random(spec, 1, n, 3);
            // Five one-hot values a call, one a column; small queries, so that no probability rounds to 0.
            tensors.q *= 0.1;
            for sources in [[0, 1, 63, 64, 65], [70, 77, 100, 127, 130]] {
                tensors.v.fill(0.0);
                for (column, &source) in sources.iter().enumerate() {
                    tensors.v.slice_mut(s![.., .., source, column]).fill(1.0);
                }
                let found = tensors.run(&compiled);
                for (column, &source) in sources.iter().enumerate() {
                    let mut reached: Vec<bool> = (0..n).map(|i| i == source).collect();
                    for _ in 0..hops {
                        reached = (0..n).map(|q| (0..n).any(|k| edges[(q, k)] && reached[k])).collect();
                    }
                    for (q, &reached) in reached.iter().enumerate() {
                        let value = found.out[(0, 0, q, column)];
                        assert_eq!(value > 0.0, reached, "{what}: {source} at {q} is {value}");
                    }
                }
            }
        });
    }
}

#[test]
fn permuting_batch_and_heads_permutes_the_output() {
    everywhere(67, &["{hops: 1}", "{hops: 2, alpha: 0.1}"], |spec, options, what| {
        let compiled = compile(spec, 67, options);
        let tensors = Tensors::random(spec, 3, 67, 4);
        let found = tensors.run(&compiled);
        let batches = |tensor: &Array4<f32>| tensor.select(Axis(0), &[2, 0, 1]);
        let heads = |tensor: &Array4<f32>| tensor.select(Axis(1), &[1, 0]);
        for permute in [&batches as &dyn Fn(&Array4<f32>) -> Array4<f32>, &heads] {
            let permuted = Tensors { q: permute(&tensors.q), k: permute(&tensors.k), v: permute(&tensors.v) };
            assert_eq!(permuted.run(&compiled).out, permute(&found.out), "{what}");
        }
    });
}

#[test]
fn threads_change_no_bit() {
    // One (batch, head) for all threads, and many.
    for (heads, batch) in [(1, 1), (2, 2)] {
        everywhere(333, &["{hops: 1}", "{hops: 3, alpha: 0.1}"], |spec, options, what| {
            let spec = spec_with(&spec.source.text, &[&format!("heads={heads}")]);
            let tensors = Tensors::random(&spec, batch, 333, 5);
            let one = tensors.run(&compile(&spec, 333, options));
            for threads in [2, 3, 5] {
                let other = tensors.run(&compile(&spec, 333, &Options { threads, ..options.clone() }));
                assert_eq!(one.out, other.out, "{what} threads {threads}");
                assert_eq!(one.lse, other.lse, "{what} threads {threads}");
            }
        });
    }
}

#[test]
fn calls_from_many_threads_at_once_agree() {
    let spec = spec_of(PATTERNS[3].1, 16, 16, "{hops: 3, alpha: 0.1}");
    let compiled = compile(&spec, 200, &Options { threads: 2, ..options(Isa::best(), None) });
    let tensors = Tensors::random(&spec, 2, 200, 6);
    let expected = tensors.run(&compiled).out;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| assert_eq!(tensors.run(&compiled).out, expected)));
        }
    });
}

#[test]
fn passes_change_nothing_beyond_rounding() {
    let names: Vec<String> = passes::PASSES.iter().map(|pass| pass.name.to_string()).collect();
    let mut without: Vec<Vec<String>> = names.iter().map(|name| vec![name.clone()]).collect();
    without.push(names);
    for (name, text) in PATTERNS {
        for diffusion in ["{hops: 1}", "{hops: 1, alpha: 0.3}", "{hops: 3, alpha: 0.1}"] {
            let spec = spec_of(text, 6, 5, diffusion);
            let (tensors, oracle) = oracle(&spec, 1, 150, 7);
            for isa in families() {
                for without in &without {
                    let options = Options { without: without.clone(), ..options(isa, None) };
                    let found = tensors.run(&compile(&spec, 150, &options));
                    oracle.check(&found, &|| format!("{name} {diffusion} {isa} without {without:?}"));
                }
            }
        }
    }
    let spec = spec_of("full", 4, 4, "{hops: 1}");
    let options = Options { without: vec!["no_such_pass".into()], ..options(Isa::Portable, None) };
    assert!(matches!(compiler::compile(&spec, 4, 4, &options), Err(Error::Unsupported { .. })));
}

#[test]
fn flash_is_refused_for_more_hops_with_a_reason() {
    let spec = spec_of("causal", 4, 4, "{hops: 5, alpha: 0.1}");
    for isa in families() {
        let Err(error) = compiler::compile(&spec, 70, 70, &options(isa, Some(Strategy::FLASH))) else {
            panic!("flash was accepted");
        };
        let text = error.to_string();
        assert!(matches!(error, Error::Unsupported { .. }), "{text}");
        assert!(text.contains("strategy flash") && text.contains("hop") && text.contains("resident"), "{text}");
        let chosen = compile(&spec, 70, &options(isa, None));
        assert_ne!(chosen.kernel.plan().strategy, Strategy::FLASH);
        assert!(chosen.kernel.plan().reasons.iter().any(|reason| reason.contains("flash")));
    }
}

#[test]
fn work_beyond_the_memory_limit_is_refused() {
    for diffusion in ["{hops: 1}", "{hops: 5, alpha: 0.1}"] {
        let spec = spec_of("full", 64, 64, diffusion);
        for isa in families() {
            let options = Options { memory_limit: 10_000, ..options(isa, None) };
            let result = compiler::compile(&spec, 2000, 2000, &options);
            assert!(matches!(result, Err(Error::Memory { limit: 10_000, .. })), "{:?}", result.map(drop));
        }
    }
}

#[test]
fn a_mask_that_allows_nothing_gives_zeros() {
    for (diffusion, left) in [("{hops: 1}", 0.0), ("{hops: 1, alpha: 0.5}", 0.5), ("{hops: 3, alpha: 0.25}", 0.25)] {
        for nothing in ["{not: full}", "{where: \"q < 0\"}", "{sink: 0}", "{all: [causal, {not: causal}]}"] {
            let spec = spec_of(nothing, 4, 3, diffusion);
            for isa in families() {
                for n in [0, 1, 64, 130] {
                    for strategy in strategies(&spec, n) {
                        let mut tensors = Tensors::random(&spec, 2, n, 8);
                        // Nobody may see these.
                        tensors.k.fill(f32::NAN);
                        tensors.q.fill(f32::INFINITY);
                        let found = tensors.run(&compile(&spec, n, &options(isa, Some(strategy))));
                        let what = format!("{nothing} {diffusion} {isa} {strategy} n {n}");
                        assert_eq!(found.out, &tensors.v * left, "{what}");
                        assert!(found.lse.iter().all(|&x| x == f32::NEG_INFINITY), "{what}");
                    }
                }
            }
        }
    }
}

/// NaN and infinities are put at one position of one tensor; the kernel's result must be finite exactly where the
/// oracle's is, near it there, and the queries that cannot reach the position must not change by a bit.
fn poison(n: usize, positions: &[usize], diffusions: &[&str]) {
    everywhere(n, diffusions, |spec, options, what| {
        let compiled = compile(spec, n, options);
        let clean = Tensors::random(spec, 1, n, 9);
        let before = clean.run(&compiled);
        let pattern = &compiled.pattern;
        let edges = allowed(spec, n, 0);
        let factors = spec.diffusion.typical();
        let hops = factors.hops.len();
        for &position in positions {
            for (name, value) in [("NaN", f32::NAN), ("+inf", f32::INFINITY), ("-inf", f32::NEG_INFINITY)] {
                for tensor in ["q", "k", "v"] {
                    let mut poisoned = clean.clone();
                    let target = match tensor {
                        "q" => &mut poisoned.q,
                        "k" => &mut poisoned.k,
                        _ => &mut poisoned.v,
                    };
                    // In the middle of a row of head 0; its other columns stay sound.
                    target[(0, 0, position, 2)] = value;
                    let found = poisoned.run(&compiled);
                    let what = || format!("{what}: {name} in {tensor} at {position}");
                    Oracle::new(pattern, spec, &poisoned).check(&found, &what);
                    // Touched after no hop yet: the values at the position. Rows of A: those of queries that
                    // see the key, or of the query itself. Then whoever reaches a touched row in further hops.
                    let rows: Vec<bool> = (0..n)
                        .map(|q| match tensor {
                            "q" => q == position,
                            "k" => edges[(q, position)],
                            _ => false,
                        })
                        .collect();
                    let own = |q: usize| tensor == "v" && q == position;
                    let mut touched: Vec<bool> = (0..n).map(own).collect();
                    for hop in 0..hops {
                        let restarts = factors.hops[hop].restart != 0.0;
                        touched = (0..n)
                            .map(|q| rows[q] || restarts && own(q) || (0..n).any(|k| edges[(q, k)] && touched[k]))
                            .collect();
                    }
                    for (q, &touched) in touched.iter().enumerate() {
                        let (a, b) = (found.out.slice(s![0, 0, q, ..]), before.out.slice(s![0, 0, q, ..]));
                        assert!(touched || near(a.iter(), b.iter()), "{} changed query {q}: {a} {b}", what());
                    }
                    let (a, b) = (found.out.slice(s![0, 1, .., ..]), before.out.slice(s![0, 1, .., ..]));
                    assert_eq!(a, b, "{} changed another head", what());
                }
            }
        }
    });
}

/// Equal within rounding: a block with a non-finite result is done again in another order of summation.
fn near<'a>(a: impl Iterator<Item = &'a f32>, b: impl Iterator<Item = &'a f32>) -> bool {
    a.zip(b).all(|(a, b)| (a - b).abs() <= 1e-5)
}

#[test]
fn nan_and_infinity_reach_those_that_may_see_them_in_one_hop() {
    poison(150, &[0, 30, 63, 64, 100, 149], &["{hops: 1}", "{hops: 1, alpha: 0.2}"]);
}

#[test]
fn nan_and_infinity_reach_those_that_may_see_them_in_three_hops() {
    poison(150, &[0, 70, 149], &["{hops: 3}", "{hops: 3, alpha: 0.2}"]);
}

#[test]
fn nan_everywhere_out_of_sight_is_not_seen() {
    // Everything that no query may attend to is NaN at once: keys and values from 90 on, also in gathered lists
    // and masked blocks that hold allowed keys beside them.
    let n = 150;
    for text in [
        "{all: [{where: \"k < 90\"}, causal]}",
        "{all: [{where: \"k % 5 != 0\"}, {window: {radius: 30}}]}",
        "{all: [{not: {global: {tokens: {every: 4}, axis: keys}}}, {global: {tokens: {random: {count: 30, seed: 1}}, axis: keys}}]}",
        "{all: [{where: \"k % 5 != 0\"}, {random: {keys_per_query: 6, seed: 2}}]}",
    ] {
        let spec = spec_of(text, 6, 5, "{hops: 1}");
        let seen: Vec<bool> = {
            let edges = allowed(&spec, n, 0);
            (0..n).map(|k| edges.column(k).iter().any(|&x| x)).collect()
        };
        assert!(seen.iter().any(|&x| !x));
        let mut tensors = Tensors::random(&spec, 1, n, 10);
        for k in (0..n).filter(|&k| !seen[k]) {
            tensors.k.slice_mut(s![.., .., k, ..]).fill(f32::NAN);
            tensors.v.slice_mut(s![.., .., k, ..]).fill(f32::INFINITY);
        }
        let pattern = pattern::resolve(&spec, n, n).expect("a pattern");
        let oracle = Oracle::new(&pattern, &spec, &tensors);
        assert!(oracle.out.iter().all(|x| x.is_finite()));
        for isa in families() {
            for strategy in strategies(&spec, n) {
                let found = tensors.run(&compile(&spec, n, &options(isa, Some(strategy))));
                oracle.check(&found, &|| format!("{text} {isa} {strategy}"));
            }
        }
    }
}

/// Six tokens in a window of one, computed on paper.
///
/// Width 1, scale 1, every query 1, keys ln w with w = 1 1 2 1 1 2: a score is ln w, its exponential w, and a
/// row of A is the weights in the window over their sum.
///
/// ```text
/// query  keys   weights  sum   row of A           V (values 4 8 0 4 12 6)
///   0    0 1    1 1       2    1/2 1/2            (4 + 8) / 2           = 6
///   1    0 1 2  1 1 2     4    1/4 1/4 1/2        4/4 + 8/4 + 0/2       = 3
///   2    1 2 3  1 2 1     4    1/4 1/2 1/4        8/4 + 0/2 + 4/4       = 3
///   3    2 3 4  2 1 1     4    1/2 1/4 1/4        0/2 + 4/4 + 12/4      = 4
///   4    3 4 5  1 1 2     4    1/4 1/4 1/2        4/4 + 12/4 + 6/2      = 7
///   5    4 5    1 2       3    1/3 2/3            12/3 + 2 · 6/3        = 8
/// ```
///
/// Two hops with alpha 1/2. Z_1 = A V / 2 + V / 2:
///
/// ```text
/// (6 + 4)/2 = 5   (3 + 8)/2 = 5.5   (3 + 0)/2 = 1.5   (4 + 4)/2 = 4   (7 + 12)/2 = 9.5   (8 + 6)/2 = 7
/// ```
///
/// A Z_1, then Z_2 = A Z_1 / 2 + V / 2:
///
/// ```text
/// 0   (5 + 5.5)/2              = 5.25     (5.25 + 4)/2   = 4.625
/// 1   5/4 + 5.5/4 + 1.5/2      = 3.375    (3.375 + 8)/2  = 5.6875
/// 2   5.5/4 + 1.5/2 + 4/4      = 3.125    (3.125 + 0)/2  = 1.5625
/// 3   1.5/2 + 4/4 + 9.5/4      = 4.125    (4.125 + 4)/2  = 4.0625
/// 4   4/4 + 9.5/4 + 7/2        = 6.875    (6.875 + 12)/2 = 9.4375
/// 5   9.5/3 + 14/3 = 23.5/3    = 7.8333   (23.5/3 + 6)/2 = 41.5/6 = 6.916667
/// ```
#[test]
fn six_tokens_by_hand() {
    let column = |values: [f32; 6]| Array4::from_shape_fn((1, 1, 6, 1), |(_, _, i, _)| values[i]);
    let weights = [1.0_f32, 1.0, 2.0, 1.0, 1.0, 2.0];
    let tensors =
        Tensors { q: column([1.0; 6]), k: column(weights.map(f32::ln)), v: column([4.0, 8.0, 0.0, 4.0, 12.0, 6.0]) };
    let text = "name: six\nhead_dim: 1\nscore: {scale: 1}\npattern: {window: {radius: 1}}\n";
    let cases = [
        ("diffusion={hops: 1}", [6.0, 3.0, 3.0, 4.0, 7.0, 8.0]),
        ("diffusion={hops: 2, alpha: 0.5}", [4.625, 5.6875, 1.5625, 4.0625, 9.4375, 41.5 / 6.0]),
    ];
    for (diffusion, expected) in cases {
        let spec = spec_with(text, &[diffusion]);
        for isa in families() {
            for strategy in strategies(&spec, 6) {
                let found = tensors.run(&compile(&spec, 6, &options(isa, Some(strategy))));
                let near = |found: &f32, expected: f32| (found - expected).abs() <= 2e-6 * expected.abs().max(1.0);
                assert!(found.out.iter().zip(expected).all(|(x, y)| near(x, y)), "{isa} {strategy} {}", found.out);
                let sums = [2.0_f32, 4.0, 4.0, 4.0, 4.0, 3.0];
                assert!(found.lse.iter().zip(sums).all(|(x, y)| near(x, y.ln())), "{isa} {strategy} {}", found.lse);
            }
        }
        let pattern = pattern::resolve(&spec, 6, 6).expect("a pattern");
        let oracle = Oracle::new(&pattern, &spec, &tensors);
        // ln 2 rounded to f32 is 1e-8 off.
        assert!(oracle.out.iter().zip(expected).all(|(x, y)| (x - f64::from(y)).abs() < 1e-6), "{}", oracle.out);
    }
}

#[test]
fn numbers_are_about_normal() {
    // The inputs of all these tests: a mistake here would make them all easier.
    let mut numbers = Numbers(1);
    let drawn: Vec<f32> = (0..10_000).map(|_| numbers.normal()).collect();
    let mean = drawn.iter().sum::<f32>() / 1e4;
    let variance = drawn.iter().map(|x| x * x).sum::<f32>() / 1e4;
    assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
}

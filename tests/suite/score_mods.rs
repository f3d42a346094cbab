//! Score mods through the whole compiler against the interpreter: every kind, alone and together, on patterns with
//! runs, gathered keys, permuted rows and scattered edges, by every tile family and strategy.

use crate::common::guarded::{Place, forward_with};
use crate::common::{MOD_INPUTS, Numbers, Tensors, compile, families, options, spec_with, strategies};
use hopweave::compiler::{self, Options, Stage};
use hopweave::plan::ModsBy;
use hopweave::spec::score::{self, SCORE_MODS};
use hopweave::spec::{Inputs, PatternSpec};
use hopweave::target::Isa;
use hopweave::{Error, interpreter, pattern, plan, program};
use ndarray::{Array4, ArrayD, ArrayViewD, IxDyn};
use proptest::prelude::*;

const PATTERNS: [&str; 5] = [
    "{window: {radius: 9}}",
    "causal",
    // Gathered keys and permuted rows.
    "{any: [{window: {radius: 3}}, {global: {tokens: {every: 37, offset: 5}}}]}",
    "{random: {keys_per_query: 3, seed: 4}}",
    // A row with edges and blocks, and rows without keys.
    "{all: [{any: [{window: {radius: 9}}, {random_cells: {count: 300, seed: 4}}]}, {not: {where: \"q % 50 == 7\"}}]}",
];

const MODS: [&str; 14] = [
    "{softcap: 2}",
    "alibi",
    "{alibi: {slopes: [0.3, -0.2]}}",
    "{bias: {input: rel, index: [h, \"q - k + n - 1\"]}}",
    "{bias: {input: rel, index: [\"1 - h\", \"k - q + n - 1\"]}}",
    "{bias: {input: key, index: [k]}}",
    "{bias: {input: table, index: [q, k]}}",
    "{bias: {input: small, index: [\"min(7, abs(q - k) // 5)\"]}}",
    "{expr: \"s + small[(q * 3 + k) % 8] - small[h]\"}",
    "{expr: \"if(q - k > 4 and not k < 10 or h == 1, s - 0.1 * (q - k), 0.5 * s + rel[h, k])\"}",
    "{expr: \"tanh(s) * sigmoid(2 * s) + log(1 + exp(s)) - sqrt(abs(s)) / 3\"}",
    "{expr: \"min(s, 1, k / n) + max(s, -0.5) ** 3 - floor(q / 7) % 3 + d / m\"}",
    "{expr: \"-key[k] * key[min(q, n - 1)] + s\"}",
    "{expr: \"s\"}",
];

fn spec(pattern: &str, mods: &str, diffusion: &str) -> PatternSpec {
    let text = format!(
        "name: mods\nheads: 2\nhead_dim: 8\nvalue_dim: 5\ninputs: {MOD_INPUTS}\npattern: {pattern}\n\
         score: {{mods: [{mods}]}}\ndiffusion: {diffusion}\n"
    );
    spec_with(&text, &[])
}

/// Random inputs for a spec.
fn tensors(spec: &PatternSpec, n: usize, seed: u64) -> Vec<(String, ArrayD<f32>)> {
    let mut numbers = Numbers(seed ^ 0x5eed);
    let mods = score::resolve(spec, n, n).unwrap_or_else(|error| panic!("{error}")).expect("mods");
    let tensor =
        |shape: &[usize], numbers: &mut Numbers| ArrayD::from_shape_simple_fn(IxDyn(shape), || numbers.normal());
    mods.inputs.iter().map(|input| (input.name.clone(), tensor(&input.shape, &mut numbers))).collect()
}

fn views(tensors: &[(String, ArrayD<f32>)]) -> Inputs<'_> {
    tensors.iter().fold(Inputs::none(), |inputs, (name, tensor)| inputs.with(name.as_str(), tensor.view()))
}

fn check(spec: &PatternSpec, n: usize, options: &Options, what: &str) {
    // Tensors and inputs end, or start, at a page that may not be touched.
    let given = tensors(spec, n, n as u64);
    let place = if n.is_multiple_of(2) { Place::End } else { Place::Start };
    let guarded: Vec<_> = given.iter().map(|(_, tensor)| place.buffer(tensor.as_slice().expect("C order"))).collect();
    let inputs = given.iter().zip(&guarded).fold(Inputs::none(), |inputs, ((name, tensor), buffer)| {
        inputs.with(name.as_str(), ArrayViewD::from_shape(tensor.raw_dim(), buffer).expect("a view"))
    });
    let Tensors { q, k, v } = Tensors::random(spec, 1, n, n as u64 + 1);
    let resolved = pattern::resolve(spec, n, n).expect("a pattern");
    let exact = interpreter::run_with(&resolved, spec, q.view(), k.view(), v.view(), &inputs).expect("an oracle");
    let compiled = compile(spec, n, options);
    let found = forward_with(&compiled, [&q, &k, &v], &inputs, place);
    // Scores of magnitude ten, of which f32 holds 1e-6, end up in exponents.
    let largest = exact.out.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
    for (&x, &y) in found.out.iter().zip(&exact.out) {
        assert!((f64::from(x) - y).abs() <= 1e-5 * largest, "{what}: {x} instead of {y}");
    }
    for (&x, &y) in found.lse.iter().zip(&exact.lse) {
        let near = (f64::from(x) - y).abs() <= 2e-6 * y.abs().max(5.0);
        assert!(near || f64::from(x) == y, "{what}: log-sum-exp {x} instead of {y}");
    }
}

#[test]
fn every_mod_conforms() {
    for mods in MODS {
        for pattern in PATTERNS {
            for diffusion in ["{hops: 1}", "{hops: 2, alpha: 0.2}"] {
                let spec = spec(pattern, mods, diffusion);
                for isa in families() {
                    for n in [130, 131] {
                        for strategy in strategies(&spec, n) {
                            let what = format!("{mods} on {pattern}, {diffusion}, {isa}, {strategy}");
                            check(&spec, n, &options(isa, Some(strategy)), &format!("{what}, n {n}"));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn all_mods_together_conform_at_odd_lengths_and_without_passes() {
    // Without the cube, which makes of a score of ten one of a thousand, and of its last digit a thousandth.
    let mods: Vec<&str> = MODS.into_iter().filter(|mods| !mods.contains("**")).collect();
    let mods = mods.join(", ");
    let without = ["fold_scale_into_queries", "fuse_mask_and_rowmax_into_sddmm", "specialise_full_blocks"];
    for n in [0, 1, 2, 63, 64, 65, 200] {
        for pattern in PATTERNS {
            let spec = spec(pattern, &mods, "{hops: 1}");
            for isa in families() {
                for strategy in strategies(&spec, n) {
                    check(&spec, n, &options(isa, Some(strategy)), &format!("n {n} {pattern} {isa} {strategy}"));
                }
            }
        }
    }
    for pass in without {
        for mods in [MODS[0], MODS[1], &mods] {
            let spec = spec(PATTERNS[2], mods, "{hops: 1}");
            for isa in families() {
                let options = Options { without: vec![pass.to_string()], ..options(isa, None) };
                check(&spec, 131, &options, &format!("{mods} without {pass}, {isa}"));
            }
        }
    }
}

#[test]
fn common_mods_have_tiles_and_others_code() {
    let by = |mods: &str, isa| {
        let compiled = compile(&spec("causal", mods, "{hops: 1}"), 100, &options(isa, None));
        compiled.kernel.plan().mods.as_ref().expect("mods").by
    };
    for isa in families() {
        let (cap, slopes) = match isa {
            Isa::Portable => (ModsBy::Code, ModsBy::Code),
            _ => (ModsBy::Softcap, ModsBy::Alibi),
        };
        assert_eq!([by("{softcap: 3}", isa), by("alibi", isa)], [cap, slopes]);
        assert_eq!(by("{softcap: 3}, alibi", isa), ModsBy::Code);
    }
}

#[test]
fn steep_slopes_make_no_subnormal_products() {
    // Probabilities from 1 down to nothing in a row: what is flushed must not be missed.
    let spec = spec("{window: {radius: 60}}", "{alibi: {slopes: [1.7, -3]}}", "{hops: 2, alpha: 0.1}");
    for isa in families() {
        check(&spec, 300, &options(isa, None), isa.name());
    }
}

#[test]
fn one_case_by_hand() {
    // Scores 0, so only the bias weighs: query 0 sees keys 0 and 1 with weights 1 : 3, query 1 with 1 : 1.
    let text = "name: hand\nhead_dim: 1\ninputs: {rel: {shape: [3]}}\npattern: full\n\
                score: {mods: [{bias: {input: rel, index: [\"k - q + 1\"]}}]}\n";
    let rel = ArrayD::from_shape_vec(IxDyn(&[3]), vec![0.0, 0.0, 3.0_f32.ln()]).expect("three");
    let inputs = Inputs::none().with("rel", rel.view());
    let zeros = Array4::<f32>::zeros((1, 1, 2, 1));
    let v = Array4::from_shape_vec((1, 1, 2, 1), vec![0.0, 4.0]).expect("two");
    for isa in families() {
        let compiled = compile(&spec_with(text, &[]), 2, &options(isa, None));
        let found = compiled.kernel.forward_with(zeros.view(), zeros.view(), v.view(), &inputs).expect("a result");
        let near = |x: f32, y: f32| (x - y).abs() < 1e-6;
        assert!(near(found.out[(0, 0, 0, 0)], 3.0) && near(found.out[(0, 0, 1, 0)], 2.0), "{isa}: {}", found.out);
        assert!(near(found.lse[(0, 0, 0)], 4.0_f32.ln()) && near(found.lse[(0, 0, 1)], 2.0_f32.ln()));
    }
}

#[test]
fn masked_pairs_do_not_contribute_whatever_their_mod_gives() {
    // NaN and infinities behind the mask: in an input, and out of a function.
    let text = "name: nan\nheads: 2\nhead_dim: 8\ninputs: {rel: {shape: [\"2*n - 1\"]}}\npattern: causal\n\
                score: {mods: [{bias: {input: rel, index: [\"q - k + n - 1\"]}}, {expr: \"s + if(k > q, exp(9999 * k), 0)\"}]}\n";
    let n = 100;
    let spec = spec_with(text, &[]);
    // Negative distances are masked.
    let rel = ArrayD::from_shape_fn(IxDyn(&[2 * n - 1]), |at| if at[0] < n - 1 { f32::NAN } else { 0.5 });
    let inputs = Inputs::none().with("rel", rel.view());
    let Tensors { q, k, v } = Tensors::random(&spec, 1, n, 3);
    for isa in families() {
        for strategy in strategies(&spec, n) {
            let compiled = compile(&spec, n, &options(isa, Some(strategy)));
            let found = compiled.kernel.forward_with(q.view(), k.view(), v.view(), &inputs).expect("a result");
            assert!(found.out.iter().chain(&found.lse).all(|x| x.is_finite()), "{isa} {strategy}");
        }
    }
}

#[test]
fn wrong_inputs_are_refused_by_name_and_line() {
    let spec = spec("causal", MODS[3], "{hops: 1}");
    let n = 10;
    let compiled = compile(&spec, n, &options(Isa::Portable, None));
    let given = tensors(&spec, n, 1);
    let Tensors { q, k, v } = Tensors::random(&spec, 1, n, 3);
    let run = |inputs: &Inputs<'_>| compiled.kernel.forward_with(q.view(), k.view(), v.view(), inputs);
    let oracle = |inputs: &Inputs<'_>| {
        let resolved = pattern::resolve(&spec, n, n).expect("a pattern");
        interpreter::run_with(&resolved, &spec, q.view(), k.view(), v.view(), inputs)
    };
    assert!(run(&views(&given)).is_ok() && oracle(&views(&given)).is_ok());
    assert!(compiled.kernel.forward(q.view(), k.view(), v.view()).is_err());
    let wide = ArrayD::zeros(IxDyn(&[2, 20]));
    let turned = ArrayD::<f32>::zeros(IxDyn(&[19, 2]));
    let cases = [
        (Inputs::none(), "no tensor"),
        (views(&given).with("real", wide.view()), "input `real`: expected one of the spec's inputs, `rel`"),
        (
            views(&given).with("rel", wide.view()),
            "input `rel` (line 5 of the spec): expected shape [2, 19], found [2, 20]",
        ),
        (views(&given).with("rel", turned.t().into_dyn()), "in C order"),
    ];
    for (inputs, expected) in cases {
        for error in [run(&inputs).unwrap_err(), oracle(&inputs).unwrap_err()] {
            assert!(matches!(error, Error::Shape { .. }));
            let message = error.to_string().replace("expected shape one of", "expected one of");
            assert!(message.contains(expected), "{message}");
        }
    }
}

#[test]
fn examples_of_the_table_are_read() {
    for def in SCORE_MODS {
        let text = format!(
            "name: x\nheads: 2\nhead_dim: 4\ninputs: {{rel: {{shape: [heads, \"2*n - 1\"]}}}}\npattern: causal\n\
             score: {{mods: [{}]}}\n",
            if def.example.contains(": ") { format!("{{{}}}", def.example) } else { def.example.to_string() }
        );
        let spec = spec_with(&text, &[]);
        let mods = score::resolve(&spec, 64, 64).unwrap_or_else(|error| panic!("{error}")).expect("a mod");
        assert_eq!(mods.mods[0].name(), def.name);
        let again = hopweave::spec::parse(&spec.print(), "<printed>").unwrap_or_else(|error| panic!("{error}"));
        assert!(spec.same(&again), "{}", spec.print());
    }
}

/// Terms over everything that mods may read, without what jumps when a score moves a little.
fn term() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        Just("s".to_string()),
        Just("q".to_string()),
        Just("k".to_string()),
        Just("h".to_string()),
        Just("n".to_string()),
        (0..30_u32).prop_map(|x| format!("{}", f64::from(x) / 10.0)),
        Just("rel[h, q - k + n - 1]".to_string()),
        Just("rel[1 - h, k]".to_string()),
        (1..9_u32, 1..9_u32).prop_map(|(a, b)| format!("small[abs(q * {a} - k * {b}) // 3 % 8]")),
        (1..9_u32).prop_map(|a| format!("small[min(max(k - q, 0), 7 * {a}) // {a}]")),
        Just("table[q, n - 1 - k]".to_string()),
    ];
    let grown = leaf.prop_recursive(4, 16, 3, |inner| {
        let two = || (inner.clone(), inner.clone());
        prop_oneof![
            two().prop_map(|(a, b)| format!("({a} + {b})")),
            two().prop_map(|(a, b)| format!("({a} - {b})")),
            two().prop_map(|(a, b)| format!("tanh({a}) * tanh({b})")),
            inner.clone().prop_map(|a| format!("-{a} / 7")),
            inner.clone().prop_map(|a| format!("sigmoid({a})")),
            inner.clone().prop_map(|a| format!("log(1 + abs({a}))")),
            inner.clone().prop_map(|a| format!("exp(-abs({a}))")),
            inner.clone().prop_map(|a| format!("sqrt(1 + ({a}) ** 2)")),
            two().prop_map(|(a, b)| format!("min({a}, {b}, 3)")),
            two().prop_map(|(a, b)| format!("max({a}, {b})")),
            (two(), 0..20_u32).prop_map(|((a, b), x)| format!("if(q - k < {x} and not k == {x}, {a}, {b})")),
            (two(), 0..20_u32).prop_map(|((a, b), x)| format!("if(q % 7 >= 3 or k // 3 != {x}, {a}, {b})")),
        ]
    });
    // What grows with positions is brought down, so that the softmax stays a sum of several keys.
    grown.prop_map(|term| format!("3 * tanh(({term}) / 20) + s")).boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_terms_conform(term in term(), pattern in 0..PATTERNS.len(), n in 1..150_usize) {
        let spec = spec(PATTERNS[pattern], &format!("{{expr: \"{term}\"}}"), "{hops: 1}");
        for isa in families() {
            check(&spec, n, &options(isa, None), &format!("{term} on {} at {n}, {isa}", PATTERNS[pattern]));
        }
        // Every stage that holds mods reads back.
        let emit = |stage| compiler::emit(&spec, n, n, &options(Isa::Portable, None), (stage, false)).expect("a text");
        for stage in [Stage::Schedule, Stage::Fused] {
            let printed = emit(stage);
            let read = program::parse(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
            prop_assert_eq!(read.print(), printed);
        }
        let printed = emit(Stage::Plan);
        let read = plan::parse(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
        let compiled = compile(&spec, n, &options(Isa::Portable, None));
        prop_assert_eq!(&read, &**compiled.kernel.plan());
        prop_assert_eq!(read.print(), printed);
        let again = hopweave::spec::parse(&spec.print(), "<printed>").unwrap_or_else(|error| panic!("{error}"));
        prop_assert!(spec.same(&again));
    }
}

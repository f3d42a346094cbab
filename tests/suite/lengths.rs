//! Lengths that differ: another number of queries than keys, decoding, sequences with padding, segments known at run
//! time. Everything against the interpreter, on every tile family.

use crate::common::guarded::{Guarded, Place};
use crate::common::{
    Oracle, Tensors, families, fitting_length, options, pattern_files, small_spec, spec_of, spec_with, strategies_at,
};
use hopweave::compiler;
use hopweave::operator::{Arguments, Facts, Operator};
use hopweave::passes::Strategy;
use hopweave::pattern;
use hopweave::spec::PatternSpec;
use ndarray::{Array2, Array4, s};

const MIXED: &str = "{any: [{window: {radius: 9}}, {global: {tokens: {every: 37, offset: 5}}}, \
                     {random: {keys_per_query: 3, seed: 4}}]}";

/// Kernels of a spec at lengths that differ, on every family.
fn conforms(spec: &PatternSpec, lengths: (usize, usize), what: &str) {
    let (q_len, kv_len) = lengths;
    let tensors = Tensors::at(spec, 2, lengths, (q_len * 31 + kv_len) as u64);
    let pattern = pattern::resolve(spec, q_len, kv_len).unwrap_or_else(|error| panic!("{what}\n{error}"));
    let oracle = Oracle::new(&pattern, spec, &tensors);
    for isa in families() {
        for strategy in strategies_at(spec, lengths) {
            let compiled = compiler::compile(spec, q_len, kv_len, &options(isa, Some(strategy)));
            let compiled = compiled.unwrap_or_else(|error| panic!("{what} {q_len} × {kv_len}\n{error}"));
            oracle.check(&tensors.run(&compiled), &|| format!("{what} {q_len} × {kv_len} {isa} {strategy}"));
        }
    }
}

#[test]
fn pattern_files_conform_with_other_numbers_of_queries() {
    let mut cases = 0;
    for (name, text) in pattern_files() {
        for align in ["end", "start"] {
            for (q_len, kv_len) in [(1, 200), (2, 65), (5, 130), (70, 200), (130, 64), (64, 1)] {
                let spec = small_spec(&text, &["head_dim=8", &format!("align={align}"), "diffusion={hops: 1}"]);
                let kv_len = fitting_length(&spec, kv_len);
                conforms(&spec, (q_len, kv_len), &format!("{name} align {align}"));
                cases += 1;
            }
        }
    }
    assert_eq!(cases, pattern_files().len() * 12);
}

#[test]
fn decoding_conforms_with_grouped_heads() {
    for (heads, kv_heads) in [(2, 2), (6, 2), (8, 1)] {
        for (q_len, kv_len) in [(1, 1), (1, 63), (1, 3000), (2, 2500), (3, 5000), (9, 1300)] {
            for pattern in ["causal", "full", "{window: {radius: 700}}", MIXED] {
                let spec = spec_of(pattern, 16, 9, "{hops: 1}");
                let spec = spec_with(&spec.print(), &[&format!("heads={heads}"), &format!("kv_heads={kv_heads}")]);
                conforms(&spec, (q_len, kv_len), &format!("{pattern} {heads} heads over {kv_heads}"));
            }
        }
    }
}

/// `flash` computes the edges of 64 block rows together.
#[test]
fn edges_of_more_than_one_batch_conform() {
    let pattern = "{any: [{random: {keys_per_query: 5, seed: 4}}, {global: {tokens: {first: 9}, axis: keys}}]}";
    conforms(&spec_of(pattern, 4, 4, "{hops: 1}"), (4200, 70), "edges in two batches");
}

#[test]
fn hops_need_as_many_queries_as_keys() {
    for diffusion in ["{hops: 2, alpha: 0}", "{hops: 1, alpha: 0.1}", "{hops: 0}"] {
        let spec = spec_of("full", 4, 4, diffusion);
        assert!(
            compiler::compile(&spec, 3, 5, &crate::common::options(hopweave::target::Isa::Portable, None)).is_err()
        );
    }
}

/// What the interpreter makes of each batch element with its facts.
fn check_elements(spec: &PatternSpec, tensors: &Tensors, arguments: &Arguments<'_>, what: &str) {
    let (q_len, kv_len) = (tensors.q.dim().2, tensors.k.dim().2);
    let unbound = pattern::resolve(spec, q_len, kv_len).expect("a pattern");
    let facts = arguments.facts(tensors.q.dim().0, &unbound, spec.kv_heads).expect("facts");
    let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(|tensor| Guarded::new(tensor, Place::End));
    for isa in families() {
        let mut served = 0;
        for &strategy in Strategy::ALL {
            let operator = Operator::new(spec.clone(), q_len, kv_len, options(isa, Some(strategy)));
            let found = operator.and_then(|operator| operator.forward(q.view(), k.view(), v.view(), arguments));
            let found = match found {
                // What is legal depends on the element that the pattern is bound to.
                Err(hopweave::Error::Unsupported { .. }) if strategy != Strategy::RESIDENT => continue,
                found => found.unwrap_or_else(|error| panic!("{what}: {error}")),
            };
            served += 1;
            for (b, facts) in facts.iter().enumerate() {
                let element = |x: &Array4<f32>| x.slice(s![b..=b, .., .., ..]).to_owned();
                let mut clean = Tensors { q: element(&tensors.q), k: element(&tensors.k), v: element(&tensors.v) };
                let bound = facts.bind(&unbound).expect("a bound pattern");
                // Padding must be nothing to the oracle as well.
                clean.k.mapv_inplace(|x| if x.is_nan() { 0.0 } else { x });
                clean.v.mapv_inplace(|x| if x.is_nan() { 0.0 } else { x });
                let one = hopweave::runtime::Output {
                    out: element(&found.out),
                    lse: found.lse.slice(s![b..=b, .., ..]).to_owned(),
                };
                Oracle::new(&bound, spec, &clean).check(&one, &|| format!("{what} element {b} {isa} {strategy}"));
            }
        }
        assert!(served >= 2, "{what}: {served} strategies");
    }
}

#[test]
fn keys_beyond_their_length_are_never_read() {
    let lengths = [130, 0, 1, 64, 77, 130];
    for (pattern, diffusion) in [
        ("full", "{hops: 1}"),
        ("causal", "{hops: 1}"),
        (MIXED, "{hops: 1}"),
        (MIXED, "{hops: 3, alpha: 0.1}"),
        ("{window: {radius: 6, dilation: 3}}", "{hops: 1}"),
        ("causal", "{hops: 0}"),
    ] {
        let spec = spec_of(pattern, 8, 5, diffusion);
        let mut tensors = Tensors::random(&spec, lengths.len(), 130, 5);
        for (b, &length) in lengths.iter().enumerate() {
            // NaN would show itself if anything of it were read.
            tensors.k.slice_mut(s![b, .., length as usize.., ..]).fill(f32::NAN);
            tensors.v.slice_mut(s![b, .., length as usize.., ..]).fill(f32::NAN);
        }
        let arguments = Arguments { key_lengths: Some(&lengths), ..Arguments::default() };
        check_elements(&spec, &tensors, &arguments, &format!("{pattern} {diffusion}"));
    }
}

#[test]
fn segments_are_known_at_run_time() {
    let ids = |rows: &[&[(i32, usize)]]| {
        let row = |runs: &&[(i32, usize)]| runs.iter().flat_map(|&(id, len)| std::iter::repeat_n(id, len)).collect();
        let rows: Vec<Vec<i32>> = rows.iter().map(row).collect();
        Array2::from_shape_vec((rows.len(), 150), rows.concat()).expect("ids")
    };
    let ids = ids(&[&[(0, 150)], &[(0, 3), (1, 90), (7, 57)], &[(2, 149), (3, 1)], &[(0, 3), (1, 90), (7, 57)]]);
    let lengths = [150, 140, 150, 20];
    for pattern in [
        "{segments: {input: docs}}",
        "{all: [causal, {segments: {input: docs}}]}",
        "{any: [{sink: 4}, {all: [{window: {radius: 20}}, {segments: {input: docs}}]}]}",
        "{not: {segments: {input: docs}}}",
    ] {
        let spec = spec_of(pattern, 8, 5, "{hops: 1}");
        let tensors = Tensors::random(&spec, 4, 150, 6);
        let mut arguments = Arguments { segments: vec![("docs".into(), ids.view())], ..Arguments::default() };
        check_elements(&spec, &tensors, &arguments, pattern);
        arguments.key_lengths = Some(&lengths);
        check_elements(&spec, &tensors, &arguments, &format!("{pattern} with padding"));
    }
}

#[test]
fn what_does_not_fit_at_run_time_is_refused_by_name() {
    let spec = spec_of("{segments: {input: docs}}", 4, 4, "{hops: 1}");
    let isa = hopweave::target::Isa::Portable;
    let operator = Operator::new(spec.clone(), 10, 10, options(isa, None)).expect("an operator");
    let tensors = Tensors::random(&spec, 2, 10, 1);
    let run = |arguments: &Arguments<'_>| {
        let Tensors { q, k, v } = &tensors;
        match operator.forward(q.view(), k.view(), v.view(), arguments) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    };
    let ids = |first: [i32; 10]| Array2::from_shape_vec((2, 10), [first, [0; 10]].concat()).expect("ids");
    let good = ids([0; 10]);
    let with = |ids: &Array2<i32>, lengths: Option<&[i64]>| {
        run(&Arguments { key_lengths: lengths, segments: vec![("docs".into(), ids.view())], ..Arguments::default() })
    };
    for (message, found) in [
        ("docs: is not given", run(&Arguments::default())),
        ("at 3 is 1, after 2", with(&ids([0, 0, 2, 1, 2, 2, 2, 2, 2, 2]), None)),
        ("at 0 is -1", with(&ids([-1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None)),
        ("kv_len 10", with(&Array2::zeros((2, 9)), None)),
        ("[batch 2]", with(&good, Some(&[3]))),
        ("is -4", with(&good, Some(&[10, -4]))),
        ("is 11; expected at most 10", with(&good, Some(&[11, 10]))),
        ("does not name", run(&Arguments { segments: vec![("other".into(), good.view())], ..Arguments::default() })),
    ] {
        assert!(found.contains(message), "{found}");
    }
}

#[test]
fn kernels_are_kept_by_what_they_were_made_for() {
    let spec = spec_of("causal", 4, 4, "{hops: 1}");
    let isa = hopweave::target::Isa::Portable;
    let operator = Operator::new(spec, 40, 40, options(isa, None)).expect("an operator");
    let facts = |length: i64| -> Facts {
        let lengths = [length];
        Arguments { key_lengths: Some(&lengths), ..Arguments::default() }
            .facts(1, operator.pattern(), 4)
            .expect("facts")
            .remove(0)
    };
    let first = operator.kernel(&facts(7)).expect("a kernel");
    assert!(std::sync::Arc::ptr_eq(&first, &operator.kernel(&facts(7)).expect("a kernel")));
    // All keys are no fact: the operator's own kernel serves.
    assert!(std::sync::Arc::ptr_eq(
        &operator.kernel(&facts(40)).expect("a kernel"),
        &operator.kernel(&Facts::default()).expect("a kernel")
    ));
    assert!(!std::sync::Arc::ptr_eq(&first, &operator.kernel(&facts(8)).expect("a kernel")));
}

#[test]
fn decoding_shares_rows_and_cuts_keys() {
    // Heads of a group stand in one row; few heads over many keys are cut into parts.
    let plan = |pattern: &str, heads: usize, kv_heads: usize, kv_len: usize| {
        let spec = spec_of(pattern, 8, 8, "{hops: 1}");
        let spec = spec_with(&spec.print(), &[&format!("heads={heads}"), &format!("kv_heads={kv_heads}")]);
        let compiled = compiler::compile(&spec, 1, kv_len, &options(hopweave::target::Isa::Portable, None));
        let plan = compiled.expect("a kernel").kernel.plan().clone();
        (plan.stack, plan.shape.heads, plan.shape.q_len, plan.parts)
    };
    assert_eq!(plan("full", 12, 12, 20_000), (1, 12, 1, 1));
    assert_eq!(plan("full", 12, 2, 20_000), (6, 2, 6, 4));
    assert_eq!(plan("causal", 1, 1, 50_000), (1, 1, 1, 8));
    assert_eq!(plan("causal", 1, 1, 5_000), (1, 1, 1, 1));
    // Heads with random keys of their own do not share a row.
    assert_eq!(plan("{random: {keys_per_query: 9, seed: 1, per_head: true}}", 4, 1, 100).0, 1);
    for (heads, kv_heads) in [(4, 1), (12, 2), (1, 1), (3, 3)] {
        for pattern in
            ["full", "{any: [{sink: 3}, {window: {left: 9000, right: 0}}, {random: {keys_per_query: 40, seed: 2}}]}"]
        {
            let spec = spec_of(pattern, 16, 9, "{hops: 1}");
            let spec = spec_with(&spec.print(), &[&format!("heads={heads}"), &format!("kv_heads={kv_heads}")]);
            conforms(&spec, (1, 20_011), &format!("{pattern} {heads} heads over {kv_heads}"));
        }
    }
}

#[test]
fn score_mods_know_positions_in_any_order_and_at_any_alignment() {
    // Rows by residue class, parts of a union, gathered globals, queries that stand at the end.
    let score = "score={mods: [alibi, {expr: \"s + 0.01 * (k - 2 * q) + 0.1 * h\"}]}";
    for pattern in [
        "{window: {radius: 9, dilation: 4}}",
        "{all: [causal, {any: [{window: {left: 20, right: 0}}, {strided: {step: 13, mode: diagonal}}]}]}",
        "{any: [{axial: {shape: [20, 16], axes: [0]}}, {axial: {shape: [20, 16], axes: [1]}}]}",
        MIXED,
    ] {
        for (lengths, align) in [((320, 320), "end"), ((77, 320), "end"), ((77, 320), "start"), ((1, 320), "end")] {
            let spec = spec_of(pattern, 8, 5, "{hops: 1}");
            let spec = spec_with(&spec.print(), &[&format!("align={align}"), score]);
            assert_eq!(spec.mods.len(), 2);
            conforms(&spec, lengths, &format!("{pattern} with mods, align {align}"));
        }
    }
}

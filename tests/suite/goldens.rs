//! The text of every stage, and what every pass changes, against files in `goldens/`.
//!
//! `HOPWEAVE_BLESS=1` shows what changed and writes the files anew.

use std::collections::BTreeSet;

use crate::common::{golden, options, spec_with};
use hopweave::compiler::{self, Stage};
use hopweave::passes::{self, PASSES, RECIPES, Strategy};
use hopweave::plan::{self, Model, PlanOptions};
use hopweave::program::{self, KnownReach, Operation, Program};
use hopweave::spec::PatternSpec;
use hopweave::target::Isa;
use hopweave::{codegen, mask, pattern};

const WINDOW: &str = "name: window\nhead_dim: 16\npattern: {window: {radius: 20}}\n";
const CAUSAL: &str = "name: causal\nheads: 2\nhead_dim: 8\nvalue_dim: 5\npattern: causal\n";
const GLOBALS: &str = "name: globals\nhead_dim: 8\npattern:\n  any:\n    - window: {radius: 8}\n    \
                       - global: {tokens: {random: {count: 5, seed: 3}}}\n";
const DIFFUSER: &str = "name: diffuser\nhead_dim: 8\npattern:\n  any:\n    - window: {radius: 8}\n    \
                        - random: {keys_per_query: 2, seed: 1}\ndiffusion: {hops: 5, alpha: 0.1}\n";

const MODS: &str = "name: mods\nheads: 2\nhead_dim: 8\ninputs: {rel: {shape: [heads, \"2*n - 1\"]}}\npattern: causal\n\
                    score:\n  mods:\n    - softcap: 20\n    - alibi\n    \
                    - bias: {input: rel, index: [h, \"q - k + n - 1\"]}\n    \
                    - expr: \"if(q - k < 8 and not k == 0, s, s - 0.1 * rel[h, k])\"\n";

const GRID: &str = "name: grid\nhead_dim: 8\npattern: {grid: {shape: [12, 12], kernel: [5, 5]}}\n";

const ENDLESS: &str = "name: endless\nhead_dim: 8\npattern: {window: {left: 70, right: 0}}\n\
                       diffusion: {hops: all, alpha: {input: a}}\n";
const LISTED: &str = "name: listed\nhead_dim: 8\npattern: {window: {radius: 8}}\n\
                      diffusion: {hops: [{}, {pattern: {chunk: {size: 32}}}, {}], alpha: {input: a}}\n";

/// Spec, length.
const CASES: [(&str, usize); 8] = [
    (WINDOW, 200),
    (CAUSAL, 130),
    (GLOBALS, 150),
    (DIFFUSER, 100),
    (GRID, 144),
    (MODS, 70),
    (ENDLESS, 140),
    (LISTED, 100),
];

/// Which spec each pass has something to do on.
const PASS_CASES: [(&str, &str, usize); 6] = [
    // Between the two edges of this band stand 9 keys that every query of the block may see.
    ("coalesce_adjacent_blocks", "name: band\nhead_dim: 4\npattern: {window: {radius: 36}}\n", 200),
    ("gather_isolated_keys", GLOBALS, 150),
    ("specialise_full_blocks", CAUSAL, 130),
    ("fold_scale_into_queries", CAUSAL, 130),
    ("fuse_mask_and_rowmax_into_sddmm", CAUSAL, 130),
    ("fold_restart_into_spmm", DIFFUSER, 100),
];

#[test]
fn every_stage_has_its_text() {
    for (text, n) in CASES {
        let spec = spec_with(text, &[]);
        for stage in [Stage::Pattern, Stage::Mask, Stage::Schedule, Stage::Fused, Stage::Plan] {
            // Planning asks nothing of the CPU: the texts are the same on every machine.
            let printed = compiler::emit(&spec, n, n, &options(Isa::Avx512, None), (stage, false));
            let printed = printed.unwrap_or_else(|error| panic!("{stage} of {}: {error}", spec.name));
            golden(&format!("goldens/{}.{stage}.txt", spec.name), &printed);
        }
    }
}

#[test]
fn stages_of_training_have_their_texts() {
    for (text, n) in [(CAUSAL, 130), (DIFFUSER, 100), (MODS, 70), (ENDLESS, 140), (LISTED, 100)] {
        let spec = spec_with(text, &[]);
        for stage in [Stage::Schedule, Stage::Fused, Stage::Plan] {
            let printed = compiler::emit(&spec, n, n, &options(Isa::Avx512, None), (stage, true));
            let printed = printed.unwrap_or_else(|error| panic!("{stage} of {}: {error}", spec.name));
            golden(&format!("goldens/{}.training.{stage}.txt", spec.name), &printed);
        }
    }
}

#[test]
fn texts_of_training_are_read_back() {
    for (text, n) in CASES {
        let spec = spec_with(text, &[]);
        for dropout in [false, true] {
            if dropout && text == ENDLESS {
                continue;
            }
            let derived = program::derive_gradient(built(&spec, n), dropout).expect("a gradient");
            for program in [derived.clone(), passes::run(derived, &[]).expect("passes")] {
                let program = program::verify(program).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(program::parse(&program.print()).expect("a program"), *program, "{}", spec.name);
                for &strategy in Strategy::ALL.iter().chain(Strategy::TRAINING) {
                    let reach = KnownReach::new(&program);
                    let nest = passes::apply(&program, strategy, &[], None, &reach);
                    let serves = Strategy::TRAINING.contains(&strategy);
                    assert_eq!(nest.is_ok(), serves, "{} {strategy}", spec.name);
                    let Ok((body, _)) = nest else { continue };
                    let nested = program::verify(Program { body, ..(*program).clone() });
                    let nested = nested.unwrap_or_else(|error| panic!("{} {strategy}: {error}", spec.name));
                    let options = PlanOptions { strategy, ..PlanOptions::default() };
                    let plan = plan::build(&nested, Isa::Avx512, options).unwrap_or_else(|error| panic!("{error}"));
                    let read = plan::parse(&plan.print()).and_then(plan::verify).expect("a plan");
                    assert_eq!(read, plan, "{} {strategy}", spec.name);
                }
            }
        }
    }
}

/// What the verifier says when an operation of the gradient is left out, doubled, or done before one that it reads.
#[test]
fn broken_gradients_are_refused() {
    let derived = program::derive_gradient(built(&spec_with(MODS, &[]), 70), true).expect("a gradient");
    program::verify(derived.clone()).expect("a right program");
    let reads =
        |operation: &Operation, of: &Operation| operation.op.reads().iter().any(|(id, _)| of.results.contains(id));
    let mut refused = 0;
    for at in 0..derived.body.loops.len() {
        let mut doubled = derived.clone();
        doubled.body.loops.insert(at, derived.body.loops[at].clone());
        assert!(program::verify(doubled).is_err(), "operation {at} twice");
        let mut without = derived.clone();
        without.body.loops.remove(at);
        assert!(program::verify(without).is_err(), "without operation {at}");
        let operation = |at: usize| &derived.body.loops[at].stages[0].ops[0];
        if at > 0 && reads(operation(at), operation(at - 1)) {
            let mut moved = derived.clone();
            moved.body.loops.swap(at - 1, at);
            assert!(program::verify(moved).is_err(), "operations {} and {at} swapped", at - 1);
            refused += 1;
        }
    }
    assert!(refused > 10, "{refused} operations read the one before");
}

/// What fuzzing of stages begins with are these texts, as stages write them today.
#[test]
fn seeds_of_the_fuzzer_are_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/ir");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).expect("seeds") {
        let path = entry.expect("an entry").path();
        let seed = std::fs::read_to_string(&path).expect("a text");
        let (stage, text) = seed.split_at(1);
        let found = match stage {
            "0" => pattern::parse_text(text).map(|pattern| pattern.print()),
            "1" => mask::parse(text).map(|mask| mask.print()),
            "2" => program::parse(text).map(|program| program.print()),
            _ => plan::parse(text).map(|plan| plan.print()),
        };
        assert_eq!(found.unwrap_or_else(|error| panic!("{}: {error}", path.display())), text);
        read += 1;
    }
    assert!(read > 20, "{read} seeds");
}

#[test]
fn kernels_have_their_clif() {
    // Not this machine's settings, and no CPU features: calling convention and pointers are all that a kernel's
    // text depends on.
    let flags = cranelift_codegen::settings::Flags::new(cranelift_codegen::settings::builder());
    let isa = cranelift_codegen::isa::lookup_by_name("x86_64-unknown-linux-gnu")
        .map(|builder| builder.finish(flags).expect("an x86-64 target"));
    let Ok(isa) = isa else {
        eprintln!("skipped: CLIF goldens, whose target x86-64 this build of Cranelift lacks");
        return;
    };
    // One of each strategy: every change of code generation rewrites them.
    for (text, n) in [(WINDOW, 200), (DIFFUSER, 100)] {
        let spec = spec_with(text, &[]);
        let lowered = codegen::lower(planned(&spec, n), &*isa);
        let functions = lowered.functions().iter();
        let printed: String = functions.map(|lowered| format!("{}\n", lowered.function.display())).collect();
        golden(&format!("goldens/{}.clif", spec.name), &printed);
    }
}

#[test]
fn every_pass_has_its_before_and_after() {
    let cases: Vec<&str> = PASS_CASES.iter().map(|(pass, _, _)| *pass).collect();
    assert!(PASSES.iter().all(|pass| cases.contains(&pass.name)), "a pass without a case in PASS_CASES");
    for (name, text, n) in PASS_CASES {
        let index = PASSES.iter().position(|pass| pass.name == name).expect("a pass of this name");
        let mut program = built(&spec_with(text, &[]), n);
        PASSES[..index].iter().for_each(|pass| (pass.run)(&mut program));
        let before = program.print();
        (PASSES[index].run)(&mut program);
        let after = program.print();
        assert_ne!(before, after, "{name} changes nothing here");
        program = program::verify(program).unwrap_or_else(|error| panic!("{error}")).into_inner();
        (PASSES[index].run)(&mut program);
        assert_eq!(program.print(), after, "{name} twice is {name} once");
        golden(&format!("goldens/passes/{name}.txt"), &format!("before\n{before}\nafter\n{after}"));
    }
}

/// What each recipe is applied to: two hops over a window, causal where hops are taken at once.
const RECIPE_CASES: [(&str, &str, &str); 8] = [
    ("flash", "{any: [{window: {radius: 8}}, {random: {keys_per_query: 2, seed: 1}}]}", "{hops: 1, alpha: 0.1}"),
    ("resident", "{window: {radius: 8}}", "{hops: 2, alpha: 0.1, store: bf16}"),
    ("recompute", "{window: {radius: 8}}", "{hops: 2, alpha: 0.1}"),
    ("wavefront", "{window: {radius: 8}}", "{hops: 2, alpha: 0.1, store: bf16}"),
    ("triangular", "{window: {left: 8, right: 0}}", "{hops: 2, alpha: 0.1}"),
    ("stored", "{window: {radius: 8}}", "{hops: 2, alpha: 0.1}"),
    ("again", "{window: {radius: 8}}", "{hops: 2, alpha: 0.1}"),
    ("frugal", "{window: {radius: 8}}", "{hops: 2, alpha: 0.1}"),
];

#[test]
fn every_nest_pass_has_its_before_and_after() {
    let mut seen = BTreeSet::new();
    assert_eq!(RECIPES.len(), RECIPE_CASES.len());
    for (recipe, (name, pattern, diffusion)) in RECIPES.iter().zip(RECIPE_CASES) {
        assert_eq!(recipe.name, name);
        let strategy: Strategy = name.parse().expect("a strategy");
        let text = format!("name: {name}\nhead_dim: 8\npattern: {pattern}\ndiffusion: {diffusion}\n");
        // The combination of an output and its restart in an operation of its own shows what is done behind a hop.
        let mut program = built(&spec_with(&text, &[]), 400);
        if recipe.training {
            program = program::derive_gradient(program, true).expect("a gradient");
        }
        let program = passes::run(program, &["fold_restart_into_spmm".to_owned()]).expect("passes");
        let reach = KnownReach::new(&program);
        let nest = |passes: usize| {
            let without: Vec<String> = recipe.passes[passes..].iter().map(|pass| pass.name.to_owned()).collect();
            let (body, _) = passes::apply(&program, strategy, &without, None, &reach).expect("a nest");
            let nested = program::verify(Program { body, ..program.clone() }).unwrap_or_else(|error| panic!("{error}"));
            nested.print_nest()
        };
        let mut before = nest(0);
        let mut found = before.clone();
        for (index, pass) in recipe.passes.iter().enumerate() {
            let after = nest(index + 1);
            if after != before {
                seen.insert(pass.name);
                found += &format!("\n{}: {}\n{after}", pass.name, pass.rewrite);
            }
            before = after;
        }
        golden(&format!("goldens/nests/{name}.txt"), &found);
    }
    let idle: Vec<&str> =
        passes::nest_passes().iter().map(|pass| pass.name).filter(|name| !seen.contains(name)).collect();
    assert!(idle.is_empty(), "{idle:?} change nothing here");
}

fn built(spec: &PatternSpec, n: usize) -> Program {
    let pattern = pattern::resolve(spec, n, n).expect("a pattern");
    // A set of neighbors for each pattern that hops have, the root's first.
    let sets = std::iter::once(&pattern).chain(pattern.others());
    let sets = sets.map(|pattern| mask::build(pattern, u64::MAX).expect("a mask")).collect();
    program::build_hops(spec, sets, |hop| pattern.index_of_hop(hop)).expect("a program")
}

fn planned(spec: &PatternSpec, n: usize) -> plan::VerifiedPlan {
    let fused = passes::run(built(spec, n), &[]).expect("passes");
    let model = Model::new(&fused, Isa::Avx512, 1, None);
    let chosen = plan::choose(&fused, &[], None, None, &model).expect("a nest");
    let nested = program::verify(Program { body: chosen.body, ..fused }).expect("a program that keeps the rules");
    let options = PlanOptions { strategy: chosen.strategy, reasons: chosen.reasons, ..PlanOptions::default() };
    plan::build(&nested, Isa::Avx512, options).expect("a plan")
}

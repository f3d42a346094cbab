//! The text of every stage, and what every pass changes, against files in `goldens/`.
//!
//! `HOPWEAVE_BLESS=1` shows what changed and writes the files anew.

use crate::common::{golden, options, spec_with};
use hopweave::compiler::{self, Stage};
use hopweave::passes::{self, PASSES, RECIPES, Strategy};
use hopweave::plan::{self, PlanOptions};
use hopweave::program::{self, KnownReach, Program, VerifiedProgram};
use hopweave::spec::PatternSpec;
use hopweave::target::Isa;
use hopweave::{codegen, mask, pattern};

const WINDOW: &str = "name: window\nhead_dim: 16\npattern: {window: {radius: 20}}\n";
const CAUSAL: &str = "name: causal\nheads: 2\nhead_dim: 8\nvalue_dim: 5\npattern: causal\n";
const GLOBALS: &str = "name: globals\nhead_dim: 8\npattern:\n  any:\n    - window: {radius: 8}\n    \
                       - global: {tokens: {random: {count: 5, seed: 3}}}\n";
const DIFFUSER: &str = "name: diffuser\nhead_dim: 8\npattern:\n  any:\n    - window: {radius: 8}\n    \
                        - random: {keys_per_query: 2, seed: 1}\ndiffusion: {hops: 5, alpha: 0.1}\n";

const BAND: &str =
    "name: band\nhead_dim: 8\npattern: {window: {left: 30, right: 0}}\ndiffusion: {hops: 3, alpha: 0.1}\n";

const MODS: &str = "name: mods\nheads: 2\nhead_dim: 8\ninputs: {rel: {shape: [heads, \"2*n - 1\"]}}\npattern: causal\n\
                    score:\n  mods:\n    - softcap: 20\n    - alibi\n    \
                    - bias: {input: rel, index: [h, \"q - k + n - 1\"]}\n    \
                    - expr: \"if(q - k < 8 and not k == 0, s, s - 0.1 * rel[h, k])\"\n";

/// Spec, length.
const CASES: [(&str, usize); 5] = [(WINDOW, 200), (CAUSAL, 130), (GLOBALS, 150), (DIFFUSER, 100), (MODS, 70)];

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
    for (text, n) in [(CAUSAL, 130), (DIFFUSER, 100), (MODS, 70)] {
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
            let derived = program::derive_gradient(built(&spec, n), dropout).expect("a gradient");
            let fused = passes::run(derived.clone(), &[]).expect("passes");
            for program in [derived, fused.clone()] {
                let program = program::verify(program).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(program::parse(&program.print()).expect("a program"), *program, "{}", spec.name);
            }
            for chosen in plan::choose_training(&fused, &[], None).expect("nests") {
                let program = Program { body: chosen.body, ..fused.clone() };
                let program = program::verify(program).unwrap_or_else(|error| panic!("{error}"));
                let training = (chosen.strategy, spec.scale);
                let (pass, stored) = plan::build_training(&program, Isa::Avx512, training).expect("plans");
                assert_eq!(stored.is_some(), chosen.strategy == Strategy::STORED);
                for plan in stored.into_iter().chain([pass]) {
                    // Reading a plan verifies it.
                    assert_eq!(plan::parse(&plan.print()).expect("a plan"), plan, "{} {training:?}", spec.name);
                    assert_eq!(plan.training.map(|training| training.dropout), Some(dropout));
                }
            }
        }
    }
}

/// What the verifier says when an operation of a gradient is left out, doubled or moved before what it reads.
#[test]
fn broken_gradients_are_refused() {
    let program = program::derive_gradient(built(&spec_with(MODS, &[]), 70), true).expect("a gradient");
    program::verify(program.clone()).expect("a right program");
    let adjoint = program.body.loops.iter().position(|one| one.ops().any(|step| step.op.name() == "dot_rows"));
    let mut refused = [0; 3];
    for at in adjoint.expect("a gradient")..program.body.loops.len() {
        let mut doubled = program.clone();
        doubled.body.loops.insert(at, program.body.loops[at].clone());
        assert!(program::verify(doubled).is_err(), "loop {at} twice");
        let mut without = program.clone();
        without.body.loops.remove(at);
        assert!(program::verify(without).is_err(), "without loop {at}");
        let mut moved = program.clone();
        let operation = moved.body.loops.remove(at);
        moved.body.loops.insert(0, operation);
        assert!(program::verify(moved).is_err(), "loop {at} before all others");
        refused.iter_mut().for_each(|count| *count += 1);
    }
    assert!(refused[0] > 8, "{refused:?}");
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
        let (program, strategy) = nested(&spec, n);
        let plan_options = PlanOptions { strategy, ..PlanOptions::default() };
        let plan = plan::build(&program, Isa::Avx512, plan_options).expect("a plan");
        let functions = codegen::lower(&plan, &*isa);
        let printed: String = functions.iter().map(|lowered| format!("{}\n", lowered.function.display())).collect();
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

/// Each pass of each recipe where it first does something, forward or backward, with dropout or without.
#[test]
fn every_nest_pass_has_its_before_and_after() {
    let mut done: Vec<&str> = Vec::new();
    for recipe in RECIPES {
        let strategy: Strategy = recipe.name.parse().expect("its name");
        let cases = [(WINDOW, 200), (CAUSAL, 130), (BAND, 700), (GLOBALS, 150), (DIFFUSER, 100)];
        // Dropout alone leaves rows behind a hop, and weights that are used twice.
        for ((text, n), dropout) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
            let mut program = built(&spec_with(text, &[]), n);
            if recipe.training {
                program = program::derive_gradient(program, dropout).expect("a gradient");
            }
            let program = passes::run(program, &[]).expect("passes");
            let reach = KnownReach::new(&program.neighbors);
            // The nest after so many of its passes.
            let nest = |count: usize| {
                let without: Vec<String> = recipe.passes[count..].iter().map(|pass| pass.name.to_owned()).collect();
                passes::apply(&program, strategy, &without, Some(hopweave::Dtype::Bf16), &reach).ok()
            };
            for (count, pass) in recipe.passes.iter().enumerate() {
                let (Some((before, _)), Some((after, _))) = (nest(count), nest(count + 1)) else { break };
                if before == after || done.contains(&pass.name) {
                    continue;
                }
                done.push(pass.name);
                let text = format!("{} of {}\n\nbefore\n{before}\nafter\n{after}", pass.name, recipe.name);
                golden(&format!("goldens/passes/{}.txt", pass.name), &text);
            }
        }
    }
    let missing: Vec<&str> =
        passes::nest_passes().into_iter().map(|pass| pass.name).filter(|name| !done.contains(name)).collect();
    assert!(missing.is_empty(), "passes that did nothing: {missing:?}");
}

fn built(spec: &PatternSpec, n: usize) -> Program {
    let pattern = pattern::resolve(spec, n, n).expect("a pattern");
    program::build(spec, mask::build(&pattern, u64::MAX).expect("a mask")).expect("a program")
}

/// The program in the nest that is chosen on a machine that nobody measured.
fn nested(spec: &PatternSpec, n: usize) -> (VerifiedProgram, Strategy) {
    let mut program = passes::run(built(spec, n), &[]).expect("passes");
    let model = plan::Model::new(&program, Isa::Avx512, 1, None);
    let chosen = plan::choose(&program, &[], None, None, &model).expect("a nest");
    program.body = chosen.body;
    (program::verify(program).expect("a program that keeps the rules"), chosen.strategy)
}

//! The text of every stage, and what every pass changes, against files in `goldens/`.
//!
//! `HOPWEAVE_BLESS=1` shows what changed and writes the files anew.

use crate::common::{golden, options, spec_with};
use hopweave::compiler::{self, Stage};
use hopweave::passes::PASSES;
use hopweave::plan::{self, Strategy, Wishes};
use hopweave::schedule::{self, Op, Schedule, VerifiedSchedule};
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

/// Spec, length.
const CASES: [(&str, usize); 5] = [(WINDOW, 200), (CAUSAL, 130), (GLOBALS, 150), (DIFFUSER, 100), (MODS, 70)];

/// Which spec each pass has something to do on.
const PASS_CASES: [(&str, &str, usize); 7] = [
    // Between the two edges of this band stand 9 keys that every query of the block may see.
    ("coalesce_adjacent_blocks", "name: band\nhead_dim: 4\npattern: {window: {radius: 36}}\n", 200),
    ("gather_isolated_keys", GLOBALS, 150),
    ("specialise_full_blocks", CAUSAL, 130),
    ("fold_scale_into_queries", CAUSAL, 130),
    ("fuse_mask_and_rowmax_into_sddmm", CAUSAL, 130),
    ("fold_restart_into_spmm", DIFFUSER, 100),
    ("drop_single_hop_loop", CAUSAL, 130),
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
            let derived = hopweave::passes::derive_gradient(built(&spec, n), dropout);
            for schedule in [derived.clone(), hopweave::passes::run(derived, &[]).expect("passes")] {
                let schedule = schedule::verify(schedule).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(schedule::parse(&schedule.print()).expect("a schedule"), *schedule, "{}", spec.name);
                let wished = Strategy::ALL.map(Some);
                for strategy in wished.into_iter().chain([None]) {
                    let wishes = Wishes { strategy, ..Wishes::default() };
                    let serves = strategy.is_none_or(|s| matches!(s, Strategy::RECOMPUTE | Strategy::RESIDENT));
                    match plan::build(&schedule, Isa::Avx512, wishes) {
                        // Reading a plan verifies it.
                        Ok(plan) if serves => {
                            assert_eq!(plan::parse(&plan.print()).expect("a plan"), plan, "{} {strategy:?}", spec.name);
                        }
                        Err(hopweave::Error::Unsupported { .. }) if !serves => {}
                        other => panic!("{} {strategy:?}: {other:?}", spec.name),
                    }
                }
            }
        }
    }
}

/// What the verifier says when an operation of the gradient is left out, doubled or moved.
#[test]
fn broken_gradients_are_refused() {
    let schedule = hopweave::passes::derive_gradient(built(&spec_with(MODS, &[]), 70), true);
    schedule::verify(schedule.clone()).expect("a right schedule");
    let first = schedule.body.iter().position(|op| *op == Op::Dropout).expect("dropout");
    for at in first..schedule.body.len() {
        let mut doubled = schedule.clone();
        doubled.body.insert(at, schedule.body[at].clone());
        assert!(schedule::verify(doubled).is_err(), "operation {at} twice");
        if schedule.body[at] != Op::Dropout {
            let mut without = schedule.clone();
            without.body.remove(at);
            assert!(schedule::verify(without).is_err(), "without operation {at}");
        }
        if at > first {
            let mut moved = schedule.clone();
            moved.body.swap(at - 1, at);
            assert!(schedule::verify(moved).is_err(), "operations {} and {at} swapped", at - 1);
        }
    }
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
        let plan = plan::build(&fused(&spec, n), Isa::Avx512, Wishes::default()).expect("a plan");
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
        let mut schedule = built(&spec_with(text, &[]), n);
        PASSES[..index].iter().for_each(|pass| (pass.run)(&mut schedule));
        let before = schedule.print();
        (PASSES[index].run)(&mut schedule);
        let after = schedule.print();
        assert_ne!(before, after, "{name} changes nothing here");
        schedule = schedule::verify(schedule).unwrap_or_else(|error| panic!("{error}")).into_inner();
        (PASSES[index].run)(&mut schedule);
        assert_eq!(schedule.print(), after, "{name} twice is {name} once");
        golden(&format!("goldens/passes/{name}.txt"), &format!("before\n{before}\nafter\n{after}"));
    }
}

fn built(spec: &PatternSpec, n: usize) -> Schedule {
    let pattern = pattern::resolve(spec, n, n).expect("a pattern");
    schedule::build(spec, mask::build(&pattern, u64::MAX).expect("a mask")).expect("a schedule")
}

fn fused(spec: &PatternSpec, n: usize) -> VerifiedSchedule {
    let schedule = hopweave::passes::run(built(spec, n), &[]).expect("passes");
    schedule::verify(schedule).expect("a schedule that keeps the rules")
}

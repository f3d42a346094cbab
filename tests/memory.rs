//! What kernels leave in memory: no page that is writable and executable, and nothing when they are gone.
//!
//! A binary of its own: it looks at the mappings and the memory of the whole process, where no other test may compile.
//!
//! `HOPWEAVE_COMPILES` sets how many kernels are compiled and dropped.
#![cfg(target_os = "linux")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::process::{Mapping, made_code, mappings, parse_mappings, resident};
use common::{Tensors, compile, families, options, spec_of, strategies};
use hopweave::compiler::{self, Compiled};
use hopweave::limits::Limit;
use hopweave::spec::PatternSpec;

/// Regular rows, gathered keys, scattered edges.
const PATTERNS: [&str; 3] = [
    "{window: {radius: 20}}",
    "{any: [{window: {radius: 5}}, {global: {tokens: {random: {count: 9, seed: 3}}}}]}",
    "{random: {keys_per_query: 4, seed: 7}}",
];

/// Tests look at the whole process, so that they take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn specs() -> Vec<PatternSpec> {
    let diffusions = ["{hops: 1}", "{hops: 3, alpha: 0.25}"];
    PATTERNS.iter().flat_map(|pattern| diffusions.map(|diffusion| spec_of(pattern, 8, 8, diffusion))).collect()
}

/// A forward call and a backward one.
fn work(spec: &PatternSpec, n: usize, compiled: &Compiled) {
    let t = Tensors::random(spec, 1, n, 1);
    t.run(compiled);
    // Heads, lengths and widths are all the same, so that queries have the shape of the output.
    compiled.kernel.backward(t.q.view(), t.k.view(), t.v.view(), t.q.view()).expect("gradients");
}

/// Counts down when a thread ends.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn assert_no_page_is_writable_and_executable() {
    for mapping in mappings() {
        assert!(!mapping.is_writable_and_executable(), "{mapping:?}");
    }
}

#[test]
fn mappings_are_told_apart() {
    let text = "\
7f00a000-7f00c000 r-xp 00000000 00:00 0
7f00c000-7f00d000 rwxp 00000000 00:00 0 \n\
55d0e000-55d0f000 r-xp 00001000 08:01 131 /usr/bin/a name
7ffd1000-7ffd3000 r-xp 00000000 00:00 0                                  [vdso]
";
    let found = parse_mappings(text);
    assert_eq!(found.iter().map(|mapping| mapping.bytes).collect::<Vec<_>>(), [0x2000, 0x1000, 0x1000, 0x2000]);
    assert_eq!(found.iter().map(Mapping::is_made_code).collect::<Vec<_>>(), [true, true, false, false]);
    let both = found.iter().map(Mapping::is_writable_and_executable).collect::<Vec<_>>();
    assert_eq!(both, [false, true, false, false]);
    assert_eq!(found[2].name, "/usr/bin/a name");
}

#[test]
fn code_of_kernels_is_executable_and_not_writable_and_goes_with_them() {
    let _alone = alone();
    let (n, before) = (130, made_code());
    let mut kernels = Vec::new();
    for isa in families() {
        for spec in specs() {
            for strategy in strategies(&spec, n) {
                let compiled = compile(&spec, n, &options(isa, Some(strategy)));
                work(&spec, n, &compiled);
                kernels.push(compiled);
            }
        }
    }
    assert_no_page_is_writable_and_executable();
    let made: Vec<_> = mappings().into_iter().filter(Mapping::is_made_code).collect();
    assert!(made.iter().all(|mapping| mapping.rights == "r-xp"), "{made:?}");
    let code: u64 = kernels.iter().map(|compiled| compiled.kernel.code_bytes().0 as u64).sum();
    assert!(made_code() - before >= code, "{code} bytes of code, {} executable", made_code() - before);
    // A copy of the handle keeps the code.
    let last = kernels.pop().map(|compiled| compiled.kernel.clone());
    drop(kernels);
    assert!(made_code() > before);
    drop(last);
    assert_eq!(made_code(), before);
}

#[test]
fn no_page_is_writable_and_executable_while_threads_compile() {
    let _alone = alone();
    let (compiling, mut looks, mut most) = (AtomicUsize::new(4), 0, 0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let compiling = &compiling;
            scope.spawn(move || {
                // Also counted down where a compilation panics, so that the looking ends.
                let _done = Done(compiling);
                for round in 0..4 {
                    for (i, spec) in specs().iter().enumerate() {
                        let isa = families()[(thread + i + round) % families().len()];
                        compile(spec, 64 + 30 * round, &options(isa, None)).kernel.training().expect("training");
                    }
                }
            });
        }
        while compiling.load(Ordering::Relaxed) > 0 {
            assert_no_page_is_writable_and_executable();
            looks += 1;
            most = most.max(made_code());
        }
    });
    assert!(looks > 1 && most > 0, "{looks} looks saw at most {most} bytes of code");
    assert_eq!(made_code(), 0);
}

#[test]
fn kernels_leave_nothing_behind() {
    let _alone = alone();
    let count = std::env::var("HOPWEAVE_COMPILES").map_or(200, |count| count.parse().expect("a number"));
    let specs = specs();
    let families = families();
    let round = |i: usize| {
        let (spec, isa) = (&specs[i % specs.len()], families[i / specs.len() % families.len()]);
        let n = 50 + i % 5 * 30;
        let compiled = compile(spec, n, &options(isa, None));
        // A gradient is compiled at the first backward call.
        work(spec, n, &compiled);
        // What is refused with most of its code made frees that as well.
        let mut frugal = spec.clone();
        let limits = &mut Arc::make_mut(&mut frugal.source).limits;
        *limits = limits.with(Limit::Code, compiled.kernel.code_bytes().0 as u64 - 1);
        let refused = compiler::compile(&frugal, n, n, &options(isa, None)).expect_err("too much code");
        assert!(matches!(refused, hopweave::Error::Limit { .. }), "{refused}");
    };
    // Every spec, family and length has been seen once before memory is measured.
    (0..specs.len() * families.len() * 5).for_each(round);
    let resident = || resident().expect("a resident size");
    let (code, before) = (made_code(), resident());
    (0..count).for_each(round);
    let (code_after, after) = (made_code(), resident());
    println!("{count} compiled and dropped: {before} bytes resident before, {after} after");
    assert_eq!(code_after, code, "bytes of code");
    assert!(after < before + (5 << 20), "{count} compiled and dropped: {before} bytes before, {after} after");
}

//! Random specs through the whole compiler against the interpreter, and every stage's text read back.
//!
//! `PROPTEST_CASES` sets the number of cases.

use crate::common::specs::spec_text;
use crate::common::{Oracle, Tensors, families, options, spec_with, strategies};
use hopweave::compiler::{self, Options, Stage};
use hopweave::passes::{PASSES, nest_passes};
use hopweave::{mask, pattern, plan, program};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48);
    let failures = FileFailurePersistence::Direct("tests/properties.regressions");
    ProptestConfig { cases, failure_persistence: Some(Box::new(failures)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_specs_conform((text, n) in spec_text(), seed in 0..1000_u64, threads in 1..4_usize, skip in 0..40_usize) {
        let spec = spec_with(&text, &[]);
        let tensors = Tensors::random(&spec, 1, n, seed);
        let pattern = pattern::resolve(&spec, n, n).unwrap_or_else(|error| panic!("{error}"));
        let oracle = Oracle::new(&pattern, &spec, &tensors);
        // Half of the cases leave a pass out.
        let passes = PASSES.iter().map(|pass| pass.name).chain(nest_passes().into_iter().map(|pass| pass.name));
        let without: Vec<String> = passes.map(str::to_owned).nth(skip).into_iter().collect();
        for isa in families() {
            let strategies: Vec<_> = strategies(&spec, n).into_iter().map(Some).collect();
            for strategy in strategies {
                let options = Options { threads, without: without.clone(), ..options(isa, strategy) };
                let compiled = match compiler::compile(&spec, n, n, &options) {
                    Ok(compiled) => compiled,
                    // A nest that lacks one of its passes may have no code, and a recipe may not be legal.
                    Err(hopweave::Error::Unsupported { .. }) if skip >= PASSES.len() && !without.is_empty() => continue,
                    Err(error) => panic!("{error}"),
                };
                oracle.check(&tensors.run(&compiled), &|| format!("{text} n {n} {isa} {strategy:?} threads {threads}"));
            }
        }
    }

    #[test]
    fn every_text_reads_back((text, n) in spec_text()) {
        let spec = spec_with(&text, &[]);
        let again = hopweave::spec::parse(&spec.print(), "<printed>").unwrap_or_else(|error| panic!("{error}"));
        prop_assert!(spec.same(&again));
        for isa in families() {
            let emit = |stage| {
                compiler::emit(&spec, n, n, &options(isa, None), (stage, false)).unwrap_or_else(|error| panic!("{error}"))
            };
            let printed = emit(Stage::Pattern);
            let read = pattern::parse_text(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
            prop_assert_eq!(&read.print(), &printed);
            for h in 0..spec.heads {
                let original = pattern::resolve(&spec, n, n).expect("a pattern");
                let same = |q: usize, k: usize| read.allows(h, q, k) == original.allows(h, q, k);
                prop_assert!((0..n).all(|q| (0..n).step_by(7).all(|k| same(q, k))), "{}", printed);
            }
            let printed = emit(Stage::Mask);
            let read = mask::parse(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
            let compiled = crate::common::compile(&spec, n, &options(isa, None));
            prop_assert_eq!(&read, &compiled.mask);
            prop_assert_eq!(read.print(), printed);
            for stage in [Stage::Schedule, Stage::Fused] {
                let printed = emit(stage);
                let read = program::parse(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
                prop_assert_eq!(read.print(), printed);
            }
            let read = program::parse(&compiled.program.print()).expect("a program");
            prop_assert_eq!(&read, &*compiled.program);
            let printed = emit(Stage::Plan);
            let read = plan::parse(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
            prop_assert_eq!(&read, &**compiled.kernel.plan());
            prop_assert_eq!(read.print(), printed);
            let printed = emit(Stage::Clif);
            let read = cranelift_reader::parse_functions(&printed).unwrap_or_else(|error| panic!("{error}"));
            let again: String = read.iter().map(|function| format!("{}\n", function.display())).collect();
            prop_assert_eq!(again, printed);
        }
    }
}

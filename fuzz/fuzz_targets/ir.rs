//! Any text as an IR: pattern, mask, program or plan, by the first byte. What is read prints the same again, and goes
//! through the stages behind it.
#![no_main]

use hopweave::passes::{self, Candidate};
use hopweave::plan::{self, PlanOptions, VerifiedPlan};
use hopweave::program::{self, Program, VerifiedProgram};
use hopweave::target::Isa;
use hopweave::{Error, codegen, jit, mask, pattern};
use libfuzzer_sys::{Corpus, fuzz_target};

/// Bytes of masks.
const LIMIT: u64 = 64 << 20;

/// The result of a stage on what was verified before: it may be refused, and is never broken.
fn stage<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Err(error @ Error::Internal { .. }) => panic!("{error}"),
        result => result.ok(),
    }
}

fn same(first: &str, again: &str) {
    assert_eq!(first, again);
}

fn compile(program: &VerifiedProgram) -> Option<()> {
    let plan = stage(plan::build(program, Isa::best(), PlanOptions::default()))?;
    let again = plan::verify((*plan).clone()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(again, plan);
    lower(plan)
}

fn lower(plan: VerifiedPlan) -> Option<()> {
    let isa = stage(jit::target_isa())?;
    codegen::lower(plan, &*isa);
    Some(())
}

fn read(which: u8, text: &str) -> Option<()> {
    match which % 4 {
        0 => {
            // A short text may stand for a long pattern: that is for the limits, and not for the fuzzer's time.
            let numbers = text.lines().next()?.split(|c: char| !c.is_ascii_digit());
            if numbers.filter_map(|digits| digits.parse::<u64>().ok()).any(|number| number > 1000) {
                return None;
            }
            let pattern = pattern::parse_text(text).ok()?;
            let printed = pattern.print();
            let again = pattern::parse_text(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
            same(&printed, &again.print());
            let mask = stage(mask::build(&pattern, LIMIT))?;
            mask::verify(&mask).unwrap_or_else(|error| panic!("{error}"));
        }
        1 => {
            let mask = mask::parse(text).ok()?;
            let printed = mask.print();
            let again = mask::parse(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
            same(&printed, &again.print());
        }
        2 => {
            let program = program::parse(text).ok()?;
            let printed = program.print();
            let again = program::parse(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
            same(&printed, &again.print());
            let verified = program::verify(program).ok()?;
            compile(&verified)?;
            let fused = stage(passes::run(verified.into_inner(), &[]))?;
            for Candidate { nest, .. } in passes::candidates(&fused, &[], None, None) {
                let Ok((body, _)) = nest else { continue };
                compile(&stage(program::verify(Program { body, ..fused.clone() }))?)?;
            }
        }
        _ => {
            let plan = plan::parse(text).ok()?;
            let printed = plan.print();
            let again = plan::parse(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
            same(&printed, &again.print());
            lower(plan::verify(plan).ok()?)?;
        }
    }
    Some(())
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&which, text)) = data.split_first() else { return Corpus::Reject };
    let Ok(text) = std::str::from_utf8(text) else { return Corpus::Reject };
    read(which, text);
    Corpus::Keep
});

//! From the text of a spec to the plan of its kernel, without any machine code: small enough for Miri, which runs it as
//! CONTRIBUTING.md says.

use crate::common::{fitting_length, options, pattern_files, small_spec};
use hopweave::compiler::{self, Stage};
use hopweave::target::Isa;
use hopweave::{mask, pattern, plan, program};

#[test]
fn every_pattern_becomes_a_plan_and_every_text_reads_back() {
    // Two block rows, the second not full; one is all that Miri gets through in minutes.
    let n = if cfg!(miri) { 20 } else { 90 };
    // Plans of all families come by the same way.
    let families = if cfg!(miri) { &Isa::ALL[..1] } else { &Isa::ALL[..] };
    for (name, text) in pattern_files() {
        let spec = small_spec(&text, &[]);
        let n = fitting_length(&spec, n);
        // Segment ids come with the tensors, and there are none.
        let pattern = pattern::resolve(&spec, n, n).unwrap_or_else(|error| panic!("{name}\n{error}"));
        if !pattern.awaits().is_empty() {
            continue;
        }
        for &isa in families {
            let emit = |stage| {
                compiler::emit(&spec, n, n, &options(isa, None), (stage, false))
                    .unwrap_or_else(|error| panic!("{name} {stage}\n{error}"))
            };
            let again = |stage, text: &str| match stage {
                Stage::Pattern => pattern::parse_text(text).map(|pattern| pattern.print()),
                Stage::Mask => mask::parse(text).map(|mask| mask.print()),
                Stage::Schedule | Stage::Fused => program::parse(text).map(|program| program.print()),
                Stage::Plan => plan::parse(text).map(|plan| plan.print()),
                Stage::Clif | Stage::Asm => unreachable!("code is not made here"),
            };
            for stage in [Stage::Pattern, Stage::Mask, Stage::Schedule, Stage::Fused, Stage::Plan] {
                let text = emit(stage);
                let again = again(stage, &text).unwrap_or_else(|error| panic!("{name} {stage}\n{text}\n{error}"));
                assert_eq!(again, text, "{name} {stage}");
            }
            // The mask has the points of the pattern.
            let mask = mask::parse(&emit(Stage::Mask)).expect("a mask");
            for head in 0..spec.heads {
                let points = (0..n * n).filter(|&at| pattern.allows(head, at / n, at % n)).count();
                assert_eq!(mask.nnz(head), points as u64, "{name} head {head} {isa}");
            }
        }
    }
}

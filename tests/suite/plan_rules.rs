//! A plan that breaks a rule is refused, whatever the rule.

use hopweave::passes::{self, Strategy};
use hopweave::plan::{self, KernelPlan, ModsBy, ModsPlan, PlanOptions, parse, verify};
use hopweave::program::{self, KnownReach, Program};
use hopweave::target::Isa;
use hopweave::{mask, pattern, spec};

fn plan() -> KernelPlan {
    let text = "name: x\nhead_dim: 4\ninputs: {rel: {shape: [\"2*n - 1\"]}}\npattern:\n  any: [window: {radius: 20}, \
                random: {keys_per_query: 2, seed: 1}]\nscore: {mods: [{bias: {input: rel, index: [\"q - k + n - 1\"]}}]}\n";
    let spec = spec::parse(text, "<text>").expect("a spec");
    let pattern = pattern::resolve(&spec, 500, 500).expect("a pattern");
    let mask = mask::build(&pattern, u64::MAX).expect("a mask");
    let fused = passes::run(program::build(&spec, mask).expect("a program"), &[]).expect("passes");
    let reach = KnownReach::new(&fused);
    let (body, _) = passes::apply(&fused, Strategy::FLASH, &[], None, &reach).expect("a nest");
    let nested = program::verify(Program { body, ..fused.clone() }).expect("a program");
    plan::build(&nested, Isa::Portable, PlanOptions::default()).expect("a plan").into_inner()
}

#[test]
fn broken_plans_are_refused() {
    let good = plan();
    assert!(verify(good.clone()).is_ok());
    type Break = fn(&mut KernelPlan);
    fn mods(plan: &mut KernelPlan) -> &mut ModsPlan {
        plan.mods.as_mut().expect("mods")
    }
    let breaks: [(&str, Break); 13] = [
        ("dots", |plan| plan.bf16_dots = true),
        ("an input one element shorter", |plan| mods(plan).mods.inputs[0].shape[0] -= 1),
        ("positions that move", |plan| mods(plan).mods.positions.q_offset -= 1),
        ("mods of another problem", |plan| mods(plan).mods.positions.kv_len -= 1),
        ("no such input", |plan| mods(plan).mods.inputs.clear()),
        ("no tile for these mods", |plan| mods(plan).by = ModsBy::Alibi),
        ("row", |plan| plan.walks[0].masks[0].rows[1].first += 1),
        ("rows", |plan| drop(plan.walks[0].masks[0].rows.pop())),
        ("head", |plan| plan.mask_of_head[0] = 9),
        ("words", |plan| plan.walks[0].masks[0].words.iter_mut().for_each(|words| words.truncate(1))),
        ("trims", |plan| plan.walks[0].masks[0].trims.clear()),
        ("keys", |plan| plan.shape.kv_len = 100),
        ("panel", |plan| plan.walks[0].masks[0].panel_keys = 1),
    ];
    for (what, break_it) in breaks {
        let mut plan = good.clone();
        break_it(&mut plan);
        let text = plan.print();
        assert!(verify(plan).is_err(), "{what}");
        // Whoever writes such a text gets no further.
        assert!(parse(&text).and_then(verify).is_err(), "{what}");
    }
}

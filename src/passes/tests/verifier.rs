//! The verifier against a simulation, and every rule against a program that breaks it.

use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::sample::Index;

use super::simulation::{self, Meets};
use crate::passes::{self, Strategy};
use crate::program::{
    Body, Extent, KnownReach, Loop, Program, Reach, Reaches, Stage, Value, build, check_nest, derive_gradient, parse,
    reaches, verify,
};
use crate::{mask, pattern, spec};

/// Block rows of 64 queries.
const ROWS: usize = 12;

const PATTERNS: [&str; 7] = [
    // What a row reaches, every row far from the ends does: what the verifier refuses for the furthest row is wrong.
    "{window: {radius: 70}}",
    "{window: {left: 70, right: 3}}",
    "{window: {left: 200, right: 64}}",
    // Here it may know less than the simulation.
    "{window: {left: 100, right: 0}}",
    "{any: [{window: {radius: 8}}, {random: {keys_per_query: 1, seed: 2, among: past}}]}",
    "{chunk: {size: 64}}",
    // Rows that follow each other.
    ENDLESS,
];
/// Hops without end, over this pattern.
const ENDLESS: &str = "{window: {left: 130, right: 0}}";
/// Patterns of the first kind.
const EXACT: usize = 3;

struct Case {
    pattern: usize,
    /// Forward, a gradient, a gradient with dropout; after the operation passes.
    programs: [Program; 3],
    reach: Reach,
    meets: Meets,
}

fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(|| {
        let all = PATTERNS.iter().enumerate().flat_map(|(pattern, text)| [1, 3].map(|hops| (pattern, *text, hops)));
        all.map(|(pattern, text, hops)| case(pattern, text, hops)).collect()
    })
}

fn case(pattern: usize, text: &str, hops: usize) -> Case {
    let n = 64 * ROWS - 5;
    let endless = text == ENDLESS;
    let hops = if endless { "all".to_owned() } else { hops.to_string() };
    let text = format!("name: x\nhead_dim: 4\npattern: {text}\ndiffusion: {{hops: {hops}, alpha: 0.1}}\n");
    let spec = spec::parse(&text, "<text>").unwrap();
    let resolved = pattern::resolve(&spec, n, n).unwrap();
    let mut meets: Meets = vec![Default::default(); ROWS];
    for (q, k) in (0..n).flat_map(|q| (0..n).map(move |k| (q, k))).filter(|&(q, k)| resolved.allows(0, q, k)) {
        meets[q / 64].insert(k / 64);
    }
    let built = build(&spec, mask::build(&resolved, u64::MAX).unwrap()).unwrap();
    let fused = |program| passes::run(program, &[]).unwrap();
    // Hops without end have no dropout.
    let gradient = |dropout| fused(derive_gradient(built.clone(), dropout && !endless).unwrap());
    let programs = [fused(built.clone()), gradient(false), gradient(true)];
    let reach = match reaches(&built.neighbors) {
        Reaches::Band(reach, _) => reach,
        Reaches::Unordered(why) => panic!("{why}"),
    };
    Case { pattern, programs, reach, meets }
}

/// Puts neighboring loops together: `how` has, for each, a choice, and a shift.
fn nest(body: &Body, how: &[(u8, u32)]) -> Body {
    let mut nested = Body { loops: Vec::new(), ..body.clone() };
    for (one, &(choice, shift)) in body.loops.iter().zip(how.iter().cycle()) {
        let ops = one.stages[0].ops.clone();
        match (choice, nested.loops.last_mut()) {
            (0..4, Some(last)) => last.stages.last_mut().unwrap().ops.extend(ops),
            (4..8, Some(last)) => last.stages.push(Stage { shift, by_keys: false, ops }),
            _ => nested.loops.push(Loop { stages: vec![Stage { shift: 0, by_keys: false, ops }], ..Loop::default() }),
        }
    }
    nested
}

/// Keeps some values in another way.
fn keep(body: &mut Body, how: &[(u8, u32)]) {
    let roots = body.roots();
    let extents: Vec<Extent> = body.values.iter().map(|value| value.extent).collect();
    for (Value { extent, .. }, root) in body.values.iter_mut().zip(roots) {
        let root = root.0 as usize;
        let (choice, rows) = how[root % how.len()];
        *extent = match (extents[root], choice) {
            (tensor @ Extent::Tensor(_), _) => tensor,
            (_, 0..3) => Extent::Ring(rows),
            (_, 3) => Extent::Row,
            _ => Extent::All,
        };
    }
}

/// What verifier and simulation say of a nest.
fn judge(case: &Case, which: usize, body: &Body) -> (Result<(), String>, Result<(), String>) {
    let verdict = check_nest(&case.programs[which].shape, body, Some(case.reach));
    (verdict, simulation::run(body, &case.meets))
}

fn agree(case: &Case, which: usize, body: &Body) -> Result<bool, TestCaseError> {
    let (verdict, run) = judge(case, which, body);
    match (&verdict, &run) {
        (Ok(()), Err(fault)) => prop_assert!(false, "accepted, and {fault}\n{body}"),
        (Err(rule), Ok(())) if case.pattern < EXACT => prop_assert!(false, "refused: {rule}\n{body}"),
        _ => {}
    }
    Ok(verdict.is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn random_nests_are_accepted_exactly_when_they_run(
        case in any::<Index>(),
        which in 0..3_usize,
        how in proptest::collection::vec((0..10_u8, 0..9_u32), 1..40),
        kept in proptest::collection::vec((0..12_u8, 1..9_u32), 1..40),
    ) {
        let case = &cases()[case.index(cases().len())];
        let mut body = nest(&case.programs[which].body, &how);
        keep(&mut body, &kept);
        agree(case, which, &body)?;
    }

    /// Sweeps with shifts near what they need: half of them run.
    #[test]
    fn random_sweeps_are_accepted_exactly_when_they_run(
        case in any::<Index>(),
        lags in proptest::collection::vec(0..4_u32, 8),
        rings in proptest::collection::vec(0..3_u32, 40),
        halo in any::<bool>(),
    ) {
        let case = &cases()[case.index(cases().len())];
        let mut shift = 0;
        let how: Vec<(u8, u32)> = lags.iter().map(|lag| {
            shift += lag;
            (4, shift)
        }).collect();
        let mut body = nest(&case.programs[0].body, &[&[(9, 0)], &how[..]].concat());
        let shape = &case.programs[0].shape;
        let reach = KnownReach::new(&case.programs[0]);
        let setting = passes::Setting { shape, store: shape.store, reach: &reach };
        let shorten = passes::nest_passes().into_iter().find(|pass| pass.name == "shorten_buffers").unwrap();
        (shorten.run)(&mut body, &setting).unwrap();
        body.normalise();
        let roots = body.roots();
        for (id, value) in body.values.iter_mut().enumerate() {
            if let Extent::Ring(rows) = &mut value.extent {
                // One row too few in a third of all rings.
                *rows = (*rows - u32::from(rings[roots[id].0 as usize % rings.len()] == 0)).max(1);
            }
        }
        body.loops.iter_mut().for_each(|one| one.halo = halo);
        agree(case, 0, &body)?;
    }

    /// One change to the nest of a recipe.
    #[test]
    fn broken_recipes_are_refused(
        case in any::<Index>(),
        which in 0..3_usize,
        strategy in any::<Index>(),
        at in any::<(Index, Index, Index)>(),
        what in 0..7_u8,
        number in 0..9_u32,
    ) {
        let case = &cases()[case.index(cases().len())];
        let program = &case.programs[which];
        let of = if which == 0 { Strategy::ALL } else { Strategy::TRAINING };
        let reach = KnownReach::new(program);
        let Ok((mut body, _)) = passes::apply(program, of[strategy.index(of.len())], &[], None, &reach) else {
            return Ok(());
        };
        prop_assert!(agree(case, which, &body)?, "a recipe's nest is refused:\n{body}");
        let roots = body.roots();
        let i = at.0.index(body.loops.len());
        let j = at.1.index(body.loops[i].stages.len());
        let stage = &mut body.loops[i].stages[j];
        let k = at.2.index(stage.ops.len());
        match what {
            0 => stage.shift = number,
            1 => {
                let other = at.1.index(stage.ops.len());
                stage.ops.swap(k, other);
            }
            2 => {
                let root = roots[stage.ops[k].results[0].0 as usize];
                let extent = if number == 0 { Extent::Row } else { Extent::Ring(number) };
                for (id, of) in roots.iter().enumerate() {
                    if *of == root && !matches!(body.values[id].extent, Extent::Tensor(_)) {
                        body.values[id].extent = extent;
                    }
                }
            }
            3 if i > 0 => body.loops.swap(i, i - 1),
            4 if i > 0 => {
                let stages = body.loops.remove(i).stages;
                body.loops[i - 1].stages.extend(stages);
            }
            5 if j > 0 => {
                let ops = std::mem::take(&mut stage.ops);
                body.loops[i].stages[j - 1].ops.extend(ops);
                body.loops[i].stages.remove(j);
            }
            _ => body.loops[i].halo ^= true,
        }
        // Stages by keys have rules of their own, which the simulation does not know.
        let by_keys = body.loops.iter().flat_map(|one| &one.stages).any(|stage| stage.by_keys);
        let (verdict, run) = judge(case, which, &body);
        match (&verdict, &run) {
            (Ok(()), Err(fault)) => prop_assert!(false, "accepted, and {fault}\n{body}"),
            (Err(rule), Ok(())) if case.pattern < EXACT && !by_keys => prop_assert!(false, "refused: {rule}\n{body}"),
            _ => {}
        }
    }
}

/// The generators above draw from both kinds.
#[test]
fn random_nests_are_of_both_kinds() {
    let case = &cases()[1];
    let mut found = [0, 0];
    for seed in 0..400_u32 {
        let how: Vec<(u8, u32)> = (0..7).map(|i| ((seed >> i) as u8 % 10, (seed * 7 + i) % 6)).collect();
        let body = nest(&case.programs[0].body, &how);
        found[usize::from(judge(case, 0, &body).0.is_ok())] += 1;
    }
    assert!(found[0] > 40 && found[1] > 40, "{found:?}");
}

#[test]
fn texts_of_programs_are_read_back() {
    for program in cases().iter().flat_map(|case| &case.programs) {
        let verified = verify(program.clone()).unwrap();
        assert_eq!(parse(&verified.print()).unwrap(), *verified);
    }
}

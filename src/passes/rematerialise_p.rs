//! `for row { p = exp … } … for row { z = spmm p y } -> … for row { qt' = pack q; s' = sddmm qt' k; p' = exp s' - m; z = spmm p' y }`.
//!
//! Every later reader of P computes it again from q, k and the row's statistics, which takes less memory than P, and less
//! time than fetching it from far away. The first reader keeps the original, whose panel is still at hand. What nobody
//! reads afterwards (copies, dropped weights) goes.

use std::collections::{BTreeSet, HashMap};

use super::nest::{self, Site, Sites};
use super::{NestPass, Verdict};
use crate::program::{Body, Extent, Names, Op, Operation, Space, ValueId};

/// For every reader but the first.
pub(super) const EVERYWHERE: NestPass = NestPass {
    name: "rematerialise_p",
    rewrite: "for row {p = exp s - m} … for row {spmm p} -> … for row {p' = exp s' - m; spmm p'}",
    by_reach: false,
    run: |body, _| rematerialise(body, false),
};

/// For the gradient of the scores alone.
pub(super) const IN_GRADIENT: NestPass = NestPass {
    name: "rematerialise_p_in_gradient",
    rewrite: "for row {p = exp s - m} … for row {softmax' p} -> … for row {p' = exp s' - m; softmax' p'}",
    by_reach: false,
    run: |body, _| rematerialise(body, true),
};

fn rematerialise(body: &mut Body, in_gradient: bool) -> Verdict {
    let original = body.clone();
    let sites = Sites::of(&original);
    let mut names = Names::of(body);
    let mut first = true;
    for (i, j) in nest::stages(body) {
        let here = Site { one: i, stage: j, op: 0 };
        let stage = &original.loops[i].stages[j];
        let has = |what: fn(&Op) -> bool| stage.ops.iter().any(|operation| what(&operation.op));
        let of_scores = has(|op| matches!(op, Op::SoftmaxGradient { .. } | Op::ModsGradient { .. }));
        let reads = |op: &Op| matches!(op, Op::Spmm { .. } | Op::SpmmT { .. } | Op::Solve { .. } | Op::SolveT { .. });
        if !of_scores && !has(reads) {
            continue;
        }
        let elsewhere = |id: ValueId| sites.made[id.0 as usize].is_some_and(|made| !made.same_stage(here));
        let foreign = |operation: &Operation| {
            let reads = operation.op.reads().into_iter().map(|(id, _)| id);
            reads.filter(|&id| original.value(id).space == Space::Pairs && elsewhere(id)).collect::<Vec<_>>()
        };
        let wanted: Vec<ValueId> = stage.ops.iter().flat_map(foreign).collect();
        if wanted.is_empty() {
            continue;
        }
        let takes_part = if in_gradient { of_scores } else { !std::mem::take(&mut first) };
        if !takes_part {
            continue;
        }
        let Some(slice) = producers(&original, &sites, &wanted) else { continue };
        let (again, renamed) = copy(body, &original, &mut names, &slice);
        let at = first_on_pairs(&original, i, j);
        let ops = &mut body.loops[i].stages[j].ops;
        ops.iter_mut().for_each(|operation| operation.op.rename(|id| renamed.get(&id).copied().unwrap_or(id)));
        ops.splice(at..at, again);
    }
    nest::remove_unread(body);
    Ok(None)
}

/// The first operation of a stage that works on pairs.
fn first_on_pairs(body: &Body, i: usize, j: usize) -> usize {
    let is_pairs = |id: ValueId| body.value(id).space == Space::Pairs;
    let works = |operation: &Operation| {
        operation.results.iter().any(|&id| is_pairs(id)) || operation.op.reads().iter().any(|&(id, _)| is_pairs(id))
    };
    body.loops[i].stages[j].ops.iter().position(works).unwrap_or(0)
}

/// The operations that make these values from tensors and row statistics; `None` where others are among them.
fn producers(body: &Body, sites: &Sites, wanted: &[ValueId]) -> Option<BTreeSet<Site>> {
    let mut slice = BTreeSet::new();
    let mut open = wanted.to_vec();
    while let Some(id) = open.pop() {
        let site = sites.made[id.0 as usize]?;
        if !slice.insert(site) {
            continue;
        }
        let op = &sites.operation(body, id)?.op;
        let again = matches!(
            op,
            Op::Pack { .. }
                | Op::Sddmm { .. }
                | Op::Scale { .. }
                | Op::Copy { .. }
                | Op::Mods { .. }
                | Op::Mask { .. }
                | Op::Exp { .. }
                | Op::Dropout { hop: None, .. }
        );
        if !again {
            return None;
        }
        let reads = op.reads().into_iter().map(|(id, _)| id);
        open.extend(reads.filter(|&id| matches!(body.value(id).space, Space::Pairs | Space::Packed(_))));
    }
    Some(slice)
}

/// Copies operations, in order, without a row maximum: the one that is known serves.
fn copy(
    body: &mut Body,
    original: &Body,
    names: &mut Names,
    slice: &BTreeSet<Site>,
) -> (Vec<Operation>, HashMap<ValueId, ValueId>) {
    let mut renamed: HashMap<ValueId, ValueId> = HashMap::new();
    let mut copies = Vec::new();
    for site in slice {
        let Operation { mut op, mut results } = original.loops[site.one].stages[site.stage].ops[site.op].clone();
        op.rename(|id| renamed.get(&id).copied().unwrap_or(id));
        if matches!(op, Op::Sddmm { .. } | Op::Mods { .. }) {
            results.truncate(1);
        }
        for result in &mut results {
            let value = original.value(*result);
            let fresh = names.add(body, &value.name, value.space, Extent::All);
            // Row statistics stay those that are known: sums of some keys are no sums of a row.
            if matches!(value.space, Space::Pairs | Space::Packed(_)) {
                renamed.insert(*result, fresh);
            }
            *result = fresh;
        }
        copies.push(Operation { op, results });
    }
    (copies, renamed)
}

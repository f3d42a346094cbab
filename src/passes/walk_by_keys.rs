//! `at row { pack sddmm exp spmm } -> at row by keys { pack sddmm exp spmm }`.
//!
//! All operations on some keys of a block row before the next keys: pairs stay in a panel that fits a cache, whatever the
//! length of a row. Where the row's maximum is found on the way, the softmax is an online one, whose weights are final only
//! behind the last key; then nothing but one product may take them. Operations on whole rows come before those on pairs, or
//! behind. What is solved row after row takes whole
//! rows. Refused where pairs outlive their stage.

use super::nest::{self, Site, Sites};
use super::{NestPass, Verdict};
use crate::program::{Body, Extent, Op, Operation, Space, Stage, ValueId};

/// Every stage that makes pairs; refused where one cannot.
pub(super) const PASS: NestPass = NestPass {
    name: "walk_by_keys",
    rewrite: "at row {pack sddmm exp spmm} -> at row by keys {pack sddmm exp spmm}",
    by_reach: false,
    run: |body, _| walk(body, true),
};

/// Those that can.
pub(super) const REST: NestPass = NestPass { run: |body, _| walk(body, false), ..PASS };

fn walk(body: &mut Body, every: bool) -> Verdict {
    let sites = Sites::of(body);
    for (i, j) in nest::stages(body) {
        let stage = &body.loops[i].stages[j];
        let has = |what: fn(&Op) -> bool| stage.ops.iter().any(|operation| what(&operation.op));
        let whole_rows = has(|op| matches!(op, Op::Solve { .. } | Op::SolveT { .. }));
        if stage.by_keys || whole_rows || !has(|op| matches!(op, Op::Sddmm { .. })) {
            continue;
        }
        match fault(body, &sites, i, j) {
            Some(fault) if every => return Err(fault),
            Some(_) => continue,
            None => {}
        }
        let ops = std::mem::take(&mut body.loops[i].stages[j].ops);
        let stage = &mut body.loops[i].stages[j];
        stage.by_keys = true;
        stage.ops = rows_first(ops, |id| body.values[id.0 as usize].space == Space::Pairs);
        for &id in stage.ops.iter().flat_map(|operation| &operation.results) {
            let value = &mut body.values[id.0 as usize];
            if value.space == Space::Pairs {
                value.extent = Extent::Keys;
            }
        }
    }
    Ok(None)
}

/// Why a stage cannot go by keys.
fn fault(body: &Body, sites: &Sites, i: usize, j: usize) -> Option<String> {
    let here = Site { one: i, stage: j, op: 0 };
    let stage = &body.loops[i].stages[j];
    let is_pairs = |id: &ValueId| body.value(*id).space == Space::Pairs;
    let made = |id: ValueId| sites.made[id.0 as usize].is_some_and(|site| site.same_stage(here));
    let name = |id: ValueId| &body.value(id).name;
    for operation in &stage.ops {
        for &id in operation.results.iter().filter(|id| is_pairs(id)) {
            if !sites.reads(id).iter().all(|(site, _)| site.same_stage(here)) {
                return Some(format!("{} outlives the stage that makes it", name(id)));
            }
        }
        for (id, _) in operation.op.reads() {
            if is_pairs(&id) && !made(id) {
                return Some(format!("{} is kept from another stage", name(id)));
            }
        }
        if let Op::Exp { m, .. } = operation.op
            && made(m)
            && !goes_to_one_product(stage, sites, operation.results[0])
        {
            let p = name(operation.results[0]);
            return Some(format!("{p} is final only behind the last key, and more than one product needs it"));
        }
    }
    None
}

/// Whether weights are read by one product alone, after dropout or without.
fn goes_to_one_product(stage: &Stage, sites: &Sites, mut weights: ValueId) -> bool {
    while let [(site, _)] = sites.reads(weights) {
        let reader = &stage.ops[site.op];
        match reader.op {
            Op::Spmm { .. } => return true,
            Op::Dropout { .. } => weights = reader.results[0],
            _ => return false,
        }
    }
    false
}

/// Operations on rows that wait for no pairs, then those on pairs, then the others.
fn rows_first(ops: Vec<Operation>, is_pairs: impl Fn(ValueId) -> bool) -> Vec<Operation> {
    let (mut before, mut on_pairs, mut behind) = (Vec::new(), Vec::new(), Vec::new());
    let mut late: Vec<ValueId> = Vec::new();
    for operation in ops {
        let reads = operation.op.reads();
        if operation.results.iter().any(|&id| is_pairs(id)) || reads.iter().any(|&(id, _)| is_pairs(id)) {
            late.extend(&operation.results);
            on_pairs.push(operation);
        } else if reads.iter().any(|(id, _)| late.contains(id)) {
            late.extend(&operation.results);
            behind.push(operation);
        } else {
            before.push(operation);
        }
    }
    before.into_iter().chain(on_pairs).chain(behind).collect()
}

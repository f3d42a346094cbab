//! `for row { z1 } … for row { zK } … for row { delta = dot_rows g zk … }` -> before each gradient of a hop, its z again:
//! `for row { z1' } … for row { zk' } for row { delta = dot_rows g zk' … }`.
//!
//! Only two Z are alive at a time, at the price of a product for every hop before. With many hops that price would grow
//! with their square: then every √K-th Z is kept, and those between two kept ones are computed again once. Runs behind
//! `split_gradient_by_hops`, and before P is computed again for every product.

use std::collections::HashMap;

use super::nest;
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Extent, Loop, Names, Op, Space, ValueId};

pub(super) const PASS: NestPass = NestPass {
    name: "recompute_hops",
    rewrite: "for row {zk} … for row {gradient of zk} -> … for row {z1'} … for row {zk'} for row {gradient of zk'}",
    by_reach: false,
    run,
};

/// Hops up to which only V is kept.
const FEW_HOPS: usize = 32;

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    if body.loops.iter().any(Loop::is_in_order) {
        // All hops are one.
        return Ok(None);
    }
    let hops = hops(body);
    let Some(forward) = hops.last().map(|hop| hop.loops.end) else { return Ok(None) };
    let kept_every = match hops.len() {
        0..=FEW_HOPS => usize::MAX,
        many => (many as f64).sqrt().ceil() as usize,
    };
    let number: HashMap<ValueId, usize> =
        hops.iter().enumerate().flat_map(|(i, hop)| hop.results.iter().map(move |&z| (z, i + 1))).collect();
    let mut names = Names::of(body);
    let mut again: HashMap<ValueId, ValueId> = HashMap::new();
    let mut segment = usize::MAX;
    let mut done: Vec<Loop> = Vec::new();
    for (at, mut one) in std::mem::take(&mut body.loops).into_iter().enumerate() {
        if at < forward {
            done.push(one);
            continue;
        }
        let reads =
            |one: &Loop| one.ops().flat_map(|operation| operation.op.reads()).map(|(id, _)| id).collect::<Vec<_>>();
        let output = |id: ValueId, body: &Body| matches!(body.value(id).extent, Extent::Tensor(_));
        let wanted = reads(&one).into_iter().filter(|&id| !output(id, body));
        let last = wanted.filter_map(|id| number.get(&id).copied()).filter(|hop| hop % kept_every != 0).max();
        if let Some(last) = last {
            let first = last / kept_every * kept_every;
            if kept_every == usize::MAX || segment != first {
                again.clear();
                segment = first;
                for hop in &hops[first..last] {
                    let copies: Vec<Loop> = done[hop.loops.clone()].to_vec();
                    done.extend(copies.into_iter().map(|copy| renewed(body, &mut names, copy, &mut again)));
                }
            }
            let kept = |id: ValueId| number.get(&id).is_some_and(|hop| hop % kept_every == 0) || output(id, body);
            let name = |id: ValueId| if kept(id) { id } else { again.get(&id).copied().unwrap_or(id) };
            let ops = one.stages.iter_mut().flat_map(|stage| &mut stage.ops);
            ops.for_each(|operation| operation.op.rename(name));
        }
        done.push(one);
    }
    body.loops = done;
    Ok(None)
}

/// One hop: its loops, and the rows that it makes there.
struct Hop {
    loops: std::ops::Range<usize>,
    results: Vec<ValueId>,
}

/// The hops of the forward part.
fn hops(body: &Body) -> Vec<Hop> {
    let count = body.hops();
    let mut hops: Vec<Hop> = Vec::new();
    for (i, one) in body.loops.iter().enumerate() {
        let begins = nest::starts_with(one, |op| matches!(op, Op::Spmm { .. }));
        let goes_on = nest::starts_with(one, |op| {
            matches!(op, Op::Combine { .. } | Op::ScaleRows { .. } | Op::Dropout { hop: Some(_), .. })
        });
        if begins && hops.len() < count {
            hops.push(Hop { loops: i..i, results: Vec::new() });
        } else if !goes_on || hops.last().is_none_or(|hop| hop.loops.end != i) {
            continue;
        }
        if let Some(hop) = hops.last_mut() {
            hop.loops.end = i + 1;
            let rows = one.ops().flat_map(|operation| &operation.results).copied();
            hop.results.extend(rows.filter(|&id| matches!(body.value(id).space, Space::Queries(_))));
        }
    }
    hops
}

/// A copy of a loop with results of its own.
fn renewed(body: &mut Body, names: &mut Names, mut one: Loop, again: &mut HashMap<ValueId, ValueId>) -> Loop {
    for operation in one.stages.iter_mut().flat_map(|stage| &mut stage.ops) {
        operation.op.rename(|id| again.get(&id).copied().unwrap_or(id));
        for result in &mut operation.results {
            let value = body.value(*result).clone();
            // A copy of the output's last rows is no output.
            let fresh = names.add(body, &value.name, value.space, Extent::All);
            again.insert(*result, fresh);
            *result = fresh;
        }
    }
    one
}

//! What nest passes share: joining neighboring loops, and where values are made and read.

use std::collections::HashMap;

use crate::program::{Access, Body, Extent, Loop, Op, Operation, Space, Value, ValueId};

/// How a loop joins the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// Not at all.
    Apart,
    /// Its operations follow those of the last stage, row by row.
    SameStage,
    /// It becomes stages of its own, so many rows behind.
    Behind(u32),
}

/// Goes through the loops in order and joins each to the one before it, as grown so far, where `how` says so. Loops over
/// parts and others stay apart.
pub(super) fn join_loops(body: &mut Body, mut how: impl FnMut(&[Value], &Loop, &Loop) -> Join) {
    for mut next in std::mem::take(&mut body.loops) {
        let join = match body.loops.last() {
            Some(last) if (last.parts, last.set) == (next.parts, next.set) => how(&body.values, last, &next),
            _ => Join::Apart,
        };
        match (join, body.loops.last_mut()) {
            (Join::SameStage, Some(last)) => match last.stages.last_mut() {
                Some(stage) => stage.ops.extend(next.stages.into_iter().flat_map(|stage| stage.ops)),
                None => last.stages = next.stages,
            },
            (Join::Behind(shift), Some(last)) => {
                next.stages.iter_mut().for_each(|stage| stage.shift += shift);
                last.stages.append(&mut next.stages);
            }
            _ => body.loops.push(next),
        }
    }
}

/// Whether the operations of `next` read, row by row, what those of `last` make.
pub(super) fn follows(last: &Loop, next: &Loop) -> bool {
    let made = |id: ValueId| last.ops().any(|operation| operation.results.contains(&id));
    next.ops().flat_map(|operation| operation.op.reads()).any(|(id, access)| access != Access::Neighbors && made(id))
}

/// Whether the first operation of a loop that has one does something.
pub(super) fn starts_with(one: &Loop, what: impl Fn(&Op) -> bool) -> bool {
    one.ops().next().is_some_and(|operation| what(&operation.op))
}

/// A place in the nest: loop, stage, operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    pub one: usize,
    pub stage: usize,
    pub op: usize,
}

impl Site {
    pub(super) fn same_stage(self, other: Self) -> bool {
        (self.one, self.stage) == (other.one, other.stage)
    }
}

/// Where every value is made, and where it is read.
pub(super) struct Sites {
    pub made: Vec<Option<Site>>,
    pub read: Vec<Vec<(Site, Access)>>,
}

impl Sites {
    pub(super) fn of(body: &Body) -> Self {
        let mut sites = Self { made: vec![None; body.values.len()], read: vec![Vec::new(); body.values.len()] };
        for (site, operation) in each_operation(body) {
            for result in &operation.results {
                sites.made[result.0 as usize] = Some(site);
            }
            for (operand, access) in operation.op.reads() {
                sites.read[operand.0 as usize].push((site, access));
            }
        }
        sites
    }

    /// The operation that makes a value.
    pub(super) fn operation<'a>(&self, body: &'a Body, id: ValueId) -> Option<&'a Operation> {
        let Site { one, stage, op } = self.made[id.0 as usize]?;
        Some(&body.loops[one].stages[stage].ops[op])
    }

    pub(super) fn reads(&self, id: ValueId) -> &[(Site, Access)] {
        &self.read[id.0 as usize]
    }
}

/// All operations with their places.
pub(super) fn each_operation(body: &Body) -> impl Iterator<Item = (Site, &Operation)> {
    body.loops.iter().enumerate().flat_map(|(i, one)| {
        one.stages.iter().enumerate().flat_map(move |(j, stage)| {
            stage.ops.iter().enumerate().map(move |(k, operation)| (Site { one: i, stage: j, op: k }, operation))
        })
    })
}

/// Takes operations out, then stages and loops that have become empty, and gives operands new names.
pub(super) fn remove(body: &mut Body, gone: impl Fn(&Operation) -> bool, renamed: &HashMap<ValueId, ValueId>) {
    let last_name = |mut id: ValueId| {
        while let Some(&next) = renamed.get(&id) {
            id = next;
        }
        id
    };
    for one in &mut body.loops {
        for stage in &mut one.stages {
            stage.ops.retain(|operation| !gone(operation));
            stage.ops.iter_mut().for_each(|operation| operation.op.rename(last_name));
        }
        one.stages.retain(|stage| !stage.ops.is_empty());
    }
    body.loops.retain(|one| !one.stages.is_empty());
}

/// Takes out operations whose results nobody reads, and copies of pairs that are read by nobody else afterwards.
pub(super) fn remove_unread(body: &mut Body) {
    let roots = body.roots();
    let output = |id: ValueId| matches!(body.values[roots[id.0 as usize].0 as usize].extent, Extent::Tensor(_));
    let mut live = vec![false; body.values.len()];
    let operations: Vec<&Operation> = body.ops().collect();
    // The maximum of scores is a result that may go unread; what counts is whether any result is.
    for operation in operations.iter().rev() {
        let adds_to_inputs = matches!(operation.op, Op::ModsGradient { .. } | Op::SumRows { .. });
        if adds_to_inputs || operation.results.iter().any(|&result| live[result.0 as usize] || output(result)) {
            operation.results.iter().for_each(|result| live[result.0 as usize] = true);
            operation.op.reads().iter().for_each(|(operand, _)| live[operand.0 as usize] = true);
        }
    }
    let is_live = |operation: &Operation| operation.results.iter().any(|result| live[result.0 as usize]);
    // Where each value is read last, counting operations.
    let mut last_read = vec![0; body.values.len()];
    for (at, operation) in operations.iter().enumerate().filter(|(_, operation)| is_live(operation)) {
        operation.op.reads().iter().for_each(|(operand, _)| last_read[operand.0 as usize] = at);
    }
    let mut renamed = HashMap::new();
    for (at, operation) in operations.iter().enumerate() {
        if let Op::Copy { x } = operation.op
            && body.value(x).space == Space::Pairs
            && last_read[x.0 as usize] == at
        {
            renamed.insert(operation.results[0], x);
        }
    }
    let copies = renamed.clone();
    remove(body, |operation| !is_live(operation) || copies.contains_key(&operation.results[0]), &renamed);
}

/// Loop and stage of every stage.
pub(super) fn stages(body: &Body) -> Vec<(usize, usize)> {
    let stages = body.loops.iter().enumerate();
    stages.flat_map(|(i, one)| (0..one.stages.len()).map(move |j| (i, j))).collect()
}

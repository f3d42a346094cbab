//! Where every value is made, read and overwritten.

use crate::program::{Access, Body, Op, Operation, ValueId};

/// A place in the nest: loop, stage, operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// All places, by the number of the value.
pub(super) struct Sites {
    /// `None` for what is given.
    pub made: Vec<Option<Site>>,
    pub read: Vec<Vec<(Site, Access)>>,
    /// The operation that writes in its place, and what that is called.
    pub overwritten: Vec<Option<(Site, ValueId)>>,
    pub roots: Vec<ValueId>,
}

impl Sites {
    pub(super) fn made(&self, id: ValueId) -> Option<Site> {
        self.made[id.0 as usize]
    }

    pub(super) fn read(&self, id: ValueId) -> &[(Site, Access)] {
        &self.read[id.0 as usize]
    }

    pub(super) fn overwritten(&self, id: ValueId) -> Option<(Site, ValueId)> {
        self.overwritten[id.0 as usize]
    }

    pub(super) fn root(&self, id: ValueId) -> ValueId {
        self.roots[id.0 as usize]
    }

    /// The values that stand in one place one after the other, from the first on.
    pub(super) fn chain(&self, root: ValueId) -> impl Iterator<Item = ValueId> {
        std::iter::successors(Some(root), |id| self.overwritten(*id).map(|(_, next)| next))
    }
}

pub(super) fn op(body: &Body, site: Site) -> &Operation {
    &body.loops[site.one].stages[site.stage].ops[site.op]
}

pub(super) fn name(body: &Body, id: ValueId) -> &str {
    &body.value(id).name
}

/// Whether the operation writes rows of keys, of any block row, or rows from the last on.
pub(super) fn scatters(body: &Body, site: Site) -> bool {
    matches!(op(body, site).op, Op::SpmmT { .. } | Op::SolveT { .. })
}

/// Every operation with its place.
pub(super) fn each(body: &Body) -> impl Iterator<Item = (Site, &Operation)> {
    body.loops.iter().enumerate().flat_map(|(i, one)| {
        one.stages.iter().enumerate().flat_map(move |(j, stage)| {
            stage.ops.iter().enumerate().map(move |(k, operation)| (Site { one: i, stage: j, op: k }, operation))
        })
    })
}

//! A program run without numbers: loops row by row, with what every buffer holds at each step, and the pattern's own pairs.
//! It judges the verifier, and shares nothing with it.
//!
//! Rules of the language that it takes for granted: values are named before they are read, and rows of keys that a product
//! adds to are there when its loop is done.

use std::collections::{BTreeMap, BTreeSet};

use crate::program::{Access, Body, Extent, Op, Operation, Space, ValueId};

/// Which block rows of keys a block row of queries meets: one set for each.
pub(super) type Meets = Vec<BTreeSet<usize>>;

/// What one block row of a buffer holds: the values of its chain that have been written so far.
type Written = BTreeSet<u32>;

/// Runs all loops; those with a halo in one stretch, and in two.
///
/// # Errors
/// The first read that does not find what it should.
pub(super) fn run(body: &Body, meets: &Meets) -> Result<(), String> {
    run_cut(body, meets, false)?;
    if body.loops.iter().any(|one| one.halo) { run_cut(body, meets, true) } else { Ok(()) }
}

fn run_cut(body: &Body, meets: &Meets, cut: bool) -> Result<(), String> {
    let mut machine = Machine::new(body, meets);
    for one in 0..body.loops.len() {
        if body.loops[one].halo && cut {
            // Each with buffers of its own for what is not shared.
            let middle = meets.len() / 2;
            let before = machine.buffers.clone();
            machine.run_stretch(one, 0..middle)?;
            let shared = machine.shared_of(&before);
            machine.buffers = shared;
            machine.run_stretch(one, middle..meets.len())?;
        } else {
            let all: Vec<BTreeSet<usize>> = vec![(0..meets.len()).collect(); body.loops[one].stages.len()];
            machine.run_loop(one, &all, None)?;
        }
        machine.end_loop(one);
    }
    machine.end()
}

struct Machine<'a> {
    body: &'a Body,
    meets: &'a Meets,
    /// By value: the first of its chain, and what of the chain is written before it, itself included.
    first: Vec<u32>,
    chain: Vec<Written>,
    /// Values that add to what is there, in any order.
    adds: BTreeSet<u32>,
    /// Values that are rows of keys, written by all rows of queries.
    scattered: BTreeSet<u32>,
    /// Rows of every buffer, by the first of its chain.
    buffers: BTreeMap<u32, BTreeMap<usize, Written>>,
}

impl<'a> Machine<'a> {
    fn new(body: &'a Body, meets: &'a Meets) -> Self {
        let count = body.values.len();
        let mut machine = Self {
            body,
            meets,
            first: (0..count as u32).collect(),
            chain: (0..count as u32).map(|id| BTreeSet::from([id])).collect(),
            adds: BTreeSet::new(),
            scattered: BTreeSet::new(),
            buffers: BTreeMap::new(),
        };
        let mut given: BTreeSet<u32> = (0..count as u32).collect();
        for operation in body.ops() {
            for (result, operand) in operation.results.iter().zip(operation.op.in_place()) {
                given.remove(&result.0);
                if let Some(operand) = operand {
                    machine.first[result.0 as usize] = machine.first[operand.0 as usize];
                    let before = machine.chain[operand.0 as usize].clone();
                    machine.chain[result.0 as usize].extend(before);
                }
                if operation.op.reads().iter().any(|(_, access)| *access == Access::Onto) {
                    machine.adds.insert(result.0);
                }
                if matches!(operation.op, Op::SpmmT { .. } | Op::SolveT { .. }) {
                    machine.scattered.insert(result.0);
                }
            }
        }
        for id in given {
            let rows = (0..meets.len()).map(|t| (t, BTreeSet::from([id]))).collect();
            machine.buffers.insert(id, rows);
        }
        machine
    }

    fn extent(&self, id: u32) -> Extent {
        self.body.values[self.first[id as usize] as usize].extent
    }

    fn is_shared(&self, first: u32) -> bool {
        matches!(self.body.values[first as usize].extent, Extent::All | Extent::Tensor(_))
    }

    /// What another stretch finds: what was there before, for all that a stretch has for itself.
    fn shared_of(&self, before: &BTreeMap<u32, BTreeMap<usize, Written>>) -> BTreeMap<u32, BTreeMap<usize, Written>> {
        let mut shared = self.buffers.clone();
        shared.retain(|first, _| self.is_shared(*first));
        for (first, rows) in before {
            if !self.is_shared(*first) {
                shared.insert(*first, rows.clone());
            }
        }
        shared
    }

    /// The rows that each stage runs for a stretch: its own, and whatever others of the stretch read.
    fn rows_of_stretch(&self, one: usize, own: std::ops::Range<usize>) -> Vec<BTreeSet<usize>> {
        let stages = &self.body.loops[one].stages;
        let mut rows: Vec<BTreeSet<usize>> = vec![own.clone().collect(); stages.len()];
        loop {
            let before = rows.clone();
            for (reader, stage) in stages.iter().enumerate() {
                for (id, access) in stage.ops.iter().flat_map(|operation| operation.op.reads()) {
                    let makes = |stage: &crate::program::Stage| {
                        stage.ops.iter().any(|operation| {
                            operation.results.iter().any(|made| self.chain[id.0 as usize].contains(&made.0))
                        })
                    };
                    for maker in (0..stages.len()).filter(|&maker| makes(&stages[maker])) {
                        let needed: BTreeSet<usize> = match access {
                            Access::Neighbors => rows[reader].iter().flat_map(|&t| self.meets[t].clone()).collect(),
                            Access::Row | Access::Onto => rows[reader].clone(),
                        };
                        rows[maker].extend(needed);
                    }
                }
            }
            if rows == before {
                return rows;
            }
        }
    }

    fn run_stretch(&mut self, one: usize, own: std::ops::Range<usize>) -> Result<(), String> {
        let rows = self.rows_of_stretch(one, own.clone());
        self.run_loop(one, &rows, Some(own))
    }

    fn run_loop(
        &mut self,
        one: usize,
        rows: &[BTreeSet<usize>],
        own: Option<std::ops::Range<usize>>,
    ) -> Result<(), String> {
        let body = self.body;
        let stages = &body.loops[one].stages;
        // Sums over rows of queries begin with zeros.
        for operation in stages.iter().flat_map(|stage| &stage.ops) {
            if matches!(operation.op, Op::SpmmT { onto: None, .. } | Op::SolveT { .. }) {
                self.buffers
                    .insert(operation.results[0].0, (0..self.meets.len()).map(|t| (t, Written::new())).collect());
            }
        }
        let last = stages.iter().map(|stage| stage.shift as usize).max().unwrap_or(0) + self.meets.len();
        for step in 0..last {
            for (stage, rows) in stages.iter().zip(rows) {
                let Some(t) = step.checked_sub(stage.shift as usize) else { continue };
                if !rows.contains(&t) {
                    continue;
                }
                for operation in &stage.ops {
                    self.run_op(operation, t, own.as_ref())
                        .map_err(|fault| format!("row {t}: {}: {fault}", body.print_op(operation)))?;
                }
                // What a stage keeps for a row goes with the row.
                for result in stage.ops.iter().flat_map(|operation| &operation.results) {
                    if matches!(self.extent(result.0), Extent::Row | Extent::Keys) {
                        self.buffers.remove(&self.first[result.0 as usize]);
                    }
                }
            }
        }
        Ok(())
    }

    fn run_op(&mut self, operation: &Operation, t: usize, own: Option<&std::ops::Range<usize>>) -> Result<(), String> {
        for (id, access) in operation.op.reads() {
            let rows: Vec<usize> = match access {
                Access::Neighbors => self.meets[t].iter().copied().collect(),
                Access::Row => vec![t],
                Access::Onto if matches!(operation.op, Op::SpmmT { .. }) => self.meets[t].iter().copied().collect(),
                Access::Onto => vec![t],
            };
            for row in rows {
                self.read(id, row, access)?;
            }
        }
        for (&result, operand) in operation.results.iter().zip(operation.op.in_place()) {
            let first = self.first[result.0 as usize];
            let beyond = own.is_some_and(|own| !own.contains(&t));
            if beyond && self.is_shared(first) {
                return Err("a stretch writes a row of another".to_owned());
            }
            if matches!(operation.op, Op::SpmmT { .. } | Op::SolveT { .. }) {
                if own.is_some() {
                    return Err("a stretch adds to rows of keys".to_owned());
                }
                continue;
            }
            let buffer = self.buffers.entry(first).or_default();
            let written = buffer.entry(t).or_default();
            if operand.is_none() {
                written.clear();
            }
            written.insert(result.0);
            if let (None, Extent::Ring(rows)) = (operand, self.body.values[first as usize].extent) {
                let oldest = (t + 1).saturating_sub(rows as usize);
                *buffer = buffer.split_off(&oldest);
            }
        }
        Ok(())
    }

    /// A row must hold what its name says: all that was written up to it, and nothing later.
    fn read(&self, id: ValueId, row: usize, access: Access) -> Result<(), String> {
        let name = &self.body.values[id.0 as usize].name;
        let first = self.first[id.0 as usize];
        let found = self.buffers.get(&first).and_then(|rows| rows.get(&row));
        let Some(found) = found else { return Err(format!("row {row} of {name} is not there")) };
        let wanted = &self.chain[id.0 as usize];
        if access == Access::Onto {
            // What is no addition must be there before one.
            let awaited = wanted.iter().filter(|of| !self.adds.contains(of) && !self.scattered.contains(of));
            let here = awaited.clone().all(|of| found.contains(of));
            let other = found.iter().any(|of| !wanted.contains(of) && !self.adds.contains(of));
            return if here && !other { Ok(()) } else { Err(format!("row {row} of {name} is not what is added to")) };
        }
        if found == wanted {
            Ok(())
        } else {
            Err(format!("row {row} of {name} is another value: {found:?}, not {wanted:?}"))
        }
    }

    fn end_loop(&mut self, one: usize) {
        let body = self.body;
        for operation in body.loops[one].ops() {
            for result in &operation.results {
                let first = self.first[result.0 as usize];
                if self.scattered.contains(&result.0) {
                    let all = self.buffers.entry(first).or_default();
                    all.values_mut().for_each(|written| _ = written.insert(result.0));
                }
            }
        }
        for operation in body.loops[one].ops() {
            for result in &operation.results {
                if !self.is_shared(self.first[result.0 as usize]) {
                    self.buffers.remove(&self.first[result.0 as usize]);
                }
            }
        }
    }

    /// The outputs hold all rows of the last value of their chain.
    fn end(&self) -> Result<(), String> {
        for (id, value) in self.body.values.iter().enumerate() {
            let is_last = !self.body.ops().any(|o| o.op.in_place().contains(&Some(ValueId(id as u32))));
            if is_last && matches!(value.extent, Extent::Tensor(_)) && value.space != Space::Pairs {
                for row in 0..self.meets.len() {
                    self.read(ValueId(id as u32), row, Access::Row)?;
                }
            }
        }
        Ok(())
    }
}

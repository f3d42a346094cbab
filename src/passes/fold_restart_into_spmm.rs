//! `z = spmm p y * a; z = combine z + v * b -> z = spmm p y * a + v * b`.
//!
//! The value tile writes each result once: with the row's factor a / l and the restart term applied on the
//! way from its registers, a hop makes no second pass over z.

use std::collections::HashMap;

use super::Pass;
use super::nest::{self, Sites};
use crate::program::{Factor, Op, Program, ValueId};

pub(super) const PASS: Pass =
    Pass { name: "fold_restart_into_spmm", rewrite: "spmm p z * a, combine z + v * b -> spmm p z * a + v * b", run };

fn run(program: &mut Program) {
    let body = &mut program.body;
    let sites = Sites::of(body);
    let mut added: HashMap<ValueId, (ValueId, Factor)> = HashMap::new();
    let mut renamed: HashMap<ValueId, ValueId> = HashMap::new();
    for operation in body.ops() {
        let Op::Combine { x, y, factor } = operation.op else { continue };
        let product = sites.operation(body, x).map(|operation| &operation.op);
        // Of rows that are there before the product is.
        let there = sites.made[y.0 as usize].zip(sites.made[x.0 as usize]).is_none_or(|(y, x)| y < x);
        if let (Some(Op::Spmm { plus: None, onto: None, .. }), true, [_]) = (product, there, sites.reads(x)) {
            added.insert(x, (y, factor));
            renamed.insert(operation.results[0], x);
        }
    }
    let combined = renamed.clone();
    nest::remove(body, |operation| combined.contains_key(&operation.results[0]), &renamed);
    for operation in body.loops.iter_mut().flat_map(|one| &mut one.stages).flat_map(|stage| &mut stage.ops) {
        if let Op::Spmm { plus, .. } = &mut operation.op
            && let Some((rows, factor)) = added.get(&operation.results[0])
        {
            // Rows may have lost a name of their own here, too.
            *plus = Some((renamed.get(rows).copied().unwrap_or(*rows), *factor));
        }
    }
    body.normalise();
}

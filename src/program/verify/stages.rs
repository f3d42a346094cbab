//! What goes by keys, over parts, in stretches, or with batches of edges can.
//!
//! - **By keys**: operations on whole rows stand before those on pairs or behind them. Pairs are made and read in the
//!   stage. What pairs are reduced to (maxima, sums, products) is there behind the last key: until then, a maximum serves
//!   the exponential, a sum the product that it divides. With a maximum of its own the stage is an online softmax, whose
//!   weights go to one product.
//! - **Over parts**: rows stand in another order in each part, so that only tensors are read by neighbors, and parts come
//!   together in `join`.
//! - **In stretches**: a stage that is run beyond the border of a stretch, for what others read across it, writes nothing
//!   that stretches share.
//! - **Batches of edges**: one stage, by keys.

use super::sites::{Site, Sites, each, name};
use crate::program::{Access, Body, Extent, Loop, Op, Operation, Reach, Space, Stage, ValueId};

/// Most block rows whose scattered edges are computed together.
const MOST_EDGE_ROWS: u32 = 64;
/// Largest shift.
const MOST_SHIFT: u32 = 1 << 20;

pub(super) fn check(body: &Body, sites: &Sites, reach: Option<Reach>) -> Result<(), String> {
    check_parts(body, sites)?;
    for (i, one) in body.loops.iter().enumerate() {
        if one.edge_rows != 1 {
            check_edges(one)?;
        }
        if one.halo {
            check_halo(body, sites, i, reach)?;
        }
        check_in_order(body, sites, i)?;
        check_set(body, sites, one)?;
        for (j, stage) in one.stages.iter().enumerate() {
            if stage.shift > MOST_SHIFT {
                return Err(format!("a stage {} block rows behind", stage.shift));
            }
            if stage.by_keys {
                check_by_keys(body, sites, stage, Site { one: i, stage: j, op: 0 })?;
            }
        }
    }
    Ok(())
}

/// Pairs, and numbers for every query, stay within their set of neighbors: the places of both are those of its masks.
fn check_set(body: &Body, sites: &Sites, one: &Loop) -> Result<(), String> {
    for operation in one.ops() {
        for (id, _) in operation.op.reads() {
            let by_place = !matches!(body.value(id).space, Space::Queries(_) | Space::Keys(_));
            let other = sites.made(id).is_some_and(|site| body.loops[site.one].set != one.set);
            if by_place && other {
                return Err(format!("{} reads {} of other neighbors", operation.op.name(), name(body, id)));
            }
        }
    }
    Ok(())
}

/// Rows that follow each other are those of the only stage: it solves once, for all rows that are kept.
fn check_in_order(body: &Body, sites: &Sites, i: usize) -> Result<(), String> {
    let one = &body.loops[i];
    if !one.is_in_order() {
        return Ok(());
    }
    let solves: Vec<&Operation> = one.ops().filter(|o| matches!(o.op, Op::Solve { .. } | Op::SolveT { .. })).collect();
    let ([_], [operation]) = (one.stages.as_slice(), solves.as_slice()) else {
        return Err("rows that follow each other in a loop of several stages, or in two ways".to_owned());
    };
    let backwards = matches!(operation.op, Op::SolveT { .. });
    // Sums over rows would be added in another order.
    if backwards && one.ops().any(|other| matches!(other.op, Op::SpmmT { .. })) {
        return Err("rows from the last to the first together with sums over rows".to_owned());
    }
    let result = operation.results[0];
    match body.value(sites.root(result)).extent {
        Extent::All => Ok(()),
        Extent::Tensor(_) if !backwards => Ok(()),
        extent => Err(format!("{} is read by later rows, and keeps a {extent}", name(body, result))),
    }
}

fn check_parts(body: &Body, sites: &Sites) -> Result<(), String> {
    let in_parts = body.loops.iter().any(|one| one.parts);
    let of_part = |id: ValueId| sites.made(id).is_some_and(|site| body.loops[site.one].parts);
    for (site, operation) in each(body) {
        let by = operation.op.name();
        let joins = matches!(operation.op, Op::Join { .. });
        let here = body.loops[site.one].parts;
        if joins && (here || !in_parts) {
            return Err("join stands behind loops over parts, and only there".to_owned());
        }
        if !here && in_parts && !joins {
            return Err(format!("{by} stands behind loops over parts, where only join does"));
        }
        for (id, access) in operation.op.reads() {
            let given = sites.made(id).is_none();
            if joins != of_part(id) && !here {
                return Err(format!("join of {}, which is no part's", name(body, id)));
            }
            if here && !given && access == Access::Neighbors {
                return Err(format!(
                    "{by} reads rows of {} around its own, whose order is that of a part",
                    name(body, id)
                ));
            }
        }
        let writes_tensor = |&id: &ValueId| matches!(body.value(sites.root(id)).extent, Extent::Tensor(_));
        if let (true, Some(&id)) = (here, operation.results.iter().find(|id| writes_tensor(id))) {
            return Err(format!("every part writes {}", name(body, id)));
        }
    }
    Ok(())
}

fn check_edges(one: &Loop) -> Result<(), String> {
    let [stage] = one.stages.as_slice() else {
        return Err("edges of several block rows in a loop of several stages".to_owned());
    };
    if !stage.by_keys || !one.edge_rows.is_power_of_two() || one.edge_rows > MOST_EDGE_ROWS {
        return Err(format!("edges by {}: a power of two up to {MOST_EDGE_ROWS}, in a stage by keys", one.edge_rows));
    }
    match stage.ops.iter().find(|operation| matches!(operation.op, Op::SpmmT { .. } | Op::SoftmaxGradient { .. })) {
        Some(operation) => Err(format!("edges of several block rows together with {}", operation.op.name())),
        None => Ok(()),
    }
}

fn check_halo(body: &Body, sites: &Sites, i: usize, reach: Option<Reach>) -> Result<(), String> {
    let stages = &body.loops[i].stages;
    let crosses = reach.is_none_or(|reach| reach.behind > 0 || reach.ahead > 0);
    let mut beyond = vec![false; stages.len()];
    // Readers stand behind what they read.
    for (j, stage) in stages.iter().enumerate().rev() {
        for operation in &stage.ops {
            if matches!(operation.op, Op::Solve { .. } | Op::SolveT { .. }) {
                return Err("rows that follow each other are cut into stretches".to_owned());
            }
            if matches!(operation.op, Op::SpmmT { .. }) {
                return Err(
                    "a stretch of rows adds to rows of keys, which are those of other stretches, too".to_owned()
                );
            }
            for &(site, access) in operation.results.iter().flat_map(|&id| sites.read(id)) {
                let across = access == Access::Neighbors && crosses;
                beyond[j] |= site.one == i && (across || (site.stage != j && beyond[site.stage]));
            }
        }
        let shared = |id: &&ValueId| matches!(body.value(sites.root(**id)).extent, Extent::All | Extent::Tensor(_));
        let mut results = stage.ops.iter().flat_map(|operation| &operation.results);
        if let (true, Some(&id)) = (beyond[j], results.find(shared)) {
            return Err(format!("stretches compute rows of {} near their borders twice, and share it", name(body, id)));
        }
        let adds = |operation: &Operation| matches!(operation.op, Op::ModsGradient { .. } | Op::SumRows { .. });
        if beyond[j] && stage.ops.iter().any(adds) {
            return Err("stretches would add to the gradients of inputs twice".to_owned());
        }
    }
    Ok(())
}

fn check_by_keys(body: &Body, sites: &Sites, stage: &Stage, here: Site) -> Result<(), String> {
    let is_pairs = |id: ValueId| body.value(id).space == Space::Pairs;
    let made_here = |id: ValueId| sites.made(id).is_some_and(|site| site.same_stage(here));
    let on_pairs = |operation: &Operation| {
        operation.results.iter().any(|&id| is_pairs(id)) || operation.op.reads().iter().any(|&(id, _)| is_pairs(id))
    };
    let first = stage.ops.iter().position(on_pairs);
    let last = stage.ops.iter().rposition(on_pairs);
    let (Some(first), Some(last)) = (first, last) else {
        return Err("a stage goes by keys without operations on pairs".to_owned());
    };
    if let Some(operation) = stage.ops[first..=last].iter().find(|operation| !on_pairs(operation)) {
        return Err(format!("{} of whole rows stands among operations on some keys", operation.op.name()));
    }
    if let Some(operation) =
        stage.ops.iter().find(|operation| matches!(operation.op, Op::Solve { .. } | Op::SolveT { .. }))
    {
        return Err(format!("{} takes whole rows, not some keys of them", operation.op.name()));
    }
    if stage.ops.iter().filter(|operation| matches!(operation.op, Op::Spmm { .. })).count() > 1 {
        return Err("two products with rows are summed up by keys at once".to_owned());
    }
    for operation in &stage.ops[first..=last] {
        let by = operation.op.name();
        for (id, _) in operation.op.reads() {
            if is_pairs(id) && !made_here(id) {
                return Err(format!("{by} reads {} by keys, which another stage makes", name(body, id)));
            }
            let serves = match operation.op {
                Op::Exp { m, .. } => id == m,
                Op::Spmm { l, .. } => Some(id) == l,
                _ => false,
            };
            let reduced = !is_pairs(id) && made_here(id) && sites.made(id).is_some_and(|site| site.op >= first);
            if reduced && !serves {
                return Err(format!("{by} reads {}, which is there only behind the last key", name(body, id)));
            }
        }
        if let Some(&id) = operation.results.iter().find(|&&id| is_pairs(id) && body.value(id).extent != Extent::Keys) {
            return Err(format!("{} is made by keys and kept beyond its stage", name(body, id)));
        }
        if let Op::Exp { m, .. } = operation.op
            && made_here(m)
        {
            check_online(body, sites, stage, operation.results[0])?;
        }
    }
    Ok(())
}

/// Weights of an online softmax are final only behind the last key: one product may take them, whose sums are corrected.
fn check_online(body: &Body, sites: &Sites, stage: &Stage, weights: ValueId) -> Result<(), String> {
    let mut at = weights;
    loop {
        let [(site, _)] = sites.read(at) else {
            return Err(format!("{} is final only behind the last key, and not one product needs it", name(body, at)));
        };
        let reader = &stage.ops[site.op];
        match reader.op {
            Op::Spmm { p, z, .. } if p == at && z != at => return Ok(()),
            Op::Dropout { .. } => at = reader.results[0],
            _ => {
                let by = reader.op.name();
                return Err(format!("{by} reads {}, which is final only behind the last key", name(body, at)));
            }
        }
    }
}

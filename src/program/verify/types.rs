//! Every value is made once, of the space that its operation makes, in a place that fits it; tensors are what they are
//! said to be.

use std::collections::HashSet;

use super::sites::{Sites, each, name};
use crate::dtype::Dtype;
use crate::program::{Body, Extent, Op, Shape, Space, Tensor, ValueId, spaces};

pub(super) fn check(shape: &Shape, body: &Body) -> Result<Sites, String> {
    if shape.head_dim == 0 || shape.value_dim == 0 {
        return Err("a width is 0".to_owned());
    }
    if !matches!(shape.store, Dtype::F32 | Dtype::Bf16) {
        return Err(format!("weights in {}", shape.store));
    }
    let mut names = HashSet::new();
    if let Some(value) = body.values.iter().find(|value| !names.insert(&value.name)) {
        return Err(format!("two values are called {}", value.name));
    }
    if body.loops.iter().any(|one| one.stages.is_empty() || one.stages.iter().any(|stage| stage.ops.is_empty())) {
        return Err("a loop or a stage without operations".to_owned());
    }
    let sites = places(shape, body)?;
    for id in (0..body.values.len() as u32).map(ValueId) {
        let (value, root) = (body.value(id), body.value(sites.root(id)));
        if (value.extent, value.store) != (root.extent, root.store) {
            return Err(format!("{} is written in the place of {} and kept in another way", value.name, root.name));
        }
    }
    check_tensors(shape, body, &sites)?;
    for (value, at) in body.values.iter().zip(0_u32..) {
        let kept = matches!(value.extent, Extent::All | Extent::Ring(_));
        let stored = value.space == Space::Pairs && kept && shape.store == Dtype::Bf16 && !body.is_training();
        if !(value.store.is_f32() || value.store == Dtype::Bf16 && stored) {
            return Err(format!("{} is stored in {}", name(body, ValueId(at)), value.store));
        }
        if matches!(value.extent, Extent::Ring(0)) {
            return Err(format!("{} is kept in a ring of no rows", value.name));
        }
    }
    Ok(sites)
}

/// Finds all places, and checks spaces on the way.
fn places(shape: &Shape, body: &Body) -> Result<Sites, String> {
    let count = body.values.len();
    let mut sites = Sites {
        made: vec![None; count],
        read: vec![Vec::new(); count],
        overwritten: vec![None; count],
        roots: (0..count as u32).map(ValueId).collect(),
    };
    let is_made: Vec<bool> = {
        let mut is_made = vec![false; count];
        for result in body.ops().flat_map(|operation| &operation.results) {
            match is_made.get_mut(result.0 as usize) {
                None => return Err(format!("there is no value {}", result.0)),
                Some(made) if *made => return Err(format!("{} is made twice", name(body, *result))),
                Some(made) => *made = true,
            }
        }
        is_made
    };
    let columns = body.given.as_ref().map_or(0, |given| given.columns);
    for (site, operation) in each(body) {
        let op_name = operation.op.name();
        let unknown = |column: u32| column as usize >= columns;
        let summed = matches!(operation.op, Op::SumRows { column, .. } if unknown(column));
        if summed || operation.op.factors().iter().any(|factor| factor.is_given() && unknown(factor.column)) {
            return Err(format!("{op_name} of a number that no call gives"));
        }
        let reads = operation.op.reads();
        for (at, &(id, access)) in reads.iter().enumerate() {
            let Some(made) = sites.made.get(id.0 as usize) else { return Err(format!("there is no value {}", id.0)) };
            if made.is_none() && is_made[id.0 as usize] {
                return Err(format!("{op_name} reads {} before anything makes it", name(body, id)));
            }
            // A value that is named twice is one read, unless the two differ.
            if !reads[..at].contains(&(id, access)) {
                sites.read[id.0 as usize].push((site, access));
            }
        }
        let made = spaces(&operation.op, shape, |id| body.value(id).space)?;
        let one_may_do = operation.op.second_is_optional() && operation.results.len() == 1;
        if operation.results.len() != made.len() && !one_may_do {
            return Err(format!("{} results of {op_name}", operation.results.len()));
        }
        for (&result, space) in operation.results.iter().zip(made) {
            if body.value(result).space != space {
                let said = body.value(result).space;
                return Err(format!("{} is said to be {said:?}, and {op_name} makes {space:?}", name(body, result)));
            }
            sites.made[result.0 as usize] = Some(site);
        }
        for (&result, operand) in operation.results.iter().zip(operation.op.in_place()) {
            let Some(operand) = operand else { continue };
            if let Some((_, other)) = sites.overwritten[operand.0 as usize] {
                let (first, second) = (name(body, other), name(body, result));
                return Err(format!("{first} and {second} are both written in the place of {}", name(body, operand)));
            }
            if reads.iter().filter(|(id, _)| sites.root(*id) == sites.root(operand)).count() != 1 {
                return Err(format!("{op_name} reads {} and writes in its place", name(body, operand)));
            }
            sites.overwritten[operand.0 as usize] = Some((site, result));
            sites.roots[result.0 as usize] = sites.root(operand);
        }
        let [first, second] = [0, 1].map(|at| operation.results.get(at).map(|&id| sites.root(id)));
        if first.is_some() && first == second {
            return Err(format!("both results of {op_name} have one place"));
        }
    }
    Ok(sites)
}

fn check_tensors(shape: &Shape, body: &Body, sites: &Sites) -> Result<(), String> {
    let mut seen = [false; Tensor::ALL.len()];
    for id in (0..body.values.len() as u32).map(ValueId).filter(|&id| sites.root(id) == id) {
        let value = body.value(id);
        let (given, name) = (sites.made(id).is_none(), &value.name);
        let Extent::Tensor(tensor) = value.extent else {
            if given {
                return Err(format!("nothing makes {name}"));
            }
            continue;
        };
        if value.space != space(tensor, shape) {
            return Err(format!("{name} is said to be tensor {} and is {:?}", tensor.name(), value.space));
        }
        if std::mem::replace(&mut seen[tensor as usize], true) {
            return Err(format!("tensor {} is {name} and another value", tensor.name()));
        }
        let is_written = matches!(tensor, Tensor::Out | Tensor::GradQ);
        if is_written == given {
            let what = if given { "given" } else { "made" };
            return Err(format!("tensor {} is {what}, which is {name}", tensor.name()));
        }
        let added_to = matches!(tensor, Tensor::GradK | Tensor::GradV);
        if let (true, false, Some((_, next))) = (given, added_to, sites.overwritten(id)) {
            return Err(format!("{} is written in the place of tensor {}", self::name(body, next), tensor.name()));
        }
    }
    let has = |tensor: Tensor| seen[tensor as usize];
    if ![Tensor::Q, Tensor::K, Tensor::V].into_iter().all(has) {
        return Err("one of q, k and v is not there".to_owned());
    }
    if !has(Tensor::Out) {
        return Err("nothing makes the output".to_owned());
    }
    if has(Tensor::GradOut) && !has(Tensor::GradQ) {
        return Err("a gradient starts from that of the output and does not reach the queries".to_owned());
    }
    Ok(())
}

/// What a tensor of the call is.
fn space(tensor: Tensor, shape: &Shape) -> Space {
    match tensor {
        Tensor::Q | Tensor::GradQ => Space::Queries(shape.head_dim),
        Tensor::K | Tensor::GradK => Space::Keys(shape.head_dim),
        Tensor::V | Tensor::GradV => Space::Keys(shape.value_dim),
        Tensor::Out | Tensor::GradOut => Space::Queries(shape.value_dim),
    }
}

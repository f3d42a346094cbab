//! `delta = Σ …; ht = pack h1 … hK; dp = sddmm ht z0 … ; ds = softmax' p dp - delta; gradq = spmm ds k; … -> ` the same once
//! for every hop, behind the hop's own gradient, adding up in gradq and gradk.
//!
//! The gradient of the scores is linear in that of the weights, so that each hop's share may be taken alone: then only the
//! hop's own rows and those before it are needed at a time. Runs first, on operations in loops of their own.

use std::collections::HashMap;

use super::nest;
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Loop, Names, Op, Operation, ValueId};

pub(super) const PASS: NestPass = NestPass {
    name: "split_gradient_by_hops",
    rewrite: "dp = sddmm (pack h1 … hK) z0 …; ds = softmax' p dp - delta -> dp = sddmm (pack hk) z; ds = softmax' p dp - deltak",
    by_reach: false,
    run,
};

fn run(body: &mut Body, _: &Setting<'_>) -> Verdict {
    let packs_gradients = |one: &Loop| nest::starts_with(one, |op| matches!(op, Op::Pack { x, .. } if x.len() > 1));
    let Some(at) = body.loops.iter().position(packs_gradients) else { return Ok(None) };
    let tail: Vec<Operation> = body.loops.split_off(at).iter().flat_map(Loop::ops).cloned().collect();
    let (Some(Op::Pack { x: hs, .. }), Some(Op::Sddmm { y: zs, .. })) =
        (tail.first().map(|o| &o.op), tail.get(1).map(|o| &o.op))
    else {
        return Err("the gradient of the weights is no product".to_owned());
    };
    // Rows that were copied to lie beside the others are taken where they are.
    let mut copies: HashMap<ValueId, ValueId> = HashMap::new();
    for operation in body.ops() {
        if let (Op::Copy { x }, true) = (&operation.op, zs.contains(&operation.results[0])) {
            copies.insert(operation.results[0], *x);
        }
    }
    let shares: HashMap<ValueId, ValueId> =
        hs.iter().zip(zs).map(|(&h, &z)| (h, copies.get(&z).copied().unwrap_or(z))).collect();
    let mut names = Names::of(body);
    let mut sums = Sums::default();
    let mut open: Option<(ValueId, ValueId)> = None;
    let mut delta = None;
    for mut one in std::mem::take(&mut body.loops) {
        if one.ops().any(|operation| copies.contains_key(&operation.results[0])) {
            continue;
        }
        let mut ends = false;
        for operation in one.stages.iter_mut().flat_map(|stage| &mut stage.ops) {
            match &mut operation.op {
                Op::DotRows { onto, .. } => {
                    *onto = None;
                    delta = Some(operation.results[0]);
                }
                Op::ScaleRows { .. } => {
                    let h = operation.results[0];
                    open = shares.get(&h).map(|&z| (h, z));
                }
                Op::SpmmT { .. } => ends = true,
                _ => {}
            }
        }
        body.loops.push(one);
        if let (true, Some((h, z)), Some(delta)) = (ends, open, delta) {
            open = None;
            for operation in &tail {
                let one = sums.share(body, &mut names, operation, [h, z, delta]);
                body.loops.push(one);
            }
            sums.renamed.clear();
        }
    }
    Ok(None)
}

/// What the shares add up in.
#[derive(Default)]
struct Sums {
    /// Names within one share.
    renamed: HashMap<ValueId, ValueId>,
    /// The last name of each sum, by the name that it had when it was whole.
    last: HashMap<ValueId, ValueId>,
}

impl Sums {
    /// One operation of a hop's share.
    fn share(&mut self, body: &mut Body, names: &mut Names, whole: &Operation, [h, z, d]: [ValueId; 3]) -> Loop {
        let Operation { mut op, results } = whole.clone();
        op.rename(|id| self.renamed.get(&id).copied().unwrap_or(id));
        let first = results[0];
        match &mut op {
            Op::Pack { x, .. } => *x = vec![h],
            Op::Sddmm { y, .. } => *y = vec![z],
            Op::SoftmaxGradient { delta, .. } => *delta = d,
            Op::Spmm { onto, .. } | Op::SpmmT { onto, .. } => *onto = self.last.get(&first).copied().or(*onto),
            _ => {}
        }
        let adds = matches!(op, Op::Spmm { .. } | Op::SpmmT { .. });
        let made = results.iter().map(|&result| {
            let value = body.value(result).clone();
            let space = match op {
                Op::Pack { .. } => crate::program::Space::Packed(width(body, h)),
                _ => value.space,
            };
            let fresh = names.add(body, &value.name, space, value.extent);
            self.renamed.insert(result, fresh);
            fresh
        });
        let made: Vec<ValueId> = made.collect();
        if adds {
            self.last.insert(first, made[0]);
        }
        Loop::of(op, &made)
    }
}

fn width(body: &Body, rows: ValueId) -> usize {
    match body.value(rows).space {
        crate::program::Space::Queries(width) | crate::program::Space::Keys(width) => width,
        _ => 0,
    }
}

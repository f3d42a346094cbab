//! `for row {… exp} for row {z = spmm p v} -> for row {… exp; z = spmm p v}`, where nothing else reads p.
//!
//! The only product with P is taken while its panel is in the cache. With several hops P is needed again, unless it is
//! computed again for each ([`super::rematerialise_p`], which runs before).

use super::nest::{self, Join, Sites};
use super::{NestPass, Setting, Verdict};
use crate::program::{Body, Op, Space};

/// Refused where P is needed again.
pub(super) const PASS: NestPass = NestPass {
    name: "fuse_hop_into_softmax",
    rewrite: "for row {… exp} for row {spmm} -> for row {… exp spmm}",
    by_reach: false,
    run: |body, _| match fuse(body) {
        true => Ok(Some("the only hop needs no P after its block row".to_owned())),
        false => Err("every hop but the last needs P again".to_owned()),
    },
};

/// The same where it can be done, among other fusions.
pub(super) const REST: NestPass = NestPass { run: run_rest, ..PASS };

fn run_rest(body: &mut Body, _: &Setting<'_>) -> Verdict {
    fuse(body);
    Ok(None)
}

/// Fuses all such loops; whether every hop that could follow its softmax did.
fn fuse(body: &mut Body) -> bool {
    let sites = Sites::of(body);
    let mut fused = true;
    nest::join_loops(body, |values, last, next| {
        let softmax = last.ops().any(|operation| matches!(operation.op, Op::Exp { .. }));
        let hop = nest::starts_with(next, |op| matches!(op, Op::Spmm { .. } | Op::Solve { .. }));
        if !(softmax && hop && nest::follows(last, next)) {
            return Join::Apart;
        }
        // Loops are counted as they were.
        let first = next.ops().next().and_then(|operation| operation.results.first());
        let at = first.and_then(|id| sites.made[id.0 as usize]).map_or(0, |site| site.one);
        let pairs = last.ops().flat_map(|operation| &operation.results);
        let mut pairs = pairs.filter(|id| values[id.0 as usize].space == Space::Pairs);
        let here = pairs.all(|&id| sites.reads(id).iter().all(|(site, _)| site.one <= at));
        fused &= here;
        if here { Join::SameStage } else { Join::Apart }
    });
    fused
}

//! `keep p all -> keep p all bf16`, and the same in a ring, where the spec allows it (`diffusion.store`).
//!
//! Half the bytes of what hops stream; the sums stay f32. Only weights are rounded: what becomes weights in another stage
//! is still scores where it is kept.

use super::nest::Sites;
use super::{NestPass, Setting, Verdict};
use crate::dtype::Dtype;
use crate::program::{Body, Extent, Op};

pub(super) const PASS: NestPass =
    NestPass { name: "store_p_in_bf16", rewrite: "keep p all -> keep p all bf16", by_reach: false, run };

fn run(body: &mut Body, setting: &Setting<'_>) -> Verdict {
    if setting.store != Dtype::Bf16 {
        return Ok(None);
    }
    let (roots, sites) = (body.roots(), Sites::of(body));
    let weights: Vec<_> = body.ops().filter(|o| matches!(o.op, Op::Exp { .. })).map(|o| o.results[0]).collect();
    for p in weights {
        let root = roots[p.0 as usize];
        let [made, first] = [p, root].map(|id| sites.made[id.0 as usize]);
        let in_one_stage = made.zip(first).is_some_and(|(made, first)| made.same_stage(first));
        let value = &mut body.values[root.0 as usize];
        if in_one_stage && matches!(value.extent, Extent::All | Extent::Ring(_)) {
            value.store = Dtype::Bf16;
        }
    }
    Ok(None)
}

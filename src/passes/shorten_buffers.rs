//! `keep z all -> keep z ring 3`, `keep m all -> keep m row`, `keep p all -> keep p keys`: what is alive at a time.
//!
//! A value that is read in its own stage keeps a row, or some keys of it where the stage goes by keys. One that is read in
//! another stage of its loop keeps the rows between the two, and those that a row reaches behind itself. Always legal; runs
//! when all operations have found their place.

use super::nest::{Site, Sites};
use super::{NestPass, Setting, Verdict};
use crate::mask::QUERY_BLOCK;
use crate::program::{Access, Body, Extent, Op, Reaches, Space};

pub(super) const PASS: NestPass =
    NestPass { name: "shorten_buffers", rewrite: "keep z all -> keep z ring R | row | keys", by_reach: false, run };

fn run(body: &mut Body, setting: &Setting<'_>) -> Verdict {
    let (roots, sites) = (body.roots(), Sites::of(body));
    let mut alive: Vec<Option<Extent>> = body.values.iter().map(|_| None).collect();
    for (id, root) in roots.iter().enumerate() {
        let at = root.0 as usize;
        let (Some(first), Some(made)) = (sites.made[at], sites.made[id]) else { continue };
        // The rows of keys that a product adds to are complete only when the loop is.
        // So are rows that follow each other, which later rows read.
        let op = &body.loops[made.one].stages[made.stage].ops[made.op].op;
        let whole_loop = matches!(op, Op::SpmmT { .. } | Op::Solve { .. } | Op::SolveT { .. });
        if whole_loop {
            alive[at] = Some(Extent::All);
        }
        let uses = sites.read[id].iter().copied().chain([(made, Access::Row)]);
        for (site, access) in uses {
            let needed = needed(body, setting, at, first, (site, access));
            alive[at] = Some(alive[at].map_or(needed, |so_far| wider(so_far, needed)));
        }
    }
    for (value, extent) in body.values.iter_mut().zip(alive) {
        if let (Extent::All, Some(extent)) = (value.extent, extent) {
            value.extent = extent;
        }
    }
    Ok(None)
}

/// What the buffer of a value that is first made at `first` keeps for one use.
fn needed(body: &Body, setting: &Setting<'_>, value: usize, first: Site, (site, access): (Site, Access)) -> Extent {
    if site.one != first.one {
        return Extent::All;
    }
    let stages = &body.loops[first.one].stages;
    if site.same_stage(first) {
        return match access {
            Access::Neighbors => Extent::All,
            _ if stages[site.stage].by_keys && body.values[value].space == Space::Pairs => Extent::Keys,
            _ => Extent::Row,
        };
    }
    let behind = match (access, setting.reach) {
        (Access::Neighbors, reach) => match reach.get() {
            Reaches::Band(reach, _) => reach.behind,
            Reaches::Unordered(_) => return Extent::All,
        },
        _ => 0,
    };
    let rows = setting.shape.q_len.div_ceil(QUERY_BLOCK).max(1) as u32;
    let lag = stages[site.stage].shift.saturating_sub(stages[first.stage].shift);
    Extent::Ring((lag + behind + 1).min(rows))
}

/// The wider of two extents that are no tensors.
fn wider(a: Extent, b: Extent) -> Extent {
    let rank = |extent: Extent| match extent {
        Extent::Tensor(_) | Extent::All => (3, 0),
        Extent::Ring(rows) => (2, rows),
        Extent::Row => (1, 0),
        Extent::Keys => (0, 0),
    };
    if rank(a) >= rank(b) { a } else { b }
}

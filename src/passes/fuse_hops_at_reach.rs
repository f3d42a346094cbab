//! `for row {… exp} for row {z1} for row {z2} … -> for row { at row {… exp} at row {z1} at row - a {z2} at row - 2a {z3} … }`
//! where rows reach a block rows ahead.
//!
//! A hop may follow the hop before as soon as the rows that it reads are there: rows up to t + a, for row t. All hops are
//! one sweep, so that only a ring of rows of P and of each Z is alive. Refused where rows stand in another order than keys,
//! and where the ring would hold all of P.

use super::nest::{self, Join};
use super::{NestPass, Setting, Verdict};
use crate::mask::QUERY_BLOCK;
use crate::program::{Body, Loop, Op, Reach, Reaches};

pub(super) const PASS: NestPass = NestPass {
    name: "fuse_hops_at_reach",
    rewrite: "for row {… exp} for row {z1} for row {z2} -> for row {at row {… exp} at row {z1} at row - a {z2}}",
    by_reach: true,
    run: at_reach,
};

/// The same where no row reads a later block row: all hops of a row at once.
pub(super) const AT_ONCE: NestPass = NestPass {
    name: "fuse_hops_at_once",
    rewrite: "for row {… exp} for row {z1} for row {z2} -> for row {at row {… exp} at row {z1} at row {z2}}",
    by_reach: true,
    run: at_once,
};

fn at_reach(body: &mut Body, setting: &Setting<'_>) -> Verdict {
    is_swept(body)?;
    let (reach, row) = band(setting)?;
    let hops = body.hops();
    let (slots, rows) = (reach.ring_slots(hops), setting.shape.q_len.div_ceil(QUERY_BLOCK));
    let Reach { behind, ahead } = reach;
    if slots > rows.max(1) {
        return Err(format!(
            "{} reach {ahead} block rows ahead, and {hops} hops would keep {slots} of {rows} block rows of P",
            queries(setting, row)
        ));
    }
    fuse(body, ahead);
    Ok(Some(format!("rows reach {behind} block rows behind and {ahead} ahead; {slots} of {rows} block rows of P wait")))
}

fn at_once(body: &mut Body, setting: &Setting<'_>) -> Verdict {
    is_swept(body)?;
    let (Reach { behind, ahead }, row) = band(setting)?;
    if ahead > 0 {
        return Err(format!("{} reach {ahead} block rows ahead", queries(setting, row)));
    }
    fuse(body, 0);
    Ok(Some(format!("no row reads a later block row, and {behind} behind at most")))
}

fn is_swept(body: &Body) -> Result<(), String> {
    match body.loops.iter().any(Loop::is_in_order) {
        true => Err("hops without end are one loop already".to_owned()),
        false if body.loops.iter().any(|one| one.set != 0) => Err("hops have neighbors of their own".to_owned()),
        false => Ok(()),
    }
}

fn band(setting: &Setting<'_>) -> Result<(Reach, u32), String> {
    match setting.reach.get() {
        Reaches::Unordered(why) => Err(why.clone()),
        Reaches::Band(reach, row) => Ok((*reach, *row)),
    }
}

/// The queries of a block row, in words.
fn queries(setting: &Setting<'_>, row: u32) -> String {
    let first = row as usize * QUERY_BLOCK;
    format!("rows {first}..{}", setting.shape.q_len.min(first + QUERY_BLOCK).saturating_sub(1))
}

fn fuse(body: &mut Body, ahead: u32) {
    let mut shift = None;
    nest::join_loops(body, |_, last, next| {
        let hop = nest::starts_with(next, |op| matches!(op, Op::Spmm { .. }));
        // What is done in the place of a hop's rows, in a loop of its own.
        let behind = nest::starts_with(next, |op| matches!(op, Op::Combine { .. }));
        match shift {
            None if hop && last.ops().any(|operation| matches!(operation.op, Op::Exp { .. })) => shift = Some(0),
            Some(before) if hop => shift = Some(before + ahead),
            Some(_) if behind => {}
            _ => return Join::Apart,
        }
        shift.map_or(Join::Apart, Join::Behind)
    });
}

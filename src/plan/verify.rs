//! The plan's own rules: what code generation, tiles and the runtime take for granted. Every plan passes here, and a
//! [`VerifiedPlan`] is the only thing that they take.

use std::ops::Deref;

use rayon::prelude::*;

use super::function::Functions;
use super::resolve::resolve;
use super::{KernelPlan, Layout, MaskPlan, ModsBy, PieceKeys, RowPlan, Step, Stretch, Walk};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mask::QUERY_BLOCK;
use crate::program::{self, Extent, Loop, Reach};
use crate::target::Isa;
use crate::tiles::ROW_BLOCKS;

/// A plan that [`verify`] has accepted, with what follows from it: the functions of its stages and the layout of
/// workspace. It cannot be edited: what was verified is what code is made from.
///
/// ```
/// fn read(plan: &mut hopweave::plan::VerifiedPlan) -> usize { plan.parts }
/// ```
/// ```compile_fail
/// fn edit(plan: &mut hopweave::plan::VerifiedPlan) { plan.parts = 9; }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedPlan {
    plan: KernelPlan,
    functions: Functions,
    layout: Layout,
}

impl VerifiedPlan {
    /// The functions of the kernel, and what each stage calls.
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// Where values stand in workspace.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The plan, to be edited and verified again.
    pub fn into_inner(self) -> KernelPlan {
        self.plan
    }
}

impl Deref for VerifiedPlan {
    type Target = KernelPlan;

    fn deref(&self) -> &KernelPlan {
        &self.plan
    }
}

/// Checks that the nest is legal for the reach of the planned rows, that block rows follow each other and are all there,
/// that every query, key, mask word, list and trim that a step names exists, that pieces lie one behind the other in a
/// panel that is wide enough, and that rows walked from tables need no arithmetic.
///
/// # Errors
/// [`Error::Internal`] with the rule that is broken and the plan, [`Error::Unsupported`] where a stage has too many
/// operands for a call.
pub fn verify(plan: KernelPlan) -> Result<VerifiedPlan> {
    if let Err(message) = check(&plan) {
        return Err(Error::internal("plan", message, plan.print()));
    }
    let layout = Layout::new(&plan.shape, &plan.body, &plan.walks, (plan.parts, plan.tables_at_call))?;
    let walk_of = |set: u32, by_keys: bool| {
        plan.walks.iter().position(|walk| (walk.set, walk.by_keys) == (set, by_keys)).unwrap_or(0)
    };
    let functions = resolve(&plan.shape, &plan.body, &layout, walk_of)?;
    Ok(VerifiedPlan { functions, layout, plan })
}

fn check(plan: &KernelPlan) -> Result<(), String> {
    let broken = |message: &str| Err(message.to_owned());
    let shape = &plan.shape;
    if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
        return broken("the key/value heads do not divide the heads");
    }
    if shape.head_dim == 0 || shape.value_dim == 0 {
        return broken("a width is 0");
    }
    if plan.walks.first().is_none_or(|walk| walk.set != 0) {
        return broken("nothing walks the first set of neighbors first");
    }
    let sets = std::iter::once(&plan.mask_of_head).chain(&plan.masks_of_others);
    for (set, masks_of_heads) in sets.enumerate() {
        let mut walks = plan.walks.iter().filter(|walk| walk.set as usize == set);
        let masks = walks.next().map_or(0, |walk| walk.masks.len());
        if masks == 0 || walks.any(|walk| walk.masks.len() != masks) {
            return broken("every way of walking has one plan for each mask, at least one");
        }
        let parts = if set == 0 { plan.parts } else { 1 };
        if parts == 0
            || shape.heads.checked_mul(parts) != Some(masks_of_heads.len())
            || masks_of_heads.iter().any(|&m| m as usize >= masks)
        {
            return broken("a head has no mask");
        }
    }
    if !plan.masks_of_others.is_empty() && (plan.parts != 1 || plan.stack != 1) {
        return broken("hops with neighbors of their own in parts, or with several heads in a row");
    }
    if plan.body.loops.iter().any(Loop::is_in_order) {
        let in_order = plan.masks().all(|mask| mask.order.is_none() && mask.key_step == 1);
        let ahead = plan.masks().map(|mask| planned_reach(mask, shape.kv_len).ahead).max();
        if !in_order || ahead.is_some_and(|ahead| ahead > 0) || shape.q_len != shape.kv_len || plan.parts != 1 {
            return broken("rows that follow each other meet later ones, or stand in another order than keys");
        }
    }
    if plan.stack == 0 || (plan.stack > 1 && shape.q_len != plan.stack) {
        return broken("rows of several heads have one query each");
    }
    if (plan.parts > 1) != plan.body.loops.iter().any(|of_loop| of_loop.parts) {
        return broken("parts of a head are computed part by part and joined");
    }
    let rows = plan.block_rows().max(1);
    if plan.body.values.iter().any(|value| matches!(value.extent, Extent::Ring(kept) if kept as usize > rows)) {
        return broken("a ring keeps more block rows than there are");
    }
    if !plan.tuning.is_valid() {
        return broken("sizes that no plan is cut by");
    }
    for one in &plan.body.loops {
        let planned = |by_keys: bool| plan.walks.iter().any(|walk| (walk.set, walk.by_keys) == (one.set, by_keys));
        if !one.stages.iter().all(|stage| planned(stage.by_keys)) {
            return broken("a stage walks block rows in a way that is not planned");
        }
    }
    if plan.bf16_dots && (shape.dtype != Dtype::Bf16 || plan.isa != Isa::Avx512 || shape.head_dim < 2) {
        return broken("dot products of bf16 pairs serve bf16 of width 2 or more on avx512");
    }
    if plan.is_training() && (!shape.dtype.is_f32() || plan.stack != 1 || plan.parts != 1) {
        return broken("kernels for training are f32, one head a row, in one part");
    }
    if let Some(mods) = &plan.mods {
        let positions = mods.mods.positions;
        if (positions.q_len, positions.kv_len, positions.heads) != (shape.q_len, shape.kv_len, shape.heads) {
            return broken("the score mods are for another problem");
        }
        mods.mods.verify()?;
        if mods.by != ModsBy::Code && mods.by != ModsBy::choose(&mods.mods, plan.isa) {
            return broken("no tile computes these score mods");
        }
    }
    if plan.mods
        != super::mods_of(&plan.body, plan.isa).map(|mods| super::ModsPlan { by: plan.mods_by(mods.by), ..mods })
    {
        return broken("the score mods are not those of the nest");
    }
    for walk in &plan.walks {
        let checked: Vec<_> = walk.masks.par_iter().map(|mask| check_mask(plan, mask, walk)).collect();
        checked.into_iter().collect::<Result<(), String>>()?;
    }
    // How far rows reach comes from the steps, key by key, and not from what the plan says.
    let found = || plan.walks.iter().flat_map(|walk| &walk.masks).map(|mask| planned_reach(mask, shape.kv_len));
    let reach = plan.reach.map(|said| found().fold(said, Reach::join));
    if reach != plan.reach {
        return broken("a block row reaches further than the plan says");
    }
    program::check_nest(shape, &plan.body, reach)
}

impl KernelPlan {
    /// Who applies the mods: any choice that [`check`] allows.
    fn mods_by(&self, otherwise: ModsBy) -> ModsBy {
        self.mods.as_ref().map_or(otherwise, |mods| mods.by)
    }
}

fn check_mask(plan: &KernelPlan, mask: &MaskPlan, walk: &Walk) -> Result<(), String> {
    let by_keys = walk.by_keys;
    let (q_len, kv_len) = (plan.shape.q_len, plan.shape.kv_len);
    if let Some(order) = &mask.order {
        let mut seen = vec![false; q_len];
        let fits =
            order.iter().all(|&query| seen.get_mut(query as usize).is_some_and(|seen| !std::mem::replace(seen, true)));
        if order.len() != q_len || !fits {
            return Err("the order of rows does not hold every query once".to_owned());
        }
    }
    if mask.key_step == 0 {
        return Err("keys of a range lie 0 rows apart".to_owned());
    }
    let offsets = &mask.edges.offsets;
    let edges = mask.edges.keys.len();
    let ends = offsets.first().is_none_or(|&first| first == 0)
        && offsets.last().map_or(edges == 0, |&last| last as usize == edges);
    if !(offsets.is_empty() || offsets.len() == q_len + 1) || !ends || !offsets.is_sorted() {
        return Err("the offsets of scattered edges do not fit their list".to_owned());
    }
    if mask.edges.keys.iter().any(|&key| key as usize >= kv_len) {
        return Err("a scattered edge names no key".to_owned());
    }
    let fullest = (0..plan.block_rows()).map(|t| {
        let at = |place: usize| offsets.get(place.min(q_len)).map_or(0, |&offset| offset as usize);
        at((t + 1) * QUERY_BLOCK) - at(t * QUERY_BLOCK)
    });
    if fullest.max().unwrap_or(0) > mask.block_edges {
        return Err("a block row has more scattered edges than the plan says".to_owned());
    }
    let mut next = 0;
    for row in &mask.rows {
        if row.first != next || row.count == 0 {
            return Err(format!("block row {next} is missing or doubled"));
        }
        next = row.first.checked_add(row.count).ok_or("too many block rows")?;
        if next as usize > plan.block_rows() {
            break;
        }
        check_row(plan, mask, row, by_keys).map_err(|message| format!("block row {}: {message}", row.first))?;
    }
    if next as usize != plan.block_rows() {
        return Err(format!("{next} block rows of {}", plan.block_rows()));
    }
    if (walk.masks.len() > 1 || plan.tables_at_call) && mask.rows.iter().any(|row| !row.table) {
        return Err("a kernel of several masks walks all rows from tables".to_owned());
    }
    if !by_keys && mask.rows.iter().map(RowPlan::keys).sum::<u64>() != mask.stored_keys {
        return Err("the keys of all panels together are counted wrongly".to_owned());
    }
    Ok(())
}

fn check_row(plan: &KernelPlan, mask: &MaskPlan, row: &RowPlan, by_keys: bool) -> Result<(), String> {
    for step in &row.steps {
        match step {
            Step::Edges if mask.edges.keys.is_empty() => return Err("a step of edges without edges".to_owned()),
            Step::Edges => {}
            Step::Stream(_) if row.table || !by_keys => {
                return Err("a stream in a row that is walked from tables, or whole".to_owned());
            }
            Step::Stream(stretch) => check_keys(plan, mask, row, PieceKeys::Range(*stretch))?,
            Step::Joint { pieces, runs } => {
                let mut place = 0_u64;
                for piece in pieces {
                    check_keys(plan, mask, row, piece.keys)?;
                    if u64::from(piece.at) != place {
                        return Err(format!("`{piece}` stands at the wrong place, {place} is next"));
                    }
                    place += u64::from(piece.keys.len());
                    let Some((table, first)) = piece.mask else { continue };
                    let words = mask.words.get(table as usize).map_or(0, Vec::len) as u64;
                    if piece.keys.len_step() != 0 || words < u64::from(first) + u64::from(piece.keys.len()) {
                        return Err(format!("`{piece}` has no word for each of its keys"));
                    }
                }
                let mut of_runs = 0_u64;
                for run in runs {
                    check_keys(plan, mask, row, run.keys)?;
                    if u64::from(run.at) != of_runs {
                        return Err(format!("`{run}` stands at the wrong place, {of_runs} is next"));
                    }
                    of_runs += u64::from(run.keys.len());
                    let Some(trims) = run.trims else { continue };
                    let fits = |trims: &[[u32; 2]; ROW_BLOCKS]| {
                        trims.iter().all(|&[front, back]| {
                            u64::from(front) + u64::from(back) <= u64::from(run.keys.len())
                                && (run.keys.len_step() == 0 || front + back == 0)
                        })
                    };
                    if !mask.trims.get(trims as usize).is_some_and(fits) {
                        return Err(format!("`{run}` has no trims that fit it"));
                    }
                }
                // Only what stands last may grow: nothing behind it has a place of its own.
                let grows = |keys: PieceKeys| keys.len_step() != 0;
                let inner = pieces.split_last().map_or(&[][..], |(_, inner)| inner);
                if inner.iter().any(|piece| grows(piece.keys)) {
                    return Err("a piece grows in front of another".to_owned());
                }
                if of_runs != place || row.widest_panel(plan.tuning) > mask.panel_keys as u64 {
                    return Err("runs and pieces differ in keys, or the panel is too narrow".to_owned());
                }
            }
        }
    }
    Ok(())
}

fn check_keys(plan: &KernelPlan, mask: &MaskPlan, row: &RowPlan, keys: PieceKeys) -> Result<(), String> {
    let fits = match keys {
        PieceKeys::List { list, first, len } => {
            let list = mask.lists.get(list as usize).map_or(&[][..], Vec::as_slice);
            let last = first.checked_add(len);
            last.and_then(|last| list.get(first as usize..last as usize))
                .is_some_and(|keys| keys.iter().all(|&key| (key as usize) < plan.shape.kv_len))
        }
        PieceKeys::Range(Stretch { start, len, start_step, len_step }) => {
            let last = u64::from(row.count - 1);
            let step = u64::from(mask.key_step);
            // In the last row of the run, where starts and lengths are largest.
            let keys = u64::from(len) + last * u64::from(len_step);
            let start = u64::from(start) + last * u64::from(start_step);
            let moves = start_step != 0 || len_step != 0;
            (keys == 0 || start + (keys - 1) * step < plan.shape.kv_len as u64) && !(row.table && moves)
        }
    };
    if fits { Ok(()) } else { Err(format!("`{keys}` are not all keys")) }
}

/// How far the planned rows reach, by the rows of K that their steps name and the places of those queries. Shares nothing
/// with what [`program`] finds in the block mask.
fn planned_reach(mask: &MaskPlan, kv_len: usize) -> Reach {
    let mut place_of: Vec<u32> = Vec::new();
    if let Some(order) = &mask.order {
        place_of = vec![0; kv_len];
        for (place, &query) in order.iter().enumerate() {
            if let Some(entry) = place_of.get_mut(query as usize) {
                *entry = place as u32;
            }
        }
    }
    let mut reach = Reach::default();
    let mut see = |t: u32, key: u32| {
        let place = if place_of.is_empty() { key } else { place_of.get(key as usize).copied().unwrap_or(0) };
        reach = reach.join(Reach::of(t, place, place));
    };
    for row in &mask.rows {
        for keys in row.steps.iter().flat_map(keys_of) {
            match keys {
                PieceKeys::List { list, first, len } => {
                    let list = mask.lists.get(list as usize).map_or(&[][..], Vec::as_slice);
                    let list = list.get(first as usize..(first + len) as usize).unwrap_or(&[]);
                    for t in [row.first, row.first + row.count - 1] {
                        list.iter().for_each(|&key| see(t, key));
                    }
                }
                PieceKeys::Range(Stretch { start, len, start_step, len_step }) => {
                    // In the order of keys, the ends of the first and the last row reach furthest.
                    let ordered = mask.order.is_some();
                    let rows = if ordered { (0..row.count).collect() } else { vec![0, row.count - 1] };
                    for t in rows {
                        let (start, len) = (start + t * start_step, len + t * len_step);
                        let keys = if ordered { (0..len).collect() } else { vec![0, len.saturating_sub(1)] };
                        let keys = keys.into_iter().filter(|_| len > 0);
                        keys.for_each(|i| see(row.first + t, start + i * mask.key_step));
                    }
                }
            }
        }
    }
    for (place, ends) in mask.edges.offsets.windows(2).enumerate() {
        let keys = mask.edges.keys.get(ends[0] as usize..ends[1] as usize).unwrap_or(&[]);
        keys.iter().for_each(|&key| see((place / QUERY_BLOCK) as u32, key));
    }
    reach
}

fn keys_of(step: &Step) -> impl Iterator<Item = PieceKeys> {
    let (pieces, stream): (&[_], _) = match step {
        Step::Edges => (&[], None),
        Step::Joint { pieces, .. } => (pieces, None),
        Step::Stream(stretch) => (&[], Some(PieceKeys::Range(*stretch))),
    };
    pieces.iter().map(|piece| piece.keys).chain(stream)
}

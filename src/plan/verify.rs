//! The plan's own rules: what code generation and tiles take for granted. Run once in every compilation of a debug
//! build, and on every plan that is read from text.

use super::{KernelPlan, MaskPlan, ModsBy, PieceKeys, RowPlan, Step, Stretch, Walk, reach};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::target::Isa;

/// Block rows whose edges may be computed together.
const MOST_EDGE_ROWS: usize = 1 << 10;

/// Checks that block rows follow each other and are all there, that every key, mask word, list and trim that a step
/// names exists, that pieces lie one behind the other in a panel that is wide enough, and that rows walked from
/// tables need no arithmetic.
///
/// # Errors
/// [`Error::Internal`] with the rule that is broken and the plan.
pub fn verify(plan: &KernelPlan) -> Result<()> {
    let broken = |message: String| Error::internal("plan", message, plan.print());
    if plan.masks.is_empty() || plan.hops.is_empty() {
        return Err(broken("a plan has at least one mask and one hop".to_owned()));
    }
    if plan.parts == 0
        || plan.mask_of_head.len() != plan.heads * plan.parts
        || plan.mask_of_head.iter().any(|&m| m as usize >= plan.masks.len())
    {
        return Err(broken("a head has no mask".to_owned()));
    }
    if plan.stack == 0 || (plan.stack > 1 && plan.q_len != plan.stack) {
        return Err(broken("rows of several heads have one query each".to_owned()));
    }
    if plan.parts > 1 && plan.walk != Walk::Flash {
        return Err(broken("parts are joined by flash alone".to_owned()));
    }
    if !plan.tuning.is_valid() {
        return Err(broken("sizes that no plan is cut by".to_owned()));
    }
    if (plan.walk == Walk::Sweep) != plan.reach.is_some() {
        return Err(broken("a sweep, and nothing else, goes by how far rows reach".to_owned()));
    }
    if (plan.halo && plan.walk != Walk::Sweep) || (plan.edge_rows > 1 && plan.walk != Walk::Flash) {
        return Err(broken("stretches are a sweep's, and batches of edges flash's".to_owned()));
    }
    if !plan.edge_rows.is_power_of_two() || plan.edge_rows > MOST_EDGE_ROWS {
        return Err(broken("edges are batched by a power of two rows".to_owned()));
    }
    if let Some(training) = plan.training {
        if !matches!(plan.walk, Walk::Resident | Walk::Recompute) {
            return Err(broken("kernels for training compute hop by hop".to_owned()));
        }
        if !plan.dtype.is_f32() || !plan.store.is_f32() || plan.stack != 1 {
            return Err(broken("kernels for training are f32, one head a row".to_owned()));
        }
        if ![1, plan.hops.len()].contains(&training.hops_per_pass) {
            return Err(broken("the gradient takes one hop at a time, or all".to_owned()));
        }
    }
    if plan.walk == Walk::Flash && plan.hops.len() != 1 {
        return Err(broken("flash has one hop".to_owned()));
    }
    if !matches!(plan.store, Dtype::F32 | Dtype::Bf16) || (plan.store != Dtype::F32 && !plan.walk.stores_p()) {
        return Err(broken("P is stored in f32 or bf16, where the walk keeps it".to_owned()));
    }
    if let Some(reach) = plan.reach {
        let found = plan.masks.iter().map(|mask| reach::planned_reach(mask, plan.kv_len));
        if found.into_iter().any(|found| found.behind > reach.behind || found.ahead > reach.ahead) {
            return Err(broken("a block row reaches further than the sweep allows".to_owned()));
        }
    }
    if plan.kv_heads == 0 || !plan.heads.is_multiple_of(plan.kv_heads) {
        return Err(broken("the key/value heads do not divide the heads".to_owned()));
    }
    if plan.bf16_dots && (plan.dtype != Dtype::Bf16 || plan.isa != Isa::Avx512 || plan.head_dim < 2) {
        return Err(broken("dot products of bf16 pairs serve bf16 of width 2 or more on avx512".to_owned()));
    }
    if let Some(mods) = &plan.mods {
        let positions = mods.mods.positions;
        if (positions.q_len, positions.kv_len, positions.heads) != (plan.q_len, plan.kv_len, plan.heads) {
            return Err(broken("the score mods are for another problem".to_owned()));
        }
        mods.mods.verify().map_err(broken)?;
        if mods.by != ModsBy::Code && mods.by != ModsBy::choose(&mods.mods, plan.isa) {
            return Err(broken("no tile computes these score mods".to_owned()));
        }
        if mods.fused && plan.scores.fused {
            return Err(broken("the maximum is taken twice".to_owned()));
        }
    }
    for mask in &plan.masks {
        let mut next = 0;
        for row in &mask.rows {
            if row.first != next || row.count == 0 {
                return Err(broken(format!("block row {next} is missing or doubled")));
            }
            next = row.first + row.count;
            check_row(plan, mask, row).map_err(|message| broken(format!("block row {}: {message}", row.first)))?;
        }
        if next as usize != plan.block_rows() {
            return Err(broken(format!("{next} block rows of {}", plan.block_rows())));
        }
    }
    Ok(())
}

fn check_row(plan: &KernelPlan, mask: &MaskPlan, row: &RowPlan) -> Result<(), String> {
    for step in &row.steps {
        match step {
            Step::Edges if mask.edges.keys.is_empty() => return Err("a step of edges without edges".to_owned()),
            Step::Edges => {}
            Step::Stream(_) if row.table => return Err("a stream in a row walked from tables".to_owned()),
            Step::Stream(stretch) => check_keys(plan, mask, row, PieceKeys::Range(*stretch))?,
            Step::Joint { pieces, runs } => {
                let mut place = 0;
                for piece in pieces {
                    check_keys(plan, mask, row, piece.keys)?;
                    if piece.at != place {
                        return Err(format!("`{piece}` stands at the wrong place, {place} is next"));
                    }
                    place += piece.keys.len();
                    let Some((table, first)) = piece.mask else { continue };
                    let words = mask.words.get(table as usize).map_or(0, Vec::len);
                    if piece.keys.len_step() != 0 || words < (first + piece.keys.len()) as usize {
                        return Err(format!("`{piece}` has no word for each of its keys"));
                    }
                }
                for run in runs {
                    check_keys(plan, mask, row, run.keys)?;
                    if run.trims.is_some_and(|trims| trims as usize >= mask.trims.len()) {
                        return Err(format!("`{run}` has no trims"));
                    }
                }
                let of_runs: u32 = runs.iter().map(|run| run.keys.len()).sum();
                if of_runs != place || row.widest_panel(plan.tuning) > mask.panel_keys {
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
            list.get(first as usize..(first + len) as usize)
                .is_some_and(|keys| keys.iter().all(|&key| (key as usize) < plan.kv_len))
        }
        PieceKeys::Range(Stretch { start, len, start_step, len_step }) => {
            let last = u64::from(row.count - 1);
            let step = u64::from(mask.key_step);
            // In the last row of the run, where starts and lengths are largest.
            let keys = u64::from(len) + last * u64::from(len_step);
            let start = u64::from(start) + last * u64::from(start_step);
            let moves = start_step != 0 || len_step != 0;
            (keys == 0 || start + (keys - 1) * step < plan.kv_len as u64) && !(row.table && moves)
        }
    };
    if fits { Ok(()) } else { Err(format!("`{keys}` are not all keys")) }
}

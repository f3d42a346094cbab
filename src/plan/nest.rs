//! What a nest says of the code that runs it.
//!
//! In: a verified program. Out: its [`Walk`], and the factors, masks and stores that code is made with. A nest that no code
//! walks is refused in words: what a recipe makes without one of its passes may be legal, and still need loops that are
//! not there.

use serde::{Deserialize, Serialize};

use super::{ModsBy, ModsPlan, ScoreForm};
use crate::cost::NestCounts;
use crate::dtype::Dtype;
use crate::program::{Base, BlockTest, Body, Extent, Loop, Op, Operation, Program, Space, Stage, Tensor};
use crate::spec::HopFactors;
use crate::target::Isa;

/// How code and runtime walk the block rows of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Walk {
    /// One loop whose only hop takes P while it is at hand, by keys.
    Flash,
    /// A loop that makes P and keeps it, then one for each hop.
    Resident,
    /// A loop for each hop, which makes P again, by keys.
    Recompute,
    /// One loop, each hop some rows behind the one before.
    Sweep,
}

impl Walk {
    /// Whether P is kept between a row's softmax and its hops.
    pub const fn stores_p(self) -> bool {
        matches!(self, Self::Resident | Self::Sweep)
    }

    /// The walk that a forward nest is.
    ///
    /// # Errors
    /// What of it no code does, in words.
    pub(super) fn of(body: &Body) -> Result<Self, String> {
        let pairs = |operation: &Operation| {
            let mut reads = operation.op.reads().into_iter();
            reads.any(|(id, _)| body.value(id).space == Space::Pairs)
                || operation.results.iter().any(|&id| body.value(id).space == Space::Pairs)
        };
        let is_softmax = |operation: &Operation| matches!(operation.op, Op::Exp { .. });
        let is_hop = |operation: &Operation| matches!(operation.op, Op::Spmm { .. });
        for one in &body.loops {
            let joins = one.ops().all(|operation| matches!(operation.op, Op::Join { .. }));
            if !joins && !one.ops().any(|operation| is_hop(operation) || is_softmax(operation)) {
                let name = one.ops().next().map_or("nothing", |operation| operation.op.name());
                return Err(format!("no code has a loop of its own for {name}"));
            }
        }
        for stage in body.loops.iter().flat_map(|one| &one.stages) {
            let (first, of) = (stage.ops.first(), |what: &dyn Fn(&Operation) -> bool| stage.ops.iter().any(what));
            let scored = of(&|operation| matches!(operation.op, Op::Sddmm { .. }));
            if of(&is_softmax) != scored {
                return Err("no code makes scores and weights in loops of their own".to_owned());
            }
            if scored && of(&is_hop) != stage.by_keys {
                return Err("code goes by keys where a product takes weights at hand, and only there".to_owned());
            }
            if first.is_some_and(|first| !pairs(first) && !matches!(first.op, Op::Pack { .. } | Op::Join { .. })) {
                return Err("no code works on rows in a stage of their own".to_owned());
            }
        }
        let on_pairs: Vec<&Loop> = body.loops.iter().filter(|one| one.ops().any(pairs)).collect();
        let count = |what: &dyn Fn(&Operation) -> bool| body.ops().filter(|operation| what(operation)).count();
        let (softmaxes, hops) = (count(&is_softmax), count(&is_hop));
        let by_keys = |stage: &Stage| stage.by_keys;
        let apart = on_pairs.iter().all(|one| one.stages.len() == 1);
        match on_pairs.as_slice() {
            [only] if only.stages.len() == 1 && only.stages.iter().all(by_keys) => Ok(Self::Flash),
            [only] if softmaxes == 1 && only.stages.len() == hops + 1 => Ok(Self::Sweep),
            [_, _, ..] if apart && softmaxes == 1 && on_pairs.len() == hops + 1 => Ok(Self::Resident),
            [_, _, ..] if apart && softmaxes == hops && on_pairs.len() == hops => Ok(Self::Recompute),
            _ => Err("no code has these loops".to_owned()),
        }
    }
}

/// What of a program goes into its code beside the walk.
pub(super) struct Reading {
    pub scores: ScoreForm,
    pub mods: Option<ModsPlan>,
    pub hops: Vec<HopFactors>,
    pub restart_folded: bool,
    pub dropout: bool,
    /// Storage of P where it is kept.
    pub store: Dtype,
    pub halo: bool,
    pub edge_rows: usize,
}

impl Reading {
    /// Reads the operations that make weights, and the hops up to the output.
    ///
    /// # Errors
    /// What of them has no code, in words.
    pub(super) fn of(program: &Program, isa: Isa) -> Result<Self, String> {
        let body = &program.body;
        let mut scores = ScoreForm {
            pack_scale: 1.0,
            panel_scale: None,
            fused: false,
            exp_masked: false,
            test_every: program.block_test == BlockTest::Every,
        };
        let training = body.is_training();
        let (mut panel_scale, mut mods) = (1.0, None::<ModsPlan>);
        let softmax = body.ops().position(|operation| matches!(operation.op, Op::Exp { .. })).unwrap_or(0);
        for Operation { op, results } in body.ops().take(softmax + 1) {
            match op {
                Op::Pack { factor, .. } => scores.pack_scale = *factor as f32,
                // Without a maximum the tile may leave out what no query sees, and a later step masks.
                Op::Sddmm { masked, .. } => scores.fused = *masked && results.len() == 2,
                Op::Scale { factor, .. } => panel_scale *= factor,
                Op::Mods { mods: list, factor, masked, .. } => {
                    // The derivative takes scores as the definition has them, which the tiles' own mods do not leave.
                    let by = if training { ModsBy::Code } else { ModsBy::choose(list, isa) };
                    mods = Some(ModsPlan {
                        mods: list.clone(),
                        factor: *factor as f32,
                        fused: *masked && results.len() == 2,
                        by,
                    });
                }
                Op::Exp { base, masked, .. } => {
                    scores.exp_masked = *masked;
                    // The tiles compute powers of two; e^(s - m) = 2^(s' - m') with both scaled by log2 e.
                    let factor = match base {
                        Base::E => std::f64::consts::LOG2_E,
                        Base::Two => 1.0,
                    };
                    match &mut mods {
                        Some(mods) => mods.factor *= factor as f32,
                        None => panel_scale *= factor,
                    }
                }
                _ => {}
            }
        }
        scores.panel_scale = (panel_scale != 1.0).then_some(panel_scale as f32);
        let (hops, restart_folded) = hops(body)?;
        let element = NestCounts::of(body).weights.map_or(size_of::<f32>(), |weights| weights.element);
        Ok(Self {
            scores,
            mods,
            hops,
            restart_folded,
            dropout: body.ops().any(|operation| matches!(operation.op, Op::Dropout { .. })),
            store: if element == Dtype::Bf16.bytes() { Dtype::Bf16 } else { Dtype::F32 },
            halo: body.loops.iter().any(|one| one.halo),
            edge_rows: body.loops.iter().map(|one| one.edge_rows as usize).max().unwrap_or(1),
        })
    }
}

/// The factors of the hops, and whether every product adds the restart term itself.
fn hops(body: &Body) -> Result<(Vec<HopFactors>, bool), String> {
    let roots = body.roots();
    let v = body.tensor(Tensor::V);
    let (mut hops, mut folded): (Vec<HopFactors>, _) = (Vec::new(), true);
    // What the next hop takes: V, then what the hop before has left.
    let mut before = v;
    for Operation { op, results } in body.ops() {
        match *op {
            Op::Spmm { z, factor, plus, .. } => {
                if before != Some(z) || plus.is_some_and(|(rows, _)| Some(rows) != v) {
                    return Err(format!("code takes hop {} of the hop before, and adds V alone", hops.len() + 1));
                }
                hops.push(HopFactors { step: factor, restart: plus.map_or(0.0, |(_, restart)| restart) });
                before = results.first().copied();
            }
            Op::Combine { x, y, factor } => match hops.last_mut() {
                Some(last) if before == Some(x) && Some(y) == v => {
                    (last.restart, folded, before) = (factor, false, results.first().copied());
                }
                _ => return Err("code adds V alone to what a hop gives".to_owned()),
            },
            Op::Dropout { x, hop: Some(_) } if before == Some(x) => before = results.first().copied(),
            _ => {}
        }
        // Behind the output stand gradients.
        let is_output = |root| body.value(root).extent == Extent::Tensor(Tensor::Out);
        let goes_on = || body.ops().any(|next| next.op.in_place().iter().flatten().any(|of| results.contains(of)));
        if results.iter().any(|result| is_output(roots[result.0 as usize])) && !goes_on() {
            break;
        }
    }
    Ok((hops, folded))
}

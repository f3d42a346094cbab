//! From the stages of a nest to functions.
//!
//! In: a body whose nest is legal. Out: [`Functions`]: what the code of each function does on a block row, and for every
//! stage which function it calls on which operands. Stages that do the same on other operands share a function, as the
//! hops of a diffusion do: operands and the factors of a hop come with the call. Refused: stages that the code of one
//! function has no place for.

use super::chains::Chains;
use super::function::{
    Dense, DenseKind, Functions, Kept, Lanes, MOST_FACTORS, MOST_OPERANDS, Operand, Packed, Panel, RowFunction, RowOp,
    Rows, RowsAt, StageCall, Statistics,
};
use super::layout::Layout;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::program::{Body, Extent, Factor, Loop, Op, Operation, Shape, Space, Stage, Tensor, ValueId};

/// Resolves all stages of a body.
///
/// # Errors
/// [`Error::Unsupported`] where a stage has more operands or factors than a call carries, or more than one softmax, or
/// works on rows of 16 bits in other ways than tiles do.
pub fn resolve(shape: &Shape, body: &Body, layout: &Layout, walk_of: impl Fn(u32, bool) -> usize) -> Result<Functions> {
    let chains = Chains::new(body);
    let mut functions: Vec<RowFunction> = Vec::new();
    let mut calls = Vec::with_capacity(body.loops.len());
    let mut primary = true;
    for of_loop in &body.loops {
        let mut of_stages = Vec::with_capacity(of_loop.stages.len());
        for stage in &of_loop.stages {
            let mut resolver = Resolver {
                shape,
                body,
                layout,
                chains: &chains,
                of_loop,
                stage,
                operands: Vec::new(),
                factors: Vec::new(),
                statistics: Statistics::default(),
                hop: None,
            };
            let mut ops: Vec<RowOp> = Vec::new();
            for operation in &stage.ops {
                resolver.op(operation, &mut ops);
            }
            resolver.keep_statistics(&mut primary);
            let scores = ops.iter().any(|op| matches!(op, RowOp::Sddmm { of_queries: true, .. }));
            let own = ops.iter().find_map(|op| match op {
                RowOp::Spmm { z, of_gradient: false, .. } => Some(*z),
                RowOp::Solve { out, .. } => Some(*out),
                _ => None,
            });
            let values = match (scores, own, body.tensor(Tensor::V)) {
                (true, None, Some(v))
                    if !stage.ops.iter().any(|operation| matches!(operation.op, Op::SoftmaxGradient { .. })) =>
                {
                    Some(resolver.rows(v))
                }
                (true, own, _) => own,
                (false, ..) => None,
            };
            let Resolver { operands, factors, statistics, hop, .. } = resolver;
            let packed = stage.ops.iter().flat_map(|operation| chains.read_in_place(body, &operation.op));
            let is_own = |id: ValueId| stage.ops.iter().any(|operation| operation.results.contains(&id));
            let of_row = |id: ValueId| matches!(body.value(chains.root(id)).extent, Extent::Row | Extent::Keys);
            if packed.into_iter().any(|rows| of_row(rows) && !is_own(rows)) {
                return Err(Error::unsupported(
                    "scores of rows that another stage has packed and not kept",
                    "scattered edges read them in place; keep them, or pack them in the stage",
                ));
            }
            if let Some((what, instead)) = refusal(stage, &ops) {
                return Err(Error::unsupported(what, instead));
            }
            if operands.len() > MOST_OPERANDS || factors.len() > MOST_FACTORS {
                return Err(Error::unsupported(
                    format!("a stage of {} operands and {} factors", operands.len(), factors.len()),
                    format!("a stage has at most {MOST_OPERANDS} and {MOST_FACTORS}; cut it in two"),
                ));
            }
            let names: Vec<&str> = stage.ops.iter().map(|operation| operation.op.name()).collect();
            let function = RowFunction {
                name: names.join("_").replace('\'', "_gradient"),
                walk: walk_of(of_loop.set, stage.by_keys),
                by_keys: stage.by_keys,
                edge_rows: (of_loop.edge_rows as usize).max(1),
                spread: scores && own.is_some(),
                values,
                ops,
                statistics,
                operands: operands.len(),
            };
            let index = functions.iter().position(|known| *known == function).unwrap_or_else(|| {
                functions.push(function);
                functions.len() - 1
            });
            of_stages.push(StageCall { function: index, operands, factors, hop });
        }
        calls.push(of_stages);
    }
    Ok(Functions { functions, calls })
}

/// What the code of one function has no place for, and what serves instead.
fn refusal(stage: &Stage, ops: &[RowOp]) -> Option<(&'static str, &'static str)> {
    let count = |what: fn(&RowOp) -> bool| ops.iter().filter(|op| what(op)).count();
    // Maxima and sums of a row stand in one place.
    let exponentials = count(|op| matches!(op, RowOp::Exp { .. }));
    let maxima =
        count(|op| matches!(op, RowOp::Sddmm { max: true, .. } | RowOp::Mods { max: true, .. } | RowOp::RowMax { .. }));
    if exponentials > 1 || maxima > 1 {
        return Some(("a stage of two softmaxes", "a stage has at most one; cut it in two"));
    }
    let wide = |rows: &Rows| rows.dtype.is_f32();
    let is_wide = |op: &RowOp| match op {
        // A copy rounds.
        RowOp::Dense(Dense { kind: DenseKind::Copy, x, .. }) => wide(x),
        RowOp::Dense(Dense { x, y, w, out, .. }) => {
            wide(x) && [y, w, out].into_iter().all(|rows| rows.as_ref().is_none_or(wide))
        }
        RowOp::SpmmT { x, out, .. } => wide(x) && wide(out),
        _ => true,
    };
    if !ops.iter().all(is_wide) {
        return Some(("rows of 16 bits that are added to", "sums are f32; fold what is added into the product"));
    }
    let twice = |operation: &Operation| matches!(&operation.op, Op::Spmm { onto: Some(_), plus: Some((_, factor)), .. } if !factor.is_zero());
    if stage.ops.iter().any(twice) {
        return Some(("a product that is added to two values", "add one of them in an operation of its own"));
    }
    None
}

struct Resolver<'a> {
    shape: &'a Shape,
    body: &'a Body,
    layout: &'a Layout,
    chains: &'a Chains,
    of_loop: &'a Loop,
    stage: &'a Stage,
    operands: Vec<Operand>,
    factors: Vec<Factor>,
    statistics: Statistics,
    hop: Option<u32>,
}

impl Resolver<'_> {
    fn operand(&mut self, operand: Operand) -> usize {
        match self.operands.iter().position(|&known| known == operand) {
            Some(at) => at,
            None => {
                self.operands.push(operand);
                self.operands.len() - 1
            }
        }
    }

    fn factor(&mut self, factor: Factor) -> usize {
        self.factors.push(factor);
        self.factors.len() - 1
    }

    fn ring(&self, root: ValueId) -> u32 {
        match self.body.value(root).extent {
            Extent::Ring(rows) => rows,
            _ => 0,
        }
    }

    fn rows(&mut self, id: ValueId) -> Rows {
        let root = self.chains.root(id);
        let value = self.body.value(root);
        let (Space::Queries(width) | Space::Keys(width) | Space::Packed(width)) = value.space else {
            return Rows { at: RowsAt::Local(0), width: 0, dtype: Dtype::F32 };
        };
        let (at, dtype) = match value.extent {
            Extent::Tensor(tensor) => (RowsAt::Operand(self.operand(Operand::Tensor(tensor))), self.shape.dtype),
            Extent::Row | Extent::Keys => (RowsAt::Local(self.layout.local_rows(root)), Dtype::F32),
            Extent::All | Extent::Ring(_) => (RowsAt::Operand(self.operand(Operand::Rows(root))), Dtype::F32),
        };
        Rows { at, width, dtype }
    }

    /// Several rows side by side: those of the first, as wide as all.
    fn side_by_side(&mut self, ids: &[ValueId]) -> Rows {
        let width = ids.iter().map(|&id| self.width(id)).sum();
        let first = self.rows(ids[0]);
        Rows { width, ..first }
    }

    fn width(&self, id: ValueId) -> usize {
        match self.body.value(id).space {
            Space::Queries(width) | Space::Keys(width) | Space::Packed(width) => width,
            Space::Pairs | Space::Query => 0,
        }
    }

    fn packed(&mut self, id: ValueId) -> Packed {
        let root = self.chains.root(id);
        match self.body.value(root).extent {
            Extent::Row | Extent::Keys => Packed::Local(self.layout.local_packed(root)),
            _ => {
                let ring = self.ring(root);
                Packed::Kept(Kept { operand: self.operand(Operand::Packed(root)), ring })
            }
        }
    }

    fn panel(&mut self, id: ValueId) -> Panel {
        let root = self.chains.root(id);
        let value = self.body.value(root);
        match value.extent {
            Extent::Row | Extent::Keys => Panel { local: Some(self.layout.local_panel(root)), kept: None },
            _ => {
                let ring = self.ring(root);
                let operand = self.kept_panel(root);
                let local = (!value.store.is_f32()).then(|| self.layout.local_panel(root));
                Panel { local, kept: Some(Kept { operand, ring }) }
            }
        }
    }

    /// Panels, and edges in the operand behind.
    fn kept_panel(&mut self, root: ValueId) -> usize {
        if let Some(at) = self.operands.iter().position(|&known| known == Operand::Panels(root)) {
            return at;
        }
        self.operands.extend([Operand::Panels(root), Operand::Edges(root)]);
        self.operands.len() - 2
    }

    fn kept_lanes(&mut self, root: ValueId) -> Option<Kept> {
        match self.body.value(root).extent {
            Extent::Row | Extent::Keys => None,
            _ => {
                let ring = self.ring(root);
                Some(Kept { operand: self.operand(Operand::Lanes(root)), ring })
            }
        }
    }

    /// Whether the operation that defines `id` stands in this stage.
    fn is_own(&self, id: ValueId) -> bool {
        self.stage.ops.iter().any(|operation| operation.results.contains(&id))
    }

    /// 1 / row sums.
    fn sums(&mut self, l: Option<ValueId>) -> Lanes {
        let Some(l) = l else { return Lanes::One };
        if self.is_own(l) {
            return Lanes::OwnSum;
        }
        self.kept_lanes(self.chains.root(l)).map_or(Lanes::OwnSum, Lanes::Kept)
    }

    /// Numbers for every query, made by operations row by row.
    fn lanes(&mut self, id: ValueId) -> Lanes {
        let root = self.chains.root(id);
        match self.kept_lanes(root) {
            Some(kept) => Lanes::Kept(kept),
            None => Lanes::Local(self.layout.local_lanes(root)),
        }
    }

    fn op(&mut self, operation: &Operation, ops: &mut Vec<RowOp>) {
        let result = operation.results.first().copied().unwrap_or(ValueId(0));
        let finds_max = |op: &Op| match op {
            Op::Sddmm { .. } | Op::Mods { .. } => operation.results.len() > 1,
            Op::RowMax { .. } => true,
            _ => false,
        };
        let max = finds_max(&operation.op);
        self.statistics.finds_max |= max;
        match &operation.op {
            Op::Pack { x, factor } => {
                let x = self.side_by_side(x);
                let out = self.packed(result);
                ops.push(RowOp::Pack { x, factor: *factor as f32, out });
            }
            Op::Sddmm { x, y, masked } => {
                let (queries, pack_factor) = match self.chains.operation(self.body, *x).map(|pack| &pack.op) {
                    Some(Op::Pack { x, factor }) => (self.side_by_side(&x.clone()), *factor),
                    _ => (self.rows(*x), 1.0),
                };
                let root = self.chains.root(result);
                let of_queries = matches!(self.body.value(y[0]).extent, Extent::Tensor(Tensor::K));
                let factor = pack_factor * self.chains.scales[root.0 as usize] * self.natural_scale(root);
                let (x, y, s) = (self.packed(*x), self.side_by_side(y), self.panel(result));
                let edge_factor = if of_queries { factor } else { pack_factor } as f32;
                ops.push(RowOp::Sddmm { x, queries, edge_factor, y, s, masked: *masked, max, of_queries });
            }
            Op::Scale { s, factor } => {
                // The gradient of scores has it from the operation before.
                if self.is_gradient(*s) {
                    return;
                }
                let factor = *factor * self.natural_scale(self.chains.root(*s));
                let s = self.panel(result);
                ops.push(RowOp::Scale { s, factor: factor as f32 });
            }
            Op::Copy { x } => match self.body.value(result).space {
                Space::Pairs => {
                    let (from, to) = (self.panel(*x), self.panel(result));
                    ops.push(RowOp::CopyPanel { from, to });
                }
                _ => {
                    let (x, out) = (self.rows(*x), self.rows(result));
                    ops.push(self.dense(DenseKind::Copy, x, Some(out)));
                }
            },
            Op::Mods { factor, masked, .. } => {
                let root = self.chains.root(result);
                let natural = if self.chains.natural[root.0 as usize] { std::f64::consts::LOG2_E } else { 1.0 };
                let s = self.panel(result);
                ops.push(RowOp::Mods { s, factor: (factor * natural) as f32, masked: *masked, max });
            }
            Op::Mask { .. } => {
                let s = self.panel(result);
                ops.push(RowOp::Mask { s });
            }
            Op::RowMax { s } => {
                let s = self.panel(*s);
                ops.push(RowOp::RowMax { s });
            }
            Op::Exp { m, masked, .. } => {
                let own = self.is_own(*m);
                self.statistics.exp_of_own_max |= own;
                let root = self.chains.root(*m);
                let m = if own { None } else { self.kept_lanes(root) };
                let half = !self.body.value(self.chains.root(result)).store.is_f32();
                let s = self.panel(result);
                ops.push(RowOp::Exp { s, m, masked: *masked, half });
            }
            Op::Dropout { x, hop: None } if self.body.value(*x).space == Space::Pairs => {
                let p = self.panel(result);
                ops.push(RowOp::DropPanel { p });
            }
            Op::Dropout { x, hop } => {
                let x = self.rows(*x);
                self.hop = self.hop.or(*hop);
                let dense = Dense { hop: true, ..self.dense_of(DenseKind::Drop, x, Some(x)) };
                ops.push(RowOp::Dense(dense));
            }
            Op::Spmm { p, z, l, factor, plus, onto } => {
                let of_gradient = self.is_gradient(*p);
                let widen = !self.body.value(self.chains.root(*p)).store.is_f32();
                let applies = !factor.is_zero();
                let (p, z, l, out) = (self.panel(*p), self.rows(*z), self.sums(*l), self.rows(result));
                let factor = self.factor(*factor);
                // What it is added to are rows that are added, and the rows that are written.
                let plus = onto.map(|onto| (onto, Factor::ONE)).or(plus.filter(|(_, factor)| !factor.is_zero()));
                let plus = plus.map(|(rows, factor)| (self.rows(rows), self.factor(factor)));
                ops.push(RowOp::Spmm { p, z, l, out, factor, plus, of_gradient, applies, widen });
            }
            Op::Solve { p, l, factor, plus: (rows, restart) } => {
                let (p, l, out) = (self.panel(*p), self.sums(Some(*l)), self.rows(result));
                let factor = self.factor(*factor);
                let plus = (self.rows(*rows), self.factor(*restart));
                ops.push(RowOp::Solve { p, l, out, factor, plus });
            }
            Op::SolveT { p, x, l, factor } => {
                let (p, x, l) = (self.panel(*p), self.rows(*x), self.sums(Some(*l)));
                let (out, factor) = (self.rows(result), self.factor(*factor));
                ops.push(RowOp::SolveT { p, x, l, out, factor });
            }
            Op::Combine { x, y, factor } => {
                let (out, y) = (self.rows(*x), self.rows(*y));
                let factor = self.factor(*factor);
                ops.push(RowOp::Dense(Dense { factor, ..self.dense_of(DenseKind::Add, y, Some(out)) }));
            }
            Op::Join { x, m, l } => {
                let (x, out) = (self.rows(*x), self.rows(result));
                let [max, sum] = [*m, *l].map(|id| self.operand(Operand::Lanes(self.chains.root(id))));
                ops.push(RowOp::Join { x, out, max, sum });
            }
            Op::ScaleRows { x, l, factor } => {
                let (x, lanes, out) = (self.rows(*x), self.sums(*l), self.rows(result));
                let factor = self.factor(*factor);
                ops.push(RowOp::Dense(Dense { lanes, factor, ..self.dense_of(DenseKind::Scale, x, Some(out)) }));
            }
            Op::DotRows { x, y, minus, hop, l, onto } => {
                let (x, y, lanes) = (self.rows(*x), self.rows(*y), self.sums(*l));
                let w = minus.map(|(rows, factor)| (self.rows(rows), self.factor(factor)));
                let sums = Some((self.lanes(result), onto.is_none()));
                let dense = self.dense_of(DenseKind::Dot, x, None);
                let (w, w_factor) = (w.map(|w| w.0), w.map_or(0, |w| w.1));
                self.hop = self.hop.or(*hop);
                ops.push(RowOp::Dense(Dense { y: Some(y), w, w_factor, lanes, sums, hop: hop.is_some(), ..dense }));
            }
            Op::SoftmaxGradient { p, dp, delta, factor, dropout } => {
                let root = self.chains.root(result);
                // A factor that stands apart goes in here, before any mods take it back.
                let behind = if self.chains.has_mods_gradient(self.body, root) {
                    1.0
                } else {
                    self.chains.scales[root.0 as usize]
                };
                let (p, dp, delta) = (self.panel(*p), self.panel(*dp), self.lanes(*delta));
                let factor = (factor * behind) as f32;
                let leaves = operation.results.len() > 1;
                ops.push(RowOp::SoftmaxGradient { p, dp, delta, factor, dropout: *dropout, leaves });
            }
            Op::ModsGradient { s, factor, .. } => {
                let root = self.chains.root(result);
                let (raw, ds) = (self.panel(*s), self.panel(result));
                let factor = (factor * self.chains.scales[root.0 as usize]) as f32;
                ops.push(RowOp::ModsGradient { raw, ds, factor });
            }
            Op::SpmmT { p, x, .. } => {
                let (p, x, out) = (self.panel(*p), self.rows(*x), self.rows(result));
                ops.push(RowOp::SpmmT { p, x, out });
            }
            Op::SumRows { x, column, factor } => {
                let x = self.lanes(*x);
                ops.push(RowOp::SumRows { x, column: *column, factor: *factor as f32 });
            }
            Op::AddRows { x, factor, onto } => {
                let (x, out) = (self.rows(*x), self.rows(*onto));
                let factor = self.factor(*factor);
                ops.push(RowOp::Dense(Dense { factor, ..self.dense_of(DenseKind::Add, x, Some(out)) }));
            }
        }
    }

    /// log2(e) where scores go into a power of e: tiles compute powers of two. With mods it is on what comes behind them.
    fn natural_scale(&self, root: ValueId) -> f64 {
        let root = root.0 as usize;
        if self.chains.natural[root] && !self.chains.has_mods[root] { std::f64::consts::LOG2_E } else { 1.0 }
    }

    /// Whether pairs are the gradient of weights or scores: their buffer begins with a product of other rows than keys.
    fn is_gradient(&self, pairs: ValueId) -> bool {
        match self.chains.operation(self.body, self.chains.root(pairs)).map(|operation| &operation.op) {
            Some(Op::Sddmm { y, .. }) => !matches!(self.body.value(y[0]).extent, Extent::Tensor(Tensor::K)),
            _ => false,
        }
    }

    fn dense(&mut self, kind: DenseKind, x: Rows, out: Option<Rows>) -> RowOp {
        RowOp::Dense(self.dense_of(kind, x, out))
    }

    fn dense_of(&mut self, kind: DenseKind, x: Rows, out: Option<Rows>) -> Dense {
        let (y, w, sums, hop) = (None, None, None, false);
        Dense { kind, x, y, w, out, lanes: Lanes::One, sums, factor: 0, w_factor: 0, hop }
    }

    /// Where the maxima and sums of the stage's softmax go. Those of the first softmax of a body go to the caller.
    fn keep_statistics(&mut self, primary: &mut bool) {
        if self.of_loop.parts {
            // Every part's go where the join finds them, as if to a caller.
            self.statistics.to_caller = true;
            *primary = false;
            return;
        }
        for operation in &self.stage.ops {
            let max = match operation.op {
                Op::Sddmm { .. } | Op::Mods { .. } => operation.results.get(1).copied(),
                Op::RowMax { .. } => operation.results.first().copied(),
                _ => None,
            };
            if let Some(max) = max {
                self.statistics.keep_max = self.kept_lanes(max);
            }
            if let (Op::Exp { .. }, Some(&sums)) = (&operation.op, operation.results.get(1)) {
                self.statistics.keep_sum = self.kept_lanes(sums);
                self.statistics.to_caller = std::mem::take(primary);
            }
        }
    }
}

//! The nest of a plan, interpreted for one head: loops one after the other, stages at their shifts, operands out of
//! tensors and workspace. What is done with addresses of workspace is done here, and nowhere else.
#![allow(unsafe_code)]

use std::ops::Range;

use smallvec::SmallVec;

use super::pointer::{Pointer, clear, enter, floats, slide};
use super::pool::{Pool, spread};
use crate::codegen::{KernelArgs, OperandArgs};
use crate::jit::Linked;
use crate::mask::QUERY_BLOCK;
use crate::plan::{KernelPlan, MOST_FACTORS, MOST_OPERANDS, Operand, StageCall};
use crate::program::{Access, Extent, Op, Space, Tensor, ValueId};
use crate::spec::score::HeadNumbers;

/// A tensor `[batch, heads, rows, width]` as kernels see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct TensorAt<'a> {
    pub base: Pointer<'a>,
    /// Elements from one batch, head and row to the next.
    pub strides: [usize; 3],
    /// Bytes of an element.
    pub element: usize,
}

/// Rows of one head: row 0, and elements from one to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadRows<'a> {
    pub base: Pointer<'a>,
    pub stride: usize,
}

impl HeadRows<'_> {
    /// As kernels take them.
    pub const fn args(self) -> OperandArgs {
        OperandArgs { base: self.base.get(), stride: self.stride }
    }
}

impl<'a> TensorAt<'a> {
    /// A tensor of f32 without gaps.
    pub const fn contiguous(base: Pointer<'a>, (_, heads, rows, width): (usize, usize, usize, usize)) -> Self {
        Self { base, strides: [heads * rows * width, rows * width, width], element: size_of::<f32>() }
    }

    /// The same seen as heads of `stack` rows, where it has `stack` times as many of one row each.
    pub const fn stacked(self, stack: usize) -> Self {
        let [batch, head, row] = self.strides;
        let strides = if stack == 1 { [batch, head, row] } else { [batch, head * stack, head] };
        Self { strides, ..self }
    }

    const fn head(self, batch: usize, head: usize) -> HeadRows<'a> {
        let at = (batch * self.strides[0] + head * self.strides[1]) * self.element;
        HeadRows { base: self.base.at(at as isize), stride: self.strides[2] }
    }
}

/// The tensors of a call, by [`Tensor`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tensors<'a>([Option<TensorAt<'a>>; 8]);

impl<'a> Tensors<'a> {
    pub const fn has(&self, tensor: Tensor) -> bool {
        self.0[tensor as usize].is_some()
    }

    pub fn set(&mut self, tensor: Tensor, at: TensorAt<'a>) {
        self.0[tensor as usize] = Some(at);
    }
}

/// What the runtime knows of a loop beside its stages.
#[derive(Debug, Clone)]
pub(super) struct LoopFacts {
    /// For every stage, how many reads of neighbors lie between it and what the loop gives to others.
    depth: Vec<usize>,
    /// Rows kept in rings: the value, and the stage that writes it.
    rings: Vec<(ValueId, usize)>,
    /// Rows of keys that begin as zeros.
    fresh: Vec<ValueId>,
    /// Rows of keys that all block rows add to.
    pub sums: Vec<ValueId>,
    /// The loop's gradients of score mods' inputs are added to as well.
    pub adds_to_inputs: bool,
    /// Rows follow each other: they are no one else's, and none is skipped.
    pub in_order: bool,
    /// From the last row to the first.
    backwards: bool,
    /// Whether it computes something of the gradient.
    pub backward: bool,
    /// The values it defines, by the root of their buffers.
    pub defines: Vec<ValueId>,
    /// Whether the output is among them.
    pub gives_out: bool,
}

impl LoopFacts {
    /// The facts of all loops of a plan.
    pub fn of(plan: &KernelPlan) -> Vec<Self> {
        let body = &plan.body;
        let roots = body.roots();
        let root = |id: ValueId| roots[id.0 as usize];
        let mut backward = false;
        let gradient = body.tensor(Tensor::GradOut);
        let loops = body.loops.iter().map(|of_loop| {
            let stages = &of_loop.stages;
            let mut facts = Self {
                depth: vec![0; stages.len()],
                rings: Vec::new(),
                fresh: Vec::new(),
                sums: Vec::new(),
                adds_to_inputs: false,
                in_order: of_loop.is_in_order(),
                backwards: of_loop.ops().any(|operation| matches!(operation.op, Op::SolveT { .. })),
                backward: false,
                defines: Vec::new(),
                gives_out: false,
            };
            let writer = |id: ValueId| {
                stages.iter().position(|stage| stage.ops.iter().any(|operation| operation.results.contains(&id)))
            };
            // Readers stand behind writers, so that one pass from the last stage suffices.
            for (at, stage) in stages.iter().enumerate().rev() {
                for operation in &stage.ops {
                    for (id, access) in operation.op.reads() {
                        if let Some(from) = writer(id).filter(|&from| from != at) {
                            let steps = facts.depth[at] + usize::from(access == Access::Neighbors);
                            facts.depth[from] = facts.depth[from].max(steps);
                        }
                    }
                }
            }
            for (at, stage) in stages.iter().enumerate() {
                for operation in &stage.ops {
                    let gives = |&id: &ValueId| body.value(root(id)).extent == Extent::Tensor(Tensor::GradQ);
                    backward |= operation.results.iter().any(gives);
                    backward |= operation.op.reads().iter().any(|&(id, _)| Some(root(id)) == gradient);
                    facts.adds_to_inputs |= matches!(operation.op, Op::ModsGradient { .. } | Op::SumRows { .. });
                    for &id in &operation.results {
                        let value = body.value(root(id));
                        if !facts.defines.contains(&root(id)) {
                            facts.defines.push(root(id));
                        }
                        let rows = matches!(value.space, Space::Queries(_) | Space::Keys(_));
                        if root(id) == id && rows && matches!(value.extent, Extent::Ring(_)) {
                            facts.rings.push((id, at));
                        }
                        if matches!(operation.op, Op::SolveT { .. }) {
                            facts.fresh.push(id);
                        }
                        if let Op::SpmmT { onto, .. } = operation.op {
                            if onto.is_none() {
                                facts.fresh.push(id);
                            }
                            if !facts.sums.contains(&root(id)) {
                                facts.sums.push(root(id));
                            }
                        }
                    }
                }
            }
            facts.backward = backward;
            let is_out = |&id: &ValueId| body.value(id).extent == Extent::Tensor(Tensor::Out);
            facts.gives_out = facts.defines.iter().any(is_out);
            facts
        });
        loops.collect()
    }
}

/// What all heads of a call share.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub kernel: &'a Linked,
    pub loops: &'a [LoopFacts],
    pub tensors: Tensors<'a>,
    /// The list of the score mods' inputs and constants.
    pub inputs: Pointer<'a>,
    /// What the call gives for each head.
    pub numbers: HeadNumbers<'a>,
}

/// One (batch, head) of a call.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub site: Site<'a>,
    pub batch: usize,
    pub head: usize,
    /// Its workspace.
    pub workspace: Pointer<'a>,
    /// Where maxima and sums of its rows go, by number of the query, or null.
    pub statistics: [Pointer<'a>; 2],
    /// Where its output is, instead of in the call's tensor.
    pub out: Option<HeadRows<'a>>,
    /// Some tensor, or some score, is not finite.
    pub exact: bool,
    pub dropout: Dropped<'a>,
}

/// What dropout needs of a head.
#[derive(Clone, Copy)]
pub(super) struct Dropped<'a> {
    /// Of every query, by place, for weights; null where none are dropped.
    pub row_keys: Pointer<'a>,
    pub threshold: u32,
    pub keep: f32,
    /// The same for the rows behind every hop, hop by hop; null where none are dropped.
    pub hop_keys: Pointer<'a>,
    /// Numbers from one hop to the next.
    pub hop_stride: usize,
    pub hop_threshold: u32,
    pub hop_keep: f32,
}

impl Dropped<'_> {
    pub const NONE: Self = Self {
        row_keys: Pointer::NULL,
        threshold: 0,
        keep: 1.0,
        hop_keys: Pointer::NULL,
        hop_stride: 0,
        hop_threshold: 0,
        hop_keep: 1.0,
    };
}

/// What a call of a stage has of its own.
#[derive(Clone, Copy)]
pub(super) struct Own<'s> {
    pub part: usize,
    /// Whether its statistics are wanted.
    pub statistics: bool,
    /// Buffers that stand in the place of others: their base for row 0.
    pub instead: &'s [(ValueId, Pointer<'s>)],
    /// Rows that stand in the place of others.
    pub rows: Option<(ValueId, HeadRows<'s>)>,
    /// Element 0 of the gradient of every input of the score mods.
    pub input_gradients: Pointer<'s>,
}

impl Own<'_> {
    pub const PLAIN: Self =
        Self { part: 0, statistics: true, instead: &[], rows: None, input_gradients: Pointer::NULL };
}

impl<'a> Head<'a> {
    fn plan(&self) -> &'a crate::plan::VerifiedPlan {
        self.site.kernel.plan()
    }

    /// Runs stage `stage` of loop `of_loop` on block rows, on a worker whose workspace is `local`.
    pub fn stage(&self, (of_loop, stage): (usize, usize), local: Pointer<'_>, rows: Range<usize>, own: Own<'_>) {
        let call = &self.plan().functions().calls[of_loop][stage];
        let args = self.args(call, local, rows, own);
        // SAFETY: whoever made the head checked every shape, stride and input against the plan of this kernel and keeps the
        // tensors borrowed until all units are done; tables and sizes of workspace come from the same plan; a head's
        // workspace and a worker's are used by one unit at a time, or by units that write different rows.
        unsafe {
            enter(self.site.kernel, call.function, &args);
        }
    }

    fn args(&self, call: &StageCall, local: Pointer<'_>, rows: Range<usize>, own: Own<'_>) -> KernelArgs {
        let plan = self.plan();
        let walk = plan.functions().functions[call.function].walk;
        let mask = plan.mask_of(plan.walks[walk].set, self.head, own.part);
        let statistics =
            |which: usize| if own.statistics { self.statistics[which].get().cast() } else { std::ptr::null_mut() };
        let dropped = self.dropout;
        let hop_keys = match call.hop {
            Some(hop) if !dropped.hop_keys.is_null() => {
                dropped.hop_keys.at((hop as usize * dropped.hop_stride * size_of::<u32>()) as isize)
            }
            _ => Pointer::NULL,
        };
        let mut args = KernelArgs {
            tables: self.site.kernel.tables(call.function, mask),
            local: local.get(),
            first_row: rows.start,
            end_row: rows.end,
            head: self.head,
            row_max: statistics(0),
            row_sum: statistics(1),
            inputs: self.site.inputs.get().cast_const().cast(),
            input_gradients: own.input_gradients.get().cast_const().cast(),
            exact: usize::from(self.exact),
            row_keys: dropped.row_keys.get().cast_const().cast(),
            hop_keys: hop_keys.get().cast_const().cast(),
            threshold: dropped.threshold,
            keep: dropped.keep,
            hop_threshold: dropped.hop_threshold,
            hop_keep: dropped.hop_keep,
            factors: [0.0; MOST_FACTORS],
            operands: [OperandArgs::NONE; MOST_OPERANDS],
        };
        let numbers = self.site.numbers.of_head(self.head);
        for (to, factor) in args.factors.iter_mut().zip(&call.factors) {
            *to = factor.of(numbers);
        }
        for (to, &operand) in args.operands.iter_mut().zip(&call.operands) {
            *to = self.operand(operand, own);
        }
        args
    }

    fn operand(&self, operand: Operand, own: Own<'_>) -> OperandArgs {
        let plan = self.plan();
        let offset_of = |id: ValueId, behind: usize| {
            let offset = plan.layout().buffer(id).map_or(0, |buffer| buffer.offset) + behind;
            OperandArgs { base: self.workspace.at(offset as isize).get(), stride: 0 }
        };
        match operand {
            Operand::Tensor(tensor) => {
                let id = plan.body.tensor(tensor);
                let found = self.tensor(tensor).map_or(OperandArgs::NONE, HeadRows::args);
                match own.instead.iter().find(|(instead, _)| Some(*instead) == id) {
                    Some((_, base)) => OperandArgs { base: base.get(), ..found },
                    None => found,
                }
            }
            Operand::Rows(id) if own.rows.is_some_and(|(instead, _)| instead == id) => {
                own.rows.map_or(OperandArgs::NONE, |(_, rows)| rows.args())
            }
            Operand::Rows(id) => {
                let Some(buffer) = plan.layout().buffer(id) else { return OperandArgs::NONE };
                let base = match own.instead.iter().find(|(instead, _)| *instead == id) {
                    Some((_, base)) => *base,
                    None => self.workspace.at(buffer.offset as isize),
                };
                OperandArgs { base: base.get(), stride: buffer.stride }
            }
            Operand::Packed(id) | Operand::Panels(id) | Operand::Lanes(id) => offset_of(id, 0),
            Operand::Edges(id) => offset_of(id, plan.layout().buffer(id).map_or(0, |buffer| buffer.size)),
        }
    }

    /// The head's rows of a tensor of the call.
    pub fn tensor(&self, tensor: Tensor) -> Option<HeadRows<'a>> {
        if let (Tensor::Out, Some(out)) = (tensor, self.out) {
            return Some(out);
        }
        let at = self.site.tensors.0[tensor as usize]?;
        let head = match tensor {
            Tensor::K | Tensor::V | Tensor::GradK | Tensor::GradV => self.head / self.plan().group(),
            Tensor::Q | Tensor::Out | Tensor::GradOut | Tensor::GradQ => self.head,
        };
        Some(at.head(self.batch, head))
    }

    /// Zeros in what begins as zeros in a loop.
    pub fn clear_sums(&self, of_loop: usize) {
        for &id in &self.site.loops[of_loop].fresh {
            if let Some(buffer) = self.plan().layout().buffer(id) {
                let width = match self.plan().body.value(id).space {
                    Space::Keys(width) | Space::Queries(width) => width,
                    Space::Packed(_) | Space::Pairs | Space::Query => 0,
                };
                let float = size_of::<f32>();
                for row in 0..if buffer.stride == width { 0 } else { buffer.size } {
                    let at = self.workspace.at((buffer.offset + row * buffer.stride * float) as isize);
                    // SAFETY: the row is one of the buffer, and the head's workspace is this unit's.
                    unsafe {
                        clear(at, width * float);
                    }
                }
                if buffer.stride == width {
                    // SAFETY: as above, of all rows at once.
                    unsafe {
                        clear(self.workspace.at(buffer.offset as isize), buffer.size * width * float);
                    }
                }
            }
        }
    }

    /// Zeros in the head's rows of a gradient.
    pub fn clear_gradient(&self, tensor: Tensor) {
        let shape = &self.plan().shape;
        let (rows, width) = match tensor {
            Tensor::GradQ => (shape.q_len, shape.head_dim),
            Tensor::GradK => (shape.kv_len, shape.head_dim),
            Tensor::GradV => (shape.kv_len, shape.value_dim),
            Tensor::Q | Tensor::K | Tensor::V | Tensor::Out | Tensor::GradOut => (0, 0),
        };
        let Some(HeadRows { base, stride }) = self.tensor(tensor) else { return };
        let (pieces, floats) = if stride == width { (1, rows * width) } else { (rows, width) };
        for piece in 0..pieces {
            let at = base.at((piece * stride * size_of::<f32>()) as isize);
            // SAFETY: the rows are those of the head in a tensor of f32 of the plan's shape, and no other unit writes them.
            unsafe { clear(at, floats * size_of::<f32>()) };
        }
    }

    /// A whole loop on one worker.
    pub fn run_loop(&self, of_loop: usize, local: Pointer<'_>, own: Own<'_>) {
        self.clear_sums(of_loop);
        let rows = self.plan().block_rows();
        match self.plan().body.loops[of_loop].stages.len() {
            _ if self.site.loops[of_loop].backwards => {
                (0..rows).rev().for_each(|row| self.stage((of_loop, 0), local, row..row + 1, own));
            }
            1 => self.stage((of_loop, 0), local, 0..rows, own),
            _ => self.sweep(of_loop, local, 0..rows, own),
        }
    }

    /// A whole loop, its block rows shared out to workers. Only for loops whose rows do not add to each other.
    pub fn share_loop(&self, of_loop: usize, threads: &dyn Pool, locals: &[Pointer<'_>], unit: usize) {
        let rows = self.plan().block_rows();
        match self.plan().body.loops[of_loop].stages.len() {
            1 if !self.site.loops[of_loop].in_order => {
                spread(threads, locals.len(), rows.div_ceil(unit), |worker, index| {
                    let first = index * unit;
                    self.stage((of_loop, 0), locals[worker], first..rows.min(first + unit), Own::PLAIN);
                })
            }
            _ => self.run_loop(of_loop, locals[0], Own::PLAIN),
        }
    }

    /// All loops on one worker.
    pub fn run(&self, local: Pointer<'_>) {
        (0..self.site.loops.len()).for_each(|of_loop| self.run_loop(of_loop, local, Own::PLAIN));
    }

    /// The block rows `rows` of a loop, row by row, every stage on the row that lies its shift behind the newest. What the
    /// rows near a border need of rows beyond it is computed too.
    pub fn sweep(&self, of_loop: usize, local: Pointer<'_>, rows: Range<usize>, own: Own<'_>) {
        let plan = self.plan();
        let facts = &self.site.loops[of_loop];
        let stages = &plan.body.loops[of_loop].stages;
        let all = plan.block_rows();
        let whole = rows == (0..all);
        let (behind, ahead) = plan.reach.map_or((0, 0), |reach| (reach.behind as usize, reach.ahead as usize));
        let needed = |stage: usize| match whole {
            true => 0..all,
            false => {
                let depth = facts.depth[stage];
                rows.start.saturating_sub(depth * behind)..all.min(rows.end + depth * ahead)
            }
        };
        let times = |at: fn(&Range<usize>) -> usize| {
            (0..stages.len()).map(move |stage| at(&needed(stage)) + stages[stage].shift as usize)
        };
        let first = times(|range| range.start).min().unwrap_or(0);
        let end = times(|range| range.end).max().unwrap_or(0);
        let mut newest: SmallVec<[Option<usize>; 8]> = smallvec::smallvec![None; stages.len()];
        for now in first..end {
            for stage in 0..stages.len() {
                let shift = stages[stage].shift as usize;
                let Some(row) = now.checked_sub(shift).filter(|row| needed(stage).contains(row)) else { continue };
                // Where row 0 of each ring would stand now; such a row may lie before the buffer, and is not touched.
                let mut instead: SmallVec<[(ValueId, Pointer<'_>); 4]> = SmallVec::new();
                for &(id, writer) in &facts.rings {
                    let start = needed(writer).start;
                    if writer == stage {
                        let to = self.ring(id, start, row);
                        if let Some(before) = newest[stage] {
                            self.slide(id, self.ring(id, start, before), to, row);
                        }
                        instead.push((id, to));
                    } else if let Some(newest) = newest[writer] {
                        instead.push((id, self.ring(id, start, newest)));
                    }
                }
                // Another stretch says what is known of rows beyond this one.
                let statistics = own.statistics && rows.contains(&row);
                self.stage((of_loop, stage), local, row..row + 1, Own { statistics, instead: &instead, ..own });
                newest[stage] = Some(row);
            }
        }
    }

    /// Where row 0 of rows in a ring would stand while block row `newest` is the last written: the buffer holds some of the
    /// newest rows, from `start` on.
    fn ring(&self, id: ValueId, start: usize, newest: usize) -> Pointer<'a> {
        let plan = self.plan();
        let Some(buffer) = plan.layout().buffer(id) else { return Pointer::NULL };
        let base = self.workspace.at(buffer.offset as isize);
        if buffer.size >= plan.shape.q_len {
            return base;
        }
        let capacity = buffer.size / QUERY_BLOCK;
        let kept = self.kept(id);
        // Each time the buffer is full, its newest rows move to its front.
        let slides = (newest - start + 1).saturating_sub(capacity).div_ceil(capacity - kept);
        let first = start + slides * (capacity - kept);
        base.at(-((first * QUERY_BLOCK * buffer.stride * size_of::<f32>()) as isize))
    }

    /// Block rows in front of the newest that are still read.
    fn kept(&self, id: ValueId) -> usize {
        match self.plan().body.value(id).extent {
            Extent::Ring(rows) => (rows as usize).saturating_sub(1),
            _ => 0,
        }
    }

    /// Moves the rows of a ring that are still read, before block row `row` is written, where its buffer is full: from
    /// addresses of row 0 before to addresses after.
    fn slide(&self, id: ValueId, before: Pointer<'_>, after: Pointer<'_>, row: usize) {
        if before.get() == after.get() {
            return;
        }
        let Some(buffer) = self.plan().layout().buffer(id) else { return };
        let bytes = QUERY_BLOCK * buffer.stride * size_of::<f32>();
        let kept = self.kept(id).min(row);
        let first = ((row - kept) * bytes) as isize;
        // SAFETY: the rows lie in the ring's buffer by either address, and the workspace is this unit's.
        unsafe {
            slide(before.at(first), after.at(first), kept * bytes);
        }
    }

    /// Adds to rows of keys what a stretch has summed for itself.
    pub fn add_rows(&self, id: ValueId, sums: &[f32]) {
        let plan = self.plan();
        let to = match plan.body.value(id).extent {
            Extent::Tensor(tensor) => self.tensor(tensor).map_or(OperandArgs::NONE, HeadRows::args),
            _ => self.operand(Operand::Rows(id), Own::PLAIN),
        };
        // SAFETY: the rows are as many floats as a stretch's own sums ([`super::training`] sizes them alike), and all
        // stretches have ended.
        let to = unsafe { floats(to.base, sums.len()) };
        to.iter_mut().zip(sums).for_each(|(sum, x)| *sum += x);
    }

    /// Writes a number for every query, by place, where the plan keeps them. Whether it does.
    pub fn write_lanes(&self, id: ValueId, count: usize, of: impl Fn(usize) -> f32) -> bool {
        let plan = self.plan();
        if plan.body.value(id).extent != Extent::All {
            return false;
        }
        let Some(buffer) = plan.layout().buffer(id) else { return false };
        let base = self.workspace.at(buffer.offset as isize);
        // SAFETY: the buffer has a float for every place, and the workspace is this unit's.
        let lanes = unsafe { floats(base.get(), count.min(buffer.bytes / size_of::<f32>())) };
        lanes.iter_mut().enumerate().for_each(|(place, lane)| *lane = of(place));
        true
    }
}

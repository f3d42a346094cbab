//! One query head of a call for training, step by step.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2};

use super::{Inner, Part, Tensors};
use crate::codegen::{KernelArgs, TrainingArgs};
use crate::dropout::{self, Dropout};
use crate::dtype::Element;
use crate::error::Result;
use crate::jit::Entry;
use crate::mask::QUERY_BLOCK;
use crate::runtime::memory::{Buffer, grow};
use crate::runtime::spread_over;

/// The functions of a kernel for training, in the order of [`crate::codegen::lower`].
const FIRST: Entry = Entry(0);
const HOP: Entry = Entry(1);
const ADJOINT_HOP: Entry = Entry(2);
const GRADIENT: Entry = Entry(3);

/// Memory for one unit in flight; nothing is allocated anew while sizes stay.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Scratch of every worker, and of the head for either part.
    local: Vec<Buffer>,
    shared: [Option<Buffer>; 2],
    /// Bytes that they were made for.
    sizes: (usize, [usize; 2]),
    /// Addresses of the above.
    local_at: Vec<usize>,
    shared_at: [usize; 2],
    /// All Z but the last, side by side in a row; or two that are computed in turn.
    z: Vec<f32>,
    /// The last Z, or the one behind that of the pass.
    last: Vec<f32>,
    /// The gradient of a Z, and of the one before it.
    g: [Vec<f32>; 2],
    /// Gradients of the Z of a pass times their steps, over the row sums, side by side.
    steps: Vec<f32>,
    /// By number of the query: what its scores were reduced by, in the base-2 domain, the row sum, 1 / row sum, and
    /// Σ p dp / row sum.
    row_max: Vec<f32>,
    row_sum: Vec<f32>,
    inverse: Vec<f32>,
    delta: Vec<f32>,
    /// By place.
    references: Vec<f32>,
    delta_at: Vec<f32>,
    row_keys: Vec<u32>,
    /// Sums of every stretch but the first.
    sums: Vec<Vec<f32>>,
    stretches: usize,
}

impl Room {
    /// Makes room for a head.
    pub fn prepare(&mut self, inner: &Inner, stretches: usize, workers: usize) -> Result<()> {
        let plan = &inner.pass.plan;
        let (hops, dv) = (plan.hops.len(), plan.value_dim);
        let local = inner.local_bytes();
        let shared = [inner.pass.shared(), inner.stored.as_ref().map_or(0, Part::shared)];
        if self.sizes != (local, shared) {
            *self = Self { sizes: (local, shared), ..Self::default() };
            for (buffer, bytes) in self.shared.iter_mut().zip(shared) {
                *buffer = Some(Buffer::new(bytes)?);
            }
        }
        while self.local.len() < workers {
            self.local.push(Buffer::new(local)?);
        }
        self.local_at = self.local.iter_mut().map(Buffer::address).collect();
        for (buffer, at) in self.shared.iter_mut().zip(&mut self.shared_at) {
            *at = buffer.as_mut().map_or(0, Buffer::address);
        }
        self.stretches = stretches;
        let rows = plan.q_len * dv;
        let kept = inner.keeps_all();
        let buffers = match hops {
            ..=1 => 0,
            hops if kept => hops,
            _ => 2,
        };
        grow(&mut self.z, buffers * rows)?;
        grow(&mut self.last, rows)?;
        for g in &mut self.g {
            grow(g, rows)?;
        }
        grow(&mut self.steps, plan.q_len * plan.gradient_depth())?;
        for by_number in [&mut self.row_max, &mut self.row_sum, &mut self.inverse, &mut self.delta] {
            grow(by_number, plan.q_len)?;
        }
        let places = plan.q_len.next_multiple_of(QUERY_BLOCK);
        grow(&mut self.references, places)?;
        grow(&mut self.delta_at, places)?;
        grow(&mut self.row_keys, places)?;
        let sums = inner.stretch_floats();
        self.sums.resize_with(stretches - 1, Vec::new);
        for of_stretch in &mut self.sums {
            grow(of_stretch, sums)?;
        }
        Ok(())
    }
}

impl Inner {
    /// Whether the gradient's pass takes all hops at once.
    pub(super) fn keeps_all(&self) -> bool {
        self.pass.plan.training.is_some_and(|training| training.hops_per_pass == self.pass.plan.hops.len())
    }

    /// Bytes of a room without its workers' scratch, as [`Room::prepare`] makes it.
    pub(super) fn room_bytes(&self, stretches: usize) -> usize {
        let plan = &self.pass.plan;
        let (hops, rows) = (plan.hops.len(), plan.q_len * plan.value_dim);
        let z = match (hops, self.keeps_all()) {
            (1, _) => 0,
            (_, true) => hops,
            (_, false) => 2,
        };
        let floats =
            rows * (z + 3) + plan.q_len * (plan.gradient_depth() + 7) + (stretches - 1) * self.stretch_floats();
        floats * size_of::<f32>() + self.pass.shared() + self.stored.as_ref().map_or(0, Part::shared)
    }
}

/// One query head.
pub(super) struct Head<'a> {
    inner: &'a Inner,
    room: &'a mut Room,
    tensors: Tensors,
    batch: usize,
    head: usize,
    kv_head: usize,
    dropout: Option<&'a Dropout>,
    /// Dropout's number for the head.
    item: u64,
    /// Whether some tensor, or some score, is not finite.
    exact: bool,
}

/// Where a head's gradients go.
pub(super) struct Targets<'t> {
    /// That of its queries, written.
    pub dq: &'t mut [f32],
    /// Those of its keys and values, added to.
    pub dk: &'t mut [f32],
    pub dv: &'t mut [f32],
    /// Those of the score mods' inputs, one behind the other, added to.
    pub inputs: &'t mut [f32],
    /// Elements of every input.
    pub sizes: &'t [usize],
}

/// Rows of f32 by address: the first, and elements from one to the next.
type Rows = (usize, usize);

impl<'a> Head<'a> {
    pub fn new(
        inner: &'a Inner,
        room: &'a mut Room,
        tensors: Tensors,
        (unit, i): (usize, usize),
        (dropout, first): (Option<&'a Dropout>, usize),
    ) -> Self {
        let plan = &inner.pass.plan;
        let (batch, kv_head) = (unit / plan.kv_heads, unit % plan.kv_heads);
        let head = kv_head * (plan.heads / plan.kv_heads) + i;
        let item = ((first + batch) * plan.heads + head) as u64;
        let mut this = Self { inner, room, tensors, batch, head, kv_head, dropout, item, exact: false };
        if this.dropout.is_some_and(|dropout| dropout.attention > 0.0) {
            this.name_rows();
        }
        this
    }

    /// The output of the head into `out [q_len, value_dim]`, or into the room, with what is known of every row.
    pub fn forward(&mut self, out: Option<&mut [f32]>) {
        let hops = self.inner.pass.plan.hops.len();
        self.softmax_and_first_hop();
        for hop in 1..hops {
            self.hop(hop);
        }
        if let Some(out) = out {
            out.copy_from_slice(&self.room.last);
        }
    }

    /// Natural log-sum-exp of every row, behind [`Self::forward`].
    pub fn write_log_sum_exp(&self, lse: &mut [f32]) {
        let Room { row_max, row_sum, .. } = &*self.room;
        for ((lse, &max), &sum) in lse.iter_mut().zip(row_max).zip(row_sum) {
            *lse = if sum == 0.0 { f32::NEG_INFINITY } else { (max + sum.log2()) * std::f32::consts::LN_2 };
        }
    }

    /// The gradients: that of the head's queries, and what its keys and values get, added.
    pub fn backward<T: Element>(
        mut self,
        v: ArrayView2<'_, T>,
        grad_out: ArrayView2<'_, T>,
        saved: Option<(ArrayView2<'_, T>, ArrayView1<'_, f32>)>,
        exact: bool,
        mut targets: Targets<'_>,
    ) {
        self.exact = exact;
        let inner = self.inner;
        let hops = &inner.pass.plan.hops;
        match saved {
            // Log-sum-exp is all that a single hop needs of its softmax, where it is exact enough.
            Some((out, lse)) if hops.len() == 1 && lse.iter().all(|&lse| serves(lse)) => {
                let Room { row_max, row_sum, .. } = &mut *self.room;
                for ((max, sum), &lse) in row_max.iter_mut().zip(row_sum).zip(lse) {
                    *max = lse * std::f32::consts::LOG2_E;
                    *sum = if lse == f32::NEG_INFINITY { 0.0 } else { 1.0 };
                }
                copy_rows(&mut self.room.last, out);
            }
            Some((out, _)) if hops.len() > 1 && inner.keeps_all() => {
                self.softmax_and_first_hop();
                (1..hops.len() - 1).for_each(|hop| self.hop(hop));
                copy_rows(&mut self.room.last, out);
            }
            _ => self.forward(None),
        }
        // Finite tensors may still have scores that are not: by what a score mod reads or makes, or by overflow. One such
        // score leaves a mark in its row's sum, and the row's Z and gradients are NaN from there on.
        self.exact |= self.room.row_sum.iter().any(|sum| !sum.is_finite());
        self.place_references();
        copy_rows(&mut self.room.g[0], grad_out);
        if inner.keeps_all() {
            if hops.len() > 1 {
                self.keep_values(v);
            }
            self.room.delta.fill(0.0);
            for hop in (0..hops.len()).rev() {
                self.adjoint(hop, hop, v, targets.dv);
            }
            let z = if hops.len() == 1 { self.values() } else { self.z(0) };
            self.gradient(z, &mut targets, (hops.len() == 1, false));
            return;
        }
        for hop in (0..hops.len()).rev() {
            // The Z that this hop read, from V again.
            (0..hop).for_each(|before| self.hop(before));
            let z = if hop == 0 { self.values() } else { self.z(hop) };
            self.room.delta.fill(0.0);
            self.adjoint(hop, 0, v, targets.dv);
            self.gradient(z, &mut targets, (false, hop + 1 < hops.len()));
            if hop > 0 {
                let Room { z, last, .. } = &mut *self.room;
                let rows = last.len();
                last.copy_from_slice(&z[hop % 2 * rows..][..rows]);
            }
        }
    }

    /// Puts V beside the other Z.
    fn keep_values<T: Element>(&mut self, v: ArrayView2<'_, T>) {
        let width = self.inner.pass.plan.gradient_depth().max(1);
        for (to, from) in self.room.z.chunks_mut(width).zip(v.rows()) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.widen();
            }
        }
    }

    /// P or its statistics, and the first Z.
    fn softmax_and_first_hop(&mut self) {
        if self.inner.stored.is_some() {
            self.each_stretch(|head, worker, rows| head.enter_rows(FIRST, worker, rows, 0, None, None));
            self.hop(0);
        } else {
            let target = self.z(1);
            self.each_stretch(|head, worker, rows| head.enter_rows(FIRST, worker, rows, 0, None, Some(target)));
            self.drop_z(0);
        }
    }

    /// Z behind hop `hop`, from that before it.
    fn hop(&mut self, hop: usize) {
        let source = if hop == 0 { self.values() } else { self.z(hop) };
        let target = self.z(hop + 1);
        self.each_stretch(|head, worker, rows| {
            head.enter_rows(HOP, worker, rows, hop, Some(source), Some(target));
        });
        self.drop_z(hop);
    }

    /// One of the two Z that are computed in turn.
    fn turn(&self, hop: usize) -> Rows {
        let dv = self.inner.pass.plan.value_dim;
        let at = hop % 2 * self.room.last.len() * size_of::<f32>();
        (self.room.z.as_ptr().expose_provenance() + at, dv)
    }

    /// Z_`hop`: V itself is at column 0 where all are kept.
    fn z(&self, hop: usize) -> Rows {
        let plan = &self.inner.pass.plan;
        let (hops, dv) = (plan.hops.len(), plan.value_dim);
        if hop == hops {
            return (self.room.last.as_ptr().expose_provenance(), dv);
        }
        if self.inner.keeps_all() {
            (self.room.z.as_ptr().expose_provenance() + hop * dv * size_of::<f32>(), hops * dv)
        } else {
            self.turn(hop)
        }
    }

    fn values(&self) -> Rows {
        (self.tensors.v.head(self.batch, self.kv_head), self.tensors.v.strides[2])
    }

    /// Drops what the call's rate says of the Z behind hop `hop`.
    fn drop_z(&mut self, hop: usize) {
        let plan = &self.inner.pass.plan;
        let (hops, dv, rows) = (plan.hops.len(), plan.value_dim, self.room.last.len());
        let kept = self.inner.keeps_all();
        self.drop_rows(hop, |room| match (hop + 1 == hops, kept) {
            (true, _) => (&mut room.last, 0),
            (false, true) => (&mut room.z, (hop + 1) * dv),
            (false, false) => (&mut room.z[(hop + 1) % 2 * rows..][..rows], 0),
        });
    }

    /// Drops elements of rows that `of` picks, with the column where they start, by the numbers of hop `hop`.
    fn drop_rows(&mut self, hop: usize, of: impl FnOnce(&mut Room) -> (&mut [f32], usize)) {
        let Some(dropout) = self.dropout.filter(|dropout| dropout.hop > 0.0) else { return };
        let plan = &self.inner.pass.plan;
        let (threshold, keep) = (dropout::threshold(dropout.hop), dropout::scale(dropout.hop));
        let item = self.item;
        let (rows, start) = of(self.room);
        if plan.q_len == 0 {
            return;
        }
        let stride = rows.len() / plan.q_len;
        for (number, row) in rows.chunks_mut(stride).enumerate() {
            let key = dropout::row_key(dropout.seed, Dropout::hop_stream(hop), item, number as u64);
            for (column, x) in row[start..start + plan.value_dim].iter_mut().enumerate() {
                *x = if dropout::hash(key, column as u32) < threshold { 0.0 } else { *x * keep };
            }
        }
    }

    /// The adjoint of hop `hop`, from the gradient of what it gave: `g[0]` becomes that of what it read (of V, for the
    /// first hop, `dv` gets it, unless that is left to the pass of a single hop). Keeps the gradient times the step, over the
    /// row sum, at `slot` of the pass, and adds to Σ p dp: P is made again as it was before it was normalised.
    fn adjoint<T: Element>(&mut self, hop: usize, slot: usize, v: ArrayView2<'_, T>, dv: &mut [f32]) {
        let plan = &self.inner.pass.plan;
        let (hops, width, depth) = (plan.hops.len(), plan.value_dim, plan.gradient_depth());
        let (step, restart) = (plan.hops[hop].step as f32, plan.hops[hop].restart as f32);
        self.drop_rows(hop, |room| (&mut room.g[0], 0));
        let kept = 1.0 - self.dropout.map_or(0.0, |dropout| dropout.hop);
        let behind = self.z(hop + 1);
        let Room { z, last, g, steps, delta, inverse, .. } = &mut *self.room;
        // Where Z behind this hop stands.
        let (after, stride): (&[f32], usize) = match self.inner.keeps_all() && hop + 1 < hops {
            true => (&z[(hop + 1) * width..], behind.1),
            false => (last, width),
        };
        for number in 0..plan.q_len {
            let g = &g[0][number * width..][..width];
            let after = &after[number * stride..][..width];
            let steps = &mut steps[number * depth + slot * width..][..width];
            let mut sum: f32 = g.iter().zip(after).map(|(g, z)| g * (kept * z)).sum();
            if restart != 0.0 {
                let v = v.row(number);
                sum -= g.iter().zip(v).map(|(g, v)| g * (restart * v.widen())).sum::<f32>();
                for (dv, g) in dv[number * width..][..width].iter_mut().zip(g) {
                    *dv += restart * g;
                }
            }
            delta[number] += sum * inverse[number];
            let factor = step * inverse[number];
            for (to, g) in steps.iter_mut().zip(g) {
                *to = factor * g;
            }
        }
        // The pass adds a single hop's share of dv.
        let fused = hops == 1;
        if fused || (step == 0.0 && hop == 0) {
            return;
        }
        if step == 0.0 {
            self.room.g[0].fill(0.0);
            return;
        }
        let at = slot * width * size_of::<f32>();
        let source = (self.room.steps.as_ptr().expose_provenance() + at, depth);
        if hop == 0 {
            self.add_to(&mut [dv], |head, worker, rows, out| {
                head.enter_rows(ADJOINT_HOP, worker, rows, 0, Some(source), Some((out[0], width)));
            });
            return;
        }
        let mut before = std::mem::take(&mut self.room.g[1]);
        before.fill(0.0);
        self.add_to(&mut [&mut before], |head, worker, rows, out| {
            head.enter_rows(ADJOINT_HOP, worker, rows, 0, Some(source), Some((out[0], width)));
        });
        self.room.g[1] = std::mem::replace(&mut self.room.g[0], before);
    }

    /// The gradient's pass over `z`, which may add to dv, and to what dq holds.
    fn gradient(&mut self, z: Rows, to: &mut Targets<'_>, (with_values, accumulate): (bool, bool)) {
        let plan = &self.inner.pass.plan;
        let (d, width, depth) = (plan.head_dim, plan.value_dim, plan.gradient_depth());
        let by_number = self.order().map(<[u32]>::to_vec);
        let Room { delta, delta_at, .. } = &mut *self.room;
        for (place, to) in delta_at.iter_mut().enumerate().take(delta.len()) {
            *to = delta[by_number.as_ref().map_or(place, |order| order[place] as usize)];
        }
        let (dq, sizes) = (to.dq.as_mut_ptr().expose_provenance(), to.sizes);
        let steps = self.room.steps.as_ptr().expose_provenance();
        self.add_to(&mut [&mut *to.dk, &mut *to.dv, &mut *to.inputs], |head, worker, rows, out| {
            let mut next = out[2];
            let inputs: Vec<*mut f32> = sizes
                .iter()
                .map(|size| {
                    let here = std::ptr::with_exposed_provenance_mut(next);
                    next += size * size_of::<f32>();
                    here
                })
                .collect();
            let training = TrainingArgs {
                g: std::ptr::with_exposed_provenance(steps),
                g_stride: depth,
                delta: head.room.delta_at.as_ptr(),
                dk: std::ptr::with_exposed_provenance_mut(out[0]),
                dk_stride: d,
                dv: if with_values { std::ptr::with_exposed_provenance_mut(out[1]) } else { std::ptr::null_mut() },
                dv_stride: width,
                inputs: inputs.as_ptr(),
                accumulate: usize::from(accumulate),
                ..head.training_args()
            };
            let args = head.args(&head.inner.pass, 0, worker, rows, 0, Some(z), Some((dq, d)));
            head.inner.pass.enter(GRADIENT, &KernelArgs { training: &raw const training, ..args });
        });
    }

    /// Row order of the head's mask.
    fn order(&self) -> Option<&'a [u32]> {
        let plan = &self.inner.pass.plan;
        plan.masks[plan.mask_of_head[self.head] as usize].order.as_deref()
    }

    /// What scores are reduced by when P is made again, by place, and 1 / row sum, by number.
    fn place_references(&mut self) {
        let order = self.order();
        let Room { references, row_max, row_sum, inverse, .. } = &mut *self.room;
        for (place, to) in references.iter_mut().enumerate().take(row_max.len()) {
            let max = row_max[order.map_or(place, |order| order[place] as usize)];
            // A row without keys has no score that anything could be subtracted from.
            *to = if max == f32::NEG_INFINITY { 0.0 } else { max };
        }
        for (to, &sum) in inverse.iter_mut().zip(&*row_sum) {
            *to = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        }
    }

    /// Dropout's numbers for the rows of weights, by place.
    fn name_rows(&mut self) {
        let Some(dropout) = self.dropout else { return };
        let order = self.order();
        let q_len = self.inner.pass.plan.q_len;
        for (place, to) in self.room.row_keys.iter_mut().enumerate().take(q_len) {
            let number = order.map_or(place, |order| order[place] as usize);
            *to = dropout::row_key(dropout.seed, Dropout::ATTENTION, self.item, number as u64);
        }
    }

    /// Runs `work` for every stretch of block rows: here, or on all workers.
    fn each_stretch(&self, work: impl Fn(&Self, usize, Range<usize>) + Sync)
    where
        Self: Sync,
    {
        let rows = self.inner.pass.plan.block_rows();
        let stretches = self.room.stretches;
        if stretches == 1 {
            return work(self, 0, 0..rows);
        }
        let unit = rows.div_ceil(stretches);
        spread_over(&self.inner.threads, self.room.local_at.len(), stretches, |worker, stretch| {
            work(self, worker, (stretch * unit).min(rows)..((stretch + 1) * unit).min(rows));
        });
    }

    /// The same for work that adds to `targets`: the first stretch adds to them, every other to sums of its own, which
    /// follow in order.
    fn add_to(&mut self, targets: &mut [&mut [f32]], work: impl Fn(&Self, usize, Range<usize>, &[usize]) + Sync) {
        let mut addresses = vec![targets.iter_mut().map(|to| to.as_mut_ptr().expose_provenance()).collect::<Vec<_>>()];
        let mut sums = std::mem::take(&mut self.room.sums);
        for of_stretch in &mut sums {
            of_stretch.fill(0.0);
            let mut at = of_stretch.as_mut_ptr().expose_provenance();
            let places = targets.iter().map(|to| {
                let here = at;
                at += size_of_val(&**to);
                here
            });
            addresses.push(places.collect());
        }
        let rows = self.inner.pass.plan.block_rows();
        let unit = rows.div_ceil(self.room.stretches);
        self.each_stretch(|head, worker, rows| {
            let stretch = rows.start.checked_div(unit).unwrap_or(0);
            if !rows.is_empty() {
                work(head, worker, rows, &addresses[stretch]);
            }
        });
        for of_stretch in &sums {
            let mut at = 0;
            for to in targets.iter_mut() {
                for (to, &from) in to.iter_mut().zip(&of_stretch[at..]) {
                    *to += from;
                }
                at += to.len();
            }
        }
        self.room.sums = sums;
    }

    /// One function of the hops' part on some block rows.
    fn enter_rows(
        &self,
        entry: Entry,
        worker: usize,
        rows: Range<usize>,
        hop: usize,
        source: Option<Rows>,
        target: Option<Rows>,
    ) {
        let (part, shared) = match &self.inner.stored {
            Some(part) => (part, 1),
            None => (&self.inner.pass, 0),
        };
        let training = self.training_args();
        let args = self.args(part, shared, worker, rows, hop, source, target);
        part.enter(entry, &KernelArgs { training: &raw const training, ..args });
    }

    /// What no step changes.
    fn training_args(&self) -> TrainingArgs {
        let rate = self.dropout.map_or(0.0, |dropout| dropout.attention);
        TrainingArgs {
            references: self.room.references.as_ptr(),
            g: std::ptr::null(),
            g_stride: 0,
            delta: std::ptr::null(),
            dk: std::ptr::null_mut(),
            dk_stride: 0,
            dv: std::ptr::null_mut(),
            dv_stride: 0,
            inputs: std::ptr::null(),
            accumulate: 0,
            exact: usize::from(self.exact),
            row_keys: if rate > 0.0 { self.room.row_keys.as_ptr() } else { std::ptr::null() },
            threshold: dropout::threshold(rate),
            keep: dropout::scale(rate),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn args(
        &self,
        part: &Part,
        shared: usize,
        worker: usize,
        rows: Range<usize>,
        hop: usize,
        source: Option<Rows>,
        target: Option<Rows>,
    ) -> KernelArgs {
        let plan = &part.plan;
        let read = |address: usize| std::ptr::with_exposed_provenance::<u8>(address);
        let write = |address: usize| std::ptr::with_exposed_provenance_mut::<u8>(address);
        let Tensors { q, k, v, inputs } = self.tensors;
        let (source, source_stride) = source.unwrap_or_else(|| self.values());
        let (target, target_stride) = target.unwrap_or((0, 0));
        KernelArgs {
            q: read(q.head(self.batch, self.head)),
            q_stride: q.strides[2],
            k: read(k.head(self.batch, self.kv_head)),
            k_stride: k.strides[2],
            v: read(v.head(self.batch, self.kv_head)),
            v_stride: v.strides[2],
            row_max: std::ptr::with_exposed_provenance_mut(self.room.row_max.as_ptr().expose_provenance()),
            row_sum: std::ptr::with_exposed_provenance_mut(self.room.row_sum.as_ptr().expose_provenance()),
            tables: part.tables[plan.mask_of_head[self.head] as usize].as_ptr(),
            local: write(self.room.local_at[worker]),
            shared: write(self.room.shared_at[shared]),
            first_row: rows.start,
            end_row: rows.end,
            hop,
            source: read(source),
            source_stride,
            target: write(target),
            target_stride,
            head: self.head,
            inputs: std::ptr::with_exposed_provenance(inputs),
            training: std::ptr::null(),
        }
    }
}

/// Largest log-sum-exp that stands for a row's maximum and sum when P is made again. Its own rounding, 2^-24 of its size, is
/// an error of every weight in the same direction: rows of P would no longer sum to 1.
const LARGEST_LOG_SUM: f32 = 64.0;

/// Whether P can be made again from a row's log-sum-exp: otherwise its maximum and sum are computed anew.
fn serves(lse: f32) -> bool {
    lse.abs() <= LARGEST_LOG_SUM || lse == f32::NEG_INFINITY
}

fn copy_rows<T: Element>(to: &mut [f32], from: ArrayView2<'_, T>) {
    let width = from.dim().1.max(1);
    for (to, from) in to.chunks_mut(width).zip(from.rows()) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.widen();
        }
    }
}

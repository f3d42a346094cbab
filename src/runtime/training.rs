//! Training: gradients, and outputs with dropout.
//!
//! In: q, k, v, the gradient of the output. Out: those of q, k and v, in f32 sums. A (batch, key/value head) is one unit
//! of work: what its query heads give to its keys and values is added in one order, whatever the number of threads. Few
//! units are cut into stretches of block rows, as many as the problem's sizes say, whose sums are then added in order.
//!
//! The plan's nest has the forward loops first. Where the caller saved what they compute, they are left out.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ndarray::{Array4, ArrayD, ArrayView3, ArrayView4, ArrayViewMut4, CowArray, Ix4, Zip};

use super::input_sums::{InputSums, input_list};
use super::iterations::Iterations;
use super::memory::{Buffer, grow, zeros};
use super::nest::{Dropped, Head, HeadRows, LoopFacts, Own, Site, TensorAt, Tensors};
use super::pointer::Pointer;
use super::pool::{Pool, spread, workers_of};
use super::result::GradientTensors;
use super::{Address, Output, Pointers, readable, tensor_at};
use crate::dropout::{self, Dropout};
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::jit::Linked;
use crate::mask::QUERY_BLOCK;
use crate::plan::VerifiedPlan;
use crate::program::{Op, Space, Tensor, ValueId};
use crate::spec::Inputs;
use crate::spec::score::{Checked, HeadNumbers};

/// Units from which on none is cut, and the stretches that fewer units make together.
const UNITS: usize = 8;
/// Block rows of a stretch, at least.
const STRETCH_ROWS: usize = 4;
/// Bytes of sums that stretches keep, beyond two of them.
const STRETCH_BYTES: usize = 256 << 20;
/// Largest log-sum-exp that stands for a row's maximum and sum when P is made again. Its own rounding, 2^-24 of its size, is
/// an error of every weight in the same direction: rows of P would no longer sum to 1.
const LARGEST_LOG_SUM: f32 = 64.0;

/// A compiled kernel for training. Cheap to clone; safe to call from many threads at once.
#[derive(Debug, Clone)]
pub struct TrainingKernel {
    inner: Arc<Inner>,
}

/// Gradients of a loss on tensors of `T`.
#[derive(Debug, Clone)]
pub struct Gradients<T = f32> {
    /// `[batch, heads, q_len, head_dim]`.
    pub q: Array4<T>,
    /// `[batch, kv_heads, kv_len, head_dim]`.
    pub k: Array4<T>,
    /// `[batch, kv_heads, kv_len, value_dim]`.
    pub v: Array4<T>,
    /// Of every input of the score mods, and of what the hops take for each head, by name and of its shape: summed over
    /// batch, and over heads where all have the same, in f32.
    pub inputs: InputGradients,
}

/// Gradients of what a call gives by name.
pub type InputGradients = Vec<(String, ArrayD<f32>)>;

/// What a training step brings besides its tensors.
#[derive(Debug, Clone, Default)]
pub struct Step<'a> {
    /// What the score mods and the hops read.
    pub inputs: Inputs<'a>,
    /// What is dropped; the kernel must have been compiled for it.
    pub dropout: Option<Dropout>,
    /// Number of the first batch element, for dropout's numbers, where a batch is computed in parts.
    pub first: usize,
}

/// What a forward call gave, for the backward call on the same tensors.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a, T> {
    /// `[batch, heads, q_len, value_dim]`.
    pub out: ArrayView4<'a, T>,
    /// `[batch, heads, q_len]`, natural log.
    pub lse: ArrayView3<'a, f32>,
}

#[derive(Debug)]
struct Inner {
    kernel: Linked,
    loops: Vec<LoopFacts>,
    /// Storage of the callers' tensors.
    dtype: Dtype,
    /// Whether there is a hop behind which rows are dropped: without hops a kernel has one all the same, whose product is
    /// left out.
    has_hops: bool,
    constants: Vec<Vec<f32>>,
    threads: Arc<dyn Pool>,
    /// Workspace of finished calls.
    idle: Mutex<Vec<Workspace>>,
    /// Kernels of other numbers of hops, where those depend on the call.
    iterations: OnceLock<Iterations<TrainingKernel>>,
}

/// Workspace of one unit in flight; nothing is allocated anew while sizes stay.
#[derive(Debug, Default)]
struct Workspace {
    /// Of every worker.
    local: Vec<Buffer>,
    /// Of the head.
    head: Option<Buffer>,
    /// Bytes that they were made for.
    sizes: (usize, usize),
    /// By number of the query: what its scores were reduced by, in the base-2 domain, and the row sum.
    row_max: Vec<f32>,
    row_sum: Vec<f32>,
    /// The output, where the caller has not saved it.
    out: Vec<f32>,
    /// Dropout's row keys, by place: of weights, and of every hop.
    row_keys: Vec<u32>,
    hop_keys: Vec<u32>,
    /// Sums of every stretch but the first.
    sums: Vec<Vec<f32>>,
    stretches: usize,
    /// Workers of the call in progress; `local` may hold more than they need.
    workers: usize,
}

impl Workspace {
    fn prepare(&mut self, inner: &Inner, stretches: usize, workers: usize) -> Result<()> {
        let plan = inner.kernel.plan();
        let layout = plan.layout();
        let sizes = (layout.local.bytes, layout.head);
        if self.sizes != sizes {
            *self = Self { sizes, head: Some(Buffer::new(layout.head)?), ..Self::default() };
        }
        while self.local.len() < workers {
            self.local.push(Buffer::new(layout.local.bytes)?);
        }
        let places = plan.shape.q_len.next_multiple_of(QUERY_BLOCK);
        grow(&mut self.row_max, plan.shape.q_len)?;
        grow(&mut self.row_sum, plan.shape.q_len)?;
        grow(&mut self.out, plan.shape.q_len * plan.shape.value_dim)?;
        if plan.has_dropout() {
            grow(&mut self.row_keys, places)?;
            grow(&mut self.hop_keys, places * inner.hops())?;
        }
        self.sums.resize_with(stretches - 1, Vec::new);
        let floats = inner.stretch_floats();
        for of_stretch in &mut self.sums {
            grow(of_stretch, floats)?;
        }
        (self.stretches, self.workers) = (stretches, workers);
        Ok(())
    }
}

/// A tensor, and its elements in f32 where it has others.
struct Wide<'a, T> {
    given: CowArray<'a, T, Ix4>,
    wide: Option<Array4<f32>>,
}

impl<'a, T: Element> Wide<'a, T> {
    fn new(view: ArrayView4<'a, T>) -> Result<Self> {
        let given = readable(view)?;
        let wide = match T::DTYPE.is_f32() {
            true => None,
            false => {
                let mut wide = zeros("a tensor in f32", given.dim())?;
                Zip::from(&mut wide).and(&given).for_each(|wide, x| *wide = x.widen());
                Some(wide)
            }
        };
        Ok(Self { given, wide })
    }

    fn tensor(&self) -> TensorAt<'_> {
        match &self.wide {
            Some(wide) => TensorAt::contiguous(Pointer::from(wide.as_ptr()), wide.dim()),
            None => tensor_at(&self.given),
        }
    }

    fn is_finite(&self) -> bool {
        self.given.rows().into_iter().all(|row| row.iter().all(|x| x.widen().is_finite()))
    }
}

impl TrainingKernel {
    /// A kernel for tensors of `dtype` of what the linker made. Nothing else makes one.
    pub(crate) fn new((dtype, has_hops): (Dtype, bool), kernel: Linked, threads: Arc<dyn Pool>) -> Self {
        let constants = kernel.plan().mods.as_ref().map(|mods| mods.mods.constants()).unwrap_or_default();
        let loops = LoopFacts::of(kernel.plan());
        let (idle, iterations) = (Mutex::default(), OnceLock::new());
        Self { inner: Arc::new(Inner { kernel, loops, dtype, has_hops, constants, threads, idle, iterations }) }
    }

    /// The same with kernels of other numbers of hops beside it.
    pub(crate) fn iterated(self, iterations: Iterations<Self>) -> Self {
        let _ = self.inner.iterations.set(iterations);
        self
    }

    /// The kernel of as many hops as a call takes, unless it is this one.
    fn of_call(&self, step: &Step<'_>) -> Result<Option<Self>> {
        let mods = self.plan().mods.as_ref().map(|mods| &mods.mods);
        self.inner.iterations.get().map_or(Ok(None), |iterations| iterations.of(&step.inputs, mods))
    }

    /// The plan that the kernel follows.
    pub fn plan(&self) -> &VerifiedPlan {
        self.inner.kernel.plan()
    }

    /// Bytes of workspace that a call over `batch` sequences holds, beyond its tensors.
    pub fn scratch_bytes(&self, batch: usize) -> u64 {
        self.scratch_bytes_on(batch, workers_of(&*self.inner.threads))
    }

    /// The same were there so many threads.
    pub fn scratch_bytes_on(&self, batch: usize, workers: usize) -> u64 {
        let inner = &self.inner;
        let shape = &self.plan().shape;
        let layout = self.plan().layout();
        let units = batch * shape.kv_heads;
        let stretches = inner.stretches(units);
        let in_flight = if stretches > 1 { 1 } else { workers.min(units.max(1)) };
        let keys = if self.plan().has_dropout() { shape.q_len * (1 + inner.hops()) } else { 0 };
        let floats = shape.q_len * (shape.value_dim + 2) + keys + (stretches - 1) * inner.stretch_floats();
        let inputs = InputSums::count(inner.input_floats(), units) * inner.input_floats();
        let floats = in_flight * floats + inputs;
        (in_flight * layout.head + workers * layout.local.bytes + floats * size_of::<f32>()) as u64
    }

    /// Attention with dropout over `q [batch, heads, q_len, head_dim]`, `k [batch, kv_heads, kv_len, head_dim]` and
    /// `v [batch, kv_heads, kv_len, value_dim]`. Log-sum-exp is that of the scores, which dropout does not touch.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Value`] for tensors that do not fit the plan.
    pub fn forward<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
        step: &Step<'_>,
    ) -> Result<Output<T>> {
        if let Some(kernel) = self.of_call(step)? {
            return kernel.forward(q, k, v, step);
        }
        let call = Call::new(&self.inner, [q, k, v], step)?;
        let shape = self.plan().shape;
        let (heads, q_len, dv) = (shape.heads, shape.q_len, shape.value_dim);
        let mut out = zeros::<f32, _>("the output", (call.batch, heads, q_len, dv))?;
        let mut lse = zeros::<f32, _>("log-sum-exp", (call.batch, heads, q_len))?;
        let group = heads / shape.kv_heads;
        let dim = out.dim();
        let units: Vec<_> = lse
            .as_slice_mut()
            .unwrap_or_default()
            .chunks_mut((group * q_len).max(1))
            .map(|unit| Mutex::new(Some(unit)))
            .collect();
        let mut tensors = call.tensors();
        tensors.set(Tensor::Out, TensorAt::contiguous(Pointer::to(out.as_slice_mut().unwrap_or_default()), dim));
        let site = call.site(tensors);
        self.inner.each_unit(&units, usize::MAX, |workspace, unit, lse| {
            for (i, lse) in lse.chunks_mut(q_len.max(1)).enumerate() {
                let forward = |run: &mut Run<'_>| {
                    (0..run.forward_loops()).for_each(|of_loop| run.run_loop(of_loop, &mut []));
                };
                call.with_head(workspace, site, (unit, i), forward, |_, _| {});
                let sums = lse.iter_mut().zip(&workspace.row_max).zip(&workspace.row_sum);
                for ((lse, &max), &sum) in sums {
                    *lse = if sum == 0.0 { f32::NEG_INFINITY } else { (max + sum.log2()) * std::f32::consts::LN_2 };
                }
            }
        })?;
        drop(units);
        Ok(Output { out: narrow(out), lse })
    }

    /// The gradients of q, k and v from that of the output, `grad_out [batch, heads, q_len, value_dim]`. `saved` is what
    /// a forward call on the same tensors, with the same dropout, gave; it spares computing that again, in f32.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Value`] for tensors that do not fit the plan.
    pub fn backward<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
        grad_out: ArrayView4<'_, T>,
        saved: Option<Saved<'_, T>>,
        step: &Step<'_>,
    ) -> Result<Gradients<T>> {
        let (results, inputs) = self.differentiate([q, k, v, grad_out], saved, step, None)?;
        let [q, k, v] = results.finish();
        Ok(Gradients { q, k, v, inputs })
    }

    /// The same of `tensors` q, k, v and `grad_out` into three of the caller, whatever those hold; f32 in standard layout is
    /// written in place. Gives the gradients of the score mods' inputs.
    ///
    /// # Errors
    /// Those of [`Self::backward`], and [`Error::Shape`] for tensors of other shapes than q, k and v have.
    pub fn backward_into<T: Element>(
        &self,
        tensors: [ArrayView4<'_, T>; 4],
        saved: Option<Saved<'_, T>>,
        step: &Step<'_>,
        into: [ArrayViewMut4<'_, T>; 3],
    ) -> Result<Vec<(String, ArrayD<f32>)>> {
        let (results, inputs) = self.differentiate(tensors, saved, step, Some(into))?;
        results.finish();
        Ok(inputs)
    }

    fn differentiate<'r, T: Element>(
        &self,
        [q, k, v, grad_out]: [ArrayView4<'_, T>; 4],
        saved: Option<Saved<'_, T>>,
        step: &Step<'_>,
        into: Option<[ArrayViewMut4<'r, T>; 3]>,
    ) -> Result<(GradientTensors<'r, T>, InputGradients)> {
        if let Some(kernel) = self.of_call(step)? {
            return kernel.differentiate([q, k, v, grad_out], saved, step, into);
        }
        let call = Call::new(&self.inner, [q, k, v], step)?;
        let plan = self.plan();
        let shape = plan.shape;
        let (heads, kv_heads) = (shape.heads, shape.kv_heads);
        let (q_len, kv_len, d, dv) = (shape.q_len, shape.kv_len, shape.head_dim, shape.value_dim);
        check_outputs(&grad_out, saved.as_ref(), [call.batch, heads, q_len, dv])?;
        // First, so that a call which does not fit is refused before anything is read.
        let of = |heads, len, width| [call.batch, heads, len, width];
        let dims = [of(heads, q_len, d), of(kv_heads, kv_len, d), of(kv_heads, kv_len, dv)];
        let mut results = GradientTensors::new(into, dims)?;
        let grad_out = Wide::new(grad_out)?;
        let finite = call.q.is_finite() && call.k.is_finite() && call.v.is_finite();
        let exact = !finite || !grad_out.is_finite();
        // What was rounded to 16 bits is worth less than computing it again.
        let saved = saved.filter(|_| T::DTYPE.is_f32());
        let saved = match saved {
            Some(saved) => Some((Wide::new(saved.out)?, saved.lse)),
            None => None,
        };
        let sums = InputSums::new(self.inner.input_sizes(), call.batch * kv_heads)?;
        let group = heads / kv_heads;
        let used = results.used();
        let mut tensors = call.tensors();
        tensors.set(Tensor::GradOut, grad_out.tensor());
        results.set(&mut tensors);
        if let Some((out, _)) = &saved {
            tensors.set(Tensor::Out, out.tensor());
        }
        let site = call.site(tensors);
        let units: Vec<_> = (0..call.batch * kv_heads).map(|_| Mutex::new(Some(()))).collect();
        self.inner.each_unit(&units, sums.most_at_once(), |workspace, unit, ()| {
            let mut inputs = sums.of_unit(unit);
            for i in 0..group {
                let item = (unit / kv_heads, unit % kv_heads * group + i);
                let lse = saved.as_ref().map(|(_, lse)| lse.slice(ndarray::s![item.0, item.1, ..]));
                let forward = |run: &mut Run<'_>| {
                    run.head.exact = exact;
                    let statistics = lse.as_ref().map(|lse| run.take_log_sums(lse));
                    let gives_out = |&of_loop: &usize| run.inner.loops[of_loop].gives_out;
                    let is_given = |of_loop: usize| statistics.is_some_and(|given| run.is_given(of_loop, given));
                    let loops = 0..run.forward_loops();
                    // The caller's output is read, unless a loop that computes it computes more than was saved.
                    let out_is_given = loops.clone().filter(gives_out).all(is_given);
                    let left = loops.filter(|of_loop| !is_given(*of_loop) || (gives_out(of_loop) && !out_is_given));
                    let left: Vec<usize> = left.collect();
                    run.head.out = (!out_is_given).then_some(run.own_out);
                    left.into_iter().for_each(|of_loop| run.run_loop(of_loop, &mut []));
                    out_is_given
                };
                call.with_head(workspace, site, (unit, i), forward, |run, (out_is_given, finite)| {
                    run.head.out = (!out_is_given).then_some(run.own_out);
                    // Finite tensors may still have scores that are not: by what a score mod reads or makes, or by overflow.
                    // One such score leaves a mark in its row's sum, and the row's Z and gradients are NaN from there on.
                    run.head.exact = exact || !finite;
                    // Query heads of a group add to the same keys and values.
                    let starts = |tensor: &&Tensor| **tensor == Tensor::GradQ || i == 0;
                    used.iter().filter(starts).for_each(|&tensor| run.head.clear_gradient(tensor));
                    for of_loop in run.forward_loops()..run.inner.loops.len() {
                        run.run_loop(of_loop, &mut inputs);
                    }
                });
            }
        })?;
        let mut sums = sums.finish().into_iter();
        let shapes = plan.mods.as_ref().map_or(&[][..], |mods| &mods.mods.inputs);
        let inputs = shapes.iter().zip(&mut sums).map(|(input, sum)| {
            (input.name.clone(), ArrayD::from_shape_vec(input.shape.clone(), sum).unwrap_or_default())
        });
        let mut inputs: Vec<_> = inputs.collect();
        if let (Some(given), Some(sum)) = (&plan.body.given, sums.next()) {
            let shape = given.shapes(heads).into_iter().find(|shape| {
                // One number for all heads gets what all heads give.
                shape.iter().product::<usize>() == call.numbers.all().len()
            });
            let sum = if shape == Some(vec![1]) { vec![sum.iter().sum()] } else { sum };
            let gradient = ArrayD::from_shape_vec(shape.unwrap_or_default(), sum).unwrap_or_default();
            inputs.push((given.input.name.clone(), gradient));
        }
        Ok((results, inputs))
    }
}

/// A call's tensors and what is the same for all its heads.
struct Call<'a, T> {
    inner: &'a Inner,
    q: Wide<'a, T>,
    k: Wide<'a, T>,
    v: Wide<'a, T>,
    /// The score mods' inputs and constants.
    inputs: Vec<Address>,
    /// What it gives for each head.
    numbers: HeadNumbers<'a>,
    dropout: Option<&'a Dropout>,
    /// Number of the first batch element among those that dropout numbers.
    first: usize,
    batch: usize,
}

impl<'a, T: Element> Call<'a, T> {
    fn new(inner: &'a Inner, [q, k, v]: [ArrayView4<'a, T>; 3], step: &'a Step<'_>) -> Result<Self> {
        let plan = inner.kernel.plan();
        let shape = &plan.shape;
        if T::DTYPE != inner.dtype {
            return Err(Error::Dtype { expected: inner.dtype.name(), found: T::DTYPE.name() });
        }
        let batch = q.dim().0;
        check("q", q.shape(), &[batch, shape.heads, shape.q_len, shape.head_dim])?;
        check("k", k.shape(), &[batch, shape.kv_heads, shape.kv_len, shape.head_dim])?;
        check("v", v.shape(), &[batch, shape.kv_heads, shape.kv_len, shape.value_dim])?;
        let dropout = step.dropout.as_ref();
        if dropout.is_some() && !plan.has_dropout() {
            return Err(Error::unsupported("dropout", "this kernel was compiled without it"));
        }
        let mods = plan.mods.as_ref().map(|mods| &mods.mods);
        let Checked { mods: given, numbers } = step.inputs.check(mods, plan.body.given.as_ref(), shape.heads)?;
        let constants = inner.constants.iter().map(Vec::as_slice);
        let inputs = given.into_iter().chain(constants).map(|table| Address(table.as_ptr())).collect();
        let (q, k, v) = (Wide::new(q)?, Wide::new(k)?, Wide::new(v)?);
        Ok(Self { inner, q, k, v, inputs, numbers, dropout, first: step.first, batch })
    }

    fn tensors(&self) -> Tensors<'_> {
        let mut tensors = Tensors::default();
        tensors.set(Tensor::Q, self.q.tensor());
        tensors.set(Tensor::K, self.k.tensor());
        tensors.set(Tensor::V, self.v.tensor());
        tensors
    }

    fn site<'s>(&'s self, tensors: Tensors<'s>) -> Site<'s> {
        let inputs = Pointer::from(self.inputs.as_ptr());
        Site { kernel: &self.inner.kernel, loops: &self.inner.loops, tensors, inputs, numbers: self.numbers }
    }

    /// Runs `forward`, then `backward`, on query head `i` of a unit, in a workspace. The second is given what the first
    /// says, and whether all row sums that it has computed are finite.
    fn with_head<R>(
        &self,
        workspace: &mut Workspace,
        site: Site<'_>,
        at: (usize, usize),
        forward: impl FnOnce(&mut Run<'_>) -> R,
        backward: impl FnOnce(&mut Run<'_>, (R, bool)),
    ) {
        self.name_rows(workspace, at);
        workspace.row_sum.fill(0.0);
        let said = forward(&mut self.run(workspace, site, at));
        let finite = workspace.row_sum.iter().all(|sum| sum.is_finite());
        backward(&mut self.run(workspace, site, at), (said, finite));
    }

    /// Batch element and query head of query head `i` of a unit.
    fn head_of(&self, (unit, i): (usize, usize)) -> (usize, usize) {
        let plan = self.inner.kernel.plan();
        let kv_heads = plan.shape.kv_heads;
        (unit / kv_heads, unit % kv_heads * plan.group() + i)
    }

    fn run<'w>(&self, workspace: &'w mut Workspace, site: Site<'w>, at: (usize, usize)) -> Run<'w>
    where
        'a: 'w,
    {
        let plan = self.inner.kernel.plan();
        let (batch, head) = self.head_of(at);
        let out_given = site.tensors.has(Tensor::Out);
        let Workspace {
            local, head: of_head, row_max, row_sum, out, row_keys, hop_keys, sums, stretches, workers, ..
        } = workspace;
        let dropout = self.dropped(row_keys, hop_keys);
        let own_out = HeadRows { base: Pointer::to(out), stride: plan.shape.value_dim };
        let statistics = [Pointer::to(row_max), Pointer::to(row_sum)];
        let head = Head {
            site,
            batch,
            head,
            workspace: of_head.as_mut().map_or(Pointer::NULL, Buffer::pointer),
            statistics,
            out: (!out_given).then_some(own_out),
            exact: false,
            dropout,
        };
        let locals = local.iter_mut().take(*workers).map(Buffer::pointer).collect();
        Run { inner: self.inner, head, own_out, locals, sums, stretches: *stretches }
    }

    /// Writes dropout's keys of a head's rows.
    fn name_rows(&self, workspace: &mut Workspace, at: (usize, usize)) {
        let Some(dropout) = self.dropout else { return };
        let plan = self.inner.kernel.plan();
        let q_len = plan.shape.q_len;
        let (batch, head) = self.head_of(at);
        let item = ((self.first + batch) * plan.shape.heads + head) as u64;
        let order = plan.walks[0].masks[plan.mask_of(0, head, 0)].order.as_deref();
        let number = |place: usize| order.map_or(place, |order| order[place] as usize) as u64;
        if dropout.attention > 0.0 {
            for (place, key) in workspace.row_keys.iter_mut().enumerate().take(q_len) {
                *key = dropout::row_key(dropout.seed, Dropout::ATTENTION, item, number(place));
            }
        }
        if dropout.hop > 0.0 && self.inner.has_hops {
            for (hop, keys) in workspace.hop_keys.chunks_mut(self.hop_stride().max(1)).enumerate() {
                for (place, key) in keys.iter_mut().enumerate().take(q_len) {
                    *key = dropout::row_key(dropout.seed, Dropout::hop_stream(hop), item, number(place));
                }
            }
        }
    }

    /// Row keys of a hop.
    fn hop_stride(&self) -> usize {
        self.inner.kernel.plan().shape.q_len.next_multiple_of(QUERY_BLOCK)
    }

    /// What kernels take of dropout, with the keys that [`Self::name_rows`] wrote.
    fn dropped<'w>(&self, row_keys: &'w mut [u32], hop_keys: &'w mut [u32]) -> Dropped<'w> {
        let Some(dropout) = self.dropout else { return Dropped::NONE };
        let mut dropped = Dropped { hop_stride: self.hop_stride(), ..Dropped::NONE };
        if dropout.attention > 0.0 {
            (dropped.threshold, dropped.keep) =
                (dropout::threshold(dropout.attention), dropout::scale(dropout.attention));
            dropped.row_keys = Pointer::to(row_keys);
        }
        if dropout.hop > 0.0 && self.inner.has_hops {
            (dropped.hop_threshold, dropped.hop_keep) = (dropout::threshold(dropout.hop), dropout::scale(dropout.hop));
            dropped.hop_keys = Pointer::to(hop_keys);
        }
        dropped
    }
}

/// One query head whose loops are run one after the other.
struct Run<'a> {
    inner: &'a Inner,
    head: Head<'a>,
    /// The output in workspace.
    own_out: HeadRows<'a>,
    locals: Pointers<'a>,
    sums: &'a mut [Vec<f32>],
    stretches: usize,
}

impl Run<'_> {
    /// Loops that compute the output.
    fn forward_loops(&self) -> usize {
        self.inner.loops.iter().take_while(|of_loop| !of_loop.backward).count()
    }

    /// Whether everything that a loop computes was saved: the output, and, where `statistics`, maxima and sums.
    fn is_given(&self, of_loop: usize, statistics: bool) -> bool {
        let body = &self.inner.kernel.plan().body;
        self.inner.loops[of_loop].defines.iter().all(|&id| {
            let value = body.value(id);
            match value.extent {
                crate::program::Extent::Tensor(Tensor::Out) => true,
                crate::program::Extent::Row | crate::program::Extent::Keys => self.inner.loops[of_loop].gives_out,
                _ => statistics && value.space == Space::Query,
            }
        })
    }

    /// Puts a saved log-sum-exp where rows keep their maxima and 1 / sums, if it is exact enough for P to be made again
    /// from it.
    fn take_log_sums(&self, lse: &ndarray::ArrayView1<'_, f32>) -> bool {
        if !self.inner.kernel.plan().masks_of_others.is_empty() {
            // It is that of the first set of neighbors alone.
            return false;
        }
        let serves = |lse: &f32| lse.abs() <= LARGEST_LOG_SUM || *lse == f32::NEG_INFINITY;
        if !lse.iter().all(serves) {
            return false;
        }
        self.inner.keep_log_sums(&self.head, lse)
    }

    /// Runs a loop: here, or its stretches on all workers; what stretches add to rows of keys, and to the gradients of
    /// inputs, follows in order.
    fn run_loop(&mut self, of_loop: usize, inputs: &mut [f32]) {
        let plan = self.inner.kernel.plan();
        let facts = &self.inner.loops[of_loop];
        let sizes = self.inner.input_sizes();
        if self.stretches == 1 {
            let list = input_list(&sizes, Pointer::to(inputs));
            let own = Own { input_gradients: Pointer::from(list.as_ptr()), ..Own::PLAIN };
            return self.head.run_loop(of_loop, self.locals[0], own);
        }
        let rows = plan.block_rows();
        let unit = rows.div_ceil(self.stretches);
        let adds = !facts.sums.is_empty() || facts.adds_to_inputs;
        if !adds || plan.body.loops[of_loop].stages.len() > 1 {
            let list = input_list(&sizes, Pointer::to(inputs));
            let own = Own { input_gradients: Pointer::from(list.as_ptr()), ..Own::PLAIN };
            if adds {
                return self.head.run_loop(of_loop, self.locals[0], own);
            }
            return self.head.share_loop(of_loop, &*self.inner.threads, &self.locals, unit);
        }
        self.head.clear_sums(of_loop);
        // The first stretch adds to the sums themselves, every other to its own.
        let first = Own::PLAIN;
        let own_list = input_list(&sizes, Pointer::to(inputs));
        let mut lists = vec![own_list];
        let mut instead: Vec<Vec<(ValueId, Pointer<'_>)>> = vec![Vec::new()];
        let parts: Vec<(ValueId, usize)> = facts.sums.iter().map(|&id| (id, self.inner.sum_floats(id))).collect();
        for of_stretch in &mut *self.sums {
            of_stretch.fill(0.0);
            let base = Pointer::to(of_stretch);
            let mut at = 0;
            let mut places = Vec::new();
            for &(id, floats) in &parts {
                places.push((id, base.at((at * size_of::<f32>()) as isize)));
                at += floats;
            }
            lists.push(input_list(&sizes, base.at((at * size_of::<f32>()) as isize)));
            instead.push(places);
        }
        let (head, locals) = (&self.head, &self.locals);
        let range = |stretch: usize| -> Range<usize> { (stretch * unit).min(rows)..((stretch + 1) * unit).min(rows) };
        spread(&*self.inner.threads, locals.len(), self.stretches, |worker, stretch| {
            let rows = range(stretch);
            if !rows.is_empty() {
                let own = Own {
                    instead: &instead[stretch],
                    input_gradients: Pointer::from(lists[stretch].as_ptr()),
                    ..first
                };
                head.stage((of_loop, 0), locals[worker], rows, own);
            }
        });
        for of_stretch in &*self.sums {
            let mut at = 0;
            for &(id, floats) in &parts {
                self.head.add_rows(id, &of_stretch[at..at + floats]);
                at += floats;
            }
            inputs.iter_mut().zip(&of_stretch[at..]).for_each(|(sum, x)| *sum += x);
        }
    }
}

impl Inner {
    /// Hops of the output, at least 1.
    fn hops(&self) -> usize {
        self.kernel.plan().hops().max(1)
    }

    /// Stretches that block rows of a unit are cut into: by the sizes of the problem alone.
    fn stretches(&self, units: usize) -> usize {
        if units >= UNITS || units == 0 {
            return 1;
        }
        let bytes = self.stretch_floats() * size_of::<f32>();
        let affordable = (STRETCH_BYTES / bytes.max(1)).max(2);
        (2 * UNITS).div_ceil(units).min(self.kernel.plan().block_rows() / STRETCH_ROWS).min(affordable).max(1)
    }

    /// Elements of every input of the score mods, then of what a call gives for all heads.
    fn input_sizes(&self) -> Vec<usize> {
        let plan = self.kernel.plan();
        let mods = plan.mods.iter().flat_map(|mods| &mods.mods.inputs);
        let given = plan.body.given.iter().map(|given| plan.shape.heads * given.columns);
        mods.map(|input| input.shape.iter().product::<usize>()).chain(given).collect()
    }

    /// Elements of all of them.
    fn input_floats(&self) -> usize {
        self.input_sizes().iter().sum()
    }

    /// Sums that a stretch keeps for itself: of keys, values and inputs, in the loop that has most.
    fn stretch_floats(&self) -> usize {
        let of = |facts: &LoopFacts| {
            let inputs = if facts.adds_to_inputs { self.input_floats() } else { 0 };
            facts.sums.iter().map(|&id| self.sum_floats(id)).sum::<usize>() + inputs
        };
        self.loops.iter().map(of).max().unwrap_or(0)
    }

    /// Floats of rows of keys that block rows add to.
    fn sum_floats(&self, id: ValueId) -> usize {
        let plan = self.kernel.plan();
        match (plan.layout().buffer(id), plan.body.value(id).space) {
            (Some(buffer), _) => plan.shape.kv_len * buffer.stride,
            (None, Space::Keys(width) | Space::Queries(width)) => plan.shape.kv_len * width,
            (None, _) => 0,
        }
    }

    /// Puts log-sum-exp in the place of maxima, and 1 in that of sums, by place. Whether the plan keeps both.
    fn keep_log_sums(&self, head: &Head<'_>, lse: &ndarray::ArrayView1<'_, f32>) -> bool {
        let plan = self.kernel.plan();
        let statistics = plan.body.ops().find_map(|operation| match (&operation.op, operation.results.get(1)) {
            (Op::Exp { m, .. }, Some(&l)) => Some((plan.body.root(*m), plan.body.root(l))),
            _ => None,
        });
        let Some((m, l)) = statistics else { return false };
        let order = plan.walks[0].masks[plan.mask_of(0, head.head, 0)].order.as_deref();
        let number = |place: usize| order.map_or(place, |order| order[place] as usize);
        let max = |place: usize| lse[number(place)] * std::f32::consts::LOG2_E;
        let inverse = |place: usize| if lse[number(place)] == f32::NEG_INFINITY { 0.0 } else { 1.0 };
        head.write_lanes(m, lse.len(), max) && head.write_lanes(l, lse.len(), inverse)
    }

    /// Runs `work` for every unit, each in a workspace of its own, in order where only one may run at once.
    fn each_unit<U: Send>(
        &self,
        units: &[Mutex<Option<U>>],
        most_at_once: usize,
        work: impl Fn(&mut Workspace, usize, U) + Send + Sync,
    ) -> Result<()> {
        if self.kernel.plan().shape.q_len == 0 {
            return Ok(());
        }
        let stretches = self.stretches(units.len());
        let threads = workers_of(&*self.threads);
        // Either units run at the same time, or the stretches of one.
        let (workers, in_unit) = match stretches {
            1 => (threads.min(units.len()).min(most_at_once), 1),
            _ => (1, threads),
        };
        let mut spaces = Vec::new();
        for _ in 0..workers {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut workspace = idle.unwrap_or_default();
            workspace.prepare(self, stretches, in_unit)?;
            spaces.push(Mutex::new(workspace));
        }
        spread(&*self.threads, workers, units.len(), |worker, unit| {
            let mut workspace = spaces[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let taken = units[unit].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(taken) = taken {
                work(&mut workspace, unit, taken);
            }
        });
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(spaces.into_iter().map(|space| space.into_inner().unwrap_or_else(PoisonError::into_inner)));
        Ok(())
    }
}

fn narrow<T: Element>(array: Array4<f32>) -> Array4<T> {
    array.mapv_into_any(T::nearest)
}

/// Checks that the gradient of the output, and what a forward call gave, have the output's shape.
pub(crate) fn check_outputs<T>(
    grad_out: &ArrayView4<'_, T>,
    saved: Option<&Saved<'_, T>>,
    output: [usize; 4],
) -> Result<()> {
    check("grad_out", grad_out.shape(), &output)?;
    let Some(saved) = saved else { return Ok(()) };
    check("saved out", saved.out.shape(), &output)?;
    check("saved lse", saved.lse.shape(), &output[..3])
}

/// Checks that a tensor has a shape.
pub(crate) fn check(tensor: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { tensor: tensor.to_owned(), expected: format!("{expected:?}"), found: format!("{found:?}") })
}

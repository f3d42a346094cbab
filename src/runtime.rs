//! Calling a kernel: shapes checked, scratch kept warm, work spread over threads.
//!
//! In: q, k, v as ndarray views. Out: the output, and log-sum-exp where asked. A block row is always computed by
//! the same code in the same order, whoever computes it, so results do not depend on the number of threads.

pub(crate) mod memory;
mod places;
mod training;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ndarray::{Array3, Array4, ArrayView4, ArrayViewMut3, ArrayViewMut4, CowArray, Ix4};
use rayon::prelude::*;

use self::memory::{Buffer, grow, zeros};
use self::places::Places;
use crate::codegen::{KernelArgs, Tables};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::jit::{Code, Entry};
use crate::mask::QUERY_BLOCK;
use crate::plan::{KernelPlan, Scratch, Walk};
use crate::spec::Inputs;

pub(crate) use training::check_outputs;
pub use training::{Gradients, Saved, Step, TrainingKernel};

/// Block rows for which another worker pays.
const LEAST_ROWS: usize = 4;
/// Block rows after which the parts of a head are joined.
const JOINED_ROWS: usize = 4;

/// A compiled kernel. Cheap to clone; safe to call from many threads at once.
#[derive(Debug, Clone)]
pub struct Kernel {
    inner: Arc<Inner>,
}

struct Inner {
    plan: KernelPlan,
    tables: Vec<Tables>,
    scratch: Vec<Scratch>,
    code: Code,
    /// Tables of the score mods, which follow the callers' inputs.
    constants: Vec<Vec<f32>>,
    threads: Arc<rayon::ThreadPool>,
    /// Scratch of finished calls, for the next ones.
    idle: Mutex<Vec<Workspace>>,
    /// Makes the kernel for training, which is made at the first backward call.
    train: Option<Train>,
    training: OnceLock<TrainingKernel>,
}

/// Compiles the kernel for training that belongs to a kernel.
pub type Train = Box<dyn Fn() -> Result<TrainingKernel> + Send + Sync>;

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("plan", &self.plan).field("code", &self.code).finish_non_exhaustive()
    }
}

/// Result of a call on tensors of `T`.
#[derive(Debug, Clone)]
pub struct Output<T = f32> {
    /// `[batch, heads, q_len, value_dim]`.
    pub out: Array4<T>,
    /// Natural log-sum-exp of the scores, `[batch, heads, q_len]`; −inf for a query without keys.
    pub lse: Array3<f32>,
}

impl Kernel {
    /// Joins what the compiler made.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system gives no threads.
    pub fn new(plan: KernelPlan, code: Code, threads: usize) -> Result<Self> {
        Self::with_training(plan, code, threads, None)
    }

    /// The same with what makes its kernel for training.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn with_training(plan: KernelPlan, code: Code, threads: usize, train: Option<Train>) -> Result<Self> {
        let tables = plan.masks.iter().map(|mask| Tables::new(&plan, mask)).collect();
        let scratch = plan.masks.iter().map(|mask| Scratch::new(&plan, mask)).collect();
        let constants = plan.mods.as_ref().map(|mods| mods.mods.constants()).unwrap_or_default();
        let threads = pool(threads)?;
        let (idle, training) = (Mutex::default(), OnceLock::new());
        let inner = Inner { plan, tables, scratch, code, constants, threads, idle, train, training };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The plan that the kernel follows.
    pub fn plan(&self) -> &KernelPlan {
        &self.inner.plan
    }

    /// Bytes of machine code, and of tables that it reads.
    pub fn code_bytes(&self) -> (usize, usize) {
        (self.inner.code.bytes(), self.inner.tables.iter().map(Tables::bytes).sum())
    }

    /// Threads that a call uses.
    pub fn threads(&self) -> usize {
        self.inner.threads.current_num_threads()
    }

    /// Bytes of scratch that a call over `batch` sequences holds, beyond its tensors.
    pub fn scratch_bytes(&self, batch: usize) -> u64 {
        self.scratch_bytes_on(batch, self.threads())
    }

    /// The same were there so many threads.
    pub fn scratch_bytes_on(&self, batch: usize, workers: usize) -> u64 {
        let (local, shared) = self.inner.scratch_per_worker();
        let in_flight = self.inner.in_flight(batch * self.inner.plan.heads, workers);
        (workers * local + in_flight * shared) as u64
    }

    /// The kernel for training, compiled at the first call.
    ///
    /// # Errors
    /// Those of [`crate::compiler::compile_training`].
    pub fn training(&self) -> Result<&TrainingKernel> {
        if let Some(kernel) = self.inner.training.get() {
            return Ok(kernel);
        }
        let Some(train) = &self.inner.train else {
            return Err(Error::unsupported("a gradient", "the kernel was made without what compiles it"));
        };
        // Whoever comes second has compiled in vain, and nobody waits.
        let kernel = train()?;
        Ok(self.inner.training.get_or_init(|| kernel))
    }

    /// The gradients of `q`, `k` and `v` (shapes of [`Self::forward`]) from that of the output, `grad_out
    /// [batch, heads, q_len, value_dim]`. The kernel that computes them is compiled at the first call. Where the output and
    /// log-sum-exp of a forward call on the same tensors are at hand, [`TrainingKernel::backward`] of [`Self::training`]
    /// takes them and need not compute them again; it also takes the inputs of score mods and dropout ([`Step`]).
    ///
    /// # Errors
    /// Those of [`Self::forward`], and of compiling.
    ///
    /// # Examples
    /// ```
    /// use hopweave::compiler::{self, Options};
    /// use ndarray::Array4;
    ///
    /// let text = "name: local\nhead_dim: 16\npattern: {window: {radius: 8}}";
    /// let spec = hopweave::spec::parse(text, "local.yaml")?;
    /// let compiled = compiler::compile(&spec, 100, 100, &Options::default())?;
    /// let ones = Array4::<f32>::ones((1, 1, 100, 16));
    /// let gradients = compiled.kernel.backward(ones.view(), ones.view(), ones.view(), ones.view())?;
    /// // All values are the same, so that no score matters.
    /// assert!(gradients.q.iter().all(|x| x.abs() < 1e-5));
    /// assert_eq!(gradients.v.dim(), (1, 1, 100, 16));
    /// # Ok::<(), hopweave::Error>(())
    /// ```
    pub fn backward<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
        grad_out: ArrayView4<'_, T>,
    ) -> Result<Gradients<T>> {
        self.training()?.backward(q, k, v, grad_out, None, &Step::default())
    }

    /// Attention over `q [batch, heads, q_len, head_dim]`, `k [batch, kv_heads, kv_len, head_dim]` and
    /// `v [batch, kv_heads, kv_len, value_dim]`. Views whose last axis has stride 1 are read in place.
    ///
    /// # Errors
    /// [`Error::Shape`] when a tensor is not of the shape that the kernel was compiled for, [`Error::Dtype`] when its
    /// elements are not of the spec's `dtype`, [`Error::OutOfMemory`] when the system has no room for the result or for
    /// scratch. The kernel can be called again after any of them.
    pub fn forward<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
    ) -> Result<Output<T>> {
        self.forward_with(q, k, v, &Inputs::none())
    }

    /// The same for a kernel whose score mods read `inputs`.
    ///
    /// # Errors
    /// As [`Self::forward`], and [`Error::Shape`] where an input is missing, unknown, of another shape or not
    /// contiguous.
    pub fn forward_with<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
        inputs: &Inputs<'_>,
    ) -> Result<Output<T>> {
        let plan = &self.inner.plan;
        let batch = q.dim().0;
        let (heads, q_len) = plan.outer();
        let mut out = zeros("the output", (batch, heads, q_len, plan.value_dim))?;
        let mut lse = zeros("log-sum-exp", (batch, heads, q_len))?;
        self.forward_into_with(q, k, v, inputs, &mut out.view_mut(), Some(&mut lse.view_mut()))?;
        Ok(Output { out, lse })
    }

    /// The same into tensors of the caller. Nothing is allocated once a call of the same batch has been made,
    /// if all last axes have stride 1.
    ///
    /// # Errors
    /// Those of [`Self::forward`], and [`Error::Shape`] when the last axis of `out` or the axes of `lse` are not
    /// contiguous.
    pub fn forward_into<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
        out: &mut ArrayViewMut4<'_, T>,
        lse: Option<&mut ArrayViewMut3<'_, f32>>,
    ) -> Result<()> {
        self.forward_into_with(q, k, v, &Inputs::none(), out, lse)
    }

    /// The same for a kernel whose score mods read `inputs`.
    ///
    /// # Errors
    /// As [`Self::forward_into`] and [`Self::forward_with`].
    pub fn forward_into_with<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
        inputs: &Inputs<'_>,
        out: &mut ArrayViewMut4<'_, T>,
        mut lse: Option<&mut ArrayViewMut3<'_, f32>>,
    ) -> Result<()> {
        let plan = &self.inner.plan;
        if T::DTYPE != plan.dtype {
            return Err(Error::Dtype { expected: plan.dtype.name(), found: T::DTYPE.name() });
        }
        let batch = q.dim().0;
        let names = ["batch", "heads", "q_len", "head_dim", "kv_len", "value_dim", "kv_heads"];
        let check = |tensor: &str, found: [usize; 4], expected: [usize; 4], axes: [usize; 4]| {
            if found == expected {
                return Ok(());
            }
            let axes: Vec<String> = axes.iter().zip(expected).map(|(&a, n)| format!("{} {n}", names[a])).collect();
            Err(Error::Shape {
                tensor: tensor.to_owned(),
                expected: format!("[{}]", axes.join(", ")),
                found: format!("{found:?}"),
            })
        };
        let of = |(a, b, c, d): (usize, usize, usize, usize)| [a, b, c, d];
        let (heads, q_len) = plan.outer();
        check("q", of(q.dim()), [batch, heads, q_len, plan.head_dim], [0, 1, 2, 3])?;
        check("k", of(k.dim()), [batch, plan.kv_heads, plan.kv_len, plan.head_dim], [0, 6, 4, 3])?;
        check("v", of(v.dim()), [batch, plan.kv_heads, plan.kv_len, plan.value_dim], [0, 6, 4, 5])?;
        check("out", of(out.dim()), [batch, heads, q_len, plan.value_dim], [0, 1, 2, 5])?;
        let given = inputs.check(plan.mods.as_ref().map(|mods| &mods.mods))?;
        if out.is_empty() || plan.q_len == 0 {
            return Ok(());
        }
        let (q, k, v) = (readable(q)?, readable(k)?, readable(v)?);
        let out_strides = match strides(out.strides(), plan.value_dim) {
            Some(strides) => strides,
            None => {
                return Err(Error::Shape {
                    tensor: "out".to_owned(),
                    expected: "a last axis with stride 1 and no negative strides".to_owned(),
                    found: format!("strides {:?}", out.strides()),
                });
            }
        };
        let lse_slice = match &mut lse {
            None => None,
            Some(lse) => {
                let dims = (batch, heads, q_len);
                let found = lse.dim();
                Some(lse.as_slice_mut().filter(|_| found == dims).ok_or_else(|| Error::Shape {
                    tensor: "lse".to_owned(),
                    expected: format!("{dims:?}, contiguous"),
                    found: format!("{found:?}"),
                })?)
            }
        };
        let mut workspace = self.inner.workspace(batch, lse_slice.is_some())?;
        let constants = self.inner.constants.iter().map(Vec::as_slice);
        workspace.inputs_at.clear();
        workspace.inputs_at.extend(given.into_iter().chain(constants).map(|table| table.as_ptr().expose_provenance()));
        let task = Task {
            inner: &self.inner,
            q: Tensor::new(&q).stacked(plan.stack),
            k: Tensor::new(&k),
            v: Tensor::new(&v),
            out: Tensor {
                address: out.as_mut_ptr().expose_provenance(),
                strides: out_strides,
                element: T::DTYPE.bytes(),
            }
            .stacked(plan.stack),
            row_max: lse_slice.as_ref().map_or(0, |lse| lse.as_ptr().expose_provenance()),
            row_sum: workspace.row_sum.as_mut_ptr().expose_provenance(),
            local: &workspace.local_at,
            shared: &workspace.shared_at,
            inputs: workspace.inputs_at.as_ptr().expose_provenance(),
            items: batch * plan.heads,
        };
        task.run();
        if let Some(lse) = lse_slice {
            for (lse, &sum) in lse.iter_mut().zip(&workspace.row_sum) {
                *lse = if sum == 0.0 { f32::NEG_INFINITY } else { (*lse + sum.log2()) * std::f32::consts::LN_2 };
            }
        }
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        Ok(())
    }
}

/// A view whose rows can be read in place, or a copy.
fn readable<T: Element>(view: ArrayView4<'_, T>) -> Result<CowArray<'_, T, Ix4>> {
    let width = view.dim().3;
    if strides(view.strides(), width).is_some() {
        return Ok(CowArray::from(view));
    }
    let mut copy = zeros("a copy of a tensor that cannot be read in place", view.dim())?;
    copy.assign(&view);
    Ok(CowArray::from(copy))
}

/// The first three strides, if a kernel can walk them.
fn strides(strides: &[isize], width: usize) -> Option<[usize; 3]> {
    if strides[3] != 1 && width > 1 {
        return None;
    }
    let mut found = [0; 3];
    for (found, &stride) in found.iter_mut().zip(strides) {
        *found = usize::try_from(stride).ok()?;
    }
    Some(found)
}

/// A tensor as the kernel sees it. The address is kept as a number: tasks cross threads.
#[derive(Debug, Clone, Copy)]
struct Tensor {
    address: usize,
    /// Elements from one batch, head and row to the next.
    strides: [usize; 3],
    /// Bytes of an element.
    element: usize,
}

impl Tensor {
    fn new<T: Element>(array: &CowArray<'_, T, Ix4>) -> Self {
        let strides = strides(array.strides(), array.dim().3).unwrap_or_default();
        Self { address: array.as_ptr().expose_provenance(), strides, element: T::DTYPE.bytes() }
    }

    /// The same seen as heads of `stack` rows, where it has `stack` times as many of one row each.
    fn stacked(self, stack: usize) -> Self {
        let [batch, head, row] = self.strides;
        let strides = if stack == 1 { [batch, head, row] } else { [batch, head * stack, head] };
        Self { strides, ..self }
    }

    fn head(&self, batch: usize, head: usize) -> usize {
        self.address + (batch * self.strides[0] + head * self.strides[1]) * self.element
    }
}

struct Task<'a> {
    inner: &'a Inner,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    row_max: usize,
    row_sum: usize,
    local: &'a [usize],
    shared: &'a [usize],
    /// Address of a list of addresses: those of the score mods' inputs and constants.
    inputs: usize,
    items: usize,
}

impl Task<'_> {
    fn run(&self) {
        let rows = self.inner.plan.block_rows();
        let workers = self.local.len();
        match self.inner.plan.walk {
            Walk::Flash if self.inner.plan.parts > 1 => self.run_parts(rows, workers),
            Walk::Flash => {
                // Long stretches first, so that rows that share keys stay with one worker; short ones at the end, so
                // that no worker finishes much later than the others (guided self-scheduling).
                let total = self.items * rows;
                let least = (self.inner.plan.tuning.unit_rows as usize).max(1);
                let next = AtomicUsize::new(0);
                let take = |first: usize| match total - first {
                    0 => None,
                    left => Some(first + (left / (2 * workers)).max(least).min(left)),
                };
                self.on_workers(total.div_ceil(LEAST_ROWS.max(least)), |worker| {
                    while let Ok(first) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                        let end = take(first).unwrap_or(total);
                        for item in first / rows..end.div_ceil(rows) {
                            let here = first.max(item * rows) - item * rows..end.min((item + 1) * rows) - item * rows;
                            self.call(Entry(0), item, worker, 0, here, 0);
                        }
                    }
                });
            }
            Walk::Resident | Walk::Recompute if self.shared.len() == workers => {
                self.spread(self.items, |worker, item| {
                    self.hops(&|function, hop| self.call_hop(function, item, worker, worker, 0..rows, hop));
                });
            }
            Walk::Resident | Walk::Recompute => {
                let unit = match self.inner.plan.tuning.unit_rows {
                    0 => rows.div_ceil(4 * workers),
                    rows => rows as usize,
                };
                for item in 0..self.items {
                    // Every function reads what all rows of the one before have written.
                    self.hops(&|function, hop| {
                        self.spread(rows.div_ceil(unit), |worker, index| {
                            let first = index * unit;
                            self.call_hop(function, item, worker, 0, first..rows.min(first + unit), hop);
                        });
                    });
                }
            }
            Walk::Sweep => {
                let stretches = self.inner.plan.stretches(self.items, workers);
                let unit = rows.div_ceil(stretches);
                self.spread(self.items * stretches, |worker, index| {
                    let first = index % stretches * unit;
                    if first < rows {
                        self.sweep(index / stretches, worker, first..rows.min(first + unit));
                    }
                });
            }
        }
    }

    /// The functions of a kernel that works hop by hop, in order, each with its hop.
    fn hops(&self, call: &dyn Fn(Entry, usize)) {
        let plan = &self.inner.plan;
        let softmax_apart = plan.walk.stores_p();
        if softmax_apart {
            call(Entry(0), 0);
        }
        for hop in 0..plan.hops.len() {
            call(if softmax_apart || hop > 0 { Entry(1) } else { Entry(0) }, hop);
        }
    }

    /// One function of one hop on some rows of an item: from V or a buffer of Z, to the next buffer or the output.
    fn call_hop(&self, function: Entry, item: usize, worker: usize, shared: usize, rows: Range<usize>, hop: usize) {
        let plan = &self.inner.plan;
        let scratch = &self.inner.scratch[0];
        let z = |hop: usize| self.shared[shared] + scratch.z + hop % 2 * scratch.z_bytes();
        let mut args = self.args(item, 0, worker, shared, rows, hop);
        if let Some(before) = hop.checked_sub(1) {
            (args.source, args.source_stride) = (std::ptr::with_exposed_provenance(z(before)), scratch.acc_stride);
        }
        if hop + 1 < plan.hops.len() {
            (args.target, args.target_stride) = (std::ptr::with_exposed_provenance_mut(z(hop)), scratch.acc_stride);
        }
        self.enter(function, &args);
    }

    /// A sweep over the block rows `own` of an item: row by row P and the first hop, and every further hop as many rows
    /// behind the one before as a row reaches ahead.
    fn sweep(&self, item: usize, worker: usize, own: Range<usize>) {
        let plan = &self.inner.plan;
        let scratch = &self.inner.scratch[0];
        let (rows, hops) = (plan.block_rows(), plan.hops.len());
        let (behind, lag) = plan.reach.map_or((0, 0), |reach| (reach.behind as usize, reach.ahead as usize));
        // What the rows of the last hop need of a hop: so much on either side.
        let needed = |hop: usize| {
            let later = hops - 1 - hop;
            own.start.saturating_sub(later * behind)..rows.min(own.end + later * lag)
        };
        let end = own.end + (hops - 1) * lag;
        for now in needed(0).start..end {
            for hop in 0..hops {
                let Some(row) = now.checked_sub(hop * lag).filter(|row| needed(hop).contains(row)) else { continue };
                let mut args = self.args(item, 0, worker, worker, row..row + 1, hop);
                if hop == 0 {
                    let args = match own.contains(&row) {
                        true => args,
                        // Another stretch says what is known of this row.
                        false => KernelArgs { row_max: std::ptr::null_mut(), row_sum: std::ptr::null_mut(), ..args },
                    };
                    self.enter(Entry(0), &args);
                }
                if hop > 0 {
                    let newest = (row + lag).min(needed(hop - 1).end - 1);
                    let z = self.z_of_sweep(worker, hop - 1, needed(hop - 1).start, newest);
                    (args.source, args.source_stride) = (std::ptr::with_exposed_provenance(z), scratch.acc_stride);
                }
                if hop + 1 < hops {
                    let start = needed(hop).start;
                    let z = self.z_of_sweep(worker, hop, start, row);
                    if row > start {
                        self.slide(&args, self.z_of_sweep(worker, hop, start, row - 1), z, row);
                    }
                    (args.target, args.target_stride) = (std::ptr::with_exposed_provenance_mut(z), scratch.acc_stride);
                }
                self.enter(Entry(1), &args);
            }
        }
    }

    /// Where row 0 of what hop `hop` of a sweep writes would stand while block row `newest` is the last written:
    /// buffers hold some of the newest rows, from `start` on. Such a row may lie before the buffer, and is not touched.
    fn z_of_sweep(&self, worker: usize, hop: usize, start: usize, newest: usize) -> usize {
        let plan = &self.inner.plan;
        let scratch = &self.inner.scratch[0];
        let buffer = self.shared[worker] + scratch.z + hop * scratch.z_bytes();
        if scratch.z_rows >= plan.q_len {
            return buffer;
        }
        let capacity = scratch.z_rows / QUERY_BLOCK;
        let kept = plan.reach.map_or(0, |reach| reach.window() - 1);
        // Each time the buffer is full, its newest rows move to its front.
        let slides = (newest - start + 1).saturating_sub(capacity).div_ceil(capacity - kept);
        let first = start + slides * (capacity - kept);
        buffer.wrapping_sub(first * QUERY_BLOCK * scratch.acc_stride * size_of::<f32>())
    }

    /// Moves the rows of a Z that are still read, before block row `row` is written, where its buffer is full: from
    /// addresses of row 0 before to addresses after.
    fn slide(&self, args: &KernelArgs, before: usize, after: usize, row: usize) {
        if before == after {
            return;
        }
        let kept = self.inner.plan.reach.map_or(0, |reach| reach.window() - 1);
        let args = KernelArgs {
            source: std::ptr::with_exposed_provenance(before),
            target: std::ptr::with_exposed_provenance_mut(after),
            first_row: (row - kept) * QUERY_BLOCK,
            end_row: row * QUERY_BLOCK,
            ..*args
        };
        self.enter(Entry(2), &args);
    }

    /// `flash` over heads of several parts: the parts of an item, then their join.
    fn run_parts(&self, rows: usize, workers: usize) {
        let plan = &self.inner.plan;
        let range = |unit: usize, index: usize| index * unit..rows.min((index + 1) * unit);
        if self.shared.len() == workers {
            self.spread(self.items, |worker, item| {
                // A first part in the order of queries is joined while its outputs are in the cache.
                let first = plan.mask_of_head[item % plan.heads * plan.parts] as usize;
                let in_order = plan.masks[first].order.is_none();
                for part in usize::from(in_order)..plan.parts {
                    self.call_part(item, part, worker, worker, 0..rows);
                }
                for index in 0..rows.div_ceil(JOINED_ROWS) {
                    let rows = range(JOINED_ROWS, index);
                    if in_order {
                        self.call_part(item, 0, worker, worker, rows.clone());
                    }
                    self.call(Entry(1), item, worker, worker, rows, 0);
                }
            });
            return;
        }
        let unit = rows.div_ceil(4 * workers);
        let units = rows.div_ceil(unit);
        for item in 0..self.items {
            self.spread(plan.parts * units, |worker, index| {
                self.call_part(item, index / units, worker, 0, range(unit, index % units));
            });
            self.spread(units, |worker, index| self.call(Entry(1), item, worker, 0, range(unit, index), 0));
        }
    }

    /// Hands units `0..units` to workers as they become free.
    fn spread(&self, units: usize, work: impl Fn(usize, usize) + Send + Sync) {
        spread_over(&self.inner.threads, self.local.len(), units, work);
    }

    /// Runs `work` once on every worker, on no more than `most`, and waits for all of them.
    fn on_workers(&self, most: usize, work: impl Fn(usize) + Send + Sync) {
        on_workers(&self.inner.threads, self.local.len().min(most), work);
    }

    fn call(&self, entry: Entry, item: usize, worker: usize, shared: usize, rows: Range<usize>, hop: usize) {
        let args = self.args(item, 0, worker, shared, rows, hop);
        self.enter(entry, &args);
    }

    /// One part of an item, into the scratch for parts, or the output.
    fn call_part(&self, item: usize, part: usize, worker: usize, shared: usize, rows: Range<usize>) {
        let plan = &self.inner.plan;
        let scratch = &self.inner.scratch[0];
        let at = |offset: usize, floats: usize| self.shared[shared] + offset + part * floats * size_of::<f32>();
        let args = self.args(item, part, worker, shared, rows, 0);
        let (target, target_stride) = match part.checked_sub(plan.first_part_apart()) {
            None => (args.target, args.target_stride),
            Some(place) => {
                let address =
                    self.shared[shared] + scratch.partial + place * plan.q_len * scratch.acc_stride * size_of::<f32>();
                (std::ptr::with_exposed_provenance_mut(address), scratch.acc_stride)
            }
        };
        let args = KernelArgs {
            target,
            target_stride,
            row_max: std::ptr::with_exposed_provenance_mut(at(scratch.partial_max, plan.q_len)),
            row_sum: std::ptr::with_exposed_provenance_mut(at(scratch.partial_sum, plan.q_len)),
            ..args
        };
        self.enter(Entry(0), &args);
    }

    fn args(
        &self,
        item: usize,
        part: usize,
        worker: usize,
        shared: usize,
        rows: Range<usize>,
        hop: usize,
    ) -> KernelArgs {
        let plan = &self.inner.plan;
        let (batch, head) = (item / plan.heads, item % plan.heads);
        let kv_head = head / (plan.heads / plan.kv_heads);
        let read = |address: usize| std::ptr::with_exposed_provenance::<u8>(address);
        let statistics = |address: usize| match self.row_max {
            0 => std::ptr::null_mut(),
            _ => std::ptr::with_exposed_provenance_mut(address + item * plan.q_len * size_of::<f32>()),
        };
        KernelArgs {
            q: read(self.q.head(batch, head)),
            q_stride: self.q.strides[2],
            k: read(self.k.head(batch, kv_head)),
            k_stride: self.k.strides[2],
            v: read(self.v.head(batch, kv_head)),
            v_stride: self.v.strides[2],
            row_max: statistics(self.row_max),
            row_sum: statistics(self.row_sum),
            tables: self.inner.tables[plan.mask_of_head[head * plan.parts + part] as usize].as_ptr(),
            local: std::ptr::with_exposed_provenance_mut(self.local[worker]),
            shared: std::ptr::with_exposed_provenance_mut(self.shared.get(shared).copied().unwrap_or(0)),
            first_row: rows.start,
            end_row: rows.end,
            hop,
            source: read(self.v.head(batch, kv_head)),
            source_stride: self.v.strides[2],
            target: std::ptr::with_exposed_provenance_mut(self.out.head(batch, head)),
            target_stride: self.out.strides[2],
            head,
            inputs: std::ptr::with_exposed_provenance(self.inputs),
            training: std::ptr::null(),
        }
    }

    fn enter(&self, entry: Entry, args: &KernelArgs) {
        enter(&self.inner.code, entry, args);
    }
}

/// Runs a function of a kernel: the one place where machine code is entered.
fn enter(code: &Code, entry: Entry, args: &KernelArgs) {
    // SAFETY: the callers, `forward_into_with` and `training`, check every shape, stride and input against the plan of
    // the code and keep the tensors borrowed until all units are done; tables and scratch sizes come from the same plan;
    // a worker's scratch is used by one unit at a time, and units that run at once write different rows.
    #[allow(unsafe_code)]
    unsafe {
        code.call(entry, args);
    }
}

/// Hands units `0..units` to `workers` as they become free.
fn spread_over(threads: &rayon::ThreadPool, workers: usize, units: usize, work: impl Fn(usize, usize) + Send + Sync) {
    let next = AtomicUsize::new(0);
    on_workers(threads, workers.min(units), |worker| {
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            work(worker, unit);
        }
    });
}

/// Runs `work` once on every worker, and waits for all of them.
fn on_workers(threads: &rayon::ThreadPool, workers: usize, work: impl Fn(usize) + Send + Sync) {
    if workers <= 1 {
        work(0);
        return;
    }
    threads.install(|| (0..workers).into_par_iter().with_max_len(1).for_each(work));
}

impl Inner {
    fn scratch_per_worker(&self) -> (usize, usize) {
        let most = |size: fn(&Scratch) -> usize| self.scratch.iter().map(size).max().unwrap_or(0);
        (most(|scratch| scratch.local), most(|scratch| scratch.shared))
    }

    /// Shares of shared scratch: one for every worker, or one for a head whose rows all workers share.
    fn in_flight(&self, items: usize, workers: usize) -> usize {
        if items >= workers || self.plan.walk == Walk::Sweep { workers } else { 1 }
    }

    fn workspace(&self, batch: usize, statistics: bool) -> Result<Workspace> {
        let items = batch * self.plan.heads;
        let workers = self.threads.current_num_threads();
        let (local, shared) = self.scratch_per_worker();
        let heads_in_flight = if shared == 0 { 0 } else { self.in_flight(items, workers) };
        let row_sums = if statistics { items * self.plan.q_len } else { 0 };
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = idle.unwrap_or_default();
        for (buffers, count, bytes) in
            [(&mut workspace.local, workers, local), (&mut workspace.shared, heads_in_flight, shared)]
        {
            buffers.truncate(count);
            while buffers.len() < count {
                buffers.push(Buffer::new(bytes)?);
            }
        }
        grow(&mut workspace.row_sum, row_sums)?;
        let Workspace { local, shared, local_at, shared_at, .. } = &mut workspace;
        for (buffers, addresses) in [(local, local_at), (shared, shared_at)] {
            addresses.clear();
            addresses.extend(buffers.iter_mut().map(Buffer::address));
        }
        Ok(workspace)
    }
}

/// Scratch of one call.
#[derive(Debug, Default)]
struct Workspace {
    local: Vec<Buffer>,
    shared: Vec<Buffer>,
    /// Addresses of `local` and `shared`, kept so that a warm call allocates no list of them.
    local_at: Vec<usize>,
    shared_at: Vec<usize>,
    /// Addresses of the inputs of the call in progress.
    inputs_at: Vec<usize>,
    row_sum: Vec<f32>,
}

/// The pool of `threads` threads that calls of kernels run on, made once per number.
///
/// # Errors
/// [`Error::Unsupported`] when the system gives no threads.
pub fn pool(threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    static POOLS: Mutex<Vec<Arc<rayon::ThreadPool>>> = Mutex::new(Vec::new());
    let threads = threads.max(1);
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.iter().find(|pool| pool.current_num_threads() == threads) {
        return Ok(Arc::clone(pool));
    }
    let places = Places::new(threads);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("hopweave-{index}"))
        .start_handler(move |index| places.take(index))
        .build()
        .map_err(|error| Error::unsupported(format!("{threads} threads"), error.to_string()))?;
    pools.push(Arc::new(pool));
    Ok(Arc::clone(&pools[pools.len() - 1]))
}

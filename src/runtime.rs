//! Calling a kernel: shapes checked, workspace kept warm, work spread over threads.
//!
//! In: q, k, v as ndarray views. Out: the output, and log-sum-exp where asked; gradients. The loops of a plan's nest are
//! interpreted (`nest`), forward and backward alike. A block row is always computed by the same code in the same order,
//! whoever computes it, so results do not depend on the number of threads.

mod input_sums;
mod iterations;
pub(crate) mod memory;
mod nest;
mod pointer;
mod pool;
mod result;
mod training;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ndarray::{Array3, Array4, ArrayView4, ArrayViewMut3, ArrayViewMut4, CowArray, Ix4};

use self::memory::{Buffer, grow, zeros};
use self::nest::{Dropped, Head, HeadRows, LoopFacts, Own, Site, TensorAt, Tensors};
use self::pointer::Pointer;
pub(crate) use self::pool::own_pool;
pub use self::pool::{Pool, pool};
use self::pool::{on_workers, spread, workers_of};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::jit::Linked;
use crate::plan::VerifiedPlan;
use crate::program::{Loop, Op, Tensor};
use crate::spec::Inputs;

pub(crate) use iterations::{Iterations, enough};
pub use training::{Gradients, InputGradients, Saved, Step, TrainingKernel};
pub(crate) use training::{check, check_outputs};

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
    kernel: Linked,
    loops: Vec<LoopFacts>,
    /// Tables of the score mods, which follow the callers' inputs.
    constants: Vec<Vec<f32>>,
    threads: Arc<dyn Pool>,
    /// Workspace of finished calls, for the next ones.
    idle: Mutex<Vec<Workspace>>,
    /// Makes the kernel for training, which is made at the first backward call.
    train: Option<Train>,
    training: OnceLock<TrainingKernel>,
    /// Kernels of other numbers of hops, where those depend on the call.
    iterations: OnceLock<Iterations<Kernel>>,
}

/// Compiles the kernel for training that belongs to a kernel.
pub type Train = Box<dyn Fn() -> Result<TrainingKernel> + Send + Sync>;

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("kernel", &self.kernel).finish_non_exhaustive()
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
    /// A kernel of what the linker made, with what makes its kernel for training. Nothing else makes one: what was verified
    /// is what runs.
    pub(crate) fn new(kernel: Linked, threads: Arc<dyn Pool>, train: Option<Train>) -> Self {
        let constants = kernel.plan().mods.as_ref().map(|mods| mods.mods.constants()).unwrap_or_default();
        let loops = LoopFacts::of(kernel.plan());
        let (idle, training, iterations) = (Mutex::default(), OnceLock::new(), OnceLock::new());
        let inner = Inner { kernel, loops, constants, threads, idle, train, training, iterations };
        Self { inner: Arc::new(inner) }
    }

    /// The same with kernels of other numbers of hops beside it.
    pub(crate) fn iterated(self, iterations: Iterations<Self>) -> Self {
        let _ = self.inner.iterations.set(iterations);
        self
    }

    /// The plan that the kernel follows.
    pub fn plan(&self) -> &VerifiedPlan {
        self.inner.kernel.plan()
    }

    /// Bytes of machine code, and of tables that it reads.
    pub fn code_bytes(&self) -> (usize, usize) {
        (self.inner.kernel.code_bytes(), self.inner.kernel.table_bytes())
    }

    /// Threads that a call uses, were it made now and here.
    pub fn threads(&self) -> usize {
        workers_of(&*self.inner.threads)
    }

    /// Bytes of workspace that a call over `batch` sequences holds, beyond its tensors.
    pub fn scratch_bytes(&self, batch: usize) -> u64 {
        self.scratch_bytes_on(batch, self.threads())
    }

    /// The same were there so many threads.
    pub fn scratch_bytes_on(&self, batch: usize, workers: usize) -> u64 {
        let layout = self.plan().layout();
        let in_flight = self.inner.in_flight(batch * self.plan().shape.heads, workers);
        (workers * layout.local.bytes + in_flight * layout.head) as u64
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
        let plan = self.plan();
        let batch = q.dim().0;
        let (heads, q_len) = plan.outer();
        let mut out = zeros("the output", (batch, heads, q_len, plan.shape.value_dim))?;
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
        let plan = self.plan();
        if let Some(iterations) = self.inner.iterations.get()
            && let Some(kernel) = iterations.of(inputs, plan.mods.as_ref().map(|mods| &mods.mods))?
        {
            return kernel.forward_into_with(q, k, v, inputs, out, lse);
        }
        if T::DTYPE != plan.shape.dtype {
            return Err(Error::Dtype { expected: plan.shape.dtype.name(), found: T::DTYPE.name() });
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
        check("q", of(q.dim()), [batch, heads, q_len, plan.shape.head_dim], [0, 1, 2, 3])?;
        check("k", of(k.dim()), [batch, plan.shape.kv_heads, plan.shape.kv_len, plan.shape.head_dim], [0, 6, 4, 3])?;
        check("v", of(v.dim()), [batch, plan.shape.kv_heads, plan.shape.kv_len, plan.shape.value_dim], [0, 6, 4, 5])?;
        check("out", of(out.dim()), [batch, heads, q_len, plan.shape.value_dim], [0, 1, 2, 5])?;
        let given =
            inputs.check(plan.mods.as_ref().map(|mods| &mods.mods), plan.body.given.as_ref(), plan.shape.heads)?;
        if out.is_empty() || plan.shape.q_len == 0 {
            return Ok(());
        }
        let (q, k, v) = (readable(q)?, readable(k)?, readable(v)?);
        let out_strides = match strides(out.strides(), plan.shape.value_dim) {
            Some(strides) => strides,
            None => {
                return Err(Error::Shape {
                    tensor: "out".to_owned(),
                    expected: "a last axis with stride 1 and no negative strides".to_owned(),
                    found: format!("strides {:?}", out.strides()),
                });
            }
        };
        let mut lse_slice = match &mut lse {
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
        {
            let Workspace { local, heads: in_flight, row_sum, inputs: tables } = &mut workspace;
            tables.clear();
            let constants = self.inner.constants.iter().map(Vec::as_slice);
            tables.extend(given.mods.into_iter().chain(constants).map(|table| Address(table.as_ptr())));
            let mut tensors = Tensors::default();
            tensors.set(Tensor::Q, tensor_at(&q).stacked(plan.stack));
            tensors.set(Tensor::K, tensor_at(&k));
            tensors.set(Tensor::V, tensor_at(&v));
            let (base, element) = (Pointer::to_rows(out.as_mut_ptr()), T::DTYPE.bytes());
            tensors.set(Tensor::Out, TensorAt { base, strides: out_strides, element }.stacked(plan.stack));
            let row_max = lse_slice.as_mut().map_or(Pointer::NULL, |lse| Pointer::to(lse));
            let row_sum_at = if row_max.is_null() { Pointer::NULL } else { Pointer::to(row_sum) };
            let site = Site {
                kernel: &self.inner.kernel,
                loops: &self.inner.loops,
                tensors,
                inputs: Pointer::from(tables.as_ptr()),
                numbers: given.numbers,
            };
            let task = Task {
                inner: &self.inner,
                site,
                statistics: [row_max, row_sum_at],
                local: &local.iter_mut().map(Buffer::pointer).collect::<Pointers<'_>>(),
                heads: &in_flight.iter_mut().map(Buffer::pointer).collect::<Pointers<'_>>(),
                items: batch * plan.shape.heads,
            };
            task.run();
        }
        if let Some(lse) = lse_slice {
            for (lse, &sum) in lse.iter_mut().zip(&workspace.row_sum) {
                *lse = if sum == 0.0 { f32::NEG_INFINITY } else { (*lse + sum.log2()) * std::f32::consts::LN_2 };
            }
        }
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        Ok(())
    }
}

/// Addresses of workspace of a call; so many are kept without an allocation.
type Pointers<'a> = smallvec::SmallVec<[Pointer<'a>; 64]>;

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

/// A view as kernels see it.
fn tensor_at<'a, T: Element>(array: &'a CowArray<'_, T, Ix4>) -> TensorAt<'a> {
    let strides = strides(array.strides(), array.dim().3).unwrap_or_default();
    TensorAt { base: Pointer::from(array.as_ptr()), strides, element: T::DTYPE.bytes() }
}

/// A forward call.
struct Task<'a> {
    inner: &'a Inner,
    site: Site<'a>,
    /// Maxima and sums of all items, `[items][q_len]`, or null.
    statistics: [Pointer<'a>; 2],
    local: &'a [Pointer<'a>],
    heads: &'a [Pointer<'a>],
    items: usize,
}

impl<'a> Task<'a> {
    fn run(&self) {
        let plan = self.inner.kernel.plan();
        let rows = plan.block_rows();
        let workers = self.local.len();
        let threads = &*self.inner.threads;
        if plan.parts > 1 {
            return self.run_parts(rows, workers);
        }
        if self.inner.rows_are_free() {
            // Long stretches first, so that rows that share keys stay with one worker; short ones at the end, so
            // that no worker finishes much later than the others (guided self-scheduling).
            let total = self.items * rows;
            let least = (plan.tuning.unit_rows as usize).max(1);
            let next = AtomicUsize::new(0);
            let take = |first: usize| match total - first {
                0 => None,
                left => Some(first + (left / (2 * workers)).max(least).min(left)),
            };
            on_workers(threads, workers.min(total.div_ceil(LEAST_ROWS.max(least))), |worker| {
                while let Ok(first) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                    let end = take(first).unwrap_or(total);
                    for item in first / rows..end.div_ceil(rows) {
                        let here = first.max(item * rows) - item * rows..end.min((item + 1) * rows) - item * rows;
                        self.head(item, Pointer::NULL).stage((0, 0), self.local[worker], here, Own::PLAIN);
                    }
                }
            });
        } else if self.inner.has_halo() {
            let stretches = plan.stretches(self.items, workers);
            let unit = rows.div_ceil(stretches);
            spread(threads, workers, self.items * stretches, |worker, index| {
                let first = index % stretches * unit;
                if first < rows {
                    let head = self.head(index / stretches, self.heads[worker]);
                    head.sweep(0, self.local[worker], first..rows.min(first + unit), Own::PLAIN);
                }
            });
        } else if self.heads.len() == workers {
            spread(threads, workers, self.items, |worker, item| {
                self.head(item, self.heads[worker]).run(self.local[worker]);
            });
        } else {
            let unit = match plan.tuning.unit_rows {
                0 => rows.div_ceil(4 * workers),
                rows => rows as usize,
            };
            for item in 0..self.items {
                let head = self.head(item, self.heads[0]);
                // Every loop reads what all rows of the one before have written.
                (0..self.site.loops.len()).for_each(|of_loop| head.share_loop(of_loop, threads, self.local, unit));
            }
        }
    }

    fn head(&self, item: usize, workspace: Pointer<'a>) -> Head<'a> {
        let shape = &self.inner.kernel.plan().shape;
        let statistics = self.statistics.map(|base| match base.is_null() {
            true => base,
            false => base.at((item * shape.q_len * size_of::<f32>()) as isize),
        });
        Head {
            site: self.site,
            batch: item / shape.heads,
            head: item % shape.heads,
            workspace,
            statistics,
            out: None,
            exact: false,
            dropout: Dropped::NONE,
        }
    }

    /// Heads of several parts: the parts of an item, then their join.
    fn run_parts(&self, rows: usize, workers: usize) {
        let plan = self.inner.kernel.plan();
        let threads = &*self.inner.threads;
        let range = |unit: usize, index: usize| index * unit..rows.min((index + 1) * unit);
        let join = |head: &Head<'_>, worker: usize, rows| head.stage((1, 0), self.local[worker], rows, Own::PLAIN);
        if self.heads.len() == workers {
            spread(threads, workers, self.items, |worker, item| {
                let head = self.head(item, self.heads[worker]);
                // A first part in the order of queries is joined while its outputs are in the cache.
                let first = plan.mask_of(0, item % plan.shape.heads, 0);
                let in_order = plan.walks[0].masks[first].order.is_none();
                for part in usize::from(in_order)..plan.parts {
                    self.part(&head, part, worker, 0..rows);
                }
                for index in 0..rows.div_ceil(JOINED_ROWS) {
                    let rows = range(JOINED_ROWS, index);
                    if in_order {
                        self.part(&head, 0, worker, rows.clone());
                    }
                    join(&head, worker, rows);
                }
            });
            return;
        }
        let unit = rows.div_ceil(4 * workers);
        let units = rows.div_ceil(unit);
        for item in 0..self.items {
            let head = self.head(item, self.heads[0]);
            spread(threads, workers, plan.parts * units, |worker, index| {
                self.part(&head, index / units, worker, range(unit, index % units));
            });
            spread(threads, workers, units, |worker, index| join(&head, worker, range(unit, index)));
        }
    }

    /// One part of a head: its rows into the head's workspace, or the output, its maxima and sums beside them.
    fn part(&self, head: &Head<'a>, part: usize, worker: usize, rows: Range<usize>) {
        let plan = self.inner.kernel.plan();
        let Some(&Op::Join { x, m, l }) =
            plan.body.ops().map(|operation| &operation.op).find(|op| matches!(op, Op::Join { .. }))
        else {
            return;
        };
        let float = size_of::<f32>();
        let buffer = |id| plan.layout().buffer(plan.body.root(id));
        let at = |id, floats: usize| match buffer(id) {
            Some(buffer) => head.workspace.at((buffer.offset + floats * float) as isize),
            None => Pointer::NULL,
        };
        let place = part.checked_sub(plan.first_part_apart());
        let stride = buffer(x).map_or(0, |buffer| buffer.stride);
        let rows_at = place.map(|place| HeadRows { base: at(x, place * plan.shape.q_len * stride), stride });
        let x = plan.body.root(x);
        let statistics = [m, l].map(|id| at(id, part * plan.shape.q_len));
        let to = rows_at.or_else(|| head.tensor(Tensor::Out));
        let own = Own { part, rows: to.map(|to| (x, to)), ..Own::PLAIN };
        Head { statistics, ..*head }.stage((0, 0), self.local[worker], rows, own);
    }
}

impl Inner {
    /// Whether block rows need nothing of each other: one loop of one stage that keeps nothing.
    fn rows_are_free(&self) -> bool {
        let plan = self.kernel.plan();
        let free = |of_loop: &Loop| of_loop.stages.len() == 1 && !of_loop.is_in_order();
        plan.layout().head == 0 && matches!(plan.body.loops.as_slice(), [of_loop] if free(of_loop))
    }

    /// Whether rows of a head may be cut into stretches that need nothing of each other.
    fn has_halo(&self) -> bool {
        matches!(self.kernel.plan().body.loops.as_slice(), [of_loop] if of_loop.halo)
    }

    /// Shares of heads' workspace: one for every worker, or one for a head whose rows all workers share.
    fn in_flight(&self, items: usize, workers: usize) -> usize {
        if self.rows_are_free() {
            0
        } else if items >= workers || self.has_halo() {
            workers
        } else {
            1
        }
    }

    fn workspace(&self, batch: usize, statistics: bool) -> Result<Workspace> {
        let plan = self.kernel.plan();
        let items = batch * plan.shape.heads;
        let workers = workers_of(&*self.threads);
        let in_flight = self.in_flight(items, workers);
        let row_sums = if statistics { items * plan.shape.q_len } else { 0 };
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = idle.unwrap_or_default();
        let layout = plan.layout();
        for (buffers, count, bytes) in
            [(&mut workspace.local, workers, layout.local.bytes), (&mut workspace.heads, in_flight, layout.head)]
        {
            buffers.truncate(count);
            while buffers.len() < count {
                buffers.push(Buffer::new(bytes)?);
            }
        }
        grow(&mut workspace.row_sum, row_sums)?;
        Ok(workspace)
    }
}

/// Workspace of one call.
#[derive(Debug, Default)]
struct Workspace {
    local: Vec<Buffer>,
    heads: Vec<Buffer>,
    row_sum: Vec<f32>,
    /// Inputs of the call in progress.
    inputs: Vec<Address>,
}

/// Where an input of the score mods begins; read while a call borrows the input, and by nobody else.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Address(*const f32);

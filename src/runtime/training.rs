//! Training: gradients, and outputs with dropout.
//!
//! In: q, k, v, the gradient of the output. Out: those of q, k and v, in f32 sums. A (batch, key/value head) is one unit
//! of work: what its query heads give to its keys and values is added in one order, whatever the number of threads. Few
//! units are cut into stretches of block rows, as many as the problem's sizes say, whose sums are then added in order.
//!
//! For every query head, with Z_0 = V and G = dL/dZ_K: P and all Z again (a single hop needs only log-sum-exp); from
//! the last hop to the first G' = step · Aᵀ G; then one pass over the block rows that makes dA = Σ step · G Zᵀ, dS, dQ
//! and dK of P and all Z and G, side by side. Where they do not fit, the pass is run hop by hop, with Z computed anew.

mod head;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ndarray::{Array4, ArrayD, ArrayView3, ArrayView4, CowArray, Ix4, Zip};

use self::head::{Head, Room, Targets};
use super::memory::zeros;
use super::{Output, Tensor, enter, pool, readable, spread_over, strides};
use crate::codegen::{KernelArgs, Tables};
use crate::dropout::Dropout;
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::jit::{Code, Entry};
use crate::plan::{KernelPlan, Scratch};
use crate::spec::Inputs;

/// Units from which on none is cut, and the stretches that fewer units make together.
const UNITS: usize = 8;
/// Block rows of a stretch, at least.
const STRETCH_ROWS: usize = 4;
/// Bytes of the gradients of score mods' inputs that units keep for themselves.
const INPUT_BYTES: usize = 1 << 30;
/// Bytes of sums that stretches keep, beyond two of them.
const STRETCH_BYTES: usize = 256 << 20;

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
    /// Of every input of the score mods, by name and of its shape: summed over batch and heads, in f32.
    pub inputs: Vec<(String, ArrayD<f32>)>,
}

/// What a training step brings besides its tensors.
#[derive(Debug, Clone, Default)]
pub struct Step<'a> {
    /// What the score mods read.
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
    /// The gradient's pass, and hops where P is computed again in each.
    pass: Part,
    /// Hops where P is stored.
    stored: Option<Part>,
    /// Storage of the callers' tensors.
    dtype: Dtype,
    constants: Vec<Vec<f32>>,
    threads: Arc<rayon::ThreadPool>,
    /// Rooms of finished calls.
    idle: Mutex<Vec<Room>>,
}

/// One plan with its code.
#[derive(Debug)]
struct Part {
    plan: KernelPlan,
    tables: Vec<Tables>,
    scratch: Vec<Scratch>,
    code: Code,
}

impl Part {
    fn new((plan, code): (KernelPlan, Code)) -> Self {
        let tables = plan.masks.iter().map(|mask| Tables::new(&plan, mask)).collect();
        let scratch = plan.masks.iter().map(|mask| Scratch::new(&plan, mask)).collect();
        Self { plan, tables, scratch, code }
    }

    fn local(&self) -> usize {
        self.scratch.iter().map(|scratch| scratch.local).max().unwrap_or(0)
    }

    fn shared(&self) -> usize {
        self.scratch.iter().map(|scratch| scratch.shared).max().unwrap_or(0)
    }

    fn enter(&self, entry: Entry, args: &KernelArgs) {
        enter(&self.code, entry, args);
    }
}

/// The tensors of a call as kernels see them, in f32.
#[derive(Clone, Copy)]
struct Tensors {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Address of the list of the score mods' inputs.
    inputs: usize,
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

    fn tensor(&self) -> Tensor {
        match &self.wide {
            Some(wide) => Tensor {
                address: wide.as_ptr().expose_provenance(),
                strides: strides(wide.strides(), wide.dim().3).unwrap_or_default(),
                element: size_of::<f32>(),
            },
            None => Tensor::new(&self.given),
        }
    }

    fn is_finite(&self) -> bool {
        self.given.rows().into_iter().all(|row| row.iter().all(|x| x.widen().is_finite()))
    }
}

impl TrainingKernel {
    /// Joins what the compiler made for tensors of `dtype`: the gradient's pass, and hops that store P, where there are several.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the system gives no threads.
    pub fn new(
        dtype: Dtype,
        pass: (KernelPlan, Code),
        stored: Option<(KernelPlan, Code)>,
        threads: usize,
    ) -> Result<Self> {
        let constants = pass.0.mods.as_ref().map(|mods| mods.mods.constants()).unwrap_or_default();
        let inner = Inner {
            pass: Part::new(pass),
            stored: stored.map(Part::new),
            dtype,
            constants,
            threads: pool(threads)?,
            idle: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The plan of the gradient's pass.
    pub fn plan(&self) -> &KernelPlan {
        &self.inner.pass.plan
    }

    /// The plan of hops that store P, where they do.
    pub fn stored_plan(&self) -> Option<&KernelPlan> {
        self.inner.stored.as_ref().map(|part| &part.plan)
    }

    /// Bytes of scratch that a call over `batch` sequences holds, beyond its tensors.
    pub fn scratch_bytes(&self, batch: usize) -> u64 {
        self.scratch_bytes_on(batch, self.inner.threads.current_num_threads())
    }

    /// The same were there so many threads.
    pub fn scratch_bytes_on(&self, batch: usize, workers: usize) -> u64 {
        let inner = &self.inner;
        let units = batch * inner.pass.plan.kv_heads;
        let stretches = inner.stretches(units);
        let rooms = if stretches > 1 { 1 } else { workers.min(units.max(1)) };
        let local = workers * inner.local_bytes();
        let inputs = InputSums::count(inner.input_floats(), units) * inner.input_floats() * size_of::<f32>();
        (rooms * inner.room_bytes(stretches) + local + inputs) as u64
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
        let call = Call::new(&self.inner, [q, k, v], step)?;
        let plan = &self.inner.pass.plan;
        let (heads, q_len, dv) = (plan.heads, plan.q_len, plan.value_dim);
        let mut out = zeros::<f32, _>("the output", (call.batch, heads, q_len, dv))?;
        let mut lse = zeros::<f32, _>("log-sum-exp", (call.batch, heads, q_len))?;
        let group = heads / plan.kv_heads;
        let units: Vec<_> = chunks(&mut out, group * q_len * dv)
            .zip(lse.as_slice_mut().unwrap_or_default().chunks_mut((group * q_len).max(1)))
            .map(|unit| Mutex::new(Some(unit)))
            .collect();
        self.inner.each_unit(&units, usize::MAX, |room, unit, (out, lse)| {
            for (i, (out, lse)) in out.chunks_mut((q_len * dv).max(1)).zip(lse.chunks_mut(q_len.max(1))).enumerate() {
                let mut head = call.head(room, unit, i);
                head.forward(Some(out));
                head.write_log_sum_exp(lse);
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
        let call = Call::new(&self.inner, [q, k, v], step)?;
        let plan = &self.inner.pass.plan;
        let (heads, kv_heads) = (plan.heads, plan.kv_heads);
        let (q_len, kv_len, d, dv) = (plan.q_len, plan.kv_len, plan.head_dim, plan.value_dim);
        check_outputs(&grad_out, saved.as_ref(), [call.batch, heads, q_len, dv])?;
        // First, so that a call which does not fit is refused before anything is read.
        let of = |what, (heads, len, width)| zeros::<f32, _>(what, (call.batch, heads, len, width));
        let mut dq = of("the gradient of q", (heads, q_len, d))?;
        let mut dk = of("the gradient of k", (kv_heads, kv_len, d))?;
        let mut dvs = of("the gradient of v", (kv_heads, kv_len, dv))?;
        let grad_out = readable(grad_out)?;
        let finite = call.q.is_finite() && call.k.is_finite() && call.v.is_finite();
        let exact = !finite || !grad_out.iter().all(|x| x.widen().is_finite());
        // What was rounded to 16 bits is worth less than computing it again.
        let saved = saved.filter(|_| T::DTYPE.is_f32());
        let shapes = plan.mods.as_ref().map_or(&[][..], |mods| &mods.mods.inputs);
        let sums = InputSums::new(shapes.iter().map(|input| input.shape.iter().product()), call.batch * kv_heads)?;
        let group = heads / kv_heads;
        let units: Vec<_> = chunks(&mut dq, group * q_len * d)
            .zip(chunks(&mut dk, kv_len * d).zip(chunks(&mut dvs, kv_len * dv)))
            .map(|unit| Mutex::new(Some(unit)))
            .collect();
        self.inner.each_unit(&units, sums.most_at_once(), |room, unit, (dq, (dk, dv))| {
            let mut inputs = sums.of_unit(unit);
            // Fresh memory is added to, and so read first: a page that is read before it is written costs two faults and
            // an interrupt of every thread, more than the rest of a short window's pass.
            dk.fill(0.0);
            dv.fill(0.0);
            for (i, dq) in dq.chunks_mut((q_len * d).max(1)).enumerate() {
                let head = call.head(room, unit, i);
                let (b, h) = (unit / kv_heads, unit % kv_heads * group + i);
                let saved = saved
                    .as_ref()
                    .map(|saved| (saved.out.slice(ndarray::s![b, h, .., ..]), saved.lse.slice(ndarray::s![b, h, ..])));
                let v = call.v.given.slice(ndarray::s![b, unit % kv_heads, .., ..]);
                let targets = Targets { dq, dk: &mut *dk, dv: &mut *dv, inputs: &mut inputs, sizes: &sums.sizes };
                head.backward(v, grad_out.slice(ndarray::s![b, h, .., ..]), saved, exact, targets);
            }
        })?;
        drop(units);
        let inputs = shapes.iter().zip(sums.finish()).map(|(input, sum)| {
            (input.name.clone(), ArrayD::from_shape_vec(input.shape.clone(), sum).unwrap_or_default())
        });
        Ok(Gradients { q: narrow(dq), k: narrow(dk), v: narrow(dvs), inputs: inputs.collect() })
    }
}

/// The gradients of the score mods' inputs: sums of every unit for itself, so that what is added to what does not depend
/// on threads. Where those would take too much memory, units run one after the other.
struct InputSums {
    /// Elements of every input.
    sizes: Vec<usize>,
    of_units: Vec<Mutex<Vec<f32>>>,
}

impl InputSums {
    fn new(sizes: impl Iterator<Item = usize>, units: usize) -> Result<Self> {
        let sizes: Vec<usize> = sizes.collect();
        let all: usize = sizes.iter().sum();
        let of_unit = |_| Ok(Mutex::new(zeros("the gradients of inputs", all)?.into_raw_vec_and_offset().0));
        let of_units = (0..Self::count(all, units)).map(of_unit).collect::<Result<_>>()?;
        Ok(Self { sizes, of_units })
    }

    /// How many sums of `all` elements are kept for `units`.
    fn count(all: usize, units: usize) -> usize {
        if units.saturating_mul(all) <= INPUT_BYTES / size_of::<f32>() { units.max(1) } else { 1 }
    }

    fn most_at_once(&self) -> usize {
        if self.of_units.len() == 1 { 1 } else { usize::MAX }
    }

    fn of_unit(&self, unit: usize) -> MutexGuard<'_, Vec<f32>> {
        self.of_units[unit.min(self.of_units.len() - 1)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums of all units, in order, input by input.
    fn finish(self) -> Vec<Vec<f32>> {
        let mut units = self.of_units.into_iter().map(|unit| unit.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut total = units.next().unwrap_or_default();
        for unit in units {
            total.iter_mut().zip(unit).for_each(|(sum, x)| *sum += x);
        }
        let mut rest = total.as_slice();
        let split = self.sizes.iter().map(|&size| {
            let (input, behind) = rest.split_at(size);
            rest = behind;
            input.to_vec()
        });
        split.collect()
    }
}

/// A call's tensors and what is the same for all its heads.
struct Call<'a, T> {
    inner: &'a Inner,
    q: Wide<'a, T>,
    k: Wide<'a, T>,
    v: Wide<'a, T>,
    /// Addresses of the score mods' inputs and constants.
    inputs: Vec<usize>,
    dropout: Option<&'a Dropout>,
    /// Number of the first batch element among those that dropout numbers.
    first: usize,
    batch: usize,
}

impl<'a, T: Element> Call<'a, T> {
    fn new(inner: &'a Inner, [q, k, v]: [ArrayView4<'a, T>; 3], step: &'a Step<'_>) -> Result<Self> {
        let plan = &inner.pass.plan;
        if T::DTYPE != inner.dtype {
            return Err(Error::Dtype { expected: inner.dtype.name(), found: T::DTYPE.name() });
        }
        let batch = q.dim().0;
        check("q", q.shape(), &[batch, plan.heads, plan.q_len, plan.head_dim])?;
        check("k", k.shape(), &[batch, plan.kv_heads, plan.kv_len, plan.head_dim])?;
        check("v", v.shape(), &[batch, plan.kv_heads, plan.kv_len, plan.value_dim])?;
        let dropout = step.dropout.as_ref();
        if dropout.is_some() && !plan.training.is_some_and(|training| training.dropout) {
            return Err(Error::unsupported("dropout", "this kernel was compiled without it"));
        }
        let given = step.inputs.check(plan.mods.as_ref().map(|mods| &mods.mods))?;
        let constants = inner.constants.iter().map(Vec::as_slice);
        let inputs = given.into_iter().chain(constants).map(|table| table.as_ptr().expose_provenance()).collect();
        let (q, k, v) = (Wide::new(q)?, Wide::new(k)?, Wide::new(v)?);
        Ok(Self { inner, q, k, v, inputs, dropout, first: step.first, batch })
    }

    /// Query head `i` of a unit, in a room.
    fn head<'r>(&'r self, room: &'r mut Room, unit: usize, i: usize) -> Head<'r> {
        let tensors = Tensors {
            q: self.q.tensor(),
            k: self.k.tensor(),
            v: self.v.tensor(),
            inputs: self.inputs.as_ptr().expose_provenance(),
        };
        Head::new(self.inner, room, tensors, (unit, i), (self.dropout, self.first))
    }
}

impl Inner {
    /// Stretches that block rows of a unit are cut into: by the sizes of the problem alone.
    fn stretches(&self, units: usize) -> usize {
        if units >= UNITS || units == 0 {
            return 1;
        }
        let bytes = self.stretch_floats() * size_of::<f32>();
        let affordable = (STRETCH_BYTES / bytes.max(1)).max(2);
        (2 * UNITS).div_ceil(units).min(self.pass.plan.block_rows() / STRETCH_ROWS).min(affordable).max(1)
    }

    /// Elements of the score mods' inputs.
    fn input_floats(&self) -> usize {
        let mods = self.pass.plan.mods.iter().flat_map(|mods| &mods.mods.inputs);
        mods.map(|input| input.shape.iter().product::<usize>()).sum()
    }

    /// Sums that a stretch keeps for itself: of keys, values and inputs.
    fn stretch_floats(&self) -> usize {
        let plan = &self.pass.plan;
        plan.kv_len * (plan.head_dim + plan.value_dim) + self.input_floats()
    }

    fn local_bytes(&self) -> usize {
        self.pass.local().max(self.stored.as_ref().map_or(0, Part::local))
    }

    /// Runs `work` for every unit, each in a room of its own, in order where only one may run at once.
    fn each_unit<U: Send>(
        &self,
        units: &[Mutex<Option<U>>],
        most_at_once: usize,
        work: impl Fn(&mut Room, usize, U) + Send + Sync,
    ) -> Result<()> {
        let stretches = self.stretches(units.len());
        let workers =
            if stretches > 1 { 1 } else { self.threads.current_num_threads().min(units.len()).min(most_at_once) };
        let mut rooms = Vec::new();
        for _ in 0..workers {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut room = idle.unwrap_or_default();
            room.prepare(self, stretches, if stretches > 1 { self.threads.current_num_threads() } else { 1 })?;
            rooms.push(Mutex::new(room));
        }
        spread_over(&self.threads, workers, units.len(), |worker, unit| {
            let mut room = rooms[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let taken = units[unit].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(taken) = taken {
                work(&mut room, unit, taken);
            }
        });
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(rooms.into_iter().map(|room| room.into_inner().unwrap_or_else(PoisonError::into_inner)));
        Ok(())
    }
}

/// The elements of a fresh array, `size` at a time; as many empty ones as there are units where that is 0.
fn chunks(array: &mut Array4<f32>, size: usize) -> impl Iterator<Item = &mut [f32]> {
    // A fresh array is contiguous.
    array.as_slice_mut().unwrap_or_default().chunks_mut(size.max(1))
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

fn check(tensor: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { tensor: tensor.to_owned(), expected: format!("{expected:?}"), found: format!("{found:?}") })
}

//! What a case is measured on: what score mods and hops read, and q, k and v as the spec stores them, and in f32 for whoever reads nothing else.

use half::{bf16, f16};
use ndarray::{Array1, Array4, s};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::inputs::InputTensors;
use super::tensors::{Extents, Files, Tensors};
use crate::compiler::Compiled;
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::spec::{self, PatternSpec};
use crate::tune::{Call, Callable};

/// q, k, v, and what score mods and hops read.
pub struct Inputs {
    /// In f32, whose numbers a 16-bit spec stores exactly: for the interpreter and the baselines.
    pub wide: Tensors,
    /// What the score mods and the hops read.
    pub of_mods: InputTensors,
    stored: Stored,
}

/// What the kernel reads.
enum Stored {
    /// [`Inputs::wide`] itself.
    F32,
    Bf16(Tensors<bf16>),
    F16(Tensors<f16>),
}

impl Inputs {
    /// Numbers that look like those of a layer: independent, mean 0, variance 1, the same on every machine.
    ///
    /// # Errors
    /// Where an index of a score mod may leave its input.
    pub fn random(spec: &PatternSpec, extents: Extents, seed: u64) -> Result<Self> {
        let wide = random_tensors(spec, extents, seed);
        let of_mods = random_inputs(spec, extents, seed)?;
        Ok(match spec.dtype {
            Dtype::F32 => Self { wide, of_mods, stored: Stored::F32 },
            Dtype::Bf16 => Self::of(rounded(&wide), of_mods, Stored::Bf16),
            Dtype::F16 => Self::of(rounded(&wide), of_mods, Stored::F16),
        })
    }

    /// From files that were checked against the spec.
    ///
    /// # Errors
    /// [`crate::Error::Input`] when one cannot be read.
    pub fn read(spec: &PatternSpec, files: &Files, extents: Extents) -> Result<Self> {
        let of_mods = random_inputs(spec, extents, 0)?;
        Ok(match spec.dtype {
            Dtype::F32 => Self { wide: files.read()?, of_mods, stored: Stored::F32 },
            Dtype::Bf16 => Self::of(files.read()?, of_mods, Stored::Bf16),
            Dtype::F16 => Self::of(files.read()?, of_mods, Stored::F16),
        })
    }

    /// Refuses what does not fit in memory: q, k, v and the output, and in 16 bits all of them in f32 too.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn check_memory(spec: &PatternSpec, extents: Extents, limit: u64) -> Result<()> {
        let copies = if spec.dtype.is_f32() { 1 } else { 3 };
        let given = extents.bytes(spec).saturating_mul(copies);
        if given > limit {
            return Err(Error::Memory { what: "holding q, k, v and the output".into(), given, limit });
        }
        Ok(())
    }

    fn of<T: Element>(tensors: Tensors<T>, of_mods: InputTensors, stored: fn(Tensors<T>) -> Stored) -> Self {
        Self { wide: tensors.widened(), of_mods, stored: stored(tensors) }
    }

    /// One call of the kernel; its output in f32.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn first(&self, compiled: &Compiled) -> Result<Array4<f32>> {
        let inputs = &self.of_mods.views();
        match &self.stored {
            Stored::F32 => first(compiled, &self.wide, inputs),
            Stored::Bf16(tensors) => first(compiled, tensors, inputs),
            Stored::F16(tensors) => first(compiled, tensors, inputs),
        }
    }
}

impl Callable for Inputs {
    fn call<'a>(&'a self, compiled: &'a Compiled) -> Call<'a> {
        let inputs = self.of_mods.views();
        match &self.stored {
            Stored::F32 => call(compiled, &self.wide, inputs),
            Stored::Bf16(tensors) => call(compiled, tensors, inputs),
            Stored::F16(tensors) => call(compiled, tensors, inputs),
        }
    }
}

fn first<T: Element>(compiled: &Compiled, tensors: &Tensors<T>, inputs: &spec::Inputs<'_>) -> Result<Array4<f32>> {
    let Tensors { q, k, v } = tensors;
    Ok(compiled.kernel.forward_with(q.view(), k.view(), v.view(), inputs)?.out.mapv(T::widen))
}

fn call<'a, T: Element>(compiled: &'a Compiled, tensors: &'a Tensors<T>, inputs: spec::Inputs<'a>) -> Call<'a> {
    let Tensors { q, k, v } = tensors;
    let kernel = &compiled.kernel;
    let plan = kernel.plan();
    let (heads, q_len) = plan.outer();
    let mut out = aligned_zeros::<T>((q.dim().0, heads, q_len, plan.shape.value_dim));
    Box::new(move || kernel.forward_into_with(q.view(), k.view(), v.view(), &inputs, &mut out.view_mut(), None))
}

/// Zeros that start at a cache line, as a tensor library would place them: an allocator's own 16 bytes cost every
/// contender that reads whole vectors some 3 %.
fn aligned_zeros<T: Element>(shape: (usize, usize, usize, usize)) -> Array4<T> {
    const LINE: usize = 64;
    let len = shape.0 * shape.1 * shape.2 * shape.3;
    let wide = Array1::<T>::default(len + LINE / size_of::<T>());
    let first = (LINE - wide.as_ptr().addr() % LINE) % LINE / size_of::<T>();
    let line = wide.slice_move(s![first..first + len]);
    // Contiguous, so the shape always fits without a copy; a copy would only lose the alignment.
    line.into_shape_with_order(shape).unwrap_or_else(|_| Array4::default(shape))
}

fn random_tensors(spec: &PatternSpec, extents: Extents, seed: u64) -> Tensors {
    let Extents { batch, q_len, kv_len } = extents;
    let tensor = |stream: u64, heads: usize, length: usize, width: usize| {
        let mut number = normal(seed, stream);
        let mut tensor = aligned_zeros((batch, heads, length, width));
        tensor.map_inplace(|x| *x = number());
        tensor
    };
    Tensors {
        q: tensor(0, spec.heads, q_len, spec.head_dim),
        k: tensor(1, spec.kv_heads, kv_len, spec.head_dim),
        v: tensor(2, spec.kv_heads, kv_len, spec.value_dim),
    }
}

/// Numbers of mean 0 and variance 1, the same on every machine.
fn normal(seed: u64, stream: u64) -> impl FnMut() -> f32 + use<> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    move || {
        // Four uniform numbers of variance 1/12 add up to something close to normal.
        let bits = random.next_u64();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f32 / 65_535.0 - 2.0) * 3.0_f32.sqrt()
    }
}

/// Inputs of score mods, of mean 0 and variance 1, and such of the hops as a layer might have.
fn random_inputs(spec: &PatternSpec, extents: Extents, seed: u64) -> Result<InputTensors> {
    // Streams 0 to 2 are those of q, k and v.
    InputTensors::made_up(spec, extents.q_len, extents.kv_len, |i| Box::new(normal(seed, 3 + i as u64)))
}

/// The same numbers, rounded.
fn rounded<T: Element>(tensors: &Tensors) -> Tensors<T> {
    let round = |tensor: &Array4<f32>| {
        let mut rounded = aligned_zeros(tensor.dim());
        rounded.zip_mut_with(tensor, |to, &from| *to = T::nearest(from));
        rounded
    };
    Tensors { q: round(&tensors.q), k: round(&tensors.k), v: round(&tensors.v) }
}

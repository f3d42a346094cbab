//! q, k and v for a spec: read from `.npy` files, checked against it first.

use std::path::{Path, PathBuf};

use ndarray::Array4;

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::npy;
use crate::spec::PatternSpec;

/// Axes of q, k, v and the output.
pub const AXES: [&str; 4] = ["batch", "heads", "length", "width"];

/// Where q, k and v are.
#[derive(Debug, Clone)]
pub struct Files {
    /// `[batch, heads, q_len, head_dim]`
    pub q: PathBuf,
    /// `[batch, kv_heads, kv_len, head_dim]`
    pub k: PathBuf,
    /// `[batch, kv_heads, kv_len, value_dim]`
    pub v: PathBuf,
}

/// Shapes of a problem, taken from q and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extents {
    /// Batch size.
    pub batch: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
}

/// q, k and v.
#[derive(Debug, Clone)]
pub struct Tensors<T = f32> {
    /// `[batch, heads, q_len, head_dim]`
    pub q: Array4<T>,
    /// `[batch, kv_heads, kv_len, head_dim]`
    pub k: Array4<T>,
    /// `[batch, kv_heads, kv_len, value_dim]`
    pub v: Array4<T>,
}

impl<T: Element> Tensors<T> {
    /// The same numbers in f32.
    pub fn widened(&self) -> Tensors {
        Tensors { q: self.q.mapv(T::widen), k: self.k.mapv(T::widen), v: self.v.mapv(T::widen) }
    }
}

impl Files {
    /// Looks at the headers alone: do the tensors fit the spec and each other?
    ///
    /// # Errors
    /// [`Error::Input`] for a file that is no `.npy` of the spec's `dtype` in C order, [`Error::Shape`] for one that does not fit.
    pub fn check(&self, spec: &PatternSpec) -> Result<Extents> {
        let q = npy::check(&self.q, &AXES, spec.dtype)?.shape;
        let k = npy::check(&self.k, &AXES, spec.dtype)?.shape;
        let v = npy::check(&self.v, &AXES, spec.dtype)?.shape;
        let extents = Extents { batch: q[0], q_len: q[2], kv_len: k[2] };
        let Extents { batch, q_len, kv_len } = extents;
        fits(
            "q",
            &self.q,
            &q,
            [("batch", batch), ("heads", spec.heads), ("q_len", q_len), ("head_dim", spec.head_dim)],
        )?;
        fits(
            "k",
            &self.k,
            &k,
            [("batch", batch), ("kv_heads", spec.kv_heads), ("kv_len", kv_len), ("head_dim", spec.head_dim)],
        )?;
        fits(
            "v",
            &self.v,
            &v,
            [("batch", batch), ("kv_heads", spec.kv_heads), ("kv_len", kv_len), ("value_dim", spec.value_dim)],
        )?;
        Ok(extents)
    }

    /// Reads what [`check`](Self::check) has accepted for a spec of `T`.
    ///
    /// # Errors
    /// [`Error::Input`] when a file cannot be read.
    pub fn read<T: Element>(&self) -> Result<Tensors<T>> {
        Ok(Tensors { q: npy::read(&self.q)?, k: npy::read(&self.k)?, v: npy::read(&self.v)? })
    }
}

/// Refuses a shape that is not the expected one.
///
/// # Errors
/// [`Error::Shape`].
pub fn fits(name: &str, path: &Path, found: &[usize], expected: [(&str, usize); 4]) -> Result<()> {
    if found.iter().copied().eq(expected.iter().map(|&(_, extent)| extent)) {
        return Ok(());
    }
    let axes: Vec<String> = expected.iter().map(|(axis, extent)| format!("{axis} {extent}")).collect();
    Err(Error::Shape {
        tensor: format!("{name} ({})", path.display()),
        expected: format!("[{}]", axes.join(", ")),
        found: format!("{found:?}"),
    })
}

impl Extents {
    /// Bytes of q, k, v and the output together.
    pub fn bytes(&self, spec: &PatternSpec) -> u64 {
        let element = spec.dtype.bytes() as u64;
        let product = |extents: [usize; 4]| {
            extents.iter().fold(element, |product, &extent| product.saturating_mul(extent as u64))
        };
        let Self { batch, q_len, kv_len } = *self;
        [
            product([batch, spec.heads, q_len, spec.head_dim]),
            product([batch, spec.kv_heads, kv_len, spec.head_dim]),
            product([batch, spec.kv_heads, kv_len, spec.value_dim]),
            product([batch, spec.heads, q_len, spec.value_dim]),
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// Refuses tensors that do not fit in memory.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn check_memory(&self, spec: &PatternSpec, limit: u64) -> Result<()> {
        let given = self.bytes(spec);
        if given > limit {
            return Err(Error::Memory { what: "holding q, k, v and the output".into(), given, limit });
        }
        Ok(())
    }
}

//! Results that are sums in f32, in memory of the caller's or of their own.

use ndarray::{Array4, ArrayViewMut4, Zip};

use super::memory::zeros;
use super::nest::{TensorAt, Tensors};
use super::pointer::Pointer;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::program::Tensor;

/// A result `[batch, heads, rows, width]` of `T`. Where it goes into a tensor of the caller that holds f32 in order, sums are
/// made there; otherwise in memory of their own, and rounded at the end.
struct ResultTensor<'a, T> {
    sums: Option<Array4<f32>>,
    given: Option<ArrayViewMut4<'a, T>>,
}

impl<'a, T: Element> ResultTensor<'a, T> {
    /// A new tensor, of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], which calls the tensor `what`.
    fn new(what: &str, dim: [usize; 4]) -> Result<Self> {
        Ok(Self { sums: Some(zeros(what, dim)?), given: None })
    }

    /// A tensor of the caller, whatever it holds.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape than `dim`, and those of [`Self::new`].
    fn into(what: &str, given: ArrayViewMut4<'a, T>, dim: [usize; 4]) -> Result<Self> {
        if given.shape() != dim {
            let (expected, found) = (format!("{dim:?}"), format!("{:?}", given.shape()));
            return Err(Error::Shape { tensor: what.to_owned(), expected, found });
        }
        let in_place = T::DTYPE.is_f32() && given.is_standard_layout();
        let sums = if in_place { None } else { Some(zeros(what, dim)?) };
        Ok(Self { sums, given: Some(given) })
    }

    /// The f32 that kernels write, in order.
    fn tensor(&mut self) -> TensorAt<'_> {
        let dim = self.sums.as_ref().map(Array4::dim).or(self.given.as_ref().map(ArrayViewMut4::dim));
        let base = match (&mut self.sums, &mut self.given) {
            (Some(sums), _) => Pointer::to(sums.as_slice_mut().unwrap_or_default()),
            (None, Some(given)) => Pointer::to(given.as_slice_mut().unwrap_or_default()),
            (None, None) => Pointer::NULL,
        };
        TensorAt::contiguous(base, dim.unwrap_or_default())
    }

    /// The tensor, if it is a new one; otherwise the caller has it, and what is given is empty.
    fn finish(self) -> Array4<T> {
        match (self.sums, self.given) {
            (Some(sums), None) => sums.mapv_into_any(T::nearest),
            (Some(sums), Some(mut given)) => {
                Zip::from(&mut given).and(&sums).for_each(|to, sum| *to = T::nearest(*sum));
                Array4::default((0, 0, 0, 0))
            }
            (None, _) => Array4::default((0, 0, 0, 0)),
        }
    }
}

/// The gradients of q, k and v.
pub(super) struct GradientTensors<'a, T>([ResultTensor<'a, T>; 3]);

/// Which tensors of a call they are, and what they are called when they are refused.
const GRADIENTS: [(Tensor, &str); 3] =
    [(Tensor::GradQ, "the gradient of q"), (Tensor::GradK, "the gradient of k"), (Tensor::GradV, "the gradient of v")];

impl<'a, T: Element> GradientTensors<'a, T> {
    /// New ones, or in tensors of the caller.
    ///
    /// # Errors
    /// Those of [`ResultTensor::new`] and [`ResultTensor::into`].
    pub fn new(into: Option<[ArrayViewMut4<'a, T>; 3]>, dims: [[usize; 4]; 3]) -> Result<Self> {
        let [q, k, v] = match into {
            Some(into) => into.map(Some),
            None => [None, None, None],
        };
        let no_queries = dims[0][2] == 0;
        let make = |at: usize, given: Option<ArrayViewMut4<'a, T>>| match given {
            // Nothing runs that would clear them.
            Some(mut given) if no_queries => {
                given.fill(T::default());
                ResultTensor::into(GRADIENTS[at].1, given, dims[at])
            }
            Some(given) => ResultTensor::into(GRADIENTS[at].1, given, dims[at]),
            None => ResultTensor::new(GRADIENTS[at].1, dims[at]),
        };
        Ok(Self([make(0, q)?, make(1, k)?, make(2, v)?]))
    }

    /// Those that hold something, so that whoever adds to them clears them before.
    pub fn used(&self) -> Vec<Tensor> {
        self.0
            .iter()
            .zip(GRADIENTS)
            .filter(|(result, _)| result.sums.is_none())
            .map(|(_, (tensor, _))| tensor)
            .collect()
    }

    /// Puts them among the tensors of a call.
    pub fn set<'t>(&'t mut self, tensors: &mut Tensors<'t>) {
        for (result, (tensor, _)) in self.0.iter_mut().zip(GRADIENTS) {
            tensors.set(tensor, result.tensor());
        }
    }

    /// Those that are new; in their place are empty ones where the caller has them.
    pub fn finish(self) -> [Array4<T>; 3] {
        self.0.map(ResultTensor::finish)
    }
}

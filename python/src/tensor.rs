//! Tensors of Python's as views, and arrays of Rust's as numpy's.
#![allow(unsafe_code)]

use hopweave::{Error, Result};
use ndarray::{Array4, ArrayView, ArrayViewD, Dimension, IxDyn, ShapeBuilder};
use numpy::IntoPyArray;
use pyo3::prelude::*;

use hopweave::half::vec::HalfFloatVecExt;
pub use hopweave::half::{bf16, f16};

/// A tensor that Python keeps alive during the call: the address of its first element, its shape, and its strides in
/// elements.
#[derive(Debug, Clone, FromPyObject)]
pub struct Tensor(usize, Vec<usize>, Vec<isize>);

impl Tensor {
    /// The tensor as a view of `T`, which the Python half has compared with its dtype.
    ///
    /// # Errors
    /// [`Error::Shape`] for strides that are no view.
    pub fn view<T>(&self, name: &str) -> Result<ArrayViewD<'_, T>> {
        let Self(address, shape, strides) = self;
        let refuse =
            |found: String| Error::Shape { tensor: name.to_owned(), expected: "elements in memory".to_owned(), found };
        if shape.len() != strides.len() {
            return Err(refuse(format!("{} axes and {} strides", shape.len(), strides.len())));
        }
        if shape.contains(&0) {
            return ArrayViewD::from_shape(IxDyn(shape), &[]).map_err(|error| refuse(error.to_string()));
        }
        if *address == 0 {
            return Err(refuse("no memory".to_owned()));
        }
        // A view starts at its lowest address and is turned round afterwards.
        let mut first = *address;
        for (&n, &stride) in shape.iter().zip(strides) {
            if stride < 0 {
                first = first.wrapping_add_signed((n as isize - 1) * stride * size_of::<T>() as isize);
            }
        }
        let steps: Vec<usize> = strides.iter().map(|stride| stride.unsigned_abs()).collect();
        let pointer = std::ptr::with_exposed_provenance::<T>(first);
        if !pointer.is_aligned() {
            return Err(refuse(format!("an address that is no multiple of {}", align_of::<T>())));
        }
        // SAFETY: address, shape and strides are those of a numpy array or torch tensor of T that the calling Python
        // function holds; nothing writes it meanwhile that a program without data races would write.
        let mut view = unsafe { ArrayViewD::from_shape_ptr(IxDyn(shape).strides(IxDyn(&steps)), pointer) };
        for (axis, &stride) in strides.iter().enumerate() {
            if stride < 0 {
                view.invert_axis(ndarray::Axis(axis));
            }
        }
        Ok(view)
    }

    /// The same with a number of axes that is known.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of axes, and those of [`Self::view`].
    pub fn fixed<T, D: Dimension>(&self, name: &str) -> Result<ArrayView<'_, T, D>> {
        let view = self.view::<T>(name)?;
        view.into_dimensionality().map_err(|_| Error::Shape {
            tensor: name.to_owned(),
            expected: format!("{} axes", D::NDIM.unwrap_or(0)),
            found: format!("{:?}", self.1),
        })
    }
}

/// Elements that become a numpy array: f32 as it is, 16-bit floats as their bits.
pub trait Stored: Sized {
    /// The array, without a copy.
    fn array(py: Python<'_>, from: Array4<Self>) -> Bound<'_, PyAny>;
}

impl Stored for f32 {
    fn array(py: Python<'_>, from: Array4<Self>) -> Bound<'_, PyAny> {
        from.into_pyarray(py).into_any()
    }
}

macro_rules! half_stored {
    ($type:ty) => {
        impl Stored for $type {
            fn array(py: Python<'_>, from: Array4<Self>) -> Bound<'_, PyAny> {
                let dim = from.raw_dim();
                let (elements, _) = from.into_raw_vec_and_offset();
                let bits: Vec<u16> = elements.reinterpret_into();
                // What a call gives is in standard layout.
                Array4::from_shape_vec(dim, bits).unwrap_or_default().into_pyarray(py).into_any()
            }
        }
    };
}

half_stored!(bf16);
half_stored!(f16);

//! Tensors of Python's as views.
#![allow(unsafe_code)]

use std::ops::Range;

use hopweave::{Error, Result};
use ndarray::{ArrayView, ArrayViewD, ArrayViewMut, ArrayViewMutD, Dimension, IxDyn, ShapeBuilder};
use pyo3::prelude::*;

use crate::ShapeError;
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

    /// The tensor as a view that is written.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of axes, and for strides by which elements overlap or go backwards.
    pub fn fixed_mut<T, D: Dimension>(&mut self, name: &str) -> Result<ArrayViewMut<'_, T, D>> {
        let Self(address, shape, strides) = &*self;
        let refuse = |expected: &str, found: String| Error::Shape {
            tensor: name.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let axes = || refuse(&format!("{} axes", D::NDIM.unwrap_or(0)), format!("{shape:?}"));
        if shape.len() != strides.len() {
            return Err(refuse("elements in memory", format!("{} axes and {} strides", shape.len(), strides.len())));
        }
        if shape.contains(&0) {
            let empty = ArrayViewMutD::from_shape(IxDyn(shape), &mut []);
            return empty.ok().and_then(|empty| empty.into_dimensionality().ok()).ok_or_else(axes);
        }
        let pointer = std::ptr::with_exposed_provenance_mut::<T>(*address);
        if pointer.is_null() || !pointer.is_aligned() {
            return Err(refuse("elements in memory", format!("the address {address}")));
        }
        // From the innermost axis out, each must step over all that lies within.
        let mut inwards: Vec<(usize, usize)> = Vec::new();
        for (&n, &stride) in shape.iter().zip(strides.iter()).filter(|&(&n, _)| n > 1) {
            match usize::try_from(stride) {
                Ok(stride) => inwards.push((stride, n)),
                Err(_) => return Err(refuse("strides of 0 or more", format!("strides {strides:?}"))),
            }
        }
        inwards.sort_unstable();
        let mut last = 0;
        for (stride, n) in inwards {
            if stride <= last {
                return Err(refuse(
                    "elements that do not overlap",
                    format!("shape {shape:?} with strides {strides:?}"),
                ));
            }
            last += (n - 1) * stride;
        }
        let steps: Vec<usize> = strides.iter().map(|stride| stride.unsigned_abs()).collect();
        // SAFETY: address, shape and strides are those of a numpy array or torch tensor of T that the calling Python function
        // holds; every bit pattern is a T, and no two elements share memory. Nothing else reads or writes it meanwhile:
        // the caller has compared it with the call's other tensors ([`check_apart`]), and a program without data races does not.
        let view = unsafe { ArrayViewMutD::from_shape_ptr(IxDyn(shape).strides(IxDyn(&steps)), pointer) };
        view.into_dimensionality().map_err(|_| axes())
    }

    /// The addresses from its first element to behind its last, of `size` bytes each.
    pub fn span(&self, size: usize) -> Range<usize> {
        let Self(address, shape, strides) = self;
        if shape.contains(&0) {
            return *address..*address;
        }
        let mut span = *address..address.wrapping_add(size);
        for (&n, &stride) in shape.iter().zip(strides) {
            let end = (n as isize - 1).wrapping_mul(stride).wrapping_mul(size as isize);
            match end < 0 {
                true => span.start = span.start.wrapping_add_signed(end),
                false => span.end = span.end.wrapping_add_signed(end),
            }
        }
        span
    }
}

/// Checks that what a call writes shares no memory with anything else of the call.
///
/// # Errors
/// `ShapeError`, which names both.
pub fn check_apart(written: &[(&str, Range<usize>)], read: &[(&str, Range<usize>)]) -> PyResult<()> {
    for (at, (name, span)) in written.iter().enumerate() {
        for (other, of_other) in read.iter().chain(&written[..at]) {
            if !span.is_empty() && !of_other.is_empty() && span.start < of_other.end && of_other.start < span.end {
                return Err(ShapeError::new_err(format!("{name}: overlaps {other}; expected memory of its own")));
            }
        }
    }
    Ok(())
}

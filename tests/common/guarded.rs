//! Tensors that end, or start, at a page that may not be touched: one element too far is a fault, and the test dies.

use hopweave::Element;
use hopweave::compiler::Compiled;
use hopweave::runtime::Output;
use hopweave::spec::Inputs;
use hopweave::tiles::guard::GuardedBuffer;
use ndarray::{Array3, Array4, ArrayView4, ArrayViewMut3, ArrayViewMut4};

/// Where a tensor touches a guard page; there is one on either side.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    Start,
    End,
}

impl Place {
    pub const ALL: [Self; 2] = [Self::Start, Self::End];

    pub fn buffer<T: Copy>(self, data: &[T]) -> GuardedBuffer<T> {
        match self {
            Self::Start => GuardedBuffer::at_start(data),
            Self::End => GuardedBuffer::new(data),
        }
    }
}

/// A copy of a tensor at a guard page.
pub struct Guarded<T: Copy>(GuardedBuffer<T>, [usize; 4]);

impl<T: Copy> Guarded<T> {
    pub fn new(tensor: &Array4<T>, place: Place) -> Self {
        let (a, b, c, d) = tensor.dim();
        let tensor = tensor.as_standard_layout();
        Self(place.buffer(tensor.as_slice().expect("a contiguous tensor")), [a, b, c, d])
    }

    pub fn view(&self) -> ArrayView4<'_, T> {
        ArrayView4::from_shape(self.1, &self.0).expect("a view")
    }
}

/// The kernel's result, with all tensors at guard pages, the outputs too.
pub fn forward<T: Element>(compiled: &Compiled, tensors: [&Array4<T>; 3], place: Place) -> Output<T> {
    forward_with(compiled, tensors, &Inputs::none(), place)
}

/// The same with what score mods read.
pub fn forward_with<T: Element>(
    compiled: &Compiled,
    tensors: [&Array4<T>; 3],
    inputs: &Inputs<'_>,
    place: Place,
) -> Output<T> {
    let [q, k, v] = tensors.map(|tensor| Guarded::new(tensor, place));
    let (b, h, n, _) = tensors[0].dim();
    let width = tensors[2].dim().3;
    let mut out = place.buffer(&vec![T::nearest(f32::NAN); b * h * n * width]);
    let mut lse = place.buffer(&vec![f32::NAN; b * h * n]);
    let result = compiled.kernel.forward_into_with(
        q.view(),
        k.view(),
        v.view(),
        inputs,
        &mut ArrayViewMut4::from_shape((b, h, n, width), &mut out).expect("a view"),
        Some(&mut ArrayViewMut3::from_shape((b, h, n), &mut lse).expect("a view")),
    );
    result.unwrap_or_else(|error| panic!("{error}"));
    Output {
        out: Array4::from_shape_vec((b, h, n, width), out.to_vec()).expect("an array"),
        lse: Array3::from_shape_vec((b, h, n), lse.to_vec()).expect("an array"),
    }
}

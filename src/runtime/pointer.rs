//! Addresses of tensors and workspace that a call has borrowed, and the two things that are done with them.
//!
//! Units of work run on many threads and write different rows of one tensor, which no slice can say. A [`Pointer`] says
//! what it can: how long the memory is borrowed.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use crate::codegen::KernelArgs;
use crate::jit::Linked;

/// An address within memory that is borrowed for `'a`. Reading and writing there is up to whoever enters a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pointer<'a>(*mut u8, PhantomData<&'a ()>);

// SAFETY: a pointer is a number until somebody enters a kernel with it, who vouches for what all threads do there.
unsafe impl Send for Pointer<'_> {}
// SAFETY: as above.
unsafe impl Sync for Pointer<'_> {}

impl<'a> Pointer<'a> {
    /// No address.
    pub const NULL: Self = Self(std::ptr::null_mut(), PhantomData);

    /// To memory that kernels may write.
    pub fn to<T>(memory: &'a mut [T]) -> Self {
        Self(memory.as_mut_ptr().cast(), PhantomData)
    }

    /// To row 0 of memory that is borrowed for writing, by its address.
    pub const fn to_rows<T>(first: *mut T) -> Self {
        Self(first.cast(), PhantomData)
    }

    /// To memory that kernels only read.
    pub const fn from<T>(first: *const T) -> Self {
        Self(first.cast_mut().cast(), PhantomData)
    }

    /// `bytes` further, or back; the result may lie outside the memory, where nothing is touched.
    pub const fn at(self, bytes: isize) -> Self {
        Self(self.0.wrapping_offset(bytes), PhantomData)
    }

    pub const fn is_null(self) -> bool {
        self.0.is_null()
    }

    pub const fn get(self) -> *mut u8 {
        self.0
    }
}

// SAFETY: an address alone; what is read there is borrowed for the call that the list was made for.
unsafe impl Send for super::Address {}
// SAFETY: as above.
unsafe impl Sync for super::Address {}

/// Runs a function of a kernel: the one place where machine code is entered.
///
/// # Safety
/// `args` holds what [`Linked::call`] asks for: tensors whose shapes, strides and inputs were checked against the plan of
/// the kernel and that stay borrowed during the call, tables of the same kernel, workspace of the plan's layout that no
/// other unit uses now; no other unit writes the same rows.
pub(super) unsafe fn enter(kernel: &Linked, function: usize, args: &KernelArgs) {
    // SAFETY: the caller's contract.
    unsafe { kernel.call(function, args) }
}

/// Moves bytes within workspace.
///
/// # Safety
/// Both regions lie in workspace of the caller that nobody else uses now.
pub(super) unsafe fn slide(from: Pointer<'_>, to: Pointer<'_>, bytes: usize) {
    // SAFETY: the caller's contract.
    unsafe { std::ptr::copy(from.0, to.0, bytes) }
}

/// Sets bytes of workspace to 0.
///
/// # Safety
/// The region lies in workspace of the caller that nobody else uses now.
pub(super) unsafe fn clear(at: Pointer<'_>, bytes: usize) {
    // SAFETY: the caller's contract.
    unsafe { std::ptr::write_bytes(at.0, 0, bytes) }
}

/// Floats of workspace or of a tensor that is written.
///
/// # Safety
/// The region is aligned for floats and holds so many, and nobody else uses it while the slice lives.
pub(super) unsafe fn floats<'a>(base: *mut u8, count: usize) -> &'a mut [f32] {
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts_mut(base.cast(), count) }
}

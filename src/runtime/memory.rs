//! Memory that grows with the tensors of a call.
//!
//! Where the system has not so much, the call is refused: an allocation that fails elsewhere ends the process.

use memmap2::MmapMut;
use ndarray::{Array, Dimension, IntoDimension};
use zerocopy::FromZeros;

use super::pointer::Pointer;
use crate::error::{Error, Result};

/// What scratch is called when it is refused.
const SCRATCH: &str = "scratch";

/// A tensor of zeros. Its pages come from the system as they are written, by whoever writes them.
///
/// # Errors
/// [`Error::OutOfMemory`], which calls the tensor `what`.
pub(crate) fn zeros<T: FromZeros, S: IntoDimension>(what: &str, shape: S) -> Result<Array<T, S::Dim>> {
    let shape = shape.into_dimension();
    let elements = shape.size_checked();
    let refused = || refused(what, elements.unwrap_or(usize::MAX).saturating_mul(size_of::<T>()));
    let data = elements.and_then(|elements| T::new_vec_zeroed(elements).ok()).ok_or_else(refused)?;
    Array::from_shape_vec(shape, data).map_err(|_| refused())
}

/// Makes a list of scratch `len` long; what it holds is of no worth.
pub(super) fn grow<T: Copy + Default>(list: &mut Vec<T>, len: usize) -> Result<()> {
    let more = len.saturating_sub(list.len());
    list.try_reserve_exact(more).map_err(|_| refused(SCRATCH, len.saturating_mul(size_of::<T>())))?;
    list.resize(len, T::default());
    Ok(())
}

fn refused(what: &str, bytes: usize) -> Error {
    Error::OutOfMemory { what: what.to_owned(), given: bytes as u64 }
}

/// Zeroed memory of whole pages, of large ones where it is large.
#[derive(Debug)]
pub(super) struct Buffer(MmapMut);

/// Bytes of a large page, and from how many bytes on a buffer is worth one.
const LARGE_PAGE: usize = 2 << 20;
const LARGE_FROM: usize = LARGE_PAGE / 8;

impl Buffer {
    pub fn new(bytes: usize) -> Result<Self> {
        // Room to begin where a large page begins, and to end where one ends; what is not touched takes no memory.
        let room = if bytes < LARGE_FROM { bytes.max(1) } else { bytes.next_multiple_of(LARGE_PAGE) + LARGE_PAGE };
        let map = MmapMut::map_anon(room).map_err(|_| refused(SCRATCH, bytes))?;
        // P and Z are read all over, page after page: large pages make five hops over scattered edges up to 4 %
        // faster. Advice that the system does not take is no harm.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(map))
    }

    pub fn pointer(&mut self) -> Pointer<'_> {
        let large = self.0.len() >= LARGE_FROM;
        let start = Pointer::to(&mut self.0[..]);
        if !large {
            return start;
        }
        let ahead = start.get().addr().next_multiple_of(LARGE_PAGE) - start.get().addr();
        start.at(ahead as isize)
    }
}

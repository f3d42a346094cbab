//! Test buffers that end at a guard page: one element read or written too far is a fault.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, DerefMut};

/// Plain numbers whose last element ends at a page that may not be touched.
#[derive(Debug)]
pub struct GuardedBuffer<T: Copy> {
    base: *mut libc::c_void,
    mapped: usize,
    data: *mut T,
    len: usize,
}

impl<T: Copy> GuardedBuffer<T> {
    /// Copies `data` to the end of a mapping of its own.
    ///
    /// # Panics
    /// When the system gives no memory: this type is for tests.
    pub fn new(data: &[T]) -> Self {
        let page = page_size();
        let bytes = size_of_val(data);
        let guard = bytes.next_multiple_of(page);
        let mapped = guard + page;
        // SAFETY: a fresh private mapping; the guard page is its last.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert!(base != libc::MAP_FAILED, "mmap of {mapped} bytes: {}", io::Error::last_os_error());
            let done = libc::mprotect(base.byte_add(guard), page, libc::PROT_NONE);
            assert!(done == 0, "mprotect: {}", io::Error::last_os_error());
            base
        };
        // SAFETY: `guard - bytes` lies in the mapping, is a multiple of T's size and so of its alignment for the
        // number types used; the copy ends where the guard page starts.
        let data_at = unsafe {
            let at = base.byte_add(guard - bytes).cast::<T>();
            std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len());
            at
        };
        Self { base, mapped, data: data_at, len: data.len() }
    }
}

/// Bytes of a page of this system.
fn page_size() -> usize {
    // SAFETY: reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(65536)
}

impl<T: Copy> Deref for GuardedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements were copied there, and the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl<T: Copy> DerefMut for GuardedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl<T: Copy> Drop for GuardedBuffer<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows it any more.
        unsafe { libc::munmap(self.base, self.mapped) };
    }
}

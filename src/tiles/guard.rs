//! Test buffers between guard pages: one element read or written too far is a fault.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, DerefMut};

/// Plain numbers that end, or start, at a page that may not be touched.
#[derive(Debug)]
pub struct GuardedBuffer<T: Copy> {
    base: *mut libc::c_void,
    mapped: usize,
    data: *mut T,
    len: usize,
}

impl<T: Copy> GuardedBuffer<T> {
    /// Copies `data` to the end of a mapping of its own: its last element ends at a guard page.
    ///
    /// # Panics
    /// When the system gives no memory: this type is for tests.
    pub fn new(data: &[T]) -> Self {
        let bytes = size_of_val(data);
        Self::with(data, bytes.next_multiple_of(page_size()) - bytes)
    }

    /// Copies `data` to the start of a mapping of its own: its first element starts at a guard page.
    ///
    /// # Panics
    /// When the system gives no memory.
    pub fn at_start(data: &[T]) -> Self {
        Self::with(data, 0)
    }

    /// Guard page, `before` bytes, `data`, the rest of its last page, guard page.
    fn with(data: &[T], before: usize) -> Self {
        let page = page_size();
        let room = size_of_val(data).next_multiple_of(page);
        let mapped = room + 2 * page;
        // SAFETY: a fresh private mapping; its first and its last page are the guards.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert!(base != libc::MAP_FAILED, "mmap of {mapped} bytes: {}", io::Error::last_os_error());
            for guard in [0, page + room] {
                let done = libc::mprotect(base.byte_add(guard), page, libc::PROT_NONE);
                assert!(done == 0, "mprotect: {}", io::Error::last_os_error());
            }
            base
        };
        // SAFETY: `before` bytes and the data fill at most the `room` between the guards; `before` is 0 or a
        // multiple of T's size less than a page, and so of its alignment for the number types used.
        let data_at = unsafe {
            let at = base.byte_add(page + before).cast::<T>();
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

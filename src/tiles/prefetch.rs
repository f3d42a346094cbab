//! Prefetches by one set of names. A prefetch never faults, whatever the address, and changes no result.
#![allow(unsafe_code)]

/// Floats in a cache line.
pub(super) const LINE: usize = 16;

/// Fetches the line at `at` into the L1 cache.
#[inline(always)]
pub(super) fn into_l1<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the instruction, and it never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Fetches the line at `at` into the L2 cache.
#[inline(always)]
pub(super) fn into_l2<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the instruction, and it never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

//! A call allocates nothing once it is warm. A binary of its own, with one test: the allocator counts for the whole process.
#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Tensors, compile, families, options, spec_of, strategies};
use hopweave::Element;
use hopweave::compiler::Options;
use hopweave::half::{bf16, f16};
use hopweave::spec::PatternSpec;
use ndarray::{Array3, Array4};

struct Counting;

/// Of all threads.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Of this thread: with one thread, a call is made by the caller alone, and the harness allocates beside it.
    static OWN: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    // A thread at its end has no counter any more.
    let _ = OWN.try_with(|own| own.set(own.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it is; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// One test, so that no other test allocates beside it.
#[test]
fn warm_calls_allocate_nothing() {
    let mixed = "{any: [{window: {radius: 20}}, {global: {tokens: {random: {count: 9, seed: 3}}}}, {random: {keys_per_query: 4, seed: 7}}]}";
    for threads in [1, 2] {
        for pattern in ["causal", mixed] {
            for diffusion in ["{hops: 1}", "{hops: 5, alpha: 0.1}"] {
                allocate_nothing::<f32>(pattern, diffusion, threads);
            }
        }
        allocate_nothing::<bf16>(mixed, "{hops: 1}", threads);
        allocate_nothing::<f16>(mixed, "{hops: 3, alpha: 0.1}", threads);
    }
}

fn allocate_nothing<T: Element>(pattern: &str, diffusion: &str, threads: usize) {
    let (n, calls) = (200, 20);
    let spec = PatternSpec { dtype: T::DTYPE, ..spec_of(pattern, 32, 32, diffusion) };
    for isa in families() {
        for strategy in strategies(&spec, n) {
            let compiled = compile(&spec, n, &Options { threads, ..options(isa, Some(strategy)) });
            // One (batch, head) less than threads takes the other way through `resident`.
            for batch in [1, 2] {
                let Tensors { q, k, v } = Tensors::random(&spec, batch, n, 1);
                let [q, k, v] = [q, k, v].map(|tensor| tensor.mapv(T::nearest));
                let mut out = Array4::default((batch, 2, n, 32));
                let mut lse = Array3::zeros((batch, 2, n));
                let mut call = || {
                    compiled
                        .kernel
                        .forward_into(q.view(), k.view(), v.view(), &mut out.view_mut(), Some(&mut lse.view_mut()))
                        .expect("a result");
                };
                call();
                call();
                let total = || match threads {
                    1 => OWN.get(),
                    _ => ALLOCATIONS.load(Ordering::Relaxed),
                };
                let before = total();
                (0..calls).for_each(|_| call());
                let made = total() - before;
                let what =
                    format!("{} {pattern} {diffusion} {isa} {strategy} batch {batch} threads {threads}", T::DTYPE);
                // Rayon's queue of jobs from outside grows by a block every 63 jobs.
                let most = if threads == 1 { 0 } else { calls * 2 };
                if made > 0 {
                    println!("{made} allocations in {calls} calls: {what}");
                }
                assert!(made <= most, "{made} allocations in {calls} calls: {what}");
            }
        }
    }
}

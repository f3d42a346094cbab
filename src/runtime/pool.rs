//! Threads that calls run on: units of work are handed out to them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::affinity::Affinity;
use crate::error::{Error, Result};

/// Hands units `0..units` to `workers` as they become free.
pub(super) fn spread(
    threads: &rayon::ThreadPool,
    workers: usize,
    units: usize,
    work: impl Fn(usize, usize) + Send + Sync,
) {
    let next = AtomicUsize::new(0);
    on_workers(threads, workers.min(units), |worker| {
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            work(worker, unit);
        }
    });
}

/// Runs `work` once on every worker, and waits for all of them.
pub(super) fn on_workers(threads: &rayon::ThreadPool, workers: usize, work: impl Fn(usize) + Send + Sync) {
    if workers <= 1 {
        work(0);
        return;
    }
    threads.install(|| (0..workers).into_par_iter().with_max_len(1).for_each(work));
}

/// The pool of `threads` threads that calls of kernels run on, made once per number.
///
/// # Errors
/// [`Error::Unsupported`] when the system gives no threads.
pub fn pool(threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    static POOLS: Mutex<Vec<Arc<rayon::ThreadPool>>> = Mutex::new(Vec::new());
    let threads = threads.max(1);
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.iter().find(|pool| pool.current_num_threads() == threads) {
        return Ok(Arc::clone(pool));
    }
    let affinity = Affinity::new(threads);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("hopweave-{index}"))
        .start_handler(move |index| affinity.take(index))
        .build()
        .map_err(|error| Error::unsupported(format!("{threads} threads"), error.to_string()))?;
    pools.push(Arc::new(pool));
    Ok(Arc::clone(&pools[pools.len() - 1]))
}

//! Threads that calls run on: units of work are handed out to them.
//!
//! A call asks a [`Pool`] to enter it several times at once. Which worker an entry is, and so which workspace it has, is
//! claimed here and not said by the pool: a pool that enters too often, too seldom or one after the other costs time and
//! nothing else.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::machine::Affinity;

/// Workers of a call at most, whatever a pool says: each has a workspace of its own.
const MOST_WORKERS: usize = 1024;

/// Threads that kernels run on: rayon's, or those of a program around them (`compiler::Options::pool`).
///
/// # What an implementation owes
/// [`run`](Self::run) calls `work` on some threads, and returns when all these calls have returned. That is all that
/// memory safety rests on, and nothing written in safe Rust can break it: `work` is borrowed for the call alone. The rest is
/// a matter of speed. Results do not depend on how often `work` is called, by whom, or how many calls run at the same time:
/// what no call has done, the thread that called `run` does afterwards, and what comes too late finds nothing to do. No call
/// of `work` waits for another one. A panic of `work` should reach the caller of `run`.
///
/// Kernels are called from many threads, and from threads of the pool itself: `run` must work in both cases, if only by
/// calling `work` once, or not at all.
///
/// # Examples
/// A pool of threads that live as long as a call:
/// ```
/// use std::sync::Arc;
///
/// use hopweave::compiler::{self, Options};
/// use hopweave::runtime::Pool;
/// use ndarray::Array4;
///
/// #[derive(Debug)]
/// struct Scoped;
///
/// impl Pool for Scoped {
///     fn threads(&self) -> usize {
///         2
///     }
///
///     fn run(&self, workers: usize, work: &(dyn Fn() + Sync)) {
///         std::thread::scope(|scope| {
///             (1..workers).for_each(|_| _ = scope.spawn(work));
///             work();
///         });
///     }
/// }
///
/// let spec = hopweave::spec::parse("name: local\nhead_dim: 16\npattern: {window: {radius: 8}}", "local.yaml")?;
/// let on_two = Options { threads: 2, ..Options::default() };
/// let own = compiler::compile(&spec, 500, 500, &on_two)?;
/// let theirs = compiler::compile(&spec, 500, 500, &Options { pool: Some(Arc::new(Scoped)), ..on_two })?;
/// let x = Array4::<f32>::from_shape_fn((1, 1, 500, 16), |(_, _, row, column)| (row * column % 7) as f32);
/// let own = own.kernel.forward(x.view(), x.view(), x.view())?;
/// let theirs = theirs.kernel.forward(x.view(), x.view(), x.view())?;
/// assert_eq!(own.out, theirs.out);
/// # Ok::<(), hopweave::Error>(())
/// ```
pub trait Pool: fmt::Debug + Send + Sync {
    /// Workers that a call shall have, at least 1. Asked once in every call, on the thread that makes it; it need not be
    /// the same each time.
    fn threads(&self) -> usize;

    /// Calls `work` from up to `workers` threads, of which the calling one may be one, and waits for all of them.
    fn run(&self, workers: usize, work: &(dyn Fn() + Sync));
}

impl Pool for rayon::ThreadPool {
    fn threads(&self) -> usize {
        self.current_num_threads()
    }

    fn run(&self, workers: usize, work: &(dyn Fn() + Sync)) {
        self.install(|| (0..workers).into_par_iter().with_max_len(1).for_each(|_| work()));
    }
}

/// Workers that a call on a pool has.
pub(super) fn workers_of(threads: &dyn Pool) -> usize {
    threads.threads().clamp(1, MOST_WORKERS)
}

/// Hands units `0..units` to `workers` as they become free.
pub(super) fn spread(threads: &dyn Pool, workers: usize, units: usize, work: impl Fn(usize, usize) + Send + Sync) {
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

/// Runs `work` once as every worker, and waits for all of them.
pub(super) fn on_workers(threads: &dyn Pool, workers: usize, work: impl Fn(usize) + Send + Sync) {
    if workers <= 1 {
        work(0);
        return;
    }
    // Each number is given out once, so that no two threads are ever the same worker.
    let next = AtomicUsize::new(0);
    let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&worker| worker < workers);
    threads.run(workers, &|| {
        if let Some(worker) = claim() {
            work(worker);
        }
    });
    while let Some(worker) = claim() {
        work(worker);
    }
}

/// Rayon's threads, where the caller has no pool: of the calling process, which may be a child of the one that made them.
#[derive(Debug)]
struct OwnPool {
    /// The process that has the threads of `pool`. A child of `fork` has none of its parent's threads.
    process: u32,
    pool: Arc<rayon::ThreadPool>,
}

impl Pool for OwnPool {
    fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn run(&self, workers: usize, work: &(dyn Fn() + Sync)) {
        if self.process == std::process::id() {
            self.pool.run(workers, work);
        } else if let Ok(pool) = pool(self.threads()) {
            pool.run(workers, work);
        }
    }
}

/// The threads of calls whose caller has no pool.
///
/// # Errors
/// Those of [`pool`].
pub(crate) fn own_pool(threads: usize) -> Result<Arc<dyn Pool>> {
    Ok(Arc::new(OwnPool { process: std::process::id(), pool: pool(threads)? }))
}

/// The pool of `threads` threads that calls of kernels run on, made once per number and process.
///
/// # Errors
/// [`Error::Unsupported`] when the system gives no threads.
pub fn pool(threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    static POOLS: Mutex<Vec<(u32, Arc<rayon::ThreadPool>)>> = Mutex::new(Vec::new());
    let (threads, process) = (threads.max(1), std::process::id());
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, pool)) = pools.iter().find(|(of, pool)| *of == process && pool.current_num_threads() == threads) {
        return Ok(Arc::clone(pool));
    }
    let affinity = Affinity::new(threads);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("hopweave-{index}"))
        .start_handler(move |index| affinity.take(index))
        .build()
        .map_err(|error| Error::unsupported(format!("{threads} threads"), error.to_string()))?;
    let pool = Arc::new(pool);
    pools.push((process, Arc::clone(&pool)));
    Ok(pool)
}

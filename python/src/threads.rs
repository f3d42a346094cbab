//! The threads that calls from Python run on: torch's own OpenMP team where torch is loaded and has one, else rayon's.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::OnceLock;

use hopweave::machine;
use hopweave::runtime::{self, Pool};
use pyo3::prelude::*;

#[cfg(unix)]
use crate::openmp::Teams;

/// The process that imported the module; a child of `fork` is another one, and has none of its threads.
static IMPORTED_BY: OnceLock<u32> = OnceLock::new();

/// Torch's teams, once Python has said where they are.
#[cfg(unix)]
static TEAMS: OnceLock<Teams> = OnceLock::new();

thread_local! {
    /// As many threads as torch would use for the call in progress on this thread; `None` where torch is not loaded.
    static OF_TORCH: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The pool of a kernel.
#[derive(Debug)]
pub struct Threads {
    /// As many as the caller asked for.
    asked: Option<usize>,
    /// As many as there are cores.
    cores: usize,
}

impl Threads {
    pub fn new(asked: Option<usize>, cores: usize) -> Self {
        Self { asked, cores }
    }
}

impl Pool for Threads {
    fn threads(&self) -> usize {
        self.asked.or(OF_TORCH.get()).unwrap_or(self.cores)
    }

    fn run(&self, workers: usize, work: &(dyn Fn() + Sync)) {
        // A team of another size than torch's would be set up anew, and so would torch's after it: those too many find
        // nothing to do.
        #[cfg(unix)]
        if let (Some(of_torch), Some(teams), false) = (OF_TORCH.get(), TEAMS.get(), forked()) {
            return teams.run(workers.max(of_torch), work);
        }
        if let Ok(pool) = runtime::pool(workers.max(self.threads())) {
            pool.run(workers, work);
        }
    }
}

/// Work without the interpreter's lock, `of_torch` threads being torch's. In a child of `fork` it is begun on a thread of
/// a pool of the child's own: rayon's common one has stayed with the parent, and whoever compiles a pattern asks for it.
pub fn detached<R: Send>(py: Python<'_>, of_torch: Option<usize>, work: impl FnOnce() -> R + Send) -> R {
    let work = || {
        let before = OF_TORCH.replace(of_torch);
        let result = work();
        OF_TORCH.set(before);
        result
    };
    py.detach(|| match forked().then(|| runtime::pool(machine::cores())) {
        Some(Ok(pool)) => pool.install(work),
        Some(Err(_)) | None => work(),
    })
}

/// Names the process that imports the module.
pub fn import() {
    IMPORTED_BY.get_or_init(std::process::id);
}

/// Whether this process is a child of the one that imported the module.
#[pyfunction]
pub fn forked() -> bool {
    IMPORTED_BY.get().is_some_and(|&process| process != std::process::id())
}

/// Threads that this process may run at the same time.
#[pyfunction]
pub fn cores() -> usize {
    machine::cores()
}

/// Makes calls use the OpenMP teams of the runtime that the loaded library `torch` enters by the function `entry`; the file of
/// the runtime, or `None` where there is none. The first that is found stays.
#[cfg(unix)]
#[pyfunction]
pub fn use_openmp(torch: PathBuf, entry: &str) -> Option<String> {
    if TEAMS.get().is_none()
        && let Some(teams) = Teams::of(&torch, entry)
    {
        // Whoever comes second has found the same.
        let _ = TEAMS.set(teams);
    }
    TEAMS.get().map(|teams| teams.library.clone())
}

#[cfg(not(unix))]
#[pyfunction]
pub fn use_openmp(_: PathBuf, _: &str) -> Option<String> {
    None
}

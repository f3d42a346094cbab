//! Which core a worker stays on.
//!
//! A call lasts milliseconds and its workers sleep before it. The system may wake two of them on one core and take
//! longer than the call to move one away: a head on two threads was then as slow as on one. Where a pool has a worker
//! for every core that the process may use, each stays on a core of its own. Smaller pools are left to the system,
//! and so is every pool with `HOPWEAVE_PIN=0` in the environment, as for processes that share their cores.
//!
//! A worker that stays on its core would be told by the system that there is one: it is never asked there. Each such worker
//! remembers what its pool was made with.

#[cfg(target_os = "linux")]
pub use linux::{Affinity, cores};

/// Threads that the calling thread's process may run at the same time, as the system says.
fn asked() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::cell::Cell;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    thread_local! {
        /// What a worker that stays on its core could have had: threads that it starts would inherit its one core.
        static BEFORE: Cell<Option<Before>> = const { Cell::new(None) };
    }

    #[derive(Clone, Copy)]
    struct Before {
        /// Cores of the process, where they are known.
        allowed: Option<CpuSet>,
        /// What [`cores`] said where the pool was made.
        cores: usize,
    }

    /// Threads that this process may run at the same time, at least 1; asked on a worker that stays on its core, as many as
    /// before it was made to.
    pub fn cores() -> usize {
        BEFORE.get().map_or_else(super::asked, |before| before.cores)
    }

    /// Where the workers of a pool run.
    pub struct Affinity {
        /// A core for each worker, or none where the system shall choose.
        cores: Vec<usize>,
        before: Before,
    }

    impl Affinity {
        /// Affinity for a pool of `threads` workers that the calling thread starts.
        pub fn new(threads: usize) -> Self {
            let allowed = match BEFORE.get() {
                Some(before) => before.allowed,
                None => sched_getaffinity(None).ok(),
            };
            let is_set = |core: &usize| allowed.is_some_and(|allowed| allowed.is_set(*core));
            let mut cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(is_set).collect();
            let unwanted = std::env::var_os("HOPWEAVE_PIN").is_some_and(|value| value == "0");
            if threads < 2 || cores.len() != threads || unwanted {
                cores.clear();
            }
            Self { cores, before: Before { allowed, cores: self::cores() } }
        }

        /// Makes the calling thread, worker `index` of the pool, stay in its place. Where the system does not allow it,
        /// nothing is lost but speed.
        pub fn take(&self, index: usize) {
            let _ = match (self.cores.get(index), self.before.allowed) {
                (Some(&core), _) => {
                    BEFORE.set(Some(self.before));
                    let mut only = CpuSet::new();
                    only.set(core);
                    sched_setaffinity(None, &only)
                }
                (None, Some(allowed)) => sched_setaffinity(None, &allowed),
                (None, None) => Ok(()),
            };
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_worker_for_every_core_stays_there_and_others_are_free() {
            let allowed = sched_getaffinity(None).expect("an affinity");
            let cores = allowed.count() as usize;
            let affinity = Affinity::new(cores);
            if cores < 2 {
                eprintln!("skipped: one core");
                assert!(affinity.cores.is_empty());
                return;
            }
            assert_eq!(affinity.cores.len(), cores);
            for other in [1, cores - 1, cores + 1] {
                assert!(Affinity::new(other).cores.is_empty() || other == cores);
            }
            let asked = super::cores();
            let worker = std::thread::spawn(move || {
                affinity.take(1);
                let here = sched_getaffinity(None).expect("an affinity");
                assert!(here.count() == 1 && here.is_set(affinity.cores[1]));
                assert_eq!(super::cores(), asked, "as many as before");
                // A pool that such a worker starts is not held to its one core.
                let pool = Affinity::new(cores + 1);
                let thread = std::thread::spawn(move || {
                    pool.take(0);
                    sched_getaffinity(None).expect("an affinity")
                });
                assert_eq!(thread.join().expect("a thread"), allowed);
            });
            worker.join().expect("a thread");
        }
    }
}

/// Threads that this process may run at the same time, at least 1.
#[cfg(not(target_os = "linux"))]
pub fn cores() -> usize {
    asked()
}

/// Elsewhere the system chooses.
#[cfg(not(target_os = "linux"))]
pub struct Affinity;

#[cfg(not(target_os = "linux"))]
impl Affinity {
    pub fn new(_: usize) -> Self {
        Self
    }

    pub fn take(&self, _: usize) {}
}

//! Which core a worker stays on.
//!
//! A call lasts milliseconds and its workers sleep before it. The system may wake two of them on one core and take
//! longer than the call to move one away: a head on two threads was then as slow as on one. Where a pool has a worker
//! for every core that the process may use, each stays on a core of its own. Smaller pools are left to the system,
//! and so is every pool with `HOPWEAVE_PIN=0` in the environment, as for processes that share their cores.

/// The cores of `threads` workers, one each, or none where the system shall choose.
#[cfg(target_os = "linux")]
pub(super) fn of_threads(threads: usize) -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    if threads < 2 || std::env::var_os("HOPWEAVE_PIN").is_some_and(|value| value == "0") {
        return Vec::new();
    }
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    if cores.len() == threads { cores } else { Vec::new() }
}

/// Makes the calling thread, worker `index` of its pool, stay on its core.
#[cfg(target_os = "linux")]
pub(super) fn stay(cores: &[usize], index: usize) {
    use rustix::thread::{CpuSet, sched_setaffinity};
    if let Some(&core) = cores.get(index) {
        let mut only = CpuSet::new();
        only.set(core);
        // Where it is not allowed, nothing is lost but speed.
        let _ = sched_setaffinity(None, &only);
    }
}

/// Elsewhere the system chooses.
#[cfg(not(target_os = "linux"))]
pub(super) fn of_threads(_: usize) -> Vec<usize> {
    Vec::new()
}

/// Elsewhere the system chooses.
#[cfg(not(target_os = "linux"))]
pub(super) fn stay(_: &[usize], _: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_worker_for_every_core_stays_there_and_others_are_free() {
        let cores = rustix::thread::sched_getaffinity(None).expect("an affinity").count() as usize;
        let places = of_threads(cores);
        if cores < 2 {
            eprintln!("skipped: one core");
            assert!(places.is_empty());
            return;
        }
        assert_eq!(places.len(), cores);
        assert!(of_threads(cores - 1).is_empty() && of_threads(cores + 1).is_empty() && of_threads(1).is_empty());
        std::thread::spawn(move || {
            stay(&places, 1);
            let after = rustix::thread::sched_getaffinity(None).expect("an affinity");
            assert!(after.count() == 1 && after.is_set(places[1]));
        })
        .join()
        .expect("a thread");
    }
}

//! The machine: what it is, what it has free, and the most it can do.
//!
//! In: what the system says about itself (`/proc`, `/sys` on Linux), and short measurements. Out: a
//! [`Machine`] for reports, [`Facts`] for the cost model, a memory limit, the FMA peak that shares of peak are shares
//! of, and the read bandwidth. What the system does not say is left out, never guessed.

use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::target::Isa;
use crate::tiles::peak;

mod affinity;
mod facts;

pub(crate) use affinity::Affinity;
pub use affinity::cores;
pub use facts::{Facts, TileFacts};

/// What is known about this machine.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Machine {
    /// The CPU's name for itself, or the architecture where it has none.
    pub cpu: String,
    /// Architecture and operating system, such as `x86_64-linux`.
    pub platform: String,
    /// Threads that this process may run at the same time.
    pub cores: usize,
    /// Tile families that this machine runs, slowest first.
    pub isas: Vec<Isa>,
    /// Data and unified caches as one core sees them, nearest first.
    pub caches: Vec<Cache>,
    /// Installed memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// One level of cache.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Cache {
    /// 1, 2 or 3.
    pub level: u32,
    /// Bytes.
    pub bytes: u64,
}

/// Asks the system about the machine.
pub fn describe() -> Machine {
    Machine {
        cpu: cpu_name().to_owned(),
        platform: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        cores: cores(),
        isas: Isa::ALL.into_iter().filter(|isa| isa.available()).collect(),
        caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
        memory_bytes: meminfo("MemTotal"),
    }
}

/// The CPU's name for itself, or the architecture where it has none. Asked for once: on many cores the system takes
/// long to list all of them.
pub fn cpu_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let lines = fs::File::open("/proc/cpuinfo").map(|file| BufReader::new(file).lines());
        let named = lines
            .into_iter()
            .flatten()
            .map_while(Result::ok)
            .find_map(|line| field(&line, "model name").map(str::to_owned));
        named.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
    })
}

/// Bytes that a program can take now without pushing others out: what the kernel calls available, or what
/// the control group has left where that is less. `None` where the system does not say.
pub fn free_memory() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .and_then(|most| Some(most.saturating_sub(number("/sys/fs/cgroup/memory.current")?)));
    meminfo("MemAvailable").into_iter().chain(group).min()
}

/// The memory limit where none is given: 80 % of what is free, or none where the system does not say.
pub fn default_memory_limit() -> u64 {
    free_memory().map_or(u64::MAX, |bytes| bytes / 5 * 4)
}

/// Single-precision FMA peak in GF/s of `threads` threads that run at the same time, at the vector width of
/// `isa`, measured for about `seconds`.
pub fn fma_peak(isa: Isa, threads: usize, seconds: f64) -> f64 {
    on_threads(threads, || peak::fma_peak(isa, seconds))
}

/// Read bandwidth in GB/s of `threads` threads that run at the same time, from an array well beyond the
/// caches, measured for about `seconds`.
pub fn read_bandwidth(threads: usize, seconds: f64) -> f64 {
    /// More than any level 2, and with several threads more than most shares of a level 3.
    const WORDS: usize = 64 << 20 >> 3;
    on_threads(threads, || {
        let words = vec![1_u64; WORDS];
        let (start, mut passes, mut best) = (Instant::now(), 0, 0.0_f64);
        while passes < 2 || start.elapsed().as_secs_f64() < seconds {
            let pass = Instant::now();
            let sum = black_box(&words).iter().fold(0_u64, |sum, &word| sum.wrapping_add(word));
            black_box(sum);
            best = best.max((8 * WORDS) as f64 / seconds_since(pass) * 1e-9);
            passes += 1;
        }
        best
    })
}

/// The sum of what `measure` says on each of `threads` threads running together.
fn on_threads(threads: usize, measure: impl Fn() -> f64 + Sync) -> f64 {
    if threads <= 1 {
        return measure();
    }
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(&measure)).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}

/// Seconds since `start`, never 0.
fn seconds_since(start: Instant) -> f64 {
    start.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = field(&text, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The caches that the folder of one CPU lists.
fn caches(folder: &Path) -> Vec<Cache> {
    let read = |index: usize, name: &str| {
        let text = fs::read_to_string(folder.join(format!("index{index}")).join(name)).ok()?;
        Some(text.trim().to_string())
    };
    let cache = |index| {
        if read(index, "type")? == "Instruction" {
            return None;
        }
        let level = read(index, "level")?.parse().ok()?;
        let size = read(index, "size")?;
        let (number, unit) = size.split_at(size.trim_end_matches(char::is_alphabetic).len());
        let unit = match unit {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            "G" => 1 << 30,
            _ => return None,
        };
        Some(Cache { level, bytes: number.parse::<u64>().ok()?.checked_mul(unit)? })
    };
    let mut caches: Vec<Cache> = (0..8).filter_map(cache).collect();
    caches.sort_by_key(|cache| cache.level);
    caches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 207\nmodel name\t: A CPU: with a colon\n";
        assert_eq!(field(text, "model name"), Some("A CPU: with a colon"));
        assert_eq!(field(text, "name"), None);
    }

    #[test]
    fn caches_are_read_in_any_unit() {
        let folder = tempfile::tempdir().unwrap();
        for (index, (kind, level, size)) in
            [("Unified", "3", "260M"), ("Data", "1", "48K"), ("Instruction", "1", "32K"), ("Unified", "2", "odd")]
                .into_iter()
                .enumerate()
        {
            let index = folder.path().join(format!("index{index}"));
            fs::create_dir(&index).unwrap();
            for (name, text) in [("type", kind), ("level", level), ("size", size)] {
                fs::write(index.join(name), format!("{text}\n")).unwrap();
            }
        }
        let expected = [Cache { level: 1, bytes: 48 << 10 }, Cache { level: 3, bytes: 260 << 20 }];
        assert_eq!(caches(folder.path()), expected);
        assert_eq!(caches(Path::new("/nowhere")), []);
    }

    #[test]
    fn threads_add_up() {
        assert_eq!(on_threads(1, || 2.5), 2.5);
        assert_eq!(on_threads(3, || 2.5), 7.5);
    }
}

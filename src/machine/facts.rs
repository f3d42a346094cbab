//! What the cost model must know of a machine: how fast tiles compute and memory delivers.
//!
//! In: short measurements, some 300 ms together. Out: [`Facts`], kept in the cache under the CPU's name, so that a
//! machine is measured once. Where nothing was measured, [`Facts::TYPICAL`] stands in: the model compares strategies,
//! and for that ratios are enough.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::{cores, cpu_name, describe, fma_peak, free_memory, on_threads, seconds_since};
use crate::cache::{Cache, digest};
use crate::error::Result;
use crate::target::Isa;
use crate::tiles::peak;

/// How long each number is measured for.
const SECONDS: f64 = 0.008;
/// Most bytes that the bandwidth of memory is measured on: more than most level 3 caches leave to one program.
const MOST_BYTES: u64 = 256 << 20;
/// Share of level 3's bandwidth at which bytes still count as within it.
const REACHED: f64 = 0.75;
/// How much faster dot products must be: less is within what a disturbed measurement errs by.
const LEAST_DOT_GAIN: f64 = 1.2;

/// Numbers of a machine for the cost model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Whether they were measured here; otherwise they are typical ones, good for ratios alone.
    pub measured: bool,
    /// Threads that "all" means below.
    pub cores: usize,
    /// Bytes of the caches of levels 1, 2 and 3, as one core sees them.
    pub cache_bytes: [u64; 3],
    /// Bytes that are read as fast as level 3 gives them; less than its size where others share it.
    pub level_3_reach: u64,
    /// Read bandwidth of one thread in GB/s out of levels 1, 2, 3, and memory.
    pub read_gb_per_s: [f64; 4],
    /// The same of all threads together.
    pub read_gb_per_s_all: [f64; 4],
    /// Tile families, in the order of [`Isa::ALL`].
    pub tiles: [TileFacts; Isa::ALL.len()],
}

/// Numbers of a tile family.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TileFacts {
    /// FMA peak of one thread in GF/s.
    pub fma_gflops: f64,
    /// FMA peak of all threads together in GF/s.
    pub fma_gflops_all: f64,
    /// Nanoseconds for one exponential, its sum and its place in memory.
    pub exp_ns: f64,
    /// Nanoseconds for a call of a tile, beyond its arithmetic.
    pub call_ns: f64,
    /// How many times the multiply-adds of f32 one thread does by dot products of bf16 pairs. 0 where nobody measured it: an
    /// entry of the cache from before, or a CPU without them.
    #[serde(default)]
    pub bf16_dots: f64,
}

/// The entry of the cache.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: String,
    cpu: String,
    facts: Facts,
}

impl TileFacts {
    /// Of a family's vectors, on a typical machine of two FMA ports at 2.75 GHz.
    const fn typical(isa: Isa) -> Self {
        let lanes = isa.lanes() as f64;
        Self {
            fma_gflops: 11.0 * lanes,
            fma_gflops_all: 22.0 * lanes,
            exp_ns: 1.6 / lanes,
            call_ns: 20.0,
            // Some CPUs with AVX512-BF16 do twice as many, others half as many.
            bf16_dots: if lanes == 16.0 { 1.0 } else { 0.0 },
        }
    }
}

impl Facts {
    /// A machine with AVX-512 and two cores, as good as any where only ratios count.
    pub const TYPICAL: Self = Self {
        measured: false,
        cores: 2,
        cache_bytes: [48 << 10, 2 << 20, 64 << 20],
        level_3_reach: 64 << 20,
        read_gb_per_s: [250.0, 90.0, 16.0, 11.0],
        read_gb_per_s_all: [500.0, 180.0, 32.0, 22.0],
        tiles: {
            let mut tiles = [TileFacts::typical(Isa::Portable); Isa::ALL.len()];
            let mut at = 0;
            while at < tiles.len() {
                tiles[at] = TileFacts::typical(Isa::ALL[at]);
                at += 1;
            }
            tiles
        },
    };

    /// The numbers of a family; typical ones where this machine does not run it.
    pub fn tiles(&self, isa: Isa) -> TileFacts {
        let at = Isa::ALL.iter().position(|&other| other == isa).unwrap_or(0);
        let usable = |tiles: &TileFacts| {
            let TileFacts { fma_gflops, fma_gflops_all, exp_ns, call_ns, .. } = *tiles;
            [fma_gflops, fma_gflops_all, exp_ns, call_ns].iter().all(|&x| x.is_finite() && x > 0.0)
        };
        if usable(&self.tiles[at]) { self.tiles[at] } else { Self::TYPICAL.tiles[at] }
    }

    /// Whether dot products of bf16 pairs are faster than f32 multiply-adds with the tiles of `isa`.
    pub fn bf16_dots_pay(&self, isa: Isa) -> bool {
        let measured = self.tiles(isa).bf16_dots;
        let gain = if measured.is_finite() && measured > 0.0 { measured } else { Self::TYPICAL.tiles(isa).bf16_dots };
        gain > LEAST_DOT_GAIN
    }

    /// FMA peak in GF/s of `threads` threads with the tiles of `isa`.
    pub fn fma_gflops(&self, isa: Isa, threads: usize) -> f64 {
        let tiles = self.tiles(isa);
        between(tiles.fma_gflops, tiles.fma_gflops_all, self.cores, threads)
    }

    /// GB/s of `threads` threads together out of the level (0 to 2, and 3 for memory) that holds `bytes` of each.
    pub fn read_gb_per_s(&self, level: usize, threads: usize) -> f64 {
        let usable = |x: f64, or: f64| if x.is_finite() && x > 0.0 { x } else { or };
        let one = usable(self.read_gb_per_s[level], Self::TYPICAL.read_gb_per_s[level]);
        let all = usable(self.read_gb_per_s_all[level], one);
        between(one, all, self.cores, threads)
    }

    /// The level that holds `bytes` beside what else goes through it: 0 to 2, and 3 for memory.
    pub fn level(&self, bytes: u64) -> usize {
        let [l1, l2, _] = self.cache_bytes;
        [l1, l2, self.level_3_reach].iter().position(|&cache| bytes <= cache / 3 * 2).unwrap_or(3)
    }

    /// Measures this machine, in some 300 ms.
    pub fn measure() -> Self {
        let cores = cores();
        let cache_bytes = cache_bytes();
        let [l1, l2, l3] = cache_bytes;
        let most = MOST_BYTES.min(free_memory().unwrap_or(MOST_BYTES) / 8).max(1 << 20);
        // One array for all levels: touching its pages takes longer than reading them.
        let words = vec![1_u64; (most / 8) as usize];
        // Level 3 at what is several times a level 2, and well below all of it.
        let sizes = [l1 / 2, l2 / 2, (4 * l2).min(l3 / 2), most].map(|bytes| bytes.min(most));
        let read = |threads: usize| sizes.map(|bytes| rounded(read_words(&words, bytes, threads)));
        let read_gb_per_s = read(1);
        // Up to which size level 3 is as fast as it is.
        let doubled = std::iter::successors(Some(sizes[2]), |bytes| Some(2 * bytes)).take_while(|&bytes| bytes <= l3);
        let fast = |&bytes: &u64| read_words(&words, bytes, 1) > REACHED * read_gb_per_s[2];
        let level_3_reach = doubled.take_while(fast).last().unwrap_or(l3.min(2 * sizes[2]));
        Self {
            measured: true,
            cores,
            cache_bytes,
            level_3_reach,
            read_gb_per_s,
            read_gb_per_s_all: if cores > 1 { read(cores) } else { read_gb_per_s },
            tiles: Isa::ALL.map(|isa| tile_facts(isa, cores)),
        }
    }

    /// What was measured of this machine before, by this version; `None` where it was not.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for an entry that is there but of no use.
    pub fn cached(cache: &Cache) -> Result<Option<Self>> {
        let entry: Option<Entry> = cache.read(&entry_name())?;
        let current = entry.filter(|entry| entry.version == env!("CARGO_PKG_VERSION") && entry.cpu == cpu_name());
        Ok(current.map(|entry| entry.facts).filter(|facts| facts.measured && facts.cores == cores()))
    }

    /// The file of this machine's entry.
    pub fn path(cache: &Cache) -> PathBuf {
        cache.path(&entry_name())
    }

    /// Measures this machine and keeps the numbers in the cache.
    ///
    /// # Errors
    /// The numbers are given in any case; beside them what kept them out of the cache.
    pub fn measure_into(cache: &Cache) -> (Self, Result<()>) {
        let facts = Self::measure();
        let entry = Entry { version: env!("CARGO_PKG_VERSION").to_owned(), cpu: cpu_name().to_owned(), facts };
        (facts, cache.write(&entry_name(), &entry).map(drop))
    }
}

/// The name of this machine's entry; containers with other numbers of cores may share a cache.
fn entry_name() -> String {
    format!("machine-{}.json", digest(&[cpu_name(), &cores().to_string()]))
}

/// What `threads` of `cores` threads do together, where one does `one` and all do `all`.
fn between(one: f64, all: f64, cores: usize, threads: usize) -> f64 {
    if threads <= 1 || cores <= 1 {
        return one;
    }
    let share = (threads.min(cores) - 1) as f64 / (cores - 1) as f64;
    one + share * (all.max(one) - one)
}

/// Bytes of levels 1 to 3; a level that the system does not name is as large as that below, or as is typical.
fn cache_bytes() -> [u64; 3] {
    let caches = describe().caches;
    let mut bytes = Facts::TYPICAL.cache_bytes;
    let mut below = 0;
    for (level, bytes) in (1..).zip(&mut bytes) {
        let named = caches.iter().find(|cache| cache.level == level).map(|cache| cache.bytes);
        *bytes = named.unwrap_or(if caches.is_empty() { *bytes } else { below }).max(below).max(16 << 10);
        below = *bytes;
    }
    bytes
}

/// GB/s of `threads` threads that each read a part of `bytes` of `words`, or where that stays in a core's own caches
/// all of it.
fn read_words(words: &[u64], bytes: u64, threads: usize) -> f64 {
    let len = ((bytes / 8) as usize).min(words.len()).max(1);
    let own = bytes <= 8 << 20;
    let part = if own { len } else { (len / threads).max(1) };
    let next = std::sync::atomic::AtomicUsize::new(0);
    on_threads(threads, || {
        let at = if own { 0 } else { next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) * part };
        let words = &words[at.min(words.len() - part)..][..part];
        let passes_a_look = (64 << 10) / part.min(64 << 10);
        let (start, mut passes, mut best) = (Instant::now(), 0, 0.0_f64);
        while passes < 2 || seconds_since(start) < SECONDS {
            let look = Instant::now();
            for _ in 0..passes_a_look {
                black_box(sum(black_box(words)));
            }
            best = best.max((8 * part * passes_a_look) as f64 / seconds_since(look) * 1e-9);
            passes += 1;
        }
        best
    })
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn sum(words: &[u64]) -> u64 {
    // As many sums as hide the latency of adding.
    let mut sums = [0_u64; 64];
    let chunks = words.chunks_exact(64);
    let rest = chunks.remainder().iter().fold(0_u64, |sum, &word| sum.wrapping_add(word));
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, &word)| *sum = sum.wrapping_add(word));
    }
    sums.iter().fold(rest, |sum, &part| sum.wrapping_add(part))
}

/// 0 throughout where this machine does not run the family.
fn tile_facts(isa: Isa, cores: usize) -> TileFacts {
    let typical = Facts::TYPICAL.tiles(isa);
    let fma_gflops = fma_peak(isa, 1, SECONDS);
    let scale = if fma_gflops > 0.0 { typical.fma_gflops / fma_gflops } else { 0.0 };
    // The portable family's tiles exist in kernels only; its ratios are the typical ones.
    let (exp_ns, call_ns) = match peak::tile_times(isa, SECONDS) {
        Some(times) => (times.exp_ns, times.call_ns),
        None => (typical.exp_ns * scale, typical.call_ns * scale),
    };
    let bf16_dots = if fma_gflops > 0.0 { peak::bf16_dot_peak(isa, SECONDS) / fma_gflops } else { 0.0 };
    let [fma_gflops, fma_gflops_all, exp_ns, call_ns, bf16_dots] =
        [fma_gflops, fma_peak(isa, cores, SECONDS), exp_ns, call_ns, bf16_dots].map(rounded);
    TileFacts { fma_gflops, fma_gflops_all, exp_ns, call_ns, bf16_dots }
}

/// To four significant digits: more was not measured, and texts keep so many.
fn rounded(number: f64) -> f64 {
    format!("{number:.3e}").parse().unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_facts_are_usable_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().into());
        assert_eq!(Facts::cached(&cache).unwrap(), None);
        let (facts, kept) = Facts::measure_into(&cache);
        kept.unwrap();
        assert!(facts.measured);
        assert!(facts.cache_bytes.is_sorted() && facts.cache_bytes[0] > 0);
        for threads in [1, facts.cores] {
            assert!((0..4).all(|level| facts.read_gb_per_s(level, threads) > 0.0), "{facts:?}");
            assert!(Isa::ALL.iter().all(|&isa| facts.fma_gflops(isa, threads) > 0.0), "{facts:?}");
        }
        for (isa, tiles) in Isa::ALL.iter().zip(&facts.tiles) {
            assert_eq!(tiles.fma_gflops > 0.0, isa.available(), "{isa}");
        }
        assert_eq!(Facts::cached(&cache).unwrap(), Some(facts));
        // An entry from before dot products were measured.
        let path = cache.path(&entry_name());
        let text = std::fs::read_to_string(&path).unwrap();
        let mut entry: serde_json::Value = serde_json::from_str(&text).unwrap();
        for tiles in entry["facts"]["tiles"].as_array_mut().unwrap() {
            assert!(tiles.as_object_mut().unwrap().remove("bf16_dots").is_some());
        }
        std::fs::write(&path, entry.to_string()).unwrap();
        let older = Facts { tiles: facts.tiles.map(|tiles| TileFacts { bf16_dots: 0.0, ..tiles }), ..facts };
        assert_eq!(Facts::cached(&cache).unwrap(), Some(older));
        std::fs::write(&path, &text).unwrap();
        // Numbers of another version are measured again.
        let stale = text.replace(&format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION")), "\"version\": \"0.0.0\"");
        assert_ne!(stale, text);
        std::fs::write(&path, stale).unwrap();
        assert_eq!(Facts::cached(&cache).unwrap(), None);
        std::fs::write(&path, "{").unwrap();
        assert!(Facts::cached(&cache).is_err());
    }

    #[test]
    fn threads_lie_between_one_and_all() {
        let facts = Facts { cores: 4, ..Facts::TYPICAL };
        let peak = |threads| facts.fma_gflops(Isa::Avx512, threads);
        assert_eq!((peak(1), peak(4), peak(9)), (176.0, 352.0, 352.0));
        assert!(peak(1) < peak(2) && peak(2) < peak(3));
        assert_eq!(Facts { cores: 1, ..facts }.fma_gflops(Isa::Avx512, 8), 176.0);
    }

    #[test]
    fn levels_follow_sizes() {
        let levels = [1 << 10, 1 << 20, 16 << 20, 1 << 40].map(|bytes| Facts::TYPICAL.level(bytes));
        assert_eq!(levels, [0, 1, 2, 3]);
    }

    #[test]
    fn dot_products_pay_where_they_were_measured_to() {
        let with = |bf16_dots| {
            let mut facts = Facts::TYPICAL;
            facts.tiles[2].bf16_dots = bf16_dots;
            facts
        };
        let pay = |bf16_dots| with(bf16_dots).bf16_dots_pay(Isa::Avx512);
        assert_eq!([2.0, 1.3, 1.1, 0.5].map(pay), [true, true, false, false]);
        // Typically they do not, nor anywhere but with AVX-512.
        assert_eq!([0.0, f64::NAN, f64::INFINITY].map(pay), [false; 3]);
        assert!(!Facts::TYPICAL.bf16_dots_pay(Isa::Avx512));
        assert!(!with(2.0).bf16_dots_pay(Isa::Avx2) && !with(2.0).bf16_dots_pay(Isa::Portable));
    }

    #[test]
    fn numbers_that_make_no_sense_are_replaced() {
        let mut facts = Facts::TYPICAL;
        facts.tiles[2].exp_ns = f64::NAN;
        facts.read_gb_per_s[3] = 0.0;
        facts.read_gb_per_s_all[3] = f64::INFINITY;
        assert_eq!(facts.tiles(Isa::Avx512), Facts::TYPICAL.tiles[2]);
        assert_eq!(facts.read_gb_per_s(3, 2), 11.0);
    }
}

//! The most multiply-adds that one thread can do: what shares of peak are shares of. And what tiles take beside them.
#![allow(unsafe_code)]

use std::time::Instant;

use super::{Ahead, BLOCK, ExpCall, LANES, ScoreCall, family};
use crate::target::Isa;

/// Independent chains of multiply-adds: latency times ports on every machine we know, with room.
const CHAINS: usize = 12;
/// Steps between two looks at the clock: some microseconds.
const STEPS: usize = 2000;

/// Single-precision FMA peak of one thread in GF/s (a multiply-add is two), at the family's vector width, measured
/// for about `seconds`; the best of its slices, so that a disturbed slice does not count. 0 where this CPU lacks the
/// instructions.
pub fn fma_peak(isa: Isa, seconds: f64) -> f64 {
    if !isa.available() {
        return 0.0;
    }
    let (lanes, run): (usize, unsafe fn(usize) -> f32) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (16, avx512),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (8, avx2),
        #[cfg(target_arch = "x86_64")]
        Isa::Portable if is_x86_feature_detected!("fma") => (4, fma128),
        _ => (4, plain),
    };
    let flops = (2 * lanes * CHAINS * STEPS) as f64;
    let start = Instant::now();
    let mut best = 0.0f64;
    while best == 0.0 || start.elapsed().as_secs_f64() < seconds {
        let slice = Instant::now();
        // SAFETY: chosen above by what the CPU has.
        std::hint::black_box(unsafe { run(STEPS) });
        best = best.max(flops / slice.elapsed().as_secs_f64() * 1e-9);
    }
    best
}

/// Peak of one thread in GF/s by dot products of bf16 pairs with AVX-512 (an instruction does 32 multiply-adds),
/// measured as [`fma_peak`]. 0 where this CPU lacks the instructions.
pub fn bf16_dot_peak(seconds: f64) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
        let flops = (2 * 32 * CHAINS * STEPS) as f64;
        let start = Instant::now();
        let mut best = 0.0f64;
        while best == 0.0 || start.elapsed().as_secs_f64() < seconds {
            let slice = Instant::now();
            // SAFETY: the CPU has the instructions.
            std::hint::black_box(unsafe { bf16_dots(STEPS) });
            best = best.max(flops / slice.elapsed().as_secs_f64() * 1e-9);
        }
        return best;
    }
    let _ = seconds;
    0.0
}

/// What the tiles of a family take beside multiply-adds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TileTimes {
    /// Nanoseconds for one element of the exponential.
    pub exp_ns: f64,
    /// Nanoseconds for a call of the score tile, beyond what its arithmetic takes in a long call.
    pub call_ns: f64,
}

/// Measures a family's tiles on numbers in the L1 cache, for about `seconds`; `None` for the portable family, whose
/// tiles exist in kernels only, and where this CPU lacks the instructions.
pub fn tile_times(isa: Isa, seconds: f64) -> Option<TileTimes> {
    /// Numbers aligned as panels are.
    #[repr(align(64))]
    #[derive(Clone)]
    struct Line {
        _lanes: [f32; LANES],
    }
    const D: usize = 32;
    const GROUPS: usize = BLOCK / LANES;
    const FEW: usize = 6;
    const MANY: usize = 48;

    let family = family(isa)?;
    let lines = |count: usize, x: f32| vec![Line { _lanes: [x; LANES] }; count];
    let (keys, queries) = (lines(MANY * D / LANES, 0.5), lines(GROUPS * D, 0.25));
    let (mut panel, mut max, mut sum) = (lines(GROUPS * MANY, 0.0), lines(GROUPS, 0.0), lines(GROUPS, 0.0));
    // 2^(s − 1), again and again, comes to rest at s = 1.
    let reference = lines(GROUPS, 1.0);
    let panel: *mut f32 = panel.as_mut_ptr().cast();
    let exp = ExpCall {
        s: panel,
        s_stride: MANY * LANES,
        nkeys: MANY,
        groups: GROUPS,
        words: std::ptr::null(),
        max: reference.as_ptr().cast(),
        sum: sum.as_mut_ptr().cast(),
    };
    let mut score = |nkeys| ScoreCall {
        qt: queries.as_ptr().cast(),
        k: keys.as_ptr().cast(),
        k_stride: D,
        keys: std::ptr::null(),
        nkeys,
        d: D,
        groups: GROUPS,
        words: std::ptr::null(),
        s: panel,
        s_stride: MANY * LANES,
        max: max.as_mut_ptr().cast(),
        ahead: [Ahead::NONE; 4],
    };
    let best = |call: &mut dyn FnMut()| {
        const CALLS: usize = 20;
        let (start, mut best) = (Instant::now(), f64::INFINITY);
        while best.is_infinite() || start.elapsed().as_secs_f64() < seconds / 3.0 {
            let slice = Instant::now();
            (0..CALLS).for_each(|_| call());
            best = best.min(slice.elapsed().as_secs_f64() * 1e9 / CALLS as f64);
        }
        best
    };
    let (few, many) = (score(FEW), score(MANY));
    // SAFETY: the family exists, so the CPU has the instructions; the records' pointers lead to the arrays above, which
    // hold `MANY` keys of width `D`, 64 queries and a panel of their scores, and outlive the calls.
    let few = best(&mut || unsafe { (family.score)(&raw const few) });
    // SAFETY: as above.
    let many = best(&mut || unsafe { (family.score)(&raw const many) });
    // SAFETY: as above.
    let exp_call = best(&mut || unsafe { (family.exp)(&raw const exp) });
    let a_key = (many - few) / (MANY - FEW) as f64;
    let call_ns = (few - FEW as f64 * a_key).max(1.0);
    Some(TileTimes { exp_ns: (exp_call - call_ns).max(0.1 * exp_call) / (MANY * BLOCK) as f64, call_ns })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_dots(steps: usize) -> f32 {
    use std::arch::x86_64::*;
    let ones = _mm512_set1_ps(std::hint::black_box(1.0));
    let pairs = _mm512_cvtne2ps_pbh(ones, ones);
    let mut sums = [ones; CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
        }
    }
    let mut total = sums[0];
    for sum in &sums[1..] {
        total = _mm512_add_ps(total, *sum);
    }
    _mm512_cvtss_f32(total)
}

/// One routine per width: `CHAINS` sums that the compiler cannot see through.
#[cfg(target_arch = "x86_64")]
macro_rules! chains {
    ($(#[$doc:meta])* $name:ident, $features:literal, $set:ident, $fma:ident, $add:ident, $first:ident) => {
        $(#[$doc])*
        #[target_feature(enable = $features)]
        fn $name(steps: usize) -> f32 {
            use std::arch::x86_64::*;
            let factor = $set(std::hint::black_box(0.5));
            let add = $set(std::hint::black_box(1.0));
            let mut sums = [add; CHAINS];
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = $fma(*sum, factor, add);
                }
            }
            let mut total = sums[0];
            for sum in &sums[1..] {
                total = $add(total, *sum);
            }
            $first(total)
        }
    };
}

#[cfg(target_arch = "x86_64")]
chains!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_cvtss_f32);
#[cfg(target_arch = "x86_64")]
chains!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_cvtss_f32);
#[cfg(target_arch = "x86_64")]
chains!(fma128, "fma", _mm_set1_ps, _mm_fmadd_ps, _mm_add_ps, _mm_cvtss_f32);

/// Without intrinsics: the compiler's own 4-float vectors, multiply and add.
fn plain(steps: usize) -> f32 {
    let (factor, add) = std::hint::black_box((0.5f32, 1.0f32));
    let mut sums = [[add; 4]; CHAINS];
    for _ in 0..steps {
        for lane in sums.as_flattened_mut() {
            *lane = *lane * factor + add;
        }
    }
    sums.as_flattened().iter().sum()
}

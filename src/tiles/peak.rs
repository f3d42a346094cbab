//! The most multiply-adds that one thread can do: what shares of peak are shares of. And what tiles take beside them.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;
use std::time::Instant;

use super::calls::{Ahead, BLOCK, ExpCall, LANES, ScoreCall};
use super::chains::CHAINS;
#[cfg(target_arch = "x86_64")]
use super::dots;
use super::family::{dots_serve, family};
use crate::dtype::Dtype;
use crate::target::Isa;

/// Steps between two looks at the clock: some microseconds.
const STEPS: usize = 2000;

/// Single-precision FMA peak of one thread in GF/s (a multiply-add is two), at the family's vector width, measured
/// for about `seconds`; the best of its slices, so that a disturbed slice does not count. 0 where this CPU lacks the
/// instructions.
pub fn fma_peak(isa: Isa, seconds: f64) -> f64 {
    if !isa.available() {
        return 0.0;
    }
    let (lanes, run): (usize, unsafe fn(usize) -> f32) = match family(isa) {
        Some(family) => (family.lanes, family.chains),
        #[cfg(target_arch = "x86_64")]
        None if is_x86_feature_detected!("fma") => (4, fma128),
        None => (4, plain),
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
    if dots::available() {
        let flops = (2 * 32 * CHAINS * STEPS) as f64;
        let start = Instant::now();
        let mut best = 0.0f64;
        while best == 0.0 || start.elapsed().as_secs_f64() < seconds {
            let slice = Instant::now();
            // SAFETY: the CPU has the instructions.
            std::hint::black_box(unsafe { dots::chains(STEPS) });
            best = best.max(flops / slice.elapsed().as_secs_f64() * 1e-9);
        }
        return best;
    }
    let _ = seconds;
    0.0
}

/// Whether scores of bf16 by dot products of pairs are faster here than by widening, measured once.
pub fn dots_pay(isa: Isa, dtype: Dtype, d: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if dots_serve(isa, dtype, d) {
        return pay();
    }
    let _ = (isa, dtype, d);
    false
}

/// How much faster dot products must be: less is within what a disturbed measurement errs by.
#[cfg(target_arch = "x86_64")]
const LEAST_GAIN: f64 = 1.2;

/// Whether dot products are faster here than f32 multiply-adds: on some CPUs twice as fast, on others half as fast.
/// Measured once, in some microseconds.
#[cfg(target_arch = "x86_64")]
fn pay() -> bool {
    static PAY: OnceLock<bool> = OnceLock::new();
    *PAY.get_or_init(|| {
        const SECONDS: f64 = 50e-6;
        let fma = fma_peak(crate::target::Isa::Avx512, SECONDS);
        dots::available() && bf16_dot_peak(SECONDS) > LEAST_GAIN * fma
    })
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

/// With the 128-bit multiply-adds that emitted code has.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
fn fma128(steps: usize) -> f32 {
    use std::arch::x86_64::*;
    let factor = _mm_set1_ps(std::hint::black_box(0.5));
    let add = _mm_set1_ps(std::hint::black_box(1.0));
    let mut sums = [add; CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm_fmadd_ps(*sum, factor, add);
        }
    }
    let mut total = sums[0];
    for sum in &sums[1..] {
        total = _mm_add_ps(total, *sum);
    }
    _mm_cvtss_f32(total)
}

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

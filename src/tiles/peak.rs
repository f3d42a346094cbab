//! The most multiply-adds that one thread can do: what shares of peak are shares of. And what tiles take beside them.
#![allow(unsafe_code)]

use std::time::Instant;

use super::lanes::{Array, Vectors};
use super::{Ahead, BLOCK, ExpCall, LANES, ScoreCall, family};
use crate::target::Isa;

/// Independent chains of multiply-adds: latency times ports on every machine we know, with room.
pub(super) const CHAINS: usize = 12;
/// Steps between two looks at the clock: some microseconds.
const STEPS: usize = 2000;

/// Single-precision FMA peak of one thread in GF/s (a multiply-add is two), at the family's vector width, measured
/// for about `seconds`; the best of its slices, so that a disturbed slice does not count. 0 where this CPU lacks the
/// instructions.
pub fn fma_peak(isa: Isa, seconds: f64) -> f64 {
    match family(isa) {
        // SAFETY: a family exists only where the CPU has its instructions.
        Some(family) => measured(isa.lanes(), seconds, || unsafe { (family.chains)(STEPS) }),
        None if !isa.available() => 0.0,
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU was asked.
        None if is_x86_feature_detected!("fma") => measured(isa.lanes(), seconds, || unsafe { fma128(STEPS) }),
        // SAFETY: plain vectors ask for nothing.
        None => measured(isa.lanes(), seconds, || unsafe { chains::<Array<4>>(STEPS) }),
    }
}

/// Peak of one thread in GF/s by dot products of bf16 pairs with the vectors of `isa`, measured as [`fma_peak`]. 0 where
/// this CPU lacks the instructions.
pub fn bf16_dot_peak(isa: Isa, seconds: f64) -> f64 {
    let dots = family(isa).and_then(|family| family.bf16.dots());
    // SAFETY: they exist only where the CPU has the instructions.
    dots.map_or(0.0, |dots| measured(dots.products, seconds, || unsafe { (dots.chains)(STEPS) }))
}

/// GF/s of [`CHAINS`] chains of `products` multiply-adds each a step.
fn measured(products: usize, seconds: f64, run: impl Fn() -> f32) -> f64 {
    let flops = (2 * products * CHAINS * STEPS) as f64;
    let (start, mut best) = (Instant::now(), 0.0f64);
    while best == 0.0 || start.elapsed().as_secs_f64() < seconds {
        let slice = Instant::now();
        std::hint::black_box(run());
        best = best.max(flops / slice.elapsed().as_secs_f64() * 1e-9);
    }
    best
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

/// `steps` multiply-adds in every lane of [`CHAINS`] vectors, which the compiler cannot see through.
///
/// # Safety
/// The CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn chains<V: Vectors>(steps: usize) -> f32 {
    // SAFETY: the caller's; `lanes` holds a vector.
    unsafe {
        let factor = V::splat(std::hint::black_box(0.5));
        let add = V::splat(std::hint::black_box(1.0));
        let mut sums = [add; CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = V::fma(*sum, factor, add);
            }
        }
        let (mut total, mut lanes) = (sums[0], [0.0; LANES]);
        for sum in &sums[1..] {
            total = V::fma(*sum, add, total);
        }
        V::store(lanes.as_mut_ptr(), total);
        lanes[0]
    }
}

/// The same with the 128-bit multiply-adds that emitted code has.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
fn fma128(steps: usize) -> f32 {
    use std::arch::x86_64::*;
    let (factor, add) = (_mm_set1_ps(std::hint::black_box(0.5)), _mm_set1_ps(std::hint::black_box(1.0)));
    let mut sums = [add; CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm_fmadd_ps(*sum, factor, add);
        }
    }
    _mm_cvtss_f32(sums.into_iter().fold(add, |total, sum| _mm_fmadd_ps(sum, add, total)))
}

//! The most multiply-adds that one thread can do: what shares of peak are shares of.
#![allow(unsafe_code)]

use std::time::Instant;

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

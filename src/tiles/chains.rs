//! Chains of multiply-adds that the compiler cannot see through: what a CPU's peak is measured with.
#![allow(unsafe_code)]

use super::lanes::Lanes;

/// Independent chains: latency times ports on every machine we know, with room.
pub(super) const CHAINS: usize = 12;

/// `steps` multiply-adds in every lane of [`CHAINS`] vectors.
///
/// # Safety
/// The CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn chains<L: Lanes>(steps: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let factor = L::splat(std::hint::black_box(0.5));
        let add = L::splat(std::hint::black_box(1.0));
        let mut sums = [add; CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = L::fma(*sum, factor, add);
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = L::add(total, *sum);
        }
        L::sum(total)
    }
}

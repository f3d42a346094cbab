//! Packing queries into the lanes.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: see `lanes`.
#![allow(clippy::needless_range_loop)]

use super::lanes::Lanes;
use super::{LANES, PackCall};

/// See [`PackCall`].
///
/// # Safety
/// Contract of [`super`], and the CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn pack<L: Lanes>(c: &PackCall) {
    for part in 0..c.count.div_ceil(LANES) * (LANES / L::WIDTH) {
        let first = part * L::WIDTH;
        let lanes = c.count.saturating_sub(first).min(L::WIDTH);
        // SAFETY: rows are below `count`; every read ends at or before column `d`; `out` is `[groups][d][16]`.
        unsafe {
            let (scale, keep) = (L::splat(c.scale), L::first(lanes));
            let mut rows = [c.q; LANES];
            for i in 0..L::WIDTH {
                // Lanes beyond the last query read that query again and are zeroed below.
                let at = (first + i).min(c.count - 1);
                let row = if c.rows.is_null() { at } else { *c.rows.add(at) as usize };
                rows[i] = c.q.add(row * c.q_stride);
            }
            let out = c.out.add(first / LANES * c.d * LANES + first % LANES);
            let mut x = 0;
            while x + 4 <= c.d {
                let columns = L::load_columns(&rows, x);
                for i in 0..4 {
                    L::store(out.add((x + i) * LANES), L::select(keep, L::mul(columns[i], scale)));
                }
                x += 4;
            }
            for x in x..c.d {
                for i in 0..L::WIDTH {
                    *out.add(x * LANES + i) = if i < lanes { *rows[i].add(x) * c.scale } else { 0.0 };
                }
            }
        }
    }
}

//! Scattered edges of a block: scores, probabilities and values, query by query.
#![allow(unsafe_code)]
// Register arrays are indexed by constant-trip loops: see `lanes`.
#![allow(clippy::needless_range_loop)]

use super::lanes::Lanes;
use super::prefetch::{self, LINE};
use super::{EdgeCall, LANES};

/// The width of keys that has code of its own.
const WIDTH: usize = 64;
/// Vectors of a key of that width.
const MOST_VECTORS: usize = 16;

/// See [`EdgeCall`]: a vector of dots at a time, reduced together.
///
/// # Safety
/// Contract of [`super`], and the CPU has the instructions.
#[inline(always)]
pub(super) unsafe fn edge_score<L: Lanes>(c: &EdgeCall) {
    for r in 0..c.rows {
        // SAFETY: `r < rows`; edges stay between the row's offsets.
        unsafe {
            let EdgeRange { base, begin: mut edge, end, .. } = EdgeRange::new(c, r);
            let row = if c.q_rows.is_null() { r } else { *c.q_rows.add(r) as usize };
            let q = c.q.add(row * c.q_stride);
            let mut max = L::splat(*c.max.add(r));
            // With many registers, the query stays in them. A few edges at the end are left to shorter code.
            if L::REGISTERS > 16 && c.d == WIDTH {
                let scale = L::splat(c.scale);
                let mut query = [scale; MOST_VECTORS];
                for x in 0..WIDTH / L::WIDTH {
                    query[x] = L::mul(L::load(q.add(x * L::WIDTH)), scale);
                }
                while edge < end && end - edge > L::WIDTH / 2 {
                    let count = (end - edge).min(L::WIDTH);
                    let dots = dots_of_width::<L>(c, &query, edge, count - 1);
                    L::store_first(c.s.add(edge - base), count, dots);
                    max = L::max_cut(dots, max, L::first(count));
                    edge += count;
                }
            }
            while edge < end {
                let count = (end - edge).min(L::WIDTH);
                let mut keys = [c.kv; LANES];
                for i in 0..L::WIDTH {
                    // Lanes beyond the last edge read the first again.
                    let at = edge + if i < count { i } else { 0 };
                    keys[i] = c.kv.add(*c.edge_keys.add(at) as usize * c.kv_stride);
                }
                let dots = match count {
                    ..=4 => dots::<L, 4>(q, &keys, c.d, c.scale),
                    // A width that is known saves the loop.
                    5..=8 if L::REGISTERS <= 16 && c.d == WIDTH => dots::<L, 8>(q, &keys, WIDTH, c.scale),
                    5..=8 => dots::<L, 8>(q, &keys, c.d, c.scale),
                    _ => dots::<L, LANES>(q, &keys, c.d, c.scale),
                };
                L::store_first(c.s.add(edge - base), count, dots);
                max = L::max_cut(dots, max, L::first(count));
                edge += count;
            }
            *c.max.add(r) = L::largest(max);
        }
    }
}

/// `q · key(edge + i)` in lane `i`, and that of edge `edge + last` in lanes beyond `last`.
///
/// # Safety
/// As [`edge_score`], with `d` of [`WIDTH`]; `edge + last` is an edge of the block.
#[inline(always)]
unsafe fn dots_of_width<L: Lanes>(c: &EdgeCall, q: &[L::Floats; MOST_VECTORS], edge: usize, last: usize) -> L::Floats {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [L::splat(0.0); LANES];
        for i in 0..L::WIDTH {
            let key = c.kv.add(*c.edge_keys.add(edge + i.min(last)) as usize * c.kv_stride);
            sums[i] = L::mul(L::load(key), q[0]);
            for x in 1..WIDTH / L::WIDTH {
                sums[i] = L::fma(L::load(key.add(x * L::WIDTH)), q[x], sums[i]);
            }
        }
        L::sums_across(&sums)
    }
}

/// `scale · q · keys[i]` in lane `i < N`, 0 beyond.
///
/// # Safety
/// `q` and every key point at `d` floats.
#[inline(always)]
unsafe fn dots<L: Lanes, const N: usize>(q: *const f32, keys: &[*const f32; LANES], d: usize, scale: f32) -> L::Floats {
    // SAFETY: reads stay below column `d`.
    unsafe {
        let scale = L::splat(scale);
        let mut sums = [L::splat(0.0); LANES];
        let mut x = 0;
        while x + L::WIDTH <= d {
            let query = L::mul(L::load(q.add(x)), scale);
            for i in 0..N {
                sums[i] = L::fma(L::load(keys[i].add(x)), query, sums[i]);
            }
            x += L::WIDTH;
        }
        if x < d {
            let keep = L::first(d - x);
            let query = L::mul(L::load_cut(q.add(x), keep), scale);
            for i in 0..N {
                sums[i] = L::fma(L::load_cut(keys[i].add(x), keep), query, sums[i]);
            }
        }
        L::sums_across(&sums)
    }
}

/// See [`EdgeCall`].
///
/// # Safety
/// As [`edge_score`].
#[inline(always)]
pub(super) unsafe fn edge_exp<L: Lanes>(c: &EdgeCall) {
    for r in 0..c.rows {
        // SAFETY: `r < rows`; edges stay between the row's offsets.
        unsafe {
            let EdgeRange { base, begin: mut edge, end, .. } = EdgeRange::new(c, r);
            let max = L::splat(*c.max.add(r));
            let mut sum = L::splat(0.0);
            while edge < end {
                let count = (end - edge).min(L::WIDTH);
                let keep = L::first(count);
                let at = c.s.add(edge - base);
                let p = L::exp2(L::sub(L::load_cut(at, keep), max), keep);
                L::store_first(at, count, p);
                sum = L::add(sum, p);
                edge += count;
            }
            *c.sum.add(r) += L::sum(sum);
        }
    }
}

/// See [`EdgeCall`].
///
/// # Safety
/// As [`edge_score`].
#[inline(always)]
pub(super) unsafe fn edge_value<L: Lanes>(c: &EdgeCall) {
    for r in 0..c.rows {
        let mut column = 0;
        while column < c.dv {
            let left = c.dv - column;
            let tail = (left - 1) % L::WIDTH + 1;
            // SAFETY: `r < rows`, `column < dv`.
            column += unsafe {
                match (left.div_ceil(L::WIDTH), L::REGISTERS) {
                    // Few registers hold one sum of each vector, many hold two of half as many.
                    (8.., ..=16) if left >= 8 * L::WIDTH => columns::<L, 8, 1, false>(c, r, column, L::WIDTH),
                    (4.., ..=16) if left >= 4 * L::WIDTH => columns::<L, 4, 1, false>(c, r, column, L::WIDTH),
                    (_, ..=16) if left >= L::WIDTH => columns::<L, 1, 1, false>(c, r, column, L::WIDTH),
                    (_, ..=16) => columns::<L, 1, 1, true>(c, r, column, tail),
                    (1, _) if tail < L::WIDTH => columns::<L, 1, 2, true>(c, r, column, tail),
                    (2, _) if tail < L::WIDTH => columns::<L, 2, 2, true>(c, r, column, tail),
                    (3, _) if tail < L::WIDTH => columns::<L, 3, 2, true>(c, r, column, tail),
                    (4, _) if tail < L::WIDTH => columns::<L, 4, 2, true>(c, r, column, tail),
                    (1, _) => columns::<L, 1, 2, false>(c, r, column, tail),
                    (2, _) => columns::<L, 2, 2, false>(c, r, column, tail),
                    (3, _) => columns::<L, 3, 2, false>(c, r, column, tail),
                    _ => columns::<L, 4, 2, false>(c, r, column, L::WIDTH),
                }
            };
        }
    }
}

/// `C` vectors of one row of [`edge_value`]; returns their columns. Edges take turns with `CHAINS` sums, to hide the
/// latency.
#[inline(always)]
unsafe fn columns<L: Lanes, const C: usize, const CHAINS: usize, const CUT: bool>(
    c: &EdgeCall,
    r: usize,
    column: usize,
    tail: usize,
) -> usize {
    // SAFETY: contract of `super`; `tail` cuts the last vector at `dv`.
    unsafe {
        let tail = L::first(tail);
        let mut sums = [[L::splat(0.0); C]; CHAINS];
        let range = EdgeRange::new(c, r);
        let acc = c.acc.add(r * c.acc_stride + column);
        if c.accumulate != 0 {
            for i in 0..C {
                sums[0][i] = L::load(acc.add(i * L::WIDTH));
            }
        }
        let v = c.kv.add(column);
        let mut edge = range.begin;
        while edge < range.end {
            for chain in 0..CHAINS {
                range.fetch(c, v, edge + chain, C * L::WIDTH);
            }
            for chain in 0..CHAINS {
                if edge + chain < range.end {
                    let weight = L::splat(*c.s.add(edge + chain - range.base));
                    let v = v.add(*c.edge_keys.add(edge + chain) as usize * c.kv_stride);
                    for i in 0..C {
                        let at = v.add(i * L::WIDTH);
                        let values = if CUT && i == C - 1 { L::load_cut(at, tail) } else { L::load(at) };
                        sums[chain][i] = L::fma(values, weight, sums[chain][i]);
                    }
                }
            }
            edge += CHAINS;
        }
        for i in 0..C {
            for chain in 1..CHAINS {
                sums[0][i] = L::add(sums[0][i], sums[chain][i]);
            }
            L::store(acc.add(i * L::WIDTH), sums[0][i]);
        }
        C * L::WIDTH
    }
}

/// The edges of one query.
#[derive(Clone, Copy)]
struct EdgeRange {
    /// First edge of the block, which stands first in `s`.
    base: usize,
    /// First edge.
    begin: usize,
    /// After the last edge.
    end: usize,
    /// Where to stop fetching ahead: after the block's last edge, or 0 where fetching does not pay.
    fetch_end: usize,
}

impl EdgeRange {
    /// Edges that [`Self::fetch`] looks ahead.
    const AHEAD: usize = 16;
    /// Bytes of rows that stay in L2: below, fetching ahead costs 0.9 of 6.4 cycles an edge; beyond, it saves a
    /// quarter of 28 to 60. Dots need none: sixteen rows are under way at once as it is.
    const NEAR: usize = 3 << 19;

    /// The edges of query `r`.
    ///
    /// # Safety
    /// `r < c.rows`, and `c` keeps the contract of [`super`].
    #[inline(always)]
    unsafe fn new(c: &EdgeCall, r: usize) -> Self {
        // SAFETY: `offsets` holds `rows + 1` entries, `edge_keys` every edge below the last.
        unsafe {
            let (base, begin) = (*c.offsets as usize, *c.offsets.add(r) as usize);
            let end = *c.offsets.add(r + 1) as usize;
            // Keys ascend within a query, so that the last one tells how far the rows reach.
            let reach =
                if begin < end { *c.edge_keys.add(end - 1) as usize * c.kv_stride * size_of::<f32>() } else { 0 };
            let fetch_end = if reach > Self::NEAR { *c.offsets.add(c.rows) as usize } else { 0 };
            Self { base, begin, end, fetch_end }
        }
    }

    /// Fetches `width` floats of the row, in `kv`, of an edge that comes soon after `edge`.
    ///
    /// # Safety
    /// As [`Self::new`], for the same `c`.
    #[inline(always)]
    unsafe fn fetch(self, c: &EdgeCall, kv: *const f32, edge: usize, width: usize) {
        let ahead = edge + Self::AHEAD;
        if ahead < self.fetch_end {
            // SAFETY: an edge of the block.
            let row = kv.wrapping_add(unsafe { *c.edge_keys.add(ahead) } as usize * c.kv_stride);
            for x in (0..width).step_by(LINE) {
                prefetch::into_l1(row.wrapping_add(x));
            }
        }
    }
}

//! What every tile should give, in f64, one element at a time.
//!
//! Reads the same call records as the tiles, before these run, and returns what they should write. Each result
//! carries the size of what was summed, against which its rounding error is judged.
#![allow(unsafe_code)]

use super::exact::ExactCall;
use super::{EdgeCall, ExpCall, LANES, LEAST_POWER, PackCall, ROW_CUTS, ScoreCall, ValueCall};

/// An expected number.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Expected {
    /// The number.
    pub value: f64,
    /// Sum of the magnitudes of its terms.
    pub size: f64,
    /// Terms.
    pub terms: usize,
}

impl Expected {
    /// A number that was not summed.
    fn exact(value: f32) -> Self {
        Self { value: value.into(), size: value.abs().into(), terms: 1 }
    }

    fn add(&mut self, a: f32, b: f32) {
        let term = f64::from(a) * f64::from(b);
        self.value += term;
        self.size += term.abs();
        self.terms += 1;
    }

    fn times(self, factor: f32) -> Self {
        let factor = f64::from(factor);
        Self { value: self.value * factor, size: self.size * factor.abs(), terms: self.terms + 1 }
    }

    /// Whether `got` is this number, give or take one rounding per term.
    pub(super) fn admits(self, got: f32) -> bool {
        let got = f64::from(got);
        if self.value.is_nan() || got.is_nan() {
            return self.value.is_nan() && got.is_nan();
        }
        if self.value.is_infinite() || got.is_infinite() {
            return self.value == got;
        }
        (got - self.value).abs() <= 1.2e-7 * (self.terms as f64 + 2.0) * self.size + 1e-37
    }
}

/// Element `at` of an array, or `at` itself where there is none.
unsafe fn row(rows: *const u32, at: usize) -> usize {
    // SAFETY: the caller's `at` lies in the array.
    if rows.is_null() { at } else { unsafe { *rows.add(at) as usize } }
}

/// Whether query `r` may see key `j`.
unsafe fn allowed(words: *const u64, j: usize, r: usize) -> bool {
    // SAFETY: one word per key.
    words.is_null() || unsafe { *words.add(j) } >> r & 1 == 1
}

/// `[groups][d][16]` of [`PackCall`].
pub(super) unsafe fn pack(c: &PackCall) -> Vec<Expected> {
    let mut out = vec![Expected::default(); c.count.div_ceil(LANES) * LANES * c.d];
    for i in 0..c.count {
        for x in 0..c.d {
            // SAFETY: contract of `super`.
            let q = unsafe { *c.q.add(row(c.rows, i) * c.q_stride + x) };
            out[(i / LANES * c.d + x) * LANES + i % LANES].add(q, c.scale);
        }
    }
    out
}

/// `[groups][nkeys][16]` scores, and which of them are specified.
pub(super) unsafe fn score(c: &ScoreCall) -> Vec<(Expected, bool)> {
    let mut out = Vec::new();
    for r in 0..c.groups * LANES {
        for j in 0..c.nkeys {
            let mut sum = Expected::default();
            // SAFETY: contract of `super`.
            let seen = unsafe {
                for x in 0..c.d {
                    let k = *c.k.add(row(c.keys, j) * c.k_stride + x);
                    sum.add(k, *c.qt.add((r / LANES * c.d + x) * LANES + r % LANES));
                }
                allowed(c.words, j, r)
            };
            out.push((sum, seen));
        }
    }
    // To panel order.
    (0..out.len())
        .map(|at| {
            let (g, j, i) = (at / LANES / c.nkeys, at / LANES % c.nkeys, at % LANES);
            out[(g * LANES + i) * c.nkeys + j]
        })
        .collect()
}

/// 2^(s − max), with the difference taken in f32 as the tile does.
fn power(s: f32, max: f32) -> Expected {
    let x = s - max;
    let value = f64::from(x).exp2();
    Expected { value: if x < LEAST_POWER { 0.0 } else { value }, size: value, terms: 1 }
}

/// `[groups][nkeys][16]` probabilities and `[groups * 16]` sums.
pub(super) unsafe fn exp(c: &ExpCall) -> (Vec<Expected>, Vec<Expected>) {
    let mut p = vec![Expected::default(); c.groups * c.nkeys * LANES];
    let mut sums = Vec::new();
    for r in 0..c.groups * LANES {
        // SAFETY: contract of `super`.
        unsafe {
            let mut sum = Expected::exact(*c.sum.add(r));
            for j in (0..c.nkeys).filter(|&j| allowed(c.words, j, r)) {
                let one = power(*c.s.add(r / LANES * c.s_stride + j * LANES + r % LANES), *c.max.add(r));
                p[(r / LANES * c.nkeys + j) * LANES + r % LANES] = one;
                sum.value += one.value;
                sum.size += one.size;
                sum.terms += 1;
            }
            sums.push(sum);
        }
    }
    (p, sums)
}

/// `[rows][dv]` sums, or outputs where `out` is given.
pub(super) unsafe fn value(c: &ValueCall) -> Vec<Expected> {
    let mut out = Vec::new();
    for r in 0..c.rows {
        let cut = (0..3).find(|&cut| r % LANES < ROW_CUTS[cut + 1]).unwrap_or(2);
        for x in 0..c.dv {
            // SAFETY: contract of `super`.
            unsafe {
                let [front, back] = if c.trims.is_null() { [0; 2] } else { *c.trims.add(r / LANES * 3 + cut) };
                let at = *c.acc.add(r * c.acc_stride + x);
                let mut sum = if c.accumulate == 0 { Expected::default() } else { Expected::exact(at) };
                for j in front as usize..c.nkeys.saturating_sub(back as usize) {
                    let p = *c.p.add(r / LANES * c.p_stride + j * LANES + r % LANES);
                    sum.add(p, *c.v.add(row(c.keys, j) * c.v_stride + x));
                }
                if !c.out.is_null() {
                    sum = sum.times(*c.factor.add(r));
                    if !c.rv.is_null() {
                        sum.add(c.restart, *c.rv.add(row(c.out_rows, r) * c.rv_stride + x));
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

/// `[rows][dv]` sums.
pub(super) unsafe fn value_exact(c: &ExactCall) -> Vec<Expected> {
    let mut out = Vec::new();
    for r in 0..c.rows {
        for x in 0..c.dv {
            // SAFETY: contract of `super`.
            unsafe {
                let at = *c.acc.add(r * c.acc_stride + x);
                let mut sum = if c.accumulate == 0 { Expected::default() } else { Expected::exact(at) };
                for j in (0..c.nkeys).filter(|&j| allowed(c.words, j, r)) {
                    let p = *c.p.add(r / LANES * c.p_stride + j * LANES + r % LANES);
                    sum.add(p, *c.v.add(row(c.keys, j) * c.v_stride + x));
                }
                out.push(sum);
            }
        }
    }
    out
}

/// The block's edges in order: query and key row.
pub(super) unsafe fn edges(c: &EdgeCall) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    for r in 0..c.rows {
        // SAFETY: contract of `super`.
        unsafe {
            for e in *c.offsets.add(r)..*c.offsets.add(r + 1) {
                out.push((r, *c.edge_keys.add(e as usize) as usize));
            }
        }
    }
    out
}

/// Scores of the block's edges.
pub(super) unsafe fn edge_score(c: &EdgeCall) -> Vec<Expected> {
    // SAFETY: contract of `super`.
    let edges = unsafe { edges(c) };
    let dot = |&(r, key): &(usize, usize)| {
        let mut sum = Expected::default();
        for x in 0..c.d {
            // SAFETY: contract of `super`.
            unsafe { sum.add(*c.q.add(row(c.q_rows, r) * c.q_stride + x), *c.kv.add(key * c.kv_stride + x)) };
        }
        sum.times(c.scale)
    };
    edges.iter().map(dot).collect()
}

/// Probabilities of the block's edges, and `[rows]` sums.
pub(super) unsafe fn edge_exp(c: &EdgeCall) -> (Vec<Expected>, Vec<Expected>) {
    // SAFETY: contract of `super`.
    unsafe {
        let mut sums: Vec<Expected> = (0..c.rows).map(|r| Expected::exact(*c.sum.add(r))).collect();
        let mut p = Vec::new();
        for (e, (r, _)) in edges(c).into_iter().enumerate() {
            let one = power(*c.s.add(e), *c.max.add(r));
            sums[r].value += one.value;
            sums[r].size += one.size;
            sums[r].terms += 1;
            p.push(one);
        }
        (p, sums)
    }
}

/// `[rows][dv]` sums.
pub(super) unsafe fn edge_value(c: &EdgeCall) -> Vec<Expected> {
    // SAFETY: contract of `super`.
    unsafe {
        let start = |at: usize| {
            let acc = *c.acc.add(at / c.dv * c.acc_stride + at % c.dv);
            if c.accumulate == 0 { Expected::default() } else { Expected::exact(acc) }
        };
        let mut out: Vec<Expected> = (0..c.rows * c.dv).map(start).collect();
        for (e, (r, key)) in edges(c).into_iter().enumerate() {
            for x in 0..c.dv {
                out[r * c.dv + x].add(*c.s.add(e), *c.kv.add(key * c.kv_stride + x));
            }
        }
        out
    }
}

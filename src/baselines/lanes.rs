//! Inner loops of the baselines, written for the compiler's vectoriser and compiled once for each level of
//! instruction set; the best one that the CPU has is taken at run time. `multiversion` takes AVX-512 from Ice
//! Lake and Zen 4 on, where it does not slow the clock; older CPUs run AVX2.

use multiversion::multiversion;

/// Independent sums in a reduction: one AVX-512 vector, two of AVX2.
const LANES: usize = 16;

/// 2^x to about one unit in the last place; below −126 it stays at 2^−126.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-126.0);
    let rounded = x + ROUND;
    let f = x - (rounded - ROUND);
    // ln(2)^i / i!, |f| ≤ 1/2.
    let mut p = 1.540_353e-4_f32;
    for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, core::f32::consts::LN_2, 1.0] {
        p = p.mul_add(f, c);
    }
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// Folds in [`LANES`] lanes, so that the order of a reduction does not stop the vectoriser.
#[inline(always)]
fn reduce(row: &[f32], zero: f32, join: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let mut lanes = [zero; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = join(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = join(*lane, x);
    }
    lanes.into_iter().fold(zero, join)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(&x, &y)| x * y).sum::<f32>();
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    lanes.into_iter().sum::<f32>() + rest
}

/// 2^(row − max) / sum in place; an empty row becomes 0.
#[inline(always)]
fn softmax(row: &mut [f32]) {
    let max = reduce(row, f32::NEG_INFINITY, larger);
    for x in row.iter_mut() {
        *x = exp2(*x - max);
    }
    let factor = 1.0 / reduce(row, 0.0, |a, b| a + b);
    for x in row.iter_mut() {
        *x *= factor;
    }
}

/// Masked softmax of each row of scores: `scores` and `mask` are `[rows][width]`, scores times `scale` are
/// base-2 logarithms. Rows without an allowed key become 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn masked_softmax(scores: &mut [f32], mask: &[bool], width: usize, scale: f32) {
    if width == 0 {
        return;
    }
    for (row, mask) in scores.chunks_exact_mut(width).zip(mask.chunks_exact(width)) {
        for (x, &allowed) in row.iter_mut().zip(mask) {
            *x = if allowed { *x * scale } else { f32::NEG_INFINITY };
        }
        softmax(row);
        // exp2 leaves 2^-126 in masked places, and an empty row is all NaN by now.
        for (x, &allowed) in row.iter_mut().zip(mask) {
            *x = if allowed { *x } else { 0.0 };
        }
    }
}

/// SDDMM: `scores[e] = scale · q[row] · k[key]` for the edges of the rows in `offsets` (one more than rows).
/// `q` starts at the first of these rows; `keys` and `scores` at its first edge.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn sddmm(q: &[f32], k: &[f32], d: usize, offsets: &[usize], keys: &[u32], scale: f32, scores: &mut [f32]) {
    for (query, edges) in q.chunks_exact(d).zip(offsets.windows(2)) {
        let edges = edges[0] - offsets[0]..edges[1] - offsets[0];
        for (score, &key) in scores[edges.clone()].iter_mut().zip(&keys[edges]) {
            let key = key as usize * d;
            *score = scale * dot(query, &k[key..key + d]);
        }
    }
}

/// Softmax over the edges of each row, in place; scores are base-2 logarithms.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn edge_softmax(offsets: &[usize], scores: &mut [f32]) {
    for edges in offsets.windows(2) {
        softmax(&mut scores[edges[0] - offsets[0]..edges[1] - offsets[0]]);
    }
}

/// SpMM with restart: `out[row] = step · Σ_e p[e] · z[key(e)] + restart · v[row]` for the rows in `offsets`.
/// `out` and `v`, which is left out where there is no restart, start at the first of these rows.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn spmm(
    p: &[f32],
    keys: &[u32],
    offsets: &[usize],
    z: &[f32],
    width: usize,
    (step, restart): (f32, f32),
    v: Option<&[f32]>,
    out: &mut [f32],
) {
    /// Columns whose sums stay in registers over a row's edges.
    const COLUMNS: usize = 4 * LANES;
    for (i, (out, edges)) in out.chunks_exact_mut(width).zip(offsets.windows(2)).enumerate() {
        let edges = edges[0] - offsets[0]..edges[1] - offsets[0];
        let (p, keys) = (&p[edges.clone()], &keys[edges]);
        let mut start = 0;
        while start + COLUMNS <= width {
            let mut sums = [0.0_f32; COLUMNS];
            for (&p, &key) in p.iter().zip(keys) {
                let row = key as usize * width + start;
                let row = &z[row..row + COLUMNS];
                for i in 0..COLUMNS {
                    sums[i] = p.mul_add(row[i], sums[i]);
                }
            }
            out[start..start + COLUMNS].copy_from_slice(&sums);
            start += COLUMNS;
        }
        let rest = &mut out[start..];
        rest.fill(0.0);
        for (&p, &key) in p.iter().zip(keys) {
            let row = key as usize * width;
            for (sum, &x) in rest.iter_mut().zip(&z[row + start..row + width]) {
                *sum = p.mul_add(x, *sum);
            }
        }
        match v {
            Some(v) => {
                for (sum, &x) in out.iter_mut().zip(&v[i * width..]) {
                    *sum = step.mul_add(*sum, restart * x);
                }
            }
            None => out.iter_mut().for_each(|sum| *sum *= step),
        }
    }
}

/// As [`sddmm`], but added to what stands in `scores`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn add_sddmm(q: &[f32], k: &[f32], d: usize, offsets: &[usize], keys: &[u32], scale: f32, scores: &mut [f32]) {
    for (query, edges) in q.chunks_exact(d).zip(offsets.windows(2)) {
        let edges = edges[0] - offsets[0]..edges[1] - offsets[0];
        for (score, &key) in scores[edges.clone()].iter_mut().zip(&keys[edges]) {
            let key = key as usize * d;
            *score = scale.mul_add(dot(query, &k[key..key + d]), *score);
        }
    }
}

/// The gradient of a softmax over the edges of each row, in place: `dp[e] = p[e] · (dp[e] − Σ p dp)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn edge_softmax_gradient(offsets: &[usize], p: &[f32], dp: &mut [f32]) {
    for edges in offsets.windows(2) {
        let edges = edges[0] - offsets[0]..edges[1] - offsets[0];
        let (p, dp) = (&p[edges.clone()], &mut dp[edges]);
        let mean = dot(p, dp);
        for (dp, &p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - mean);
        }
    }
}

/// SpMM by the transpose, added to: `out[key] += factor · Σ_e p[edges[e]] · g[query(e)]` over the edges of the keys in
/// `offsets`. `queries` and `edges` start at the first of them, `out` at the first key.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn add_spmm_transposed(
    p: &[f32],
    (queries, edges): (&[u32], &[u32]),
    offsets: &[usize],
    g: &[f32],
    width: usize,
    factor: f32,
    out: &mut [f32],
) {
    /// As in [`spmm`].
    const COLUMNS: usize = 4 * LANES;
    for (out, of_key) in out.chunks_exact_mut(width).zip(offsets.windows(2)) {
        let of_key = of_key[0] - offsets[0]..of_key[1] - offsets[0];
        let (queries, edges) = (&queries[of_key.clone()], &edges[of_key]);
        let mut start = 0;
        while start + COLUMNS <= width {
            let mut sums = [0.0_f32; COLUMNS];
            for (&edge, &query) in edges.iter().zip(queries) {
                let p = p[edge as usize];
                let row = query as usize * width + start;
                let row = &g[row..row + COLUMNS];
                for i in 0..COLUMNS {
                    sums[i] = p.mul_add(row[i], sums[i]);
                }
            }
            for (out, sum) in out[start..start + COLUMNS].iter_mut().zip(sums) {
                *out = factor.mul_add(sum, *out);
            }
            start += COLUMNS;
        }
        for (&edge, &query) in edges.iter().zip(queries) {
            let p = factor * p[edge as usize];
            let row = query as usize * width;
            for (out, &x) in out[start..].iter_mut().zip(&g[row + start..row + width]) {
                *out = p.mul_add(x, *out);
            }
        }
    }
}

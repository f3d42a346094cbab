//! Transposed values, scattered edges and the softmax's gradient of every family, and the plain ones, against f64, in
//! buffers that end at a guard page.

use super::super::Family;
use super::super::gradient::{self, Dropped, EdgeGradientCall, GradientCall};
use super::super::guard::GuardedBuffer;
use super::super::tests::families;
use super::*;
use crate::dropout;

/// The tiles under test, by name.
struct Tiles {
    name: String,
    transposed: unsafe extern "C" fn(*const TransposedCall),
    scatter: unsafe extern "C" fn(*const ScatterCall),
    gradient: unsafe extern "C" fn(*const GradientCall),
    edge_gradient: unsafe extern "C" fn(*const EdgeGradientCall),
}

fn all() -> Vec<Tiles> {
    let plain = Tiles {
        name: "plain".to_owned(),
        transposed,
        scatter,
        gradient: gradient::gradient,
        edge_gradient: gradient::edge_gradient,
    };
    let of = |family: Family| Tiles {
        name: family.isa.to_string(),
        transposed: family.transposed,
        scatter: family.scatter,
        gradient: family.gradient,
        edge_gradient: family.edge_gradient,
    };
    std::iter::once(plain).chain(families().into_iter().map(of)).collect()
}

/// A linear congruential generator, its high bits.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 11
    }

    fn float(&mut self) -> f32 {
        (self.bits() >> 29) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> GuardedBuffer<f32> {
        GuardedBuffer::new(&(0..count).map(|_| self.float()).collect::<Vec<_>>())
    }

    /// Distinct row numbers, or none.
    fn rows(&mut self, count: usize) -> Option<GuardedBuffer<u32>> {
        let mut rows: Vec<u32> = (0..count as u32).map(|i| 2 * i).collect();
        for i in (1..count).rev() {
            rows.swap(i, self.bits() as usize % (i + 1));
        }
        (self.bits() & 1 == 1).then(|| GuardedBuffer::new(&rows))
    }
}

fn pointer<T: Copy>(buffer: &Option<GuardedBuffer<T>>) -> *const T {
    buffer.as_ref().map_or(std::ptr::null(), |buffer| buffer.as_ptr())
}

fn row(rows: &Option<GuardedBuffer<u32>>, at: usize) -> usize {
    rows.as_ref().map_or(at, |rows| rows[at] as usize)
}

/// Rows that an array needs, the last one not padded.
fn length(rows: &Option<GuardedBuffer<u32>>, count: usize, stride: usize, width: usize) -> usize {
    (0..count).map(|at| row(rows, at)).max().map_or(0, |last| last * stride + width)
}

#[track_caller]
fn close(what: &str, found: f32, expected: f64, size: f64) {
    assert!((f64::from(found) - expected).abs() <= 3e-6 * (size + 1e-3), "{what}: {found}, expected {expected}");
}

#[test]
fn transposed_values_match_the_reference() {
    let mut random = Random(1);
    for tiles in all() {
        for width in [1, 5, 8, 15, 16, 17, 40, 64, 65, 100] {
            for nkeys in [1, 2, 5, 6, 7, 13] {
                for rows in [1, 15, 16, 17, 40, 64] {
                    let (exact, masked) = (random.bits() & 1 == 1, random.bits() & 1 == 1);
                    check_transposed(&mut random, &tiles, (width, nkeys, rows), exact, masked);
                }
            }
        }
    }
}

fn check_transposed(
    random: &mut Random,
    tiles: &Tiles,
    (width, nkeys, rows): (usize, usize, usize),
    exact: bool,
    masked: bool,
) {
    let groups = rows.div_ceil(LANES);
    let p_stride = nkeys * LANES;
    let words: Vec<u64> = (0..nkeys).map(|_| random.bits() & random.bits() << 7).collect();
    let allowed = |j: usize, r: usize| !masked || words[j] >> r & 1 == 1;
    let mut weights = vec![0.0; groups * p_stride];
    for (at, weight) in weights.iter_mut().enumerate() {
        let (group, j, lane) = (at / p_stride, at % p_stride / LANES, at % LANES);
        let r = group * LANES + lane;
        // Lanes beyond the last query hold what softmax left there.
        *weight = if r >= rows || allowed(j, r) { random.float() } else { 0.0 };
    }
    let p = GuardedBuffer::new(&weights);
    let guarded = masked.then(|| GuardedBuffer::new(&words));
    let (x_rows, keys) = (random.rows(rows), random.rows(nkeys));
    let (x_stride, out_stride) = (width + random.bits() as usize % 3, width + random.bits() as usize % 3);
    let mut x = random.floats(length(&x_rows, rows, x_stride, width));
    // A row that nobody may see reaches nobody, whatever it holds.
    let hidden = (exact && masked).then(|| (0..rows).find(|&r| (0..nkeys).all(|j| !allowed(j, r)))).flatten();
    if let Some(r) = hidden {
        x[row(&x_rows, r) * x_stride] = f32::NAN;
    }
    let mut out = random.floats(length(&keys, nkeys, out_stride, width));
    let before: Vec<f32> = out.to_vec();
    let call = TransposedCall {
        p: p.as_ptr(),
        p_stride,
        nkeys,
        rows,
        words: pointer(&guarded),
        x: x.as_ptr(),
        x_stride,
        x_rows: pointer(&x_rows),
        width,
        out: out.as_mut_ptr(),
        out_stride,
        keys: pointer(&keys),
        factor: 0.7,
        exact: usize::from(exact),
    };
    // SAFETY: buffers as the record says.
    unsafe { (tiles.transposed)(&call) };
    let mut expected: Vec<(f64, f64)> = before.iter().map(|&x| (f64::from(x), f64::from(x.abs()))).collect();
    for j in 0..nkeys {
        for r in (0..rows).filter(|&r| allowed(j, r)) {
            let weight = f64::from(call.factor) * f64::from(p[r / LANES * p_stride + j * LANES + r % LANES]);
            for column in 0..width {
                let term = weight * f64::from(x[row(&x_rows, r) * x_stride + column]);
                let (sum, size) = &mut expected[row(&keys, j) * out_stride + column];
                *sum += term;
                *size += term.abs();
            }
        }
    }
    let what = format!("{} width {width} keys {nkeys} rows {rows} exact {exact} masked {masked}", tiles.name);
    for (&found, (expected, size)) in out.iter().zip(expected) {
        close(&what, found, expected, size);
    }
}

#[test]
fn edges_are_scattered_and_have_gradients() {
    let mut random = Random(2);
    for tiles in all() {
        for width in [1, 16, 17, 64, 70] {
            for rows in [1, 7, 64] {
                let mut offsets = vec![5u32];
                for _ in 0..rows {
                    offsets.push(offsets[offsets.len() - 1] + random.bits() as u32 % 4);
                }
                let (base, end) = (offsets[0] as usize, offsets[rows] as usize);
                let keys: Vec<u32> = (0..end).map(|_| random.bits() as u32 % 9).collect();
                let (offsets, keys) = (GuardedBuffer::new(&offsets), GuardedBuffer::new(&keys));
                let x_rows = random.rows(rows);
                let x = random.floats(length(&x_rows, rows, width, width));
                let mut s = random.floats(end - base);
                let mut out = random.floats(9 * width);
                let before: Vec<f32> = out.to_vec();
                let edges = EdgeCall {
                    q: x.as_ptr(),
                    q_stride: width,
                    q_rows: pointer(&x_rows),
                    scale: 0.3,
                    rows,
                    d: 0,
                    dv: width,
                    offsets: offsets.as_ptr(),
                    edge_keys: keys.as_ptr(),
                    kv: std::ptr::null(),
                    kv_stride: 0,
                    s: s.as_mut_ptr(),
                    max: std::ptr::null_mut(),
                    sum: std::ptr::null_mut(),
                    acc: std::ptr::null_mut(),
                    acc_stride: 0,
                    accumulate: 0,
                };
                let call = ScatterCall { edges, out: out.as_mut_ptr(), out_stride: width };
                // SAFETY: buffers as the record says.
                unsafe { (tiles.scatter)(&call) };
                let mut expected: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
                for r in 0..rows {
                    for edge in offsets[r] as usize..offsets[r + 1] as usize {
                        for column in 0..width {
                            let x = f64::from(x[row(&x_rows, r) * width + column]);
                            expected[keys[edge] as usize * width + column] +=
                                f64::from(edges.scale) * f64::from(s[edge - base]) * x;
                        }
                    }
                }
                for (&found, expected) in out.iter().zip(expected) {
                    close(&format!("{} width {width} rows {rows}", tiles.name), found, expected, 4.0);
                }
                check_edge_gradient(&mut random, &tiles, rows, &offsets, &keys);
            }
        }
    }
}

fn check_edge_gradient(
    random: &mut Random,
    tiles: &Tiles,
    rows: usize,
    offsets: &GuardedBuffer<u32>,
    keys: &GuardedBuffer<u32>,
) {
    let count = (offsets[rows] - offsets[0]) as usize;
    let (mut p, mut dp, delta) = (random.floats(count), random.floats(count), random.floats(rows));
    let row_keys = GuardedBuffer::new(&(0..rows).map(|_| random.bits() as u32).collect::<Vec<_>>());
    let (before_p, before_dp) = (p.to_vec(), dp.to_vec());
    let leaves = random.bits() & 1 == 0;
    let call = EdgeGradientCall {
        p: p.as_mut_ptr(),
        dp: dp.as_mut_ptr(),
        leaves: usize::from(leaves),
        rows,
        offsets: offsets.as_ptr(),
        edge_keys: keys.as_ptr(),
        delta: delta.as_ptr(),
        scale: 0.2,
        dropped: dropped(row_keys.as_ptr(), std::ptr::null()),
    };
    // SAFETY: buffers as the record says.
    unsafe { (tiles.edge_gradient)(&call) };
    for r in 0..rows {
        for edge in (offsets[r] - offsets[0]) as usize..(offsets[r + 1] - offsets[0]) as usize {
            let key = keys[edge + offsets[0] as usize];
            let (weight, grad) = expected(before_p[edge], before_dp[edge], delta[r], Some(row_keys[r]), key, 0.2);
            let weight = if leaves { weight } else { f64::from(before_p[edge]) };
            close(&format!("{} edge p", tiles.name), p[edge], weight, 2.0);
            close(&format!("{} edge ds", tiles.name), dp[edge], grad, 2.0);
        }
    }
}

const RATE: f32 = 0.4;

fn dropped(row_keys: *const u32, keys: *const u32) -> Dropped {
    let (threshold, keep) = (dropout::threshold(RATE), 1.0 / (1.0 - RATE));
    Dropped { row_keys, keys, first_key: 11, key_step: 3, threshold, keep }
}

/// The weight that is left, and its gradient.
fn expected(p: f32, dp: f32, delta: f32, row_key: Option<u32>, key: u32, scale: f32) -> (f64, f64) {
    let factor = match row_key {
        None => 1.0,
        Some(row_key) if dropout::hash(row_key, key) < dropout::threshold(RATE) => 0.0,
        Some(_) => 1.0 / (1.0 - f64::from(RATE)),
    };
    let p = f64::from(p);
    (factor * p, f64::from(scale) * p * (factor * f64::from(dp) - f64::from(delta)))
}

#[test]
fn gradients_of_panels_match_the_reference() {
    let mut random = Random(3);
    for tiles in all() {
        for nkeys in [1, 2, 7, 40] {
            for groups in 1..=4 {
                for case in 0..8 {
                    check_gradient(&mut random, &tiles, nkeys, groups, case);
                }
            }
        }
    }
}

fn check_gradient(random: &mut Random, tiles: &Tiles, nkeys: usize, groups: usize, case: usize) {
    let (drops, listed, only_drops) = (case & 1 == 1, case & 2 == 2, case == 5);
    let leaves = only_drops || case & 4 == 0;
    let (stride, dp_stride) = (nkeys * LANES + 16, nkeys * LANES + if listed { 16 } else { 48 });
    let count = |stride: usize| (groups - 1) * stride + nkeys * LANES;
    let (mut p, mut dp) = (random.floats(count(stride)), random.floats(count(dp_stride)));
    // What is not allowed has weight 0 beside anything.
    (p[0], dp[0]) = (0.0, f32::NAN);
    let delta = random.floats(groups * LANES);
    let row_keys = GuardedBuffer::new(&(0..groups * LANES).map(|_| random.bits() as u32).collect::<Vec<_>>());
    let keys = GuardedBuffer::new(&(0..nkeys).map(|_| random.bits() as u32).collect::<Vec<_>>());
    let (before_p, before_dp) = (p.to_vec(), dp.to_vec());
    let list = if listed { keys.as_ptr() } else { std::ptr::null() };
    let call = GradientCall {
        p: p.as_mut_ptr(),
        dp: if only_drops { std::ptr::null_mut() } else { dp.as_mut_ptr() },
        stride,
        dp_stride,
        leaves: usize::from(leaves),
        nkeys,
        groups,
        delta: delta.as_ptr(),
        scale: 0.2,
        dropped: dropped(if drops { row_keys.as_ptr() } else { std::ptr::null() }, list),
    };
    // SAFETY: buffers as the record says.
    unsafe { (tiles.gradient)(&call) };
    for group in 0..groups {
        for j in 0..nkeys {
            let key = if listed { keys[j] } else { (11 + 3 * j) as u32 };
            for lane in 0..LANES {
                let [at, dp_at] = [stride, dp_stride].map(|stride| group * stride + j * LANES + lane);
                let r = group * LANES + lane;
                let row_key = drops.then(|| row_keys[r]);
                let what = format!("{} case {case} keys {nkeys} group {group} key {j} lane {lane}", tiles.name);
                if before_p[at] == 0.0 {
                    assert_eq!(p[at], 0.0, "{what}");
                    assert!(only_drops || dp[dp_at] == 0.0, "{what}");
                    continue;
                }
                let (weight, grad) = expected(before_p[at], before_dp[dp_at], delta[r], row_key, key, 0.2);
                close(&what, p[at], if leaves { weight } else { f64::from(before_p[at]) }, 2.0);
                close(&what, dp[dp_at], if only_drops { f64::from(before_dp[dp_at]) } else { grad }, 2.0);
            }
        }
    }
}

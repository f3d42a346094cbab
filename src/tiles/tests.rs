//! Every family against the naive reference, over odd sizes, in buffers that end at a guard page.
#![allow(unsafe_code)]

use super::exact::{ExactCall, value_exact};
use super::guard::GuardedBuffer;
use super::reference::{self, Expected};
use super::*;

const WIDTHS: [usize; 16] = [1, 2, 3, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 128, 257, 512];
const KEYS: [usize; 9] = [1, 2, 5, 6, 7, 63, 64, 65, 200];
const ROWS: [usize; 10] = [1, 2, 6, 11, 15, 16, 17, 33, 63, 64];

/// All that this CPU runs.
pub(super) fn families() -> Vec<Family> {
    crate::target::Isa::ALL.into_iter().filter_map(family).collect()
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn coin(&mut self) -> bool {
        self.next() >> 40 & 1 == 1
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> GuardedBuffer<f32> {
        GuardedBuffer::new(&(0..n).map(|_| self.float()).collect::<Vec<_>>())
    }

    /// `count` row numbers below `rows`, or none.
    fn rows(&mut self, count: usize, rows: usize) -> Option<GuardedBuffer<u32>> {
        let list: Vec<u32> = (0..count).map(|_| self.below(rows) as u32).collect();
        self.coin().then(|| GuardedBuffer::new(&list))
    }

    /// A permutation of `0..count` spread over rows `0..2 * count`, or none: rows that are written.
    fn distinct_rows(&mut self, count: usize) -> Option<GuardedBuffer<u32>> {
        let mut list: Vec<u32> = (0..count).map(|i| (2 * i) as u32).collect();
        for i in (1..count).rev() {
            list.swap(i, self.below(i + 1));
        }
        self.coin().then(|| GuardedBuffer::new(&list))
    }

    /// Mask words for `nkeys` keys and `rows` queries: none, random, a band, all zero, or single groups.
    fn words(&mut self, nkeys: usize, rows: usize) -> Option<GuardedBuffer<u64>> {
        let all = u64::MAX >> (64 - rows);
        let kind = self.below(5);
        let group = self.below(4);
        let list: Vec<u64> = (0..nkeys)
            .map(|j| match kind {
                1 => self.next() & all,
                2 => all & (u64::MAX << (j * 64 / nkeys)) & (u64::MAX >> (63 - (j * 64 / nkeys + 9).min(63))),
                3 => 0,
                _ => (self.next() & 0xFFFF) << (16 * group) & all,
            })
            .collect();
        (kind != 0).then(|| GuardedBuffer::new(&list))
    }
}

fn pointer<T: Copy>(buffer: &Option<GuardedBuffer<T>>) -> *const T {
    buffer.as_ref().map_or(std::ptr::null(), |b| b.as_ptr())
}

/// Rows that an array needs so that rows `0..count`, or those of `list`, exist, with the last one not padded.
fn length(list: &Option<GuardedBuffer<u32>>, count: usize, stride: usize, width: usize) -> usize {
    let rows = list.as_ref().map_or(count, |l| l.iter().max().map_or(0, |&m| m as usize + 1));
    rows.saturating_sub(1) * stride + width
}

#[track_caller]
fn check(what: &str, at: usize, got: f32, expected: Expected) {
    assert!(expected.admits(got), "{what}: element {at} is {got}, expected {expected:?}");
}

#[test]
fn pack_matches_the_reference() {
    let mut random = Random(1);
    for family in families() {
        for d in WIDTHS {
            for count in ROWS {
                let stride = d + random.below(3);
                let rows = random.rows(count, 100);
                let q = random.floats(length(&rows, count, stride, d));
                let mut out = random.floats(count.div_ceil(LANES) * LANES * d);
                let call = PackCall {
                    q: q.as_ptr(),
                    q_stride: stride,
                    rows: pointer(&rows),
                    count,
                    d,
                    out: out.as_mut_ptr(),
                    scale: 0.37,
                };
                // SAFETY: buffers as the record says.
                let expected = unsafe {
                    let expected = reference::pack(&call);
                    (family.pack)(&call);
                    expected
                };
                for (at, (&got, expected)) in out.iter().zip(expected).enumerate() {
                    check(&format!("{} pack d {d} count {count}", family.isa), at, got, expected);
                }
            }
        }
    }
}

#[test]
fn pack_zeroes_lanes_beyond_a_nan_query() {
    for family in families() {
        let q = GuardedBuffer::new(&[f32::NAN; 5 * 17]);
        let mut out = GuardedBuffer::new(&[1.0f32; 17 * LANES]);
        let call = PackCall {
            q: q.as_ptr(),
            q_stride: 17,
            rows: std::ptr::null(),
            count: 5,
            d: 17,
            out: out.as_mut_ptr(),
            scale: 1.0,
        };
        // SAFETY: buffers as the record says.
        unsafe { (family.pack)(&call) };
        for (at, &x) in out.iter().enumerate() {
            assert_eq!(x.is_nan(), at % LANES < 5, "{} at {at}: {x}", family.isa);
        }
    }
}

#[test]
fn score_matches_the_reference() {
    let mut random = Random(2);
    for family in families() {
        for d in WIDTHS {
            for nkeys in KEYS {
                for _ in 0..3 {
                    score_case(&mut random, family, d, nkeys);
                }
            }
        }
    }
}

fn score_case(random: &mut Random, family: Family, d: usize, nkeys: usize) {
    let rows = random.pick(&ROWS);
    let groups = rows.div_ceil(LANES);
    let stride = d + random.below(3);
    let keys = random.rows(nkeys, 300);
    let words = random.words(nkeys, rows);
    let qt = random.floats(groups * d * LANES);
    let mut k = random.floats(length(&keys, nkeys, stride, d));
    let s_stride = nkeys * LANES + 16 * random.below(3);
    let mut s = random.floats((groups - 1) * s_stride + nkeys * LANES);
    let mut max = GuardedBuffer::new(&vec![f32::NEG_INFINITY; groups * LANES]);
    let poison = random.pick(&[0.0, f32::NAN, f32::INFINITY]);
    if poison != 0.0 {
        // In one key only, which masks may hide.
        let key = random.below(nkeys);
        let row = keys.as_ref().map_or(key, |l| l[key] as usize);
        k[row * stride + random.below(d)] = poison;
    }
    let call = ScoreCall {
        ahead: [super::Ahead { start: qt.as_ptr(), count: random.below(3), step: random.below(1000) }; 4],
        qt: qt.as_ptr(),
        k: k.as_ptr(),
        k_stride: stride,
        keys: pointer(&keys),
        nkeys,
        d,
        groups,
        words: pointer(&words),
        s: s.as_mut_ptr(),
        s_stride,
        max: if random.below(4) == 0 { std::ptr::null_mut() } else { max.as_mut_ptr() },
    };
    // SAFETY: buffers as the record says.
    let expected = unsafe {
        let expected = reference::score(&call);
        (family.score)(&call);
        expected
    };
    let what = format!("{} score d {d} nkeys {nkeys} rows {rows} words {}", family.isa, words.is_some());
    let mut expected_max = vec![f32::NEG_INFINITY; groups * LANES];
    for (at, (expected, seen)) in expected.into_iter().enumerate() {
        let (g, j, i) = (at / LANES / nkeys, at / LANES % nkeys, at % LANES);
        let got = s[g * s_stride + j * LANES + i];
        if seen {
            check(&what, at, got, expected);
            expected_max[g * LANES + i] = expected_max[g * LANES + i].max(got);
        }
    }
    if !call.max.is_null() {
        assert_eq!(&max[..], &expected_max[..], "{what}: maximum");
    }
}

#[test]
fn score_leaves_out_groups_that_do_not_see_a_key() {
    let mut random = Random(11);
    let (d, nkeys) = (64, 192);
    // A window of 64 keys to either side: its edges move on by a group every 16 keys.
    let words: Vec<u64> =
        (0..nkeys).map(|j| (0..64).fold(0, |word, i| word | u64::from(i <= j && j <= i + 128) << i)).collect();
    let (qt, k) = (random.floats(4 * d * LANES), random.floats(nkeys * d));
    for family in families() {
        let mut s = GuardedBuffer::new(&vec![f32::INFINITY; 4 * nkeys * LANES]);
        let call = ScoreCall {
            ahead: [super::Ahead::NONE; 4],
            qt: qt.as_ptr(),
            k: k.as_ptr(),
            k_stride: d,
            keys: std::ptr::null(),
            nkeys,
            d,
            groups: 4,
            words: words.as_ptr(),
            s: s.as_mut_ptr(),
            s_stride: nkeys * LANES,
            max: std::ptr::null_mut(),
        };
        // SAFETY: buffers as the record says.
        unsafe { (family.score)(&call) };
        for (at, &score) in s.iter().enumerate() {
            let (group, key) = (at / LANES / nkeys, at / LANES % nkeys);
            let sees = words[key] >> (LANES * group) & 0xFFFF != 0;
            assert_eq!(score.is_finite(), sees, "{} group {group} key {key}", family.isa);
        }
    }
}

#[test]
fn exp_matches_the_reference() {
    let mut random = Random(3);
    for family in families() {
        for nkeys in KEYS {
            for rows in ROWS {
                for _ in 0..4 {
                    exp_case(&mut random, family, nkeys, rows);
                }
            }
        }
    }
}

fn exp_case(random: &mut Random, family: Family, nkeys: usize, rows: usize) {
    let groups = rows.div_ceil(LANES);
    let words = random.words(nkeys, rows);
    let s_stride = nkeys * LANES + 16 * random.below(3);
    let mut s = random.floats((groups - 1) * s_stride + nkeys * LANES);
    let spread = random.pick(&[1.0, 20.0, 300.0]);
    for x in s.iter_mut() {
        *x *= spread;
        if random.below(30) == 0 {
            *x = random.pick(&[f32::NEG_INFINITY, f32::NAN, -1e30, 0.0]);
        }
    }
    let max: Vec<f32> = (0..groups * LANES).map(|_| spread.min(30.0) * random.float() + 0.9 * spread).collect();
    let max = GuardedBuffer::new(&max);
    let mut sum = random.floats(groups * LANES);
    let call = ExpCall {
        s: s.as_mut_ptr(),
        s_stride,
        nkeys,
        groups,
        words: pointer(&words),
        max: max.as_ptr(),
        sum: sum.as_mut_ptr(),
    };
    // SAFETY: buffers as the record says.
    let (p, sums) = unsafe {
        let expected = reference::exp(&call);
        (family.exp)(&call);
        expected
    };
    let what = format!("{} exp nkeys {nkeys} rows {rows} words {}", family.isa, words.is_some());
    for (at, expected) in p.into_iter().enumerate() {
        let (g, rest) = (at / LANES / nkeys, at % (LANES * nkeys));
        check(&what, at, s[g * s_stride + rest], expected);
    }
    for (at, expected) in sums.into_iter().enumerate() {
        check(&what, at, sum[at], expected);
    }
}

#[test]
fn exp_is_accurate_over_the_whole_range() {
    const N: usize = 4096;
    for family in families() {
        let mut worst = 0.0f64;
        for block in 0..64 {
            let x: Vec<f32> = (0..N * LANES)
                .map(|i| {
                    LEAST_POWER
                        + (127.0 - LEAST_POWER) * ((block * N * LANES + i) as f32 + 0.5) / (64 * N * LANES) as f32
                })
                .collect();
            let mut s = GuardedBuffer::new(&x);
            let max = [0.0f32; LANES];
            let mut sum = [0.0f32; LANES];
            let call = ExpCall {
                s: s.as_mut_ptr(),
                s_stride: N * LANES,
                nkeys: N,
                groups: 1,
                words: std::ptr::null(),
                max: max.as_ptr(),
                sum: sum.as_mut_ptr(),
            };
            // SAFETY: buffers as the record says.
            unsafe { (family.exp)(&call) };
            for (&got, x) in s.iter().zip(x) {
                let want = f64::from(x).exp2();
                worst = worst.max((f64::from(got) - want).abs() / want);
            }
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{}: relative error {worst:e}", family.isa);
    }
}

#[test]
fn exp_of_extremes() {
    let cases = [
        (f32::NEG_INFINITY, 0.0),
        (-1e30, 0.0),
        (-151.0, 0.0),
        // What would slow products down is flushed.
        (-100.1, 0.0),
        (-100.0, 2f32.powi(-100)),
        (0.0, 1.0),
        (1.0, 2.0),
        (-1.0, 0.5),
        (30.0, 1_073_741_824.0),
        (127.0, 2f32.powi(127)),
        (f32::INFINITY, f32::INFINITY),
    ];
    for family in families() {
        for (s, want) in cases {
            let mut panel = GuardedBuffer::new(&[s; LANES]);
            let (max, mut sum) = ([0.0f32; LANES], [0.0f32; LANES]);
            let call = ExpCall {
                s: panel.as_mut_ptr(),
                s_stride: LANES,
                nkeys: 1,
                groups: 1,
                words: std::ptr::null(),
                max: max.as_ptr(),
                sum: sum.as_mut_ptr(),
            };
            // SAFETY: buffers as the record says.
            unsafe { (family.exp)(&call) };
            let near = panel.iter().all(|&p| p == want || (p - want).abs() <= 2.4e-7 * want);
            assert!(near, "{}: 2^{s} is {}", family.isa, panel[0]);
        }
        // Any NaN, also one with payload bits where the exponent is computed.
        for bits in [0x7FC0_0000u32, 0x7FC0_01FF, 0xFFFF_FFFF] {
            let mut panel = GuardedBuffer::new(&[f32::from_bits(bits); LANES]);
            let (max, mut sum) = ([0.0f32; LANES], [0.0f32; LANES]);
            let call = ExpCall {
                s: panel.as_mut_ptr(),
                s_stride: LANES,
                nkeys: 1,
                groups: 1,
                words: std::ptr::null(),
                max: max.as_ptr(),
                sum: sum.as_mut_ptr(),
            };
            // SAFETY: buffers as the record says.
            unsafe { (family.exp)(&call) };
            assert!(panel.iter().chain(&sum).all(|p| p.is_nan()), "{}: NaN {bits:x}", family.isa);
        }
    }
}

#[test]
fn value_matches_the_reference() {
    let mut random = Random(4);
    for family in families() {
        for dv in WIDTHS {
            for nkeys in [0, 1, 2, 5, 6, 7, 63, 64, 65, 130, 200] {
                for _ in 0..4 {
                    value_case(&mut random, family, dv, nkeys);
                }
            }
            // Longer than any stretch that a value tile walks at once.
            value_case(&mut random, family, dv, 300);
            value_case(&mut random, family, dv, 1100);
        }
    }
}

fn value_case(random: &mut Random, family: Family, dv: usize, nkeys: usize) {
    let rows = random.pick(&ROWS);
    let groups = rows.div_ceil(LANES);
    let keys = random.rows(nkeys, 1500);
    let (v_stride, out_stride, rv_stride) = (dv + random.below(3), dv + random.below(3), dv + random.below(3));
    let mut v = random.floats(length(&keys, nkeys, v_stride, dv).max(dv));
    let p_stride = nkeys * LANES + 16 * random.below(3);
    let p = random.floats((groups - 1) * p_stride + nkeys * LANES);
    let acc_stride = dv.next_multiple_of(16) + 16 * random.below(2);
    let mut acc = random.floats(rows * acc_stride);
    let out_rows = random.distinct_rows(rows);
    let mut out = random.floats(length(&out_rows, rows, out_stride, dv));
    let before = out.to_vec();
    let rv = random.floats(length(&out_rows, rows, rv_stride, dv));
    let factor = random.floats(rows);
    let trims: Vec<[u32; 2]> = (0..ROW_BLOCKS)
        .map(|_| [random.below(nkeys + 1) as u32, random.below(nkeys + 1) as u32])
        .map(|[front, back]| [front, back.min(nkeys as u32 - front)])
        .collect();
    let trims = random.coin().then(|| GuardedBuffer::new(&trims));
    if nkeys > 0 && random.below(4) == 0 {
        let row = keys.as_ref().map_or(random.below(nkeys), |l| l[random.below(nkeys)] as usize);
        v[row * v_stride + random.below(dv)] = random.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    }
    let finish = random.coin();
    let call = ValueCall {
        p: p.as_ptr(),
        p_stride,
        v: v.as_ptr(),
        v_stride,
        keys: pointer(&keys),
        nkeys,
        dv,
        rows,
        trims: pointer(&trims),
        acc: acc.as_mut_ptr(),
        acc_stride,
        accumulate: random.below(2),
        out: if finish { out.as_mut_ptr() } else { std::ptr::null_mut() },
        out_stride,
        out_rows: pointer(&out_rows),
        factor: factor.as_ptr(),
        rv: if random.coin() { rv.as_ptr() } else { std::ptr::null() },
        rv_stride,
        restart: 0.1,
        ahead: [super::Ahead { start: v.as_ptr(), count: random.below(3), step: random.below(1000) }; 2],
    };
    // SAFETY: buffers as the record says.
    let (expected, bad) = unsafe {
        let expected = reference::value(&call);
        let bad = (family.value)(&call);
        (expected, bad)
    };
    let what = format!("{} value dv {dv} nkeys {nkeys} rows {rows} finish {finish}", family.isa);
    let finite = expected.iter().all(|e| e.value.is_finite());
    assert_eq!(bad, u64::from(finish && !finite), "{what}: result");
    let mut written = vec![false; out.len()];
    for (at, expected) in expected.into_iter().enumerate() {
        let (r, x) = (at / dv, at % dv);
        let got = if finish {
            let row = out_rows.as_ref().map_or(r, |l| l[r] as usize);
            written[row * out_stride + x] = true;
            out[row * out_stride + x]
        } else {
            acc[r * acc_stride + x]
        };
        check(&what, at, got, expected);
    }
    for (at, (&now, &then)) in out.iter().zip(&before).enumerate() {
        assert!(written[at] || now.to_bits() == then.to_bits(), "{what}: wrote between output rows at {at}");
    }
}

#[test]
fn exact_values_skip_masked_keys() {
    let mut random = Random(5);
    for dv in [1, 3, 17, 64] {
        for nkeys in [1, 7, 64] {
            for rows in ROWS {
                let groups = rows.div_ceil(LANES);
                let keys = random.rows(nkeys, 100);
                let mut v = random.floats(length(&keys, nkeys, dv, dv));
                let mut list: Vec<u64> = (0..nkeys).map(|_| random.next()).collect();
                // The first key is hidden from all and holds NaN.
                list[0] = 0;
                let first = keys.as_ref().map_or(0, |l| l[0] as usize);
                let hidden = keys.as_ref().is_none_or(|l| l.iter().filter(|&&k| k as usize == first).count() == 1);
                if hidden {
                    v[first * dv] = f32::NAN;
                }
                let words = GuardedBuffer::new(&list);
                let p = random.floats(groups * nkeys * LANES);
                let mut acc = random.floats(rows * 64);
                let call = ExactCall {
                    p: p.as_ptr(),
                    p_stride: nkeys * LANES,
                    v: v.as_ptr(),
                    v_stride: dv,
                    keys: pointer(&keys),
                    nkeys,
                    dv,
                    rows,
                    words: words.as_ptr(),
                    acc: acc.as_mut_ptr(),
                    acc_stride: 64,
                    accumulate: random.below(2),
                    skip_zeros: 0,
                };
                // SAFETY: buffers as the record says.
                let expected = unsafe {
                    let expected = reference::value_exact(&call);
                    value_exact(&call);
                    expected
                };
                for (at, expected) in expected.into_iter().enumerate() {
                    assert!(!hidden || expected.value.is_finite());
                    check("exact", at, acc[at / dv * 64 + at % dv], expected);
                }
            }
        }
    }
}

#[test]
fn edges_match_the_reference() {
    let mut random = Random(6);
    for family in families() {
        for d in WIDTHS {
            for dv in WIDTHS {
                edge_case(&mut random, family, d, dv);
            }
        }
    }
}

fn edge_case(random: &mut Random, family: Family, d: usize, dv: usize) {
    // Now and then so many rows that they do not stay in cache and are fetched ahead.
    let points = if d == dv { 2_000_000 / d } else { 50 };
    let rows = random.pick(&ROWS);
    let most = random.pick(&[1, 9, 40]);
    // The block starts inside the head's edge list, at any alignment.
    let mut offsets = vec![random.below(7) as u32];
    for r in 0..rows {
        let count = if random.below(4) == 0 { 0 } else { random.below(most + 1) };
        offsets.push(offsets[r] + count as u32);
    }
    let (start, end) = (offsets[0] as usize, offsets[rows] as usize);
    let offsets = GuardedBuffer::new(&offsets);
    let list: Vec<u32> = (0..end).map(|_| random.below(points) as u32).collect();
    let edge_keys = GuardedBuffer::new(&list);
    let q_rows = random.rows(rows, 50);
    let (q_stride, k_stride, v_stride) = (d + random.below(3), d + random.below(3), dv + random.below(3));
    let q = random.floats(length(&q_rows, rows, q_stride, d));
    let k = random.floats((points - 1) * k_stride + d);
    let v = random.floats((points - 1) * v_stride + dv);
    let mut s = random.floats(end - start);
    let mut max = GuardedBuffer::new(&vec![f32::NEG_INFINITY; rows]);
    let mut sum = random.floats(rows);
    let acc_stride = dv.next_multiple_of(16);
    let mut acc = random.floats(rows * acc_stride);
    let mut call = EdgeCall {
        q: q.as_ptr(),
        q_stride,
        q_rows: pointer(&q_rows),
        scale: 0.7,
        rows,
        d,
        dv,
        offsets: offsets.as_ptr(),
        edge_keys: edge_keys.as_ptr(),
        kv: k.as_ptr(),
        kv_stride: k_stride,
        s: s.as_mut_ptr(),
        max: max.as_mut_ptr(),
        sum: sum.as_mut_ptr(),
        acc: acc.as_mut_ptr(),
        acc_stride,
        accumulate: random.below(2),
    };
    let what = format!("{} edges d {d} dv {dv} rows {rows}", family.isa);
    // SAFETY: buffers as the record says, also with `kv` moved from keys to values.
    unsafe {
        let expected = reference::edge_score(&call);
        (family.edge_score)(&call);
        let mut expected_max = vec![f32::NEG_INFINITY; rows];
        for (e, ((r, _), expected)) in reference::edges(&call).into_iter().zip(expected).enumerate() {
            check(&what, e, s[e], expected);
            expected_max[r] = expected_max[r].max(s[e]);
        }
        assert_eq!(&max[..], &expected_max[..], "{what}: maximum");

        if !s.is_empty() && random.coin() {
            let at = random.below(s.len());
            s[at] = random.pick(&[f32::NAN, f32::NEG_INFINITY]);
        }
        for x in max.iter_mut() {
            *x = x.max(-10.0);
        }
        let (p, sums) = reference::edge_exp(&call);
        (family.edge_exp)(&call);
        for (e, expected) in p.into_iter().enumerate() {
            check(&what, e, s[e], expected);
        }
        for (r, expected) in sums.into_iter().enumerate() {
            check(&what, r, sum[r], expected);
        }

        call.kv = v.as_ptr();
        call.kv_stride = v_stride;
        let expected = reference::edge_value(&call);
        (family.edge_value)(&call);
        for (at, expected) in expected.into_iter().enumerate() {
            check(&what, at, acc[at / dv * acc_stride + at % dv], expected);
        }
    }
}

#[test]
fn peak_is_measured_where_the_cpu_can() {
    for isa in crate::target::Isa::ALL {
        let peak = super::peak::fma_peak(isa, 0.001);
        assert_eq!(peak > 0.1, isa.available(), "{isa}: {peak} GF/s");
    }
}

#[test]
fn families_are_compiled_with_what_the_cpu_is_asked_for() {
    for family in FAMILIES {
        assert_eq!(family.features, family.isa.features().join(","), "{}", family.isa);
    }
}

//! Softcap and alibi of every family against plain f64, in buffers that end at a guard page.

use super::super::Family;
use super::super::guard::GuardedBuffer;
use super::super::tests::families;
use super::*;

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
}

#[test]
fn passes_match_the_reference() {
    let mut random = Random(1);
    for family in families() {
        for nkeys in [1, 2, 3, 4, 5, 7, 8, 63, 65] {
            for groups in 1..=4 {
                for case in 0..8 {
                    check(&mut random, family, nkeys, groups, case);
                }
            }
        }
    }
}

fn check(random: &mut Random, family: Family, nkeys: usize, groups: usize, case: usize) {
    let (alibi, masked, gathered) = (case & 1 == 1, case & 2 == 2, case & 4 == 4);
    let s_stride = nkeys * LANES + 16 * (case % 3);
    let panel = (groups - 1) * s_stride + nkeys * LANES;
    let numbers: Vec<f32> = (0..panel).map(|_| 4.0 * random.float()).collect();
    let mut s = GuardedBuffer::new(&numbers);
    let words = GuardedBuffer::new(
        &(0..nkeys)
            .map(|j| match j % 4 {
                0 => 0,
                1 => 0xffff << (16 * (j % groups)),
                _ => random.bits() ^ random.bits() << 30,
            })
            .collect::<Vec<u64>>(),
    );
    let keys = GuardedBuffer::new(&(0..nkeys).map(|_| (random.bits() % 5000) as u32).collect::<Vec<_>>());
    let positions = GuardedBuffer::new(&(0..groups * LANES).map(|_| random.bits() as i32 % 5000).collect::<Vec<_>>());
    let mut max = GuardedBuffer::new(&vec![f32::NEG_INFINITY; groups * LANES]);
    let with_max = case != 5;
    let call = ModCall {
        s: s.as_mut_ptr(),
        s_stride,
        nkeys,
        groups,
        words: if masked { words.as_ptr() } else { std::ptr::null() },
        max: if with_max { max.as_mut_ptr() } else { std::ptr::null_mut() },
        keys: if gathered { keys.as_ptr() } else { std::ptr::null() },
        first_key: 100,
        key_step: 3,
        positions: if alibi { positions.as_ptr() } else { std::ptr::null() },
        head: 0,
        inputs: std::ptr::null(),
        constant: if alibi { 0.03 } else { 20.0 },
        factor: 1.5,
    };
    // SAFETY: buffers as the record says.
    unsafe { if alibi { (family.alibi)(&call) } else { (family.softcap)(&call) } };
    let what = format!("{} nkeys {nkeys} groups {groups} case {case}", family.isa);
    for r in 0..groups * LANES {
        let mut most = f32::NEG_INFINITY;
        for j in 0..nkeys {
            let at = r / LANES * s_stride + j * LANES + r % LANES;
            if masked && words[j] >> r & 1 == 0 {
                continue;
            }
            let before = f64::from(numbers[at]);
            let k = if gathered { keys[j] as usize } else { 100 + 3 * j } as f64;
            let (wanted, size) = if alibi {
                let distance = f64::from(call.constant) * (k - f64::from(positions[r]));
                (1.5 * (before + distance), 1.5 * (before.abs() + distance.abs()))
            } else {
                let wanted = 1.5 * 20.0 * (before * std::f64::consts::LN_2 / 2.0).tanh();
                (wanted, wanted.abs())
            };
            let error = (f64::from(s[at]) - wanted).abs();
            assert!(error <= 6.0 * 6e-8 * size + 1e-30, "{what}: {} instead of {wanted}", s[at]);
            most = most.max(s[at]);
        }
        assert_eq!(max[r], if with_max { most } else { f32::NEG_INFINITY }, "{what}: maximum");
    }
}

#[test]
fn tanh_is_accurate_to_4_ulp_in_every_lane() {
    let mut all: Vec<f32> = (0..0x7f80_0000_u32).step_by(2053).map(f32::from_bits).collect();
    all.extend((0..300_000).map(|i| i as f32 * 0.000_04));
    all.extend(all.clone().iter().map(|x| -x));
    all.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0]);
    all.resize(all.len().next_multiple_of(LANES), 0.5);
    for family in families() {
        let mut s = GuardedBuffer::new(&all);
        let call = ModCall {
            s: s.as_mut_ptr(),
            s_stride: all.len(),
            nkeys: all.len() / LANES,
            groups: 1,
            words: std::ptr::null(),
            max: std::ptr::null_mut(),
            keys: std::ptr::null(),
            first_key: 0,
            key_step: 1,
            positions: std::ptr::null(),
            head: 0,
            inputs: std::ptr::null(),
            constant: 1.0,
            factor: 1.0,
        };
        // SAFETY: buffers as the record says.
        unsafe { (family.softcap)(&call) };
        let mut worst = (0.0, 0.0);
        for (&found, &x) in s.iter().zip(&all) {
            let wanted = (f64::from(x) * std::f64::consts::LN_2 / 2.0).tanh();
            if x.is_nan() {
                assert!(found.is_nan(), "{}: tanh of NaN is {found}", family.isa);
                continue;
            }
            let nearest = (wanted as f32).abs();
            let unit = f64::from(nearest.next_up()) - f64::from(nearest);
            let error = (f64::from(found) - wanted).abs() / unit;
            worst = if error > worst.0 { (error, x) } else { worst };
        }
        assert!(worst.0 <= 4.0, "{}: {} ulp at {:e}", family.isa, worst.0, worst.1);
    }
}

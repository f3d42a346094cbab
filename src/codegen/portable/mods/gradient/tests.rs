//! Gradients of panels and edges against the interpreter's derivatives, pair by pair.

use core::ptr;

use super::super::super::define_mod_gradients_for;
use super::super::tests::{Line, Passes};
use super::*;
use crate::interpreter::score_gradient;

const Q_LEN: usize = 40;
const KV_LEN: usize = 50;
const Q_OFFSET: i32 = 10;
const HEAD: usize = 2;
/// Extents of the inputs.
const SHAPES: [&[usize]; 4] = [&[3, 99], &[50], &[8], &[60, 50]];

const MODS: [&str; 17] = [
    "softcap 2.0",
    "alibi [0.5, 0.25, -0.3]",
    "bias rel[h, q - k + 49]",
    "bias rel[2 - h, k - q + 49]",
    "bias key[k]",
    "bias small[h]",
    "bias table[q, k]",
    "expr s + rel[h, max(0, min(k - q // 3, 98))] * key[q] - small[(q * 3 + k) % 8]",
    "expr exp(0.3 * s) + log(3 + s) * tanh(s) - sigmoid(2 * s) / (2 + small[h])",
    "expr sqrt(4 + s) + abs(s - 0.3) * key[k] + abs(small[1]) ** 3 + floor(s * 3) * s",
    "expr min(s, small[2], key[k]) + max(s * s, 0.2, -key[q]) - max(s)",
    "expr if(q - k > 4 and not s < 0.1 or h == 1, s * small[3], if(s > key[k], log(s - key[k]), sqrt(key[k] - s)))",
    "expr (s + 5) % (2.5 + small[4] * 0.1) + (s // 2) * s + (q - k) // (3 + small[5])",
    "expr -(s ** 3 - s ** 1 + s ** 0) * small[6] ** 2",
    "expr small[7] * key[k] + q",
    "softcap 3.0\nbias rel[h, q - k + 49]\nexpr s * s * small[0]\nalibi [0.1, 0.2, 0.03]\nsoftcap 5.0",
    "expr s",
];

fn mods(text: &str) -> ScoreMods {
    let text = format!(
        "positions q_len {Q_LEN} kv_len {KV_LEN} heads 3 q_offset {Q_OFFSET}\ninput rel [3, 99] line 1\n\
         input key [50] line 1\ninput small [8] line 1\ninput table [60, 50] line 1\n{text}"
    );
    let mods: ScoreMods = text.parse().unwrap_or_else(|error| panic!("{text}: {error:?}"));
    mods.verify().unwrap();
    mods
}

/// Irregular numbers in −1..1.
fn wave(i: usize) -> f32 {
    ((i as f64 * 12.9898 + 0.3).sin() * 43_758.547).fract() as f32
}

/// Inputs, with element 0 of each and of each table of constants.
fn inputs(mods: &ScoreMods) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let input = |(number, shape): (usize, &&[usize])| {
        let count: usize = shape.iter().product();
        (0..count).map(|i| wave(i + 1000 * number)).collect()
    };
    (SHAPES.iter().enumerate().map(input).collect(), mods.constants())
}

/// What was found for the gradients of inputs, what it should be, and the sum of magnitudes.
struct Sums {
    found: Vec<Vec<f32>>,
    wanted: Vec<Vec<f64>>,
    sizes: Vec<Vec<f64>>,
}

impl Sums {
    fn new() -> Self {
        let zeros = || SHAPES.map(|shape| vec![0.0; shape.iter().product()]).to_vec();
        // They are added to.
        Self { found: SHAPES.map(|shape| vec![1.0; shape.iter().product()]).to_vec(), wanted: zeros(), sizes: zeros() }
    }

    fn add(&mut self, by_inputs: Vec<Vec<f64>>) {
        for (input, gradient) in by_inputs.into_iter().enumerate() {
            for (at, x) in gradient.into_iter().enumerate().filter(|(_, x)| *x != 0.0) {
                self.wanted[input][at] += x;
                self.sizes[input][at] += x.abs();
            }
        }
    }

    fn check(&self, unwanted: usize, what: &str) {
        for (input, found) in self.found.iter().enumerate() {
            for (at, &found) in found.iter().enumerate() {
                let (wanted, size) = match input == unwanted {
                    true => (1.0, 0.0),
                    false => (1.0 + self.wanted[input][at], 1.0 + self.sizes[input][at]),
                };
                let off = (f64::from(found) - wanted).abs();
                assert!(off <= 4e-6 * size, "{what}: input {input}, element {at}: {found} against {wanted}");
            }
        }
    }
}

/// Checks one gradient by a scaled score.
fn close(found: f32, wanted: f64, what: impl Fn() -> String) {
    let off = (f64::from(found) - wanted).abs();
    assert!(off <= 2e-5 * (1.0 + wanted.abs()), "{}: {found} against {wanted}", what());
}

fn panel_case(text: &str, passes: &Passes, keys: Option<&[u32]>, positions: &[i32], count: usize, masked: bool) {
    const KEYS: usize = 20;
    const FACTOR: f32 = 0.7;
    let mods = mods(text);
    let (tensors, constants) = inputs(&mods);
    let addresses: Vec<*const f32> = tensors.iter().chain(&constants).map(|x| x.as_ptr()).collect();
    let groups = positions.len() / LANES;
    // Of 2 groups of queries.
    let words: Vec<u64> =
        (0..KEYS).map(|j| if j % 4 == 0 { 0xabcd_0000 } else { 0x1234_5678_9abc_def0 >> j }).collect();
    let allowed = |lane: usize, j: usize| lane < count && (!masked || words[j] >> lane & 1 == 1);
    let mut s = vec![Line([0.0; LANES]); groups * KEYS];
    let mut d = s.clone();
    for (at, (s, d)) in s.iter_mut().zip(&mut d).enumerate() {
        for i in 0..LANES {
            let (lane, j) = (at / KEYS * LANES + i, at % KEYS);
            s.0[i] = if allowed(lane, j) { wave(at * LANES + i) * 2.0 } else { [f32::NAN, f32::INFINITY, -9.0][i % 3] };
            // Lanes beyond the last query may hold anything.
            d.0[i] = if allowed(lane, j) || lane >= count { wave(at * LANES + i + 77) } else { 0.0 };
            // A pair may be allowed, and have no gradient.
            if (at + i) % 11 == 0 {
                d.0[i] = 0.0;
            }
        }
    }
    let before = d.clone();
    let mut sums = Sums::new();
    let unwanted = 2 + usize::from(masked);
    let gradients: Vec<*mut f32> = sums
        .found
        .iter_mut()
        .enumerate()
        .map(|(input, x)| if input == unwanted { ptr::null_mut() } else { x.as_mut_ptr() })
        .collect();
    let call = ModGradientCall {
        s: s.as_ptr().cast(),
        s_stride: KEYS * LANES,
        d: d.as_mut_ptr().cast(),
        d_stride: KEYS * LANES,
        nkeys: KEYS,
        groups,
        count,
        words: if masked { words.as_ptr() } else { ptr::null() },
        keys: keys.map_or(ptr::null(), <[u32]>::as_ptr),
        first_key: 3,
        key_step: 2,
        positions: positions.as_ptr(),
        head: HEAD,
        inputs: addresses.as_ptr(),
        gradients: gradients.as_ptr(),
        factor: FACTOR,
    };
    passes.call(passes.symbols.panel, &call);
    let views: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
    for (lane, &position) in positions.iter().enumerate() {
        for j in 0..KEYS {
            let (line, i) = (lane / LANES * KEYS + j, lane % LANES);
            let found = d[line].0[i];
            if !allowed(lane, j) || before[line].0[i] == 0.0 {
                assert_eq!(found, 0.0, "{text}: lane {lane}, key {j}");
                continue;
            }
            let key = keys.map_or(3 + 2 * j, |keys| keys[j] as usize);
            let place = (HEAD, (position - Q_OFFSET) as usize, key);
            let (score, weight) = (f64::from(s[line].0[i]), f64::from(before[line].0[i]));
            let (by_score, by_inputs) = score_gradient(&mods, &views, place, score, weight);
            close(found, f64::from(FACTOR) * by_score, || format!("{text}: {place:?}, score {score}, weight {weight}"));
            sums.add(by_inputs);
        }
    }
    sums.check(unwanted, text);
}

#[test]
fn panels_agree_with_the_interpreter() {
    // Positions that follow each other, that do not, and that repeat behind the last query.
    type Order = fn(i32) -> i32;
    let orders: [(Order, usize); 3] = [(|i| 10 + i, 32), (|i| 10 + i * 7 % 40, 32), (|i| 10 + i.min(20), 21)];
    let list: Vec<u32> = (0..20).map(|j| j * 13 % 50).collect();
    for (number, text) in MODS.into_iter().enumerate() {
        let passes = Passes::with(number % 4 != 0, |module, isa, options| {
            define_mod_gradients_for(module, isa, &mods(text), options).unwrap()
        });
        for (order, count) in orders {
            let positions: Vec<i32> = (0..2 * LANES as i32).map(order).collect();
            for keys in [None, Some(list.as_slice())] {
                for masked in [false, true] {
                    panel_case(text, &passes, keys, &positions, count, masked);
                }
            }
        }
    }
}

#[test]
fn edges_agree_with_the_interpreter() {
    let counts = [0_u32, 1, 3, 4, 5, 0, 9, 2];
    for (number, text) in MODS.into_iter().enumerate() {
        let mods = mods(text);
        let passes = Passes::with(number % 4 != 1, |module, isa, options| {
            define_mod_gradients_for(module, isa, &mods, options).unwrap()
        });
        let (tensors, constants) = inputs(&mods);
        let addresses: Vec<*const f32> = tensors.iter().chain(&constants).map(|x| x.as_ptr()).collect();
        // The block starts within the head's list.
        let mut offsets = vec![3];
        counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + count));
        let keys: Vec<u32> = (0..27).map(|e| e * 11 % 50).collect();
        // The last one is nobody's.
        let mut s: Vec<f32> = (0..25).map(|e| wave(e) * 2.0).collect();
        let mut d: Vec<f32> = (0..25).map(|e| wave(e + 50)).collect();
        (s[6], d[6]) = (f32::NAN, 0.0);
        let before = d.clone();
        let positions: Vec<i32> = (0..8).map(|i| 12 + i * 5).collect();
        let mut sums = Sums::new();
        let gradients: Vec<*mut f32> = sums.found.iter_mut().map(|x| x.as_mut_ptr()).collect();
        let call = EdgeModGradientCall {
            s: s.as_ptr(),
            d: d.as_mut_ptr(),
            rows: 8,
            offsets: offsets.as_ptr(),
            edge_keys: keys.as_ptr(),
            positions: positions.as_ptr(),
            head: HEAD,
            inputs: addresses.as_ptr(),
            gradients: gradients.as_ptr(),
            factor: 0.5,
        };
        passes.call(passes.symbols.edges, &call);
        let views: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
        for row in 0..8 {
            for edge in offsets[row] as usize - 3..offsets[row + 1] as usize - 3 {
                let place = (HEAD, (positions[row] - Q_OFFSET) as usize, keys[edge + 3] as usize);
                let (score, weight) = (f64::from(s[edge]), f64::from(before[edge]));
                let (by_score, by_inputs) = score_gradient(&mods, &views, place, score, weight);
                close(d[edge], 0.5 * by_score, || format!("{text}: {place:?}, score {score}, weight {weight}"));
                sums.add(by_inputs);
            }
        }
        assert_eq!(d[24], before[24]);
        sums.check(usize::MAX, text);
    }
}

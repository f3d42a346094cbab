//! Operations on rows of every family, and the plain ones, against f64, in buffers that end at a guard page.

use super::super::guard::GuardedBuffer;
use super::super::tests::families;
use super::*;

const WIDTHS: [usize; 9] = [1, 3, 8, 15, 16, 17, 33, 64, 100];
const COUNTS: [usize; 5] = [1, 2, 17, 63, 64];

/// A linear congruential generator, its high bits.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 11
    }

    fn floats(&mut self, count: usize) -> GuardedBuffer<f32> {
        let floats = (0..count).map(|_| (self.bits() >> 29) as f32 / (1 << 23) as f32 - 1.0);
        GuardedBuffer::new(&floats.collect::<Vec<_>>())
    }

    /// Numbers of rows, each once, with gaps, or none.
    fn list(&mut self, count: usize) -> Option<GuardedBuffer<u32>> {
        let turn = self.bits() as usize % count;
        let list: Vec<u32> = (0..count).map(|i| 2 * ((i + turn) % count) as u32).collect();
        (self.bits() & 1 == 1).then(|| GuardedBuffer::new(&list))
    }
}

/// Rows in memory: their floats, the distance from one to the next, and their numbers.
struct Rows {
    floats: GuardedBuffer<f32>,
    stride: usize,
    list: Option<GuardedBuffer<u32>>,
}

impl Rows {
    fn new(random: &mut Random, count: usize, width: usize) -> Self {
        let (stride, list) = (width + random.bits() as usize % 4, random.list(count));
        let last = list.as_ref().map_or(count - 1, |list| list.iter().copied().max().unwrap_or(0) as usize);
        Self { floats: random.floats(last * stride + width), stride, list }
    }

    fn numbers(&self) -> *const u32 {
        self.list.as_ref().map_or(std::ptr::null(), |list| list.as_ptr())
    }

    fn at(&self, row: usize) -> usize {
        self.list.as_ref().map_or(row, |list| list[row] as usize) * self.stride
    }

    fn get(&self, row: usize, column: usize) -> f64 {
        f64::from(self.floats[self.at(row) + column])
    }
}

fn close(what: &str, found: f32, expected: f64, size: f64) {
    let bound = size * 2.0_f64.powi(-22) + 1e-30;
    assert!((f64::from(found) - expected).abs() <= bound, "{what}: {found}, not {expected}");
}

#[test]
fn rows_match_the_reference() {
    let mut random = Random(5);
    let all = std::iter::once(("plain".to_owned(), PLAIN));
    let all: Vec<_> = all.chain(families().into_iter().map(|family| (family.isa.to_string(), family.rows))).collect();
    for (name, tiles) in &all {
        for width in WIDTHS {
            for count in COUNTS {
                for tile in 0..tiles.len() {
                    check(&mut random, (name, tiles, tile), count, width);
                }
            }
        }
    }
}

/// A copy to rows of 16 bits rounds each number to the nearest.
#[test]
fn copies_round() {
    fn check<T: Element + PartialEq + std::fmt::Debug>(tile: super::super::Tile<RowsCall>, rounded: &[f32]) {
        let (count, width, stride) = (3, rounded.len() / 3, rounded.len() / 3 + 2);
        let x = GuardedBuffer::new(rounded);
        let mut out = GuardedBuffer::new(&vec![T::nearest(9.0); (count - 1) * stride + width]);
        let call = RowsCall {
            x: x.as_ptr(),
            x_stride: width,
            out: out.as_mut_ptr().cast(),
            out_stride: stride,
            count,
            width,
            dtype: T::DTYPE,
            // SAFETY: null pointers and zeros, which a copy does not read.
            ..unsafe { std::mem::zeroed() }
        };
        // SAFETY: rows and columns are those of the record.
        unsafe { tile(&call) };
        for (at, found) in out.iter().enumerate() {
            let (row, column) = (at / stride, at % stride);
            let expected = if column < width { T::nearest(rounded[row * width + column]) } else { T::nearest(9.0) };
            assert_eq!(*found, expected, "row {row}, column {column}");
        }
    }
    let numbers = Random(3).floats(3 * 21);
    let all = std::iter::once(PLAIN).chain(families().into_iter().map(|family| family.rows));
    for tiles in all {
        check::<half::bf16>(tiles[0], &numbers);
        check::<half::f16>(tiles[0], &numbers);
    }
}

fn check(random: &mut Random, (name, tiles, tile): (&str, &RowsTiles, usize), count: usize, width: usize) {
    let [x, y, w] = std::array::from_fn(|_| Rows::new(random, count, width));
    let mut out = Rows::new(random, count, width);
    let before = Rows { floats: GuardedBuffer::new(&out.floats), stride: out.stride, list: None };
    let lanes = (random.bits() & 1 == 1).then(|| random.floats(count));
    let mut sums = random.floats(count);
    let sums_before = sums.to_vec();
    let row_keys = GuardedBuffer::new(&(0..count).map(|_| random.bits() as u32).collect::<Vec<_>>());
    let (factor, keep) = (0.75_f32, 1.25_f32);
    let restart = if random.bits() & 1 == 1 { 0.5_f32 } else { 0.0 };
    let threshold = crate::dropout::threshold(0.3);
    let call = RowsCall {
        x: x.floats.as_ptr(),
        x_stride: x.stride,
        x_rows: x.numbers(),
        y: y.floats.as_ptr(),
        y_stride: y.stride,
        y_rows: y.numbers(),
        // Not read without a factor.
        w: if restart == 0.0 { std::ptr::null() } else { w.floats.as_ptr() },
        w_stride: w.stride,
        w_rows: w.numbers(),
        out: out.floats.as_mut_ptr(),
        out_stride: out.stride,
        out_rows: out.numbers(),
        count,
        width,
        lanes_in: lanes.as_ref().map_or(std::ptr::null(), |lanes| lanes.as_ptr()),
        lanes_out: sums.as_mut_ptr(),
        factor,
        restart,
        row_keys: row_keys.as_ptr(),
        threshold,
        keep,
        dtype: Dtype::F32,
    };
    // SAFETY: every pointer has the rows, columns and lanes that the record says.
    unsafe { tiles[tile](&call) };
    let mut written = vec![false; out.floats.len()];
    for row in 0..count {
        let lane = lanes.as_ref().map_or(1.0, |lanes| f64::from(lanes[row]));
        let dot = |a: &Rows, b: &Rows| (0..width).map(|column| a.get(row, column) * b.get(row, column)).sum::<f64>();
        if tile == 5 {
            let all: f64 = (0..count).map(|row| lanes.as_ref().map_or(1.0, |lanes| f64::from(lanes[row]))).sum();
            let expected = f64::from(sums_before[row]) + if row == 0 { f64::from(factor) * all } else { 0.0 };
            close(&format!("{name} sum of {count}"), sums[row], expected, 4.0 * count as f64);
            continue;
        }
        if tile == 3 {
            let less = if restart == 0.0 { 0.0 } else { f64::from(restart) * dot(&x, &w) };
            let expected = f64::from(sums_before[row]) + lane * (f64::from(keep) * dot(&x, &y) - less);
            close(&format!("{name} dot {count} × {width} row {row}"), sums[row], expected, 4.0 * width as f64);
            continue;
        }
        for column in 0..width {
            let at = out.at(row) + column;
            let (old, x) = (f64::from(before.floats[at]), x.get(row, column));
            let kept = hash(row_keys[row], column as u32) >= threshold;
            let expected = match tile {
                0 => x,
                1 => f64::from(factor) * lane * x,
                2 => old + f64::from(factor) * x,
                _ if kept => f64::from(keep) * old,
                _ => 0.0,
            };
            written[at] = true;
            close(&format!("{name} tile {tile} {count} × {width} row {row}"), out.floats[at], expected, 2.0);
        }
    }
    // Nothing beside the rows is touched.
    for (at, (found, old)) in out.floats.iter().zip(before.floats.iter()).enumerate() {
        assert!(written[at] || found.to_bits() == old.to_bits(), "{name} tile {tile}: float {at}");
    }
}

//! The triangle of every family, and the plain one, against f64, in buffers that end at a guard page.

use super::super::guard::GuardedBuffer;
use super::super::tests::families;
use super::*;

const WIDTHS: [usize; 9] = [1, 3, 8, 16, 17, 64, 80, 128, 131];

/// The tiles under test: their name, (I − W) z = y, (I − Wᵀ) z = y.
type Tiles = (String, [unsafe extern "C" fn(*const SolveCall); 2]);

fn all() -> Vec<Tiles> {
    let families = families().into_iter();
    let families = families.map(|family| (family.isa.to_string(), [family.solve, family.solve_transposed]));
    std::iter::once(("plain".to_owned(), [solve as _, solve_transposed as _])).chain(families).collect()
}

/// A linear congruential generator, its high bits.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 11
    }

    /// 0 to 1.
    fn share(&mut self) -> f32 {
        (self.bits() >> 29) as f32 / (1 << 24) as f32
    }
}

/// What stands between rows of z, and must stay.
const GAP: f32 = 12_345.0;

/// A block row with a softmax's weights. Above the diagonal, in lanes beyond the last query, and between the groups'
/// panels there is NaN.
struct Triangle {
    rows: usize,
    width: usize,
    /// Floats from one group's panel to the next.
    p_stride: usize,
    p: GuardedBuffer<f32>,
    factor: GuardedBuffer<f32>,
    z_stride: usize,
    y: Vec<f32>,
}

impl Triangle {
    /// A share `neighbors` of pairs has a weight; `earlier` is the share of the sums that earlier keys have.
    fn new(random: &mut Random, rows: usize, width: usize, step: f32, (neighbors, earlier): (f32, f32)) -> Self {
        let groups = rows.div_ceil(LANES);
        // A panel starts within those of the block row, whose groups are further apart than this one's keys.
        let p_stride = rows * LANES + random.bits() as usize % 3 * LANES;
        let mut p = vec![f32::NAN; (groups - 1) * p_stride + rows * LANES];
        let mut factor = Vec::new();
        for i in 0..rows {
            let mut sum = 0.0;
            for j in 0..=i {
                let weight = if random.share() < neighbors { random.share() } else { 0.0 };
                p[i / LANES * p_stride + j * LANES + i % LANES] = weight;
                sum += weight;
            }
            factor.push(if sum == 0.0 { 0.0 } else { step / sum * (1.0 - earlier) });
        }
        let z_stride = width + random.bits() as usize % 4;
        let mut y = vec![GAP; (rows - 1) * z_stride + width];
        for (at, y) in y.iter_mut().enumerate() {
            if at % z_stride < width {
                *y = 2.0 * random.share() - 1.0;
            }
        }
        Self { rows, width, p_stride, p: GuardedBuffer::new(&p), factor: GuardedBuffer::new(&factor), z_stride, y }
    }

    /// What a tile makes of y.
    fn run(&self, tile: unsafe extern "C" fn(*const SolveCall)) -> Vec<f32> {
        let mut z = GuardedBuffer::new(&self.y);
        let call = SolveCall {
            p: self.p.as_ptr(),
            p_stride: self.p_stride,
            rows: self.rows,
            factor: self.factor.as_ptr(),
            z: z.as_mut_ptr(),
            z_stride: self.z_stride,
            width: self.width,
        };
        // SAFETY: buffers as the record says.
        unsafe { tile(&call) };
        z.to_vec()
    }

    /// W_ij.
    fn weight(&self, i: usize, j: usize) -> f64 {
        let p = if j > i { 0.0 } else { self.p[i / LANES * self.p_stride + j * LANES + i % LANES] };
        f64::from(p) * f64::from(self.factor[i])
    }

    /// The solution for any right side, which weights of 0 keep apart.
    fn expected(&self, transposed: bool, right: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        let mut z = vec![0.0; self.rows * self.width];
        for step in 0..self.rows {
            let row = if transposed { self.rows - 1 - step } else { step };
            for column in 0..self.width {
                z[row * self.width + column] = right(row, column);
            }
            for other in 0..self.rows {
                let weight = if transposed { self.weight(other, row) } else { self.weight(row, other) };
                if other == row || weight == 0.0 {
                    continue;
                }
                for column in 0..self.width {
                    z[row * self.width + column] += weight * z[other * self.width + column];
                }
            }
            for column in 0..self.width {
                z[row * self.width + column] /= 1.0 - self.weight(row, row);
            }
        }
        z
    }

    /// Compares what a tile found: a number that is not finite only where the reference has one.
    fn check(&self, what: &str, transposed: bool, found: &[f32]) {
        let y = |row: usize, column: usize| f64::from(self.y[row * self.z_stride + column]);
        let expected = self.expected(transposed, y);
        let size = self.expected(transposed, |row, column| y(row, column).abs());
        // What a row adds to the error, by its terms and the division, is an error of y.
        let bound = self.expected(transposed, |row, column| {
            let size = size[row * self.width + column];
            2.0_f64.powi(-24) * size * (self.rows as f64 + 4.0 + 4.0 / (1.0 - self.weight(row, row)))
        });
        for (at, &found) in found.iter().enumerate() {
            let (row, column) = (at / self.z_stride, at % self.z_stride);
            if column >= self.width {
                assert_eq!(found, GAP, "{what}: between rows {row} and {}", row + 1);
                continue;
            }
            let at = row * self.width + column;
            if expected[at].is_finite() {
                let error = (f64::from(found) - expected[at]).abs();
                assert!(error <= bound[at], "{what}: row {row} column {column} is {found}, not {}", expected[at]);
            } else {
                assert!(!found.is_finite(), "{what}: row {row} column {column} is {found}, not {}", expected[at]);
            }
        }
    }
}

#[test]
fn triangles_match_the_reference() {
    let mut random = Random(1);
    for (name, tiles) in all() {
        for width in WIDTHS {
            for rows in 1..=BLOCK {
                let shares = (if rows % 3 == 0 { 0.2 } else { 1.0 }, if rows % 2 == 0 { 0.5 } else { 0.0 });
                let triangle = Triangle::new(&mut random, rows, width, 0.9, shares);
                for transposed in [false, true] {
                    let what = format!("{name} transposed {transposed} width {width} rows {rows}");
                    triangle.check(&what, transposed, &triangle.run(tiles[usize::from(transposed)]));
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_no_row_but_by_a_weight() {
    let mut random = Random(2);
    for (name, tiles) in all() {
        for (width, rows) in [(1, 9), (17, 33), (64, 64), (80, 50), (131, 64)] {
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for row in [0, 3, rows / 2, rows - 1] {
                    // Few neighbors, so that there are rows that the poison does not reach.
                    let mut triangle = Triangle::new(&mut random, rows, width, 0.9, (0.04, 0.1));
                    let column = random.bits() as usize % width;
                    triangle.y[row * triangle.z_stride + column] = poison;
                    for transposed in [false, true] {
                        let what =
                            format!("{name} transposed {transposed} width {width} rows {rows} {poison} in {row}");
                        let found = triangle.run(tiles[usize::from(transposed)]);
                        triangle.check(&what, transposed, &found);
                        assert!(!found[row * triangle.z_stride + column].is_finite(), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_that_are_solved_again_keep_their_other_columns() {
    let mut random = Random(3);
    for (name, tiles) in all() {
        for transposed in [false, true] {
            let mut triangle = Triangle::new(&mut random, 64, 80, 0.9, (0.5, 0.1));
            let tile = tiles[usize::from(transposed)];
            let before = triangle.run(tile);
            triangle.y[30 * triangle.z_stride + 7] = f32::NAN;
            let after = triangle.run(tile);
            for (at, (before, after)) in before.iter().zip(&after).enumerate() {
                // Pair by pair is the same sum in the same order.
                assert!(at % triangle.z_stride == 7 || before == after, "{name}: {before}, then {after}");
            }
        }
    }
}

#[test]
fn a_weight_that_is_not_finite_spoils_its_own_row() {
    let mut random = Random(4);
    for (name, [tile, transposed]) in all() {
        let mut triangle = Triangle::new(&mut random, 40, 20, 0.9, (1.0, 0.0));
        // Pair (20, 10).
        triangle.p[triangle.p_stride + 10 * LANES + 4] = f32::NAN;
        for (tile, row) in [(tile, 20), (transposed, 10)] {
            let found = triangle.run(tile);
            let finite = |row: usize| found[row * triangle.z_stride..][..triangle.width].iter().all(|z| z.is_finite());
            for other in 0..40 {
                let before = if row == 20 { other < row } else { other > row };
                assert_eq!(finite(other), before, "{name}: row {other}");
            }
        }
    }
}

#[test]
fn rows_without_neighbors_are_left_as_they_are() {
    let mut random = Random(5);
    for (name, tiles) in all() {
        for tile in tiles {
            let triangle = Triangle::new(&mut random, 64, 37, 0.9, (0.0, 0.0));
            assert_eq!(triangle.run(tile), triangle.y, "{name}");
        }
    }
}

#[test]
fn what_is_constant_stays_constant() {
    let mut random = Random(6);
    for (name, tiles) in all() {
        // All of the softmax is in this block row, so that y = 1 - step everywhere is solved by 1.
        let mut triangle = Triangle::new(&mut random, 64, 64, 0.875, (1.0, 0.0));
        triangle.y.fill(0.125);
        triangle.z_stride = 64;
        for z in &triangle.run(tiles[0])[..63 * 64] {
            assert!((z - 1.0).abs() < 1e-5, "{name}: {z}");
        }
    }
}

#[test]
fn the_transposed_tile_is_the_adjoint() {
    let mut random = Random(7);
    for (name, [tile, transposed]) in all() {
        let mut triangle = Triangle::new(&mut random, 61, 1, 0.9, (0.7, 0.2));
        triangle.z_stride = 1;
        triangle.y.truncate(61);
        triangle.y.iter_mut().for_each(|y| *y = if *y == GAP { 0.5 } else { *y });
        let (y, z) = (triangle.y.clone(), triangle.run(tile));
        triangle.y = (0..61).map(|_| random.share()).collect();
        let (g, w) = (triangle.y.clone(), triangle.run(transposed));
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
        let size = dot(&g, &z.iter().map(|z| z.abs()).collect::<Vec<_>>());
        assert!((dot(&g, &z) - dot(&w, &y)).abs() < 1e-5 * size, "{name}: {} and {}", dot(&g, &z), dot(&w, &y));
    }
}

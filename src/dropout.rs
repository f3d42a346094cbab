//! Dropout's random numbers: counter-based, so that forward and backward calls, whatever their order and threads, drop the
//! same elements.
//!
//! In: a seed and where an element stands. Out: whether it is dropped. These numbers are a definition, as the random
//! draws of patterns are: the same on every machine and in every version.

use crate::error::{Error, Result};

/// What [`hash`] multiplies a column by, and its two rounds.
pub const COLUMN: u32 = 0x9E37_79B9;
/// See [`COLUMN`].
pub const FIRST: u32 = 0x7FEB_352D;
/// See [`COLUMN`].
pub const SECOND: u32 = 0x846C_A68B;

/// Which elements a training step drops: weights of A behind the softmax, the same in every hop, and elements of every Z
/// behind its hop. What is kept is divided by 1 − rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Rate for weights, 0 to below 1.
    pub attention: f32,
    /// Rate for Z, 0 to below 1.
    pub hop: f32,
    /// Names the draw.
    pub seed: u64,
}

impl Dropout {
    /// Dropout by these rates.
    ///
    /// # Errors
    /// [`Error::Value`] for a rate outside `[0, 1)`.
    pub fn new(attention: f32, hop: f32, seed: u64) -> Result<Self> {
        for (name, rate) in [("attention", attention), ("hop", hop)] {
            if !(0.0..1.0).contains(&rate) {
                let message = format!("the rate is {rate}; expected 0 to below 1");
                return Err(Error::Value { tensor: format!("{name} dropout"), message });
            }
        }
        Ok(Self { attention, hop, seed })
    }
}

/// The finalizer of SplitMix64 (Steele et al. 2014).
const fn mix64(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// The key of a row: of weights (`stream` 0) or of the Z behind hop number `stream - 1`; `item` is batch · heads + query
/// head, `row` the number of the query.
pub const fn row_key(seed: u64, stream: u32, item: u64, row: u64) -> u32 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let x = mix64(seed.wrapping_add(GOLDEN.wrapping_mul(stream as u64 + 1)));
    let x = mix64(x ^ item.wrapping_add(GOLDEN));
    (mix64(x ^ row.wrapping_add(GOLDEN)) >> 32) as u32
}

/// The number of an element of a row: `column` is the key's number, or the column of Z. Two rounds of multiply and
/// xorshift (constants of Wellons, "Prospecting for hash functions", 2018).
pub const fn hash(row_key: u32, column: u32) -> u32 {
    let x = row_key ^ column.wrapping_mul(COLUMN);
    let x = (x ^ x >> 16).wrapping_mul(FIRST);
    let x = (x ^ x >> 15).wrapping_mul(SECOND);
    x ^ x >> 16
}

/// An element is dropped where [`hash`] is below this.
pub fn threshold(rate: f32) -> u32 {
    // A float cast saturates.
    (f64::from(rate) * 2.0f64.powi(32)).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(rate: f32, seed: u64, stream: u32, item: u64, row: u64, columns: u32) -> Vec<bool> {
        let key = row_key(seed, stream, item, row);
        (0..columns).map(|column| hash(key, column) >= threshold(rate)).collect()
    }

    #[test]
    fn numbers_stay_what_they_are() {
        assert_eq!([row_key(0, 0, 0, 0), row_key(7, 2, 5, 4095)], [4226385971, 2661915908]);
        assert_eq!([hash(0, 0), hash(0, 1), hash(1, 0), hash(u32::MAX, 7)], [0, 33350994, 1753845952, 2198922575]);
    }

    #[test]
    fn rates_are_kept_and_neighbors_are_independent() {
        for rate in [0.1, 0.5, 0.9] {
            let mean = f64::from(1.0 - rate);
            let deviation = (mean * (1.0 - mean)).sqrt();
            // Rows, heads, streams and seeds beside a first one, and columns beside each other.
            let base = |row| kept(rate, 1, 0, 0, row, 1024);
            type Other = fn(f32, u64) -> Vec<bool>;
            let others: [Other; 4] = [
                |rate, row| kept(rate, 1, 0, 0, row + 1, 1024),
                |rate, row| kept(rate, 1, 0, 1, row, 1024),
                |rate, row| kept(rate, 1, 1, 0, row, 1024),
                |rate, row| kept(rate, 2, 0, 0, row, 1024),
            ];
            let number = |kept: &bool| f64::from(u8::from(*kept)) - mean;
            let count = 256.0 * 1024.0;
            let all: f64 = (0..256).flat_map(base).map(|kept| number(&kept)).sum();
            assert!((all / count).abs() < 5.0 * deviation / f64::sqrt(count), "{rate}: {all}");
            for other in others {
                let together: f64 = (0..256)
                    .flat_map(|row| base(row).into_iter().zip(other(rate, row)))
                    .map(|(a, b)| number(&a) * number(&b))
                    .sum();
                assert!((together / count).abs() < 5.0 * deviation * deviation / f64::sqrt(count), "{rate}");
            }
            let beside: f64 = (0..256)
                .flat_map(|row| {
                    base(row).windows(2).map(|pair| number(&pair[0]) * number(&pair[1])).collect::<Vec<_>>()
                })
                .sum();
            assert!((beside / count).abs() < 5.0 * deviation * deviation / f64::sqrt(count), "{rate}");
        }
        assert!(kept(0.0, 3, 0, 0, 0, 4096).into_iter().all(|kept| kept));
        assert!(kept(0.999, 3, 0, 0, 0, 4096).into_iter().filter(|&kept| kept).count() < 30);
    }

    #[test]
    fn rates_outside_are_refused() {
        for (attention, hop) in [(1.0, 0.0), (0.0, -0.1), (f32::NAN, 0.0)] {
            assert!(Dropout::new(attention, hop, 0).is_err(), "{attention} {hop}");
        }
    }
}

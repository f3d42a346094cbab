//! Dropout: which entries of a matrix are zeroed, the same on every machine and in every order of work.
//!
//! In: rates and a seed ([`Dropout`]), given for a call. Out: for any entry, whether it is kept. An entry's number is a hash
//! of where it stands, so a backward pass finds the forward pass's masks again without storing them, and threads need
//! not agree on an order. A row has a key of 32 bits ([`row_key`]); an entry's number is a hash of that key and its column
//! ([`hash`]), in operations that vector units have for 32-bit lanes; it is kept where the number is not below
//! [`threshold`]. Kept entries are divided by the share that is kept (Srivastava et al., "Dropout", JMLR 2014).
//!
//! Rows are mixed with the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators", OOPSLA 2014), columns with Wellons' two-round hash of 32 bits ("lowbias32").

use crate::error::{Error, Result};

/// Rates of dropout and the seed of its masks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of attention weights that are zeroed, the same ones in every hop; in [0, 1).
    pub attention: f32,
    /// Share of the entries of Z that are zeroed after every hop, others each time; in [0, 1).
    pub hop: f32,
    /// Seed of the masks.
    pub seed: u64,
}

/// Step between the states of SplitMix64: 2^64 over the golden ratio, made odd.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// What [`hash`] multiplies a column with: 2^32 over the golden ratio, made odd.
pub const COLUMN: u32 = 0x9E37_79B9;
/// The factor of [`hash`]'s first round.
pub const FIRST: u32 = 0x7FEB_352D;
/// The factor of [`hash`]'s second round.
pub const SECOND: u32 = 0x846C_A68B;

impl Dropout {
    /// Stream of the masks of attention weights.
    pub const ATTENTION: u32 = 0;

    /// Dropout with these rates.
    ///
    /// # Errors
    /// [`Error::Value`] that names a rate outside [0, 1), NaN included.
    pub fn new(attention: f32, hop: f32, seed: u64) -> Result<Self> {
        for (name, rate) in [("attention", attention), ("hop", hop)] {
            if !(0.0..1.0).contains(&rate) {
                let message = format!("the rate is {rate}; expected 0 to below 1");
                return Err(Error::Value { tensor: format!("{name} dropout"), message });
            }
        }
        Ok(Self { attention, hop, seed })
    }

    /// Stream of the masks after hop number `hop`, the first being 0.
    pub fn hop_stream(hop: usize) -> u32 {
        1 + hop as u32
    }

    /// What an attention weight is multiplied with: 0, or 1 over the share kept.
    ///
    /// `item` is batch · heads + query head, `query` the query's number in its head, `key` the key's number.
    pub fn attention_factor(&self, item: u64, query: u64, key: u32) -> f32 {
        factor(self.attention, row_key(self.seed, Self::ATTENTION, item, query), key)
    }

    /// What an entry of Z is multiplied with after hop number `hop`; `column` is that of the values.
    pub fn hop_factor(&self, hop: usize, item: u64, query: u64, column: u32) -> f32 {
        factor(self.hop, row_key(self.seed, Self::hop_stream(hop), item, query), column)
    }
}

fn factor(rate: f32, row_key: u32, column: u32) -> f32 {
    if hash(row_key, column) >= threshold(rate) { scale(rate) } else { 0.0 }
}

/// What kept entries are multiplied with at a rate in [0, 1): 1 / (1 − rate).
pub fn scale(rate: f32) -> f32 {
    1.0 / (1.0 - rate)
}

/// The key of a row of masks: `stream` is [`Dropout::ATTENTION`] or [`Dropout::hop_stream`], `item` is batch · heads +
/// query head, `row` the query's number in its head.
pub const fn row_key(seed: u64, stream: u32, item: u64, row: u64) -> u32 {
    let x = mix64(seed.wrapping_add(GOLDEN.wrapping_mul(stream as u64 + 1)));
    let x = mix64(x ^ item.wrapping_add(GOLDEN));
    let x = mix64(x ^ row.wrapping_add(GOLDEN));
    (x >> 32) as u32
}

/// The finalizer of SplitMix64.
const fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The number of an entry; `column` is the key's number (attention weights) or the column of the values (hops).
pub const fn hash(row_key: u32, column: u32) -> u32 {
    let mut x = row_key ^ column.wrapping_mul(COLUMN);
    x ^= x >> 16;
    x = x.wrapping_mul(FIRST);
    x ^= x >> 15;
    x = x.wrapping_mul(SECOND);
    x ^ (x >> 16)
}

/// An entry is kept where its number is at least this: `rate` · 2^32, rounded.
pub fn threshold(rate: f32) -> u32 {
    // The cast saturates.
    (f64::from(rate) * 4_294_967_296.0).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_outside_their_range_are_refused_by_name() {
        for (attention, hop, name) in
            [(1.0, 0.0, "attention"), (-0.1, 0.0, "attention"), (0.5, f32::NAN, "hop"), (0.0, f32::INFINITY, "hop")]
        {
            let error = Dropout::new(attention, hop, 1).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains("expected 0 to below 1"), "{error}");
        }
        assert!(Dropout::new(0.0, 0.999, 1).is_ok());
    }

    #[test]
    fn numbers_are_these_for_ever() {
        // Changing these changes every training run with dropout: a new major version.
        let keys = [(0, 0, 0, 0), (7, 0, 3, 100), (7, 1, 3, 100), (u64::MAX, 5, u64::MAX, u64::MAX)]
            .map(|(seed, stream, item, row)| row_key(seed, stream, item, row));
        assert_eq!(keys, KEYS);
        let numbers = [(0, 0), (0, 1), (keys[1], 17), (u32::MAX, u32::MAX)].map(|(key, column)| hash(key, column));
        assert_eq!(numbers, NUMBERS);
        assert_eq!([0.0, 0.1, 0.5, 0.999].map(threshold), [0, 429_496_736, 2_147_483_648, 4_290_672_384]);
    }

    const KEYS: [u32; 4] = [4_226_385_971, 749_809_003, 964_968_504, 3_667_524_385];
    const NUMBERS: [u32; 4] = [0, 33_350_994, 2_047_906_085, 2_767_685_996];

    /// Kept entries among `rows` × `columns`, as 0 and 1.
    fn kept(rate: f32, seed: u64, stream: u32, item: u64, rows: u64, columns: u32) -> Vec<Vec<bool>> {
        let least = threshold(rate);
        let row = |row| {
            let key = row_key(seed, stream, item, row);
            (0..columns).map(|column| hash(key, column) >= least).collect()
        };
        (0..rows).map(row).collect()
    }

    /// Asserts that `hits` out of `trials`, each of probability `p`, lie within 4.5 deviations.
    fn plausible(what: &str, hits: usize, trials: usize, p: f64) {
        let (mean, deviation) = (trials as f64 * p, (trials as f64 * p * (1.0 - p)).sqrt());
        let off = (hits as f64 - mean).abs();
        assert!(off <= 4.5 * deviation, "{what}: {hits} of {trials}, expected {mean} ± {deviation}");
    }

    #[test]
    fn the_share_that_is_kept_is_that_of_the_rate() {
        for rate in [0.1_f32, 0.5, 0.9, 0.999] {
            let p = 1.0 - f64::from(rate);
            for (seed, stream, item) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 11), (u64::MAX, 5, 1 << 40)] {
                let all = kept(rate, seed, stream, item, 256, 256);
                let total = all.iter().flatten().filter(|&&x| x).count();
                plausible("all", total, 256 * 256, p);
                // Rows and columns spread as independent entries do: their chi-squared has about as many degrees of freedom.
                let rows: Vec<usize> = all.iter().map(|row| row.iter().filter(|&&x| x).count()).collect();
                let columns: Vec<usize> = (0..256).map(|c| all.iter().filter(|row| row[c]).count()).collect();
                for (what, counts) in [("rows", rows), ("columns", columns)] {
                    let (mean, variance) = (256.0 * p, 256.0 * p * (1.0 - p));
                    let chi: f64 = counts.iter().map(|&x| (x as f64 - mean).powi(2) / variance).sum();
                    // At rate 0.999 a row keeps a quarter of an entry: the spread of the variance is wider.
                    let spread = (2.0 + (1.0 - 6.0 * p * (1.0 - p)) / variance).sqrt() * 16.0;
                    assert!((chi - 256.0).abs() < 4.5 * spread, "{what} at rate {rate}: chi² {chi} of 256");
                }
            }
        }
    }

    #[test]
    fn neighbors_of_every_kind_agree_by_chance_only() {
        let at = |seed, stream, item| kept(0.3, seed, stream, item, 200, 200);
        // Two independent entries are kept or dropped alike with p = 0.7² + 0.3².
        let p = 0.58;
        let alike = |what: &str, a: &[Vec<bool>], b: &[Vec<bool>]| {
            let hits = a.iter().flatten().zip(b.iter().flatten()).filter(|(x, y)| x == y).count();
            plausible(what, hits, a.len() * a[0].len(), p);
        };
        for seed in [0, 1, 12_345, u64::MAX - 1] {
            let base = at(seed, 0, 0);
            alike("next seeds", &base, &at(seed.wrapping_add(1), 0, 0));
            alike("next streams", &base, &at(seed, 1, 0));
            alike("next items", &base, &at(seed, 0, 1));
            alike("next rows", &base[..199], &base[1..]);
            let left: Vec<Vec<bool>> = base.iter().map(|row| row[..199].to_vec()).collect();
            let right: Vec<Vec<bool>> = base.iter().map(|row| row[1..].to_vec()).collect();
            alike("next columns", &left, &right);
            let turned: Vec<Vec<bool>> = (0..200).map(|c| base.iter().map(|row| row[c]).collect()).collect();
            let upper = |m: &[Vec<bool>]| (1..200).map(|i| m[i][..i].to_vec()).collect::<Vec<_>>().concat();
            alike("the transposed", &[upper(&base)], &[upper(&turned)]);
        }
    }

    #[test]
    fn a_rate_of_0_keeps_everything_as_it_is() {
        let dropout = Dropout::new(0.0, 0.0, 3).unwrap();
        for i in 0..1000 {
            assert_eq!(dropout.attention_factor(i, 2 * i, i as u32), 1.0);
            assert_eq!(dropout.hop_factor(2, i, i, 7 * i as u32), 1.0);
        }
        // Attention weights have one mask, hops one each.
        let dropout = Dropout::new(0.5, 0.5, 3).unwrap();
        assert!((0..100).any(|i| dropout.hop_factor(0, 0, i, 0) != dropout.hop_factor(1, 0, i, 0)));
        assert!((0..100).all(|i| [0.0, 2.0].contains(&dropout.attention_factor(0, i, 0))));
    }
}

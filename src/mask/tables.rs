//! Tables without duplicates: mask words and key lists that many rows share.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Rows of `T` numbered in the order of their first use.
#[derive(Debug)]
pub(super) struct Table<T> {
    rows: Vec<Vec<T>>,
    by_hash: HashMap<u64, Vec<u32>, BuildHasherDefault<Mix>>,
    elements: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), by_hash: HashMap::default(), elements: 0 }
    }
}

impl<T: Copy + Eq + Hash> Table<T> {
    /// The number of `row`, which is copied the first time it is seen.
    pub(super) fn intern(&mut self, row: &[T]) -> u32 {
        let mut mix = Mix::default();
        row.iter().for_each(|element| element.hash(&mut mix));
        let same_hash = self.by_hash.entry(mix.finish()).or_default();
        if let Some(&number) = same_hash.iter().find(|&&number| self.rows[number as usize] == row) {
            return number;
        }
        let number = self.rows.len() as u32;
        same_hash.push(number);
        self.rows.push(row.to_vec());
        self.elements += row.len();
        number
    }

    /// Bytes taken by the rows and their index.
    pub(super) fn bytes(&self) -> u64 {
        (self.elements * size_of::<T>() + self.rows.len() * 96) as u64
    }

    pub(super) fn finish(self) -> Vec<Vec<T>> {
        self.rows
    }
}

/// A multiply-and-rotate hash. The standard one is keyed against attack, at ten times the price a word, and
/// equality of content is checked anyway.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_share_a_number() {
        let mut table = Table::default();
        let numbers: Vec<u32> = [&[1u64, 2][..], &[2, 1], &[1, 2], &[], &[2, 1]].map(|row| table.intern(row)).to_vec();
        assert_eq!(numbers, [0, 1, 0, 2, 1]);
        assert_eq!(table.finish(), [vec![1, 2], vec![2, 1], vec![]]);
    }
}

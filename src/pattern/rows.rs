//! Lists of keys by row (CSR): what random nodes and block layouts are made of.

use std::collections::BTreeSet;
use std::ops::Range;

/// Ascending keys of every row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rows {
    offsets: Vec<u32>,
    keys: Vec<u32>,
}

/// Rows that are sorted without dividing them among threads.
const FEW_ROWS: usize = 4096;

/// Sorts the rows between `offsets`; `keys` begin with those of the first.
fn sort_rows(offsets: &[u32], keys: &mut [u32]) {
    let first = offsets[0];
    if offsets.len() <= FEW_ROWS {
        for row in offsets.windows(2) {
            keys[(row[0] - first) as usize..(row[1] - first) as usize].sort_unstable();
        }
        return;
    }
    let middle = offsets.len() / 2;
    let (left, right) = keys.split_at_mut((offsets[middle] - first) as usize);
    rayon::join(|| sort_rows(&offsets[..=middle], left), || sort_rows(&offsets[middle..], right));
}

impl Rows {
    /// `count` rows, each written by `row`, which appends ascending keys; at most 2^32 - 1 in all.
    pub fn build(count: usize, capacity: usize, row: impl FnMut(usize, &mut Vec<u32>)) -> Self {
        Self::build_in(Vec::with_capacity(capacity), count, row)
    }

    /// [`build`](Self::build) in memory that is there, whatever it holds.
    pub fn build_in(mut keys: Vec<u32>, count: usize, mut row: impl FnMut(usize, &mut Vec<u32>)) -> Self {
        keys.clear();
        let mut rows = Self { offsets: Vec::with_capacity(count + 1), keys };
        rows.offsets.push(0);
        for i in 0..count {
            row(i, &mut rows.keys);
            rows.offsets.push(rows.keys.len() as u32);
        }
        rows
    }

    /// Sorts the keys of every row.
    pub fn sort(&mut self) {
        sort_rows(&self.offsets, &mut self.keys);
    }

    /// The rows of all parts, one behind the other, and in them `more` cells that none of them has.
    pub fn join(parts: Vec<Self>, more: BTreeSet<(u32, u32)>) -> Self {
        let (rows, keys) = parts.iter().fold((0, more.len()), |(r, k), part| (r + part.count(), k + part.keys.len()));
        let mut joined = Self { offsets: Vec::with_capacity(rows + 1), keys: Vec::with_capacity(keys) };
        joined.offsets.push(0);
        let mut more = more.into_iter().peekable();
        for part in parts {
            let first = joined.count();
            let mut row = 0;
            while let Some(&(with_more, _)) = more.peek()
                && (with_more as usize) < first + part.count()
            {
                let last = with_more as usize - first;
                joined.append(&part, row..last);
                let start = joined.keys.len();
                joined.keys.extend_from_slice(part.row(last));
                joined.keys.extend(std::iter::from_fn(|| more.next_if(|cell| cell.0 == with_more)).map(|cell| cell.1));
                joined.keys[start..].sort_unstable();
                joined.offsets.push(joined.keys.len() as u32);
                row = last + 1;
            }
            joined.append(&part, row..part.count());
        }
        joined
    }

    /// Adds rows of another list behind the last.
    fn append(&mut self, other: &Self, rows: Range<usize>) {
        let offsets = &other.offsets[rows.start..=rows.end];
        let (from, end, before) = (offsets[0], offsets[offsets.len() - 1], self.keys.len() as u32);
        self.keys.extend_from_slice(&other.keys[from as usize..end as usize]);
        self.offsets.extend(offsets[1..].iter().map(|offset| offset - from + before));
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Keys of all rows together, and the rows, which take memory too.
    pub fn listed(&self) -> u64 {
        self.keys.len().max(self.count()) as u64
    }

    /// Keys of all rows together.
    pub fn edges(&self) -> usize {
        self.keys.len()
    }

    /// The keys of a row.
    pub fn row(&self, i: usize) -> &[u32] {
        match (self.offsets.get(i), self.offsets.get(i + 1)) {
            (Some(&lo), Some(&hi)) => &self.keys[lo as usize..hi as usize],
            _ => &[],
        }
    }

    /// Keys of at least one of the rows, ascending.
    pub fn union(&self, rows: Range<usize>) -> Vec<u32> {
        if rows.len() == 1 {
            return self.row(rows.start).to_vec();
        }
        let end = rows.end.min(self.count());
        let Some(keys) =
            (rows.start < end).then(|| &self.keys[self.offsets[rows.start] as usize..self.offsets[end] as usize])
        else {
            return Vec::new();
        };
        let words = keys.iter().max().map_or(0, |&max| max as usize / 64 + 1);
        if words > 8 * keys.len() {
            let mut keys = keys.to_vec();
            keys.sort_unstable();
            keys.dedup();
            return keys;
        }
        let mut bits = vec![0_u64; words];
        for &key in keys {
            bits[key as usize / 64] |= 1 << (key % 64);
        }
        let mut union = Vec::with_capacity(keys.len());
        take_bits(&mut bits, &mut union);
        union
    }

    /// Keys of every one of the rows (at least one), ascending.
    pub fn common(&self, mut rows: Range<usize>) -> Vec<u32> {
        let Some(first) = rows.next() else { return Vec::new() };
        let mut common = self.row(first).to_vec();
        for i in rows {
            if common.is_empty() {
                break;
            }
            let mut others = self.row(i).iter().peekable();
            common.retain(|key| {
                while others.next_if(|other| *other < key).is_some() {}
                others.peek() == Some(&key)
            });
        }
        common
    }
}

/// Moves the positions of the set bits to `out`, ascending: on dense enough sets this sorts faster than sorting.
pub(super) fn take_bits(bits: &mut [u64], out: &mut Vec<u32>) {
    for (i, word) in bits.iter_mut().enumerate() {
        while *word != 0 {
            out.push(i as u32 * 64 + word.trailing_zeros());
            *word &= *word - 1;
        }
    }
}

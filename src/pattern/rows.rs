//! Lists of keys by row (CSR): what random nodes and block layouts are made of.

use std::ops::Range;

use smallvec::SmallVec;

/// Ascending keys of every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rows {
    /// One stretch of rows behind the other.
    parts: Vec<Part>,
    /// Rows of each part but the last.
    rows_of_part: usize,
}

/// The keys of some rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    offsets: Vec<u32>,
    keys: Vec<u32>,
}

impl Part {
    /// `count` rows, each written by `row`, which appends ascending keys, in memory that is there, whatever it holds.
    pub fn build(mut keys: Vec<u32>, count: usize, mut row: impl FnMut(usize, &mut Vec<u32>)) -> Self {
        keys.clear();
        let mut part = Self { offsets: Vec::with_capacity(count + 1), keys };
        part.offsets.push(0);
        for i in 0..count {
            row(i, &mut part.keys);
            part.offsets.push(part.keys.len() as u32);
        }
        part
    }

    fn count(&self) -> usize {
        self.offsets.len().saturating_sub(1)
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

    /// Inserts keys, given as ascending pairs of a row and a key that it does not have.
    pub fn insert(&mut self, pairs: impl ExactSizeIterator<Item = (usize, u32)> + DoubleEndedIterator + Clone) {
        // From behind: what lies before `end` stands where it stood.
        let mut end = self.keys.len();
        self.keys.resize(end + pairs.len(), 0);
        for (before, (row, key)) in pairs.clone().enumerate().rev() {
            let start = self.offsets[row] as usize;
            let keys = &self.keys[start..end.min(self.offsets[row + 1] as usize)];
            let at = start + keys.partition_point(|&other| other < key);
            self.keys.copy_within(at..end, at + before + 1);
            self.keys[at + before] = key;
            end = at;
        }
        let mut pairs = pairs.peekable();
        let mut more = 0;
        for (row, offset) in self.offsets.iter_mut().enumerate() {
            while pairs.next_if(|pair| pair.0 < row).is_some() {
                more += 1;
            }
            *offset += more;
        }
    }
}

/// Rows that are sorted without dividing them among threads.
const FEW_ROWS: usize = 4096;

/// Sorts the rows between `offsets`; `keys` begin with those of the first.
fn sort_rows(offsets: &[u32], keys: &mut [u32]) {
    let Some(&first) = offsets.first() else { return };
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
        Self::of_parts(vec![Part::build(Vec::with_capacity(capacity), count, row)], count)
    }

    /// The rows of all parts, one behind the other; each but the last has so many.
    pub fn of_parts(parts: Vec<Part>, rows_of_part: usize) -> Self {
        Self { parts, rows_of_part: rows_of_part.max(1) }
    }

    /// Sorts the keys of every row.
    pub fn sort(&mut self) {
        self.parts.iter_mut().for_each(|part| sort_rows(&part.offsets, &mut part.keys));
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.parts.iter().map(Part::count).sum()
    }

    /// Keys of all rows together, and the rows, which take memory too.
    pub fn listed(&self) -> u64 {
        self.edges().max(self.count()) as u64
    }

    /// Keys of all rows together.
    pub fn edges(&self) -> usize {
        self.parts.iter().map(Part::edges).sum()
    }

    /// The keys of a row.
    pub fn row(&self, i: usize) -> &[u32] {
        self.parts.get(i / self.rows_of_part).map_or(&[], |part| part.row(i % self.rows_of_part))
    }

    /// Keys of at least one of the rows, ascending.
    pub fn union(&self, rows: Range<usize>) -> Vec<u32> {
        if rows.len() == 1 {
            return self.row(rows.start).to_vec();
        }
        // The keys of the rows in each part, as they lie there.
        let of_part = |number: usize, part: &Part| {
            let first = number * self.rows_of_part;
            let end = rows.end.saturating_sub(first).min(part.count());
            let start = rows.start.saturating_sub(first).min(end);
            part.offsets[start] as usize..part.offsets[end] as usize
        };
        let (first, last) = (rows.start / self.rows_of_part, rows.end.div_ceil(self.rows_of_part));
        let parts = || self.parts.iter().enumerate().take(last).skip(first);
        let keys: SmallVec<[&[u32]; 2]> = parts().map(|(i, part)| &part.keys[of_part(i, part)]).collect();
        let count: usize = keys.iter().map(|keys| keys.len()).sum();
        let words = keys.iter().filter_map(|keys| keys.iter().max()).max().map_or(0, |&max| max as usize / 64 + 1);
        if words > 8 * count {
            let mut keys = keys.concat();
            keys.sort_unstable();
            keys.dedup();
            return keys;
        }
        let mut bits = vec![0_u64; words];
        for &key in keys.iter().copied().flatten() {
            bits[key as usize / 64] |= 1 << (key % 64);
        }
        let mut union = Vec::with_capacity(count);
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

//! Reading a block mask: counts, and the keys of one place.
//!
//! Counts take time proportional to runs, segments, words and (for empty rows) edge offsets, never to n².

use std::ops::Range;

use super::{BlockMask, HeadMask, Keys, QUERY_BLOCK, RowOrder, RowRun, Segment};

/// What a mask is made of, for one head or summed over heads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Full segments over all block rows (a run counts once a row).
    pub full_segments: u64,
    /// Masked segments over all block rows.
    pub partial_segments: u64,
    /// Keys of full segments, summed over block rows.
    pub full_keys: u64,
    /// Keys of masked segments, summed over block rows.
    pub partial_keys: u64,
    /// Allowed pairs in full segments.
    pub full_pairs: u64,
    /// Allowed pairs in masked segments.
    pub partial_pairs: u64,
    /// Scattered edges.
    pub scattered_edges: u64,
    /// Queries without any key.
    pub empty_rows: u64,
    /// Runs of block rows.
    pub row_runs: u64,
}

impl Counts {
    /// Allowed pairs.
    pub fn nnz(&self) -> u64 {
        self.full_pairs + self.partial_pairs + self.scattered_edges
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.full_segments += other.full_segments;
        self.partial_segments += other.partial_segments;
        self.full_keys += other.full_keys;
        self.partial_keys += other.partial_keys;
        self.full_pairs += other.full_pairs;
        self.partial_pairs += other.partial_pairs;
        self.scattered_edges += other.scattered_edges;
        self.empty_rows += other.empty_rows;
        self.row_runs += other.row_runs;
    }
}

impl BlockMask {
    /// The masks that make up a query head.
    pub fn parts_of(&self, head: usize) -> impl Iterator<Item = &HeadMask> {
        let masks = &self.mask_of_head[head * self.parts..(head + 1) * self.parts];
        masks.iter().map(|&number| &self.masks[number as usize])
    }

    /// Allowed pairs of a query head.
    pub fn nnz(&self, head: usize) -> u64 {
        self.head_counts(head).nnz()
    }

    /// Counts of one query head.
    pub fn head_counts(&self, head: usize) -> Counts {
        let mut sum = Counts::default();
        self.parts_of(head).for_each(|mask| sum += mask.counts(self.q_len));
        if self.parts > 1 && sum.empty_rows > 0 {
            sum.empty_rows = self.empty_queries(head);
        }
        sum
    }

    /// Queries that are without a key in every part.
    fn empty_queries(&self, head: usize) -> u64 {
        let mut reached = vec![false; self.q_len];
        for mask in self.parts_of(head) {
            for place in (0..self.q_len).filter(|&place| mask.reaches(place)) {
                reached[mask.order.query_at(place)] = true;
            }
        }
        reached.iter().filter(|&&reached| !reached).count() as u64
    }

    /// Counts summed over all query heads.
    pub fn counts(&self) -> Counts {
        let mut classes: Vec<(&[u32], Counts)> = Vec::new();
        let mut sum = Counts::default();
        for (head, masks) in self.mask_of_head.chunks(self.parts.max(1)).enumerate() {
            let known = classes.iter().find(|(other, _)| *other == masks).map(|&(_, counts)| counts);
            sum += known.unwrap_or_else(|| {
                let counts = self.head_counts(head);
                classes.push((masks, counts));
                counts
            });
        }
        sum
    }

    /// Queries of a head without any key.
    pub fn empty_rows(&self, head: usize) -> u64 {
        self.head_counts(head).empty_rows
    }

    /// The keys that a query may attend to, ascending; takes time proportional to the queries.
    pub fn keys_of(&self, head: usize, query: usize) -> Vec<u32> {
        let mut keys = Vec::new();
        for mask in self.parts_of(head) {
            let place = (0..self.q_len).find(|&place| mask.order.query_at(place) == query);
            let numbers = place.map_or(Vec::new(), |place| mask.row_keys(place));
            keys.extend(numbers.into_iter().map(|number| mask.keys.key_at(number, self.kv_len)));
        }
        keys.sort_unstable();
        keys
    }
}

impl RowOrder {
    /// The query at a place.
    pub fn query_at(&self, place: usize) -> usize {
        match self {
            Self::Identity => place,
            Self::Permuted(order) => order[place] as usize,
        }
    }
}

impl RowRun {
    /// The block rows of the run.
    pub fn block_rows(&self) -> Range<u32> {
        self.first..self.first + self.count
    }
}

impl Keys {
    /// The keys of the `row`-th row of the run (from 0) where they are a range.
    pub fn range_at(&self, row: u32) -> Option<Range<u32>> {
        match *self {
            Self::Range { start, len, start_step, len_step } => {
                let start = start + row * start_step;
                Some(start..start + len + row * len_step)
            }
            Self::List { .. } => None,
        }
    }
}

impl HeadMask {
    /// How many keys a segment has in the `row`-th row of its run.
    pub fn segment_len(&self, segment: &Segment, row: u32) -> usize {
        match segment.keys {
            Keys::Range { len, len_step, .. } => (len + row * len_step) as usize,
            Keys::List { list } => self.lists[list as usize].len(),
        }
    }

    /// The run that holds a block row.
    pub fn run_of(&self, block_row: u32) -> &RowRun {
        &self.rows[self.rows.partition_point(|run| run.first + run.count <= block_row)]
    }

    /// The scattered edges of the query at `place`.
    pub fn edges_of(&self, place: usize) -> &[u32] {
        match self.edges.offsets.get(place..place + 2) {
            Some(&[from, to]) => self.edges.keys.get(from as usize..to as usize).unwrap_or_default(),
            _ => &[],
        }
    }

    /// The numbers of the keys that the query at `place` may attend to, ascending.
    pub fn row_keys(&self, place: usize) -> Vec<u32> {
        let (block_row, bit) = ((place / QUERY_BLOCK) as u32, place % QUERY_BLOCK);
        let run = self.run_of(block_row);
        let mut keys = self.edges_of(place).to_vec();
        for segment in &run.segments {
            let words = segment.mask.map(|mask| &self.words[mask as usize]);
            let mut add = |(at, key): (usize, u32)| {
                if words.is_none_or(|words| (words[at] >> bit) & 1 == 1) {
                    keys.push(key);
                }
            };
            match segment.keys {
                Keys::List { list } => self.lists[list as usize].iter().copied().enumerate().for_each(&mut add),
                Keys::Range { .. } => {
                    segment.keys.range_at(block_row - run.first).into_iter().flatten().enumerate().for_each(&mut add);
                }
            }
        }
        keys.sort_unstable();
        keys
    }

    /// Counts, for `q_len` queries.
    pub fn counts(&self, q_len: usize) -> Counts {
        let pairs: Vec<u64> =
            self.words.iter().map(|words| words.iter().map(|word| u64::from(word.count_ones())).sum()).collect();
        let mut counts = Counts {
            scattered_edges: self.edges.keys.len() as u64,
            row_runs: self.rows.len() as u64,
            ..Counts::default()
        };
        for run in &self.rows {
            let rows = u64::from(run.count);
            // Only the last block row can be short.
            let last_row = u64::from(run.first + run.count - 1);
            let missing = QUERY_BLOCK as u64 - (q_len as u64 - last_row * QUERY_BLOCK as u64).min(QUERY_BLOCK as u64);
            for segment in &run.segments {
                let first = self.segment_len(segment, 0) as u64;
                let last = self.segment_len(segment, run.count - 1) as u64;
                // Lengths grow evenly over the run.
                let keys = rows * (first + last) / 2;
                match segment.mask {
                    None => {
                        counts.full_segments += rows;
                        counts.full_keys += keys;
                        counts.full_pairs += keys * QUERY_BLOCK as u64 - missing * last;
                    }
                    Some(mask) => {
                        counts.partial_segments += rows;
                        counts.partial_keys += keys;
                        counts.partial_pairs += rows * pairs[mask as usize];
                    }
                }
            }
            counts.empty_rows += self.empty_rows_of(run, q_len);
        }
        counts
    }

    /// Whether the query at `place` has a key.
    fn reaches(&self, place: usize) -> bool {
        let (block_row, bit) = ((place / QUERY_BLOCK) as u32, place % QUERY_BLOCK);
        let run = self.run_of(block_row);
        let reached = |segment: &Segment| match segment.mask {
            None => self.segment_len(segment, block_row - run.first) > 0,
            Some(mask) => self.words[mask as usize].iter().any(|word| (word >> bit) & 1 == 1),
        };
        run.segments.iter().any(reached) || !self.edges_of(place).is_empty()
    }

    fn empty_rows_of(&self, run: &RowRun, q_len: usize) -> u64 {
        let mut reached = 0;
        for segment in &run.segments {
            match segment.mask {
                None if self.segment_len(segment, 0) > 0 => return 0,
                None => {}
                Some(mask) => reached |= self.words[mask as usize].iter().fold(0, |any, word| any | word),
            }
        }
        let places = run.first as usize * QUERY_BLOCK..(((run.first + run.count) as usize) * QUERY_BLOCK).min(q_len);
        if reached == u64::MAX {
            return 0;
        }
        places.filter(|&place| (reached >> (place % QUERY_BLOCK)) & 1 == 0 && self.edges_of(place).is_empty()).count()
            as u64
    }
}

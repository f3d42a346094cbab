//! A head's pattern as a random walk, without its matrix: from a query to each of its keys with the same probability.
//!
//! In: the block masks of a head. Out: products of the row-normalised matrix with vectors, and the keys of sets of
//! queries. A full run of keys costs a difference of prefix sums for all its 64 queries; a masked run costs the places
//! where its words change, which at the edge of a band are two a query. So the walk over a dense causal pattern takes
//! as long as its block rows, not as its pairs.

use std::ops::Range;

use rayon::prelude::*;

use crate::mask::{BlockMask, HeadMask, KeyOrder, Keys, QUERY_BLOCK, RowRun};
use crate::pattern::Pattern;
use crate::spec::Factors;

/// Most bytes that the walks of a pattern and their vectors take at a time.
pub(super) fn bytes(pattern: &Pattern, diffusion: &Factors) -> u64 {
    let (q_len, kv_len, hops) = (pattern.q_len as u64, pattern.kv_len as u64, diffusion.hops.len() as u64);
    // What a thread has seen, and after which hop; keys and queries on the way, and where they are found.
    let searcher = (hops + 2) * q_len.max(kv_len).div_ceil(8) + 8 * kv_len + 8 * q_len;
    // Some vectors of either length, in f64.
    rayon::current_num_threads() as u64 * searcher + 48 * (q_len + kv_len)
}

/// The walk of one head.
#[derive(Debug)]
pub struct Walk<'a> {
    parts: Vec<Part<'a>>,
    q_len: usize,
    kv_len: usize,
    /// Keys of each query.
    degrees: Vec<u32>,
    /// Heads that walk alike.
    heads: usize,
}

/// One mask of the head.
#[derive(Debug)]
struct Part<'a> {
    mask: &'a HeadMask,
    /// The key of each number; `None` where they are the same.
    keys: Option<Vec<u32>>,
    /// For every block row its run.
    runs: Vec<u32>,
}

impl<'a> Walk<'a> {
    /// The walk of a head; `None` where the queries of several heads stand in one row (decoding).
    pub fn new(mask: &'a BlockMask, head: usize) -> Option<Self> {
        if mask.stack != 1 {
            return None;
        }
        let (q_len, kv_len) = (mask.q_len, mask.kv_len);
        let part = |mask: &'a HeadMask| Part {
            mask,
            keys: match mask.keys {
                KeyOrder::Identity => None,
                order => Some((0..kv_len as u32).map(|number| order.key_at(number, kv_len)).collect()),
            },
            runs: (0u32..).zip(&mask.rows).flat_map(|(at, run)| run.block_rows().map(move |_| at)).collect(),
        };
        let parts: Vec<Part<'a>> = mask.parts_of(head).map(part).collect();
        let mut degrees = vec![0; q_len];
        for part in &parts {
            part.count(q_len, &mut degrees);
        }
        Some(Self { parts, q_len, kv_len, degrees, heads: 1 })
    }

    /// The same walk, of so many heads.
    pub fn of_heads(self, heads: usize) -> Self {
        Self { heads, ..self }
    }

    /// Heads that walk alike: what the walk counts for in a mean over all heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Queries.
    pub fn queries(&self) -> usize {
        self.q_len
    }

    /// Keys.
    pub fn keys(&self) -> usize {
        self.kv_len
    }

    /// How many keys each query has.
    pub fn degrees(&self) -> &[u32] {
        &self.degrees
    }

    /// How many keys all queries have together.
    pub fn pairs(&self) -> u64 {
        self.degrees.iter().map(|&keys| u64::from(keys)).sum()
    }

    /// About how many additions a product takes.
    pub fn cost(&self) -> u64 {
        let of_part = |part: &Part<'_>| {
            let changes: Vec<u64> = part.mask.words.iter().map(|words| words.len() as u64 + changes(words)).collect();
            let of_run = |run: &RowRun| {
                let of = |words: Option<u32>| words.map_or(QUERY_BLOCK as u64, |words| changes[words as usize]);
                u64::from(run.count) * run.segments.iter().map(|segment| of(segment.mask)).sum::<u64>()
            };
            part.mask.rows.iter().map(of_run).sum::<u64>() + part.mask.edges.keys.len() as u64
        };
        self.parts.iter().map(of_part).sum::<u64>() + 2 * (self.q_len + self.kv_len) as u64
    }

    /// Writes A·x to `y`, A the row-normalised matrix; 0 for queries without a key.
    pub fn apply(&self, x: &[f64], y: &mut [f64]) {
        y.fill(0.0);
        let mut sums = vec![0.0; self.q_len];
        for part in &self.parts {
            part.sums(x, &mut sums);
            for (place, sum) in sums.iter().enumerate() {
                y[part.mask.order.query_at(place)] += sum;
            }
        }
        for (y, &degree) in y.iter_mut().zip(&self.degrees) {
            *y /= f64::from(degree.max(1));
        }
    }

    /// Whether no query has a key behind itself: the matrix is triangular.
    pub fn is_causal(&self) -> bool {
        self.parts.iter().all(|part| part.is_causal(self.q_len))
    }

    /// The keys of all queries in a set, both as bits.
    pub fn keys_of(&self, queries: &[u64], searcher: &mut Searcher) -> Vec<u64> {
        searcher.prepare(self);
        searcher.front.reached.clear();
        searcher.front.reached.resize(self.kv_len.div_ceil(64), 0);
        searcher.front.new.clear();
        searcher.last.clear();
        for (number, &word) in queries.iter().enumerate() {
            each_bit(word, |bit| searcher.last.push((number * 64 + bit) as u32));
        }
        searcher.step(self);
        std::mem::take(&mut searcher.front.reached)
    }

    /// Follows the walk from one query, a step at a time, to every key that it ever reaches. Needs as many queries as
    /// keys.
    pub fn follow(&self, from: usize, searcher: &mut Searcher) -> Journey {
        searcher.start(self, from);
        let mut journey = Journey { hops: 0, reached: 1 };
        loop {
            let more = searcher.step(self);
            if more == 0 {
                return journey;
            }
            journey.hops += 1;
            journey.reached += more;
        }
    }
}

/// How far a walk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Journey {
    /// Steps until nothing new is reached.
    pub hops: usize,
    /// Tokens reached, the first one included.
    pub reached: usize,
}

/// Buffers of [`Walk::follow`].
#[derive(Debug, Default)]
pub struct Searcher {
    front: Front,
    /// Tokens that the step before has reached.
    last: Vec<u32>,
    /// For each part, the place of each query.
    places: Vec<Vec<u32>>,
    /// Queries of a block row that are on the way, by block row, and the rows that have some.
    rows: Vec<u64>,
    touched: Vec<u32>,
}

/// What is reached, and what of it is new.
#[derive(Debug, Default)]
struct Front {
    reached: Vec<u64>,
    new: Vec<u32>,
}

impl Front {
    /// Adds some of the 64 keys from `64 · word` on.
    fn add(&mut self, word: usize, bits: u64) {
        let mut new = bits & !self.reached[word];
        self.reached[word] |= bits;
        while new != 0 {
            self.new.push(word as u32 * 64 + new.trailing_zeros());
            new &= new - 1;
        }
    }

    fn add_key(&mut self, key: u32) {
        self.add(key as usize / 64, 1 << (key % 64));
    }

    fn add_range(&mut self, keys: Range<u32>) {
        let mut at = keys.start;
        while at < keys.end {
            let end = ((at / 64 + 1) * 64).min(keys.end);
            self.add(at as usize / 64, (u64::MAX >> (64 - (end - at))) << (at % 64));
            at = end;
        }
    }
}

impl Searcher {
    /// The tokens that the last walk has reached, as bits.
    pub fn reached(&self) -> &[u64] {
        &self.front.reached
    }

    fn prepare(&mut self, walk: &Walk<'_>) {
        if self.places.len() != walk.parts.len() {
            let of = |part: &Part<'_>| {
                let mut places = vec![0; walk.q_len];
                (0..walk.q_len).for_each(|place| places[part.mask.order.query_at(place)] = place as u32);
                places
            };
            self.places = walk.parts.iter().map(of).collect();
            self.rows = vec![0; walk.q_len.div_ceil(QUERY_BLOCK)];
        }
    }

    fn start(&mut self, walk: &Walk<'_>, from: usize) {
        self.prepare(walk);
        self.front.reached.clear();
        self.front.reached.resize(walk.kv_len.div_ceil(64), 0);
        self.front.new.clear();
        self.front.add_key(from as u32);
        self.last.clear();
        self.last.push(from as u32);
    }

    /// How many tokens a further step reaches that were not reached before.
    fn step(&mut self, walk: &Walk<'_>) -> usize {
        self.front.new.clear();
        for (part, places) in walk.parts.iter().zip(&self.places) {
            for &query in &self.last {
                let place = places[query as usize] as usize;
                let row = place / QUERY_BLOCK;
                if self.rows[row] == 0 {
                    self.touched.push(row as u32);
                }
                self.rows[row] |= 1 << (place % QUERY_BLOCK);
            }
            for &row in &self.touched {
                part.reach(row, std::mem::take(&mut self.rows[row as usize]), &mut self.front);
            }
            self.touched.clear();
        }
        std::mem::swap(&mut self.last, &mut self.front.new);
        self.last.len()
    }
}

impl Part<'_> {
    fn key(&self, number: u32) -> u32 {
        self.keys.as_ref().map_or(number, |keys| keys[number as usize])
    }

    /// The run of a block row, and the row's number in it.
    fn run(&self, row: u32) -> (&RowRun, u32) {
        let run = &self.mask.rows[self.runs[row as usize] as usize];
        (run, row - run.first)
    }

    /// Adds the keys of some queries of a block row, given as bits.
    fn reach(&self, row: u32, queries: u64, front: &mut Front) {
        let (run, at) = self.run(row);
        for segment in &run.segments {
            let words = segment.mask.map(|words| &self.mask.words[words as usize]);
            let seen = |number: usize| words.is_none_or(|words| words[number] & queries != 0);
            match (segment.keys, segment.keys.range_at(at)) {
                (_, Some(numbers)) if words.is_none() && self.keys.is_none() => front.add_range(numbers),
                (_, Some(numbers)) => {
                    let some = numbers.enumerate().filter(|&(number, _)| seen(number));
                    some.for_each(|(_, number)| front.add_key(self.key(number)));
                }
                (Keys::List { list }, None) => {
                    let some = self.mask.lists[list as usize].iter().enumerate().filter(|&(number, _)| seen(number));
                    some.for_each(|(_, &number)| front.add_key(self.key(number)));
                }
                (Keys::Range { .. }, None) => {}
            }
        }
        if self.mask.edges.keys.is_empty() {
            return;
        }
        each_bit(queries, |bit| {
            let edges = self.mask.edges_of(row as usize * QUERY_BLOCK + bit);
            edges.iter().for_each(|&number| front.add_key(self.key(number)));
        });
    }

    /// Adds the keys of each query to `degrees`.
    fn count(&self, q_len: usize, degrees: &mut [u32]) {
        let bits = |words: &Vec<u64>| {
            let mut counts = [0_u32; QUERY_BLOCK];
            words.iter().for_each(|&word| each_bit(word, |bit| counts[bit] += 1));
            counts
        };
        let of_words: Vec<[u32; QUERY_BLOCK]> = self.mask.words.iter().map(bits).collect();
        for row in 0..self.runs.len() as u32 {
            let (run, at) = self.run(row);
            let places = row as usize * QUERY_BLOCK..((row as usize + 1) * QUERY_BLOCK).min(q_len);
            for segment in &run.segments {
                for (bit, place) in places.clone().enumerate() {
                    let keys = match segment.mask {
                        None => self.mask.segment_len(segment, at) as u32,
                        Some(words) => of_words[words as usize][bit],
                    };
                    degrees[self.mask.order.query_at(place)] += keys;
                }
            }
        }
        if !self.mask.edges.keys.is_empty() {
            for place in 0..q_len {
                degrees[self.mask.order.query_at(place)] += self.mask.edges_of(place).len() as u32;
            }
        }
    }

    /// Writes the sum of x over the keys of each place.
    fn sums(&self, x: &[f64], sums: &mut [f64]) {
        let numbered: Option<Vec<f64>> =
            self.keys.as_ref().map(|keys| keys.iter().map(|&key| x[key as usize]).collect());
        let x = numbered.as_deref().unwrap_or(x);
        // Sum of the first i numbers.
        let mut before = Vec::with_capacity(x.len() + 1);
        let mut sum = 0.0;
        before.push(sum);
        for x in x {
            sum += x;
            before.push(sum);
        }
        sums.par_chunks_mut(QUERY_BLOCK).enumerate().with_min_len(16).for_each(|(row, sums)| {
            self.row_sums(row as u32, x, &before, sums);
        });
    }

    fn row_sums(&self, row: u32, x: &[f64], before: &[f64], sums: &mut [f64]) {
        let (run, at) = self.run(row);
        let mut of_all = 0.0;
        let mut of_each = [0.0; QUERY_BLOCK];
        for segment in &run.segments {
            let words = segment.mask.map(|words| &self.mask.words[words as usize]);
            match (segment.keys, segment.keys.range_at(at), words) {
                (_, Some(numbers), None) => of_all += before[numbers.end as usize] - before[numbers.start as usize],
                (_, Some(numbers), Some(words)) => {
                    // A query's keys are runs: each begins and ends where its bit changes.
                    let mut last = 0;
                    for (&word, before) in words.iter().zip(&before[numbers.start as usize..]) {
                        each_bit(word & !last, |bit| of_each[bit] -= before);
                        each_bit(last & !word, |bit| of_each[bit] += before);
                        last = word;
                    }
                    each_bit(last, |bit| of_each[bit] += before[numbers.end as usize]);
                }
                (Keys::List { list }, None, words) => {
                    for (number, &key) in self.mask.lists[list as usize].iter().enumerate() {
                        match words {
                            None => of_all += x[key as usize],
                            Some(words) => each_bit(words[number], |bit| of_each[bit] += x[key as usize]),
                        }
                    }
                }
                (Keys::Range { .. }, None, _) => {}
            }
        }
        let edges = !self.mask.edges.keys.is_empty();
        for (bit, sum) in sums.iter_mut().enumerate() {
            *sum = of_all + of_each[bit];
            if edges {
                let numbers = self.mask.edges_of(row as usize * QUERY_BLOCK + bit);
                *sum += numbers.iter().map(|&number| x[number as usize]).sum::<f64>();
            }
        }
    }

    fn is_causal(&self, q_len: usize) -> bool {
        (0..self.runs.len() as u32).all(|row| {
            let (run, at) = self.run(row);
            let places = row as usize * QUERY_BLOCK..((row as usize + 1) * QUERY_BLOCK).min(q_len);
            let queries: Vec<usize> = places.clone().map(|place| self.mask.order.query_at(place)).collect();
            let first = queries.iter().copied().min().unwrap_or(0);
            let behind = |key: u32| queries.iter().enumerate().filter(move |&(_, &query)| (query as u32) < key);
            let of_segments = run.segments.iter().all(|segment| {
                let words = segment.mask.map(|words| &self.mask.words[words as usize]);
                let fits = |(number, key): (usize, u32)| {
                    key as usize <= first
                        || words.is_some_and(|words| behind(key).all(|(bit, _)| (words[number] >> bit) & 1 == 0))
                };
                match (segment.keys, segment.keys.range_at(at)) {
                    (Keys::List { list }, _) => {
                        self.mask.lists[list as usize].iter().map(|&number| self.key(number)).enumerate().all(fits)
                    }
                    // Of a run in order its last key decides.
                    (_, Some(numbers)) if words.is_none() && self.keys.is_none() => {
                        numbers.end.checked_sub(1).is_none_or(|last| last as usize <= first)
                    }
                    (_, numbers) => numbers.into_iter().flatten().map(|number| self.key(number)).enumerate().all(fits),
                }
            });
            let edges = || {
                places.clone().zip(&queries).all(|(place, &query)| {
                    self.mask.edges_of(place).iter().all(|&number| self.key(number) as usize <= query)
                })
            };
            of_segments && edges()
        })
    }
}

/// How often bits change from word to word, the first and last ones included.
fn changes(words: &[u64]) -> u64 {
    let mut last = 0;
    let mut count = 0;
    for &word in words {
        count += u64::from((word ^ last).count_ones());
        last = word;
    }
    count + u64::from(last.count_ones())
}

fn each_bit(mut word: u64, mut visit: impl FnMut(usize)) {
    while word != 0 {
        visit(word.trailing_zeros() as usize);
        word &= word - 1;
    }
}

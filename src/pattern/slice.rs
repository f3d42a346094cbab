//! A part of a pattern: some queries in a row, and the keys that they need, which stand closer together than they were.
//!
//! In: a [`Pattern`] over all tokens. Out: one over a slice, whose keys are counted among those that are there. Every answer
//! comes from the whole pattern, at the places that the tokens had.

use std::ops::Range;
use std::sync::Arc;

use super::{Cover, HopPatterns, KeySet, Leaf, Pattern, Tree};
use crate::spec::Align;

/// Keys are kept or left out in blocks of so many.
const BLOCK: usize = 64;

/// The queries and keys of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Queries of the whole pattern that have keys; the others are counted, and have none.
    pub queries: Range<usize>,
    /// The query of the whole pattern that is counted first.
    pub first: usize,
    /// Queries that are counted.
    pub q_len: usize,
    /// Blocks of 64 keys that are there, ascending.
    pub blocks: Vec<u32>,
}

impl Cut {
    /// The slice of `queries` and `blocks` alone.
    pub fn new(queries: Range<usize>, blocks: Vec<u32>) -> Self {
        Self { first: queries.start, q_len: queries.len(), queries, blocks }
    }

    /// The same queries and all keys, everything counted as in the whole of `n` tokens.
    pub fn in_place(queries: Range<usize>, n: usize) -> Self {
        Self { first: 0, q_len: n, queries, blocks: (0..n.div_ceil(BLOCK) as u32).collect() }
    }

    /// Keys that are there, of `n`.
    pub fn kv_len(&self, n: usize) -> usize {
        self.blocks.iter().map(|&block| BLOCK.min(n.saturating_sub(block as usize * BLOCK))).sum()
    }
}

impl Pattern {
    /// The part of this pattern, which has as many queries as keys, that `cut` says; of the first hop.
    #[must_use]
    pub fn slice(&self, cut: Cut) -> Self {
        let (q_len, kv_len) = (cut.q_len, cut.kv_len(self.kv_len));
        let tree = Tree::Leaf(Arc::new(Slice { whole: self.clone().without_hops(), cut }));
        Self { q_len, kv_len, heads: self.heads, align: Align::Start, tree, hops: HopPatterns::default() }
    }
}

#[derive(Debug)]
struct Slice {
    whole: Pattern,
    cut: Cut,
}

impl Slice {
    /// Keys of the whole pattern as those of the slice.
    fn here(&self, keys: &KeySet) -> KeySet {
        let mut here = KeySet::empty();
        let block = BLOCK as i64;
        for &(lo, hi) in keys.clip(0, self.whole.kv_len as i64).intervals() {
            let mut at = self.cut.blocks.partition_point(|&there| (i64::from(there) + 1) * block <= lo);
            while let Some(start) = self.cut.blocks.get(at).map(|&there| i64::from(there) * block).filter(|&s| s < hi) {
                let first = at as i64 * block;
                here.push(first + (lo - start).max(0), first + (hi - start).min(block));
                at += 1;
            }
        }
        here
    }

    fn query(&self, q: i64) -> Option<usize> {
        let q = usize::try_from(q).ok()? + self.cut.first;
        self.cut.queries.contains(&q).then_some(q)
    }
}

impl Leaf for Slice {
    fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        let (Some(q), Some(&block)) = (self.query(q), self.cut.blocks.get(k / BLOCK)) else { return false };
        let k = block as usize * BLOCK + k % BLOCK;
        k < self.whole.kv_len && self.whole.allows(head, q, k)
    }

    fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        let first = self.cut.first as i64;
        let (wanted, own) = (queries.start + first..queries.end + first, &self.cut.queries);
        let start = wanted.start.max(own.start as i64);
        let end = wanted.end.min(own.end as i64);
        if start >= end {
            return Cover::default();
        }
        let cover = self.whole.cover(head, start as usize..end as usize);
        let all = if (start..end) == wanted { self.here(&cover.all) } else { KeySet::empty() };
        Cover { some: self.here(&cover.some), all }
    }

    fn words(&self, head: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        let Some(q) = self.query(q) else { return };
        // Blocks that are not there come last, and keep their zeros.
        let there: Vec<u32> = blocks.iter().map_while(|&block| self.cut.blocks.get(block as usize).copied()).collect();
        self.whole.words(head, q, &there, &mut out[..there.len()]);
    }

    fn depends_on_head(&self) -> bool {
        self.whole.depends_on_head()
    }

    fn print(&self) -> String {
        let Cut { queries, blocks, .. } = &self.cut;
        format!(
            "slice: {{queries: \"{}..{}\", blocks: {}}} of {}",
            queries.start,
            queries.end,
            blocks.len(),
            self.whole.print()
        )
    }
}

//! A head's pattern as an edge list (CSR): the form that graph libraries take.

use crate::pattern::Pattern;

/// The allowed (query, key) pairs of one head, by query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EdgeList {
    /// `q_len + 1` offsets into `keys`.
    pub offsets: Vec<usize>,
    /// Keys, ascending within a query.
    pub keys: Vec<u32>,
}

impl EdgeList {
    /// Lists the edges of `head`, in time proportional to what the pattern's bounds leave open.
    pub fn build(pattern: &Pattern, head: usize) -> Self {
        let mut list = Self { offsets: vec![0], keys: Vec::new() };
        let mut finder = KeyFinder::default();
        for q in 0..pattern.q_len {
            finder.each_word(pattern, head, q, |block, mut word| {
                while word != 0 {
                    list.keys.push(block * 64 + word.trailing_zeros());
                    word &= word - 1;
                }
            });
            list.offsets.push(list.keys.len());
        }
        list
    }

    /// Keys of query `q`.
    pub fn row(&self, q: usize) -> &[u32] {
        &self.keys[self.offsets[q]..self.offsets[q + 1]]
    }

    /// Bytes of a list of `edges` edges.
    pub fn bytes(queries: usize, edges: u64) -> u64 {
        8 * (queries as u64 + 1) + 4 * edges
    }
}

/// Finds the keys of one query after another, reusing its buffers.
#[derive(Debug, Default)]
pub struct KeyFinder {
    blocks: Vec<u32>,
    words: Vec<u64>,
}

impl KeyFinder {
    /// How many keys query `q` has.
    pub fn count(&mut self, pattern: &Pattern, head: usize, q: usize) -> u64 {
        let mut keys = 0;
        self.each_word(pattern, head, q, |_, word| keys += u64::from(word.count_ones()));
        keys
    }

    /// Calls `visit` with each block of 64 keys that holds a key of query `q` and the bits of those keys,
    /// in ascending order; bits beyond the last key are 0.
    pub fn each_word(&mut self, pattern: &Pattern, head: usize, q: usize, mut visit: impl FnMut(u32, u64)) {
        self.blocks.clear();
        let some = pattern.cover(head, q..q + 1).some.clip(0, pattern.kv_len as i64);
        for &(lo, hi) in some.intervals() {
            let first = (lo / 64) as u32;
            let after_last = self.blocks.last().map_or(0, |last| last + 1);
            self.blocks.extend(first.max(after_last)..(hi as u64).div_ceil(64) as u32);
        }
        self.words.clear();
        self.words.resize(self.blocks.len(), 0);
        pattern.words(head, q, &self.blocks, &mut self.words);
        for (&block, &word) in self.blocks.iter().zip(&self.words) {
            let keys = pattern.kv_len - block as usize * 64;
            let word = if keys < 64 { word & ((1 << keys) - 1) } else { word };
            if word != 0 {
                visit(block, word);
            }
        }
    }
}

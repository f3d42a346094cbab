//! When a partly allowed run of keys is worth a segment, and when its pairs are cheaper one by one.
//!
//! This is the one place that decides it. Costs are in *dense elements*: the time of one score lane of a
//! tile. A tile works on groups of 16 queries and skips 6-key × 16-query register tiles that are wholly
//! masked, so that is what a run is charged for.

use super::{HeadMask, QUERY_BLOCK};

/// Queries that a tile computes together: a group of lanes.
const GROUP: u32 = 16;
/// Keys of a register tile of the score kernel.
const TILE_KEYS: usize = 6;

/// Costs, in dense elements, that weigh segments against scattered edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeRule {
    /// One scattered edge: a dot product and an axpy on rows that are fetched for it alone.
    pub edge_cost: u32,
    /// What a masked key column pays besides its elements when it stands alone: a gathered row, its word.
    pub column_cost: u32,
    /// What a masked run pays besides its elements: the call, trimming, its words.
    pub run_cost: u32,
    /// What a query pays for each further part of its mask: a row of sums written, read and joined.
    pub part_cost: u32,
    /// Up to so many queries in all, every pair is an edge: the edge tiles read rows one behind the other, as fast as
    /// memory gives them, while a panel has 16 lanes whether they are used or not.
    pub few_queries: u32,
    /// Queries and keys keep their order, whatever that costs: rows are to follow each other.
    pub in_order: bool,
}

impl Default for EdgeRule {
    fn default() -> Self {
        Self { edge_cost: 6, column_cost: 32, run_cost: 64, part_cost: 32, few_queries: 2, in_order: false }
    }
}

impl EdgeRule {
    /// Whether a contiguous run of masked keys is kept as a whole, sparse columns included: it is when it costs
    /// no more, trimmed by register tiles, than its pairs as edges. A band's edge passes: its emptiest column
    /// has one pair, but the triangle as a whole is half full.
    pub fn keeps_run(&self, words: &[u64]) -> bool {
        let pairs: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let gain = pairs * u64::from(self.edge_cost);
        // Every masked key is in at least one group: most runs of random pairs are refused without a look at tiles.
        if gain < u64::from(GROUP) * words.len() as u64 + u64::from(self.run_cost) {
            return false;
        }
        score_elements(words) + u64::from(self.run_cost) <= gain
    }

    /// What a mask costs as a whole.
    pub fn cost(&self, mask: &HeadMask, q_len: usize) -> u64 {
        let of_words: Vec<u64> = mask.words.iter().map(|words| score_elements(words)).collect();
        let mut cost = u64::from(self.edge_cost) * mask.edges.keys.len() as u64;
        for run in &mask.rows {
            for segment in &run.segments {
                let (first, last) = (mask.segment_len(segment, 0), mask.segment_len(segment, run.count - 1));
                let each = match segment.mask {
                    // Lengths grow evenly over the run.
                    None => (first + last) as u64 / 2 * QUERY_BLOCK.min(q_len) as u64,
                    Some(words) => of_words[words as usize] + u64::from(self.run_cost),
                };
                cost += u64::from(run.count) * each;
            }
        }
        cost
    }

    /// Whether one masked key of a run that was not kept is dense enough for a column of its own.
    pub fn keeps_column(&self, word: u64) -> bool {
        let gain = word.count_ones() * self.edge_cost;
        GROUP + self.column_cost <= gain && active_groups(word) * GROUP + self.column_cost <= gain
    }
}

/// Dense elements that a masked run takes in the score tile, trimmed by register tiles.
pub fn score_elements(words: &[u64]) -> u64 {
    let tiles = words.chunks(TILE_KEYS).map(|tile| {
        let any = tile.iter().fold(0, |any, word| any | word);
        u64::from(active_groups(any) * GROUP) * tile.len() as u64
    });
    tiles.sum()
}

/// Groups of 16 queries with at least one bit.
fn active_groups(word: u64) -> u32 {
    (0..4).filter(|group| (word >> (16 * group)) & 0xffff != 0).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_edge_stays_and_lone_pairs_go() {
        let rule = EdgeRule::default();
        let triangle: Vec<u64> = (0..64).map(|key| u64::MAX << key).collect();
        assert!(rule.keeps_run(&triangle));
        assert!(!rule.keeps_run(&[1, 2, 1 << 40]));
        assert!(!rule.keeps_column(0b111) && rule.keeps_column(0xffff) && rule.keeps_column(u64::MAX));
        assert_eq!(active_groups(1 | 1 << 63), 2);
    }
}

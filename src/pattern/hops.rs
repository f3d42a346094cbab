//! A pattern for each hop (`hops: [{pattern: ...}, ...]`): hops with equal nodes share one.

use std::sync::Arc;

use super::{KeySet, Pattern};

/// Which pattern each hop has, where not all have that of the root.
#[derive(Debug, Clone, Default)]
pub struct HopPatterns {
    /// For every hop, 0 for the root's pattern, else one more than a place in `others`. Empty where all have the root's.
    pub(super) of_hop: Arc<[u32]>,
    /// The distinct ones beside the root's. Their own hops are all theirs.
    pub(super) others: Arc<[Pattern]>,
}

impl Pattern {
    /// The pattern of hop number `hop`, counted from 0: the root's, unless the hop has its own.
    pub fn of_hop(&self, hop: usize) -> &Self {
        match self.index_of_hop(hop) {
            0 => self,
            index => &self.hops.others[index - 1],
        }
    }

    /// Which of all distinct patterns a hop has: 0 is this one itself, i + 1 is number i of [`Self::others`].
    pub fn index_of_hop(&self, hop: usize) -> usize {
        self.hops.of_hop.get(hop).map_or(0, |&index| index as usize)
    }

    /// The distinct patterns of hops beyond this one.
    pub fn others(&self) -> &[Self] {
        &self.hops.others
    }

    /// The same pattern for every hop.
    #[must_use]
    pub fn without_hops(self) -> Self {
        Self { hops: HopPatterns::default(), ..self }
    }

    /// The pattern of the first head, as that of all there are; for every hop.
    #[must_use]
    pub fn first_head_alone(&self) -> Self {
        let others = self.others().iter().map(Self::first_head_alone).collect();
        let hops = HopPatterns { of_hop: self.hops.of_hop.clone(), others };
        Self { heads: 1, tree: self.of_head(0).tree.clone(), hops, ..*self }
    }

    /// Whether the queries of a head attend to keys at or before their own place alone: a lower triangular mask.
    pub fn is_lower_triangular(&self, head: usize) -> bool {
        (0..self.q_len).step_by(64).all(|first| {
            let queries = first..(first + 64).min(self.q_len);
            let ahead = |keys: &KeySet, query: usize| keys.meets(query as i64 + 1, self.kv_len as i64);
            // Bounds of many queries first; a query of its own where they leave it open, and then its points.
            !ahead(&self.cover(head, queries.clone()).some, first)
                || queries.into_iter().all(|query| {
                    let cover = self.cover(head, query..query + 1);
                    let later = cover.some.clip(query as i64 + 1, self.kv_len as i64);
                    !ahead(&cover.all, query)
                        && later
                            .intervals()
                            .iter()
                            .all(|&(start, end)| (start..end).all(|key| !self.allows(head, query, key as usize)))
                })
        })
    }
}

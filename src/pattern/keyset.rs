//! Sets of keys as sorted, disjoint, half-open intervals.
//!
//! In: intervals in ascending order, or other sets. Out: unions, intersections, complements, by linear
//! merges. A window, a causal prefix or a chunk is one or two intervals, so up to four live inline and the
//! classification of a regular block row allocates nothing.

use smallvec::SmallVec;

/// A set of integers as sorted, disjoint, non-adjacent half-open intervals.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    intervals: SmallVec<[(i64, i64); 4]>,
}

impl Clone for KeySet {
    /// By one copy of memory, where the derived one goes interval by interval.
    fn clone(&self) -> Self {
        Self { intervals: SmallVec::from_slice(&self.intervals) }
    }
}

impl KeySet {
    /// Complements are taken within `-BOUND..BOUND`: far beyond any key, and small enough that the sum or
    /// difference of two bounds does not overflow.
    pub const BOUND: i64 = i64::MAX / 4;

    /// The set of nothing.
    pub fn empty() -> Self {
        Self { intervals: SmallVec::new() }
    }

    /// The integers `lo..hi`; empty where `hi <= lo`.
    pub fn span(lo: i64, hi: i64) -> Self {
        let mut set = Self::empty();
        set.push(lo, hi);
        set
    }

    /// Every integer within [`KeySet::BOUND`].
    pub fn everything() -> Self {
        Self::span(-Self::BOUND, Self::BOUND)
    }

    /// The set of ascending keys (repetitions allowed).
    pub fn from_sorted_keys(keys: impl IntoIterator<Item = i64>) -> Self {
        let keys = keys.into_iter();
        let mut set = Self::with_capacity(keys.size_hint().0);
        for key in keys {
            set.push(key, key + 1);
        }
        set
    }

    /// The empty set with room for so many intervals.
    fn with_capacity(intervals: usize) -> Self {
        Self { intervals: SmallVec::with_capacity(intervals) }
    }

    /// Adds `lo..hi`, whose `lo` must not lie before the last interval's; touching intervals become one.
    pub fn push(&mut self, lo: i64, hi: i64) {
        if hi <= lo {
            return;
        }
        match self.intervals.last_mut() {
            Some((first, end)) if lo <= *end => {
                debug_assert!(lo >= *first, "intervals are pushed in ascending order");
                *end = hi.max(*end);
            }
            _ => self.intervals.push((lo, hi)),
        }
    }

    /// The intervals, ascending, with a gap between any two.
    pub fn intervals(&self) -> &[(i64, i64)] {
        &self.intervals
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// Whether `key` is in the set.
    pub fn contains(&self, key: i64) -> bool {
        self.covers(key, key + 1)
    }

    /// Whether all of `lo..hi` is in the set (true where that is empty).
    pub fn covers(&self, lo: i64, hi: i64) -> bool {
        if hi <= lo {
            return true;
        }
        let after = self.intervals.partition_point(|&(start, _)| start <= lo);
        after > 0 && hi <= self.intervals[after - 1].1
    }

    /// Whether anything of `lo..hi` is in the set.
    pub fn meets(&self, lo: i64, hi: i64) -> bool {
        let at = self.intervals.partition_point(|&(_, end)| end <= lo);
        lo < hi && self.intervals.get(at).is_some_and(|&(start, _)| start < hi)
    }

    /// How many integers are in the set.
    pub fn len(&self) -> u64 {
        self.intervals.iter().map(|&(lo, hi)| hi.abs_diff(lo)).sum()
    }

    /// Keys of either set.
    pub fn union(&self, other: &Self) -> Self {
        if self.is_empty() {
            return other.clone();
        }
        if other.is_empty() {
            return self.clone();
        }
        let (a, b) = (&self.intervals, &other.intervals);
        let (mut i, mut j) = (0, 0);
        let mut out = Self::with_capacity(a.len() + b.len());
        while i < a.len() && j < b.len() {
            if a[i].0 <= b[j].0 {
                out.push(a[i].0, a[i].1);
                i += 1;
            } else {
                out.push(b[j].0, b[j].1);
                j += 1;
            }
        }
        a[i..].iter().chain(&b[j..]).for_each(|&(lo, hi)| out.push(lo, hi));
        out
    }

    /// Keys of both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let (a, b) = (&self.intervals, &other.intervals);
        let (mut i, mut j) = (0, 0);
        let mut out = Self::with_capacity(a.len().max(b.len()));
        while i < a.len() && j < b.len() {
            out.push(a[i].0.max(b[j].0), a[i].1.min(b[j].1));
            if a[i].1 <= b[j].1 {
                i += 1;
            } else {
                j += 1;
            }
        }
        out
    }

    /// Keys within [`KeySet::BOUND`] that are not in the set.
    pub fn complement(&self) -> Self {
        Self::everything().difference(self)
    }

    /// Keys of this set that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::with_capacity(self.intervals.len());
        // A short set is not made to walk all of a long one.
        let mut j = match self.intervals.first() {
            Some(&(lo, _)) => other.intervals.partition_point(|&(_, end)| end <= lo),
            None => 0,
        };
        for &(mut lo, hi) in &self.intervals {
            while j < other.intervals.len() && other.intervals[j].1 <= lo {
                j += 1;
            }
            // The interval of `other` that passes `hi` may reach into the next one of ours: `j` stays on it.
            while let Some(&(start, end)) = other.intervals.get(j)
                && start < hi
            {
                out.push(lo, start);
                lo = end;
                if end > hi {
                    break;
                }
                j += 1;
            }
            out.push(lo, hi);
        }
        out
    }

    /// Keys of the set within `lo..hi`.
    pub fn clip(&self, lo: i64, hi: i64) -> Self {
        let first = self.intervals.partition_point(|&(_, end)| end <= lo);
        let after = self.intervals.partition_point(|&(start, _)| start < hi).max(first);
        let mut out = Self::with_capacity(after - first);
        for &(start, end) in &self.intervals[first..after] {
            out.push(start.max(lo), end.min(hi));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const RANGE: i64 = 60;

    fn build(keys: &BTreeSet<i64>) -> KeySet {
        KeySet::from_sorted_keys(keys.iter().copied())
    }

    fn keys_of(set: &KeySet) -> BTreeSet<i64> {
        for pair in set.intervals().windows(2) {
            assert!(pair[0].1 < pair[1].0, "intervals touch or are out of order: {set:?}");
        }
        assert!(set.intervals().iter().all(|&(lo, hi)| lo < hi));
        set.intervals().iter().flat_map(|&(lo, hi)| lo..hi).collect()
    }

    fn some_keys() -> impl Strategy<Value = BTreeSet<i64>> {
        // Runs rather than single keys, so that intervals are long enough to overlap in every way.
        prop::collection::vec((-RANGE..RANGE, 0i64..9), 0..12)
            .prop_map(|runs| runs.into_iter().flat_map(|(lo, len)| lo..lo + len).collect())
    }

    proptest! {
        #[test]
        fn set_algebra_agrees_with_btreeset(a in some_keys(), b in some_keys(), lo in -RANGE..RANGE, len in 0i64..40) {
            let (x, y) = (build(&a), build(&b));
            prop_assert_eq!(keys_of(&x), a.clone());
            prop_assert_eq!(keys_of(&x.union(&y)), a.union(&b).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(keys_of(&x.intersection(&y)), a.intersection(&b).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(keys_of(&x.difference(&y)), a.difference(&b).copied().collect::<BTreeSet<_>>());
            let clipped: BTreeSet<i64> = a.iter().copied().filter(|&k| k >= lo && k < lo + len).collect();
            prop_assert_eq!(keys_of(&x.clip(lo, lo + len)), clipped.clone());
            prop_assert_eq!(x.meets(lo, lo + len), !clipped.is_empty());
            prop_assert_eq!(x.covers(lo, lo + len), clipped.len() as i64 == len);
            prop_assert_eq!(x.contains(lo), a.contains(&lo));
            prop_assert_eq!(x.len(), a.len() as u64);
            let rest: BTreeSet<i64> = (-2 * RANGE..2 * RANGE).filter(|k| !a.contains(k)).collect();
            prop_assert_eq!(keys_of(&x.complement().clip(-2 * RANGE, 2 * RANGE)), rest);
            prop_assert_eq!(x.complement().complement(), x);
        }
    }

    #[test]
    fn empty_spans_stay_empty() {
        assert!(KeySet::span(3, 3).is_empty() && KeySet::span(4, 3).is_empty());
        assert_eq!(KeySet::empty().complement(), KeySet::everything());
        assert!(KeySet::everything().complement().is_empty());
    }
}

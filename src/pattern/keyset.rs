//! Sets of keys as sorted, disjoint, half-open intervals.

/// A set of integers as sorted, disjoint, non-adjacent half-open intervals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySet {
    intervals: smallvec::SmallVec<[(i64, i64); 4]>,
}

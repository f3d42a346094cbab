//! Block-sparse rows: which keys each block of 64 queries meets.
//!
//! In: a [`Pattern`](crate::pattern::Pattern). Out: a [`BlockMask`]. A block row is a short list of
//! [`Segment`]s (runs of keys, wholly or partly allowed) plus scattered edges where a block would be nearly
//! empty. Consecutive rows that differ only by a shift are one [`RowRun`], so a window over a million tokens
//! is a handful of runs. No step visits n² points.

mod build;
mod coalesce;
mod count;
mod decode;
mod edge_rule;
mod gather_columns;
mod key_order;
mod order;
mod patches;
mod rewrite;
mod row_runs;
mod shifted_rows;
mod some_rows;
mod tables;
#[cfg(test)]
mod tests;
mod text;
mod verify;

pub use build::{build, build_in_order, build_in_parts, build_with};
pub use coalesce::coalesce;
pub use count::Counts;
pub use decode::{split_keys, stack_heads};
pub use edge_rule::{EdgeRule, score_elements};
pub use gather_columns::gather_columns;
pub use key_order::KeyOrder;
pub use some_rows::{build_one_head, build_some_rows};
pub use text::parse;
pub use verify::verify;

/// Queries in a block row.
pub const QUERY_BLOCK: usize = 64;

/// The block mask of all heads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMask {
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Masks that make up a head: their pairs are disjoint, and each has an order of rows of its own. More than one
    /// where no single order keeps a union dense; a kernel computes them one by one and joins their softmax.
    pub parts: usize,
    /// Heads whose queries stand in one block row: above 1, query `i` of head `h` here is that of head `h · stack + i`.
    pub stack: usize,
    /// Distinct masks of heads with the same pattern.
    pub masks: Vec<HeadMask>,
    /// For every query head and part, its index in `masks`: `[heads][parts]`.
    pub mask_of_head: Vec<u32>,
}

/// The block mask of one head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadMask {
    /// Which query stands at which place; block row `t` holds places `64 t .. min(64 t + 64, q_len)`.
    pub order: RowOrder,
    /// How keys are numbered in segments, lists and edges.
    pub keys: KeyOrder,
    /// Runs of block rows, in order, covering all of them.
    pub rows: Vec<RowRun>,
    /// Distinct mask tables of partial segments: one word per key, bit `i` set when the query at place
    /// `64 t + i` may attend to that key. Bits at places beyond `q_len` are 0.
    pub words: Vec<Vec<u64>>,
    /// Distinct lists of gathered keys, ascending.
    pub lists: Vec<Vec<u32>>,
    /// Edges outside all segments.
    pub edges: Edges,
}

/// Which query stands at which place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOrder {
    /// Query `i` at place `i`.
    Identity,
    /// Query `order[i]` at place `i`; a permutation of `0..q_len`. Global queries stand together at the end.
    Permuted(Vec<u32>),
}

/// `count` consecutive block rows of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowRun {
    /// First block row.
    pub first: u32,
    /// Block rows.
    pub count: u32,
    /// The segments of row `first`; those of row `first + i` follow from [`Keys`]. They are disjoint.
    pub segments: Vec<Segment>,
}

/// A run of keys that a block row meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Which keys.
    pub keys: Keys,
    /// `None`: every query of the block attends to every key (full). Otherwise an index in
    /// [`HeadMask::words`], whose length is the segment's.
    pub mask: Option<u32>,
}

/// Which keys a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// `len` keys from `start` in row `first`; row `first + i` adds `i * start_step` and `i * len_step`
    /// (each 0 or 64; a masked segment has `len_step` 0).
    Range {
        /// First key in the run's first row.
        start: u32,
        /// Keys in the run's first row.
        len: u32,
        /// Keys by which the start moves from row to row.
        start_step: u32,
        /// Keys by which the length grows from row to row.
        len_step: u32,
    },
    /// The keys of list `list` in [`HeadMask::lists`], the same in every row of the run.
    List {
        /// Index in [`HeadMask::lists`].
        list: u32,
    },
}

/// Scattered edges as row lists (CSR), by place.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Edges {
    /// Empty when there are no edges; otherwise `q_len + 1` offsets into `keys`, by place.
    pub offsets: Vec<u32>,
    /// Keys, ascending within a row.
    pub keys: Vec<u32>,
}

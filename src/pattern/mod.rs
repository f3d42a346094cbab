//! Who may attend to whom, at given lengths: a checked predicate tree over (head, query, key).
//!
//! In: a [`PatternSpec`](crate::spec::PatternSpec) and lengths. Out: a [`Pattern`], expressions evaluated
//! and random choices drawn. The tree answers three questions about itself: is this point allowed
//! ([`Leaf::allows`], all that the interpreter uses), which keys are allowed for some and which for every
//! query of a range ([`Leaf::cover`], never visiting points), and the exact bits of one query over given
//! key blocks ([`Leaf::words`]).

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::limits::Limit;
use crate::spec::Align;

mod bind;
mod bits;
mod blocks;
mod chunk;
mod draw;
mod edges;
mod exponential;
mod files;
mod full;
mod global;
mod grid;
mod hops;
pub mod keyset;
mod layout;
mod listed;
pub mod node;
mod picked;
mod picks;
mod predicate;
mod random;
pub mod regroup;
mod resolve;
mod rows;
mod segments;
mod sink;
pub mod slice;
mod strided;
mod text;
mod tokens;
pub mod tree;
mod window;

pub use bind::{Awaited, Awaits, Known, RunTime};
pub use hops::HopPatterns;
pub use keyset::KeySet;
pub use node::{ArgDef, COMBINATORS, CombinatorDef, Kind, NodeDef};
pub use picks::{Keep, Picked, TopBlocks};
pub use resolve::{read, resolve};
pub use text::parse_text;

/// Longest sequence: positions and their sums stay far from the ends of every integer type in use.
pub const MAX_LENGTH: usize = Limit::Length.most() as usize;

/// Every leaf of the spec language. Reader, listing, schema and tests find a leaf through its line here.
pub const NODES: &[NodeDef] = &[
    full::FULL,
    full::CAUSAL,
    window::WINDOW,
    chunk::CHUNK,
    global::GLOBAL,
    sink::SINK,
    sink::PREFIX,
    strided::STRIDED,
    exponential::EXPONENTIAL,
    random::RANDOM,
    random::RANDOM_CELLS,
    blocks::RANDOM_BLOCKS,
    blocks::BLOCKS,
    edges::EDGES,
    picked::KEYS,
    picked::TOP_BLOCKS,
    segments::SEGMENTS,
    grid::GRID,
    grid::AXIAL,
    predicate::WHERE,
];

/// What a leaf knows about the keys of a range of queries. Intervals may reach beyond `0..kv_len`; the
/// caller clips.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cover {
    /// Holds every key that at least one query of the range may attend to (it may hold more).
    pub some: KeySet,
    /// Holds only keys that every query of the range may attend to (it may hold fewer).
    pub all: KeySet,
}

/// A leaf of the pattern tree at given lengths. Queries go by their positions, which are negative for those
/// that stand before the first key; `head` counts query heads.
pub trait Leaf: Debug + Send + Sync {
    /// Whether the query at position `q` may attend to key `k`: the definition, in the words of the contract.
    fn allows(&self, head: usize, q: i64, k: usize) -> bool;

    /// Bounds on the keys of all queries at the positions `queries` (not empty), in time that does not depend
    /// on the number of points between.
    fn cover(&self, head: usize, queries: Range<i64>) -> Cover;

    /// [`cover`](Self::cover) where only `keys` are asked for: what is said of others does not count.
    fn cover_within(&self, head: usize, queries: Range<i64>, keys: &Range<i64>) -> Cover {
        let _ = keys;
        self.cover(head, queries)
    }

    /// Sets in `out[i]` the bit `j` exactly when `allows(head, q, 64 * blocks[i] + j)`; `blocks` ascend and
    /// `out` comes zeroed. Bits at keys beyond `kv_len` may have any value.
    fn words(&self, head: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        for (&block, word) in blocks.iter().zip(out) {
            for bit in 0..64 {
                let k = block as usize * 64 + bit;
                *word |= u64::from(self.allows(head, q, k)) << bit;
            }
        }
    }

    /// Whether two heads may differ.
    fn depends_on_head(&self) -> bool {
        false
    }

    /// The smallest `p` such that shifting query and key together by `p` never changes the answer (both
    /// staying in range, at positions from 0 on); `None` where there is none.
    fn period(&self) -> Option<u64> {
        None
    }

    /// Bounds as in [`Self::cover`] on the `count` queries at `first`, `first + step`, … and on the keys of their
    /// residue class modulo `step` alone: what is said of other keys does not count.
    fn cover_class(&self, head: usize, first: i64, count: i64, step: i64) -> Cover {
        self.cover(head, first..first + (count - 1) * step + 1)
    }

    /// A number `r` such that every allowed pair has positions of one residue class modulo `r`; 1 where there is
    /// none.
    fn modulus(&self) -> u64 {
        1
    }

    /// A period that holds for the queries at these positions, where the leaf has none for all: all ranges for
    /// which this gives `p` see the same keys up to shifts by multiples of `p`.
    fn period_within(&self, queries: &Range<i64>) -> Option<u64> {
        let _ = queries;
        self.period()
    }

    /// What the leaf waits for at run time; until it is bound to it, it knows no points.
    fn awaits(&self) -> Option<&Awaited> {
        None
    }

    /// The leaf with what it waits for, of one batch element; `None` where it waits for nothing, or for something else.
    fn bind(&self, known: Known<'_>) -> Result<Option<Arc<dyn Leaf>>> {
        let _ = known;
        Ok(None)
    }

    /// How many pairs and tokens the leaf holds one by one.
    fn listed(&self) -> u64 {
        0
    }

    /// Positions of queries that the leaf allows most keys to (global tokens): a hint to gather them into dense
    /// rows.
    fn dense_queries(&self) -> &[i64] {
        &[]
    }

    /// Keys that every query may attend to as far as this leaf goes (global tokens, sinks): by what a picture calls
    /// them, and not for computing.
    fn global_keys(&self) -> KeySet {
        KeySet::empty()
    }

    /// Positions in a line of a grid on which keys are near their queries along the last two axes: a hint to gather
    /// queries into patches, which share more keys than lines do.
    fn line_of_neighbors(&self) -> Option<usize> {
        None
    }

    /// The leaf as a spec node with every expression evaluated, such as `window: {left: 128, right: 128}`
    /// (one line, YAML flow style); reading it back at the same lengths gives the same leaf.
    fn print(&self) -> String;
}

/// A pattern tree, over positions.
#[derive(Debug, Clone)]
pub enum Tree {
    /// Union; never empty.
    Any(Vec<Tree>),
    /// Intersection; never empty.
    All(Vec<Tree>),
    /// Complement.
    Not(Box<Tree>),
    /// A choice by head; at the root only.
    PerHead {
        /// For every head, its tree in `trees`.
        of_head: Arc<[u32]>,
        /// The trees; none is a `PerHead`.
        trees: Vec<Tree>,
    },
    /// A leaf.
    Leaf(Arc<dyn Leaf>),
}

/// A pattern at given lengths. Its methods count queries from 0, whatever positions they stand at.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Query heads.
    pub heads: usize,
    /// At which positions the queries stand, where they are not as many as the keys.
    pub align: Align,
    /// The tree.
    pub tree: Tree,
    /// The patterns of hops that have their own.
    pub hops: HopPatterns,
}

#[cfg(test)]
mod tests;

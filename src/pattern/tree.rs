//! The questions of [`Leaf`] asked of a whole tree.
//!
//! Unions, intersections and complements of leaves are combined by interval algebra (bounds) and bit by bit
//! (exact words). Bounds stay bounds: a union of two leaves that together allow a key to every query, each to
//! half of them, reports the key as undecided, and the caller decides it from the words.

use std::ops::Range;

use smallvec::SmallVec;

use super::{Cover, KeySet, Leaf, Pattern, Tree};

/// Words of one query over a handful of key blocks, without allocating.
type Words = SmallVec<[u64; 64]>;

impl Pattern {
    /// Whether query `q` of `head` may attend to key `k`: the definition.
    pub fn allows(&self, head: usize, q: usize, k: usize) -> bool {
        self.tree.allows(head, self.position(q), k)
    }

    /// The position at which query `q` stands.
    pub fn position(&self, q: usize) -> i64 {
        self.align.first(self.q_len, self.kv_len) + q as i64
    }

    fn positions(&self, queries: &Range<usize>) -> Range<i64> {
        self.position(queries.start)..self.position(queries.end)
    }

    /// Bounds on the keys of all queries in `queries` (not empty); may reach beyond `0..kv_len`.
    pub fn cover(&self, head: usize, queries: Range<usize>) -> Cover {
        self.tree.cover(head, self.positions(&queries))
    }

    /// Bounds on the keys of query `q`, part by part: what the parts allow together is what `q` may attend to.
    /// Stops when `visit` says false, and says so. To join the parts into one set can cost more than to use
    /// them.
    pub fn each_cover(&self, head: usize, q: usize, visit: &mut impl FnMut(Cover) -> bool) -> bool {
        let q = self.position(q);
        self.tree.each_cover(head, &(q..q + 1), visit)
    }

    /// Writes to bit `j` of `out[i]` whether query `q` may attend to key `64 * blocks[i] + j`. `blocks`
    /// ascend; bits at keys beyond `kv_len` may have any value.
    pub fn words(&self, head: usize, q: usize, blocks: &[u32], out: &mut [u64]) {
        out.fill(0);
        self.tree.words(head, self.position(q), blocks, out);
    }

    /// Whether two heads may differ.
    pub fn depends_on_head(&self) -> bool {
        matches!(self.tree, Tree::PerHead { .. }) || self.tree.any_leaf(&mut |leaf| leaf.depends_on_head())
    }

    /// A number for every head; heads of one number have the same pattern.
    pub fn head_classes(&self) -> Vec<u32> {
        let own = |tree: &Tree| tree.any_leaf(&mut |leaf| leaf.depends_on_head());
        let heads = 0..self.heads as u32;
        match &self.tree {
            // Numbers of heads that stand for themselves lie beyond those of trees.
            Tree::PerHead { of_head, trees } => heads
                .zip(of_head.iter())
                .map(|(head, &tree)| if own(&trees[tree as usize]) { trees.len() as u32 + head } else { tree })
                .collect(),
            tree if own(tree) => heads.collect(),
            _ => vec![0; self.heads],
        }
    }

    /// A shift of query and key together that changes no answer (both staying in range); `None` where none is
    /// known.
    pub fn period(&self) -> Option<u64> {
        // A period holds from position 0 on.
        if self.position(0) < 0 { None } else { self.tree.period() }
    }

    /// Whether shifting query and key together by `shift` changes no answer within `queries` × `keys` (neither
    /// empty), as far as is known without looking at points: every leaf either has a period that divides
    /// `shift`, or is decided there (all or nothing) and so constant.
    ///
    /// The value says how the leaves without such a period are decided, two bits a leaf: where two regions of
    /// one shape have equal signatures, their answers are equal too.
    pub fn shift_signature(&self, head: usize, queries: &Range<usize>, keys: &Range<i64>, shift: u64) -> Option<u64> {
        self.tree.shift_signature(head, &self.positions(queries), keys, shift)
    }

    /// Queries that may attend to most keys, ascending: those of the leaves that stand in unions only, since
    /// an intersection or a complement takes the property away.
    pub fn dense_queries(&self, head: usize) -> Vec<u32> {
        let mut positions = Vec::new();
        self.tree.collect_dense(head, &mut positions);
        let first = self.position(0);
        let inside = |&position: &i64| usize::try_from(position - first).ok().filter(|&q| q < self.q_len);
        let mut queries: Vec<u32> = positions.iter().filter_map(inside).map(|q| q as u32).collect();
        queries.sort_unstable();
        queries.dedup();
        queries
    }
}

impl Pattern {
    /// Keys of global tokens and sinks (see [`Leaf::global_keys`]), within the keys there are. Conditions beside them,
    /// such as `causal`, do not count.
    pub fn global_keys(&self, head: usize) -> KeySet {
        self.tree.global_keys(head).clip(0, self.kv_len as i64)
    }

    /// See [`Leaf::line_of_neighbors`]: of a leaf alone, or one whose pairs the others only restrict.
    pub fn line_of_neighbors(&self, head: usize) -> Option<usize> {
        match self.tree.of(head) {
            Tree::Leaf(leaf) => leaf.line_of_neighbors(),
            Tree::All(children) => children.iter().find_map(|child| match child {
                Tree::Leaf(leaf) => leaf.line_of_neighbors(),
                Tree::Any(_) | Tree::All(_) | Tree::Not(_) | Tree::PerHead { .. } => None,
            }),
            Tree::Any(_) | Tree::Not(_) | Tree::PerHead { .. } => None,
        }
    }
}

impl Tree {
    /// The tree that counts for a head.
    fn of(&self, head: usize) -> &Self {
        match self {
            Self::PerHead { of_head, trees } => &trees[of_head[head] as usize],
            Self::Any(_) | Self::All(_) | Self::Not(_) | Self::Leaf(_) => self,
        }
    }

    /// See [`Pattern::allows`].
    pub fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        match self {
            Self::Any(children) => children.iter().any(|child| child.allows(head, q, k)),
            Self::All(children) => children.iter().all(|child| child.allows(head, q, k)),
            Self::Not(child) => !child.allows(head, q, k),
            Self::PerHead { .. } => self.of(head).allows(head, q, k),
            Self::Leaf(leaf) => leaf.allows(head, q, k),
        }
    }

    /// See [`Pattern::cover`].
    pub fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        self.cover_within(head, &queries, &(-KeySet::BOUND..KeySet::BOUND))
    }

    /// See [`Leaf::cover_within`].
    fn cover_within(&self, head: usize, queries: &Range<i64>, keys: &Range<i64>) -> Cover {
        match self {
            Self::Any(children) => {
                let covers = children.iter().map(|child| child.cover_within(head, queries, keys));
                covers.reduce(|left, right| join(&left, &right, KeySet::union)).unwrap_or_default()
            }
            Self::All(children) => {
                let mut keys = keys.clone();
                let mut whole: Option<Cover> = None;
                for child in children {
                    let more = child.cover_within(head, queries, &keys);
                    let so_far = match whole {
                        None => more,
                        Some(so_far) => join(&so_far, &more, KeySet::intersection),
                    };
                    // What lies beyond is no longer asked for: after `causal`, nothing behind the queries.
                    let (first, last) = (so_far.some.intervals().first(), so_far.some.intervals().last());
                    keys = match (first, last) {
                        (Some(first), Some(last)) => keys.start.max(first.0)..keys.end.min(last.1),
                        _ => 0..0,
                    };
                    whole = Some(so_far);
                }
                whole.unwrap_or_else(|| Cover { some: KeySet::everything(), all: KeySet::everything() })
            }
            Self::Not(child) => {
                let inner = child.cover_within(head, queries, keys);
                Cover { some: inner.all.complement(), all: inner.some.complement() }
            }
            Self::PerHead { .. } => self.of(head).cover_within(head, queries, keys),
            Self::Leaf(leaf) => leaf.cover_within(head, queries.clone(), keys),
        }
    }

    fn each_cover(&self, head: usize, queries: &Range<i64>, visit: &mut impl FnMut(Cover) -> bool) -> bool {
        match self {
            Self::Any(children) => children.iter().all(|child| child.each_cover(head, queries, visit)),
            Self::PerHead { .. } => self.of(head).each_cover(head, queries, visit),
            Self::All(_) | Self::Not(_) | Self::Leaf(_) => visit(self.cover(head, queries.clone())),
        }
    }

    /// See [`Pattern::words`]; `out` comes zeroed.
    pub fn words(&self, head: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        match self {
            Self::Any(children) => combine(children, head, q, blocks, out, |word, more| *word |= more),
            Self::All(children) => combine(children, head, q, blocks, out, |word, more| *word &= more),
            Self::Not(child) => {
                child.words(head, q, blocks, out);
                out.iter_mut().for_each(|word| *word = !*word);
            }
            Self::PerHead { .. } => self.of(head).words(head, q, blocks, out),
            Self::Leaf(leaf) => leaf.words(head, q, blocks, out),
        }
    }

    /// See [`Pattern::period`].
    pub fn period(&self) -> Option<u64> {
        match self {
            Self::Any(children) | Self::All(children) | Self::PerHead { trees: children, .. } => {
                children.iter().try_fold(1, |period, child| lcm(period, child.period()?))
            }
            Self::Not(child) => child.period(),
            Self::Leaf(leaf) => leaf.period(),
        }
    }

    /// See [`Pattern::shift_signature`].
    pub fn shift_signature(&self, head: usize, queries: &Range<i64>, keys: &Range<i64>, shift: u64) -> Option<u64> {
        if let Self::PerHead { .. } = self {
            return self.of(head).shift_signature(head, queries, keys, shift);
        }
        let mut signature = 0u64;
        let mut leaves = 0;
        let unknown = self.any_leaf(&mut |leaf| {
            leaves += 1;
            let repeats = |period: u64| period > 0 && shift.is_multiple_of(period) && queries.start >= 0;
            let decision = if leaf.period_within(queries).is_some_and(repeats) {
                0
            } else {
                let cover = leaf.cover(head, queries.clone());
                if !cover.some.meets(keys.start, keys.end) {
                    1
                } else if cover.all.covers(keys.start, keys.end) {
                    2
                } else {
                    return true;
                }
            };
            signature = signature << 2 | decision;
            leaves > 32
        });
        (!unknown).then_some(signature)
    }

    /// Whether `property` holds for some leaf.
    pub fn any_leaf(&self, property: &mut impl FnMut(&dyn Leaf) -> bool) -> bool {
        match self {
            Self::Any(children) | Self::All(children) | Self::PerHead { trees: children, .. } => {
                children.iter().any(|child| child.any_leaf(property))
            }
            Self::Not(child) => child.any_leaf(property),
            Self::Leaf(leaf) => property(leaf.as_ref()),
        }
    }

    fn global_keys(&self, head: usize) -> KeySet {
        match self {
            Self::Any(children) | Self::All(children) => {
                children.iter().fold(KeySet::empty(), |keys, child| keys.union(&child.global_keys(head)))
            }
            Self::PerHead { .. } => self.of(head).global_keys(head),
            Self::Leaf(leaf) => leaf.global_keys(),
            Self::Not(_) => KeySet::empty(),
        }
    }

    fn collect_dense(&self, head: usize, queries: &mut Vec<i64>) {
        match self {
            Self::Any(children) => children.iter().for_each(|child| child.collect_dense(head, queries)),
            Self::PerHead { .. } => self.of(head).collect_dense(head, queries),
            Self::Leaf(leaf) => queries.extend_from_slice(leaf.dense_queries()),
            Self::All(_) | Self::Not(_) => {}
        }
    }
}

/// Both kinds of bounds joined alike.
fn join(left: &Cover, right: &Cover, join: impl Fn(&KeySet, &KeySet) -> KeySet) -> Cover {
    let some = join(&left.some, &right.some);
    // Where queries agree on every key, once is enough.
    let agreed = left.some == left.all && right.some == right.all;
    let all = if agreed { some.clone() } else { join(&left.all, &right.all) };
    Cover { some, all }
}

fn combine(children: &[Tree], head: usize, q: i64, blocks: &[u32], out: &mut [u64], join: impl Fn(&mut u64, u64)) {
    let Some((first, others)) = children.split_first() else { return };
    first.words(head, q, blocks, out);
    // A leaf may assign rather than or, so that each further child gets zeroed words of its own.
    let mut more = Words::new();
    for child in others {
        more.clear();
        more.resize(out.len(), 0);
        child.words(head, q, blocks, &mut more);
        out.iter_mut().zip(&more).for_each(|(word, &more)| join(word, more));
    }
}

fn lcm(a: u64, b: u64) -> Option<u64> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x)?.checked_mul(b).filter(|&period| period > 0)
}

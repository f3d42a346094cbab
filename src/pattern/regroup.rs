//! A pattern seen residue class by residue class: `queries and keys of one class stand together`.
//!
//! Where every allowed pair satisfies q ≡ k modulo r (a window of dilation r, a stride of r), the pattern falls into r
//! patterns that know nothing of each other, and within a class what was every r-th key is contiguous. The regrouped
//! pattern counts queries by *place* and keys by *number* (class by class, ascending within a class); it allows place
//! and number exactly where the pattern it was made of allows the query and the key, and nothing across classes.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::bits::fill_set;
use super::{Cover, HopPatterns, KeySet, Leaf, MAX_LENGTH, Pattern, Tree};
use crate::spec::Align;

/// A pattern in places and numbers.
#[derive(Debug, Clone)]
pub struct Regrouped {
    /// The pattern; its query `p` is the place, its key `j` the number.
    pub pattern: Pattern,
    /// The query at each place.
    pub order: Vec<u32>,
    /// The places of each class that has queries.
    pub classes: Vec<Range<usize>>,
}

impl Pattern {
    /// The largest known `r` such that every allowed pair has positions of one residue class modulo `r`.
    pub fn modulus(&self) -> u64 {
        self.tree.modulus()
    }

    /// The pattern as one head sees it, where it is chosen by head.
    pub fn of_head(&self, head: usize) -> Cow<'_, Self> {
        match &self.tree {
            Tree::PerHead { of_head, trees } => {
                Cow::Owned(Self { tree: trees[of_head[head] as usize].clone(), ..self.clone() })
            }
            Tree::Any(_) | Tree::All(_) | Tree::Not(_) | Tree::Leaf(_) => Cow::Borrowed(self),
        }
    }

    /// The pattern class by class modulo `step` (at least 1). Pairs across classes are lost, so `step` should divide
    /// [`Self::modulus`].
    pub fn regrouped(&self, step: u32) -> Regrouped {
        let geometry = Arc::new(Geometry::new(self, i64::from(step)));
        let order = geometry.classes.iter().flat_map(|class| {
            (0..class.places.end - class.places.start)
                .map(|i| (class.first_position + i * geometry.step - self.position(0)) as u32)
        });
        let pattern = Pattern {
            q_len: self.q_len,
            kv_len: self.kv_len,
            heads: self.heads,
            align: Align::Start,
            tree: self.tree.regrouped(&geometry),
            hops: HopPatterns::default(),
        };
        let places = |class: &Class| class.places.start as usize..class.places.end as usize;
        Regrouped {
            order: order.collect(),
            classes: geometry.classes.iter().map(places).filter(|places| !places.is_empty()).collect(),
            pattern,
        }
    }
}

impl Pattern {
    /// The pattern as a union of disjoint parts by modulus: first what has none, then what has one and the same. One
    /// part where the root is no union of such, alone or beside conditions that hold for all of it.
    ///
    /// A part of a larger modulus is kept apart where `pays` says so of it; otherwise it stays with the first.
    pub fn parts(&self, mut pays: impl FnMut(&Pattern) -> bool) -> Vec<Pattern> {
        let whole = || vec![self.clone()];
        let (conditions, children): (Vec<&Tree>, &[Tree]) = match &self.tree {
            Tree::Any(children) => (Vec::new(), children),
            Tree::All(factors) => match factors.iter().position(|factor| matches!(factor, Tree::Any(_))) {
                Some(at) => match &factors[at] {
                    Tree::Any(children) => {
                        let others = factors.iter().enumerate().filter(|&(other, _)| other != at);
                        (others.map(|(_, factor)| factor).collect(), children)
                    }
                    _ => return whole(),
                },
                None => return whole(),
            },
            Tree::Not(_) | Tree::Leaf(_) | Tree::PerHead { .. } => return whole(),
        };
        let with = |sum: &[&Tree], without: &[&Tree]| {
            let union = |trees: &[&Tree]| Tree::Any(trees.iter().map(|&tree| tree.clone()).collect());
            let mut factors: Vec<Tree> = conditions.iter().map(|&tree| tree.clone()).collect();
            factors.push(union(sum));
            if !without.is_empty() {
                factors.push(Tree::Not(Box::new(union(without))));
            }
            Pattern { tree: Tree::All(factors), ..self.clone().without_hops() }
        };
        let mut moduli: Vec<u64> = children.iter().map(Tree::modulus).collect();
        let of = |modulus: u64| children.iter().filter(move |child| child.modulus() == modulus);
        moduli.sort_unstable();
        moduli.dedup();
        let mut base: Vec<&Tree> = of(1).collect();
        let mut apart: Vec<Vec<&Tree>> = Vec::new();
        for &modulus in moduli.iter().filter(|&&modulus| modulus > 1) {
            let part: Vec<&Tree> = of(modulus).collect();
            if pays(&with(&part, &base)) { apart.push(part) } else { base.extend(part) }
        }
        if apart.is_empty() || (base.is_empty() && apart.len() == 1) {
            return whole();
        }
        let mut parts = Vec::new();
        let mut before: Vec<&Tree> = Vec::new();
        for sum in std::iter::once(base).chain(apart).filter(|sum| !sum.is_empty()) {
            parts.push(with(&sum, &before));
            before.extend(sum);
        }
        parts
    }
}

impl Tree {
    fn modulus(&self) -> u64 {
        match self {
            Self::Any(children) => children.iter().map(Self::modulus).fold(0, gcd).max(1),
            // Every condition holds at once; a modulus beyond all lengths says no more than the largest of them.
            Self::All(children) => children.iter().map(Self::modulus).fold(1, |all, one| {
                let both = (all / gcd(all, one)).saturating_mul(one);
                if both > MAX_LENGTH as u64 { all.max(one) } else { both }
            }),
            Self::Not(_) => 1,
            Self::PerHead { trees, .. } => trees.iter().map(Self::modulus).fold(0, gcd).max(1),
            Self::Leaf(leaf) => leaf.modulus().max(1),
        }
    }

    fn regrouped(&self, geometry: &Arc<Geometry>) -> Self {
        let all = |children: &[Self]| children.iter().map(|child| child.regrouped(geometry)).collect();
        let leaf = |inner| Self::Leaf(Arc::new(InClasses { inner, geometry: Arc::clone(geometry) }));
        match self {
            Self::Any(children) => Self::Any(all(children)),
            Self::All(children) => Self::All(all(children)),
            // A leaf allows nothing across classes, so its complement must not allow all there.
            Self::Not(child) => {
                Self::All(vec![leaf(Arc::new(Everything)), Self::Not(Box::new(child.regrouped(geometry)))])
            }
            Self::PerHead { of_head, trees } => Self::PerHead { of_head: of_head.clone(), trees: all(trees) },
            Self::Leaf(inner) => leaf(Arc::clone(inner)),
        }
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// What the complement of nothing is, within a class.
#[derive(Debug)]
struct Everything;

impl Leaf for Everything {
    fn allows(&self, _: usize, _: i64, _: usize) -> bool {
        true
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        Cover { some: KeySet::everything(), all: KeySet::everything() }
    }

    fn period(&self) -> Option<u64> {
        Some(1)
    }

    fn print(&self) -> String {
        "full".into()
    }
}

/// Where classes lie among places and numbers.
#[derive(Debug)]
struct Geometry {
    step: i64,
    kv_len: i64,
    /// By residue.
    classes: Vec<Class>,
}

#[derive(Debug)]
struct Class {
    places: Range<i64>,
    numbers: Range<i64>,
    /// Position of the query at the first place.
    first_position: i64,
}

impl Geometry {
    fn new(pattern: &Pattern, step: i64) -> Self {
        let (first, q_len, kv_len) = (pattern.position(0), pattern.q_len as i64, pattern.kv_len as i64);
        let (mut place, mut number) = (0, 0);
        let members =
            |first: i64, len: i64| (len - first).max(0).div_euclid(step) + i64::from((len - first).max(0) % step != 0);
        let classes = (0..step).map(|residue| {
            let ahead = (residue - first).rem_euclid(step);
            let (queries, keys) = (members(ahead, q_len), members(residue, kv_len));
            let class =
                Class { places: place..place + queries, numbers: number..number + keys, first_position: first + ahead };
            (place, number) = (place + queries, number + keys);
            class
        });
        Self { step, kv_len, classes: classes.collect() }
    }

    fn class_of_place(&self, place: i64) -> usize {
        self.classes.partition_point(|class| class.places.end <= place).min(self.classes.len() - 1)
    }

    fn position(&self, class: &Class, place: i64) -> i64 {
        class.first_position + (place - class.places.start) * self.step
    }

    /// Keys of a class as numbers.
    fn numbers(&self, residue: usize, keys: &KeySet) -> KeySet {
        let class = &self.classes[residue];
        let number = |key: i64| class.numbers.start + (key - residue as i64 + self.step - 1).div_euclid(self.step);
        let mut out = KeySet::empty();
        for &(lo, hi) in keys.clip(0, self.kv_len).intervals() {
            out.push(number(lo), number(hi));
        }
        out
    }
}

/// A leaf in places and numbers.
#[derive(Debug)]
struct InClasses {
    inner: Arc<dyn Leaf>,
    geometry: Arc<Geometry>,
}

impl InClasses {
    /// Bounds on queries of one class.
    fn cover_class(&self, head: usize, residue: usize, places: Range<i64>) -> Cover {
        let geometry = &self.geometry;
        let first = geometry.position(&geometry.classes[residue], places.start);
        let Cover { some, all } = self.inner.cover_class(head, first, places.end - places.start, geometry.step);
        Cover { some: geometry.numbers(residue, &some), all: geometry.numbers(residue, &all) }
    }
}

impl Leaf for InClasses {
    fn allows(&self, head: usize, place: i64, number: usize) -> bool {
        let residue = self.geometry.class_of_place(place);
        let class = &self.geometry.classes[residue];
        let number = number as i64;
        class.numbers.contains(&number) && {
            let key = residue as i64 + (number - class.numbers.start) * self.geometry.step;
            self.inner.allows(head, self.geometry.position(class, place), key as usize)
        }
    }

    fn cover(&self, head: usize, places: Range<i64>) -> Cover {
        let mut residue = self.geometry.class_of_place(places.start);
        let mut cover: Option<Cover> = None;
        let mut from = places.start;
        while from < places.end {
            let end = places.end.min(self.geometry.classes[residue].places.end);
            if from < end {
                let more = self.cover_class(head, residue, from..end);
                cover = Some(match cover {
                    None => more,
                    Some(so_far) => {
                        Cover { some: so_far.some.union(&more.some), all: so_far.all.intersection(&more.all) }
                    }
                });
            }
            from = end.max(from);
            residue += 1;
            if residue == self.geometry.classes.len() {
                break;
            }
        }
        cover.unwrap_or_default()
    }

    fn words(&self, head: usize, place: i64, blocks: &[u32], out: &mut [u64]) {
        let residue = self.geometry.class_of_place(place);
        let Cover { some, all } = self.cover_class(head, residue, place..place + 1);
        let Some(&last) = blocks.last() else { return };
        if some == all {
            return fill_set(blocks, out, &some.clip(i64::from(blocks[0]) * 64, (i64::from(last) + 1) * 64));
        }
        for (&block, word) in blocks.iter().zip(out) {
            for bit in 0..64 {
                let number = i64::from(block) * 64 + bit;
                *word |= u64::from(some.contains(number) && self.allows(head, place, number as usize)) << bit;
            }
        }
    }

    fn depends_on_head(&self) -> bool {
        self.inner.depends_on_head()
    }

    fn period(&self) -> Option<u64> {
        // A shift by one place within a class is a shift by `step` positions.
        let period = self.inner.period()?;
        Some(period / gcd(period, self.geometry.step as u64))
    }

    fn print(&self) -> String {
        format!("{} # modulo {}", self.inner.print(), self.geometry.step)
    }
}

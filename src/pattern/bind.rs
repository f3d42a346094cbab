//! What a pattern learns at run time, for one batch element: segment ids, picked neighbors, and how many keys there are.

use std::sync::Arc;

use super::node::leaf;
use super::picks::{Picked, TopBlocks};
use super::sink::keys_below;
use super::{HopPatterns, Leaf, Pattern, Tree};
use crate::error::{Error, Result};

/// What is known at run time of one batch element.
pub struct RunTime<'a> {
    /// Keys from here on are padding, which nobody may attend to; `None` where all keys count.
    pub key_length: Option<usize>,
    /// The segment ids of the element by the name of their input, `kv_len` of them.
    pub segments: &'a dyn Fn(&str) -> Option<&'a [i32]>,
    /// What was picked for the element, by the name of what waits for it ([`Awaited::name`]).
    pub picked: &'a dyn Fn(&str) -> Option<&'a Picked>,
}

/// Something that a leaf waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct Awaited {
    /// The name of its input; of `top_blocks`, which has none, the node as it prints.
    pub name: String,
    /// What it is.
    pub what: Awaits,
}

/// What a leaf may wait for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Awaits {
    /// i32 ids, one a key.
    Segments,
    /// Key blocks of so many blocks of queries, among so many.
    Blocks([usize; 2]),
    /// Keys of so many queries, among so many.
    Keys([usize; 2]),
    /// Key blocks that q and k decide on.
    Top(TopBlocks),
}

/// What a leaf is given, of one batch element.
#[derive(Debug, Clone, Copy)]
pub enum Known<'a> {
    /// Segment ids.
    Ids(&'a [i32]),
    /// Picked key blocks, or keys.
    Picked(&'a Picked),
}

impl std::fmt::Display for Awaits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const HEADS: &str = "batch or 1, heads or kv_heads or 1";
        match self {
            Self::Segments => f.write_str("i32 segment ids, [batch, kv_len]"),
            Self::Blocks([rows, columns]) => {
                write!(f, "bool or u8 [{HEADS}, {rows}, {columns}], or i32 lists [{HEADS}, {rows}, any length]")
            }
            Self::Keys([rows, _]) => write!(f, "i32 lists [{HEADS}, {rows}, any length]"),
            Self::Top(top) => write!(f, "{top}, from q and k"),
        }
    }
}

impl Pattern {
    /// What the pattern and those of hops wait for at run time, each once, in the order of the spec. Until it is bound, no
    /// points are known.
    pub fn awaits(&self) -> Vec<Awaited> {
        let mut all: Vec<Awaited> = Vec::new();
        for pattern in [self].into_iter().chain(self.others()) {
            pattern.tree.any_leaf(&mut |leaf| {
                if let Some(awaited) = leaf.awaits()
                    && !all.contains(awaited)
                {
                    all.push(awaited.clone());
                }
                false
            });
        }
        all
    }

    /// The names of the segment ids among them (i32, `[batch, kv_len]`).
    pub fn run_time_segments(&self) -> Vec<String> {
        let all = self.awaits().into_iter();
        all.filter(|awaited| awaited.what == Awaits::Segments).map(|awaited| awaited.name).collect()
    }

    /// Refuses a pattern that still waits for run-time inputs: for all who ask for points.
    ///
    /// # Errors
    /// [`Error::Unsupported`], naming the inputs.
    pub fn require_bound(&self) -> Result<()> {
        let awaited = self.awaits();
        let Some(Awaited { name, what }) = awaited.first() else { return Ok(()) };
        let names = |of: fn(&Awaits) -> bool| {
            let names: Vec<&str> = awaited.iter().filter(|one| of(&one.what)).map(|one| one.name.as_str()).collect();
            names.join("`, `")
        };
        let (given, instead) = match what {
            Awaits::Segments => {
                let names = names(|what| *what == Awaits::Segments);
                (format!("segments of the run-time input `{names}` that are not given"), "`--input NAME=FILE.npy`")
            }
            Awaits::Blocks(_) | Awaits::Keys(_) => {
                let names = names(|what| matches!(what, Awaits::Blocks(_) | Awaits::Keys(_)));
                (format!("neighbors of the run-time input `{names}` that are not given"), "`--input NAME=FILE.npy`")
            }
            Awaits::Top(_) => (format!("`{name}` without q and k, which decide on it"), "a call with q and k"),
        };
        Err(Error::unsupported(given, format!("who may attend to whom is known only with them: {instead}")))
    }

    /// The pattern of one batch element: segment ids put in, keys from `key_length` on forbidden, for every hop.
    ///
    /// # Errors
    /// [`Error::Value`] where ids are missing, negative or decrease, or the key length is larger than `kv_len`;
    /// [`Error::Shape`] where there are not `kv_len` ids.
    pub fn bind(&self, known: &RunTime<'_>) -> Result<Self> {
        let mut tree = self.tree.bind(known)?;
        if let Some(length) = known.key_length {
            if length > self.kv_len {
                let message = format!("a key length is {length}; expected at most {}, as many as keys", self.kv_len);
                return Err(Error::Value { tensor: "key_lengths".into(), message });
            }
            if length < self.kv_len {
                let real = leaf(keys_below(length))?;
                tree = tree.within(&real);
            }
        }
        let others = self.others().iter().map(|pattern| pattern.bind(known)).collect::<Result<_>>()?;
        Ok(Self { tree, hops: HopPatterns { of_hop: self.hops.of_hop.clone(), others }, ..*self })
    }
}

impl Tree {
    fn bind(&self, known: &RunTime<'_>) -> Result<Self> {
        let all = |children: &[Self]| children.iter().map(|child| child.bind(known)).collect::<Result<Vec<_>>>();
        Ok(match self {
            Self::Any(children) => Self::Any(all(children)?),
            Self::All(children) => Self::All(all(children)?),
            Self::Not(child) => Self::Not(Box::new(child.bind(known)?)),
            Self::PerHead { of_head, trees } => Self::PerHead { of_head: of_head.clone(), trees: all(trees)? },
            Self::Leaf(leaf) => {
                let Some(Awaited { name, what }) = leaf.awaits() else { return Ok(self.clone()) };
                let missing = |expected: String| {
                    let message = format!("is not given; expected {expected}");
                    Error::Value { tensor: name.clone(), message }
                };
                let known = match what {
                    Awaits::Segments => {
                        let ids = (known.segments)(name);
                        Known::Ids(ids.ok_or_else(|| missing("i32 segment ids, [batch, kv_len]".into()))?)
                    }
                    _ => Known::Picked((known.picked)(name).ok_or_else(|| missing(what.to_string()))?),
                };
                Self::Leaf(leaf.bind(known)?.unwrap_or_else(|| leaf.clone()))
            }
        })
    }

    /// The tree cut to what `leaf` allows; a choice by head stays at the root.
    fn within(self, leaf: &Arc<dyn Leaf>) -> Self {
        match self {
            Self::PerHead { of_head, trees } => {
                Self::PerHead { of_head, trees: trees.into_iter().map(|tree| tree.within(leaf)).collect() }
            }
            Self::Any(_) | Self::All(_) | Self::Not(_) | Self::Leaf(_) => {
                Self::All(vec![self, Self::Leaf(leaf.clone())])
            }
        }
    }
}

//! What a pattern learns at run time, for one batch element: segment ids, and how many keys there are.

use std::sync::Arc;

use super::node::leaf;
use super::sink::keys_below;
use super::{HopPatterns, Leaf, Pattern, Tree};
use crate::error::{Error, Result};

/// What is known at run time of one batch element.
pub struct RunTime<'a> {
    /// Keys from here on are padding, which nobody may attend to; `None` where all keys count.
    pub key_length: Option<usize>,
    /// The segment ids of the element by the name of their input, `kv_len` of them.
    pub segments: &'a dyn Fn(&str) -> Option<&'a [i32]>,
}

impl Pattern {
    /// The names of the run-time inputs that the pattern and those of hops need (i32 segment ids, `[batch, kv_len]`),
    /// each once, in the order of the spec. Until they are bound, no points are known.
    pub fn run_time_segments(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for pattern in [self].into_iter().chain(self.others()) {
            pattern.tree.any_leaf(&mut |leaf| {
                if let Some(name) = leaf.input()
                    && !names.iter().any(|known| known == name)
                {
                    names.push(name.into());
                }
                false
            });
        }
        names
    }

    /// Refuses a pattern that still waits for run-time inputs: for all who ask for points.
    ///
    /// # Errors
    /// [`Error::Unsupported`], naming the inputs.
    pub fn require_bound(&self) -> Result<()> {
        let names = self.run_time_segments();
        if names.is_empty() {
            return Ok(());
        }
        let given = format!("segments of the run-time input `{}` that are not given", names.join("`, `"));
        Err(Error::unsupported(given, "who may attend to whom is known only with them: `--input NAME=FILE.npy`"))
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
                let Some(name) = leaf.input() else { return Ok(self.clone()) };
                let Some(ids) = (known.segments)(name) else {
                    let message = "is not given; expected i32 segment ids, [batch, kv_len]".into();
                    return Err(Error::Value { tensor: name.into(), message });
                };
                Self::Leaf(leaf.bind(ids)?.unwrap_or_else(|| leaf.clone()))
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

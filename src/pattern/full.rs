//! `full` and `causal`: everything, and the past.

use std::ops::Range;

use super::bits::fill;
use super::node::{Args, Draft, NodeDef, leaf};
use super::{Cover, KeySet, Leaf};
use crate::error::Result;

/// `full`
pub const FULL: NodeDef = NodeDef {
    name: "full",
    meaning: "every query attends to every key",
    args: &[],
    forms: &[],
    example: "full",
    read: read_full,
};

/// `causal`
pub const CAUSAL: NodeDef = NodeDef {
    name: "causal",
    meaning: "a query attends to itself and to what stands before it",
    args: &[],
    forms: &[],
    example: "causal",
    read: read_causal,
};

fn read_full<'a>(_: &Args<'a>) -> Result<Draft<'a>> {
    Ok(Box::new(|scope| leaf(Full { kv_len: scope.kv_len as i64 })))
}

fn read_causal<'a>(_: &Args<'a>) -> Result<Draft<'a>> {
    Ok(Box::new(|_| leaf(Causal)))
}

#[derive(Debug)]
struct Full {
    kv_len: i64,
}

impl Leaf for Full {
    fn allows(&self, _: usize, _: i64, _: usize) -> bool {
        true
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        let keys = KeySet::span(0, self.kv_len);
        Cover { some: keys.clone(), all: keys }
    }

    fn words(&self, _: usize, _: i64, _: &[u32], out: &mut [u64]) {
        out.fill(u64::MAX);
    }

    fn period(&self) -> Option<u64> {
        Some(1)
    }

    fn print(&self) -> String {
        "full".into()
    }
}

#[derive(Debug)]
struct Causal;

impl Leaf for Causal {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        k as i64 <= q
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        Cover { some: KeySet::span(0, queries.end), all: KeySet::span(0, queries.start + 1) }
    }

    fn words(&self, _: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        fill(blocks, out, 0, q + 1);
    }

    fn period(&self) -> Option<u64> {
        Some(1)
    }

    fn print(&self) -> String {
        "causal".into()
    }
}

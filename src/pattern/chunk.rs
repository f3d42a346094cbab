//! `chunk`: queries and keys of the same chunk, chunks possibly overlapping or with gaps between them.

use std::ops::Range;

use super::bits::fill;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::{Cover, KeySet, Leaf, MAX_LENGTH};
use crate::error::Result;

/// `chunk`
pub const CHUNK: NodeDef = NodeDef {
    name: "chunk",
    meaning: "a query attends to the keys that share a chunk with it: c*stride <= q, k < c*stride + size",
    args: &[
        ArgDef { name: "size", kind: Kind::Integer, default: None, meaning: "tokens in a chunk" },
        ArgDef { name: "stride", kind: Kind::Integer, default: Some("size"), meaning: "tokens from chunk to chunk" },
    ],
    forms: &[],
    example: "chunk: {size: 64, stride: 32}",
    read,
};

fn read<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let size = args.int("size", 1, None)?;
    let stride = match args.get("stride") {
        Some(_) => args.int("stride", 1, None)?,
        None => size.clone(),
    };
    Ok(Box::new(move |scope| {
        // Beyond every length, larger makes no difference.
        let most = 2 * MAX_LENGTH as i64;
        leaf(Chunk {
            size: size.at_most(scope, most)?,
            stride: stride.at_most(scope, most)?,
            kv_len: scope.kv_len as i64,
        })
    }))
}

#[derive(Debug)]
struct Chunk {
    size: i64,
    stride: i64,
    kv_len: i64,
}

impl Chunk {
    /// First chunk that reaches beyond token `x`.
    fn first(&self, x: i64) -> i64 {
        ((x - self.size).div_euclid(self.stride) + 1).max(0)
    }

    /// Last chunk that starts at or before token `x`; negative before the first one.
    fn last(&self, x: i64) -> i64 {
        x.div_euclid(self.stride)
    }
}

impl Leaf for Chunk {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        // The last chunk that starts at or before both reaches furthest.
        let k = k as i64;
        let last = self.last(q.min(k));
        last >= 0 && q.max(k) < last * self.stride + self.size
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        let (low, high) = (queries.start, queries.end - 1);
        let start = |chunk: i64| chunk * self.stride;
        let (first, last) = (self.first(low), self.last(high));
        let mut some = KeySet::empty();
        if high < 0 {
            return Cover::default();
        }
        if self.stride <= self.size {
            some = KeySet::span(start(first), start(last) + self.size);
        } else {
            for chunk in first..=last {
                some.push(start(chunk), start(chunk) + self.size);
            }
        }
        // Both ends move up with the query: the intersection runs from the highest query's first chunk to
        // the lowest one's last, and a query in a gap between chunks makes it empty.
        let all = match low {
            0.. => KeySet::span(start(self.first(high)), start(self.last(low)) + self.size),
            _ => KeySet::empty(),
        };
        Cover { some: some.clip(0, self.kv_len), all }
    }

    fn words(&self, _: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        if q < 0 {
            return;
        }
        fill(blocks, out, self.first(q) * self.stride, self.last(q) * self.stride + self.size);
    }

    fn period(&self) -> Option<u64> {
        Some(self.stride as u64)
    }

    fn print(&self) -> String {
        format!("chunk: {{size: {}, stride: {}}}", self.size, self.stride)
    }
}

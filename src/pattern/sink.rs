//! `sink` and `prefix`: the first keys, for every query. One set, two names: attention sinks of streaming
//! decoders (Xiao et al., ICLR 2024) and the bidirectional prefix of a prefix-LM.

use std::ops::Range;

use super::bits::fill;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::{Cover, KeySet, Leaf, MAX_LENGTH};
use crate::error::Result;

const ARGS: &[ArgDef] = &[ArgDef { name: "", kind: Kind::Integer, default: None, meaning: "how many first keys" }];

/// `sink`
pub const SINK: NodeDef = NodeDef {
    name: "sink",
    meaning: "every query attends to the first keys (attention sinks)",
    args: ARGS,
    forms: &[],
    example: "sink: 4",
    read: |args| read(args, "sink"),
};

/// `prefix`
pub const PREFIX: NodeDef = NodeDef {
    name: "prefix",
    meaning: "every query attends to the first keys (the prompt of a prefix-LM)",
    args: ARGS,
    forms: &[],
    example: "prefix: \"n/4\"",
    read: |args| read(args, "prefix"),
};

fn read<'a>(args: &Args<'a>, name: &'static str) -> Result<Draft<'a>> {
    let count = args.own_int(0)?;
    Ok(Box::new(move |scope| leaf(Sink { name, count: count.at_most(scope, MAX_LENGTH as i64)? })))
}

/// The leaf that allows the keys below a key length.
pub(super) fn keys_below(length: usize) -> impl Leaf {
    Sink { name: "prefix", count: length as i64 }
}

#[derive(Debug)]
struct Sink {
    name: &'static str,
    count: i64,
}

impl Leaf for Sink {
    fn allows(&self, _: usize, _: i64, k: usize) -> bool {
        (k as i64) < self.count
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        let keys = KeySet::span(0, self.count);
        Cover { some: keys.clone(), all: keys }
    }

    fn words(&self, _: usize, _: i64, blocks: &[u32], out: &mut [u64]) {
        fill(blocks, out, 0, self.count);
    }

    fn global_keys(&self) -> KeySet {
        KeySet::span(0, self.count)
    }

    fn print(&self) -> String {
        format!("{}: {}", self.name, self.count)
    }
}

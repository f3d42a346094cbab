//! `global`: tokens that everyone sees, that see everyone, or both.

use std::ops::Range;

use super::bits::fill_set;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::random::check_edges;
use super::tokens::{TokenArg, Tokens};
use super::{Cover, KeySet, Leaf};
use crate::error::Result;

/// `global`
pub const GLOBAL: NodeDef = NodeDef {
    name: "global",
    meaning: "the tokens attend to every key and every query attends to them",
    args: &[
        ArgDef {
            name: "tokens",
            kind: Kind::Tokens,
            default: None,
            meaning: "[0, 5], {first: E}, {last: E}, {every: E, offset: E} or {random: {count: E, seed: S, from: E}}",
        },
        ArgDef {
            name: "axis",
            kind: Kind::Choice(&["both", "keys", "queries"]),
            default: Some("both"),
            meaning: "keys: everyone attends to the tokens; queries: the tokens attend to everyone",
        },
    ],
    forms: &[],
    example: "global: {tokens: {first: 2}}",
    read,
};

fn read<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let tokens = TokenArg::read(&args)?;
    let axis = args.choice("axis", &["both", "keys", "queries"])?;
    Ok(Box::new(move |scope| {
        let tokens = tokens.at(&args, scope)?;
        let mut rows = Vec::new();
        if axis != "keys" {
            let dense = tokens.set.clip(scope.first(), scope.end());
            check_edges(&args, u128::from(dense.len()))?;
            dense.intervals().iter().for_each(|&(lo, hi)| rows.extend(lo..hi));
        }
        leaf(Global { tokens, axis, rows, kv_len: scope.kv_len as i64 })
    }))
}

#[derive(Debug)]
struct Global {
    tokens: Tokens,
    axis: &'static str,
    /// Positions of queries that attend to everything.
    rows: Vec<i64>,
    kv_len: i64,
}

impl Global {
    fn keys(&self) -> KeySet {
        if self.axis == "queries" { KeySet::empty() } else { self.tokens.set.clone() }
    }
}

impl Leaf for Global {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        let is_token = |x: i64| self.tokens.set.contains(x);
        match self.axis {
            "keys" => is_token(k as i64),
            "queries" => is_token(q),
            _ => is_token(q) || is_token(k as i64),
        }
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        let everything = || KeySet::span(0, self.kv_len);
        let (first, end) = (queries.start, queries.end);
        if self.axis == "keys" || !self.tokens.set.meets(first, end) {
            return Cover { some: self.keys(), all: self.keys() };
        }
        let all = if self.tokens.set.covers(first, end) { everything() } else { self.keys() };
        Cover { some: everything(), all }
    }

    fn words(&self, _: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        if self.axis != "keys" && self.tokens.set.contains(q) {
            out.fill(u64::MAX);
        } else if self.axis != "queries" {
            fill_set(blocks, out, &self.tokens.set);
        }
    }

    fn listed(&self) -> u64 {
        self.rows.len().max(self.tokens.set.intervals().len()) as u64
    }

    fn dense_queries(&self) -> &[i64] {
        &self.rows
    }

    fn global_keys(&self) -> KeySet {
        self.keys()
    }

    fn print(&self) -> String {
        format!("global: {{tokens: {}, axis: {}}}", self.tokens.text, self.axis)
    }
}

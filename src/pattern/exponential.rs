//! `exponential`: keys at distances that grow by a factor (Li et al., "Enhancing the Locality and Breaking the
//! Memory Bottleneck of Transformer on Time Series Forecasting", NeurIPS 2019, whose LogSparse attention looks
//! back in powers of two).

use std::ops::Range;

use super::bits::fill_set;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::{Cover, KeySet, Leaf, MAX_LENGTH};
use crate::error::Result;

/// `exponential`
pub const EXPONENTIAL: NodeDef = NodeDef {
    name: "exponential",
    meaning: "a query attends to itself and to the keys at distance 1, base, base**2, ... on both sides",
    args: &[ArgDef { name: "base", kind: Kind::Integer, default: None, meaning: "factor from distance to distance" }],
    forms: &[],
    example: "exponential: {base: 2}",
    read,
};

fn read<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let base = args.int("base", 2, None)?;
    Ok(Box::new(move |scope| {
        // A larger base has no second power within any length.
        let base = base.at_most(scope, 2 * MAX_LENGTH as i64)?;
        let reach = scope.end().max(scope.kv_len as i64) - scope.first().min(0);
        let powers: Vec<i64> =
            std::iter::successors(Some(1), |power: &i64| power.checked_mul(base)).take_while(|&p| p <= reach).collect();
        let before = powers.iter().rev().map(|power| -power);
        let offsets = KeySet::from_sorted_keys(before.chain([0]).chain(powers.iter().copied()));
        leaf(Exponential { base, offsets, kv_len: scope.kv_len as i64 })
    }))
}

#[derive(Debug)]
struct Exponential {
    base: i64,
    /// The allowed k - q.
    offsets: KeySet,
    kv_len: i64,
}

impl Exponential {
    fn keys(&self, first: i64, last: i64) -> Cover {
        let mut cover = Cover::default();
        for &(lo, hi) in self.offsets.intervals() {
            cover.some.push(first + lo, last + hi);
            // Of neighboring distances a key may have one to each query; of a single one to one query alone.
            cover.all.push(last + lo, first + hi);
        }
        Cover { some: cover.some.clip(0, self.kv_len), all: cover.all }
    }
}

impl Leaf for Exponential {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        let mut distance = q.abs_diff(k as i64);
        while distance > 1 && distance.is_multiple_of(self.base as u64) {
            distance /= self.base as u64;
        }
        distance <= 1
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        self.keys(queries.start, queries.end - 1)
    }

    fn words(&self, _: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        fill_set(blocks, out, &self.keys(q, q).some);
    }

    fn period(&self) -> Option<u64> {
        Some(1)
    }

    fn print(&self) -> String {
        format!("exponential: {{base: {}}}", self.base)
    }
}

//! `edges`: the allowed pairs, one by one, from a file or in the spec.

use super::files::{self, Elements};
use super::listed::Listed;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::rows::Rows;
use crate::error::Result;
use crate::limits::Limit;
use crate::spec::{Source, Value};

/// `edges`
pub const EDGES: NodeDef = NodeDef {
    name: "edges",
    meaning: "(q, k) is allowed where it is one of the pairs",
    args: &[
        ArgDef {
            name: "file",
            kind: Kind::File,
            default: None,
            meaning: "an array of integers beside the spec, [count, 2]: a row is a pair (q, k)",
        },
        ArgDef { name: "pairs", kind: Kind::Pairs, default: None, meaning: "the pairs themselves" },
    ],
    forms: &[&["file"], &["pairs"]],
    example: "edges: {pairs: [[0, 0]]}",
    read,
};

const EXPECTED: &str = "a .npy array of integers, [count, 2]";

fn read<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let (pairs, written) = match (args.get("file"), args.get("pairs")) {
        (Some(value), None) => (from_file(args.source, value)?, value),
        (None, Some(value)) => (inline(args.source, value)?, value),
        (Some(_), Some(pairs)) => {
            return Err(args.source.error(pairs.at, "`pairs` does not go with `file`", "one of the two"));
        }
        (None, None) => return Err(args.refuse("`file` is missing in edges", "`file: edges.npy`")),
    };
    Ok(Box::new(move |scope| {
        let (queries, keys) = (scope.end().max(scope.kv_len as i64), scope.kv_len as i64);
        // No tokens have no pairs: a spec with a file runs on empty input.
        let pairs = if queries == 0 || keys == 0 { Vec::new() } else { pairs };
        for (row, &[q, k]) in pairs.iter().enumerate() {
            if !(0..queries).contains(&q) || !(0..keys).contains(&k) {
                let message = format!("pair {row}, ({q}, {k}), is out of range");
                let expected = format!("0 <= q < {queries} and 0 <= k < {keys} at these lengths");
                return Err(args.source.error(written.at, message, expected));
            }
        }
        let rows = sorted(&pairs, scope.end().max(0) as usize);
        let text: Vec<String> =
            (0..rows.count()).flat_map(|q| rows.row(q).iter().map(move |k| format!("[{q}, {k}]"))).collect();
        let text = format!("edges: {{pairs: [{}]}}", text.join(", "));
        leaf(Listed { rows: vec![rows], first: 0, text })
    }))
}

/// The keys of every query below `count`, ascending, without repetitions.
fn sorted(pairs: &[[i64; 2]], count: usize) -> Rows {
    let mut pairs = pairs.to_vec();
    pairs.sort_unstable();
    pairs.dedup();
    let mut next = 0;
    Rows::build(count, pairs.len(), |q, keys| {
        while let Some(&[_, k]) = pairs.get(next).filter(|pair| pair[0] == q as i64) {
            keys.push(k as u32);
            next += 1;
        }
    })
}

fn from_file(source: &Source, value: &Value) -> Result<Vec<[i64; 2]>> {
    let array = files::read(source, value, &Elements { integer: |x| x, float: None, expected: EXPECTED })?;
    let shape = array.shape();
    if shape.len() != 2 || shape[1] != 2 {
        return Err(source.error(value.at, format!("the array has shape {shape:?}"), EXPECTED));
    }
    if shape[0] as u64 > source.limits.get(Limit::Edges) {
        return Err(source.beyond(value.at, Limit::Edges, format!("the array has {} pairs", shape[0])));
    }
    Ok(array.outer_iter().map(|pair| [pair[0], pair[1]]).collect())
}

fn inline(source: &Source, value: &Value) -> Result<Vec<[i64; 2]>> {
    const PAIR: &str = "a pair of positions, such as [3, 0]";
    let pair = |item: &Value| match item.list(source, "pairs", PAIR)? {
        [q, k] => {
            let position = |x: &Value| x.integer(source, "pairs", 0, i64::MAX as u64).map(|x| x as i64);
            Ok([position(q)?, position(k)?])
        }
        other => Err(source.error(item.at, format!("a pair has {} numbers", other.len()), PAIR)),
    };
    value.list(source, "pairs", "a list of pairs, such as [[0, 0], [3, 0]]")?.iter().map(pair).collect()
}

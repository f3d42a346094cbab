//! `segments`: sequences that stand one after another in one row (packed documents) and do not see each other.
//!
//! With `lengths` the borders are known from the start. With `input` they are ids given at run time, one a key:
//! the leaf then knows no points until [`Pattern::bind`](super::Pattern::bind) gives it the ids of one batch
//! element.

use std::ops::Range;
use std::sync::Arc;

use super::bind::{Awaited, Awaits, Known};
use super::bits::fill;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::{Cover, KeySet, Leaf, MAX_LENGTH};
use crate::error::{Error, Result};
use crate::spec::quoted;

/// `segments`
pub const SEGMENTS: NodeDef = NodeDef {
    name: "segments",
    meaning: "query and key lie in the same segment (packed documents)",
    args: &[
        ArgDef {
            name: "lengths",
            kind: Kind::Integers,
            default: None,
            meaning: "tokens of each segment; together all keys there are",
        },
        ArgDef {
            name: "input",
            kind: Kind::Input,
            default: None,
            meaning: "i32 ids given at run time, [batch, kv_len], from 0 on and never decreasing",
        },
    ],
    forms: &[&["lengths"], &["input"]],
    example: "segments: {lengths: [\"n//2\", \"n - n//2\"]}",
    read,
};

fn read<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    match (args.get("lengths"), args.get("input")) {
        (Some(written), None) => {
            let lengths = args.ints("lengths", 0, "[512, 512]")?;
            Ok(Box::new(move |scope| {
                let mut starts = Vec::with_capacity(lengths.len() + 1);
                let mut end = 0;
                for length in &lengths {
                    starts.push(end);
                    // Beyond every length, larger makes no difference, and the sum stays small.
                    end = (end + length.at_most(scope, MAX_LENGTH as i64 + 1)?).min(MAX_LENGTH as i64 + 1);
                }
                if end != scope.kv_len as i64 {
                    let message = match end > MAX_LENGTH as i64 {
                        true => "the segments have too many tokens".to_string(),
                        false => format!("the segments have {end} tokens"),
                    };
                    let expected = format!("as many as there are keys, {}", scope.kv_len);
                    return Err(args.source.error(written.at, message, expected));
                }
                starts.push(end);
                leaf(Segments { starts })
            }))
        }
        (None, Some(name)) => {
            let name = name.text(args.source, "input")?.to_string();
            let awaited = Awaited { name, what: Awaits::Segments };
            Ok(Box::new(move |scope| leaf(Unbound { awaited, kv_len: scope.kv_len })))
        }
        (Some(_), Some(input)) => {
            Err(args.source.error(input.at, "`input` does not go with `lengths`", "one of the two"))
        }
        (None, None) => Err(args.refuse("`lengths` is missing in segments", "`lengths: [512, 512]` or `input: ids`")),
    }
}

/// Segments whose borders are known.
#[derive(Debug)]
struct Segments {
    /// Starts, ascending, and the end of the last one.
    starts: Vec<i64>,
}

impl Segments {
    /// The segment that holds a position.
    fn around(&self, x: i64) -> Option<(i64, i64)> {
        let after = self.starts.partition_point(|&start| start <= x);
        Some((*self.starts.get(after.checked_sub(1)?)?, *self.starts.get(after)?))
    }

    /// The keys that ids of one batch element put in one segment.
    fn from_ids(name: &str, ids: &[i32], kv_len: usize) -> Result<Self> {
        if ids.len() != kv_len {
            return Err(Error::Shape {
                tensor: name.into(),
                expected: format!("[batch, {kv_len}] (batch, kv_len)"),
                found: format!("{} ids of a batch element", ids.len()),
            });
        }
        let wrong = |message: String| Err(Error::Value { tensor: name.into(), message });
        let mut starts = Vec::new();
        let mut last = None;
        for (at, &id) in ids.iter().enumerate() {
            if id < 0 {
                return wrong(format!("the segment id at {at} is {id}; expected ids from 0 on"));
            }
            match last {
                Some(last) if id < last => {
                    return wrong(format!(
                        "the segment id at {at} is {id}, after {last}; expected ids that never decrease"
                    ));
                }
                Some(last) if id == last => {}
                _ => starts.push(at as i64),
            }
            last = Some(id);
        }
        starts.push(kv_len as i64);
        Ok(Self { starts })
    }
}

impl Leaf for Segments {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        self.starts.windows(2).any(|pair| (pair[0]..pair[1]).contains(&q) && (pair[0]..pair[1]).contains(&(k as i64)))
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        let (first, end) = (self.starts.first().copied().unwrap_or(0), self.starts.last().copied().unwrap_or(0));
        let inside = queries.start.max(first)..queries.end.min(end);
        if inside.is_empty() {
            return Cover::default();
        }
        let (Some(low), Some(high)) = (self.around(inside.start), self.around(inside.end - 1)) else {
            return Cover::default();
        };
        let some = KeySet::span(low.0, high.1);
        let all = if low == high && inside == queries { some.clone() } else { KeySet::empty() };
        Cover { some, all }
    }

    fn words(&self, _: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        if let Some((start, end)) = self.around(q) {
            fill(blocks, out, start, end);
        }
    }

    fn print(&self) -> String {
        let lengths: Vec<String> = self.starts.windows(2).map(|pair| (pair[1] - pair[0]).to_string()).collect();
        format!("segments: {{lengths: [{}]}}", lengths.join(", "))
    }
}

/// Segments whose ids come at run time.
#[derive(Debug)]
struct Unbound {
    awaited: Awaited,
    kv_len: usize,
}

impl Leaf for Unbound {
    fn allows(&self, _: usize, _: i64, _: usize) -> bool {
        false
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        Cover { some: KeySet::span(0, self.kv_len as i64), all: KeySet::empty() }
    }

    fn awaits(&self) -> Option<&Awaited> {
        Some(&self.awaited)
    }

    fn bind(&self, known: Known<'_>) -> Result<Option<Arc<dyn Leaf>>> {
        let Known::Ids(ids) = known else { return Ok(None) };
        Ok(Some(leaf(Segments::from_ids(&self.awaited.name, ids, self.kv_len)?)?))
    }

    fn print(&self) -> String {
        format!("segments: {{input: {}}}", quoted(&self.awaited.name))
    }
}

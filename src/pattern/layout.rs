//! The layout of a `blocks` node: zeros and ones in the spec, or an array in a file beside it.
//!
//! Refused: rows of different lengths, a shape that does not fit the lengths, what [`files`] refuses.

use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn};

use super::files::{self, Elements};
use super::node::{Args, Scope};
use super::random::check_edges;
use super::rows::Rows;
use crate::error::Result;
use crate::spec::{Source, Value};

/// Any integers, floats or truth values.
const ELEMENTS: Elements<bool> =
    Elements { integer: |x| x != 0, float: Some(|x| x != 0.0), expected: "a .npy array of zeros and ones" };

/// Non-zero entries of a layout, `[heads or 1, query blocks, key blocks]`.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    allowed: ArrayD<bool>,
    /// Whether there was a head axis.
    by_head: bool,
    written: &'a Value,
}

impl<'a> Layout<'a> {
    /// Reads `layout` or `file`, of which there must be one.
    pub fn read(args: &Args<'a>) -> Result<Self> {
        let (allowed, written) = match (args.get("layout"), args.get("file")) {
            (Some(value), None) => (inline(args.source, value)?, value),
            (None, Some(value)) => (files::read(args.source, value, &ELEMENTS)?, value),
            (Some(_), Some(file)) => {
                let message = "`file` does not go with `layout`";
                return Err(args.source.error(file.at, message, "one of the two"));
            }
            (None, None) => return Err(args.refuse("`layout` is missing in blocks", "`layout: [[1]]` or `file`")),
        };
        let by_head = allowed.ndim() == 3;
        if !by_head && allowed.ndim() != 2 {
            let message = format!("the layout has {} axes", allowed.ndim());
            return Err(args.source.error(written.at, message, "[query blocks, key blocks], possibly [heads, ...]"));
        }
        let allowed = if by_head { allowed } else { allowed.insert_axis(Axis(0)) };
        Ok(Self { allowed, by_head, written })
    }

    /// The key blocks of every query block, by head; checks that the layout fits the lengths.
    pub fn at(&self, args: &Args<'_>, scope: &Scope, block: usize) -> Result<Vec<Rows>> {
        let heads = if self.by_head { scope.heads } else { 1 };
        // Queries count from position 0: with a longer cache, the last rows of the layout are theirs.
        let queries = usize::try_from(scope.end()).unwrap_or(0);
        let expected = [heads, queries.div_ceil(block), scope.kv_len.div_ceil(block)];
        // No tokens need no blocks: any layout will do, so that a spec with a layout runs on empty input.
        let empty = expected[1] == 0 || expected[2] == 0;
        if self.allowed.shape() != expected && !(empty && self.allowed.shape()[0] == heads) {
            let skip = usize::from(!self.by_head);
            let message = format!("the layout has shape {:?}", &self.allowed.shape()[skip..]);
            let expected = format!(
                "{:?}: {}{} queries and {} keys in blocks of {block}",
                &expected[skip..],
                if self.by_head { format!("{heads} heads, ") } else { String::new() },
                queries,
                scope.kv_len
            );
            return Err(args.source.error(self.written.at, message, expected));
        }
        check_edges(args, self.allowed.len() as u128)?;
        let rows = |head: usize| {
            let head = self.allowed.index_axis(Axis(0), head);
            let count = if empty { 0 } else { head.shape()[0] };
            Rows::build(count, 0, |row, keys| {
                let row = head.index_axis(Axis(0), row);
                keys.extend(row.iter().enumerate().filter(|(_, on)| **on).map(|(i, _)| i as u32));
            })
        };
        Ok((0..heads).map(rows).collect())
    }

    /// The layout as nested lists of zeros and ones.
    pub fn text(&self) -> String {
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let mut heads = self.allowed.outer_iter().map(|head| {
            let row = |row: ArrayViewD<'_, bool>| list(row.iter().map(|&on| u8::from(on).to_string()).collect());
            list(head.outer_iter().map(row).collect())
        });
        if self.by_head { list(heads.collect()) } else { heads.next().unwrap_or_default() }
    }
}

/// Nested lists of integers, two or three deep.
fn inline(source: &Source, value: &Value) -> Result<ArrayD<bool>> {
    const EXPECTED: &str = "rows of zeros and ones, such as [[1, 0], [1, 1]]";
    let mut shape = Vec::new();
    let mut level = vec![value];
    loop {
        let lists: Vec<&[Value]> =
            level.iter().map(|item| item.list(source, "layout", EXPECTED)).collect::<Result<_>>()?;
        let width = lists.first().map_or(0, |list| list.len());
        if let Some(i) = lists.iter().position(|list| list.len() != width) {
            let message = format!("a row of the layout has {} entries", lists[i].len());
            return Err(source.error(level[i].at, message, format!("{width}, like the first row")));
        }
        shape.push(width);
        level = lists.into_iter().flatten().collect();
        let deeper = level.first().is_some_and(|item| matches!(item.data, crate::spec::Data::List(_)));
        if !deeper && shape.len() >= 2 || shape.len() == 3 || level.is_empty() {
            break;
        }
    }
    let entries = level
        .iter()
        .map(|item| Ok(item.integer(source, "layout", 0, u64::from(u32::MAX))? != 0))
        .collect::<Result<_>>()?;
    ArrayD::from_shape_vec(IxDyn(&shape), entries).map_err(|_| source.error(value.at, "the layout is uneven", EXPECTED))
}

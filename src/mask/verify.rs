//! The rules of a [`BlockMask`]: rows cover everything once, keys are in range and disjoint, tables fit, bits
//! beyond the last query are 0, order is a permutation.
//!
//! In: any mask, from wherever. Out: nothing, or what is wrong. Time is proportional to the tables, the edges
//! and the segments of runs, not to block rows.

use super::{BlockMask, HeadMask, KeyOrder, Keys, QUERY_BLOCK, RowOrder, RowRun, Segment};
use crate::error::{Error, Result};

/// Checks every rule of the mask's types.
///
/// # Errors
///
/// [`Error::Internal`] with the rule that is broken and the mask's text.
pub fn verify(mask: &BlockMask) -> Result<()> {
    check(mask).map_err(|message| {
        // A broken mask of a large random pattern would print as megabytes.
        let mut text = mask.print();
        if text.len() > MOST_TEXT {
            let cut = (0..=MOST_TEXT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(cut);
            text.push_str("\n(the rest is left out)");
        }
        Error::internal("mask", message, text)
    })
}

/// Bytes of text in an error.
const MOST_TEXT: usize = 20_000;

/// What is wrong with the mask.
pub(super) fn check(mask: &BlockMask) -> Result<(), String> {
    if let Some(number) = mask.mask_of_head.iter().find(|&&number| number as usize >= mask.masks.len()) {
        return Err(format!("a head has mask {number} of {}", mask.masks.len()));
    }
    if mask.stack == 0 || (mask.stack > 1 && mask.q_len != mask.stack) {
        return Err(format!("{} queries of {} heads in a row", mask.q_len, mask.stack));
    }
    if mask.parts == 0 || !mask.mask_of_head.len().is_multiple_of(mask.parts) {
        return Err(format!("{} masks of heads in {} parts", mask.mask_of_head.len(), mask.parts));
    }
    for (number, head) in mask.masks.iter().enumerate() {
        check_head(mask, head).map_err(|message| format!("mask {number}: {message}"))?;
    }
    Ok(())
}

fn check_head(mask: &BlockMask, head: &HeadMask) -> Result<(), String> {
    check_order(mask.q_len, &head.order)?;
    if head.keys == KeyOrder::Residue(0) {
        return Err("keys have residue classes of step 0".into());
    }
    for (number, list) in head.lists.iter().enumerate() {
        if !list.is_sorted_by(|a, b| a < b) || list.last().is_some_and(|&key| key as usize >= mask.kv_len) {
            return Err(format!("list {number} is not ascending within the {} keys", mask.kv_len));
        }
    }
    let block_rows = mask.q_len.div_ceil(QUERY_BLOCK) as u64;
    let mut next = 0;
    for run in &head.rows {
        if u64::from(run.first) != next || run.count == 0 {
            return Err(format!("row {next} expected, found {} rows from {}", run.count, run.first));
        }
        next += u64::from(run.count);
        if next > block_rows {
            break;
        }
        check_run(mask, head, run).map_err(|message| format!("rows {}..{next}: {message}", run.first))?;
    }
    if next != block_rows {
        return Err(format!("runs reach row {next}, and there are {block_rows}"));
    }
    check_edges(mask, head)
}

fn check_order(q_len: usize, order: &RowOrder) -> Result<(), String> {
    let RowOrder::Permuted(order) = order else { return Ok(()) };
    let mut seen = vec![false; order.len()];
    let once = |&query: &u32| seen.get_mut(query as usize).is_some_and(|seen| !std::mem::replace(seen, true));
    if order.len() != q_len || !order.iter().all(once) {
        return Err(format!("the order is not a permutation of {q_len} queries"));
    }
    Ok(())
}

fn check_run(mask: &BlockMask, head: &HeadMask, run: &RowRun) -> Result<(), String> {
    let end = (u64::from(run.first) + u64::from(run.count)) * QUERY_BLOCK as u64;
    let live = u64::MAX >> end.saturating_sub(mask.q_len as u64).min(63);
    for (number, segment) in run.segments.iter().enumerate() {
        let len = check_segment(mask, head, run, segment).map_err(|message| format!("segment {number}: {message}"))?;
        let Some(words) = segment.mask else { continue };
        let words = head.words.get(words as usize).ok_or_else(|| format!("segment {number}: no mask {words}"))?;
        if words.len() != len {
            return Err(format!("segment {number}: {} words for {len} keys", words.len()));
        }
        if words.iter().any(|word| word & !live != 0) {
            return Err(format!("segment {number}: a bit beyond the last query"));
        }
    }
    // Ranges stand in ascending order, so a range is compared with the one before it only; a list with all
    // that stand before it and with the ranges after it.
    let mut last_range = None;
    let mut lists: Vec<(usize, Keys)> = Vec::new();
    for (number, segment) in run.segments.iter().enumerate() {
        let keys = segment.keys;
        let before: Box<dyn Iterator<Item = (usize, Keys)>> = match keys {
            Keys::Range { .. } => Box::new(lists.iter().copied().chain(last_range.replace((number, keys)))),
            Keys::List { .. } => Box::new(run.segments[..number].iter().map(|other| other.keys).enumerate()),
        };
        for (other, second) in before {
            if meet(head, run.count, second, keys) {
                return Err(format!("segments {other} and {number} share keys or are out of order"));
            }
        }
        if matches!(keys, Keys::List { .. }) {
            lists.push((number, keys));
        }
    }
    Ok(())
}

/// How many keys the segment has (in the run's first row), all being in range in every row.
fn check_segment(mask: &BlockMask, head: &HeadMask, run: &RowRun, segment: &Segment) -> Result<usize, String> {
    match segment.keys {
        Keys::List { list } => match head.lists.get(list as usize) {
            None => Err(format!("no list {list}")),
            Some(keys) if keys.is_empty() => Err(format!("list {list} is empty")),
            Some(keys) => Ok(keys.len()),
        },
        Keys::Range { start, len, start_step, len_step } => {
            let block = QUERY_BLOCK as u32;
            if ![0, block].contains(&start_step) || ![0, block].contains(&len_step) {
                return Err(format!("steps {start_step} and {len_step}, where 0 and {block} are allowed"));
            }
            if segment.mask.is_some() && len_step != 0 {
                return Err("a masked segment grows".into());
            }
            let grown = u64::from(run.count - 1) * u64::from(start_step + len_step);
            if len == 0 || u64::from(start) + u64::from(len) + grown > mask.kv_len as u64 {
                return Err(format!("no keys, or keys beyond {}", mask.kv_len));
            }
            Ok(len as usize)
        }
    }
}

/// Whether two segments share a key in some row. Ranges must also stand in ascending order.
fn meet(head: &HeadMask, count: u32, a: Keys, b: Keys) -> bool {
    let last = count - 1;
    match (a, b) {
        // Starts and ends are linear in the row: what holds in the first and in the last row holds between.
        (Keys::Range { .. }, Keys::Range { .. }) => [0, last].iter().any(|&row| {
            let (first, second) = (a.range_at(row).unwrap_or_default(), b.range_at(row).unwrap_or_default());
            first.end > second.start
        }),
        (Keys::List { list }, Keys::List { list: other }) => {
            let (first, second) = (&head.lists[list as usize], &head.lists[other as usize]);
            first.iter().any(|key| second.binary_search(key).is_ok())
        }
        (range, Keys::List { list }) | (Keys::List { list }, range) => {
            head.lists[list as usize].iter().any(|&key| reached(range, last, key))
        }
    }
}

/// Whether a range holds `key` in some of its rows `0..=last`.
fn reached(range: Keys, last: u32, key: u32) -> bool {
    let Keys::Range { start, len, start_step, len_step } = range else { return false };
    let key = i64::from(key);
    let (start, end, last) = (i64::from(start), i64::from(start) + i64::from(len), i64::from(last));
    let (step, growth) = (i64::from(start_step), i64::from(start_step + len_step));
    // Rows whose start is not beyond the key are 0..=until; rows whose end is beyond it are from..=last.
    let until = if key < start {
        -1
    } else if step == 0 {
        last
    } else {
        (key - start) / step
    };
    let from = if key < end {
        0
    } else if growth == 0 {
        last + 1
    } else {
        (key - end) / growth + 1
    };
    from <= until.min(last)
}

fn check_edges(mask: &BlockMask, head: &HeadMask) -> Result<(), String> {
    let edges = &head.edges;
    if edges.offsets.is_empty() {
        return if edges.keys.is_empty() { Ok(()) } else { Err("edges without offsets".into()) };
    }
    let reach = edges.offsets.last().is_some_and(|&last| last as usize == edges.keys.len());
    if edges.offsets.len() != mask.q_len + 1 || edges.offsets[0] != 0 || !edges.offsets.is_sorted() || !reach {
        return Err("edge offsets do not cut the edge list by place".into());
    }
    for run in &head.rows {
        for row in 0..run.count {
            let first = (run.first + row) as usize * QUERY_BLOCK;
            for place in first..(first + QUERY_BLOCK).min(mask.q_len) {
                check_place(mask, head, run, row, place)?;
            }
        }
    }
    Ok(())
}

fn check_place(mask: &BlockMask, head: &HeadMask, run: &RowRun, row: u32, place: usize) -> Result<(), String> {
    let keys = head.edges_of(place);
    if !keys.is_sorted_by(|a, b| a < b) || keys.last().is_some_and(|&key| key as usize >= mask.kv_len) {
        return Err(format!("edges at place {place} are not ascending within the {} keys", mask.kv_len));
    }
    for segment in &run.segments {
        let inside = match segment.keys {
            // Both are sorted; the shorter is looked up in the longer.
            Keys::List { list } => {
                let list = &head.lists[list as usize];
                let (few, many) = if keys.len() < list.len() { (keys, &list[..]) } else { (&list[..], keys) };
                few.iter().any(|key| many.binary_search(key).is_ok())
            }
            Keys::Range { .. } => segment.keys.range_at(row).is_some_and(|range| {
                let at = keys.partition_point(|&key| key < range.start);
                keys.get(at).is_some_and(|&key| key < range.end)
            }),
        };
        if inside {
            return Err(format!("an edge at place {place} lies within a segment"));
        }
    }
    Ok(())
}

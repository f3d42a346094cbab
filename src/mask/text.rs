//! The text form of a [`BlockMask`]: [`BlockMask::print`] and [`parse`], each the other's inverse.
//!
//! ```text
//! mask q_len 4096 kv_len 4096 parts 1 stack 1 heads 0*12
//! head mask 0
//! order identity
//! keys identity
//! rows 0..2: [0 +64 mask0] [64 +64t+64]
//! rows 2..61: [64t-128 +63 mask1] [64t-65 +194] [list0]
//! mask0 = 1 3 7 ffff*4
//! list0 = 3 5 9..20
//! edges 17: 4 8 90
//! ```
//!
//! `t` is the block row; `[64t-128 +63 mask1]` are 63 keys from `64 t - 128` with words `mask1`, and a segment
//! without a mask is full. `keys residue 4` numbers the keys by their remainder. `a..b` excludes `b`, `x*4` repeats. Words are hexadecimal, keys and places decimal.

use std::fmt::Write;

use super::{BlockMask, Edges, HeadMask, KeyOrder, Keys, RowOrder, RowRun, Segment};
use crate::error::{Error, Result};

impl BlockMask {
    /// The mask as text that [`parse`] reads back.
    pub fn print(&self) -> String {
        let mut text =
            format!("mask q_len {} kv_len {} parts {} stack {} heads", self.q_len, self.kv_len, self.parts, self.stack);
        text.push_str(&repeated(&self.mask_of_head));
        text.push('\n');
        for (number, mask) in self.masks.iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "head mask {number}");
            mask.print(&mut text);
        }
        text
    }
}

impl HeadMask {
    fn print(&self, text: &mut String) {
        match &self.order {
            RowOrder::Identity => text.push_str("order identity\n"),
            RowOrder::Permuted(order) => {
                let _ = writeln!(text, "order{}", ranges(order));
            }
        }
        match self.keys {
            KeyOrder::Identity => text.push_str("keys identity\n"),
            KeyOrder::Residue(step) => {
                let _ = writeln!(text, "keys residue {step}");
            }
        }
        for run in &self.rows {
            let _ = write!(text, "rows {}..{}:", run.first, u64::from(run.first) + u64::from(run.count));
            for segment in &run.segments {
                match segment.keys {
                    Keys::List { list } => {
                        let _ = write!(text, " [list{list}");
                    }
                    Keys::Range { start, len, start_step, len_step } => {
                        let (start, len) = (linear(start, start_step, run.first), linear(len, len_step, run.first));
                        let _ = write!(text, " [{start} +{len}");
                    }
                }
                match segment.mask {
                    Some(mask) => {
                        let _ = write!(text, " mask{mask}]");
                    }
                    None => text.push(']'),
                }
            }
            text.push('\n');
        }
        for (number, words) in self.words.iter().enumerate() {
            let _ = write!(text, "mask{number} =");
            for same in words.chunk_by(|a, b| a == b) {
                let _ = match same.len() {
                    1 => write!(text, " {:x}", same[0]),
                    count => write!(text, " {:x}*{count}", same[0]),
                };
            }
            text.push('\n');
        }
        for (number, list) in self.lists.iter().enumerate() {
            let _ = writeln!(text, "list{number} ={}", ranges(list));
        }
        for place in 0..self.edges.offsets.len().saturating_sub(1) {
            let keys = self.edges_of(place);
            if !keys.is_empty() {
                let _ = writeln!(text, "edges {place}:{}", ranges(keys));
            }
        }
    }
}

/// `value + (t - first) * step` as a function of `t`.
fn linear(value: u32, step: u32, first: u32) -> String {
    if step == 0 {
        return value.to_string();
    }
    match i64::from(value) - i64::from(step) * i64::from(first) {
        0 => format!("{step}t"),
        constant => format!("{step}t{constant:+}"),
    }
}

/// Numbers with a space before each, stretches of three and more as `a..b`.
fn ranges(numbers: &[u32]) -> String {
    let mut text = String::new();
    for run in numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        if run.len() > 2 {
            let _ = write!(text, " {}..{}", run[0], u64::from(run[0]) + run.len() as u64);
        } else {
            run.iter().for_each(|number| {
                let _ = write!(text, " {number}");
            });
        }
    }
    text
}

/// Numbers with a space before each, repetitions as `x*count`.
fn repeated(numbers: &[u32]) -> String {
    let mut text = String::new();
    for same in numbers.chunk_by(|a, b| a == b) {
        let _ = match same.len() {
            1 => write!(text, " {}", same[0]),
            count => write!(text, " {}*{count}", same[0]),
        };
    }
    text
}

/// Reads the text that [`BlockMask::print`] writes. Empty lines are skipped.
///
/// # Errors
///
/// [`Error::Text`] where a line is not of the form, or where the mask breaks a rule of [`super::verify`].
pub fn parse(text: &str) -> Result<BlockMask> {
    let mut reader = Reader::default();
    let mut last = 0;
    for (number, line) in text.lines().enumerate() {
        last = number + 1;
        if !line.trim().is_empty() {
            reader.line(line.trim()).map_err(|message| Error::Text { stage: "mask", line: last, message })?;
        }
    }
    let mask = reader.mask.ok_or_else(|| "expected `mask q_len … kv_len … parts … stack … heads …`".to_string());
    mask.and_then(|mut mask| {
        for head in &mut mask.masks {
            close_edges(&mut head.edges, mask.q_len);
        }
        super::verify::check(&mask).map(|()| mask)
    })
    .map_err(|message| Error::Text { stage: "mask", line: last, message })
}

/// Offsets of the places after the last one with edges.
fn close_edges(edges: &mut Edges, q_len: usize) {
    if !edges.keys.is_empty() {
        edges.offsets.resize(q_len + 1, edges.keys.len() as u32);
    }
}

/// Numbers that one text may expand to; a repetition or a range in a broken text could ask for any amount.
const MOST_NUMBERS: usize = 1 << 28;

#[derive(Default)]
struct Reader {
    mask: Option<BlockMask>,
    expanded: usize,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(rest) = line.strip_prefix("mask q_len ") {
            if self.mask.is_some() {
                return Err("a second `mask q_len` line".into());
            }
            let (q_len, rest) = rest.split_once(" kv_len ").ok_or("expected ` kv_len `")?;
            let (kv_len, rest) = rest.split_once(" parts ").ok_or("expected ` parts `")?;
            let (parts, rest) = rest.split_once(" stack ").ok_or("expected ` stack `")?;
            let (stack, heads) = rest.split_once(" heads").ok_or("expected ` heads`")?;
            let (parts, stack) = (number(parts)?, number(stack)?);
            let (q_len, kv_len) = (number::<u32>(q_len)? as usize, number::<u32>(kv_len)? as usize);
            let mask_of_head = self.repeated(heads, number)?;
            self.mask = Some(BlockMask { q_len, kv_len, parts, stack, masks: Vec::new(), mask_of_head });
            return Ok(());
        }
        let q_len = self.mask.as_ref().ok_or("expected `mask q_len … kv_len … parts … stack … heads …` first")?.q_len;
        if let Some(index) = line.strip_prefix("head mask ") {
            let masks = &mut self.mask.as_mut().ok_or("no mask")?.masks;
            if number::<usize>(index)? != masks.len() {
                return Err(format!("expected `head mask {}`", masks.len()));
            }
            masks.push(HeadMask {
                order: RowOrder::Identity,
                keys: KeyOrder::Identity,
                rows: Vec::new(),
                words: Vec::new(),
                lists: Vec::new(),
                edges: Edges::default(),
            });
            return Ok(());
        }
        // Texts are expanded before the head is borrowed, since that counts against the reader's limit.
        if line == "order identity" {
            self.head()?.order = RowOrder::Identity;
        } else if let Some(order) = line.strip_prefix("order ") {
            let order = self.ranges(order)?;
            self.head()?.order = RowOrder::Permuted(order);
        } else if line == "keys identity" {
            self.head()?.keys = KeyOrder::Identity;
        } else if let Some(step) = line.strip_prefix("keys residue ") {
            let step = number(step)?;
            self.head()?.keys = KeyOrder::Residue(step);
        } else if let Some(rest) = line.strip_prefix("rows ") {
            let run = row_run(rest)?;
            self.head()?.rows.push(run);
        } else if let Some(rest) = line.strip_prefix("edges ") {
            let (place, keys) = rest.split_once(':').ok_or("expected `edges PLACE: KEYS`")?;
            let (place, keys) = (number::<usize>(place)?, self.ranges(keys)?);
            // Offsets are one number a query.
            if q_len > MOST_NUMBERS {
                return Err(format!("edges of more than {MOST_NUMBERS} queries"));
            }
            let edges = &mut self.head()?.edges;
            if place >= q_len || place + 1 < edges.offsets.len() {
                return Err(format!("place {place} is out of order or beyond the {q_len} queries"));
            }
            edges.offsets.resize(place + 1, edges.keys.len() as u32);
            edges.keys.extend(keys);
            edges.offsets.push(edges.keys.len() as u32);
        } else if let Some((name, rest)) = line.split_once(" =") {
            if let Some(index) = name.strip_prefix("mask") {
                let words = self.repeated(rest, |text| {
                    u64::from_str_radix(text, 16).map_err(|_| format!("expected a hexadecimal word, found `{text}`"))
                })?;
                append(&mut self.head()?.words, index, words)?;
            } else if let Some(index) = name.strip_prefix("list") {
                let list = self.ranges(rest)?;
                append(&mut self.head()?.lists, index, list)?;
            } else {
                return Err(format!("expected `maskN =` or `listN =`, found `{name} =`"));
            }
        } else {
            let start: String = line.chars().take(40).collect();
            return Err(format!(
                "expected `head mask`, `order`, `rows`, `maskN =`, `listN =` or `edges`, found `{start}`"
            ));
        }
        Ok(())
    }

    fn head(&mut self) -> Result<&mut HeadMask, String> {
        let masks = self.mask.as_mut().and_then(|mask| mask.masks.last_mut());
        masks.ok_or_else(|| "expected `head mask 0` first".to_string())
    }

    fn count(&mut self, more: usize) -> Result<(), String> {
        self.expanded = self.expanded.saturating_add(more);
        if self.expanded > MOST_NUMBERS { Err(format!("more than {MOST_NUMBERS} numbers")) } else { Ok(()) }
    }

    /// `a b*3 c` as numbers.
    fn repeated<T: Copy>(&mut self, text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
        let mut values = Vec::new();
        for item in text.split_ascii_whitespace() {
            let (value, count) = match item.split_once('*') {
                Some((value, count)) => (read(value)?, number::<usize>(count)?),
                None => (read(item)?, 1),
            };
            self.count(count)?;
            values.resize(values.len() + count, value);
        }
        Ok(values)
    }

    /// `a b..c d` as numbers.
    fn ranges(&mut self, text: &str) -> Result<Vec<u32>, String> {
        let mut values = Vec::new();
        for item in text.split_ascii_whitespace() {
            let (from, to) = match item.split_once("..") {
                Some((from, to)) => (number::<u32>(from)?, number::<u32>(to)?),
                None => {
                    let value = number::<u32>(item)?;
                    (value, value.checked_add(1).ok_or("a number is too large")?)
                }
            };
            self.count(to.saturating_sub(from) as usize)?;
            values.extend(from..to);
        }
        Ok(values)
    }
}

fn append<T>(table: &mut Vec<T>, index: &str, row: T) -> Result<(), String> {
    if number::<usize>(index)? != table.len() {
        return Err(format!("expected number {}, found `{index}`", table.len()));
    }
    table.push(row);
    Ok(())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("expected a number, found `{}`", text.trim()))
}

/// `2..61: [64t-128 +63 mask0] [list1]`.
fn row_run(text: &str) -> Result<RowRun, String> {
    let (rows, mut rest) = text.split_once(':').ok_or("expected `rows A..B:`")?;
    let (first, end) = rows.split_once("..").ok_or("expected `rows A..B:`")?;
    let (first, end) = (number::<u32>(first)?, number::<u32>(end)?);
    let count = end.checked_sub(first).filter(|&count| count > 0).ok_or("rows end before they start")?;
    let mut segments = Vec::new();
    while let Some(inside) = rest.trim_start().strip_prefix('[') {
        let (segment, after) = inside.split_once(']').ok_or("expected `]`")?;
        segments.push(read_segment(segment, first)?);
        rest = after;
    }
    if !rest.trim().is_empty() {
        return Err(format!("expected `[`, found `{}`", rest.trim()));
    }
    Ok(RowRun { first, count, segments })
}

fn read_segment(text: &str, first: u32) -> Result<Segment, String> {
    let mut parts = text.split_ascii_whitespace().peekable();
    let head = parts.next().ok_or("an empty segment")?;
    let keys = match head.strip_prefix("list") {
        Some(list) => Keys::List { list: number(list)? },
        None => {
            let len = parts.next().and_then(|len| len.strip_prefix('+')).ok_or("expected `+LENGTH` after the start")?;
            let ((start, start_step), (len, len_step)) = (affine(head, first)?, affine(len, first)?);
            Keys::Range { start, len, start_step, len_step }
        }
    };
    let mask = match parts.next() {
        None => None,
        Some(mask) => Some(number(mask.strip_prefix("mask").ok_or("expected `maskN`")?)?),
    };
    match parts.next() {
        Some(more) => Err(format!("expected `]`, found `{more}`")),
        None => Ok(Segment { keys, mask }),
    }
}

/// `64t-128` or `17` as the value in row `first` and the step.
fn affine(text: &str, first: u32) -> Result<(u32, u32), String> {
    let Some((step, constant)) = text.split_once('t') else { return Ok((number(text)?, 0)) };
    let step: u32 = number(step)?;
    let constant: i64 = if constant.is_empty() { 0 } else { number(constant)? };
    let value = (i64::from(step) * i64::from(first)).checked_add(constant).and_then(|value| u32::try_from(value).ok());
    value.map(|value| (value, step)).ok_or_else(|| format!("`{text}` is out of range in row {first}"))
}

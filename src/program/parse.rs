//! Reads what [`Program::print`] wrote.
//!
//! In: text, from wherever. Out: a program that nobody has verified. Refused, with the line: what is no operation of the
//! language, names without a definition, operations of values that they are not made for, sizes beyond all use.

use std::collections::{HashMap, HashSet};

use smallvec::SmallVec;

use super::print::OF_SET;
use super::{
    Base, BlockTest, Body, Extent, Factor, Loop, Op, Operation, Program, Shape, Space, Stage, Tensor, Value, ValueId,
    spaces,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result, Span};
use crate::mask;
use crate::spec::{Given, GivenRange, HeadInput, MAX_DIM, MAX_HOPS};

/// Most heads, rows of a ring and block rows of a shift that are read.
const MOST: usize = 1 << 20;
/// Most queries or keys.
const MOST_ROWS: usize = 1 << 30;

/// Reads the text form.
///
/// # Errors
/// [`Error::Text`] with the line that is not understood.
pub fn parse(text: &str) -> Result<Program> {
    let mut lines = Lines { rest: text, number: 0 };
    let (shape, block_test, body) = read_nest(&mut lines, "neighbors")?;
    let mut sets = Vec::new();
    loop {
        let border = format!("\n{OF_SET}{}\n", sets.len() + 1);
        let (text, rest) = lines.rest.split_once(&border).unwrap_or((lines.rest, ""));
        let before = lines.number;
        // The border has the line's end.
        let whole = if rest.is_empty() { text.to_owned() } else { format!("{text}\n") };
        let neighbors = mask::parse(&whole).map_err(|error| match error {
            Error::Text { stage, line, message } => Error::Text { stage, line: before + line, message },
            other => other,
        })?;
        if (neighbors.q_len, neighbors.kv_len) != (shape.q_len, shape.kv_len) {
            let (q_len, kv_len) = (neighbors.q_len, neighbors.kv_len);
            return Err(lines.refuse(format!("neighbors of {q_len} queries and {kv_len} keys in another program")));
        }
        sets.push(neighbors);
        if rest.is_empty() {
            break;
        }
        lines.number += text.lines().count() + 1;
        lines.rest = rest;
    }
    let neighbors = sets.remove(0);
    Ok(Program { shape, block_test, body, neighbors, others: sets })
}

/// Reads what [`super::print_nest`] wrote, up to a line `end`; also what stands behind it, and in which line.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_nest<'a>(text: &'a str, end: &str) -> Result<(Shape, BlockTest, Body, &'a str, usize)> {
    let mut lines = Lines { rest: text, number: 0 };
    let (shape, block_test, body) = read_nest(&mut lines, end)?;
    Ok((shape, block_test, body, lines.rest, lines.number))
}

fn read_nest(lines: &mut Lines<'_>, end: &str) -> Result<(Shape, BlockTest, Body)> {
    let shape = read_shape(lines.next("the program's header")?).map_err(|message| lines.refuse(message))?;
    let block_test = match lines.next("the block test")? {
        "blocks test every" => BlockTest::Every,
        "blocks test partial" => BlockTest::Partial,
        _ => return Err(lines.refuse("expected `blocks test every` or `blocks test partial`")),
    };
    let mut reader = Reader::new(shape, lines.clone(), end)?;
    loop {
        let line = lines.next(&format!("a loop, a `keep` line or `{end}`"))?;
        match line.split(' ').next() {
            Some("given") if reader.body.loops.is_empty() && reader.body.given.is_none() => {
                let given = read_given(line).ok_or_else(|| lines.refuse(format!("`{line}` gives nothing")))?;
                reader.body.given = Some(given);
            }
            Some("for") => reader.read_loop(line, lines)?,
            // Read before.
            Some("keep") => {}
            _ if line == end => break,
            _ => return Err(lines.refuse(format!("`{line}` is no loop"))),
        }
    }
    Ok((shape, block_test, reader.finish()))
}

fn read_shape(line: &str) -> Result<Shape, String> {
    let refuse = || {
        "expected `program heads H kv_heads G q_len M kv_len N head_dim D value_dim E [dtype T] [store T]`".to_owned()
    };
    let words: Vec<&str> = line.split(' ').collect();
    let (words, store) = match words.as_slice() {
        [words @ .., "store", name] => (words, Dtype::find(name)),
        words => (words, Some(Dtype::F32)),
    };
    let (words, dtype) = match words {
        [words @ .., "dtype", name] => (words, Dtype::find(name)),
        words => (words, Some(Dtype::F32)),
    };
    let ["program", "heads", h, "kv_heads", g, "q_len", m, "kv_len", n, "head_dim", d, "value_dim", e] = words else {
        return Err(refuse());
    };
    let size = |word: &str, most: usize| match word.parse::<usize>() {
        Ok(size) if size <= most => Ok(size),
        Ok(size) => Err(format!("{size} is more than {most}")),
        Err(_) => Err(refuse()),
    };
    let (dtype, store) = dtype.zip(store).ok_or_else(refuse)?;
    Ok(Shape {
        heads: size(h, MOST)?,
        kv_heads: size(g, MOST)?,
        q_len: size(m, MOST_ROWS)?,
        kv_len: size(n, MOST_ROWS)?,
        head_dim: size(d, MAX_DIM as usize)?,
        value_dim: size(e, MAX_DIM as usize)?,
        dtype,
        store,
    })
}

/// A body that is being read.
struct Reader {
    shape: Shape,
    body: Body,
    known: HashMap<String, ValueId>,
    /// Extents by name, of roots.
    kept: HashMap<String, (Extent, Dtype)>,
}

impl Reader {
    /// Reads the `keep` lines, which stand behind the loops, and names the tensors that are given.
    fn new(shape: Shape, mut lines: Lines<'_>, end: &str) -> Result<Self> {
        let mut reader = Self { shape, body: Body::default(), known: HashMap::new(), kept: HashMap::new() };
        let mut defined: HashSet<&str> = HashSet::new();
        let mut order = Vec::new();
        loop {
            let line = lines.next(&format!("`{end}`"))?;
            if line == end {
                break;
            }
            if let Some(rest) = line.strip_prefix("keep ") {
                let (name, kept) = read_keep(rest).ok_or_else(|| lines.refuse(format!("`{line}` keeps nothing")))?;
                if reader.kept.insert(name.to_owned(), kept).is_some() {
                    return Err(lines.refuse(format!("`{name}` is kept twice")));
                }
                order.push((name, kept.0, lines.number));
            } else if let Some((results, _)) = line.trim_start().split_once(" = ") {
                defined.extend(results.split(", "));
            }
        }
        for (name, extent, number) in order.into_iter().filter(|(name, ..)| !defined.contains(name)) {
            let Extent::Tensor(tensor) = extent else {
                return Err(Lines { rest: "", number }.refuse(format!("`{name}` is kept and never defined")));
            };
            let at = Lines { rest: "", number };
            reader.define(name, tensor_space(tensor, &shape)).map_err(|message| at.refuse(message))?;
        }
        Ok(reader)
    }

    fn define(&mut self, name: &str, space: Space) -> Result<ValueId, String> {
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '\'');
        if name.is_empty() || !name.chars().all(letter) {
            return Err(format!("`{name}` is no name"));
        }
        let id = ValueId(u32::try_from(self.body.values.len()).map_err(|_| "too many values".to_owned())?);
        if self.known.insert(name.to_owned(), id).is_some() {
            return Err(format!("`{name}` is defined twice"));
        }
        let (extent, store) = self.kept.get(name).copied().unwrap_or((Extent::All, Dtype::F32));
        self.body.values.push(Value { name: name.to_owned(), space, extent, store });
        Ok(id)
    }

    fn read_loop(&mut self, line: &str, lines: &mut Lines<'_>) -> Result<()> {
        let mut one = read_loop_header(line).ok_or_else(|| lines.refuse(format!("`{line}` is no loop")))?;
        loop {
            let line = lines.next("a stage or `}`")?;
            if line == "}" {
                break;
            }
            let header = line.strip_prefix("  ").and_then(read_stage_header);
            let mut stage = header.ok_or_else(|| lines.refuse(format!("`{line}` is no stage")))?;
            loop {
                let line = lines.next("an operation or `}`")?;
                if line == "  }" {
                    break;
                }
                let line = line.strip_prefix("    ").ok_or_else(|| lines.refuse("expected an operation"))?;
                stage.ops.push(self.read_operation(line, lines)?);
            }
            one.stages.push(stage);
        }
        self.body.loops.push(one);
        Ok(())
    }

    fn read_operation(&mut self, line: &str, lines: &mut Lines<'_>) -> Result<Operation> {
        let (results, rest) = line.split_once(" = ").ok_or_else(|| lines.refuse("expected `RESULT = OPERATION …`"))?;
        let results: SmallVec<[&str; 2]> = results.split(", ").collect();
        let op = match rest.strip_prefix("mods ").and_then(|rest| rest.strip_suffix(" {")) {
            Some(s) => self.read_mods(s, results.len(), lines)?,
            None => self.read_op(rest, results.len()).map_err(|message| lines.refuse(message))?,
        };
        let made = spaces(&op, &self.shape, |id| self.body.value(id).space).map_err(|message| lines.refuse(message))?;
        if results.len() != made.len() && !(op.second_is_optional() && results.len() == 1) {
            return Err(lines.refuse(format!("{} results of {}", results.len(), op.name())));
        }
        let results = results.iter().zip(made).map(|(name, space)| self.define(name, space));
        let results = results.collect::<Result<_, _>>().map_err(|message| lines.refuse(message))?;
        Ok(Operation { op, results })
    }

    fn read_mods(&self, s: &str, results: usize, lines: &mut Lines<'_>) -> Result<Op> {
        let s = self.name(s).map_err(|message| lines.refuse(message))?;
        let mut text = String::new();
        let end = loop {
            let inner = lines.next("a score mod or `} * FACTOR`")?;
            match inner.strip_prefix("    } ") {
                Some(end) => break end,
                None => text = text + inner + "\n",
            }
        };
        let mods = text.parse().map_err(|message: String| lines.refuse(message))?;
        let mut words = Words::new(self, end);
        let factor = words.factor("*");
        let masked = factor.and_then(|factor| Ok((factor, words.epilogue(results)?, words.end()?)));
        let (factor, masked, ()) = masked.map_err(|message| lines.refuse(message))?;
        Ok(Op::Mods { s, mods, factor, masked })
    }

    fn read_op(&self, text: &str, results: usize) -> Result<Op, String> {
        let mut words = Words::new(self, text);
        let name = words.next()?;
        let op = match name {
            "pack" => Op::Pack { x: words.values(), factor: words.factor("*")? },
            "sddmm" => {
                let mut all = words.values();
                if all.len() < 2 {
                    return Err("sddmm of queries and no keys".to_owned());
                }
                let x = all.remove(0);
                Op::Sddmm { x, y: all, masked: words.epilogue(results)? }
            }
            "scale" => Op::Scale { s: words.value()?, factor: words.factor("*")? },
            "copy" => Op::Copy { x: words.value()? },
            "mask" => Op::Mask { s: words.value()? },
            "rowmax" => Op::RowMax { s: words.value()? },
            "exp" => {
                let base = match words.next()? {
                    "e" => Base::E,
                    "2" => Base::Two,
                    other => return Err(format!("`{other}` is no base: e or 2")),
                };
                let s = words.value()?;
                words.expect("-")?;
                let m = words.value()?;
                Op::Exp { s, m, base, masked: words.take(&["with", "mask"]) }
            }
            "dropout" => Op::Dropout { x: words.value()?, hop: words.hop()? },
            "spmm" => {
                let (p, z, l) = (words.value()?, words.value()?, words.over()?);
                let factor = words.row_factor("*")?;
                Op::Spmm { p, z, l, factor, plus: words.rows("+")?, onto: words.onto()? }
            }
            "solve" => {
                let (p, l) = (words.value()?, words.over()?.ok_or("solve without row sums")?);
                let factor = words.row_factor("*")?;
                Op::Solve { p, l, factor, plus: words.rows("+")?.ok_or("solve of nothing")? }
            }
            "solve_t" => {
                let (p, x, l) = (words.value()?, words.value()?, words.over()?.ok_or("solve_t without row sums")?);
                Op::SolveT { p, x, l, factor: words.row_factor("*")? }
            }
            "combine" => {
                let x = words.value()?;
                let Some((y, factor)) = words.rows("+")? else { return Err("combine of one value".to_owned()) };
                Op::Combine { x, y, factor }
            }
            "join" => Op::Join { x: words.value()?, m: words.value()?, l: words.value()? },
            "scale_rows" => Op::ScaleRows { x: words.value()?, l: words.over()?, factor: words.row_factor("*")? },
            "dot_rows" => {
                let (x, y) = (words.value()?, words.value()?);
                let (minus, hop) = (words.rows("-")?, words.hop()?);
                Op::DotRows { x, y, minus, hop, l: words.over()?, onto: words.onto()? }
            }
            "softmax'" => {
                let (p, dp) = (words.value()?, words.value()?);
                words.expect("-")?;
                let (delta, factor) = (words.value()?, words.factor("*")?);
                Op::SoftmaxGradient { p, dp, delta, factor, dropout: words.take(&["with", "dropout"]) }
            }
            "mods'" => Op::ModsGradient { s: words.value()?, ds: words.value()?, factor: words.factor("*")? },
            "spmm_t" => Op::SpmmT { p: words.value()?, x: words.value()?, onto: words.onto()? },
            "add_rows" => {
                let (x, factor) = (words.value()?, words.row_factor("*")?);
                let onto = words.onto()?.ok_or("add_rows onto nothing")?;
                Op::AddRows { x, factor, onto }
            }
            "sum_rows" => {
                let (x, factor) = (words.value()?, words.factor("*")?);
                words.expect("in")?;
                let column = words.next()?;
                let columns = self.body.given.as_ref().map_or(0, |given| given.columns);
                let column = column.parse().ok().filter(|&column: &u32| (column as usize) < columns);
                Op::SumRows { x, factor, column: column.ok_or("sum_rows in no column")? }
            }
            _ => return Err(format!("`{name}` is no operation")),
        };
        words.end()?;
        Ok(op)
    }

    fn name(&self, name: &str) -> Result<ValueId, String> {
        self.known.get(name).copied().ok_or_else(|| format!("`{name}` is not defined before"))
    }

    fn finish(mut self) -> Body {
        let roots = self.body.roots();
        for (at, root) in roots.iter().enumerate() {
            let Value { extent, store, .. } = self.body.values[root.0 as usize];
            let value = &mut self.body.values[at];
            (value.extent, value.store) = (extent, store);
        }
        self.body
    }
}

fn tensor_space(tensor: Tensor, shape: &Shape) -> Space {
    match tensor {
        Tensor::Q | Tensor::GradQ => Space::Queries(shape.head_dim),
        Tensor::K | Tensor::GradK => Space::Keys(shape.head_dim),
        Tensor::V | Tensor::GradV => Space::Keys(shape.value_dim),
        Tensor::Out | Tensor::GradOut => Space::Queries(shape.value_dim),
    }
}

fn read_loop_header(line: &str) -> Option<Loop> {
    let inner = line.strip_prefix("for ")?.strip_suffix(" {")?;
    let mut one = Loop::default();
    let mut words = inner.split(", ").peekable();
    one.parts = words.next_if_eq(&"part").is_some();
    if words.next()? != "row" {
        return None;
    }
    if let Some(set) = words.peek().and_then(|word| word.strip_prefix("set ")) {
        one.set = set.parse().ok().filter(|&set| set as usize <= MAX_HOPS && set != 0)?;
        words.next();
    }
    if let Some(rows) = words.peek().and_then(|word| word.strip_prefix("edges by ")) {
        one.edge_rows = rows.parse().ok().filter(|&rows| rows as usize <= MOST && rows != 1)?;
        words.next();
    }
    one.halo = words.next_if_eq(&"halo").is_some();
    words.next().is_none().then_some(one)
}

fn read_stage_header(line: &str) -> Option<Stage> {
    let inner = line.strip_prefix("at row")?.strip_suffix(" {")?;
    let (inner, by_keys) = match inner.strip_suffix(" by keys") {
        Some(inner) => (inner, true),
        None => (inner, false),
    };
    let shift = match inner.strip_prefix(" - ") {
        Some(shift) => shift.parse().ok().filter(|&shift| shift as usize <= MOST && shift != 0)?,
        None if inner.is_empty() => 0,
        None => return None,
    };
    Some(Stage { shift, by_keys, ops: Vec::new() })
}

fn read_given(line: &str) -> Option<Given> {
    let ["given", name, columns, range] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let columns = columns.parse().ok().filter(|columns| (1..=MAX_HOPS + 1).contains(columns))?;
    let range = GivenRange::ALL.into_iter().find(|known| known.name() == range)?;
    Some(Given { input: HeadInput { name: name.to_owned(), at: Span::default() }, columns, range })
}

/// A constant, or `CONSTANT SLOPE @ COLUMN` in one word.
fn read_factor(word: &str, columns: usize) -> Option<Factor> {
    let Some((numbers, column)) = word.split_once('@') else { return word.parse().ok().map(Factor::fixed) };
    let column: u32 = column.parse().ok().filter(|&column| (column as usize) < columns)?;
    // The sign of an exponent is none between numbers.
    let sign = |(at, c): (usize, char)| at > 0 && matches!(c, '+' | '-') && !numbers[..at].ends_with(['e', 'E']);
    let (at, _) = numbers.char_indices().find(|&(at, c)| sign((at, c)))?;
    let (constant, slope) = (numbers[..at].parse().ok()?, numbers[at..].parse().ok()?);
    Some(Factor { constant, slope, column }).filter(|factor| factor.is_given())
}

fn read_keep(text: &str) -> Option<(&str, (Extent, Dtype))> {
    let words: Vec<&str> = text.split(' ').collect();
    let (name, words) = words.split_first()?;
    let (words, store) = match words {
        [words @ .., "bf16"] => (words, Dtype::Bf16),
        words => (words, Dtype::F32),
    };
    let extent = match words {
        ["all"] => Extent::All,
        ["row"] => Extent::Row,
        ["keys"] => Extent::Keys,
        ["ring", rows] => Extent::Ring(rows.parse().ok().filter(|&rows| rows as usize <= MOST_ROWS)?),
        ["tensor", name] => Extent::Tensor(Tensor::ALL.into_iter().find(|tensor| tensor.name() == *name)?),
        _ => return None,
    };
    Some((name, (extent, store)))
}

/// The words of one operation.
struct Words<'a> {
    reader: &'a Reader,
    words: Vec<&'a str>,
    at: usize,
}

impl<'a> Words<'a> {
    fn new(reader: &'a Reader, text: &'a str) -> Self {
        Self { reader, words: text.split(' ').collect(), at: 0 }
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn next(&mut self) -> Result<&'a str, String> {
        let word = self.peek().ok_or_else(|| "the operation ends too soon".to_owned())?;
        self.at += 1;
        Ok(word)
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        let found = self.next()?;
        if found == word { Ok(()) } else { Err(format!("expected `{word}`, found `{found}`")) }
    }

    fn take(&mut self, words: &[&str]) -> bool {
        let found = self.words.get(self.at..).is_some_and(|rest| rest.starts_with(words));
        self.at += if found { words.len() } else { 0 };
        found
    }

    fn end(&self) -> Result<(), String> {
        self.peek().map_or(Ok(()), |word| Err(format!("`{word}` is one word too many")))
    }

    fn value(&mut self) -> Result<ValueId, String> {
        let name = self.next()?;
        self.reader.name(name)
    }

    /// As many values as follow.
    fn values(&mut self) -> Vec<ValueId> {
        let mut values = Vec::new();
        while let Some(id) = self.peek().and_then(|word| self.reader.known.get(word)) {
            values.push(*id);
            self.at += 1;
        }
        values
    }

    /// `WORD FACTOR`, which may be given.
    fn row_factor(&mut self, word: &str) -> Result<Factor, String> {
        self.expect(word)?;
        let factor = self.next()?;
        let columns = self.reader.body.given.as_ref().map_or(0, |given| given.columns);
        read_factor(factor, columns).ok_or_else(|| format!("`{factor}` is no factor"))
    }

    /// `WORD FACTOR`
    fn factor(&mut self, word: &str) -> Result<f64, String> {
        self.expect(word)?;
        let number = self.next()?;
        number.parse().map_err(|_| format!("`{number}` is no number"))
    }

    /// `[WORD VALUE * FACTOR]`
    fn rows(&mut self, word: &str) -> Result<Option<(ValueId, Factor)>, String> {
        if !self.take(&[word]) {
            return Ok(None);
        }
        Ok(Some((self.value()?, self.row_factor("*")?)))
    }

    /// `[/ VALUE]`
    fn over(&mut self) -> Result<Option<ValueId>, String> {
        if self.take(&["/"]) { self.value().map(Some) } else { Ok(None) }
    }

    /// `[onto VALUE]`
    fn onto(&mut self) -> Result<Option<ValueId>, String> {
        if self.take(&["onto"]) { self.value().map(Some) } else { Ok(None) }
    }

    /// `[hop NUMBER]`
    fn hop(&mut self) -> Result<Option<u32>, String> {
        if !self.take(&["hop"]) {
            return Ok(None);
        }
        let number = self.next()?;
        number.parse().map(Some).map_err(|_| format!("`{number}` is no hop"))
    }

    /// `[with [mask] [rowmax]]`, where a second result says whether the maximum is among them.
    fn epilogue(&mut self, results: usize) -> Result<bool, String> {
        if !self.take(&["with"]) {
            return if results == 1 { Ok(false) } else { Err("two results without `rowmax`".to_owned()) };
        }
        let masked = self.take(&["mask"]);
        let maximum = self.take(&["rowmax"]);
        if maximum != (results == 2) {
            return Err("`rowmax` stands where there are two results, and only there".to_owned());
        }
        if masked || maximum { Ok(masked) } else { Err("expected `mask`, `rowmax` or both behind `with`".to_owned()) }
    }
}

#[derive(Clone)]
struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self, wanted: &str) -> Result<&'a str> {
        self.number += 1;
        if self.rest.is_empty() {
            return Err(self.refuse(format!("the text ends where {wanted} was expected")));
        }
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        Ok(line)
    }

    fn refuse(&self, message: impl Into<String>) -> Error {
        Error::Text { stage: "program", line: self.number, message: message.into() }
    }
}

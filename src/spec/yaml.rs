//! YAML text to a [`Value`] tree with places.
//!
//! In: one document. Refused: texts, nesting, aliases and values beyond their limits (a few lines of aliases can stand
//! for gigabytes: what they stand for counts), tags, keys that are not scalars, duplicate keys, more than one document.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{Data, Source, Value};
use crate::error::{Result, Span};
use crate::limits::Limit;

/// Reads the text of `source`. An empty document is a null.
pub(super) fn read(source: &Source) -> Result<Value> {
    document(source, &source.text, Span { line: 1, column: 1, width: 1 })
}

/// Reads `text`, which stands at `origin` of `source`.
pub(super) fn document(source: &Source, text: &str, origin: Span) -> Result<Value> {
    if text.len() as u64 > source.limits.get(Limit::Text) {
        return Err(source.beyond(origin, Limit::Text, format!("the text has {} bytes", text.len())));
    }
    let mut reader = Reader { source, text, origin, nodes: 0, aliases: 0, anchors: HashMap::new() };
    let mut parser = Parser::new_from_str(text);
    let mut root = None;
    loop {
        let (event, at) = reader.next(&mut parser)?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::Nothing | Event::DocumentEnd => {}
            Event::DocumentStart(_) if root.is_some() => {
                return Err(source.error(at, "a second document starts here", "one document in a file"));
            }
            Event::DocumentStart(_) => {}
            event => root = Some(reader.value(&mut parser, event, at, 0)?),
        }
    }
    Ok(root.unwrap_or(Value { at: origin, data: Data::Null }))
}

struct Reader<'a> {
    source: &'a Source,
    text: &'a str,
    origin: Span,
    nodes: u64,
    aliases: u64,
    /// Values with an anchor (`&name`), by its number.
    anchors: HashMap<usize, Anchored>,
}

/// A value that aliases may stand for.
struct Anchored {
    value: Value,
    nodes: u64,
    /// Levels of lists and mappings in it.
    levels: usize,
}

impl<'a> Reader<'a> {
    fn place(&self, line: usize, column: usize, width: usize) -> Span {
        let shift = if line <= 1 { self.origin.column - 1 } else { 0 };
        Span { line: self.origin.line + line.max(1) - 1, column: column + 1 + shift, width: width.max(1) }
    }

    fn next(&self, parser: &mut Parser<'a, saphyr_parser::StrInput<'a>>) -> Result<(Event<'a>, Span)> {
        match parser.next() {
            Some(Ok((event, span))) => {
                let (start, end) = (span.start, span.end);
                let width = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 1 };
                Ok((event, self.place(start.line(), start.col(), width)))
            }
            Some(Err(error)) => {
                let (mut line, mut column) = (error.marker().line().max(1), error.marker().col());
                let lines: Vec<&str> = self.text.lines().collect();
                // What is never closed is noticed at the end; there is something to see on the last line.
                if line > lines.len() {
                    line = lines.len().max(1);
                    column = lines.last().map_or(0, |last| last.chars().count());
                }
                let text = lines.get(line - 1).copied().unwrap_or_default();
                let expected = match text.trim_start_matches(' ').starts_with('\t') {
                    true => "spaces for indentation, YAML allows no tabs there",
                    false => "valid YAML",
                };
                let at = self.place(line, column, 1);
                Err(self.source.error(at, format!("not valid YAML: {}", error.info()), expected))
            }
            None => Ok((Event::StreamEnd, self.place(1, 0, 1))),
        }
    }

    fn refuse_tag(&self, at: Span, tagged: bool) -> Result<()> {
        match tagged {
            true => Err(self.source.error(at, "tags are not allowed", "a plain value")),
            false => Ok(()),
        }
    }

    /// Counts values before they are made.
    fn count(&mut self, at: Span, nodes: u64, depth: usize) -> Result<()> {
        self.nodes += nodes;
        let limits = &self.source.limits;
        if self.nodes > limits.get(Limit::Nodes) {
            let message = format!("the text has {} values or more up to here", self.nodes);
            return Err(self.source.beyond(at, Limit::Nodes, message));
        }
        if depth as u64 > limits.get(Limit::Depth) {
            let message = format!("the text is nested {depth} levels deep");
            return Err(self.source.beyond(at, Limit::Depth, message));
        }
        Ok(())
    }

    /// Reads the value that `event` begins.
    fn value(
        &mut self,
        parser: &mut Parser<'a, saphyr_parser::StrInput<'a>>,
        event: Event<'a>,
        at: Span,
        depth: usize,
    ) -> Result<Value> {
        let before = self.nodes;
        let anchor = match &event {
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                *anchor
            }
            _ => 0,
        };
        let value = match event {
            Event::Alias(anchor) => return self.alias(anchor, at, depth),
            event => self.plain_value(parser, event, at, depth)?,
        };
        if anchor != 0 {
            let (nodes, levels) = (self.nodes - before, value.levels());
            // What is kept for aliases is a copy.
            self.count(at, nodes, depth)?;
            self.anchors.insert(anchor, Anchored { value: value.clone(), nodes, levels });
        }
        Ok(value)
    }

    /// The value that an alias stands for.
    fn alias(&mut self, anchor: usize, at: Span, depth: usize) -> Result<Value> {
        self.aliases += 1;
        if self.aliases > self.source.limits.get(Limit::Aliases) {
            return Err(self.source.beyond(at, Limit::Aliases, format!("the text has {} aliases", self.aliases)));
        }
        let Some(&Anchored { nodes, levels, .. }) = self.anchors.get(&anchor) else {
            return Err(self.source.error(at, "an alias stands in the value that it stands for", "another value"));
        };
        self.count(at, nodes, depth + levels)?;
        Ok(self.anchors[&anchor].value.clone())
    }

    fn plain_value(
        &mut self,
        parser: &mut Parser<'a, saphyr_parser::StrInput<'a>>,
        event: Event<'a>,
        at: Span,
        depth: usize,
    ) -> Result<Value> {
        self.count(at, 1, depth)?;
        match event {
            Event::Scalar(text, style, _, tag) => {
                self.refuse_tag(at, tag.is_some())?;
                let quoted = style != ScalarStyle::Plain;
                let data = match text.as_ref() {
                    "" | "~" | "null" if !quoted => Data::Null,
                    _ => Data::Scalar { text: text.into_owned(), quoted },
                };
                Ok(Value { at, data })
            }
            Event::SequenceStart(_, tag) => {
                self.refuse_tag(at, tag.is_some())?;
                let mut items = Vec::new();
                loop {
                    match self.next(parser)? {
                        (Event::SequenceEnd, _) => return Ok(Value { at, data: Data::List(items) }),
                        (event, at) => items.push(self.value(parser, event, at, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(_, tag) => {
                self.refuse_tag(at, tag.is_some())?;
                let mut entries = Vec::new();
                let mut seen = HashMap::new();
                loop {
                    let (event, key_at) = self.next(parser)?;
                    if event == Event::MappingEnd {
                        return Ok(Value { at, data: Data::Map(entries) });
                    }
                    let key = self.value(parser, event, key_at, depth + 1)?;
                    let Data::Scalar { text: key, .. } = key.data else {
                        return Err(self.source.error(key_at, "a key is not a word", "a key, such as `name`"));
                    };
                    if let Some(line) = seen.insert(key.clone(), key_at.line) {
                        let message = format!("duplicate key `{key}`");
                        let line = line - self.origin.line + 1;
                        return Err(self.source.error(
                            key_at,
                            message,
                            format!("one `{key}` (the first is in line {line})"),
                        ));
                    }
                    let (event, value_at) = self.next(parser)?;
                    entries.push((key, key_at, self.value(parser, event, value_at, depth + 1)?));
                }
            }
            Event::Alias(_)
            | Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => Err(self.source.error(at, "not valid YAML: a value is missing", "valid YAML")),
        }
    }
}

impl Value {
    /// Levels of lists and mappings in the value.
    fn levels(&self) -> usize {
        match &self.data {
            Data::Null | Data::Scalar { .. } => 0,
            Data::List(items) => 1 + items.iter().map(Self::levels).max().unwrap_or(0),
            Data::Map(entries) => 1 + entries.iter().map(|(_, _, value)| value.levels()).max().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    fn pattern(text: &str) -> String {
        let spec = parse(&format!("name: x\nheads: 2\nhead_dim: 4\npattern: {text}\n"), "<text>");
        spec.map_or_else(|error| error.to_string(), |spec| spec.print())
    }

    #[test]
    fn aliases_stand_for_their_values() {
        let written = "{any: [{window: {radius: 3}}, {all: [{window: {radius: 3}}, causal]}]}";
        let aliased = "{any: [&near {window: {radius: &three 3}}, {all: [*near, causal]}]}";
        assert_eq!(pattern(aliased), pattern(written));
        assert_eq!(pattern("&all {any: [&a {sink: 2}, *a, *a]}"), pattern("{any: [{sink: 2}, {sink: 2}, {sink: 2}]}"));
        // The last anchor of a name counts.
        assert_eq!(pattern("{any: [&a causal, &a full, *a]}"), pattern("{any: [causal, full, full]}"));
    }

    #[test]
    fn an_error_in_an_aliased_value_points_at_the_value() {
        let text = pattern("{any: [&a {sink: [2]}, *a]}");
        assert!(text.contains("sink"), "{text}");
        let spec = "name: x\nhead_dim: &d 1000\nvalue_dim: *d\npattern: full\n";
        let error = parse(spec, "a.yaml").map_err(|error| error.to_string()).expect_err("too wide");
        assert!(error.starts_with("a.yaml:2:11: `head_dim` cannot be `1000`"), "{error}");
    }

    #[test]
    fn what_aliases_stand_for_is_counted() {
        // Each line doubles: 2^40 values, were they made.
        let mut text = "a0: &a0 [x, x]\n".to_owned();
        for i in 1..40 {
            text += &format!("a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1);
        }
        let source = Source::new(text, "bomb.yaml");
        let error = read(&source).map_err(|error| error.to_string()).expect_err("a bomb");
        assert!(error.contains("the limit `nodes`"), "{error}");
    }
}

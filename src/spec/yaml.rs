//! YAML text to a [`Value`] tree with places.
//!
//! In: one document. Refused: texts over [`MAX_BYTES`], nesting over [`MAX_DEPTH`], more than [`MAX_NODES`]
//! values, anchors and aliases (a few lines of them can stand for gigabytes), tags, keys that are not
//! scalars, duplicate keys, more than one document.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{Data, Source, Value};
use crate::error::{Result, Span};

/// Bytes in a text.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Nested lists and mappings.
const MAX_DEPTH: usize = 64;
/// Values in a document, keys included.
const MAX_NODES: usize = 500_000;

/// Reads the text of `source`. An empty document is a null.
pub(super) fn read(source: &Source) -> Result<Value> {
    document(source, &source.text, Span { line: 1, column: 1, width: 1 })
}

/// Reads `text`, which stands at `origin` of `source`.
pub(super) fn document(source: &Source, text: &str, origin: Span) -> Result<Value> {
    if text.len() > MAX_BYTES {
        let message = format!("the text has {} bytes", text.len());
        return Err(source.error(
            origin,
            message,
            format!("at most {MAX_BYTES} bytes (a large layout belongs in a file)"),
        ));
    }
    let mut reader = Reader { source, text, origin, nodes: 0 };
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
    nodes: usize,
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

    fn refuse(&self, at: Span, anchor: usize, tagged: bool) -> Result<()> {
        if anchor != 0 {
            return Err(self.source.error(at, "anchors are not allowed", "the value written out"));
        }
        if tagged {
            return Err(self.source.error(at, "tags are not allowed", "a plain value"));
        }
        Ok(())
    }

    fn value(
        &mut self,
        parser: &mut Parser<'a, saphyr_parser::StrInput<'a>>,
        event: Event<'a>,
        at: Span,
        depth: usize,
    ) -> Result<Value> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let message = "the text has too many values";
            return Err(self.source.error(
                at,
                message,
                format!("at most {MAX_NODES} (a large layout belongs in a file)"),
            ));
        }
        if depth > MAX_DEPTH {
            return Err(self.source.error(at, "the text is nested too deeply", format!("at most {MAX_DEPTH} levels")));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse(at, anchor, tag.is_some())?;
                let quoted = style != ScalarStyle::Plain;
                let data = match text.as_ref() {
                    "" | "~" | "null" if !quoted => Data::Null,
                    _ => Data::Scalar { text: text.into_owned(), quoted },
                };
                Ok(Value { at, data })
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse(at, anchor, tag.is_some())?;
                let mut items = Vec::new();
                loop {
                    match self.next(parser)? {
                        (Event::SequenceEnd, _) => return Ok(Value { at, data: Data::List(items) }),
                        (event, at) => items.push(self.value(parser, event, at, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse(at, anchor, tag.is_some())?;
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
            Event::Alias(_) => Err(self.source.error(at, "aliases are not allowed", "the value written out")),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => Err(self.source.error(at, "not valid YAML: a value is missing", "valid YAML")),
        }
    }
}

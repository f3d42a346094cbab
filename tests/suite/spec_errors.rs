//! Wrong specs and the messages that refuse them, word by word.
//!
//! The cases are in `spec_errors.txt`: a title, options (`> n=64` to resolve at a length, `> q_len=1` with
//! another number of queries, `> set PATH=VALUE`, `> limit NAME=VALUE`),
//! the text, and after `~~~` the message. `HOPWEAVE_BLESS=1` shows what changed and writes the messages anew.

use std::fmt::Write;
use std::path::Path;

use hopweave::limits::{Limits, Setting};
use hopweave::pattern;
use hopweave::spec::{self, Source};

struct Case<'a> {
    title: &'a str,
    options: Vec<&'a str>,
    text: &'a str,
    expected: &'a str,
}

fn parse_cases(file: &str) -> Vec<Case<'_>> {
    let parse = |case| {
        let (head, expected) = str::split_once(case, "~~~\n").expect("a case has `~~~` before its message");
        let (title, mut text) = head.split_once('\n').expect("a case has a title");
        let mut options = Vec::new();
        while let Some(rest) = text.strip_prefix("> ") {
            let (option, rest) = rest.split_once('\n').expect("an option ends its line");
            options.push(option);
            text = rest;
        }
        Case { title, options, text, expected }
    };
    file.split("=== ").skip(1).map(parse).collect()
}

fn message(case: &Case<'_>) -> String {
    let mut sets = Vec::new();
    let (mut n, mut q_len, mut limits) = (None, None, Limits::default());
    for option in &case.options {
        if let Some((path, value)) = option.strip_prefix("set ").and_then(|set| set.split_once('=')) {
            sets.push((path.to_string(), value.to_string()));
        } else if let Some(setting) = option.strip_prefix("limit ") {
            let Setting(limit, value) = setting.parse().expect("a limit");
            limits = limits.with(limit, value);
        } else if let Some(length) = option.strip_prefix("q_len=") {
            q_len = Some(length.parse::<usize>().expect("a length"));
        } else {
            n = option.strip_prefix("n=").map(|n| n.parse::<usize>().expect("a length"));
        }
    }
    let source = Source { limits, ..Source::new(case.text, "bad.yaml") };
    let result = pattern::read(source, &sets).and_then(|spec| {
        n.map_or(Ok(()), |n| {
            let q_len = q_len.unwrap_or(n);
            pattern::resolve(&spec, q_len, n)?;
            spec::score::resolve(&spec, q_len, n).map(drop)
        })
    });
    match result {
        Ok(()) => "accepted\n".into(),
        Err(error) => format!("{error}\n"),
    }
}

#[test]
fn wrong_specs_are_refused_with_these_messages() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec_errors.txt");
    let file = std::fs::read_to_string(&path).expect("the cases");
    let cases = parse_cases(&file);
    assert!(cases.len() >= 25);
    let (mut blessed, mut changes) = (String::new(), String::new());
    for case in &cases {
        let message = message(case);
        let expected = case.expected.trim_end_matches('\n');
        if message.trim_end_matches('\n') != expected {
            let _ = writeln!(
                changes,
                "{}:\n- {}\n+ {}",
                case.title,
                expected.replace('\n', "\n- "),
                message.replace('\n', "\n+ ")
            );
        }
        let options: String = case.options.iter().map(|option| format!("> {option}\n")).collect();
        let _ = write!(blessed, "=== {}\n{options}{}~~~\n{message}\n", case.title, case.text);
    }
    if std::env::var_os("HOPWEAVE_BLESS").is_some() {
        eprintln!("{changes}");
        std::fs::write(&path, blessed.trim_end().to_string() + "\n").expect("writing the cases");
    } else {
        assert!(changes.is_empty(), "messages changed (HOPWEAVE_BLESS=1 accepts them):\n{changes}");
    }
}

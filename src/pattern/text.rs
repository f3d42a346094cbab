//! The text form of a [`Pattern`]: a header with the lengths, then the tree as a spec would write it.

use super::node::Scope;
use super::{MAX_LENGTH, Pattern, Tree, resolve};
use crate::error::{Error, Result};
use crate::spec::{Align, Source, parse_node};

const HEADER: &str = "pattern q_len=";

impl Pattern {
    /// The pattern as text that [`parse_text`] reads back.
    pub fn print(&self) -> String {
        let mut out = format!("{HEADER}{} kv_len={} heads={}", self.q_len, self.kv_len, self.heads);
        if self.align == Align::Start {
            out += " align=start";
        }
        out.push('\n');
        print(&self.tree, 0, &mut out);
        out
    }
}

fn print(tree: &Tree, indent: usize, out: &mut String) {
    let (name, children): (&str, &[Tree]) = match tree {
        Tree::Any(children) => ("any", children),
        Tree::All(children) => ("all", children),
        Tree::Not(child) => {
            *out += "not:\n";
            *out += &"  ".repeat(indent + 1);
            return print(child, indent + 1, out);
        }
        Tree::PerHead { of_head, trees } => {
            *out += "per_head:\n";
            let space = "  ".repeat(indent + 1);
            for (number, tree) in trees.iter().enumerate() {
                let heads = of_head.iter().enumerate().filter(|(_, tree)| **tree == number as u32);
                let heads: Vec<String> = heads.map(|(head, _)| head.to_string()).collect();
                *out += &format!("{space}- heads: [{}]\n{space}  pattern:\n{space}    ", heads.join(", "));
                print(tree, indent + 3, out);
            }
            return;
        }
        Tree::Leaf(leaf) => {
            *out += &leaf.print();
            out.push('\n');
            return;
        }
    };
    *out += name;
    *out += ":\n";
    for child in children {
        *out += &"  ".repeat(indent + 1);
        *out += "- ";
        print(child, indent + 2, out);
    }
}

/// Reads what [`Pattern::print`] wrote. Random choices are drawn again, and come out the same.
pub fn parse_text(text: &str) -> Result<Pattern> {
    let (header, body) = text.split_once('\n').unwrap_or((text, ""));
    let wrong = |message: String| Error::Text { stage: "pattern", line: 1, message };
    let mut numbers = [0_usize; 3];
    let mut words = header.split_whitespace();
    if words.next() != Some("pattern") {
        return Err(wrong(format!("expected `{HEADER}...`, found `{header}`")));
    }
    for (key, number) in ["q_len", "kv_len", "heads"].into_iter().zip(&mut numbers) {
        let word = words.next().unwrap_or_default();
        *number = word
            .strip_prefix(key)
            .and_then(|rest| rest.strip_prefix('='))
            .and_then(|digits| digits.parse().ok())
            .filter(|&x| x <= MAX_LENGTH)
            .ok_or_else(|| wrong(format!("expected `{key}=` and a length up to {MAX_LENGTH}, found `{word}`")))?;
    }
    let [q_len, kv_len, heads] = numbers;
    let align = match words.next() {
        None | Some("align=end") => Align::End,
        Some("align=start") => Align::Start,
        Some(word) => return Err(wrong(format!("expected `align=start` or `align=end`, found `{word}`"))),
    };
    if heads == 0 {
        return Err(wrong("expected at least one head".into()));
    }
    // A blank first line keeps the line numbers of messages those of the whole text. Expressions were
    // evaluated before printing, so the width that `d` would stand for does not matter.
    let source = Source::new(format!("\n{body}"), "<pattern>");
    let scope = Scope { q_len, kv_len, head_dim: 1, heads, align };
    Ok(Pattern {
        q_len,
        kv_len,
        heads,
        align,
        tree: resolve::tree(&source, &parse_node(&source, heads)?, &scope, &mut 0)?,
    })
}

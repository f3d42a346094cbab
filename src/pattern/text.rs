//! The text form of a [`Pattern`]: a header with the lengths, then the tree as a spec would write it.

use super::node::Scope;
use super::{HopPatterns, MAX_LENGTH, Pattern, Tree, resolve};
use crate::error::{Error, Result};
use crate::spec::{Align, Source, parse_node};

const HEADER: &str = "pattern q_len=";
/// What stands above the trees of hops that have their own, with the number by which `hops=` knows them.
const OTHER: &str = "pattern of hops ";

impl Pattern {
    /// The pattern as text that [`parse_text`] reads back.
    pub fn print(&self) -> String {
        let mut out = format!("{HEADER}{} kv_len={} heads={}", self.q_len, self.kv_len, self.heads);
        if self.align == Align::Start {
            out += " align=start";
        }
        if !self.others().is_empty() {
            let hops: Vec<String> = self.hops.of_hop.iter().map(u32::to_string).collect();
            out += &format!(" hops={}", hops.join(","));
        }
        out.push('\n');
        print(&self.tree, 0, &mut out);
        for (place, other) in self.others().iter().enumerate() {
            out += &format!("{OTHER}{}\n", place + 1);
            print(&other.tree, 0, &mut out);
        }
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
    let mut align = Align::End;
    let mut of_hop: Vec<u32> = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("align", "end")) => {}
            Some(("align", "start")) => align = Align::Start,
            Some(("hops", numbers)) => {
                let numbers = numbers.split(',').map(|number| number.parse().ok()).collect::<Option<_>>();
                of_hop = numbers.ok_or_else(|| wrong(format!("expected numbers after `hops=`, found `{word}`")))?;
            }
            _ => return Err(wrong(format!("expected `align=start`, `align=end` or `hops=`, found `{word}`"))),
        }
    }
    if heads == 0 {
        return Err(wrong("expected at least one head".into()));
    }
    // Blank lines before a tree keep the line numbers of messages those of the whole text. Expressions were
    // evaluated before printing, so the width that `d` would stand for does not matter.
    let scope = Scope { q_len, kv_len, head_dim: 1, heads, align };
    let mut listed = 0;
    let mut patterns = Vec::new();
    let mut above = 1;
    for tree in sections(body) {
        let source = Source::new(format!("{}{tree}", "\n".repeat(above)), "<pattern>");
        above += tree.matches('\n').count() + 1;
        let tree = resolve::tree(&source, &parse_node(&source, heads)?, &scope, &mut listed)?;
        patterns.push(Pattern { q_len, kv_len, heads, align, tree, hops: HopPatterns::default() });
    }
    if of_hop.iter().any(|&pattern| pattern as usize >= patterns.len()) || (of_hop.is_empty() && patterns.len() > 1) {
        return Err(wrong(format!("`hops=` does not fit {} patterns", patterns.len())));
    }
    let mut root = patterns.remove(0);
    root.hops = HopPatterns { of_hop: of_hop.into(), others: patterns.into() };
    Ok(root)
}

/// The texts of the trees: the root's, and those below lines that begin with [`OTHER`].
fn sections(body: &str) -> Vec<String> {
    let mut sections = vec![String::new()];
    for line in body.split_inclusive('\n') {
        match (line.starts_with(OTHER), sections.last_mut()) {
            (false, Some(section)) => section.push_str(line),
            _ => sections.push(String::new()),
        }
    }
    sections
}

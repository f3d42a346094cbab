//! A spec back to YAML, such that reading it gives the same spec.

use std::fmt::Write;

use super::{Align, Alpha, Data, Diffusion, DiffusionForm, Factors, HeadInput, HeadsNode, Node, PatternSpec, Value};

impl PatternSpec {
    /// The spec as canonical YAML: every default written out, one leaf a line.
    pub fn print(&self) -> String {
        let mut out = format!("name: {}\n", scalar(&self.name));
        if let Some(description) = &self.description {
            out += &format!("description: {}\n", scalar(description));
        }
        let Self { heads, kv_heads, head_dim, value_dim, .. } = self;
        let _ = writeln!(out, "heads: {heads}\nkv_heads: {kv_heads}\nhead_dim: {head_dim}\nvalue_dim: {value_dim}");
        let _ = writeln!(out, "dtype: {}", self.dtype);
        if self.align != Align::End {
            let _ = writeln!(out, "align: {}", self.align.name());
        }
        let (inputs, mods) = self.print_mods();
        out += &inputs;
        out += "pattern:";
        out += &self.pattern.print(1);
        let _ = writeln!(out, "score: {{scale: {:?}{mods}}}", self.scale);
        let _ = writeln!(out, "diffusion: {}", self.diffusion.print(&self.hop_patterns));
        out
    }

    /// Whether the two say the same, wherever and however they were written.
    pub fn same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.description == other.description
            && (self.heads, self.kv_heads) == (other.heads, other.kv_heads)
            && (self.head_dim, self.value_dim) == (other.head_dim, other.value_dim)
            && self.dtype == other.dtype
            && self.align == other.align
            && self.scale == other.scale
            && self.same_mods(other)
            && self.diffusion == other.diffusion
            && self.pattern.same(&other.pattern)
            && self.hop_patterns.len() == other.hop_patterns.len()
            && self.hop_patterns.iter().zip(&other.hop_patterns).all(|(x, y)| match (x, y) {
                (Some(x), Some(y)) => x.same(y),
                (x, y) => x.is_none() && y.is_none(),
            })
    }
}

impl Diffusion {
    /// The hops' own patterns, if there are any, stand in the place of their number.
    fn print(&self, patterns: &[Option<Node>]) -> String {
        let store = if self.store.is_f32() { String::new() } else { format!(", store: {}", self.store) };
        let hops = |count: usize| match patterns {
            [] => count.to_string(),
            patterns => {
                let hop = |pattern: &Option<Node>| match pattern {
                    Some(node) => format!("{{pattern: {}}}", node.print_flow()),
                    None => "{}".to_owned(),
                };
                format!("[{}]", patterns.iter().map(hop).collect::<Vec<_>>().join(", "))
            }
        };
        let input = |input: &HeadInput| format!("{{input: {}}}", scalar(&input.name));
        let form = match &self.form {
            DiffusionForm::Fixed(factors) => {
                let alpha = factors.hops.first().map_or(0.0, |hop| hop.restart);
                if *factors == Factors::restart(factors.hops.len(), alpha) {
                    format!("hops: {}, alpha: {alpha:?}", hops(factors.hops.len()))
                } else {
                    let coefficients = factors.hops.iter().rev().map(|hop| hop.restart).chain([factors.initial]);
                    let coefficients = coefficients.map(|x| format!("{x:?}")).collect::<Vec<_>>().join(", ");
                    format!("coefficients: [{coefficients}]")
                }
            }
            DiffusionForm::Restart { hops: count, alpha } => format!("hops: {}, alpha: {}", hops(*count), input(alpha)),
            DiffusionForm::Polynomial { hops, coefficients } => {
                format!("coefficients: {}, hops: {hops}", input(coefficients))
            }
            DiffusionForm::Limit { alpha, tolerance } => {
                let alpha = match alpha {
                    Alpha::Fixed(alpha) => format!("{alpha:?}"),
                    Alpha::Input(alpha) => input(alpha),
                };
                format!("hops: all, alpha: {alpha}, tolerance: {tolerance:?}")
            }
        };
        format!("{{{form}{store}}}")
    }
}

impl Node {
    /// The node in YAML's flow style, on one line.
    fn print_flow(&self) -> String {
        let list = |nodes: &[Self]| nodes.iter().map(Self::print_flow).collect::<Vec<_>>().join(", ");
        match self {
            Self::Any(nodes) => format!("{{any: [{}]}}", list(nodes)),
            Self::All(nodes) => format!("{{all: [{}]}}", list(nodes)),
            Self::Not(node) => format!("{{not: {}}}", node.print_flow()),
            Self::PerHead(parts) => {
                let part = |part: &HeadsNode| {
                    let heads: Vec<String> = part.heads.iter().map(u32::to_string).collect();
                    format!("{{heads: [{}], pattern: {}}}", heads.join(", "), part.pattern.print_flow())
                };
                format!("{{per_head: [{}]}}", parts.iter().map(part).collect::<Vec<_>>().join(", "))
            }
            Self::Leaf { .. } => self.print_leaf(),
        }
    }

    /// What stands after `pattern:` or after a list item's dash, with the line's end.
    fn print(&self, indent: usize) -> String {
        let space = "  ".repeat(indent);
        match self {
            Node::Any(nodes) | Node::All(nodes) => {
                let name = if matches!(self, Node::Any(_)) { "any" } else { "all" };
                let items: String =
                    nodes.iter().map(|node| format!("{space}  -{}", node.print_item(indent + 2))).collect();
                format!("\n{space}{name}:\n{items}")
            }
            Node::Not(node) => format!("\n{space}not:{}", node.print(indent + 1)),
            Node::PerHead(parts) => {
                let part = |part: &HeadsNode| {
                    let heads: Vec<String> = part.heads.iter().map(u32::to_string).collect();
                    let pattern = part.pattern.print(indent + 3);
                    format!("{space}  - heads: [{}]\n{space}    pattern:{pattern}", heads.join(", "))
                };
                format!("\n{space}per_head:\n{}", parts.iter().map(part).collect::<String>())
            }
            Node::Leaf { .. } => format!(" {}\n", self.print_leaf()),
        }
    }

    /// A node as a list item: a combinator's name shares the line of the dash.
    fn print_item(&self, indent: usize) -> String {
        match self {
            Node::Leaf { .. } => self.print(indent),
            Node::Any(_) | Node::All(_) | Node::Not(_) | Node::PerHead(_) => {
                format!(" {}", self.print(indent).trim_start())
            }
        }
    }

    fn print_leaf(&self) -> String {
        match self {
            Node::Leaf { name, args: Value { data: Data::Null, .. }, .. } => scalar(name),
            Node::Leaf { name, args, .. } => format!("{{{}: {}}}", scalar(name), flow(args)),
            Node::Any(_) | Node::All(_) | Node::Not(_) | Node::PerHead(_) => String::new(),
        }
    }

    /// Whether the two are the same tree, wherever they stand.
    pub fn same(&self, other: &Self) -> bool {
        let all = |xs: &[Node], ys: &[Node]| xs.len() == ys.len() && xs.iter().zip(ys).all(|(x, y)| x.same(y));
        match (self, other) {
            (Node::Any(xs), Node::Any(ys)) | (Node::All(xs), Node::All(ys)) => all(xs, ys),
            (Node::Not(x), Node::Not(y)) => x.same(y),
            (Node::PerHead(xs), Node::PerHead(ys)) => {
                let same = |x: &HeadsNode, y: &HeadsNode| x.heads == y.heads && x.pattern.same(&y.pattern);
                xs.len() == ys.len() && xs.iter().zip(ys).all(|(x, y)| same(x, y))
            }
            (Node::Leaf { name, args, .. }, Node::Leaf { name: other, args: other_args, .. }) => {
                name == other && args.same(other_args)
            }
            _ => false,
        }
    }
}

impl Value {
    /// Whether the two hold the same, wherever they stand. Quotes matter only where they make text of what
    /// would be a number, a truth value or nothing.
    pub fn same(&self, other: &Self) -> bool {
        match (&self.data, &other.data) {
            (Data::Null, Data::Null) => true,
            (Data::Scalar { text: a, quoted: p }, Data::Scalar { text: b, quoted: q }) => {
                a == b && (p == q || !is_special(a))
            }
            (Data::List(xs), Data::List(ys)) => xs.len() == ys.len() && xs.iter().zip(ys).all(|(x, y)| x.same(y)),
            (Data::Map(xs), Data::Map(ys)) => {
                xs.len() == ys.len() && xs.iter().zip(ys).all(|((a, _, x), (b, _, y))| a == b && x.same(y))
            }
            _ => false,
        }
    }
}

/// A value in YAML's flow style, on one line.
pub fn flow(value: &Value) -> String {
    match &value.data {
        Data::Null => "null".into(),
        Data::Scalar { text, quoted: false } if is_special(text) => text.clone(),
        Data::Scalar { text, .. } => scalar(text),
        Data::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Data::Map(entries) => {
            let entries: Vec<String> =
                entries.iter().map(|(key, _, value)| format!("{}: {}", scalar(key), flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// Whether the text, unquoted, would be a number, a truth value or nothing.
fn is_special(text: &str) -> bool {
    let word = matches!(text.to_ascii_lowercase().as_str(), "" | "~" | "null" | "true" | "false");
    word || text.parse::<f64>().is_ok()
}

/// Text as a YAML scalar: bare where it is a plain word, else quoted.
pub(super) fn scalar(text: &str) -> String {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(letter);
    if plain && !is_special(text) {
        return text.to_string();
    }
    quoted(text)
}

/// Text in JSON's quotes, which YAML shares.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

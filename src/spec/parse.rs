//! The general keys of a spec, and the pattern tree down to its leaves.
//!
//! In: YAML text and overrides. Out: a [`PatternSpec`]. Refused: everything that is not in the contract, with
//! the nearest known key, and by name what the contract has but this version has not.

use std::sync::Arc;

use super::{
    Align, Data, Diffusion, Fields, HeadsNode, KEYS, Node, PatternSpec, Source, Value, diffusion, nearest, score, set,
    yaml,
};
use crate::dtype::Dtype;
use crate::error::{Result, Span};

/// Most query heads of a spec.
pub const MAX_HEADS: u64 = 65_536;
/// Largest width of a query, key or value vector.
pub const MAX_DIM: u64 = 512;
/// Nested combinators of a pattern.
const MAX_DEPTH: usize = 32;

/// Reads a spec; `file` is its name in messages.
pub fn parse(text: &str, file: &str) -> Result<PatternSpec> {
    parse_with(text, file, &[])
}

/// Reads a spec with some values replaced: each pair is a path, such as `diffusion.hops` or
/// `pattern.any.0.window.radius`, and the YAML text of the new value.
pub fn parse_with(text: &str, file: &str, sets: &[(String, String)]) -> Result<PatternSpec> {
    parse_source(Source::new(text, file), sets)
}

/// The same for a text that comes with what it may do.
pub fn parse_source(mut source: Source, sets: &[(String, String)]) -> Result<PatternSpec> {
    source.overrides = sets.iter().map(|(path, value)| format!("{path}={value}")).collect();
    let mut root = yaml::read(&source)?;
    for (index, (path, value)) in sets.iter().enumerate() {
        set::apply(&mut root, &source, index, path, value)?;
    }
    interpret(Arc::new(source), &root)
}

/// Reads a pattern tree of so many heads alone, as [`crate::pattern::Pattern::print`] writes it.
pub fn parse_node(source: &Source, heads: usize) -> Result<Node> {
    root_node(source, &yaml::read(source)?, heads)
}

/// Reads a text as values with their places, whatever they mean.
pub fn read_value(source: &Source) -> Result<Value> {
    yaml::read(source)
}

fn interpret(source: Arc<Source>, root: &Value) -> Result<PatternSpec> {
    let top = Span { line: 1, column: 1, width: 1 };
    let fields = Fields::new(&source, "the spec", top, root, &KEYS.each_ref().map(|key| key.name))?;
    let src = source.as_ref();
    let name = fields.require("name", "my-pattern")?.text(src, "name")?.to_string();
    let description = match fields.get("description") {
        Some(value) => Some(value.text(src, "description")?.to_string()),
        None => None,
    };
    let whole = |key: &str, hi: u64, default: u64| match fields.get(key) {
        Some(value) => value.integer(src, key, 1, hi),
        None => Ok(default),
    };
    let heads = whole("heads", MAX_HEADS, 1)?;
    let kv_heads = whole("kv_heads", MAX_HEADS, heads)?;
    if let Some(value) = fields.get("kv_heads")
        && heads % kv_heads != 0
    {
        let message = format!("`kv_heads` is {kv_heads}, which does not divide {heads} heads");
        return Err(src.error(value.at, message, "a divisor of `heads`"));
    }
    let head_dim = fields.require("head_dim", "64")?.integer(src, "head_dim", 1, MAX_DIM)?;
    let value_dim = whole("value_dim", MAX_DIM, head_dim)?;
    let dtype = match fields.get("dtype") {
        Some(value) => Dtype::find(value.choice(src, "dtype", &Dtype::ALL.map(Dtype::name))?).unwrap_or_default(),
        None => Dtype::default(),
    };
    let align = match fields.get("align") {
        Some(value) if value.choice(src, "align", &["end", "start"])? == "start" => Align::Start,
        _ => Align::End,
    };
    let inputs = score::read_inputs(src, &fields)?;
    let pattern = root_node(src, fields.require("pattern", "causal")?, heads as usize)?;
    let (scale, mods) = score(src, &fields, head_dim, &inputs, heads as usize)?;
    let diffusion = match fields.get("diffusion") {
        Some(value) => diffusion::read(src, fields.key_at("diffusion"), value)?,
        None => Diffusion::plain(),
    };
    Ok(PatternSpec {
        name,
        description,
        heads: heads as usize,
        kv_heads: kv_heads as usize,
        head_dim: head_dim as usize,
        value_dim: value_dim as usize,
        align,
        inputs,
        mods,
        dtype,
        pattern,
        scale,
        diffusion,
        diffusion_at: fields.key_at("diffusion"),
        source: source.clone(),
    })
}

fn score(
    source: &Source,
    fields: &Fields<'_>,
    head_dim: u64,
    inputs: &[score::InputDef],
    heads: usize,
) -> Result<(f64, Vec<score::ModDef>)> {
    let default = 1.0 / (head_dim as f64).sqrt();
    let Some(value) = fields.get("score") else { return Ok((default, Vec::new())) };
    let fields = Fields::new(source, "score", fields.key_at("score"), value, &["scale", "mods"])?;
    let scale = match fields.get("scale") {
        // In f32, where scores are computed, anything beyond would be infinite.
        Some(value) => value.float(source, "scale", -f64::from(f32::MAX), f64::from(f32::MAX))?,
        None => default,
    };
    let mods = match fields.get("mods") {
        Some(value) => score::read_mods(source, value, inputs, heads)?,
        None => Vec::new(),
    };
    Ok((scale, mods))
}

fn root_node(source: &Source, value: &Value, heads: usize) -> Result<Node> {
    match &value.data {
        Data::Map(entries) if matches!(entries.as_slice(), [(key, ..)] if key == "per_head") => {
            let (_, at, parts) = &entries[0];
            per_head(source, *at, parts, heads)
        }
        _ => node(source, value, 0),
    }
}

fn per_head(source: &Source, at: Span, value: &Value, heads: usize) -> Result<Node> {
    let items = value.list(source, "per_head", "a list of {heads: ..., pattern: ...}")?;
    let mut covered = vec![false; heads];
    let mut parts = Vec::with_capacity(items.len());
    for item in items {
        let fields = Fields::new(source, "per_head", item.at, item, &["heads", "pattern"])?;
        let written = fields.require("heads", "\"0..6\"")?;
        let listed = head_list(source, written, heads)?;
        for &head in &listed {
            if std::mem::replace(&mut covered[head as usize], true) {
                let message = format!("head {head} has a pattern already");
                return Err(source.error(written.at, message, "every head once"));
            }
        }
        parts.push(HeadsNode { heads: listed, pattern: node(source, fields.require("pattern", "causal")?, 1)? });
    }
    match covered.iter().position(|covered| !covered) {
        Some(head) => {
            let message = format!("head {head} has no pattern");
            Err(source.error(at, message, format!("every head from 0 to {} once", heads - 1)))
        }
        None => Ok(Node::PerHead(parts)),
    }
}

/// `[0, 1]`, or `0..2` without its end.
fn head_list(source: &Source, value: &Value, heads: usize) -> Result<Vec<u32>> {
    let expected = || format!("a list of heads or a range such as \"0..2\", within 0..{heads}");
    let refuse = || source.error(value.at, format!("`heads` cannot be {}", value.describe()), expected());
    match &value.data {
        Data::List(items) if !items.is_empty() => {
            let read = |item: &Value| item.integer(source, "heads", 0, heads as u64 - 1).map(|head| head as u32);
            items.iter().map(read).collect()
        }
        Data::Scalar { text, .. } => {
            let (first, end) = text.split_once("..").ok_or_else(refuse)?;
            let bound = |text: &str| text.trim().parse::<u32>().ok().filter(|&head| head as usize <= heads);
            match (bound(first), bound(end)) {
                (Some(first), Some(end)) if first < end => Ok((first..end).collect()),
                _ => Err(refuse()),
            }
        }
        Data::List(_) | Data::Map(_) | Data::Null => Err(refuse()),
    }
}

fn node(source: &Source, value: &Value, depth: usize) -> Result<Node> {
    if depth > MAX_DEPTH {
        return Err(source.error(value.at, "the pattern is nested too deeply", format!("at most {MAX_DEPTH} levels")));
    }
    let (name, at, args) = match &value.data {
        Data::Scalar { text, .. } => {
            let null = Value { at: value.at, data: Data::Null };
            return leaf_or_combinator(source, text, value.at, &null, depth);
        }
        Data::Map(entries) => match entries.as_slice() {
            [(name, at, args)] => (name, *at, args),
            [] => return Err(source.error(value.at, "the node is empty", "a node, such as `causal`")),
            [(first, ..), (second, at, _), ..] => {
                let message = format!("a second key `{second}` in the node `{first}`");
                let expected =
                    format!("one key; `any: [...]` or `all: [...]` joins nodes, and arguments stand under `{first}`");
                return Err(source.error(*at, message, expected));
            }
        },
        Data::List(_) => {
            return Err(source.error(value.at, "a list stands where a node belongs", "`any: [...]` or `all: [...]`"));
        }
        Data::Null => {
            let expected = "a node, such as `causal` or `window: {radius: 128}`";
            return Err(source.error(value.at, "a node is missing", expected));
        }
    };
    leaf_or_combinator(source, name, at, args, depth)
}

fn leaf_or_combinator(source: &Source, name: &str, at: Span, args: &Value, depth: usize) -> Result<Node> {
    match name {
        "any" | "all" => {
            let items = args.list(source, name, "a list of nodes, such as [causal, {sink: 4}]")?;
            if items.is_empty() {
                return Err(source.error(args.at, format!("`{name}` is empty"), "at least one node"));
            }
            let nodes = items.iter().map(|item| node(source, item, depth + 1)).collect::<Result<Vec<_>>>()?;
            Ok(if name == "any" { Node::Any(nodes) } else { Node::All(nodes) })
        }
        "not" => Ok(Node::Not(Box::new(node(source, args, depth + 1)?))),
        "per_head" => {
            let message = "`per_head` stands inside another node";
            Err(source.error(at, message, "`per_head` at the root of the pattern only"))
        }
        _ => match nearest(name, ["any", "all", "not"]) {
            // A misspelt combinator would otherwise be taken for a leaf with a list of arguments.
            Some(near) if matches!(args.data, Data::List(_)) => {
                Err(source.error(at, format!("unknown node `{name}`"), format!("`{near}`")))
            }
            _ => Ok(Node::Leaf { name: name.to_string(), at, args: args.clone() }),
        },
    }
}

//! The general keys of a spec, and the pattern tree down to its leaves.
//!
//! In: YAML text and overrides. Out: a [`PatternSpec`]. Refused: everything that is not in the contract, with
//! the nearest known key, and by name what the contract has but this version has not.

use std::sync::Arc;

use super::{
    Align, Data, Diffusion, Fields, HeadsNode, KEYS, LARGEST_FACTOR, MAX_DIM, Node, PatternSpec, Source, Value,
    diffusion, nearest, score, set, yaml,
};
use crate::dtype::Dtype;
use crate::error::{Faults, Result, Span};
use crate::limits::Limit;

/// What is checked of a leaf by whoever knows the leaves: its name, the place of that, and its arguments.
pub type CheckLeaf = fn(&Source, &str, Span, &Value) -> Result<()>;

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
pub fn parse_source(source: Source, sets: &[(String, String)]) -> Result<PatternSpec> {
    parse_checked(source, sets, |_, _, _, _| Ok(()))
}

/// The same with a look at every leaf, so that what is wrong with them is reported with all else.
pub fn parse_checked(mut source: Source, sets: &[(String, String)], check: CheckLeaf) -> Result<PatternSpec> {
    source.overrides = sets.iter().map(|(path, value)| format!("{path}={value}")).collect();
    let mut root = yaml::read(&source)?;
    for (index, (path, value)) in sets.iter().enumerate() {
        set::apply(&mut root, &source, index, path, value)?;
    }
    interpret(Arc::new(source), &root, check)
}

/// Reads a pattern tree of so many heads alone, as [`crate::pattern::Pattern::print`] writes it.
pub fn parse_node(source: &Source, heads: usize) -> Result<Node> {
    Nodes { source, check: |_, _, _, _| Ok(()) }.root(&yaml::read(source)?, Some(heads))
}

/// Reads a text as values with their places, whatever they mean.
pub fn read_value(source: &Source) -> Result<Value> {
    yaml::read(source)
}

/// Reads every key, also where others are wrong. What depends on one that is wrong is left out.
fn interpret(source: Arc<Source>, root: &Value, check: CheckLeaf) -> Result<PatternSpec> {
    let top = Span { line: 1, column: 1, width: 1 };
    let known = KEYS.each_ref().map(|key| key.name);
    let fields = Fields::of(&source, "the spec", top, root, &known)?;
    let src = source.as_ref();
    let mut faults = Faults::default();
    faults.keep(fields.only(&known));
    // A key that is only misspelt is not missing.
    let require = |faults: &mut Faults, key: &str, example: &str| match fields.is_misspelt(key, &known) {
        true => None,
        false => faults.keep(fields.require(key, example)),
    };
    let whole = |key: &str, hi: u64, default: u64| match fields.get(key) {
        Some(value) => value.integer(src, key, 1, hi),
        None => Ok(default),
    };
    let name = require(&mut faults, "name", "my-pattern");
    let name = name.and_then(|value| faults.keep(value.text(src, "name")));
    let description =
        fields.get("description").and_then(|value| faults.keep(value.text(src, "description"))).map(str::to_owned);
    let heads = match fields.is_misspelt("heads", &known) {
        true => None,
        false => faults.keep(read_heads(src, &fields)),
    };
    let kv_heads = heads.and_then(|heads| faults.keep(read_kv_heads(src, &fields, heads)));
    let head_dim = require(&mut faults, "head_dim", "64");
    let head_dim = head_dim.and_then(|value| faults.keep(value.integer(src, "head_dim", 1, MAX_DIM)));
    let value_dim = faults.keep(whole("value_dim", MAX_DIM, head_dim.unwrap_or(1)));
    let dtype = faults.keep(match fields.get("dtype") {
        Some(value) => {
            value.choice(src, "dtype", &Dtype::ALL.map(Dtype::name)).map(|name| Dtype::find(name).unwrap_or_default())
        }
        None => Ok(Dtype::default()),
    });
    let align = faults.keep(match fields.get("align") {
        Some(value) => value
            .choice(src, "align", &["end", "start"])
            .map(|word| if word == "start" { Align::Start } else { Align::End }),
        None => Ok(Align::End),
    });
    let inputs = match fields.is_misspelt("inputs", &known) {
        true => None,
        false => faults.keep(score::read_inputs(src, &fields)),
    };
    let pattern = require(&mut faults, "pattern", "causal");
    let pattern =
        pattern.and_then(|value| faults.keep(Nodes { source: src, check }.root(value, heads.map(|h| h as usize))));
    let default = 1.0 / (head_dim.unwrap_or(1) as f64).sqrt();
    let score = match (&inputs, heads) {
        (Some(inputs), Some(heads)) => faults.keep(score(src, &fields, default, inputs, heads as usize)),
        _ => None,
    };
    let diffusion = faults.keep(match fields.get("diffusion") {
        Some(value) => diffusion::read(src, fields.key_at("diffusion"), value),
        None => Ok((Diffusion::plain(), Vec::new())),
    });
    let diffusion = diffusion.and_then(|(diffusion, patterns)| {
        let heads = heads.map(|h| h as usize);
        let read =
            |pattern: Option<&Value>| pattern.map(|value| Nodes { source: src, check }.root(value, heads)).transpose();
        let patterns = faults.keep(patterns.into_iter().map(read).collect::<Result<Vec<_>>>())?;
        let declared = inputs.iter().flatten();
        faults.keep(diffusion::check_name(src, &diffusion, declared.map(|input| input.name.as_str())))?;
        Some((diffusion, if patterns.iter().all(Option::is_none) { Vec::new() } else { patterns }))
    });
    let all = (|| {
        let (scale, mods) = score?;
        let (diffusion, hop_patterns) = diffusion?;
        Some(PatternSpec {
            name: name?.to_owned(),
            description,
            heads: heads? as usize,
            kv_heads: kv_heads? as usize,
            head_dim: head_dim? as usize,
            value_dim: value_dim? as usize,
            align: align?,
            inputs: inputs?,
            mods,
            dtype: dtype?,
            pattern: pattern?,
            scale,
            diffusion,
            hop_patterns,
            diffusion_at: fields.key_at("diffusion"),
            source: source.clone(),
        })
    })();
    faults.finish(all)
}

fn read_heads(source: &Source, fields: &Fields<'_>) -> Result<u64> {
    let Some(value) = fields.get("heads") else { return Ok(1) };
    let heads = value.integer(source, "heads", 1, u64::MAX)?;
    match heads <= source.limits.get(Limit::Heads) {
        true => Ok(heads),
        false => Err(source.beyond(value.at, Limit::Heads, format!("`heads` is {heads}"))),
    }
}

fn read_kv_heads(source: &Source, fields: &Fields<'_>, heads: u64) -> Result<u64> {
    let Some(value) = fields.get("kv_heads") else { return Ok(heads) };
    let kv_heads = value.integer(source, "kv_heads", 1, Limit::Heads.most())?;
    match heads.is_multiple_of(kv_heads) {
        true => Ok(kv_heads),
        false => {
            let message = format!("`kv_heads` is {kv_heads}, which does not divide {heads} heads");
            Err(source.error(value.at, message, "a divisor of `heads`"))
        }
    }
}

fn score(
    source: &Source,
    fields: &Fields<'_>,
    default: f64,
    inputs: &[score::InputDef],
    heads: usize,
) -> Result<(f64, Vec<score::ModDef>)> {
    let Some(value) = fields.get("score") else { return Ok((default, Vec::new())) };
    let fields = Fields::new(source, "score", fields.key_at("score"), value, &["scale", "mods"])?;
    let mut faults = Faults::default();
    let scale = faults.keep(match fields.get("scale") {
        Some(value) => value.float(source, "scale", -LARGEST_FACTOR, LARGEST_FACTOR),
        None => Ok(default),
    });
    let mods = faults.keep(match fields.get("mods") {
        Some(value) => score::read_mods(source, value, inputs, heads),
        None => Ok(Vec::new()),
    });
    faults.finish(scale.zip(mods))
}

/// Reads the pattern tree down to its leaves.
#[derive(Clone, Copy)]
struct Nodes<'a> {
    source: &'a Source,
    check: CheckLeaf,
}

impl Nodes<'_> {
    /// The root; without a number of heads, whether every head has its part is not checked.
    fn root(self, value: &Value, heads: Option<usize>) -> Result<Node> {
        match &value.data {
            Data::Map(entries) if matches!(entries.as_slice(), [(key, ..)] if key == "per_head") => {
                let (_, at, parts) = &entries[0];
                self.per_head(*at, parts, heads)
            }
            _ => self.node(value, 0),
        }
    }

    fn per_head(self, at: Span, value: &Value, heads: Option<usize>) -> Result<Node> {
        let source = self.source;
        let items = value.list(source, "per_head", "a list of {heads: ..., pattern: ...}")?;
        let mut faults = Faults::default();
        let mut covered = vec![false; heads.unwrap_or(0)];
        let mut all_listed = heads.is_some();
        let mut parts = Vec::with_capacity(items.len());
        for item in items {
            let Some(fields) = faults.keep(Fields::new(source, "per_head", item.at, item, &["heads", "pattern"]))
            else {
                all_listed = false;
                continue;
            };
            let listed = heads.and_then(|heads| {
                let written = faults.keep(fields.require("heads", "\"0..6\""))?;
                let listed = faults.keep(head_list(source, written, heads))?;
                for &head in &listed {
                    if std::mem::replace(&mut covered[head as usize], true) {
                        let message = format!("head {head} has a pattern already");
                        faults.keep::<()>(Err(source.error(written.at, message, "every head once")));
                        break;
                    }
                }
                Some(listed)
            });
            all_listed &= listed.is_some();
            let pattern = faults.keep(fields.require("pattern", "causal").and_then(|value| self.node(value, 1)));
            if let (Some(heads), Some(pattern)) = (listed, pattern) {
                parts.push(HeadsNode { heads, pattern });
            }
        }
        if let Some(head) = covered.iter().position(|covered| !covered).filter(|_| all_listed) {
            let message = format!("head {head} has no pattern");
            let expected = format!("every head from 0 to {} once", covered.len() - 1);
            faults.keep::<()>(Err(source.error(at, message, expected)));
        }
        faults.finish(Some(Node::PerHead(parts)))
    }

    fn node(self, value: &Value, depth: usize) -> Result<Node> {
        let source = self.source;
        // Overrides can nest deeper than any text.
        if depth as u64 > source.limits.get(Limit::Depth) {
            return Err(source.beyond(value.at, Limit::Depth, format!("the pattern is nested {depth} levels deep")));
        }
        let (name, at, args) = match &value.data {
            Data::Scalar { text, .. } => {
                let null = Value { at: value.at, data: Data::Null };
                return self.leaf_or_combinator(text, value.at, &null, depth);
            }
            Data::Map(entries) => match entries.as_slice() {
                [(name, at, args)] => (name, *at, args),
                [] => return Err(source.error(value.at, "the node is empty", "a node, such as `causal`")),
                [(first, ..), (second, at, _), ..] => {
                    let message = format!("a second key `{second}` in the node `{first}`");
                    let expected = format!(
                        "one key; `any: [...]` or `all: [...]` joins nodes, and arguments stand under `{first}`"
                    );
                    return Err(source.error(*at, message, expected));
                }
            },
            Data::List(_) => {
                let expected = "`any: [...]` or `all: [...]`";
                return Err(source.error(value.at, "a list stands where a node belongs", expected));
            }
            Data::Null => {
                let expected = "a node, such as `causal` or `window: {radius: 128}`";
                return Err(source.error(value.at, "a node is missing", expected));
            }
        };
        self.leaf_or_combinator(name, at, args, depth)
    }

    fn leaf_or_combinator(self, name: &str, at: Span, args: &Value, depth: usize) -> Result<Node> {
        let source = self.source;
        match name {
            "any" | "all" => {
                let items = args.list(source, name, "a list of nodes, such as [causal, {sink: 4}]")?;
                if items.is_empty() {
                    return Err(source.error(args.at, format!("`{name}` is empty"), "at least one node"));
                }
                let mut faults = Faults::default();
                let nodes: Vec<Node> =
                    items.iter().filter_map(|item| faults.keep(self.node(item, depth + 1))).collect();
                faults.finish(Some(if name == "any" { Node::Any(nodes) } else { Node::All(nodes) }))
            }
            "not" => Ok(Node::Not(Box::new(self.node(args, depth + 1)?))),
            "per_head" => {
                let message = "`per_head` stands inside another node";
                Err(source.error(at, message, "`per_head` at the root of the pattern only"))
            }
            _ => match nearest(name, ["any", "all", "not"]) {
                // A misspelt combinator would otherwise be taken for a leaf with a list of arguments.
                Some(near) if matches!(args.data, Data::List(_)) => {
                    Err(source.error(at, format!("unknown node `{name}`"), format!("`{near}`")))
                }
                _ => {
                    (self.check)(source, name, at, args)?;
                    Ok(Node::Leaf { name: name.to_string(), at, args: args.clone() })
                }
            },
        }
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

//! A spec at given lengths: names looked up, expressions evaluated, random choices drawn.

use std::sync::Arc;

use super::node::{Args, COMBINATORS, NodeDef, Scope};
use super::{Leaf, MAX_LENGTH, NODES, Pattern, Tree};
use crate::error::{Error, Result, Span};
use crate::spec::{Node, PatternSpec, Source, Value, nearest};

/// The pattern of a spec at given lengths.
///
/// Refused: what [`check`] refuses, arguments that come out wrong at these lengths, lengths beyond
/// [`MAX_LENGTH`], and diffusion over lengths that differ: its hops apply A to rows of its own result.
pub fn resolve(spec: &PatternSpec, q_len: usize, kv_len: usize) -> Result<Pattern> {
    let longest = q_len.max(kv_len);
    if longest > MAX_LENGTH {
        return Err(Error::unsupported(format!("length {longest}"), format!("lengths go up to {MAX_LENGTH}")));
    }
    if q_len != kv_len && !spec.diffusion.is_plain() {
        let message = format!("diffusion needs as many queries as keys; there are {q_len} and {kv_len}");
        let at = spec.diffusion_at;
        return Err(spec.source.error(at, message, "one hop without `alpha`, or equal lengths"));
    }
    let scope = Scope { q_len, kv_len, head_dim: spec.head_dim, heads: spec.heads, align: spec.align };
    let tree = tree(&spec.source, &spec.pattern, &scope)?;
    Ok(Pattern { q_len, kv_len, heads: spec.heads, align: spec.align, tree })
}

/// Whether the names and arguments of all leaves are well-formed; needs no lengths.
pub fn check(spec: &PatternSpec) -> Result<()> {
    check_node(&spec.source, &spec.pattern)
}

fn check_node(source: &Source, node: &Node) -> Result<()> {
    match node {
        Node::Any(nodes) | Node::All(nodes) => nodes.iter().try_for_each(|node| check_node(source, node)),
        Node::Not(node) => check_node(source, node),
        Node::PerHead(parts) => parts.iter().try_for_each(|part| check_node(source, &part.pattern)),
        Node::Leaf { name, at, args } => {
            let def = find(source, name, *at)?;
            (def.read)(&Args::new(source, def, name, *at, args)?).map(drop)
        }
    }
}

pub(super) fn tree(source: &Source, node: &Node, scope: &Scope) -> Result<Tree> {
    let all = |nodes: &[Node]| nodes.iter().map(|node| tree(source, node, scope)).collect::<Result<Vec<_>>>();
    Ok(match node {
        Node::Any(nodes) => Tree::Any(all(nodes)?),
        Node::All(nodes) => Tree::All(all(nodes)?),
        Node::Not(node) => Tree::Not(Box::new(tree(source, node, scope)?)),
        Node::PerHead(parts) => {
            let mut of_head = vec![0; scope.heads];
            for (number, part) in parts.iter().enumerate() {
                part.heads.iter().for_each(|&head| of_head[head as usize] = number as u32);
            }
            let trees = parts.iter().map(|part| tree(source, &part.pattern, scope)).collect::<Result<Vec<_>>>()?;
            Tree::PerHead { of_head: of_head.into(), trees }
        }
        Node::Leaf { name, at, args } => Tree::Leaf(resolve_leaf(source, name, *at, args, scope)?),
    })
}

fn resolve_leaf(source: &Source, name: &str, at: Span, args: &Value, scope: &Scope) -> Result<Arc<dyn Leaf>> {
    let def = find(source, name, at)?;
    let args = Args::new(source, def, name, at, args)?;
    (def.read)(&args)?(scope)
}

fn find(source: &Source, name: &str, at: Span) -> Result<&'static NodeDef> {
    if let Some(def) = NODES.iter().find(|def| def.name == name) {
        return Ok(def);
    }
    let known: Vec<&str> = NODES.iter().map(|def| def.name).chain(COMBINATORS.iter().map(|c| c.name)).collect();
    let expected = match nearest(name, known.iter().copied()) {
        Some(near) => format!("`{near}`"),
        None => format!("one of {}", known.join(", ")),
    };
    Err(source.error(at, format!("unknown node `{name}`"), expected))
}

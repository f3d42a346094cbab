//! A spec at given lengths: names looked up, expressions evaluated, random choices drawn.

use std::sync::Arc;

use super::node::{Args, COMBINATORS, NodeDef, Scope};
use super::{HopPatterns, Leaf, NODES, Pattern, Tree};
use crate::error::{Faults, Result, Span};
use crate::limits::Limit;
use crate::spec::{Node, PatternSpec, Source, Value, nearest, parse_checked};

/// The pattern of a spec at given lengths.
///
/// Refused: what [`read`] refuses, arguments that come out wrong at these lengths, lengths and lists beyond their limits,
/// and diffusion or patterns of hops over lengths that differ: hops apply A to rows of their own result.
pub fn resolve(spec: &PatternSpec, q_len: usize, kv_len: usize) -> Result<Pattern> {
    let longest = q_len.max(kv_len);
    spec.source.limits.check(Limit::Length, "the length", longest as u64)?;
    if q_len != kv_len && !spec.diffusion.is_plain() {
        let message = format!("diffusion needs as many queries as keys; there are {q_len} and {kv_len}");
        let at = spec.diffusion_at;
        return Err(spec.source.error(at, message, "one hop without `alpha`, or equal lengths"));
    }
    if q_len != kv_len && !spec.hop_patterns.is_empty() {
        let message = format!("a pattern for each hop needs as many queries as keys; there are {q_len} and {kv_len}");
        return Err(spec.source.error(
            spec.diffusion_at,
            message,
            "hops without patterns of their own, or equal lengths",
        ));
    }
    let scope = Scope { q_len, kv_len, head_dim: spec.head_dim, heads: spec.heads, align: spec.align };
    // Both may be wrong at these lengths.
    let (mut faults, mut listed) = (Faults::default(), 0);
    let tree = faults.keep(tree(&spec.source, &spec.pattern, &scope, &mut listed));
    let hops = faults.keep(hop_patterns(spec, &scope, &mut listed));
    let whole = tree.zip(hops);
    faults.finish(whole.map(|(tree, hops)| Pattern { q_len, kv_len, heads: spec.heads, align: spec.align, tree, hops }))
}

/// The patterns of a spec's hops at given lengths; those that are drawn come out as the root's do.
fn hop_patterns(spec: &PatternSpec, scope: &Scope, listed: &mut u64) -> Result<HopPatterns> {
    let mut nodes: Vec<&Node> = Vec::new();
    let mut of_hop = Vec::with_capacity(spec.hop_patterns.len());
    for node in &spec.hop_patterns {
        of_hop.push(match node {
            Some(node) if !node.same(&spec.pattern) => match nodes.iter().position(|known| known.same(node)) {
                Some(place) => place as u32 + 1,
                None => {
                    nodes.push(node);
                    nodes.len() as u32
                }
            },
            _ => 0,
        });
    }
    if nodes.is_empty() {
        return Ok(HopPatterns::default());
    }
    let pattern = |node: &Node| {
        let tree = tree(&spec.source, node, scope, listed)?;
        let Scope { q_len, kv_len, heads, align, .. } = *scope;
        Ok(Pattern { q_len, kv_len, heads, align, tree, hops: HopPatterns::default() })
    };
    let others: Vec<Pattern> = nodes.into_iter().map(pattern).collect::<Result<_>>()?;
    Ok(HopPatterns { of_hop: of_hop.into(), others: others.into() })
}

/// Reads a spec, and all of its leaves as far as that needs no lengths. What is wrong is told at once, as far as it can
/// be told apart. Each pair of `sets` replaces a value, as for [`crate::spec::parse_with`].
///
/// # Errors
/// [`Error::Spec`](crate::Error::Spec).
pub fn read(source: Source, sets: &[(String, String)]) -> Result<PatternSpec> {
    parse_checked(source, sets, |source, name, at, args| {
        let def = find(source, name, at)?;
        (def.read)(&Args::new(source, def, name, at, args)?).map(drop)
    })
}

/// The tree of a node at given lengths, with what its leaves list added to `listed`.
pub(super) fn tree(source: &Source, node: &Node, scope: &Scope, listed: &mut u64) -> Result<Tree> {
    Ok(match node {
        Node::Any(nodes) => Tree::Any(trees(source, nodes.iter(), scope, listed)?),
        Node::All(nodes) => Tree::All(trees(source, nodes.iter(), scope, listed)?),
        Node::Not(node) => Tree::Not(Box::new(tree(source, node, scope, listed)?)),
        Node::PerHead(parts) => {
            let mut of_head = vec![0; scope.heads];
            for (number, part) in parts.iter().enumerate() {
                part.heads.iter().for_each(|&head| of_head[head as usize] = number as u32);
            }
            let trees = trees(source, parts.iter().map(|part| &part.pattern), scope, listed)?;
            Tree::PerHead { of_head: of_head.into(), trees }
        }
        Node::Leaf { name, at, args } => {
            let leaf = resolve_leaf(source, name, *at, args, scope)?;
            // No leaf alone lists more than the limit.
            *listed += leaf.listed();
            if *listed > source.limits.get(Limit::Edges) {
                let message = format!("the pattern lists {listed} pairs and tokens up to here");
                return Err(source.beyond(*at, Limit::Edges, message));
            }
            Tree::Leaf(leaf)
        }
    })
}

fn trees<'a>(
    source: &Source,
    nodes: impl Iterator<Item = &'a Node>,
    scope: &Scope,
    listed: &mut u64,
) -> Result<Vec<Tree>> {
    // Arguments that come out wrong at a length are independent of each other.
    let mut faults = Faults::default();
    let trees: Vec<Tree> = nodes.filter_map(|node| faults.keep(tree(source, node, scope, listed))).collect();
    faults.finish(Some(trees))
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

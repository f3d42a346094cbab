//! `grid` and `axial`: tokens that lie on a grid of one to three axes, in row-major order.
//!
//! `grid` is neighborhood attention (Hassani et al., "Neighborhood Attention Transformer", CVPR 2023; dilated:
//! Hassani and Shi, 2022; causal and edges: Hassani et al., 2024). `axial` lets tokens agree on all coordinates
//! but some (Ho et al., "Axial Attention in Multidimensional Transformers", 2019).
//!
//! Both are products over axes, and so are their bounds: queries of a range of tokens are a few boxes of
//! coordinates, the keys of some (or of all) queries of a box are the product of those of each axis, and bounds
//! are as exact as points.

use std::ops::Range;

use smallvec::SmallVec;

use super::bits::fill_set;
use super::node::{ArgDef, Args, Draft, Int, Kind, NodeDef, Scope, leaf};
use super::{Cover, KeySet, Leaf, MAX_LENGTH};
use crate::error::Result;

const SHAPE: ArgDef = ArgDef {
    name: "shape",
    kind: Kind::Integers,
    default: None,
    meaning: "extents of 1 to 3 axes; their product is the number of tokens, the last axis varies fastest",
};

/// `grid`
pub const GRID: NodeDef = NodeDef {
    name: "grid",
    meaning: "a query attends to its neighborhood on a grid (neighborhood attention)",
    args: &[
        SHAPE,
        ArgDef { name: "kernel", kind: Kind::Integers, default: None, meaning: "keys along each axis" },
        ArgDef {
            name: "dilation",
            kind: Kind::Integers,
            default: Some("1 each"),
            meaning: "distance between them; tokens of other residues are other neighborhoods",
        },
        ArgDef {
            name: "edge",
            kind: Kind::Choice(&["clamp", "truncate"]),
            default: Some("clamp"),
            meaning: "at the border, clamp shifts the neighborhood inwards, truncate cuts it",
        },
        ArgDef {
            name: "causal",
            kind: Kind::Flags,
            default: Some("false each"),
            meaning: "axes along which the neighborhood ends at the query",
        },
    ],
    forms: &[],
    example: "grid: {shape: [\"n\"], kernel: [7], dilation: [1], edge: clamp, causal: [false]}",
    read: read_grid,
};

/// `axial`
pub const AXIAL: NodeDef = NodeDef {
    name: "axial",
    meaning: "query and key agree on every coordinate of a grid except along the listed axes",
    args: &[
        SHAPE,
        ArgDef { name: "axes", kind: Kind::Integers, default: None, meaning: "axes to attend along, from 0" },
    ],
    forms: &[],
    example: "axial: {shape: [\"n\", 1], axes: [0]}",
    read: read_axial,
};

/// What a coordinate of the query asks of the key's coordinate on the same axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The same.
    Same,
    /// Nothing.
    Free,
    /// In the neighborhood.
    Near { kernel: i64, dilation: i64, clamp: bool, causal: bool },
}

#[derive(Debug, Clone, Copy)]
struct Axis {
    len: i64,
    /// Tokens from coordinate to coordinate.
    stride: i64,
    rule: Rule,
}

type Axes = SmallVec<[Axis; 3]>;

fn read_shape<'a>(args: &Args<'a>) -> Result<Vec<Int<'a>>> {
    let shape = args.ints("shape", 0, "[64, 64]")?;
    if !(1..=3).contains(&shape.len()) {
        let at = args.require("shape", "[64, 64]")?.at;
        return Err(args.source.error(at, format!("`shape` has {} axes", shape.len()), "1 to 3"));
    }
    Ok(shape)
}

/// Refuses a list that does not have one entry for each axis.
fn check_axes(args: &Args<'_>, key: &'static str, count: usize, axes: usize) -> Result<()> {
    if count == axes {
        return Ok(());
    }
    let at = args.get(key).map_or(args.at, |value| value.at);
    Err(args.source.error(at, format!("`{key}` has {count} entries"), format!("{axes}, one for each axis of `shape`")))
}

/// The axes of a shape at given lengths, without rules.
fn axes_at(args: &Args<'_>, shape: &[Int<'_>], scope: &Scope) -> Result<Axes> {
    let extents = shape.iter().map(|extent| extent.at_most(scope, MAX_LENGTH as i64)).collect::<Result<Vec<_>>>()?;
    let tokens: i128 = extents.iter().map(|&extent| i128::from(extent)).product();
    if tokens != scope.kv_len as i128 {
        let product = extents.iter().map(i64::to_string).collect::<Vec<_>>().join(" x ");
        let message = format!("a grid of {product} has {tokens} tokens");
        let at = args.require("shape", "[64, 64]")?.at;
        return Err(args.source.error(at, message, format!("as many as there are keys, {}", scope.kv_len)));
    }
    let mut axes: Axes = extents.iter().map(|&len| Axis { len, stride: 1, rule: Rule::Same }).collect();
    for i in (1..axes.len()).rev() {
        axes[i - 1].stride = axes[i].stride * axes[i].len;
    }
    Ok(axes)
}

fn read_grid<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let shape = read_shape(&args)?;
    let kernel = args.ints("kernel", 1, "[7, 7]")?;
    check_axes(&args, "kernel", kernel.len(), shape.len())?;
    let dilation = match args.get("dilation") {
        Some(_) => args.ints("dilation", 1, "[1, 1]")?,
        None => vec![Int::constant(1); shape.len()],
    };
    check_axes(&args, "dilation", dilation.len(), shape.len())?;
    let edge = args.choice("edge", &["clamp", "truncate"])?;
    let causal = match args.get("causal") {
        Some(value) => {
            let items = value.list(args.source, "causal", "a list of truth values, such as [true, false]")?;
            items.iter().map(|item| item.boolean(args.source, "causal")).collect::<Result<Vec<_>>>()?
        }
        None => vec![false; shape.len()],
    };
    check_axes(&args, "causal", causal.len(), shape.len())?;
    Ok(Box::new(move |scope| {
        let mut axes = axes_at(&args, &shape, scope)?;
        for (i, axis) in axes.iter_mut().enumerate() {
            let most = MAX_LENGTH as i64;
            let (kernel, dilation) = (kernel[i].at_most(scope, most)?, dilation[i].at_most(scope, most)?);
            axis.rule = Rule::Near { kernel, dilation, clamp: edge == "clamp", causal: causal[i] };
        }
        let list = |number: &dyn Fn(&Axis) -> String| axes.iter().map(number).collect::<Vec<_>>().join(", ");
        let near = |axis: &Axis| match axis.rule {
            Rule::Near { kernel, dilation, causal, .. } => (kernel, dilation, causal),
            Rule::Same | Rule::Free => (1, 1, false),
        };
        let text = format!(
            "grid: {{shape: [{}], kernel: [{}], dilation: [{}], edge: {edge}, causal: [{}]}}",
            list(&|axis| axis.len.to_string()),
            list(&|axis| near(axis).0.to_string()),
            list(&|axis| near(axis).1.to_string()),
            list(&|axis| near(axis).2.to_string()),
        );
        leaf(Grid { tokens: scope.kv_len as i64, end: scope.end(), axes, text })
    }))
}

fn read_axial<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let shape = read_shape(&args)?;
    let written = args.require("axes", "[1]")?;
    let mut free = vec![false; shape.len()];
    for item in written.list(args.source, "axes", "a list of axes, such as [1]")? {
        let axis = item.integer(args.source, "axes", 0, shape.len() as u64 - 1)? as usize;
        if std::mem::replace(&mut free[axis], true) {
            return Err(args.source.error(item.at, format!("axis {axis} is listed twice"), "each axis once"));
        }
    }
    Ok(Box::new(move |scope| {
        let mut axes = axes_at(&args, &shape, scope)?;
        for (axis, &free) in axes.iter_mut().zip(&free) {
            axis.rule = if free { Rule::Free } else { Rule::Same };
        }
        let shape: Vec<String> = axes.iter().map(|axis| axis.len.to_string()).collect();
        let listed: Vec<String> = (0..free.len()).filter(|&i| free[i]).map(|i| i.to_string()).collect();
        let text = format!("axial: {{shape: [{}], axes: [{}]}}", shape.join(", "), listed.join(", "));
        leaf(Grid { tokens: scope.kv_len as i64, end: scope.end(), axes, text })
    }))
}

impl Axis {
    /// Whether coordinate `j` is allowed to coordinate `i`.
    fn allows(&self, i: i64, j: i64) -> bool {
        let Rule::Near { kernel, dilation, clamp, causal } = self.rule else {
            return self.rule == Rule::Free || i == j;
        };
        if i % dilation != j % dilation {
            return false;
        }
        // Among the tokens of one residue the neighborhood is contiguous.
        let count = (self.len - i % dilation + dilation - 1) / dilation;
        let (i, j) = (i / dilation, j / dilation);
        if causal {
            return i - kernel < j && j <= i;
        }
        if clamp {
            let start = (i - kernel / 2).min(count - kernel).max(0);
            return start <= j && j < start + kernel;
        }
        // Of an even kernel the larger half lies before the query.
        i - kernel / 2 <= j && j <= i + (kernel - 1) / 2
    }

    /// The keys of coordinate `i`: from, until and in steps of.
    fn window(&self, i: i64) -> (i64, i64, i64) {
        let Rule::Near { kernel, dilation, clamp, causal } = self.rule else {
            return if self.rule == Rule::Free { (0, self.len, 1) } else { (i, i + 1, 1) };
        };
        let residue = i % dilation;
        let count = (self.len - residue + dilation - 1) / dilation;
        let i = i / dilation;
        let (start, end) = match (causal, clamp) {
            (true, _) => ((i - kernel + 1).max(0), i + 1),
            (_, true) => {
                let start = (i - kernel / 2).min(count - kernel).max(0);
                (start, (start + kernel).min(count))
            }
            _ => ((i - kernel / 2).max(0), (i + (kernel - 1) / 2 + 1).min(count)),
        };
        (residue + start * dilation, residue + (end - 1) * dilation + 1, dilation)
    }

    /// Whether query and key always agree.
    fn is_fixed(&self) -> bool {
        self.rule == Rule::Same || self.len == 1
    }

    /// Keys of at least one of the coordinates (not empty), and keys of all of them.
    fn bounds(&self, range: &Range<i64>) -> Cover {
        let (low, high) = (self.window(range.start), self.window(range.end - 1));
        if low.2 == 1 {
            // Both ends of a window move up with the query.
            let all = match self.rule {
                Rule::Same if range.end - range.start > 1 => KeySet::empty(),
                _ => KeySet::span(high.0, low.1),
            };
            return Cover { some: KeySet::span(low.0, high.1), all };
        }
        let dilation = low.2;
        let mut keys = Vec::new();
        for first in range.start..range.end.min(range.start + dilation) {
            let last = first + (range.end - 1 - first) / dilation * dilation;
            keys.extend((self.window(first).0..self.window(last).1).step_by(dilation as usize));
        }
        keys.sort_unstable();
        let some = KeySet::from_sorted_keys(keys);
        // Two neighbors have different residues, and nothing in common.
        let all = if range.end - range.start == 1 { some.clone() } else { KeySet::empty() };
        Cover { some, all }
    }

    /// Whether the border changes nothing for the coordinates: all see the same offsets.
    fn is_inside(&self, range: &Range<i64>) -> bool {
        let Rule::Near { kernel, dilation, causal, .. } = self.rule else { return true };
        if causal {
            return range.start / dilation >= kernel - 1;
        }
        // The last of each residue is the nearest to the end.
        let last = range.end - 1;
        range.start / dilation >= kernel / 2 && last + (kernel - 1) / 2 * dilation < self.len
    }
}

#[derive(Debug)]
struct Grid {
    axes: Axes,
    tokens: i64,
    /// Position after the last query, which may lie beyond the grid.
    end: i64,
    text: String,
}

/// Ranges of coordinates, one for each axis.
type Box3 = SmallVec<[Range<i64>; 3]>;

impl Grid {
    /// Calls `visit` with boxes that together are the tokens `start..end` (not empty) of `axes`.
    fn boxes(axes: &[Axis], start: i64, end: i64, around: &mut Box3, visit: &mut impl FnMut(&Box3)) {
        let Some((axis, inner)) = axes.split_first() else { return visit(around) };
        let mut part = |range: Range<i64>, start: i64, end: i64| {
            around.push(range);
            Self::boxes(inner, start, end, around, visit);
            around.pop();
        };
        let (first, last) = (start / axis.stride, (end - 1) / axis.stride);
        let (from, until) = (start % axis.stride, (end - 1) % axis.stride + 1);
        if first == last {
            return part(first..first + 1, from, until);
        }
        let whole = first + i64::from(from > 0)..last + i64::from(until == axis.stride);
        if from > 0 {
            part(first..first + 1, from, axis.stride);
        }
        if !whole.is_empty() {
            part(whole, 0, axis.stride);
        }
        if until < axis.stride {
            part(last..last + 1, 0, until);
        }
    }

    /// The tokens whose coordinates lie in the sets.
    fn product(axes: &[Axis], sets: &[&KeySet], offset: i64, out: &mut KeySet) {
        let ([axis, inner @ ..], [set, others @ ..]) = (axes, sets) else { return };
        for &(lo, hi) in set.intervals() {
            if inner.iter().zip(others).all(|(axis, set)| set.covers(0, axis.len)) {
                out.push(offset + lo * axis.stride, offset + hi * axis.stride);
                continue;
            }
            for coordinate in lo..hi {
                Self::product(inner, others, offset + coordinate * axis.stride, out);
            }
        }
    }

    /// The axes up to the last on which query and key may differ, over the tokens of one class modulo the rest.
    fn axes_of_class(&self, step: i64) -> Axes {
        let kept = self.axes.iter().rposition(|axis| !axis.is_fixed()).map_or(0, |last| last + 1);
        self.axes[..kept].iter().map(|&axis| Axis { stride: axis.stride / step, ..axis }).collect()
    }

    /// Bounds on the queries of a range of the tokens (not empty) of `axes`.
    fn keys(axes: &[Axis], queries: Range<i64>) -> Cover {
        let mut cover: Option<Cover> = None;
        Self::boxes(axes, queries.start, queries.end, &mut Box3::new(), &mut |ranges| {
            let bounds: SmallVec<[Cover; 3]> =
                axes.iter().zip(ranges).map(|(axis, range)| axis.bounds(range)).collect();
            let product = |set: fn(&Cover) -> &KeySet| {
                let mut out = KeySet::empty();
                let sets: SmallVec<[&KeySet; 3]> = bounds.iter().map(set).collect();
                Self::product(axes, &sets, 0, &mut out);
                out
            };
            let (some, all) = (product(|bounds| &bounds.some), product(|bounds| &bounds.all));
            cover = Some(match cover.take() {
                None => Cover { some, all },
                Some(before) => Cover { some: before.some.union(&some), all: before.all.intersection(&all) },
            });
        });
        cover.unwrap_or_default()
    }
}

impl Leaf for Grid {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        let k = k as i64;
        let on_grid = |x: i64| (0..self.tokens).contains(&x);
        on_grid(q)
            && on_grid(k)
            && self.axes.iter().all(|axis| {
                let coordinate = |x: i64| x / axis.stride % axis.len;
                axis.allows(coordinate(q), coordinate(k))
            })
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        let inside = queries.start.max(0)..queries.end.min(self.tokens);
        if inside.is_empty() {
            return Cover::default();
        }
        let cover = Self::keys(&self.axes, inside.clone());
        if inside == queries { cover } else { Cover { all: KeySet::empty(), ..cover } }
    }

    fn cover_class(&self, head: usize, first: i64, count: i64, step: i64) -> Cover {
        let last = first + (count - 1) * step;
        if step == 1 || step != self.modulus() as i64 || first < 0 || last >= self.tokens {
            return self.cover(head, first..last + 1);
        }
        // Without the trailing axes, on which a class is one point, its queries stand side by side.
        let cover = Self::keys(&self.axes_of_class(step), first / step..last / step + 1);
        let spread = |keys: KeySet| {
            let mut out = KeySet::empty();
            for &(lo, hi) in keys.intervals() {
                out.push(lo * step, hi * step);
            }
            out
        };
        Cover { some: spread(cover.some), all: spread(cover.all) }
    }

    fn modulus(&self) -> u64 {
        // Trailing axes on which query and key agree are the remainder modulo the tokens behind the last other axis.
        self.axes.iter().rev().find(|axis| !axis.is_fixed()).map_or(1, |axis| axis.stride.max(1) as u64)
    }

    fn words(&self, _: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        if (0..self.tokens).contains(&q) {
            fill_set(blocks, out, &Self::keys(&self.axes, q..q + 1).some);
        }
    }

    fn period(&self) -> Option<u64> {
        self.period_within(&(0..self.tokens.max(self.end)))
    }

    fn period_within(&self, queries: &Range<i64>) -> Option<u64> {
        if queries.start < 0 || queries.end > self.tokens || queries.is_empty() {
            return None;
        }
        let outer = self.axes.first()?;
        if !outer.is_inside(&(queries.start / outer.stride..(queries.end - 1) / outer.stride + 1)) {
            return None;
        }
        // A shift by the first axis's stride moves that coordinate alone. Leading free axes ask nothing, so that
        // the first one that asks counts; if all after it ask for equality, what counts is that q and k are equal
        // modulo its extent, and any shift keeps that.
        let asks = self.axes.iter().position(|axis| axis.rule != Rule::Free);
        let period = match asks.map(|at| &self.axes[at..]) {
            None => 1,
            Some(rest) if rest.iter().all(|axis| axis.rule == Rule::Same) => 1,
            Some([first, ..]) if first.rule == Rule::Same => first.stride,
            Some(_) => outer.stride,
        };
        Some(period as u64)
    }

    fn print(&self) -> String {
        self.text.clone()
    }
}

//! `out -> grad_q, grad_k, grad_v`: reverse mode over the operations, one adjoint rule each.
//!
//! In: a program as [`super::build`] makes it. Out: the same, followed by its gradient, operation by operation from the
//! last to the first; for g the gradient of what a hop gave, and P the weights over their row sums l:
//!
//! ```text
//! z' = spmm p z / l * c       ->  delta += (g · z' - …) / l, h = g / l * c, g' = spmm_t p h; dp gets the pair (h, z)
//! z' = combine z + v * r      ->  gradv += g * r
//! z' = scale_rows z * s       ->  (goes into h)
//! z = solve p / l * c + v * r ->  w = solve_t p g / l * c, gradv += w * r; then as of a hop that read z
//! z' = dropout z              ->  g = dropout g
//! p, l = exp s - m            ->  dp = Σ h zᵀ on the pairs, ds = p ∘ (dp - delta)
//! s' = mods s, s' = scale s   ->  ds = mods' s ds, ds = scale ds
//! s = sddmm (pack q) k        ->  gradq = spmm ds k, gradk += spmm_t ds q
//! ```
//!
//! Where a call gives a factor of rows, what that gets is the sum over queries of the gradient times those rows.
//!
//! The maximum has no gradient: whatever is subtracted cancels. A hop with factor 0 takes no product backward either. What
//! is refused: neighbors in parts.

use std::collections::HashMap;

use super::{Body, Extent, Factor, Loop, Names, Op, Operation, Program, Space, Tensor, Value, ValueId};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mask::RowOrder;

/// Adds the gradient. Tensors become f32, as gradients are sums. With `dropout`, weights and what every hop gives are what
/// the rates of a call leave, forward and backward.
///
/// # Errors
/// [`crate::Error::Internal`] for neighbors in parts, and for a program that does not end in its output.
pub fn derive_gradient(mut program: Program, dropout: bool) -> Result<Program> {
    if program.neighbors.parts > 1 {
        return Err(program.broken("a gradient over neighbors in parts"));
    }
    program.shape.dtype = Dtype::F32;
    program.shape.store = Dtype::F32;
    let ordered = program.sets().flat_map(|set| &set.masks).any(|mask| mask.order != RowOrder::Identity);
    if dropout && !program.others.is_empty() && ordered {
        return Err(Error::unsupported(
            "dropout with hops whose patterns put queries in orders of their own",
            "patterns without global queries, grids and residue classes, or no dropout",
        ));
    }
    insert_products(&mut program.body);
    let solved = program.body.ops().any(|operation| matches!(operation.op, Op::Solve { .. }));
    if dropout && solved {
        return Err(Error::unsupported(
            "dropout with hops without end",
            "dropout with a number of hops, or `hops: all` without dropout",
        ));
    }
    if dropout {
        insert_dropout(&mut program.body);
    }
    insert_raw_scores(&mut program.body);
    let of_loop = |one: &Loop| one.ops().map(|operation| (one.set, operation.clone())).collect::<Vec<_>>();
    let (sets, forward): (Vec<u32>, Vec<Operation>) = program.body.loops.iter().flat_map(of_loop).unzip();
    let last = forward.last().and_then(|operation| operation.results.first().copied());
    let out = last.filter(|&result| program.body.extent(result) == Extent::Tensor(Tensor::Out));
    let (Some(out), Some(v)) = (out, program.body.tensor(Tensor::V)) else {
        return Err(program.broken("a gradient of a program that does not end in its output"));
    };
    let (head_dim, value_dim) = (program.shape.head_dim, program.shape.value_dim);
    let mut adjoint = Adjoint::new(std::mem::take(&mut program.body), v, out, [head_dim, value_dim]);
    adjoint.apart = !program.others.is_empty();
    for (at, (operation, set)) in forward.iter().zip(sets).enumerate().rev() {
        adjoint.set = set;
        adjoint.step(operation, &forward);
        // Hop by hop, what made the scores follows each.
        while matches!(operation.op, Op::Exp { .. }) && adjoint.products.contains_key(&set) {
            let of_scores = forward[..at].iter().rev().take_while(|other| adjoint.is_of_scores(other));
            of_scores.collect::<Vec<_>>().into_iter().for_each(|other| adjoint.step(other, &forward));
            adjoint.step(operation, &forward);
        }
    }
    adjoint.finish(&forward);
    program.body = adjoint.body;
    program.body.normalise();
    Ok(program)
}

/// `z = spmm p y * S + v * R -> y' = spmm p y, z = scale_rows y' * S, z = combine z + v * R` where a call gives S: its
/// derivative takes the product without it.
fn insert_products(body: &mut Body) {
    let mut names = Names::of(body);
    for mut one in std::mem::take(&mut body.loops) {
        let operation = one.stages.first_mut().and_then(|stage| stage.ops.first_mut());
        let (scale, plus, result, product) = match operation {
            Some(Operation { op: Op::Spmm { factor, plus, .. }, results }) if factor.is_given() => {
                let &Value { space, extent, .. } = body.value(results[0]);
                let product = names.add(body, "y", space, Extent::All);
                let scale = std::mem::replace(factor, Factor::ONE);
                let result = std::mem::replace(&mut results[0], product);
                (scale, plus.take().map(|plus| (plus, names.add(body, "z", space, extent))), result, product)
            }
            _ => {
                body.loops.push(one);
                continue;
            }
        };
        let set = one.set;
        body.loops.push(one);
        let mut add = |op, result| body.loops.push(Loop { set, ..Loop::of(op, &[result]) });
        let scaled = plus.map_or(result, |(_, scaled)| scaled);
        add(Op::ScaleRows { x: product, l: None, factor: scale }, scaled);
        if let Some(((y, factor), x)) = plus {
            add(Op::Combine { x, y, factor }, result);
        }
    }
}

/// `spmm p z -> p' = dropout (copy p), dropout (spmm p' z) hop i`.
fn insert_dropout(body: &mut Body) {
    let mut names = Names::of(body);
    let mut renamed: HashMap<ValueId, ValueId> = HashMap::new();
    let mut loops = std::mem::take(&mut body.loops).into_iter().peekable();
    let (mut done, mut hop) = (Vec::new(), 0);
    while let Some(mut one) = loops.next() {
        let mut behind = None;
        for operation in one.stages.iter_mut().flat_map(|stage| &mut stage.ops) {
            operation.op.rename(|id| renamed.get(&id).copied().unwrap_or(id));
            behind = Some((operation.op.clone(), operation.results[0]));
        }
        let set = one.set;
        done.push(one);
        let Some((op, result)) = behind else { continue };
        let name = body.value(result).name.clone();
        let mut add = |body: &mut Body, op: Op, to: &mut Vec<Loop>| {
            let extent = if matches!(op, Op::Copy { .. }) { Extent::All } else { body.value(result).extent };
            let added = names.add(body, &name, body.value(result).space, extent);
            to.push(Loop { set, ..Loop::of(op, &[added]) });
            added
        };
        match op {
            Op::Exp { .. } => {
                let copy = add(body, Op::Copy { x: result }, &mut done);
                let left = add(body, Op::Dropout { x: copy, hop: None }, &mut done);
                renamed.insert(result, left);
            }
            Op::Spmm { .. } | Op::ScaleRows { .. } | Op::Combine { .. } => {
                let goes_on =
                    |next: &Loop| next.ops().any(|next| matches!(next.op, Op::ScaleRows { .. } | Op::Combine { .. }));
                if !loops.peek().is_some_and(goes_on) {
                    let left = add(body, Op::Dropout { x: result, hop: Some(hop) }, &mut done);
                    renamed.insert(result, left);
                    hop += 1;
                }
            }
            _ => {}
        }
    }
    body.loops = done;
}

/// `s' = mods s -> raw = copy s; s' = mods s`: their derivative takes the scores before them.
fn insert_raw_scores(body: &mut Body) {
    let mut names = Names::of(body);
    for one in std::mem::take(&mut body.loops) {
        let scores = one.ops().find_map(|operation| match operation.op {
            Op::Mods { s, .. } => Some(s),
            _ => None,
        });
        if let Some(s) = scores {
            let raw = names.add(body, "raw", Space::Pairs, Extent::All);
            body.loops.push(Loop { set: one.set, ..Loop::of(Op::Copy { x: s }, &[raw]) });
        }
        body.loops.push(one);
    }
}

/// The gradient so far.
struct Adjoint {
    body: Body,
    names: Names,
    v: ValueId,
    value_dim: usize,
    grad_out: ValueId,
    /// Sums so far: their last names.
    grad_k: ValueId,
    grad_v: ValueId,
    /// Of rows and of pairs, what their gradient is.
    rows: HashMap<ValueId, ValueId>,
    pairs: HashMap<ValueId, ValueId>,
    /// What the product of a hop has become behind it, where that is in its place.
    behind: HashMap<ValueId, Behind>,
    /// For every set of neighbors, Σ of its weights times their gradient, over the row sums.
    delta: HashMap<u32, ValueId>,
    /// For every set, whose products are its weights' gradient, from the last hop on.
    products: HashMap<u32, Vec<Product>>,
    /// The gradient of scores is taken hop by hop: sets of several hops beside sets of one would be products of rows of
    /// different widths.
    apart: bool,
    dropout: bool,
    grad_q: Option<ValueId>,
    /// The set of the operation in work.
    set: u32,
}

/// What a hop got back, divided by its row sums, and what it read: their product on the pairs is its share of the weights'
/// gradient. And its share of their sums.
#[derive(Debug, Clone, Copy)]
struct Product {
    h: ValueId,
    z: ValueId,
    delta: ValueId,
}

#[derive(Debug, Clone, Copy)]
struct Behind {
    last: ValueId,
    plus: Option<(ValueId, Factor)>,
    hop: Option<u32>,
    scale: Factor,
}

impl Adjoint {
    fn new(mut body: Body, v: ValueId, out: ValueId, [head_dim, value_dim]: [usize; 2]) -> Self {
        let mut names = Names::of(&body);
        let mut given = |name, space, tensor| names.add(&mut body, name, space, Extent::Tensor(tensor));
        let grad_out = given("g", Space::Queries(value_dim), Tensor::GradOut);
        let grad_k = given("gradk", Space::Keys(head_dim), Tensor::GradK);
        let grad_v = given("gradv", Space::Keys(value_dim), Tensor::GradV);
        Self {
            body,
            names,
            v,
            value_dim,
            grad_out,
            grad_k,
            grad_v,
            rows: HashMap::from([(out, grad_out)]),
            pairs: HashMap::new(),
            behind: HashMap::new(),
            delta: HashMap::new(),
            products: HashMap::new(),
            apart: false,
            dropout: false,
            grad_q: None,
            set: 0,
        }
    }

    /// Whether an operation is one of those that make scores.
    fn is_of_scores(&self, operation: &Operation) -> bool {
        let made = operation.results.iter().map(|&id| self.body.value(id).space);
        made.into_iter().all(|space| matches!(space, Space::Pairs | Space::Packed(_) | Space::Query))
    }

    fn step(&mut self, operation: &Operation, forward: &[Operation]) {
        let result = operation.results[0];
        let behind = |this: &Self| this.behind.get(&result).copied();
        let unchanged = Behind { last: result, plus: None, hop: None, scale: Factor::ONE };
        match &operation.op {
            Op::Dropout { x, hop: None } => {
                self.dropout = true;
                self.behind.insert(*x, unchanged);
            }
            Op::Dropout { x, hop: Some(hop) } => {
                self.behind.insert(*x, Behind { hop: Some(*hop), ..unchanged });
                let Some(mut g) = self.rows.remove(&result) else { return };
                if g == self.grad_out {
                    g = self.emit("g", Space::Queries(self.value_dim), Op::Copy { x: g });
                }
                let space = self.body.value(g).space;
                g = self.emit("g", space, Op::Dropout { x: g, hop: Some(*hop) });
                self.rows.insert(*x, g);
            }
            Op::Combine { x, y, factor } => {
                let after = behind(self).unwrap_or(unchanged);
                self.behind.insert(*x, Behind { plus: Some((*y, *factor)), ..after });
                let Some(g) = self.rows.remove(&result) else { return };
                self.add_rows(*y, g, *factor);
                self.sum_given(g, *y, *factor);
                self.rows.insert(*x, g);
            }
            Op::ScaleRows { x, factor, .. } => {
                let after = behind(self).unwrap_or(unchanged);
                self.behind.insert(*x, Behind { scale: *factor, ..after });
                let Some(g) = self.rows.remove(&result) else { return };
                self.sum_given(g, *x, *factor);
                self.rows.insert(*x, g);
            }
            Op::Spmm { p, z, l, factor, plus, .. } => {
                let Some(g) = self.rows.remove(&result) else { return };
                let Behind { last, plus: combined, hop, scale } = behind(self).unwrap_or(unchanged);
                if let Some((rows, factor)) = plus {
                    self.add_rows(*rows, g, *factor);
                    self.sum_given(g, *rows, *factor);
                }
                if factor.is_zero() {
                    return;
                }
                // One that is given stands apart.
                let factor = if scale == Factor::ONE { *factor } else { scale };
                let minus = plus.or(combined);
                let delta = self.add_delta(Op::DotRows { x: g, y: last, minus, hop, l: *l, onto: None });
                let width = Space::Queries(self.value_dim);
                let h = self.emit("h", width, Op::ScaleRows { x: g, l: *l, factor });
                self.products.entry(self.set).or_default().push(Product { h, z: *z, delta });
                if *z == self.v {
                    self.grad_v = self.onto(self.grad_v, |onto| Op::SpmmT { p: *p, x: h, onto: Some(onto) });
                } else {
                    let onto = self.rows.get(z).copied();
                    let before = self.emit("g", Space::Keys(self.value_dim), Op::SpmmT { p: *p, x: h, onto });
                    self.rows.insert(*z, before);
                }
            }
            Op::Solve { p, l, factor, plus: (rows, restart) } => {
                let Some(g) = self.rows.remove(&result) else { return };
                let width = Space::Queries(self.value_dim);
                let w = self.emit("w", width, Op::SolveT { p: *p, x: g, l: *l, factor: *factor });
                if factor.is_given() {
                    // The product without its factor.
                    let product =
                        Op::Spmm { p: *p, z: result, l: Some(*l), factor: Factor::ONE, plus: None, onto: None };
                    let y = self.emit("y", width, product);
                    self.sum_given(w, y, *factor);
                }
                self.add_rows(*rows, w, *restart);
                self.sum_given(w, *rows, *restart);
                let minus = Some((*rows, *restart));
                let delta = self.add_delta(Op::DotRows { x: w, y: result, minus, hop: None, l: Some(*l), onto: None });
                let h = self.emit("h", width, Op::ScaleRows { x: w, l: Some(*l), factor: *factor });
                self.products.entry(self.set).or_default().push(Product { h, z: result, delta });
            }
            Op::Exp { s, .. } => {
                let Some(&delta) = self.delta.get(&self.set) else { return };
                let mut products = self.products.remove(&self.set).unwrap_or_default();
                if self.apart && products.len() > 1 {
                    let rest = products.split_off(1);
                    self.products.insert(self.set, rest);
                }
                let delta = if self.apart { products[0].delta } else { delta };
                let several = products.len() > 1;
                let (mut x, mut y) = (Vec::new(), Vec::new());
                for Product { h, mut z, .. } in products.into_iter().rev() {
                    // They lie side by side.
                    if z == self.v && several {
                        z = self.emit("z0", Space::Keys(self.value_dim), Op::Copy { x: z });
                    }
                    x.push(h);
                    y.push(z);
                }
                let packed = Space::Packed(x.len() * self.value_dim);
                let x = self.emit("ht", packed, Op::Pack { x, factor: 1.0 });
                let dp = self.emit("dp", Space::Pairs, Op::Sddmm { x, y, masked: false });
                let dropout = self.dropout;
                let op = Op::SoftmaxGradient { p: result, dp, delta, factor: 1.0, dropout };
                let ds = self.emit("ds", Space::Pairs, op);
                self.pairs.insert(*s, ds);
            }
            Op::Mask { s } => {
                if let Some(ds) = self.pairs.remove(&result) {
                    self.pairs.insert(*s, ds);
                }
            }
            Op::Mods { s, factor, .. } => {
                let Some(ds) = self.pairs.remove(&result) else { return };
                let raw = forward.iter().find(|other| matches!(other.op, Op::Copy { x } if x == *s));
                let raw = raw.map_or(*s, |copy| copy.results[0]);
                let ds = self.emit("ds", Space::Pairs, Op::ModsGradient { s: raw, ds, factor: *factor });
                self.pairs.insert(*s, ds);
            }
            Op::Scale { s, factor } => {
                let Some(ds) = self.pairs.remove(&result) else { return };
                let ds = self.emit("ds", Space::Pairs, Op::Scale { s: ds, factor: *factor });
                self.pairs.insert(*s, ds);
            }
            Op::Sddmm { x, y, .. } => {
                let Some(mut ds) = self.pairs.remove(&result) else { return };
                let pack = forward.iter().find(|other| other.results.contains(x)).map(|pack| &pack.op);
                let (Some(Op::Pack { x: q, factor }), [k]) = (pack, y.as_slice()) else { return };
                if *factor != 1.0 {
                    ds = self.emit("ds", Space::Pairs, Op::Scale { s: ds, factor: *factor });
                }
                self.grad_k = self.onto(self.grad_k, |onto| Op::SpmmT { p: ds, x: q[0], onto: Some(onto) });
                self.write_grad_q(ds, *k, 1.0);
            }
            Op::Copy { x } if self.rows.contains_key(&result) => {
                if let Some(g) = self.rows.remove(&result) {
                    self.rows.insert(*x, g);
                }
            }
            // Their results are parts of the rules of what reads them, and the maximum cancels.
            Op::Pack { .. } | Op::Copy { .. } | Op::RowMax { .. } => {}
            Op::Join { .. }
            | Op::SumRows { .. }
            | Op::SolveT { .. }
            | Op::DotRows { .. }
            | Op::SoftmaxGradient { .. }
            | Op::ModsGradient { .. }
            | Op::SpmmT { .. }
            | Op::AddRows { .. } => {}
        }
    }

    /// Where no hop takes a product, the gradient of the queries is 0.
    fn finish(&mut self, forward: &[Operation]) {
        let weights = forward.iter().find(|operation| matches!(operation.op, Op::Exp { .. }));
        if let (None, Some(weights), Some(k)) = (self.grad_q, weights, self.body.tensor(Tensor::K)) {
            self.write_grad_q(weights.results[0], k, 0.0);
        }
    }

    fn write_grad_q(&mut self, ds: ValueId, k: ValueId, factor: f64) {
        let width = match self.body.value(k).space {
            Space::Keys(width) => width,
            _ => 0,
        };
        let extent = Extent::Tensor(Tensor::GradQ);
        let result = self.names.add(&mut self.body, "gradq", Space::Queries(width), extent);
        let op = Op::Spmm { p: ds, z: k, l: None, factor: Factor::fixed(factor), plus: None, onto: self.grad_q };
        self.push(op, result);
        self.grad_q = Some(result);
    }

    /// Adds `factor · g` to the gradient of `rows`.
    fn add_rows(&mut self, rows: ValueId, g: ValueId, factor: Factor) {
        if rows == self.v {
            self.grad_v = self.onto(self.grad_v, |onto| Op::AddRows { x: g, factor, onto });
            return;
        }
        let sum = match self.rows.get(&rows).copied() {
            Some(onto) => self.onto(onto, |onto| Op::AddRows { x: g, factor, onto }),
            None => self.emit("g", Space::Queries(self.value_dim), Op::ScaleRows { x: g, l: None, factor }),
        };
        self.rows.insert(rows, sum);
    }

    /// Adds a hop's share to the sums of its set.
    fn add_delta(&mut self, mut share: Op) -> ValueId {
        if let (Op::DotRows { onto, .. }, false) = (&mut share, self.apart) {
            *onto = self.delta.get(&self.set).copied();
        }
        let delta = self.emit("delta", Space::Query, share);
        self.delta.insert(self.set, delta);
        delta
    }

    fn push(&mut self, op: Op, result: ValueId) {
        self.body.loops.push(Loop { set: self.set, ..Loop::of(op, &[result]) });
    }

    /// What the call gives in `factor` gets, for the gradient `g` of rows that have been multiplied with it.
    fn sum_given(&mut self, g: ValueId, rows: ValueId, factor: Factor) {
        if factor.is_given() {
            let op = Op::DotRows { x: g, y: rows, minus: None, hop: None, l: None, onto: None };
            let x = self.emit("d", Space::Query, op);
            self.emit("d", Space::Query, Op::SumRows { x, column: factor.column, factor: factor.slope });
        }
    }

    /// An operation that adds to `onto`, and what that is called behind it.
    fn onto(&mut self, onto: ValueId, op: impl FnOnce(ValueId) -> Op) -> ValueId {
        let value = self.body.value(onto).clone();
        let result = self.names.add(&mut self.body, &value.name, value.space, value.extent);
        self.push(op(onto), result);
        result
    }

    fn value(&mut self, name: &str, space: Space) -> ValueId {
        self.names.add(&mut self.body, name, space, Extent::All)
    }

    fn emit(&mut self, name: &str, space: Space, op: Op) -> ValueId {
        let result = self.value(name, space);
        self.push(op, result);
        result
    }
}

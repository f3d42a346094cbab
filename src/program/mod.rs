//! The program: what a kernel computes, as operations on named values, and the nest in which it computes it.
//!
//! In: a spec and its [`BlockMask`]. Out: a [`Program`]. [`build`] writes the definition: one operation a step, each
//! in a row loop of its own, every value kept for all rows. [`derive_gradient`] adds the gradient, an adjoint rule for
//! each operation. [`crate::passes`] rewrite operations, move them into common loops and shorten what is kept. [`verify`]
//! recomputes every dependence from the block mask and accepts any legal nest; a [`VerifiedProgram`] is the only thing
//! that later steps take.
//!
//! **Spaces.** A value is rows of a tensor (one for each query, or one for each key), packed queries, one number for
//! each neighbor pair, or one number for each query.
//!
//! **In place.** An operation over pairs that turns one number into another (scale, mods, mask, exp, dropout, the
//! gradients of softmax and mods) writes where it reads; so do `combine`, `dropout` of rows, and everything that adds
//! `onto` a value. Its result is the same buffer ([`Body::root`]), and its operand cannot be read any more.
//!
//! **The nest.** A loop runs over the block rows of a head, its stages in order at each step; a stage with shift `r`
//! works on the row `r` behind the newest. A stage is one function of the kernel: over whole rows, one operation after
//! the other, or `by keys`, all its operations on some keys of the row before the next keys (with an online softmax
//! where the row's maximum is found on the way). Loops follow each other. What a value keeps is its [`Extent`].
//!
//! The whole language, as its text form:
//!
//! ```text
//! program heads H kv_heads G q_len M kv_len N head_dim D value_dim E [dtype T] [store T]
//! [given NAME COLUMNS any | share | positive]   numbers for each head that come with the call
//! blocks test every | blocks test partial
//! for [part,] row [, set N] [, edges by B] [, halo] {   one loop; `part`: for every part of a head
//!   at row [- SHIFT] [by keys] {                one stage
//!     qt = pack q * C                           packed, scaled queries; several rows side by side: pack h1 h2 * C
//!     s = sddmm qt k                            scores on the neighbor pairs; several: sddmm ht z0 z1
//!     s, m = sddmm qt k with mask rowmax        masked and reduced in the tile's epilogue (either, or both)
//!     s = scale s * C
//!     r = copy s                                of pairs or rows
//!     s = mods s {                              score mods in order, as [`ScoreMods`] prints them
//!       positions …, input …, softcap …
//!     } * C [with mask rowmax]
//!     s = mask s                                scores outside the neighbors become -inf
//!     m = rowmax s
//!     p, l = exp BASE s - m [with mask]         p = BASE^(s - m), l its row sums; BASE is e or 2
//!     p = dropout p [hop N]                     of pairs, or of rows behind hop N
//!     z = spmm p v [/ l] * C [+ w * C] [onto z] rows of queries
//!     z = solve p / l * C + v * C               z = C (p z) / l + C v, row after row
//!     w = solve_t p g / l * C                   w = pᵀ (C w / l) + g, from the last row on
//!     z = combine y + v * C
//!     out = join y                              of the parts of a head
//!     h = scale_rows g [/ l] * C
//!     delta = dot_rows g z [- v * C] [hop N] [/ l] [onto delta]
//!     ds [, p] = softmax' p dp - delta * C [with dropout]
//!     ds = mods' r ds * C
//!     g = spmm_t p h [onto g]                   rows of keys
//!     g = add_rows h * C onto g
//!     d = sum_rows d * C in COLUMN              over all queries, to the gradient of what the call gives
//!   }
//! }
//! keep NAME EXTENT [STORE]                      all | ring R | row | keys | tensor NAME
//! neighbors
//! …the block mask's own text form…
//! [neighbors of set N …]                        hops with patterns of their own
//! ```
//!
//! A factor C on rows may hold what a call gives for the head: `1-1@0` is 1 less the number in column 0.
//!
//! Every operation names its results anew (`s`, `s.1`, `s.2`, …), also where it works in place. Tensors that are given
//! come first among the values, then results in the order of the operations; values written in place have the extent and
//! the store of their root, and only roots have a `keep` line.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::dtype::Dtype;
use crate::error::Error;
use crate::mask::BlockMask;
use crate::spec::Given;
use crate::spec::score::ScoreMods;

mod build;
mod gradient;
mod op;
mod parse;
mod print;
mod reach;
mod spaces;
mod verify;

pub use build::{build, build_hops};
pub use gradient::derive_gradient;
pub use op::{Access, Base, Factor, Op};
pub use parse::{parse, parse_nest};
pub use print::print_nest;
pub use reach::{KnownReach, Reach, Reaches, is_lower_triangular, reaches};
pub use spaces::spaces;
pub use verify::{VerifiedProgram, check_nest, verify};

/// What a kernel computes for every head.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// Sizes and types.
    pub shape: Shape,
    /// Which blocks have their mask words tested.
    pub block_test: BlockTest,
    /// Operations and their nest.
    pub body: Body,
    /// Who meets whom: blocks, gathered panels and scattered edges, per head.
    pub neighbors: BlockMask,
    /// The same of further sets, where hops have patterns of their own ([`Loop::set`]).
    pub others: Vec<BlockMask>,
}

/// Sizes and types of the tensors around a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Query heads, as the mask counts them ([`BlockMask::stack`]).
    pub heads: usize,
    /// Key/value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Width of a query or key.
    pub head_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Storage of q, k, v and the output.
    pub dtype: Dtype,
    /// Storage of weights that is allowed where they are kept: f32 or bf16.
    pub store: Dtype,
}

/// Which blocks have their mask words tested.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BlockTest {
    /// All: a full block is tested against words of ones.
    Every,
    /// Partial ones; full blocks go without.
    #[default]
    Partial,
}

/// Operations, in the loops that run them, and what their values keep.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Body {
    /// What a call gives for each head besides tensors.
    pub given: Option<Given>,
    /// Every value, tensors first.
    pub values: Vec<Value>,
    /// The loops, one after the other.
    pub loops: Vec<Loop>,
}

/// A name for one value of a body, its index in [`Body::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Its name, alone in the body.
    pub name: String,
    /// What it is a number, or a row, for.
    pub space: Space,
    /// How much of it is kept; of a value written in place, that of its [`Body::root`].
    pub extent: Extent,
    /// How it is stored where it is kept beyond its row: f32, or bf16 for pairs.
    pub store: Dtype,
}

/// What a value is a number, or a row, for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// A row of so many numbers for every query.
    Queries(usize),
    /// A row of so many numbers for every key.
    Keys(usize),
    /// Queries packed for the score tile, rows of so many numbers.
    Packed(usize),
    /// A number for every neighbor pair.
    Pairs,
    /// A number for every query.
    Query,
}

/// How much of a value is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// A tensor of the call.
    Tensor(Tensor),
    /// All rows.
    All,
    /// The newest block rows, so many.
    Ring(u32),
    /// The block row in work.
    Row,
    /// Some keys of the block row in work.
    Keys,
}

/// A tensor of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tensor {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The output.
    Out,
    /// The gradient of the output, read.
    GradOut,
    /// The gradient of the queries, written.
    GradQ,
    /// The gradient of the keys, added to.
    GradK,
    /// The gradient of the values, added to.
    GradV,
}

/// One loop over the block rows of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Loop {
    /// Run once for every part of a head ([`BlockMask::parts`]); a `join` brings the parts together.
    pub parts: bool,
    /// Which set of neighbors its pairs are of: 0 for [`Program::neighbors`], else one more than a place in
    /// [`Program::others`].
    pub set: u32,
    /// Scattered edges of so many block rows are computed together, ahead of their rows; 1 for row by row.
    pub edge_rows: u32,
    /// Rows of a head may be cut into stretches, each of which computes the rows near its border for itself.
    pub halo: bool,
    /// What is done at each step, in order.
    pub stages: Vec<Stage>,
}

/// One function of a kernel: what is done on one block row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stage {
    /// Block rows behind the loop's newest.
    pub shift: u32,
    /// All operations on some keys before the next keys, instead of one operation after the other on whole rows.
    pub by_keys: bool,
    /// Operations in order.
    pub ops: Vec<Operation>,
}

/// An operation with its results.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// What is computed.
    pub op: Op,
    /// The values it defines, in the order that [`Op`] gives.
    pub results: SmallVec<[ValueId; 2]>,
}

impl Body {
    /// The value that `id` names.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// All operations, in the order in which a row meets them.
    pub fn ops(&self) -> impl Iterator<Item = &Operation> {
        self.loops.iter().flat_map(|l| &l.stages).flat_map(|stage| &stage.ops)
    }

    /// The operation that defines a value; `None` for a tensor that is given.
    pub fn definition(&self, id: ValueId) -> Option<&Operation> {
        self.ops().find(|operation| operation.results.contains(&id))
    }

    /// The value whose buffer `id` is written into: the first of a chain of operations in place.
    pub fn root(&self, id: ValueId) -> ValueId {
        let mut id = id;
        while let Some(operation) = self.definition(id) {
            let at = operation.results.iter().position(|&result| result == id).unwrap_or(0);
            match operation.op.in_place()[at.min(1)] {
                Some(operand) => id = operand,
                None => break,
            }
        }
        id
    }

    /// What the buffer of a value keeps.
    pub fn extent(&self, id: ValueId) -> Extent {
        self.value(self.root(id)).extent
    }

    /// The value that is a tensor of the call, if the body has one.
    pub fn tensor(&self, tensor: Tensor) -> Option<ValueId> {
        let at = self.values.iter().position(|value| value.extent == Extent::Tensor(tensor))?;
        Some(ValueId(at as u32))
    }

    /// The root of every value, by its number: what [`Body::root`] finds one by one.
    pub fn roots(&self) -> Vec<ValueId> {
        let mut roots: Vec<ValueId> = (0..self.values.len() as u32).map(ValueId).collect();
        // Operands are defined before what is written in their place.
        for operation in self.ops() {
            for (result, operand) in operation.results.iter().zip(operation.op.in_place()) {
                if let Some(operand) = operand {
                    roots[result.0 as usize] = roots[operand.0 as usize];
                }
            }
        }
        roots
    }

    /// Brings values into the order of the text form, leaves out those that no operation names, and gives every value
    /// the extent and the store of its root.
    pub(crate) fn normalise(&mut self) {
        let roots = self.roots();
        let mut number: Vec<Option<ValueId>> = vec![None; self.values.len()];
        let mut order = Vec::with_capacity(self.values.len());
        let mut take = |id: ValueId| {
            if number[id.0 as usize].is_none() {
                number[id.0 as usize] = Some(ValueId(order.len() as u32));
                order.push(id);
            }
        };
        let mut given = vec![true; self.values.len()];
        let mut named = vec![false; self.values.len()];
        for operation in self.ops() {
            operation.results.iter().for_each(|result| given[result.0 as usize] = false);
            operation.op.reads().iter().for_each(|(operand, _)| named[operand.0 as usize] = true);
        }
        let tensor = |id: usize| matches!(self.values[id].extent, Extent::Tensor(_));
        (0..self.values.len())
            .filter(|&id| given[id] && named[id] && tensor(id))
            .for_each(|id| take(ValueId(id as u32)));
        self.ops().flat_map(|operation| &operation.results).for_each(|&result| take(result));
        let values: Vec<Value> = order
            .iter()
            .map(|id| {
                let Value { extent, store, .. } = self.values[roots[id.0 as usize].0 as usize];
                Value { extent, store, ..self.values[id.0 as usize].clone() }
            })
            .collect();
        let rename = |id: ValueId| number[id.0 as usize].unwrap_or(id);
        for operation in self.loops.iter_mut().flat_map(|l| &mut l.stages).flat_map(|stage| &mut stage.ops) {
            operation.op.rename(rename);
            operation.results.iter_mut().for_each(|result| *result = rename(*result));
        }
        self.values = values;
    }

    /// The hops: operations that multiply weights with values, up to the one that makes the output.
    pub fn hops(&self) -> usize {
        let roots = self.roots();
        let out = |operation: &Operation| {
            let of = |result: &ValueId| self.value(roots[result.0 as usize]).extent == Extent::Tensor(Tensor::Out);
            operation.results.iter().any(of)
        };
        let end = self.ops().position(out).map_or(0, |at| at + 1);
        let is_hop = |operation: &&Operation| matches!(operation.op, Op::Spmm { .. } | Op::Solve { .. });
        self.ops().take(end).filter(is_hop).count()
    }

    /// Whether a gradient has been added.
    pub fn is_training(&self) -> bool {
        // That of the output goes unread where all factors are 0.
        self.tensor(Tensor::GradQ).is_some()
    }

    /// The score mods, if there are any.
    pub fn mods(&self) -> Option<&ScoreMods> {
        self.ops().find_map(|operation| match &operation.op {
            Op::Mods { mods, .. } => Some(mods),
            _ => None,
        })
    }
}

/// Adds values to a body, each under a name that no other has.
pub(crate) struct Names {
    taken: HashMap<String, u32>,
}

impl Names {
    /// The names of a body.
    pub(crate) fn of(body: &Body) -> Self {
        Self { taken: body.values.iter().map(|value| (value.name.clone(), 0)).collect() }
    }

    /// Adds a value that is called `name`, or `name.1`, `name.2`, …
    pub(crate) fn add(&mut self, body: &mut Body, name: &str, space: Space, extent: Extent) -> ValueId {
        let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
        let mut free = name.to_owned();
        while self.taken.contains_key(&free) {
            let last = self.taken.entry(stem.to_owned()).or_insert(0);
            *last += 1;
            free = format!("{stem}.{last}");
        }
        self.taken.insert(free.clone(), 0);
        body.values.push(Value { name: free, space, extent, store: Dtype::F32 });
        ValueId((body.values.len() - 1) as u32)
    }
}

impl Default for Loop {
    fn default() -> Self {
        Self { parts: false, set: 0, edge_rows: 1, halo: false, stages: Vec::new() }
    }
}

impl Loop {
    /// A loop of one operation.
    pub(crate) fn of(op: Op, results: &[ValueId]) -> Self {
        let ops = vec![Operation { op, results: results.into() }];
        Self { stages: vec![Stage { shift: 0, by_keys: false, ops }], ..Self::default() }
    }

    /// Whether its rows follow each other, each from those before it.
    pub fn is_in_order(&self) -> bool {
        self.ops().any(|operation| matches!(operation.op, Op::Solve { .. } | Op::SolveT { .. }))
    }

    /// All its operations, in order.
    pub fn ops(&self) -> impl Iterator<Item = &Operation> {
        self.stages.iter().flat_map(|stage| &stage.ops)
    }
}

impl Program {
    /// All sets of neighbors.
    pub fn sets(&self) -> impl Iterator<Item = &BlockMask> {
        std::iter::once(&self.neighbors).chain(&self.others)
    }

    /// The same, to be rewritten.
    pub(crate) fn sets_mut(&mut self) -> impl Iterator<Item = &mut BlockMask> {
        std::iter::once(&mut self.neighbors).chain(&mut self.others)
    }

    /// An internal error about this program.
    pub(crate) fn broken(&self, message: impl Into<String>) -> Error {
        Error::internal("program", message, self.print())
    }
}

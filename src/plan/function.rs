//! The functions of a kernel: every stage of the nest, with the storage of its operands resolved ([`super::resolve`]).

use crate::dtype::Dtype;
use crate::program::{Factor, Tensor, ValueId};

/// Operands that a function can have.
pub const MOST_OPERANDS: usize = 24;
/// Factors that a function can have.
pub const MOST_FACTORS: usize = 8;

/// All functions of a kernel, and who calls them.
#[derive(Debug, Clone, PartialEq)]
pub struct Functions {
    /// Distinct functions.
    pub functions: Vec<RowFunction>,
    /// For every loop, for every stage, the call.
    pub calls: Vec<Vec<StageCall>>,
}

/// How a stage calls its function.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCall {
    /// Index in [`Functions::functions`].
    pub function: usize,
    /// What the function's operands are, in order.
    pub operands: Vec<Operand>,
    /// What its factors are.
    pub factors: Vec<Factor>,
    /// The hop whose dropout it concerns.
    pub hop: Option<u32>,
}

/// An operand of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A tensor of the call.
    Tensor(Tensor),
    /// Rows kept in the head's workspace.
    Rows(ValueId),
    /// Packed queries kept in the head's workspace.
    Packed(ValueId),
    /// Panels kept in the head's workspace.
    Panels(ValueId),
    /// Scattered edges' pairs kept beside panels.
    Edges(ValueId),
    /// A number for every query, by place.
    Lanes(ValueId),
}

/// What the code of a function does on a block row.
#[derive(Debug, Clone, PartialEq)]
pub struct RowFunction {
    /// The operations' names, for people and symbols.
    pub name: String,
    /// Which way of walking block rows, an index in [`super::KernelPlan::walks`].
    pub walk: usize,
    /// All operations on some keys before the next keys.
    pub by_keys: bool,
    /// Block rows whose scattered edges are computed together.
    pub edge_rows: usize,
    /// Scores and values of a row are computed in one go, and prefetches are spread over both.
    pub spread: bool,
    /// Rows of keys that are prefetched while scores are computed: those of the function's own product, or of the next.
    pub values: Option<Rows>,
    /// Operations, in order.
    pub ops: Vec<RowOp>,
    /// What becomes of the row's maxima and sums.
    pub statistics: Statistics,
    /// Operands of a call.
    pub operands: usize,
}

/// Maxima and sums of a softmax in a function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// An operation of the function finds the maxima of scores.
    pub finds_max: bool,
    /// Exponentials of the function subtract the maxima it finds.
    pub exp_of_own_max: bool,
    /// Where maxima are kept.
    pub keep_max: Option<Kept>,
    /// Where 1 / row sum is kept.
    pub keep_sum: Option<Kept>,
    /// They go to the caller, for log-sum-exp.
    pub to_caller: bool,
}

/// Something kept for more than the row in work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Operand of the call.
    pub operand: usize,
    /// Slots of a ring; 0 where all rows are kept.
    pub ring: u32,
}

/// Rows that an operation reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Where they are.
    pub at: RowsAt,
    /// Numbers of a row.
    pub width: usize,
    /// Their storage.
    pub dtype: Dtype,
}

/// Where rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsAt {
    /// An operand of the call, by number of the row.
    Operand(usize),
    /// The worker's own, by place in the block row.
    Local(usize),
    /// The worker's sums of a product, by place in the block row.
    Sums,
}

/// Where packed queries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// The worker's own.
    Local(usize),
    /// Kept.
    Kept(Kept),
}

/// Where a number for every neighbor pair of a block row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panel {
    /// The worker's own panel, where the row is computed there.
    pub local: Option<usize>,
    /// Where it is kept: panels, and scattered edges in the operand behind. In bf16 where there is a local one too.
    pub kept: Option<Kept>,
}

/// Where numbers for every query are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lanes {
    /// 1 for all.
    One,
    /// 1 / the row sums of the function's own exponentials.
    OwnSum,
    /// The worker's own array.
    Local(usize),
    /// Kept, by place.
    Kept(Kept),
}

/// An operation on a block row, its operands resolved. Factors by number come with the call.
#[derive(Debug, Clone, PartialEq)]
pub enum RowOp {
    /// Rows of queries, packed.
    Pack {
        /// Rows, side by side.
        x: Rows,
        /// Factor.
        factor: f32,
        /// Packed queries.
        out: Packed,
    },
    /// Scores of packed queries.
    Sddmm {
        /// Packed queries.
        x: Packed,
        /// The rows that were packed, which scattered edges read in place.
        queries: Rows,
        /// Factor on edges' scores.
        edge_factor: f32,
        /// Rows of keys.
        y: Rows,
        /// Scores.
        s: Panel,
        /// Pairs that are not neighbors may be left out.
        masked: bool,
        /// The maximum is found on the way.
        max: bool,
        /// Scores of queries and keys themselves, for whose tiles rows are prefetched.
        of_queries: bool,
    },
    /// A factor on a panel; edges have it already.
    Scale {
        /// Scores.
        s: Panel,
        /// Factor.
        factor: f32,
    },
    /// A copy of a panel and its edges.
    CopyPanel {
        /// What is copied.
        from: Panel,
        /// Where to.
        to: Panel,
    },
    /// Score mods.
    Mods {
        /// Scores.
        s: Panel,
        /// Factor on the modified score.
        factor: f32,
        /// Pairs that are not neighbors may be left out.
        masked: bool,
        /// The maximum is found on the way.
        max: bool,
    },
    /// −inf outside the neighbors.
    Mask {
        /// Scores.
        s: Panel,
    },
    /// The row maximum.
    RowMax {
        /// Scores.
        s: Panel,
    },
    /// Exponentials and their sums.
    Exp {
        /// Scores.
        s: Panel,
        /// Kept maxima; `None` for those that the function finds.
        m: Option<Kept>,
        /// Pairs that are not neighbors become 0.
        masked: bool,
        /// Rounded to bf16 where it is kept, with the sums of what was rounded.
        half: bool,
    },
    /// Weights that dropout leaves.
    DropPanel {
        /// Weights.
        p: Panel,
    },
    /// Products with rows of keys.
    Spmm {
        /// Weights.
        p: Panel,
        /// Rows of keys.
        z: Rows,
        /// Row sums that are divided by.
        l: Lanes,
        /// Output.
        out: Rows,
        /// Number of the factor on the product.
        factor: usize,
        /// Rows that are added, with the number of their factor.
        plus: Option<(Rows, usize)>,
        /// Weights are a gradient: what may not meet 0 is known before, and 0 is everywhere.
        of_gradient: bool,
        /// The factor on the product is not 0; a product with 0 is left out.
        applies: bool,
        /// Weights are wide copies of what is kept in bf16.
        widen: bool,
    },
    /// All hops of a row at once, from those of the rows before.
    Solve {
        /// Weights.
        p: Panel,
        /// Row sums that are divided by.
        l: Lanes,
        /// Output, whose earlier rows are read.
        out: Rows,
        /// Number of the factor on the product.
        factor: usize,
        /// Rows that are added, with the number of their factor.
        plus: (Rows, usize),
    },
    /// The adjoint of that, from the last row to the first.
    SolveT {
        /// Weights.
        p: Panel,
        /// Rows that are added.
        x: Rows,
        /// Row sums that are divided by.
        l: Lanes,
        /// Output, which later rows add to.
        out: Rows,
        /// Number of the factor on the product.
        factor: usize,
    },
    /// The gradient of a softmax.
    SoftmaxGradient {
        /// Weights.
        p: Panel,
        /// Their gradient.
        dp: Panel,
        /// Σ p dp.
        delta: Lanes,
        /// Factor on the result.
        factor: f32,
        /// Whether weights were dropped.
        dropout: bool,
        /// Whether what dropout left of them is wanted, in their place.
        leaves: bool,
    },
    /// Gradients of scores, back through the mods.
    ModsGradient {
        /// Scores before their mods.
        raw: Panel,
        /// Gradients.
        ds: Panel,
        /// Factor on the result.
        factor: f32,
    },
    /// Products that add to rows of keys.
    SpmmT {
        /// Weights.
        p: Panel,
        /// Rows of queries.
        x: Rows,
        /// Rows of keys.
        out: Rows,
    },
    /// Something row by row, without neighbors.
    Dense(Dense),
    /// The sum of the rows' numbers goes to the gradient of what the call gives for the head.
    SumRows {
        /// Numbers for every query.
        x: Lanes,
        /// Column of what is given.
        column: u32,
        /// Factor.
        factor: f32,
    },
    /// The parts of a head become its output.
    Join {
        /// The parts' rows.
        x: Rows,
        /// Output.
        out: Rows,
        /// Operand of what each part subtracted, `[parts][q_len]`.
        max: usize,
        /// Operand of each part's sums, `[parts][q_len]`.
        sum: usize,
    },
}

/// An operation row by row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dense {
    /// Which one.
    pub kind: DenseKind,
    /// First operand.
    pub x: Rows,
    /// Second operand.
    pub y: Option<Rows>,
    /// Third operand.
    pub w: Option<Rows>,
    /// Rows that are written.
    pub out: Option<Rows>,
    /// Numbers for every query that are read.
    pub lanes: Lanes,
    /// Numbers for every query that are added to, and whether from 0.
    pub sums: Option<(Lanes, bool)>,
    /// Number of the factor.
    pub factor: usize,
    /// Number of the factor of w.
    pub w_factor: usize,
    /// Whether the dropout behind a hop is concerned, that of the call.
    pub hop: bool,
}

/// What is done row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseKind {
    /// `out = x`
    Copy,
    /// `out = factor · lanes · x`
    Scale,
    /// `out += factor · x`
    Add,
    /// `sums (+)= lanes · (x · y − w_factor x · w)`
    Dot,
    /// `out = dropout out`
    Drop,
}

impl Panel {
    /// Whether the row's panel in f32 is the kept one itself.
    pub const fn is_in_place(self) -> bool {
        self.local.is_none()
    }
}

impl RowOp {
    /// Whether it works on neighbor pairs, and so on some keys at a time.
    pub const fn is_on_pairs(&self) -> bool {
        !matches!(self, Self::Pack { .. } | Self::Dense(_) | Self::SumRows { .. } | Self::Join { .. })
    }
}

impl RowFunction {
    /// Whether the online softmax corrects what was summed: maxima are found on the way from keys to keys.
    pub const fn is_online(&self) -> bool {
        self.by_keys && self.statistics.finds_max
    }

    /// Whether any operation has pairs.
    pub fn has_pairs(&self) -> bool {
        self.ops.iter().any(RowOp::is_on_pairs)
    }

    /// Whether the function adds to rows of keys, which other block rows add to as well.
    pub fn adds_to_keys(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, RowOp::SpmmT { .. } | RowOp::Dense(Dense { kind: DenseKind::Add, .. })))
    }
}

//! The operations: what each reads, where it writes, and how its operands are renamed.

use smallvec::SmallVec;

use super::ValueId;
use crate::spec::score::ScoreMods;

/// What is computed. Factors of rows may come with the call ([`Factor`]), others are constants of the kernel.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `factor · x`, rows of queries side by side, packed. → packed
    Pack {
        /// Rows of queries.
        x: Vec<ValueId>,
        /// Factor on every number.
        factor: f64,
    },
    /// `s = y xᵀ` on the neighbor pairs; of several y, as many columns as x has. → pairs, and the row maximum if it has a
    /// second result.
    Sddmm {
        /// Packed queries.
        x: ValueId,
        /// Rows of keys, side by side.
        y: Vec<ValueId>,
        /// The tile leaves out pairs that are not neighbors; what stands there is masked only in the maximum.
        masked: bool,
    },
    /// `s = factor · s`, in place. → pairs
    Scale {
        /// Pairs.
        s: ValueId,
        /// Factor.
        factor: f64,
    },
    /// A copy of pairs or rows.
    Copy {
        /// What is copied.
        x: ValueId,
    },
    /// `s = factor · mods(s)`, in place. → pairs, and the row maximum if it has a second result.
    Mods {
        /// Scaled scores.
        s: ValueId,
        /// The mods, every index proved.
        mods: ScoreMods,
        /// Factor on the modified score.
        factor: f64,
        /// As in [`Op::Sddmm`].
        masked: bool,
    },
    /// Scores outside the neighbors become −inf (selected, never added: NaN outside does not enter), in place. → pairs
    Mask {
        /// Pairs.
        s: ValueId,
    },
    /// → `m = max over keys of s`, a number for every query
    RowMax {
        /// Pairs.
        s: ValueId,
    },
    /// `p = base^(s − m)`, in place, and its row sums l. → pairs, a number for every query
    Exp {
        /// Pairs.
        s: ValueId,
        /// What is subtracted; 0 where it is −inf.
        m: ValueId,
        /// Base of the exponential.
        base: Base,
        /// Entries outside the neighbors become 0 here, whatever their score.
        masked: bool,
    },
    /// What the call's rate leaves of weights, or of rows behind a hop, in place. → pairs or rows
    Dropout {
        /// Pairs or rows.
        x: ValueId,
        /// Which of dropout's streams: `None` for weights, the number of the hop for rows.
        hop: Option<u32>,
    },
    /// `factor · (P z) / l + plus`. → rows of queries
    Spmm {
        /// Weights.
        p: ValueId,
        /// Rows of keys, or of queries taken as keys.
        z: ValueId,
        /// Row sums that it is divided by.
        l: Option<ValueId>,
        /// Factor on the product; 0 leaves it out, so that NaN in it does not enter.
        factor: Factor,
        /// Rows that are added with a factor, where that is not 0.
        plus: Option<(ValueId, Factor)>,
        /// What it is added to, in place.
        onto: Option<ValueId>,
    },
    /// z = factor · (P z) / l + plus: all hops at once, where no key comes after its query. Rows follow each other, from
    /// the first on. → rows of queries
    Solve {
        /// Weights.
        p: ValueId,
        /// Row sums that it is divided by.
        l: ValueId,
        /// Factor on the product.
        factor: Factor,
        /// Rows that are added with a factor.
        plus: (ValueId, Factor),
    },
    /// w = Pᵀ (factor · w / l) + x, the adjoint of [`Op::Solve`], from the last row to the first. → rows of queries
    SolveT {
        /// Weights.
        p: ValueId,
        /// Rows that are added.
        x: ValueId,
        /// Row sums that it is divided by.
        l: ValueId,
        /// Factor on the product.
        factor: Factor,
    },
    /// `x + factor · y` row by row, in place of x. → rows of queries
    Combine {
        /// Rows of queries.
        x: ValueId,
        /// Rows that are added.
        y: ValueId,
        /// Their factor.
        factor: Factor,
    },
    /// The output of a head from those of its parts, by their maxima and sums. → rows of queries
    Join {
        /// The parts' rows.
        x: ValueId,
        /// What each part's exponentials subtracted.
        m: ValueId,
        /// Each part's row sums.
        l: ValueId,
    },
    /// `factor · x / l` row by row. → rows of queries
    ScaleRows {
        /// Rows of queries.
        x: ValueId,
        /// Row sums.
        l: Option<ValueId>,
        /// Factor.
        factor: Factor,
    },
    /// `(x · y − factor x · w) / l` for every query, added to `onto`. → a number for every query
    DotRows {
        /// Rows of queries.
        x: ValueId,
        /// Rows of queries.
        y: ValueId,
        /// Rows with their factor that y holds besides.
        minus: Option<(ValueId, Factor)>,
        /// The hop whose dropout left y: its products are taken as before it.
        hop: Option<u32>,
        /// Row sums.
        l: Option<ValueId>,
        /// What it is added to, in place.
        onto: Option<ValueId>,
    },
    /// `factor · p ∘ (dp − delta)`, in place of dp; with dropout, dp is that of what the call's rate left of p, which is a
    /// second result, in place of p, where there is one. → pairs [, pairs]
    SoftmaxGradient {
        /// Weights, not normalised, before dropout.
        p: ValueId,
        /// Their gradient, over the row sums.
        dp: ValueId,
        /// Σ p dp over the row sums, for every query.
        delta: ValueId,
        /// Factor on the result.
        factor: f64,
        /// Whether weights were dropped.
        dropout: bool,
    },
    /// `factor · mods'(s) ∘ ds`, in place of ds; what the inputs of the mods get is added to their gradients. → pairs
    ModsGradient {
        /// Scores before their mods.
        s: ValueId,
        /// The gradient of the modified scores.
        ds: ValueId,
        /// Derivative of `s` by the product of its query and key.
        factor: f64,
    },
    /// `Pᵀ x`, added to `onto`, in place. → rows of keys
    SpmmT {
        /// Weights.
        p: ValueId,
        /// Rows of queries.
        x: ValueId,
        /// What it is added to; zeros where there is none.
        onto: Option<ValueId>,
    },
    /// `onto + factor · x` row by row, in place. → rows of keys, by the number of the query
    AddRows {
        /// Rows of queries.
        x: ValueId,
        /// Factor.
        factor: Factor,
        /// What it is added to.
        onto: ValueId,
    },
    /// The sum of a number for every query, times `factor`: added to what the call's numbers get, [`super::Body::given`], in a
    /// column of the head's. → a number for every query, in place: what was summed
    SumRows {
        /// A number for every query.
        x: ValueId,
        /// Column.
        column: u32,
        /// Factor.
        factor: f64,
    },
}

/// A factor on rows: `constant + slope · x`, where x is what a call gives for the head in a column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    /// All of it, where nothing is given.
    pub constant: f64,
    /// Factor on what is given; 0 where nothing is.
    pub slope: f64,
    /// Column of what is given; 0 where nothing is.
    pub column: u32,
}

impl Factor {
    /// Nothing is changed.
    pub const ONE: Self = Self::fixed(1.0);

    /// A constant.
    pub const fn fixed(constant: f64) -> Self {
        Self { constant, slope: 0.0, column: 0 }
    }

    /// What a call gives.
    pub const fn given(column: u32) -> Self {
        Self { constant: 0.0, slope: 1.0, column }
    }

    /// What a call gives leaves so much of 1.
    pub const fn rest_of(column: u32) -> Self {
        Self { constant: 1.0, slope: -1.0, column }
    }

    /// Whether it is 0 in every call: what has this factor is left out, so that NaN in it does not enter.
    pub fn is_zero(self) -> bool {
        self.constant == 0.0 && self.slope == 0.0
    }

    /// Whether a call gives a part of it.
    pub fn is_given(self) -> bool {
        self.slope != 0.0
    }

    /// The factor of a head for which `numbers` are given.
    pub fn of(self, numbers: &[f32]) -> f32 {
        match numbers.get(self.column as usize) {
            Some(&x) if self.is_given() => (self.constant + self.slope * f64::from(x)) as f32,
            _ => self.constant as f32,
        }
    }
}

/// Base of the softmax's exponential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// e, as the definition has it.
    E,
    /// 2: what the tiles compute; log2(e) has gone into the scale.
    Two,
}

/// How an operation reads a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The block row in work.
    Row,
    /// The rows of the neighbors of the block row in work: how far they lie is the reach of the mask.
    Neighbors,
    /// It is added to: additions to one buffer may come in any order.
    Onto,
}

impl Op {
    /// The values that the operation reads, and how.
    pub fn reads(&self) -> SmallVec<[(ValueId, Access); 4]> {
        use Access::{Neighbors, Onto, Row};
        let mut reads = SmallVec::new();
        match self {
            Self::Pack { x, .. } => reads.extend(x.iter().map(|&x| (x, Row))),
            Self::Sddmm { x, y, .. } => {
                reads.push((*x, Row));
                reads.extend(y.iter().map(|&y| (y, Neighbors)));
            }
            Self::Scale { s, .. } | Self::Mods { s, .. } | Self::Mask { s } | Self::RowMax { s } => {
                reads.push((*s, Row));
            }
            Self::Copy { x } | Self::Dropout { x, .. } => reads.push((*x, Row)),
            Self::Exp { s, m, .. } => reads.extend([(*s, Row), (*m, Row)]),
            Self::Spmm { p, z, l, plus, onto, .. } => {
                reads.extend([(*p, Row), (*z, Neighbors)]);
                reads.extend(l.map(|l| (l, Row)));
                reads.extend(plus.map(|(rows, _)| (rows, Row)));
                reads.extend(onto.map(|onto| (onto, Onto)));
            }
            // What it reads of its own result, it has made before.
            Self::Solve { p, l, plus, .. } => reads.extend([(*p, Row), (*l, Row), (plus.0, Row)]),
            Self::SolveT { p, x, l, .. } => reads.extend([(*p, Row), (*x, Row), (*l, Row)]),
            Self::Combine { x, y, .. } => reads.extend([(*x, Row), (*y, Row)]),
            Self::Join { x, m, l } => reads.extend([(*x, Row), (*m, Row), (*l, Row)]),
            Self::ScaleRows { x, l, .. } => {
                reads.push((*x, Row));
                reads.extend(l.map(|l| (l, Row)));
            }
            Self::DotRows { x, y, minus, l, onto, .. } => {
                reads.extend([(*x, Row), (*y, Row)]);
                reads.extend(minus.map(|(rows, _)| (rows, Row)));
                reads.extend(l.map(|l| (l, Row)));
                reads.extend(onto.map(|onto| (onto, Onto)));
            }
            Self::SoftmaxGradient { p, dp, delta, .. } => reads.extend([(*p, Row), (*dp, Row), (*delta, Row)]),
            Self::ModsGradient { s, ds, .. } => reads.extend([(*s, Row), (*ds, Row)]),
            Self::SpmmT { p, x, onto } => {
                reads.extend([(*p, Row), (*x, Row)]);
                reads.extend(onto.map(|onto| (onto, Onto)));
            }
            Self::AddRows { x, onto, .. } => reads.extend([(*x, Row), (*onto, Onto)]),
            Self::SumRows { x, .. } => reads.push((*x, Row)),
        }
        reads
    }

    /// Factors on rows.
    pub fn factors(&self) -> SmallVec<[Factor; 2]> {
        match self {
            Self::Spmm { factor, plus, .. } => std::iter::once(*factor).chain(plus.map(|(_, by)| by)).collect(),
            Self::Solve { factor, plus, .. } => SmallVec::from([*factor, plus.1]),
            Self::DotRows { minus, .. } => minus.iter().map(|(_, by)| *by).collect(),
            Self::Combine { factor, .. }
            | Self::SolveT { factor, .. }
            | Self::ScaleRows { factor, .. }
            | Self::AddRows { factor, .. } => std::iter::once(*factor).collect(),
            _ => SmallVec::new(),
        }
    }

    /// Whether the operation may go without its second result.
    pub const fn second_is_optional(&self) -> bool {
        matches!(self, Self::Sddmm { .. } | Self::Mods { .. } | Self::SoftmaxGradient { dropout: true, .. })
    }

    /// For each result, the operand whose buffer it is written into; `None` for a buffer of its own.
    pub fn in_place(&self) -> [Option<ValueId>; 2] {
        match self {
            Self::Scale { s, .. } | Self::Mods { s, .. } | Self::Mask { s } | Self::Exp { s, .. } => [Some(*s), None],
            Self::Dropout { x, .. } | Self::Combine { x, .. } => [Some(*x), None],
            Self::SoftmaxGradient { p, dp, .. } => [Some(*dp), Some(*p)],
            Self::ModsGradient { ds, .. } => [Some(*ds), None],
            Self::Spmm { onto, .. } | Self::DotRows { onto, .. } | Self::SpmmT { onto, .. } => [*onto, None],
            Self::AddRows { onto, .. } => [Some(*onto), None],
            Self::SumRows { x, .. } => [Some(*x), None],
            Self::Pack { .. }
            | Self::Sddmm { .. }
            | Self::Copy { .. }
            | Self::RowMax { .. }
            | Self::Solve { .. }
            | Self::SolveT { .. }
            | Self::Join { .. }
            | Self::ScaleRows { .. } => [None, None],
        }
    }

    /// Names every operand anew.
    pub fn rename(&mut self, mut to: impl FnMut(ValueId) -> ValueId) {
        let mut each = |operands: &mut [&mut ValueId]| operands.iter_mut().for_each(|id| **id = to(**id));
        match self {
            Self::Pack { x, .. } => x.iter_mut().for_each(|x| each(&mut [x])),
            Self::Sddmm { x, y, .. } => {
                each(&mut [x]);
                y.iter_mut().for_each(|y| each(&mut [y]));
            }
            Self::Scale { s, .. } | Self::Mods { s, .. } | Self::Mask { s } | Self::RowMax { s } => each(&mut [s]),
            Self::Copy { x } | Self::Dropout { x, .. } => each(&mut [x]),
            Self::Exp { s, m, .. } => each(&mut [s, m]),
            Self::Spmm { p, z, l, plus, onto, .. } => {
                each(&mut [p, z]);
                l.iter_mut().for_each(|l| each(&mut [l]));
                plus.iter_mut().for_each(|(rows, _)| each(&mut [rows]));
                onto.iter_mut().for_each(|onto| each(&mut [onto]));
            }
            Self::Solve { p, l, plus, .. } => each(&mut [p, l, &mut plus.0]),
            Self::SolveT { p, x, l, .. } => each(&mut [p, x, l]),
            Self::Combine { x, y, .. } => each(&mut [x, y]),
            Self::Join { x, m, l } => each(&mut [x, m, l]),
            Self::ScaleRows { x, l, .. } => {
                each(&mut [x]);
                l.iter_mut().for_each(|l| each(&mut [l]));
            }
            Self::DotRows { x, y, minus, l, onto, .. } => {
                each(&mut [x, y]);
                minus.iter_mut().for_each(|(rows, _)| each(&mut [rows]));
                l.iter_mut().for_each(|l| each(&mut [l]));
                onto.iter_mut().for_each(|onto| each(&mut [onto]));
            }
            Self::SoftmaxGradient { p, dp, delta, .. } => each(&mut [p, dp, delta]),
            Self::ModsGradient { s, ds, .. } => each(&mut [s, ds]),
            Self::SpmmT { p, x, onto } => {
                each(&mut [p, x]);
                onto.iter_mut().for_each(|onto| each(&mut [onto]));
            }
            Self::AddRows { x, onto, .. } => each(&mut [x, onto]),
            Self::SumRows { x, .. } => each(&mut [x]),
        }
    }

    /// The name of the operation in the text form.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pack { .. } => "pack",
            Self::Sddmm { .. } => "sddmm",
            Self::Scale { .. } => "scale",
            Self::Copy { .. } => "copy",
            Self::Mods { .. } => "mods",
            Self::Mask { .. } => "mask",
            Self::RowMax { .. } => "rowmax",
            Self::Exp { .. } => "exp",
            Self::Dropout { .. } => "dropout",
            Self::Spmm { .. } => "spmm",
            Self::Solve { .. } => "solve",
            Self::SolveT { .. } => "solve_t",
            Self::Combine { .. } => "combine",
            Self::Join { .. } => "join",
            Self::ScaleRows { .. } => "scale_rows",
            Self::DotRows { .. } => "dot_rows",
            Self::SoftmaxGradient { .. } => "softmax'",
            Self::ModsGradient { .. } => "mods'",
            Self::SpmmT { .. } => "spmm_t",
            Self::AddRows { .. } => "add_rows",
            Self::SumRows { .. } => "sum_rows",
        }
    }
}

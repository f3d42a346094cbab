//! The code of operations: one type for each, with its call records, what it sets at the start of a function and of a
//! block row, and what it does on a piece of keys and on scattered edges.

use std::mem::offset_of;

use self::dense::{DenseRows, SumRows};
use self::exp::{Exp, Weights};
use self::mods::{Mods, ModsGradient};
use self::scores::{Pack, Sddmm};
use self::solve::{Solve, SolveT};
pub(super) use self::spmm::Spmm;
use self::spmm::SpmmT;
use super::KernelArgs;
use super::context::{Context, Row};
use super::walk::{Operands, Steps};
use crate::plan::{Panel, RowOp};

mod dense;
mod exp;
mod mods;
mod scores;
mod solve;
mod spmm;

pub(super) use dense::join;

/// An operation of a function, ready to be written.
pub(super) enum Code {
    Pack(Pack),
    Sddmm(Sddmm),
    Scale(Panel, f32),
    CopyPanel(Panel, Panel),
    Mods(Mods),
    Mask(Panel),
    RowMax(Panel),
    Exp(Exp),
    Weights(Weights),
    Spmm(Spmm),
    ModsGradient(ModsGradient),
    SpmmT(SpmmT),
    Solve(Solve),
    SolveT(SolveT),
    Dense(DenseRows),
    SumRows(SumRows),
}

impl Code {
    /// Reserves the records of an operation and writes what no row changes. `None` for a join, which is a function of its
    /// own.
    pub fn new(cx: &mut Context, op: &RowOp) -> Option<Self> {
        match *op {
            RowOp::Pack { x, factor, out } => Some(Self::Pack(Pack::new(cx, x, factor, out))),
            RowOp::Sddmm { .. } => Sddmm::new(cx, op).map(Self::Sddmm),
            RowOp::Scale { s, factor } => Some(Self::Scale(s, factor)),
            RowOp::CopyPanel { from, to } => Some(Self::CopyPanel(from, to)),
            RowOp::Mods { .. } => Mods::new(cx, op).map(Self::Mods),
            RowOp::Mask { s } => Some(Self::Mask(s)),
            RowOp::RowMax { s } => Some(Self::RowMax(s)),
            RowOp::Exp { .. } => Exp::new(cx, op).map(Self::Exp),
            RowOp::DropPanel { .. } | RowOp::SoftmaxGradient { .. } => Weights::new(cx, op).map(Self::Weights),
            RowOp::Spmm { .. } => Spmm::new(cx, op).map(Self::Spmm),
            RowOp::ModsGradient { .. } => ModsGradient::new(cx, op).map(Self::ModsGradient),
            RowOp::SpmmT { .. } => SpmmT::new(cx, op).map(Self::SpmmT),
            RowOp::Solve { .. } => Solve::new(cx, op).map(Self::Solve),
            RowOp::SolveT { .. } => SolveT::new(cx, op).map(Self::SolveT),
            RowOp::Dense(dense) => Some(Self::Dense(DenseRows::new(cx, dense))),
            RowOp::SumRows { x, column, factor } => Some(Self::SumRows(SumRows::new(cx, x, column, factor))),
            RowOp::Join { .. } => None,
        }
    }

    /// Whether it works on rows, without neighbors.
    pub const fn is_on_rows(&self) -> bool {
        matches!(self, Self::Pack(_) | Self::Dense(_) | Self::SumRows(_))
    }

    /// Whether it takes whole rows whose weights are there: a product over all keys, or rows that follow each other.
    pub const fn is_over_rows(&self) -> bool {
        matches!(self, Self::Spmm(_) | Self::Solve(_) | Self::SolveT(_))
    }

    /// An operation over whole rows.
    pub fn over_row<'p>(&self, cx: &mut Context<'_, 'p>, row: Row, steps: Steps<'p>) {
        match self {
            Self::Spmm(code) => code.row(cx, row, steps),
            Self::Solve(code) => code.row(cx, row, steps),
            Self::SolveT(code) => code.row(cx, row, steps),
            _ => {}
        }
    }

    /// Whether it needs maxima that the function finds before it.
    pub fn needs_own_max(&self) -> bool {
        matches!(self, Self::Exp(exp) if exp.is_of_own_max())
    }

    /// Sets the fields of its records that change with the row.
    pub fn begin(&self, cx: &mut Context, row: Row) {
        match self {
            Self::Sddmm(code) => code.begin(cx, row),
            Self::Mods(code) => code.begin(cx, row),
            Self::Exp(code) => code.begin(cx, row),
            Self::Weights(code) => code.begin(cx, row),
            Self::Spmm(code) => code.begin(cx, row),
            Self::ModsGradient(code) => code.begin(cx, row),
            Self::SpmmT(code) => code.begin(cx, row),
            Self::Solve(code) => code.begin(cx, row),
            Self::SolveT(_)
            | Self::Pack(_)
            | Self::Dense(_)
            | Self::SumRows(_)
            | Self::Scale(..)
            | Self::CopyPanel(..)
            | Self::Mask(_)
            | Self::RowMax(_) => {}
        }
    }

    /// What of [`Self::begin`] scattered edges need alone.
    pub fn begin_edges(&self, cx: &mut Context, row: Row) {
        match self {
            Self::Sddmm(code) => code.begin_edges(cx, row),
            Self::Mods(code) => code.begin_edges(cx, row),
            Self::Exp(code) => code.begin_edges(cx, row),
            Self::Spmm(code) => code.begin_edges(cx, row),
            other => other.begin(cx, row),
        }
    }

    /// An operation on rows.
    pub fn row(&self, cx: &mut Context, row: Row) {
        match self {
            Self::Pack(code) => code.row(cx, row),
            Self::Dense(code) => code.row(cx, row),
            Self::SumRows(code) => code.row(cx, row),
            _ => {}
        }
    }

    /// An operation on pairs, on one piece of keys.
    pub fn piece(&self, cx: &mut Context, row: Row, piece: Operands) {
        match self {
            Self::Sddmm(code) => code.piece(cx, row, piece),
            Self::Scale(s, factor) => scores::scale(cx, row, (*s, *factor), piece),
            Self::CopyPanel(from, to) => scores::copy(cx, row, (*from, *to), piece),
            Self::Mods(code) => code.piece(cx, row, piece),
            Self::Mask(s) => scores::mask(cx, row, *s, piece),
            Self::RowMax(s) => scores::rowmax(cx, row, *s, piece),
            Self::Exp(code) => code.piece(cx, row, piece),
            Self::Weights(code) => code.piece(cx, row, piece),
            Self::ModsGradient(code) => code.piece(cx, row, piece),
            Self::SpmmT(code) => code.piece(cx, row, piece),
            // Values are added run by run, rows have no pieces.
            Self::Spmm(_) | Self::Solve(_) | Self::SolveT(_) | Self::Pack(_) | Self::Dense(_) | Self::SumRows(_) => {}
        }
    }

    /// An operation on pairs, on the row's scattered edges.
    pub fn edges(&self, cx: &mut Context, row: Row) {
        match self {
            Self::Sddmm(code) => code.edges(cx, row),
            Self::CopyPanel(from, to) => scores::copy_edges(cx, row, (*from, *to)),
            Self::Mods(code) => code.edges(cx, row),
            Self::RowMax(s) => scores::rowmax_edges(cx, row, *s),
            Self::Exp(code) => code.edges(cx, row),
            Self::Weights(code) => code.edges(cx, row),
            Self::Spmm(code) => code.edges(cx, row),
            Self::ModsGradient(code) => code.edges(cx, row),
            Self::SpmmT(code) => code.edges(cx, row),
            // Edges are neighbors, and have their factor from the start.
            Self::Mask(_)
            | Self::Scale(..)
            | Self::Solve(_)
            | Self::SolveT(_)
            | Self::Pack(_)
            | Self::Dense(_)
            | Self::SumRows(_) => {}
        }
    }

    /// Behind the row's last keys.
    pub fn finish(&self, cx: &mut Context, row: Row) {
        if let Self::Exp(code) = self {
            code.finish(cx, row);
        }
    }
}

impl Context<'_, '_> {
    /// The row's keys of dropout, out of the field of the arguments at `offset`; null stays null.
    fn row_keys(&mut self, row: Row, offset: usize) -> cranelift_codegen::ir::Value {
        use cranelift_codegen::ir::InstBuilder;
        debug_assert!(offset == offset_of!(KernelArgs, row_keys) || offset == offset_of!(KernelArgs, hop_keys));
        let base = self.arg(offset);
        let at = self.e.offset(base, row.place, 4);
        let none = self.e.int(0);
        self.e.b.ins().select(base, at, none)
    }
}

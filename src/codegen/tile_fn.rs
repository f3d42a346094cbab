//! The functions that a kernel calls.

use crate::plan::KernelPlan;

/// A function that a kernel calls, in the order of [`TileFn::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileFn {
    /// [`crate::tiles::PackCall`]
    Pack,
    /// [`crate::tiles::ScoreCall`]
    Score,
    /// [`crate::tiles::ExpCall`]
    Exp,
    /// [`crate::tiles::ValueCall`]
    Value,
    /// [`crate::tiles::EdgeCall`]
    EdgeScore,
    /// [`crate::tiles::EdgeCall`]
    EdgeExp,
    /// [`crate::tiles::EdgeCall`]
    EdgeValue,
    /// [`crate::tiles::exact::ExactCall`]
    ValueExact,
    /// [`crate::tiles::join::JoinCall`]
    Join,
    /// [`crate::tiles::ModCall`]
    Mods,
    /// [`crate::tiles::EdgeModCall`]
    EdgeMods,
    /// [`crate::tiles::half_panel::PanelCall`]
    NarrowPanel,
    /// [`crate::tiles::half_panel::PanelCall`]
    WidenPanel,
    /// [`crate::tiles::transposed::TransposedCall`]
    Transposed,
    /// [`crate::tiles::transposed::ScatterCall`]
    Scatter,
    /// [`crate::tiles::gradient::GradientCall`]
    Gradient,
    /// [`crate::tiles::gradient::EdgeGradientCall`]
    EdgeGradient,
    /// [`crate::tiles::EdgeCall`]
    EdgeValueExact,
    /// [`crate::tiles::mod_gradients::ModGradientCall`]
    ModGradients,
    /// [`crate::tiles::mod_gradients::EdgeModGradientCall`]
    EdgeModGradients,
    /// [`crate::tiles::rows::RowsCall`]
    CopyRows,
    /// [`crate::tiles::rows::RowsCall`]
    ScaleRows,
    /// [`crate::tiles::rows::RowsCall`]
    AddRows,
    /// [`crate::tiles::rows::RowsCall`]
    DotRows,
    /// [`crate::tiles::rows::RowsCall`]
    DropRows,
    /// [`crate::tiles::rows`]
    SumRows,
    /// [`crate::tiles::solve::SolveCall`]
    Solve,
    /// [`crate::tiles::solve::SolveCall`]
    SolveTransposed,
    /// [`crate::tiles::diagonal::DiagonalCall`]
    DiagonalClear,
    /// [`crate::tiles::diagonal::DiagonalCall`]
    DiagonalPieces,
    /// [`crate::tiles::diagonal::DiagonalCall`]
    DiagonalEdges,
    /// [`Self::Pack`] of rows of another width than queries, as the ones below of other than keys and values: portable tiles
    /// are made for one width.
    GradientPack,
    /// [`Self::Score`]
    GradientScore,
    /// [`Self::Value`]
    GradientValue,
    /// [`Self::EdgeScore`]
    GradientEdgeScore,
    /// [`Self::EdgeValue`]
    GradientEdgeValue,
}

impl TileFn {
    /// All of them; the position is the index in the external names of lowered functions, where the wrappers for
    /// 16-bit tensors follow in the same order.
    pub const ALL: [Self; 36] = [
        Self::Pack,
        Self::Score,
        Self::Exp,
        Self::Value,
        Self::EdgeScore,
        Self::EdgeExp,
        Self::EdgeValue,
        Self::ValueExact,
        Self::Join,
        Self::Mods,
        Self::EdgeMods,
        Self::NarrowPanel,
        Self::WidenPanel,
        Self::Transposed,
        Self::Scatter,
        Self::Gradient,
        Self::EdgeGradient,
        Self::EdgeValueExact,
        Self::ModGradients,
        Self::EdgeModGradients,
        Self::CopyRows,
        Self::ScaleRows,
        Self::AddRows,
        Self::DotRows,
        Self::DropRows,
        Self::SumRows,
        Self::Solve,
        Self::SolveTransposed,
        Self::DiagonalClear,
        Self::DiagonalPieces,
        Self::DiagonalEdges,
        Self::GradientPack,
        Self::GradientScore,
        Self::GradientValue,
        Self::GradientEdgeScore,
        Self::GradientEdgeValue,
    ];

    /// Symbol name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pack | Self::GradientPack => "pack",
            Self::Score | Self::GradientScore => "score",
            Self::Exp => "exp",
            Self::Value | Self::GradientValue => "value",
            Self::EdgeScore | Self::GradientEdgeScore => "edge_score",
            Self::EdgeExp => "edge_exp",
            Self::EdgeValue | Self::GradientEdgeValue => "edge_value",
            Self::ValueExact => "value_exact",
            Self::Join => "join",
            Self::Mods => "mods",
            Self::EdgeMods => "edge_mods",
            Self::NarrowPanel => "narrow_panel",
            Self::WidenPanel => "widen_panel",
            Self::Transposed => "transposed",
            Self::Scatter => "scatter",
            Self::Gradient => "gradient",
            Self::EdgeGradient => "edge_gradient",
            Self::EdgeValueExact => "edge_value_exact",
            Self::ModGradients => "mod_gradients",
            Self::EdgeModGradients => "edge_mod_gradients",
            Self::CopyRows => "copy_rows",
            Self::ScaleRows => "scale_rows",
            Self::AddRows => "add_rows",
            Self::DotRows => "dot_rows",
            Self::DropRows => "drop_rows",
            Self::SumRows => "sum_rows",
            Self::Solve => "solve",
            Self::SolveTransposed => "solve_transposed",
            Self::DiagonalClear => "diagonal_clear",
            Self::DiagonalPieces => "diagonal_pieces",
            Self::DiagonalEdges => "diagonal_edges",
        }
    }

    /// Whether the tile reads or writes rows of q, k, v or the output, and has a wrapper for 16-bit ones.
    pub const fn touches_tensors(self) -> bool {
        use TileFn::{EdgeScore, EdgeValue, Pack, Score, Value, ValueExact};
        matches!(self, Pack | Score | Value | EdgeScore | EdgeValue | ValueExact)
    }

    /// Symbol name of the wrapper in [`crate::tiles::stored`].
    pub fn stored_name(self) -> String {
        format!("stored_{}", self.name())
    }

    /// Whether the function is code that is made for the kernel's score mods.
    pub const fn is_made_here(self) -> bool {
        matches!(self, Self::Mods | Self::EdgeMods | Self::ModGradients | Self::EdgeModGradients)
    }

    /// The same tile for rows of `width` columns: of queries or keys (pack, score), or of values.
    pub fn of_width(self, width: usize, plan: &KernelPlan) -> Self {
        let (d, dv) = (plan.shape.head_dim, plan.shape.value_dim);
        match self {
            Self::Pack if width != d => Self::GradientPack,
            Self::Score if width != d => Self::GradientScore,
            Self::EdgeScore if width != d => Self::GradientEdgeScore,
            Self::Value if width != dv => Self::GradientValue,
            Self::EdgeValue if width != dv => Self::GradientEdgeValue,
            other => other,
        }
    }

    /// Whether the function returns the flag of [`crate::tiles::Family::value`].
    pub const fn returns_flag(self) -> bool {
        matches!(self, Self::Value | Self::GradientValue)
    }
}

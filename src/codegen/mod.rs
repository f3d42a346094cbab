//! From a plan to Cranelift functions.
//!
//! In: a [`KernelPlan`] and the target's settings. Out: [`Lowered`] functions that walk the plan's block rows
//! and call tiles by name, and the [`Tables`] they read. Rows in regular runs become code of their own, with
//! key ranges as arithmetic in the row number and every size a constant; all other rows share one loop over
//! tables. Nothing here decides anything that the plan does not say.

use cranelift_codegen::ir::{Function, UserFuncName};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::FunctionBuilderContext;

use crate::plan::{KernelPlan, Walk};

mod args;
mod edges;
pub mod emit;
mod flash;
mod gradient;
mod hops;
mod join;
mod kernel;
mod mods;
pub mod portable;
mod recompute;
mod softmax;
mod steps;
mod tables;

pub use args::{KernelArgs, TrainingArgs};
pub use tables::Tables;

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
    /// [`Self::Pack`] of rows as wide as the gradient's pass has them, as the ones below: portable tiles are made for
    /// one width.
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
    pub const ALL: [Self; 25] = [
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

    /// Whether only kernels for training call it.
    pub const fn trains(self) -> bool {
        self as usize >= Self::Transposed as usize
    }

    /// The same tile at the widths of the gradient's pass.
    const fn of_gradient(self) -> Self {
        match self {
            Self::Pack => Self::GradientPack,
            Self::Score => Self::GradientScore,
            Self::Value => Self::GradientValue,
            Self::EdgeScore => Self::GradientEdgeScore,
            Self::EdgeValue => Self::GradientEdgeValue,
            other => other,
        }
    }

    /// Whether the function returns the flag of [`crate::tiles::Family::value`].
    pub const fn returns_flag(self) -> bool {
        matches!(self, Self::Value | Self::GradientValue)
    }
}

/// A kernel function before it becomes machine code.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// Symbol name.
    pub name: &'static str,
    /// The function; it takes one pointer to [`KernelArgs`].
    pub function: Function,
}

/// Lowers a plan, to functions that [`crate::runtime`] calls in the order of the strategy.
///
/// `flash`: one of this name, and `join_parts` where heads have parts. Where P is stored: `probabilities` and `hop`, and
/// `slide` for the buffers of a sweep. `recompute`: `first_hop`, which is that of `flash` and keeps the row statistics,
/// and `hop`. Behind them, for training: `adjoint_hop`, and, where P is not stored, `gradient_pass`.
pub fn lower(plan: &KernelPlan, isa: &dyn TargetIsa) -> Vec<Lowered> {
    let mut context = FunctionBuilderContext::new();
    let mut function = |name: &'static str, index: u32, write: fn(kernel::Kernel<'_, '_>)| {
        let mut function = Function::with_name_signature(
            UserFuncName::user(1, index),
            emit::signature(isa.default_call_conv(), &[isa.pointer_type()], &[]),
        );
        write(kernel::Kernel::new(plan, &mut function, &mut context, isa));
        Lowered { name, function }
    };
    let mut functions = match plan.walk {
        Walk::Flash if plan.parts > 1 => {
            vec![function("flash", 0, flash::write), function("join_parts", 1, join::write)]
        }
        Walk::Flash => vec![function("flash", 0, flash::write)],
        Walk::Recompute => {
            vec![function("first_hop", 0, flash::write), function("hop", 1, recompute::write_hop)]
        }
        Walk::Resident => {
            vec![function("probabilities", 0, hops::write_probabilities), function("hop", 1, hops::write_hop)]
        }
        Walk::Sweep => vec![
            function("probabilities", 0, hops::write_probabilities),
            function("hop", 1, hops::write_hop),
            function("slide", 2, hops::write_slide),
        ],
    };
    if plan.training.is_some() {
        functions.push(function("adjoint_hop", 2, gradient::write_adjoint_hop));
        if !plan.walk.stores_p() {
            functions.push(function("gradient_pass", 3, gradient::write_gradient));
        }
    }
    functions
}

/// Whether block rows are looked up through an order.
fn is_ordered(plan: &KernelPlan) -> bool {
    plan.masks.iter().any(|mask| mask.order.is_some())
}

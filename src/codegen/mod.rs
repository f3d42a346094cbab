//! From a plan to Cranelift functions.
//!
//! In: a [`VerifiedPlan`] and the target's settings. Out: [`Lowered`] functions, one for each distinct stage of the nest,
//! that walk the plan's block rows and call tiles by name, and the [`Tables`] they read. Rows in regular runs become code
//! of their own, with key ranges as arithmetic in the row number and every size a constant; all other rows share one loop
//! over tables. Nothing here decides anything that the plan does not say.

use cranelift_codegen::ir::{Function, UserFuncName};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::FunctionBuilderContext;

use crate::plan::VerifiedPlan;

mod args;
mod context;
pub mod emit;
mod function;
mod ops;
pub mod portable;
mod records;
mod softmax;
mod tables;
mod tile_fn;
mod walk;

pub use args::{KernelArgs, OperandArgs};
pub use tables::Tables;
pub use tile_fn::TileFn;

/// A kernel function before it becomes machine code.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// Symbol name.
    pub name: String,
    /// The function; it takes one pointer to [`KernelArgs`].
    pub function: Function,
}

/// The functions of a plan, with the plan. They cannot be parted, so that code never runs by another plan than its own.
///
/// ```
/// fn count(kernel: &hopweave::codegen::LoweredKernel) -> usize { kernel.functions().len() }
/// ```
/// ```compile_fail
/// fn pair(kernel: &mut hopweave::codegen::LoweredKernel, other: &hopweave::codegen::LoweredKernel) {
///     kernel.functions = other.functions().to_vec();
/// }
/// ```
#[derive(Debug, Clone)]
pub struct LoweredKernel {
    plan: VerifiedPlan,
    functions: Vec<Lowered>,
}

impl LoweredKernel {
    /// The functions, in the order of [`Functions::functions`](crate::plan::Functions::functions).
    pub fn functions(&self) -> &[Lowered] {
        &self.functions
    }

    /// Both, for the linker.
    pub(crate) fn into_parts(self) -> (VerifiedPlan, Vec<Lowered>) {
        (self.plan, self.functions)
    }
}

/// Lowers a plan, to one function for each of [`Functions::functions`](crate::plan::Functions::functions).
pub fn lower(plan: VerifiedPlan, isa: &dyn TargetIsa) -> LoweredKernel {
    let mut builder = FunctionBuilderContext::new();
    let codes = plan.functions().functions.iter().enumerate();
    let lowered = codes.map(|(index, code)| {
        let mut function = Function::with_name_signature(
            UserFuncName::user(1, index as u32),
            emit::signature(isa.default_call_conv(), &[isa.pointer_type()], &[]),
        );
        function::write(context::Context::new(&plan, code, &mut function, &mut builder, isa));
        Lowered { name: format!("f{index}_{}", code.name), function }
    });
    let functions = lowered.collect();
    LoweredKernel { plan, functions }
}

//! From a plan to Cranelift functions.

pub mod emit;
pub mod portable;

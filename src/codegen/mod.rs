//! From a plan to Cranelift functions.

//! Specs out of the configurations of other libraries.
//!
//! In: the text of a configuration. Out: the text of a spec that allows the same pairs, and remarks on what has no
//! equivalent. Refused: what the other library would refuse, and what it does not know, each with its place.

pub mod deepspeed;

/// A configuration as a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The spec in YAML; it begins with the remarks as comments.
    pub yaml: String,
    /// What the spec cannot say, or says in another way.
    pub remarks: Vec<String>,
}

/// What the configurations do not say and a spec must.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Query heads.
    pub heads: usize,
    /// Width of a query or key.
    pub head_dim: usize,
}

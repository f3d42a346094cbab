//! Hopweave compiles sparse, multi-hop attention for CPUs.
//!
//! A YAML spec says who attends to whom, how scores are scaled, and over how many hops attention
//! diffuses (Feng et al., "Diffuser", AAAI 2023, arXiv 2210.11794).

pub mod analysis;
pub mod baselines;
pub mod cache;
pub mod cli;
pub mod codegen;
pub mod compiler;
pub mod cost;
pub mod dropout;
pub mod dtype;
pub mod error;
pub mod import;
pub mod interpreter;
pub mod jit;
pub mod limits;
pub mod machine;
pub mod mask;
pub mod measure;
pub mod npy;
pub mod operator;
pub mod passes;
pub mod pattern;
pub mod picture;
pub mod plan;
pub mod runtime;
pub mod schedule;
pub mod spec;
pub mod target;
pub mod tiles;
pub mod tune;
pub mod tuned;

pub use dtype::{Dtype, Element};
pub use error::{Error, Result};
pub use half;

//! Hopweave compiles sparse, multi-hop attention for CPUs.
//!
//! A YAML spec says who attends to whom, how scores are scaled, and over how many hops attention
//! diffuses (Feng et al., "Diffuser", AAAI 2023, arXiv 2210.11794).

pub mod analysis;
pub mod baselines;
pub mod cli;
pub mod error;
pub mod interpreter;
pub mod machine;
pub mod mask;
pub mod npy;
pub mod pattern;
pub mod schedule;
pub mod spec;
pub mod target;
pub mod tiles;

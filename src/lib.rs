//! Hopweave compiles sparse, multi-hop attention for CPUs.
//!
//! A YAML spec says who attends to whom, how scores are scaled, and over how many hops attention
//! diffuses (Feng et al., "Diffuser", AAAI 2023, arXiv 2210.11794).
//!
//! # Numbers
//!
//! Sums are in f32, whatever tensors are stored in, and hold as long as these do:
//!
//! - **Scores** may be as large as 2.3e38, which is f32's range in the base-2 domain of the exponential. q · k may be larger,
//!   since queries are scaled first (but not with [`compiler::Options::bf16_dots`], which scales sums of products). A score
//!   errs by about d · 2^-24 · scale · Σ|q k|: from scores of some 1e6 on, that decides which key wins. Whatever it decides,
//!   a row's weights sum to 1, outputs stay within the values' hull, and log-sum-exp is finite.
//! - **Weights** below 2^-100 of a row's largest are 0.
//! - **Values** are summed before they are divided by the row's sum: the number of a query's keys times 2^8 times the largest
//!   value must be in range. 1e30 is safe for up to a million keys.
//! - **Subnormal numbers** are numbers: nothing is flushed to 0, but by the bf16 dot products of the CPU. −0 is 0.
//! - **Log-sum-exp** is −inf for a query without keys, or with scores of −inf alone, and rounded to f32 otherwise: at 1e30 it
//!   is the largest score.
//! - **Gradients** hold under the same conditions, for their own products too: they are not rescaled, so that what leaves the
//!   range of f32 is infinite. They do not depend on what log-sum-exp was rounded to.
//! - **Not-a-number and infinity** in a tensor reach queries that may attend to where they stand, and gradients of what
//!   such queries read. A score of +inf or NaN makes its row NaN. A score of −inf is weight 0; backward, weight 0 takes no
//!   part, whatever it meets. Where the definition ([`interpreter`]) is finite, so is the result, within the ranges above.
//! - **The same bits again**: results do not depend on the number of threads, only on the plan; and the plan on nothing of
//!   the machine but its tile family with [`compiler::Options::reproducible`]. By default it also follows cores, free memory,
//!   and what was measured and tuned, and other plans round otherwise.
//! - **Factors of a spec** (scale, slopes, coefficients) end at [`spec::LARGEST_FACTOR`]. Expressions of score mods are
//!   computed in f32, and may leave its range as any program may.

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
pub mod exchange;
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
pub mod program;
pub mod runtime;
pub mod select;
pub mod spec;
pub mod target;
pub mod tiles;
pub mod tune;
pub mod tuned;

pub use dtype::{Dtype, Element};
pub use error::{Error, Result};
pub use half;

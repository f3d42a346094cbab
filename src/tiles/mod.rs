//! Micro-kernels: what a kernel calls once per block.
//!
//! A tile is an `extern "C"` function that takes one pointer to a call record. Families written in
//! `std::arch` stand in one table and are handed out by [`family`](fn@family); the portable family is emitted as CLIF with
//! the same records. A [`Family`] value exists only where the CPU has every feature that a tile of it is compiled with.
//!
//! **A new family**, NEON say, is two files and a line. `neon/lanes.rs` implements [`lanes::Lanes`]: its vectors and what
//! is done with them. `neon.rs` has the micro-kernels of score and value, which [`split`] calls on register tiles, and
//! names both, the vectors and the features in one [`tile_set!`](tile_set). The line is `&neon::TILES` in
//! [`family`](mod@family). Its variant of [`Isa`](crate::target::Isa) has the features to ask the CPU for. All other tiles
//! are generic over [`lanes::Lanes`]; tests and benches go over the families that the CPU has.
//!
//! **Panels.** Queries stand in the lanes. A block of up to 64 queries is cut into groups of 16; a panel is
//! `[group][key][16]` (scores, probabilities; `key` counts within the block row) or `[group][d][16]` (packed
//! queries). Lanes beyond the last query hold zero queries; their scores and probabilities are finite and
//! never reach an output.
//!
//! **Words.** One `u64` per key, bit `i` for query `i` of the block. A tile may skip the work for a group
//! whose 16 bits are 0; what it leaves in the panel there is unspecified after `score` and 0 after `exp`.
//!
//! **Contract.** Whoever calls a tile promises: the record and everything that its fields describe is alive, readable
//! (writable where a field says so), and reached by nobody else while the tile writes it; row numbers lie inside the
//! arrays; what a field calls aligned is. A tile promises: of rows of q, k, v, out and rv it touches the columns
//! below `d` or `dv` and nothing else; of panels and `acc`, which are padded to 16 floats, whole vectors; it never
//! allocates, unwinds, or keeps a pointer.

mod calls;
mod chains;
mod convert;
mod edges;
mod elementwise;
pub mod exact;
mod exp;
mod family;
pub mod gradient;
#[doc(hidden)]
pub mod guard;
pub mod half_panel;
pub mod join;
mod lanes;
pub mod mod_gradients;
mod pack;
pub mod peak;
mod prefetch;
pub mod rows;
mod split;
pub mod stored;
mod tile_set;
pub mod transposed;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod dots;

#[cfg(test)]
mod features;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use calls::{
    AHEAD_LINES, Ahead, BLOCK, EdgeCall, EdgeModCall, ExpCall, LANES, LEAST_POWER, ModCall, PackCall, ROW_BLOCKS,
    ROW_CUTS, ScoreCall, Tile, ValueCall, softcap_scale,
};
pub use family::{Family, dots_serve, family, stored_family};
pub use tile_set::TileSet;

//! Micro-kernels: what a kernel calls once per block.
//!
//! A tile is an `extern "C"` function that takes one pointer to a call record. Families written in `std::arch` stand in
//! one table and are handed out by [`family`]; the portable family is emitted as CLIF with the same records. A
//! [`Family`] value exists only where the CPU has every feature that a tile of it is compiled with.
//!
//! **A new family**, NEON say, is two files and two lines. `neon/lanes.rs` implements `lanes::Lanes`: its vectors and what
//! is done with them. `neon.rs` has the micro-kernels of score and value, which `split` calls on register tiles, and
//! names both, the vectors and the features in one `family_table!`. Of the lines, one stands in `FAMILIES`, the other in
//! [`target`](crate::target): its name, its width and the features to ask the CPU for. All other tiles are generic over
//! `lanes::Lanes`; tests and benches go over the families that the CPU has.
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
// Where no family is written for the architecture, nothing uses what families share.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports, unused_macros))]

mod convert;
pub mod diagonal;
mod edges;
mod elementwise;
pub mod exact;
mod exp;
mod family_table;
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
pub mod solve;
mod split;
pub mod stored;
pub mod transposed;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod dots;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use family_table::Family;

/// Queries per group: the width of a panel.
pub const LANES: usize = 16;
/// Queries per block.
pub const BLOCK: usize = 64;
/// Where the 16 rows of a group are cut by the value tile: register blocks of 6, 5 and 5 rows.
pub const ROW_CUTS: [usize; 4] = [0, 6, 11, 16];
/// Register row blocks of a query block, each with its own entry in [`ValueCall::trims`].
pub const ROW_BLOCKS: usize = 12;

/// Probabilities below 2 to this power are 0: they add nothing that f32 holds to a sum of at least 2^-8, but their
/// products with values would be subnormal, and each of those costs a microcode assist. With steep score mods (ALiBi
/// over a ±128 window) that had made kernels half as slow again.
pub const LEAST_POWER: f32 = -100.0;

/// Packs queries: `out[g][x][i] = scale * q[row(16 g + i)][x]`, 0 for lanes beyond `count`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PackCall {
    /// Row 0 of the head's queries.
    pub q: *const f32,
    /// Floats from one row to the next.
    pub q_stride: usize,
    /// Row numbers of the `count` queries, or null for rows `0..count` from `q`.
    pub rows: *const u32,
    /// Queries, 1 to 64.
    pub count: usize,
    /// Width of a query.
    pub d: usize,
    /// `[ceil(count / 16)][d][16]`, 64-byte aligned.
    pub out: *mut f32,
    /// Factor.
    pub scale: f32,
}

/// Memory that is needed soon. It is only hinted at, never read, so any address is allowed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    /// First byte.
    pub start: *const f32,
    /// Pieces of [`AHEAD_LINES`] cache lines; 0 for nothing.
    pub count: usize,
    /// Bytes from one piece to the next, as a number that may wrap.
    pub step: usize,
}

/// Cache lines of a piece of [`Ahead`]: a row of 64 floats.
pub const AHEAD_LINES: usize = 4;

impl Ahead {
    /// Nothing.
    pub const NONE: Self = Self { start: std::ptr::null(), count: 0, step: 0 };
}

/// Scores (SDDMM): `s[g][j][i] = Σ_x k[key(j)][x] · qt[g][x][i]`, and the running maximum per query.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ScoreCall {
    /// Packed queries `[groups][d][16]`.
    pub qt: *const f32,
    /// Row 0 of the segment's keys, or of the head's keys where `keys` is given.
    pub k: *const f32,
    /// Floats from one key to the next.
    pub k_stride: usize,
    /// Row numbers of the keys, or null for rows `0..nkeys` from `k`.
    pub keys: *const u32,
    /// Keys, at least 1.
    pub nkeys: usize,
    /// Width of a key.
    pub d: usize,
    /// Groups of 16 queries, 1 to 4.
    pub groups: usize,
    /// One word per key, or null where all is allowed.
    pub words: *const u64,
    /// Where the segment's first key stands in group 0 of the panel, 64-byte aligned.
    pub s: *mut f32,
    /// Floats from one group's panel to the next.
    pub s_stride: usize,
    /// Running maximum of the allowed scores, `[groups * 16]`, or null to leave it out. NaN scores may or may
    /// not enter it.
    pub max: *mut f32,
    /// Memory to bring into the L2 cache meanwhile; a hint, without effect on any result.
    pub ahead: [Ahead; 4],
}

/// Probabilities, in place: `p[g][j][i] = 2^(s[g][j][i] − max[16 g + i])` where allowed and not below
/// 2^[`LEAST_POWER`], else 0; adds each query's sum over `j` to `sum`. A score of −inf gives 0, NaN stays NaN. `max` holds no infinity.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ExpCall {
    /// Where the segment's first key stands in group 0 of the panel, 64-byte aligned.
    pub s: *mut f32,
    /// Floats from one group's panel to the next.
    pub s_stride: usize,
    /// Keys, at least 1.
    pub nkeys: usize,
    /// Groups of 16 queries, 1 to 4.
    pub groups: usize,
    /// One word per key, or null where all is allowed.
    pub words: *const u64,
    /// What is subtracted, `[groups * 16]`.
    pub max: *const f32,
    /// Sums, `[groups * 16]`.
    pub sum: *mut f32,
}

/// Values (SpMM): `acc[r][:] (+)= Σ_j p[r / 16][j][r % 16] · v[key(j)][:]` for `r < rows`, and at the end,
/// where `out` is given, `out[row(r)][:] = factor[r] · acc[r][:] + restart · rv[row(r)][:]`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ValueCall {
    /// Where the run's first key stands in group 0 of the panel.
    pub p: *const f32,
    /// Floats from one group's panel to the next.
    pub p_stride: usize,
    /// Row 0 of the run's values, or of the head's values where `keys` is given.
    pub v: *const f32,
    /// Floats from one value row to the next.
    pub v_stride: usize,
    /// Row numbers of the values, or null for rows `0..nkeys` from `v`.
    pub keys: *const u32,
    /// Keys; 0 only finishes (where `out` is given) or zeroes `acc` (where `accumulate` is 0).
    pub nkeys: usize,
    /// Width of a value row.
    pub dv: usize,
    /// Queries, 1 to 64.
    pub rows: usize,
    /// Per register row block ([`ROW_CUTS`]), how many keys at the front and at the back of the run have
    /// probability 0 and are skipped: `[ROW_BLOCKS][2]`, or null for none.
    pub trims: *const [u32; 2],
    /// Sums so far, `[rows][acc_stride]`, 64-byte aligned. Contents are unspecified after a call with `out`.
    pub acc: *mut f32,
    /// Floats from one row of `acc` to the next, a multiple of 16, at least `dv`.
    pub acc_stride: usize,
    /// 0: start from zero. 1: start from `acc`.
    pub accumulate: usize,
    /// Row 0 of the output, or null: leave the sums in `acc`.
    pub out: *mut f32,
    /// Floats from one output row to the next.
    pub out_stride: usize,
    /// Row numbers for `out` and `rv`, or null for rows `0..rows` from their starts.
    pub out_rows: *const u32,
    /// Factor per query, `[rows]`.
    pub factor: *const f32,
    /// Row 0 of the restart values; null where there is no restart term (then nothing is read or added).
    pub rv: *const f32,
    /// Floats from one restart row to the next.
    pub rv_stride: usize,
    /// Factor on the restart row.
    pub restart: f32,
    /// As [`ScoreCall::ahead`].
    pub ahead: [Ahead; 2],
}

/// Scattered edges of a block, in three steps with the same record. Edge `e` of query `r` lies at
/// `offsets[r] - offsets[0] .. offsets[r + 1] - offsets[0]` of `s` and, at the same place plus `offsets[0]`, of
/// `edge_keys`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EdgeCall {
    /// Row 0 of the head's queries (edge score).
    pub q: *const f32,
    /// Floats from one query to the next.
    pub q_stride: usize,
    /// Row numbers of the queries, or null for rows `0..rows` from `q`.
    pub q_rows: *const u32,
    /// Factor on the query, as in [`PackCall`]: it is multiplied before keys are, since the product of a query and a key may
    /// overflow where the score does not.
    pub scale: f32,
    /// Queries, 1 to 64.
    pub rows: usize,
    /// Width of keys (edge score).
    pub d: usize,
    /// Width of values (edge value).
    pub dv: usize,
    /// `[rows + 1]` offsets of the block's queries into the head's edge list.
    pub offsets: *const u32,
    /// The head's edge list: key row numbers.
    pub edge_keys: *const u32,
    /// Row 0 of the head's keys (edge score) or values (edge value).
    pub kv: *const f32,
    /// Floats from one of those rows to the next.
    pub kv_stride: usize,
    /// Scores, then probabilities, of the block's edges.
    pub s: *mut f32,
    /// Edge score: running maximum `[rows]`, updated. Edge exp: what is subtracted.
    pub max: *mut f32,
    /// Edge exp: sums `[rows]`, added to.
    pub sum: *mut f32,
    /// Edge value: `acc[r][:] (+)= Σ_e s[e] · v[key(e)][:]`, `[rows][acc_stride]`.
    pub acc: *mut f32,
    /// Floats from one row of `acc` to the next.
    pub acc_stride: usize,
    /// Edge value, 0: start from zero (rows without edges become 0). 1: start from `acc`.
    pub accumulate: usize,
}

/// Score mods, in place: `s[g][j][i] = factor · mods(s[g][j][i])`, and the running maximum per query. Which mods, the
/// function that is called says.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ModCall {
    /// Where the segment's first key stands in group 0 of the panel, 64-byte aligned.
    pub s: *mut f32,
    /// Floats from one group's panel to the next.
    pub s_stride: usize,
    /// Keys, at least 1.
    pub nkeys: usize,
    /// Groups of 16 queries, 1 to 4.
    pub groups: usize,
    /// One word per key, or null where all is allowed. What is not allowed is left as unspecified in the panel as
    /// after `score`, and does not enter the maximum.
    pub words: *const u64,
    /// Running maximum of the allowed scores, `[groups * 16]`, or null to leave it out. NaN scores may or may not
    /// enter it.
    pub max: *mut f32,
    /// Positions of the keys, or null for `first_key`, `first_key + key_step`, ...
    pub keys: *const u32,
    /// Position of the first key, where `keys` is null.
    pub first_key: usize,
    /// Positions from one key to the next, where `keys` is null.
    pub key_step: usize,
    /// Positions of the queries, `[groups * 16]`; lanes beyond the last query repeat its position.
    pub positions: *const i32,
    /// Query head.
    pub head: usize,
    /// Element 0 of every input, then of every table of constants.
    pub inputs: *const *const f32,
    /// The cap (softcap) or the head's slope (alibi); nothing to other mods.
    pub constant: f32,
    /// Factor on the modified score.
    pub factor: f32,
}

/// Score mods of the scattered edges of a block, in place, and the running maximum per query; edges as in
/// [`EdgeCall`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EdgeModCall {
    /// Scores of the block's edges.
    pub s: *mut f32,
    /// Queries, 1 to 64.
    pub rows: usize,
    /// `[rows + 1]` offsets of the block's queries into the head's edge list.
    pub offsets: *const u32,
    /// The head's edge list: positions of keys.
    pub edge_keys: *const u32,
    /// Running maximum `[rows]`, updated.
    pub max: *mut f32,
    /// As in [`ModCall`], `[rows]`.
    pub positions: *const i32,
    /// Query head.
    pub head: usize,
    /// As in [`ModCall`].
    pub inputs: *const *const f32,
}

/// What queries are multiplied with for the tiles' softcap of `cap`, which computes tanh x from 2x log2 e.
pub fn softcap_scale(cap: f64) -> f64 {
    2.0 * std::f64::consts::LOG2_E / cap
}

/// A tile that returns nothing.
pub type Tile<Call> = unsafe extern "C" fn(*const Call);

/// Families in `std::arch`. One line per family.
const FAMILIES: &[Family] = &[
    #[cfg(target_arch = "x86_64")]
    avx2::FAMILY,
    #[cfg(target_arch = "x86_64")]
    avx512::FAMILY,
];

/// The tiles of `isa`; `None` where this CPU lacks the instructions, and for the portable family, whose tiles are
/// emitted with each kernel.
pub fn family(isa: crate::target::Isa) -> Option<Family> {
    FAMILIES.iter().find(|family| family.isa == isa && isa.available()).copied()
}

//! The record with which a kernel is called: plain data that generated code reads by offset.

use crate::plan::{MOST_FACTORS, MOST_OPERANDS};

/// What a kernel function works on: block rows `first_row .. end_row` of one (batch, head). Elements of the caller's
/// tensors are of the plan's `dtype`, those of workspace f32.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct KernelArgs {
    /// The mask's [`Tables`](super::Tables), those of the function's walk.
    pub tables: *const u64,
    /// The worker's workspace, 64-byte aligned.
    pub local: *mut u8,
    /// First block row.
    pub first_row: usize,
    /// Block row behind the last.
    pub end_row: usize,
    /// Query head.
    pub head: usize,
    /// What every row subtracted from its scores, in the base-2 domain, `[q_len]` (−inf where a row has no key), or
    /// null where it is not wanted.
    pub row_max: *mut f32,
    /// Row sums, `[q_len]`; null together with `row_max`.
    pub row_sum: *mut f32,
    /// Element 0 of every input of the score mods, then of every table of their constants
    /// ([`ScoreMods::constants`](crate::spec::score::ScoreMods::constants)); null where there are no mods.
    pub inputs: *const *const f32,
    /// Element 0 of the gradient of every input of the score mods, added to; null where there are none.
    pub input_gradients: *const *mut f32,
    /// Not 0: some tensor holds NaN or Inf, and gradients are taken pair by pair.
    pub exact: usize,
    /// Dropout's [`row_key`](crate::dropout::row_key) of every query, by place, for weights; null where none are dropped.
    pub row_keys: *const u32,
    /// The same for the rows behind the hop of the call.
    pub hop_keys: *const u32,
    /// Dropout's threshold for weights.
    pub threshold: u32,
    /// 1 / (1 − rate of dropout) for weights.
    pub keep: f32,
    /// Dropout's threshold for rows behind a hop.
    pub hop_threshold: u32,
    /// 1 / (1 − rate of dropout) for rows behind a hop.
    pub hop_keep: f32,
    /// Factors of the call ([`StageCall::factors`](crate::plan::StageCall)).
    pub factors: [f32; MOST_FACTORS],
    /// Operands of the call ([`StageCall::operands`](crate::plan::StageCall)).
    pub operands: [OperandArgs; MOST_OPERANDS],
}

/// An operand of a call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct OperandArgs {
    /// Row 0, or the first element.
    pub base: *mut u8,
    /// Elements from one row to the next, where it has rows.
    pub stride: usize,
}

impl OperandArgs {
    /// No operand.
    pub const NONE: Self = Self { base: std::ptr::null_mut(), stride: 0 };
}

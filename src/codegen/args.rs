//! The record with which a kernel is called: plain data that generated code reads by offset.

/// What a kernel function works on: block rows `first_row .. end_row` of one (batch, head). Elements of q, k, v and
/// the output are of the plan's `dtype`, those of Z and of parts f32.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct KernelArgs {
    /// Row 0 of the head's queries.
    pub q: *const u8,
    /// Elements from one query to the next.
    pub q_stride: usize,
    /// Row 0 of the head's keys.
    pub k: *const u8,
    /// Elements from one key to the next.
    pub k_stride: usize,
    /// Row 0 of the head's values.
    pub v: *const u8,
    /// Elements from one value to the next.
    pub v_stride: usize,
    /// What every row subtracted from its scores, in the base-2 domain, `[q_len]` (−inf where a row has no key), or
    /// null where it is not wanted.
    pub row_max: *mut f32,
    /// Row sums, `[q_len]`; null together with `row_max`.
    pub row_sum: *mut f32,
    /// The mask's [`Tables`](super::Tables).
    pub tables: *const u64,
    /// The worker's scratch, 64-byte aligned.
    pub local: *mut u8,
    /// The head's scratch, 64-byte aligned.
    pub shared: *mut u8,
    /// First block row.
    pub first_row: usize,
    /// Block row behind the last.
    pub end_row: usize,
    /// Which hop (functions of one hop).
    pub hop: usize,
    /// Row 0 of what a hop reads: the head's values, or a buffer of Z.
    pub source: *const u8,
    /// Elements from one of its rows to the next.
    pub source_stride: usize,
    /// Row 0 of what is written: a buffer of Z, a part's rows, or the head's output.
    pub target: *mut u8,
    /// Elements from one of its rows to the next.
    pub target_stride: usize,
    /// Query head.
    pub head: usize,
    /// Element 0 of every input of the score mods, then of every table of their constants
    /// ([`ScoreMods::constants`](crate::spec::score::ScoreMods::constants)); null where there are no mods.
    pub inputs: *const *const f32,
}

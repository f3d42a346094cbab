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
    /// What kernels for training need besides; null for others.
    pub training: *const TrainingArgs,
}

/// What a kernel for training needs besides: `source` of its gradient's pass is the row 0 of all Z, side by side, for
/// every key, `target` that of the gradient of queries, both as wide as [`KernelPlan::gradient_depth`] and `head_dim`.
///
/// [`KernelPlan::gradient_depth`]: crate::plan::KernelPlan::gradient_depth
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TrainingArgs {
    /// What the softmax of every row is computed again from: its log-sum-exp in the base-2 domain, 0 for a row without
    /// keys, by place.
    pub references: *const f32,
    /// Of every query, by number, the gradient of each Z of the pass times its step, side by side.
    pub g: *const f32,
    /// Elements from one query to the next.
    pub g_stride: usize,
    /// Σ p dp of every query, by place.
    pub delta: *const f32,
    /// Row 0 of the gradient of keys, added to.
    pub dk: *mut f32,
    /// Elements from one key to the next.
    pub dk_stride: usize,
    /// Row 0 of the gradient of values, to which the pass adds that of its only hop; null where hops have done so.
    pub dv: *mut f32,
    /// Elements from one value to the next.
    pub dv_stride: usize,
    /// Element 0 of the gradient of every input of the score mods, added to; null where there are none.
    pub inputs: *const *mut f32,
    /// Not 0: the gradient of queries is added to.
    pub accumulate: usize,
    /// Not 0: some tensor holds NaN or Inf.
    pub exact: usize,
    /// Dropout's [`row_key`](crate::dropout::row_key) of every query, by place; null where no weights are dropped.
    pub row_keys: *const u32,
    /// Dropout's threshold for weights.
    pub threshold: u32,
    /// 1 / (1 − rate of dropout).
    pub keep: f32,
}

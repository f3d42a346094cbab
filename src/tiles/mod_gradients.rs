//! Call records of the passes that go back through score mods. Which mods, the function that is called says.
//!
//! With s a scaled score and f the mods: given d = dL / d f(s), the passes make `d = factor · d · f'(s)` of it, and add
//! d times the derivative of f by every element of an input that it reads to the gradient of that input. Where d is 0 (a
//! pair that is not allowed, say) it stays 0 and adds nothing, whatever f'(s) is. Sums are made key after key, and for a
//! key in one order, so that they are the same in every run.

/// Back through score mods over a panel.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ModGradientCall {
    /// Scaled scores before the mods, as a pass by [`ModCall`](super::ModCall) takes them: where the segment's first key stands
    /// in group 0 of the panel. May hold anything where `d` is 0.
    pub s: *const f32,
    /// Floats from one group's panel to the next.
    pub s_stride: usize,
    /// The gradient by the modified scores, in natural units: without the factor log2 e that scores have for the tiles'
    /// exponential; becomes that by the scaled scores times `factor`. A panel of the same shape.
    pub d: *mut f32,
    /// Floats from one group's panel to the next.
    pub d_stride: usize,
    /// Keys, at least 1.
    pub nkeys: usize,
    /// Groups of 16 queries, 1 to 4.
    pub groups: usize,
    /// Queries, 1 to 64: lanes beyond add nothing, and their `d` becomes 0.
    pub count: usize,
    /// One word per key, or null. Groups whose 16 bits are 0 may be skipped: their `d` is 0 already.
    pub words: *const u64,
    /// As in [`ModCall`](super::ModCall).
    pub keys: *const u32,
    /// As in [`ModCall`](super::ModCall).
    pub first_key: usize,
    /// As in [`ModCall`](super::ModCall).
    pub key_step: usize,
    /// As in [`ModCall`](super::ModCall), `[groups * 16]`.
    pub positions: *const i32,
    /// Query head.
    pub head: usize,
    /// As in [`ModCall`](super::ModCall).
    pub inputs: *const *const f32,
    /// Element 0 of the gradient of every input, which is added to, or null for an input whose gradient is not wanted.
    /// Read for as many inputs as the mods have.
    pub gradients: *const *mut f32,
    /// Factor on the gradient by the scaled score.
    pub factor: f32,
}

/// The same over the scattered edges of a block; edges as in [`EdgeCall`](super::EdgeCall).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EdgeModGradientCall {
    /// Scaled scores before the mods of the block's edges.
    pub s: *const f32,
    /// As in [`ModGradientCall`], of the block's edges.
    pub d: *mut f32,
    /// Queries, 1 to 64.
    pub rows: usize,
    /// `[rows + 1]` offsets of the block's queries into the head's edge list.
    pub offsets: *const u32,
    /// The head's edge list: positions of keys.
    pub edge_keys: *const u32,
    /// As in [`ModCall`](super::ModCall), `[rows]`.
    pub positions: *const i32,
    /// Query head.
    pub head: usize,
    /// As in [`ModCall`](super::ModCall).
    pub inputs: *const *const f32,
    /// As in [`ModGradientCall`].
    pub gradients: *const *mut f32,
    /// As in [`ModGradientCall`].
    pub factor: f32,
}

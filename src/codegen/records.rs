//! Call records on a function's stack, with a setter for each field that code writes.
//!
//! A record belongs to one operation of a function. Fields that never change are written once, at the function's start,
//! those of a block row at its beginning, the rest before each call.

use std::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value};

use super::emit::Emit;
use crate::tiles::diagonal::DiagonalCall;
use crate::tiles::exact::ExactCall;
use crate::tiles::gradient::{Dropped, EdgeGradientCall, GradientCall};
use crate::tiles::half_panel::PanelCall;
use crate::tiles::join::JoinCall;
use crate::tiles::mod_gradients::{EdgeModGradientCall, ModGradientCall};
use crate::tiles::rows::RowsCall;
use crate::tiles::solve::SolveCall;
use crate::tiles::stored::StoredCall;
use crate::tiles::transposed::{ScatterCall, TransposedCall};
use crate::tiles::{Ahead, EdgeCall, EdgeModCall, ExpCall, ModCall, PackCall, ScoreCall, ValueCall};

/// What a field is set to.
#[derive(Clone, Copy)]
pub(super) enum Setting {
    /// A value of the function.
    Value(Value),
    /// An integer, or null.
    Int(i64),
    /// A constant.
    Float(f32),
}

impl From<Value> for Setting {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

impl From<i64> for Setting {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<usize> for Setting {
    fn from(number: usize) -> Self {
        Self::Int(number as i64)
    }
}

impl From<f32> for Setting {
    fn from(number: f32) -> Self {
        Self::Float(number)
    }
}

/// Writes a field of a record.
fn set(e: &mut Emit<'_>, record: Value, offset: usize, setting: Setting) {
    let value = match setting {
        Setting::Value(value) => value,
        Setting::Int(number) => e.int(number),
        Setting::Float(number) => e.b.ins().f32const(number),
    };
    e.store(value, record, offset as i32);
}

/// A record of type `$call`: `$field` sets the field of that name, `$name = $path` one within another.
macro_rules! record {
    ($(#[$doc:meta])* $record:ident: $call:ty { $($field:ident $(= $base:ident + $inner:ty)?),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $record(Value);

        $(#[$doc])*
        impl $record {
            /// Reserves it on the stack.
            pub fn new<'e>(cx: &mut impl AsMut<Emit<'e>>) -> Self {
                Self(cx.as_mut().stack(size_of::<$call>() as u32))
            }

            /// Where it is.
            #[allow(dead_code, reason = "not every record is passed to a tile as it is")]
            pub const fn address(self) -> Value {
                self.0
            }

            $(
                pub fn $field<'e>(self, cx: &mut impl AsMut<Emit<'e>>, setting: impl Into<Setting>) {
                    let offset = record!(@offset $call, $field $(, $base, $inner)?);
                    set(cx.as_mut(), self.0, offset, setting.into());
                }
            )*
        }
    };
    (@offset $call:ty, $field:ident) => { offset_of!($call, $field) };
    (@offset $call:ty, $field:ident, $base:ident, $inner:ty) => { offset_of!($call, $base) + offset_of!($inner, $field) };
}

record!(
    /// Of the tile that packs queries.
    PackRecord: PackCall { q, q_stride, rows, count, d, out, scale }
);
record!(
    /// Of the score tile.
    ScoreRecord: ScoreCall { qt, k, k_stride, keys, nkeys, d, groups, words, s, s_stride, max }
);
record!(
    /// Of the exponential.
    ExpRecord: ExpCall { s, s_stride, nkeys, groups, words, max, sum }
);
record!(
    /// Of the value tile.
    ValueRecord: ValueCall {
        p, p_stride, v, v_stride, keys, nkeys, dv, rows, trims, acc, acc_stride, accumulate, out, out_stride, out_rows,
        factor, rv, rv_stride, restart,
    }
);
record!(
    /// Of values pair by pair.
    ExactRecord: ExactCall {
        p, p_stride, v, v_stride, keys, nkeys, dv, rows, words, acc, acc_stride, accumulate, skip_zeros,
    }
);
record!(
    /// Of the tiles over scattered edges.
    EdgeRecord: EdgeCall {
        q, q_stride, q_rows, scale, rows, d, dv, offsets, edge_keys, kv, kv_stride, s, max, sum, acc, acc_stride, accumulate,
    }
);
impl EdgeRecord {
    /// Reserves it with strides of 0: whatever a tile reads, the wrappers form addresses from all of them.
    pub fn at_rest<'e>(cx: &mut impl AsMut<Emit<'e>>) -> Self {
        let edge = Self::new(cx);
        edge.q_stride(cx, 0_i64);
        edge.kv_stride(cx, 0_i64);
        edge.acc_stride(cx, 0_i64);
        edge
    }
}

record!(
    /// Of score mods over a panel.
    ModRecord: ModCall {
        s, s_stride, nkeys, groups, words, max, keys, first_key, key_step, positions, head, inputs, constant, factor,
    }
);
record!(
    /// Of score mods over scattered edges.
    EdgeModRecord: EdgeModCall { s, rows, offsets, edge_keys, max, positions, head, inputs }
);
record!(
    /// Of the ways between panels in f32 and in bf16.
    HalfRecord: PanelCall { wide, wide_stride, half, half_stride, nkeys, groups, sum }
);
record!(
    /// Of the gradient of a softmax, and of dropout, over a panel.
    GradientRecord: GradientCall {
        p, dp, stride, dp_stride, leaves, nkeys, groups, delta, scale,
        row_keys = dropped + Dropped, keys = dropped + Dropped, first_key = dropped + Dropped,
        key_step = dropped + Dropped, threshold = dropped + Dropped, keep = dropped + Dropped,
    }
);
record!(
    /// The same over scattered edges.
    EdgeGradientRecord: EdgeGradientCall {
        p, dp, leaves, rows, offsets, edge_keys, delta, scale,
        row_keys = dropped + Dropped, threshold = dropped + Dropped, keep = dropped + Dropped,
    }
);
record!(
    /// Of score mods backward over a panel.
    ModGradientRecord: ModGradientCall {
        s, s_stride, d, d_stride, nkeys, groups, count, words, keys, first_key, key_step, positions, head, inputs, gradients,
        factor,
    }
);
record!(
    /// The same over scattered edges.
    EdgeModGradientRecord: EdgeModGradientCall {
        s, d, rows, offsets, edge_keys, positions, head, inputs, gradients, factor,
    }
);
record!(
    /// Of the transposed value tile.
    TransposedRecord: TransposedCall {
        p, p_stride, nkeys, rows, words, x, x_stride, x_rows, width, out, out_stride, keys, factor, exact,
    }
);
record!(
    /// The same over scattered edges.
    ScatterRecord: ScatterCall {
        q = edges + EdgeCall, q_stride = edges + EdgeCall, q_rows = edges + EdgeCall, scale = edges + EdgeCall,
        rows = edges + EdgeCall, dv = edges + EdgeCall, offsets = edges + EdgeCall, edge_keys = edges + EdgeCall,
        s = edges + EdgeCall, out, out_stride,
    }
);
record!(
    /// Of the tiles row by row.
    RowsRecord: RowsCall {
        x, x_stride, x_rows, y, y_stride, y_rows, w, w_stride, w_rows, out, out_stride, out_rows, count, width, lanes_in, lanes_out, factor, restart,
        row_keys, threshold, keep, dtype,
    }
);
record!(
    /// Of the tiles that solve a block row's triangle.
    SolveRecord: SolveCall { p, p_stride, rows, factor, z, z_stride, width }
);
record!(
    /// Of the tiles that gather the weights between queries and their own keys.
    DiagonalRecord: DiagonalCall {
        p, p_stride, nkeys, first_key, keys, offsets, edge_keys, place, rows, out, z, z_stride, width,
    }
);
record!(
    /// Of the join of a head's parts.
    JoinRecord: JoinCall {
        partial, row_stride, part_stride, max, sum, statistics_stride, parts, rows, dv, out, out_stride, dtype, out_max,
        out_sum,
    }
);
record!(
    /// Of the wrappers around tiles over tensors in 16 bits.
    StoredRecord: StoredCall { tile, call, buffer, wide }
);

/// The prefetches of a record.
#[derive(Clone, Copy)]
pub(super) struct Hints {
    record: Value,
    /// Where the first stands.
    offset: usize,
    /// How many there are.
    count: usize,
}

impl Hints {
    pub const fn of_score(record: ScoreRecord) -> Self {
        Self { record: record.0, offset: offset_of!(ScoreCall, ahead), count: 4 }
    }

    pub const fn of_value(record: ValueRecord) -> Self {
        Self { record: record.0, offset: offset_of!(ValueCall, ahead), count: 2 }
    }

    /// Asks the next call to prefetch: by hint `slot`, from `start` on, `count` pieces `step` bytes apart.
    pub fn set<'e>(self, cx: &mut impl AsMut<Emit<'e>>, slot: usize, (start, count, step): (Value, Value, Value)) {
        let e = cx.as_mut();
        let at = self.offset + slot * size_of::<Ahead>();
        set(e, self.record, at + offset_of!(Ahead, start), start.into());
        set(e, self.record, at + offset_of!(Ahead, count), count.into());
        set(e, self.record, at + offset_of!(Ahead, step), step.into());
    }

    /// Takes back what was asked for.
    pub fn clear<'e>(self, cx: &mut impl AsMut<Emit<'e>>) {
        for slot in 0..self.count {
            let at = self.offset + slot * size_of::<Ahead>() + offset_of!(Ahead, count);
            set(cx.as_mut(), self.record, at, Setting::Int(0));
        }
    }
}

//! The tiles of one family as a table, and the macro that fills it: one line for each tile that is written once for all
//! families, and the two that a family writes by hand.

use super::calls::{EdgeCall, ExpCall, ModCall, PackCall, ScoreCall, Tile, ValueCall};
use super::gradient::{EdgeGradientCall, GradientCall};
use super::half_panel::PanelCall;
use super::join::JoinCall;
use super::rows::RowsCall;
use super::stored::StoredFamily;
use super::transposed::{ScatterCall, TransposedCall};

/// The tiles of one instruction set. That the CPU has it, only a [`Family`](super::Family) tells.
#[derive(Debug, Clone, Copy)]
pub struct TileSet {
    /// Which one.
    pub isa: crate::target::Isa,
    /// The features that the tiles are compiled with, as `target_feature` takes them.
    pub features: &'static str,
    /// Floats in a vector.
    pub lanes: usize,
    /// See [`PackCall`].
    pub pack: Tile<PackCall>,
    /// See [`ScoreCall`].
    pub score: Tile<ScoreCall>,
    /// See [`ExpCall`].
    pub exp: Tile<ExpCall>,
    /// See [`ValueCall`]. Returns 1 when `out` was given and a value written to it is not finite, else 0.
    pub value: unsafe extern "C" fn(*const ValueCall) -> u64,
    /// See [`EdgeCall`]: `s[e] = scale · q[r] · k[key(e)]`.
    pub edge_score: Tile<EdgeCall>,
    /// See [`EdgeCall`]: `s[e] = 2^(s[e] − max[r])`.
    pub edge_exp: Tile<EdgeCall>,
    /// See [`EdgeCall`].
    pub edge_value: Tile<EdgeCall>,
    /// See [`JoinCall`].
    pub join: Tile<JoinCall>,
    /// See [`half_panel::narrow`](super::half_panel::narrow).
    pub narrow_panel: Tile<PanelCall>,
    /// See [`half_panel::widen`](super::half_panel::widen).
    pub widen_panel: Tile<PanelCall>,
    /// See [`ModCall`]: `factor · c · tanh(s / c)`, where the panel holds [`softcap_scale`](super::softcap_scale) · s; reads
    /// no positions, head or inputs.
    pub softcap: Tile<ModCall>,
    /// See [`ModCall`]: `factor · (s + slope · (k − q))`; reads no head or inputs.
    pub alibi: Tile<ModCall>,
    /// See [`TransposedCall`].
    pub transposed: Tile<TransposedCall>,
    /// See [`ScatterCall`].
    pub scatter: Tile<ScatterCall>,
    /// See [`GradientCall`].
    pub gradient: Tile<GradientCall>,
    /// See [`EdgeGradientCall`].
    pub edge_gradient: Tile<EdgeGradientCall>,
    /// See [`rows::scale_rows`](super::rows::scale_rows).
    pub scale_rows: Tile<RowsCall>,
    /// See [`rows::add_rows`](super::rows::add_rows).
    pub add_rows: Tile<RowsCall>,
    /// See [`rows::copy_rows`](super::rows::copy_rows).
    pub copy_rows: Tile<RowsCall>,
    /// See [`rows::dot_rows`](super::rows::dot_rows).
    pub dot_rows: Tile<RowsCall>,
    /// See [`rows::drop_rows`](super::rows::drop_rows).
    pub drop_rows: Tile<RowsCall>,
    /// Tiles over bf16.
    pub(super) bf16: StoredFamily,
    /// Tiles over f16.
    pub(super) f16: StoredFamily,
    /// Independent chains of multiply-adds, for as many steps.
    pub(super) chains: unsafe fn(usize) -> f32,
}

/// `TILES`, the [`TileSet`] of a family with these vectors and features. Every body is inlined into a function that has
/// the features.
macro_rules! tile_set {
    (@tiles $features:literal $($name:ident: $call:ident = $file:ident::$body:ident $(<$argument:ty>)?;)*) => {$(
        #[target_feature(enable = $features)]
        unsafe extern "C" fn $name(call: *const $call) {
            // SAFETY: contract of `tiles`; a family exists only where the CPU has its instructions.
            unsafe { super::$file::$body$(::<$argument>)?(&*call) }
        }
    )*};
    ($isa:ident, $vectors:ty, $features:literal, score: $score:ident, value: $value:ident) => {
        use super::calls::*;
        use super::convert::{Bits, Convert, StoredRows, narrow_rows, widen_rows};
        use super::gradient::{EdgeGradientCall, GradientCall};
        use super::half_panel::PanelCall;
        use super::join::JoinCall;
        use super::rows::RowsCall;
        use super::tile_set::{TileSet, tile_set};
        use super::transposed::{ScatterCall, TransposedCall};

        /// The family's tiles. Handed out only by [`super::family`], which asks the CPU.
        pub(super) static TILES: TileSet = TileSet {
            isa: crate::target::Isa::$isa,
            features: $features,
            lanes: <$vectors as super::lanes::Lanes>::WIDTH,
            score: $score,
            value: $value,
            bf16: super::stored::of::<Stored<half::bf16>>(),
            f16: super::stored::of::<Stored<half::f16>>(),
            pack, exp, edge_score, edge_exp, edge_value, join, narrow_panel, widen_panel, softcap, alibi, transposed,
            scatter, gradient, edge_gradient, scale_rows, add_rows, copy_rows, dot_rows, drop_rows, chains,
        };

        tile_set! {
            @tiles $features
            pack: PackCall = pack::pack<$vectors>;
            exp: ExpCall = exp::exp<$vectors>;
            edge_score: EdgeCall = edges::edge_score<$vectors>;
            edge_exp: EdgeCall = edges::edge_exp<$vectors>;
            edge_value: EdgeCall = edges::edge_value<$vectors>;
            join: JoinCall = join::join_rows;
            narrow_panel: PanelCall = half_panel::narrow_keys;
            widen_panel: PanelCall = half_panel::widen_keys;
            softcap: ModCall = elementwise::softcap<$vectors>;
            alibi: ModCall = elementwise::alibi<$vectors>;
            transposed: TransposedCall = transposed::transposed_of_vectors<$vectors>;
            scatter: ScatterCall = transposed::scatter_fused;
            gradient: GradientCall = gradient::gradient_of_vectors<$vectors>;
            edge_gradient: EdgeGradientCall = gradient::edges;
            scale_rows: RowsCall = rows::scale<$vectors>;
            add_rows: RowsCall = rows::add<$vectors>;
            copy_rows: RowsCall = rows::copy<$vectors>;
            dot_rows: RowsCall = rows::dot<$vectors>;
            drop_rows: RowsCall = rows::drop<$vectors>;
        }

        #[target_feature(enable = $features)]
        unsafe fn chains(steps: usize) -> f32 {
            // SAFETY: as above.
            unsafe { super::chains::chains::<$vectors>(steps) }
        }

        /// Rows of `T` with the family's vectors.
        pub(super) struct Stored<T>(std::marker::PhantomData<T>);

        impl<T: Bits> Convert for Stored<T> {
            unsafe fn widen(from: &StoredRows, to: *mut f32, to_stride: usize) {
                #[target_feature(enable = $features)]
                unsafe fn rows<T: Bits>(from: &StoredRows, to: *mut f32, to_stride: usize) {
                    // SAFETY: the caller's.
                    unsafe { widen_rows::<$vectors, T>(from, to, to_stride) }
                }
                // SAFETY: the caller's.
                unsafe { rows::<T>(from, to, to_stride) }
            }

            unsafe fn narrow(from: *const f32, from_stride: usize, to: &StoredRows) {
                #[target_feature(enable = $features)]
                unsafe fn rows<T: Bits>(from: *const f32, from_stride: usize, to: &StoredRows) {
                    // SAFETY: the caller's.
                    unsafe { narrow_rows::<$vectors, T>(from, from_stride, to) }
                }
                // SAFETY: the caller's.
                unsafe { rows::<T>(from, from_stride, to) }
            }
        }
    };
}
pub(super) use tile_set;

//! The tiles of one family as a table, and the macro that fills it: a line for each tile that is written once for all
//! families, and the two that a family writes by hand.

use super::gradient::{EdgeGradientCall, GradientCall};
use super::half_panel::PanelCall;
use super::join::JoinCall;
use super::rows::RowsTiles;
use super::solve::SolveCall;
use super::stored::StoredFamily;
use super::transposed::{ScatterCall, TransposedCall};
use super::{EdgeCall, ExpCall, ModCall, PackCall, ScoreCall, Tile, ValueCall};

/// The tiles of one instruction set, [`Isa::lanes`](crate::target::Isa::lanes) floats to a vector.
///
/// A value of this type is proof that the CPU has every one of [`Isa::features`](crate::target::Isa::features), and nothing
/// below it is compiled with any other: [`super::family`] asks the CPU for them.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Which one.
    pub isa: crate::target::Isa,
    /// What the tiles are compiled with, as `target_feature` takes it.
    pub features: &'static str,
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
    /// See [`RowsCall`](super::rows::RowsCall): copy, scale, add, dot, drop.
    pub rows: RowsTiles,
    /// See [`SolveCall`]: (I − W) z = y.
    pub solve: Tile<SolveCall>,
    /// See [`SolveCall`]: (I − Wᵀ) z = y.
    pub solve_transposed: Tile<SolveCall>,
    /// The wrappers for bf16, with dot products of pairs where the family has them.
    pub(super) bf16: StoredFamily,
    /// The wrappers for f16.
    pub(super) f16: StoredFamily,
    /// What the peak is measured with: [`chains`](super::peak::chains).
    pub(super) chains: unsafe fn(usize) -> f32,
}

/// `FAMILY`, the [`Family`] of an instruction set with these vectors and features. Every body is inlined into a function
/// that has the features.
macro_rules! family_table {
    (@tiles $features:literal $($name:ident($call:ty) = $body:path;)*) => {$(
        #[target_feature(enable = $features)]
        unsafe extern "C" fn $name(call: *const $call) {
            // SAFETY: contract of `tiles`; a family exists only where the CPU has its instructions.
            unsafe { $body(&*call) }
        }
    )*};
    ($isa:ident, $vectors:ty, $features:literal, score: $score:ident, value: $value:ident, dots: $dots:expr) => {
        /// The family. Handed out only by [`super::family`], which asks the CPU.
        pub(super) const FAMILY: super::Family = super::Family {
            isa: crate::target::Isa::$isa,
            features: $features,
            score: $score,
            value: $value,
            bf16: super::stored::of::<Stored<half::bf16>>($dots),
            f16: super::stored::of::<Stored<half::f16>>(None),
            pack, exp, edge_score, edge_exp, edge_value, join, narrow_panel, widen_panel, softcap, alibi, transposed,
            scatter, gradient, edge_gradient, solve, solve_transposed, chains,
            rows: [copy_rows, scale_rows, add_rows, dot_rows, drop_rows, sum_rows],
        };
        const _: () = assert!(<$vectors as super::lanes::Vectors>::WIDTH == crate::target::Isa::$isa.lanes());

        super::family_table::family_table! {
            @tiles $features
            pack(super::PackCall) = super::pack::pack::<$vectors>;
            exp(super::ExpCall) = super::exp::exp::<$vectors>;
            edge_score(super::EdgeCall) = super::edges::edge_score::<$vectors>;
            edge_exp(super::EdgeCall) = super::edges::edge_exp::<$vectors>;
            edge_value(super::EdgeCall) = super::edges::edge_value::<$vectors>;
            join(super::join::JoinCall) = super::join::join_rows;
            narrow_panel(super::half_panel::PanelCall) = super::half_panel::narrow_keys;
            widen_panel(super::half_panel::PanelCall) = super::half_panel::widen_keys;
            softcap(super::ModCall) = super::elementwise::softcap::<$vectors>;
            alibi(super::ModCall) = super::elementwise::alibi::<$vectors>;
            transposed(super::transposed::TransposedCall) = super::transposed::register_tiles::<$vectors>;
            scatter(super::transposed::ScatterCall) = super::transposed::scatter_edges::<true>;
            gradient(super::gradient::GradientCall) = super::gradient::panel::<$vectors>;
            edge_gradient(super::gradient::EdgeGradientCall) = super::gradient::edges;
            solve(super::solve::SolveCall) = super::solve::solve_rows::<$vectors, false>;
            solve_transposed(super::solve::SolveCall) = super::solve::solve_rows::<$vectors, true>;
            copy_rows(super::rows::RowsCall) = super::rows::copy;
            scale_rows(super::rows::RowsCall) = super::rows::scale;
            add_rows(super::rows::RowsCall) = super::rows::add;
            dot_rows(super::rows::RowsCall) = super::rows::dot;
            drop_rows(super::rows::RowsCall) = super::rows::drop;
            sum_rows(super::rows::RowsCall) = super::rows::sum;
        }

        #[target_feature(enable = $features)]
        unsafe fn chains(steps: usize) -> f32 {
            // SAFETY: as above.
            unsafe { super::peak::chains::<$vectors>(steps) }
        }

        /// Rows of `T` with the family's vectors.
        pub(super) struct Stored<T>(std::marker::PhantomData<T>);

        impl<T: super::convert::Bits> super::convert::Convert for Stored<T> {
            #[target_feature(enable = $features)]
            unsafe fn widen(from: &super::convert::StoredRows, to: *mut f32, to_stride: usize) {
                // SAFETY: the caller's.
                unsafe { super::convert::widen_rows::<$vectors, T>(from, to, to_stride) }
            }

            #[target_feature(enable = $features)]
            unsafe fn narrow(from: *const f32, from_stride: usize, to: &super::convert::StoredRows) {
                // SAFETY: the caller's.
                unsafe { super::convert::narrow_rows::<$vectors, T>(from, from_stride, to) }
            }
        }
    };
}
pub(super) use family_table;

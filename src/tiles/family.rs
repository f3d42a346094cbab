//! Which tiles this CPU runs.
//!
//! In: an instruction set. Out: a [`Family`], or none where the CPU lacks a feature that any of its tiles is compiled with.

use std::ops::Deref;

use half::{bf16, f16};

use super::convert::Plain;
use super::stored::{self, StoredFamily};
use super::tile_set::TileSet;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, dots};
use crate::dtype::Dtype;
use crate::target::Isa;

/// Families in `std::arch`. One line per family.
const TILE_SETS: &[&TileSet] = &[
    #[cfg(target_arch = "x86_64")]
    &avx2::TILES,
    #[cfg(target_arch = "x86_64")]
    &avx512::TILES,
];

/// Tiles whose instructions this CPU has: [`family`] alone makes values of this type, and asks the CPU for every feature
/// in [`TileSet::features`] before.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    tiles: &'static TileSet,
}

impl Deref for Family {
    type Target = TileSet;

    fn deref(&self) -> &TileSet {
        self.tiles
    }
}

/// The tiles of `isa`; `None` where this CPU lacks the instructions, and for the portable family, whose tiles are
/// emitted with each kernel.
pub fn family(isa: Isa) -> Option<Family> {
    TILE_SETS.iter().find(|tiles| tiles.isa == isa && isa.available()).map(|tiles| Family { tiles })
}

/// All that this CPU runs.
#[cfg(test)]
pub(super) fn families() -> Vec<Family> {
    Isa::ALL.into_iter().filter_map(family).collect()
}

/// The wrappers of `dtype` around the tiles of `isa`, element by element where the CPU lacks the instructions; `None`
/// for f32, which needs none.
pub fn stored_family(isa: Isa, dtype: Dtype) -> Option<StoredFamily> {
    match (dtype, family(isa)) {
        (Dtype::F32, _) => None,
        (Dtype::Bf16, Some(family)) => Some(family.bf16),
        (Dtype::F16, Some(family)) => Some(family.f16),
        (Dtype::Bf16, None) => Some(stored::of::<Plain<bf16>>()),
        (Dtype::F16, None) => Some(stored::of::<Plain<f16>>()),
    }
}

/// Whether scores of bf16 by dot products of pairs ([`with_dots`](StoredFamily::with_dots)) exist on this CPU for this
/// family and storage type, and serve queries of width `d`.
pub fn dots_serve(isa: Isa, dtype: Dtype, d: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && dtype == Dtype::Bf16 {
        return d >= 2 && dots::available();
    }
    let _ = (isa, dtype, d);
    false
}

impl StoredFamily {
    /// The same with scores by dot products of bf16 pairs; only where [`dots_serve`] says so.
    #[must_use]
    pub fn with_dots(self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if dots::available() {
            return Self { pack: dots::pack, score: dots::score, ..self };
        }
        self
    }
}

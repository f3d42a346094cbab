//! What of a plan may be tuned for a machine and a length without changing what it computes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Strategy;
use crate::dtype::Dtype;

/// Sizes that a plan is cut by. Results of different sizes differ by rounding alone. The 64 queries of a block row are
/// not among them: a mask has one `u64` word for each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Keys of a joint step at most, where P is not stored.
    pub joint_keys: u32,
    /// Keys of a chunk of a stream, and of the parts that longer pieces are cut into.
    pub chunk_keys: u32,
    /// Block rows that a worker takes at a time, where rows are shared out: at least so many where rows need not wait
    /// for each other, exactly so many in a hop over all rows. 0 leaves it to the number of rows and workers.
    pub unit_rows: u32,
}

/// Keys of a joint step where nothing else is asked for: 64 queries of f32 scores over them take 288 KiB, which an L2
/// holds beside the keys and values.
pub const JOINT_KEYS: u32 = 1152;
/// Keys of a chunk where nothing else is asked for.
pub const CHUNK_KEYS: u32 = 1024;

impl Default for Tuning {
    fn default() -> Self {
        Self { joint_keys: JOINT_KEYS, chunk_keys: CHUNK_KEYS, unit_rows: 0 }
    }
}

impl Tuning {
    /// Keys that a step or a chunk may have.
    pub const KEYS: std::ops::RangeInclusive<u32> = 64..=16_384;
    /// Most block rows of a unit.
    pub const MOST_UNIT_ROWS: u32 = 1 << 20;

    /// Whether nothing but the default is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether every size is one that a plan can have.
    pub fn is_valid(&self) -> bool {
        let Self { joint_keys, chunk_keys, unit_rows } = self;
        Self::KEYS.contains(joint_keys) && Self::KEYS.contains(chunk_keys) && *unit_rows <= Self::MOST_UNIT_ROWS
    }
}

/// Everything that the tuner chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Strategy.
    pub strategy: Strategy,
    /// Storage of P where the strategy keeps it.
    pub store: Dtype,
    /// Sizes.
    pub tuning: Tuning,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { strategy, store, tuning: Tuning { joint_keys, chunk_keys, unit_rows } } = self;
        write!(f, "{strategy}")?;
        if !store.is_f32() {
            write!(f, ", P in {store}")?;
        }
        if (*joint_keys, *chunk_keys) != (JOINT_KEYS, CHUNK_KEYS) {
            write!(f, ", {joint_keys} keys a step, {chunk_keys} a chunk")?;
        }
        if *unit_rows != 0 {
            write!(f, ", {unit_rows} block rows a unit")?;
        }
        Ok(())
    }
}

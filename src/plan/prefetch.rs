//! What each call of a tile prefetches.
//!
//! In: the pieces or runs of a joint step that has code of its own. Out: a [`Share`] for each: what concerns the whole
//! row is spread over its calls, the longest ones first, which have the time to hide it.

use super::{Piece, PieceKeys, Stretch, ValueRun};

/// What a call prefetches that concerns the whole row; keys and values are so many from this one on (from the run's
/// first row).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Keys of the next row.
    pub keys: Option<Stretch>,
    /// Values of the next row, which this row's own value tile reads as well where rows overlap.
    pub values: Option<Stretch>,
    /// The next row's queries.
    pub queries: bool,
    /// The row's own outputs.
    pub outputs: bool,
}

impl Share {
    /// Whether there is anything.
    pub const fn is_some(&self) -> bool {
        self.keys.is_some() || self.values.is_some() || self.queries || self.outputs
    }
}

/// The shares of a step's pieces while they are scored. `spread`: the value tiles of the same row take the rest.
pub fn of_pieces(pieces: &[Piece], key_step: u32, spread: bool) -> Vec<Share> {
    let first = lead(pieces, None);
    let second = lead(pieces, first).or(first);
    let next = next_keys(pieces, key_step);
    let share = |index| {
        let (leads, follows) = (Some(index) == first, Some(index) == second);
        Share {
            values: next.filter(|_| leads),
            keys: next.filter(|_| !spread && leads),
            queries: !spread && follows,
            outputs: spread && follows,
        }
    };
    (0..pieces.len()).map(share).collect()
}

/// The shares of a step's runs, the last of which ends the row.
pub fn of_runs(pieces: &[Piece], runs: &[ValueRun], key_step: u32, spread: bool) -> Vec<Share> {
    let last = Share { keys: next_keys(pieces, key_step), queries: true, ..Share::default() };
    let is_last = |index| spread && index + 1 == runs.len();
    (0..runs.len()).map(|index| if is_last(index) { last } else { Share::default() }).collect()
}

/// The longest piece that is not `other`: long enough to hide what it prefetches.
fn lead(pieces: &[Piece], other: Option<usize>) -> Option<usize> {
    (0..pieces.len()).filter(|&index| Some(index) != other).max_by_key(|&index| pieces[index].keys.len())
}

/// The keys that the next row meets first: where pieces move on with the rows, they stand behind this row's last ones.
fn next_keys(pieces: &[Piece], key_step: u32) -> Option<Stretch> {
    let moving = pieces.iter().filter_map(|piece| match piece.keys {
        PieceKeys::Range(stretch) if stretch.start_step != 0 => Some(stretch),
        _ => None,
    });
    let last = moving.max_by_key(|stretch| stretch.start + stretch.len * key_step)?;
    let (start, len) = (last.start + last.len * key_step, last.start_step / key_step);
    Some(Stretch { start, len, len_step: 0, ..last })
}

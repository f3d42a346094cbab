//! What passes on masks share: rows are pushed again, and tables keep only what is still used, numbered in the
//! order of use. So equal masks stay equal whatever passes made them.

use super::row_runs::RowRuns;
use super::tables::Table;
use super::{HeadMask, Keys, Segment};

/// The mask that a pass is writing.
#[derive(Debug, Default)]
pub(super) struct Rewriter {
    pub(super) rows: RowRuns,
    words: Table<u64>,
    lists: Table<u32>,
}

impl Rewriter {
    /// A segment of `mask` in the new numbering; masked exactly if `words` are given.
    pub(super) fn segment(&mut self, mask: &HeadMask, segment: &Segment, words: Option<&[u64]>) -> Segment {
        let keys = match segment.keys {
            Keys::List { list } => Keys::List { list: self.lists.intern(&mask.lists[list as usize]) },
            range @ Keys::Range { .. } => range,
        };
        Segment { keys, mask: words.map(|words| self.words.intern(words)) }
    }

    /// A segment of gathered keys.
    pub(super) fn list(&mut self, keys: &[u32], words: Option<&[u64]>) -> Segment {
        Segment {
            keys: Keys::List { list: self.lists.intern(keys) },
            mask: words.map(|words| self.words.intern(words)),
        }
    }

    /// Puts the rows and tables into `mask`; order and edges stay.
    pub(super) fn finish(self, mask: &mut HeadMask) {
        mask.rows = self.rows.finish();
        mask.words = self.words.finish();
        mask.lists = self.lists.finish();
    }
}

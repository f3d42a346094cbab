//! A leaf that is a list of keys for every query: what drawing and edge files come down to.

use std::ops::Range;

use super::bits::fill_sorted;
use super::rows::Rows;
use super::{Cover, KeySet, Leaf};

/// Keys by query.
#[derive(Debug)]
pub(super) struct Listed {
    /// By head; one entry where heads agree.
    pub rows: Vec<Rows>,
    /// Position of the first row's query; those before it have no keys.
    pub first: i64,
    /// The leaf as a spec node.
    pub text: String,
}

impl Listed {
    fn head(&self, head: usize) -> &Rows {
        &self.rows[head.min(self.rows.len() - 1)]
    }

    fn row(&self, head: usize, q: i64) -> &[u32] {
        usize::try_from(q - self.first).map_or(&[], |row| self.head(head).row(row))
    }
}

impl Leaf for Listed {
    fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        self.row(head, q).binary_search(&(k as u32)).is_ok()
    }

    fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        let rows = self.head(head);
        let set = |keys: Vec<u32>| KeySet::from_sorted_keys(keys.into_iter().map(i64::from));
        let (start, end) = (queries.start - self.first, (queries.end - self.first).max(0) as usize);
        match usize::try_from(start) {
            Ok(start) => Cover { some: set(rows.union(start..end)), all: set(rows.common(start..end)) },
            Err(_) => Cover { some: set(rows.union(0..end)), all: KeySet::empty() },
        }
    }

    fn words(&self, head: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        fill_sorted(blocks, out, self.row(head, q));
    }

    fn depends_on_head(&self) -> bool {
        self.rows.len() > 1
    }

    fn listed(&self) -> u64 {
        self.rows.iter().map(Rows::listed).sum()
    }

    fn print(&self) -> String {
        self.text.clone()
    }
}

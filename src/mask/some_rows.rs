//! Masks for looking at: of one head, and no more work than a budget.
//!
//! In: a pattern and a head. Out: its masks as a kernel has them where they can be built within the budget, or else the
//! rows of some blocks of 64 queries, which is enough to draw a picture of a million tokens.

use super::build::{HeadBuilder, build_head_within, check_lengths, split};
use super::edge_rule::EdgeRule;
use super::order::Stretch;
use super::{HeadMask, QUERY_BLOCK, RowOrder};
use crate::error::{Error, Result};
use crate::limits::Allowance;
use crate::pattern::Pattern;

/// The masks of one head, one a part; `None` where building them means to look at more than `budget` words of 64
/// points. `in_parts` as for kernels of one hop (see [`super::build_in_parts`]); `allowance` as for
/// [`super::build`].
///
/// # Errors
/// As [`super::build`].
pub fn build_one_head(
    pattern: &Pattern,
    head: usize,
    in_parts: bool,
    allowance: impl Into<Allowance>,
    budget: u64,
) -> Result<Option<Vec<HeadMask>>> {
    let allowance = allowance.into();
    check_lengths(pattern)?;
    pattern.require_bound()?;
    let rule = EdgeRule::default();
    let parts = if in_parts { split(pattern, allowance, &rule)? } else { vec![pattern.clone()] };
    let mut masks = Vec::new();
    for part in &parts {
        match build_head_within(part, head, &rule, allowance, 0, budget)? {
            Some((mask, _)) => masks.push(mask),
            None => return Ok(None),
        }
    }
    Ok(Some(masks))
}

/// The rows of some blocks of queries, given by their numbers, ascending: block `t` holds queries `64 t ..`. The mask's
/// order names the query at each of its places, which are fewer than all.
///
/// # Errors
/// As [`super::build`].
pub fn build_some_rows(
    pattern: &Pattern,
    head: usize,
    blocks: &[u32],
    allowance: impl Into<Allowance>,
) -> Result<HeadMask> {
    let allowance = allowance.into();
    check_lengths(pattern)?;
    pattern.require_bound()?;
    let rule = EdgeRule::default();
    let mut place = 0;
    let mut stretches = Vec::new();
    for &block in blocks {
        let query = block as usize * QUERY_BLOCK;
        let len = QUERY_BLOCK.min(pattern.q_len.saturating_sub(query));
        stretches.push(Stretch { place, query, len });
        place += len;
    }
    let order = stretches.iter().flat_map(|on| on.query as u32..(on.query + on.len) as u32).collect();
    let pattern = &*pattern.of_head(head);
    let rows = (RowOrder::Permuted(order), stretches);
    let built = HeadBuilder::new(pattern, head, &rule, allowance, 0, rows).run()?;
    let no_mask = || Error::internal("mask", "a mask without a budget has passed it", pattern.print());
    built.map(|(mask, _)| mask).ok_or_else(no_mask)
}

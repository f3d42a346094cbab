//! Bits of one query over key blocks of 64: sets of keys written as words.

use super::KeySet;

/// Keys `lo..hi` as bits of the words of `blocks`.
pub(super) fn fill(blocks: &[u32], out: &mut [u64], lo: i64, hi: i64) {
    for (&block, word) in blocks.iter().zip(out) {
        let first = i64::from(block) * 64;
        let (from, to) = ((lo - first).clamp(0, 64), (hi - first).clamp(0, 64));
        if from < to {
            *word |= (u64::MAX >> (64 - (to - from))) << from;
        }
    }
}

/// The keys of a set as bits; `blocks` ascend, so that each interval and each block is looked at once.
pub(super) fn fill_set(blocks: &[u32], out: &mut [u64], set: &KeySet) {
    let intervals = set.intervals();
    let mut next = 0;
    for (i, &block) in blocks.iter().enumerate() {
        let first = i64::from(block) * 64;
        if intervals.get(next).is_some_and(|&(_, hi)| hi <= first) {
            next += intervals[next..].partition_point(|&(_, hi)| hi <= first);
        }
        for &(lo, hi) in intervals[next..].iter().take_while(|(lo, _)| *lo < first + 64) {
            fill(&blocks[i..=i], &mut out[i..=i], lo, hi);
        }
    }
}

/// Keys of `lo..hi` that are `residue` modulo `step` as bits.
pub(super) fn fill_steps(blocks: &[u32], out: &mut [u64], lo: i64, hi: i64, step: i64, residue: i64) {
    for (&block, word) in blocks.iter().zip(out) {
        let from = lo.max(i64::from(block) * 64);
        let to = hi.min(i64::from(block) * 64 + 64);
        let mut key = from + (residue - from).rem_euclid(step);
        while key < to {
            *word |= 1 << (key % 64);
            key += step;
        }
    }
}

/// Ascending keys as bits.
pub(super) fn fill_sorted(blocks: &[u32], out: &mut [u64], keys: &[u32]) {
    let mut next = 0;
    for (&block, word) in blocks.iter().zip(out) {
        let first = block * 64;
        if keys.get(next).is_some_and(|&k| k < first) {
            next += keys[next..].partition_point(|&k| k < first);
        }
        while let Some(&key) = keys.get(next).filter(|&&k| k - first < 64) {
            *word |= 1 << (key - first);
            next += 1;
        }
    }
}

//! Masks of few queries over many keys (decoding): heads that share keys become queries of one row, and the keys of
//! one row are cut into parts for several workers.

use super::{BlockMask, Edges, HeadMask, KeyOrder, Keys, QUERY_BLOCK, Segment};

/// Keys of a part at least: reading them takes far longer than joining a part.
const PART_KEYS: usize = 4096;
/// Parts at most.
const MOST_PARTS: usize = 8;
/// From this many heads on there is work enough without cutting rows.
const ENOUGH_HEADS: usize = 8;

/// One query of each of `group` neighboring heads, that share keys and values, as `group` queries of one head;
/// `None` where there are more queries, or where the heads of a group have different masks.
pub fn stack_heads(mask: &BlockMask, group: usize) -> Option<BlockMask> {
    let alike = mask.mask_of_head.chunks(group).all(|heads| heads.iter().all(|number| *number == heads[0]));
    if mask.q_len != 1 || mask.parts != 1 || !(2..=QUERY_BLOCK).contains(&group) || !alike {
        return None;
    }
    let all = u64::MAX >> (QUERY_BLOCK - group);
    let stacked = |head: &HeadMask| {
        let edges = head.edges_of(0);
        HeadMask {
            order: super::RowOrder::Identity,
            words: head.words.iter().map(|words| words.iter().map(|word| (word & 1) * all).collect()).collect(),
            edges: if edges.is_empty() {
                Edges::default()
            } else {
                Edges {
                    offsets: (0..=group).map(|query| (query * edges.len()) as u32).collect(),
                    keys: edges.repeat(group),
                }
            },
            ..head.clone()
        }
    };
    Some(BlockMask {
        q_len: group,
        stack: group,
        masks: mask.masks.iter().map(stacked).collect(),
        mask_of_head: mask.mask_of_head.iter().copied().step_by(group).collect(),
        ..mask.clone()
    })
}

/// A mask of one block row with its keys cut into parts, where there are few heads and many keys. How many parts does
/// not depend on threads, and so no result does.
pub fn split_keys(mask: BlockMask) -> BlockMask {
    let parts = (mask.kv_len / PART_KEYS).min(MOST_PARTS);
    let plain = |head: &HeadMask| head.keys == KeyOrder::Identity && head.lists.is_empty();
    let fits = mask.q_len <= QUERY_BLOCK && mask.parts == 1 && mask.masks.iter().all(plain);
    if parts < 2 || !fits || mask.mask_of_head.len() >= ENOUGH_HEADS || mask.q_len == 0 {
        return mask;
    }
    let border = |part: usize| (part * mask.kv_len / parts / QUERY_BLOCK * QUERY_BLOCK) as u32;
    let end = |part: usize| if part + 1 == parts { mask.kv_len as u32 } else { border(part + 1) };
    BlockMask {
        parts,
        masks: mask.masks.iter().flat_map(|head| (0..parts).map(|part| cut(head, border(part), end(part)))).collect(),
        mask_of_head: mask
            .mask_of_head
            .iter()
            .flat_map(|&number| (0..parts as u32).map(move |part| number * parts as u32 + part))
            .collect(),
        ..mask
    }
}

/// The keys `lo..hi` of a mask of one block row without lists.
fn cut(head: &HeadMask, lo: u32, hi: u32) -> HeadMask {
    let mut words: Vec<Vec<u64>> = Vec::new();
    let mut rows = head.rows.clone();
    for run in &mut rows {
        let cut_segment = |segment: &Segment| {
            let Keys::Range { start, len, .. } = segment.keys else { return None };
            let (from, to) = (start.max(lo), (start + len).min(hi));
            if from >= to {
                return None;
            }
            let mask = segment.mask.map(|number| {
                words.push(head.words[number as usize][(from - start) as usize..(to - start) as usize].to_vec());
                words.len() as u32 - 1
            });
            Some(Segment { keys: Keys::Range { start: from, len: to - from, start_step: 0, len_step: 0 }, mask })
        };
        run.segments = run.segments.iter().filter_map(cut_segment).collect();
    }
    let mut edges = Edges::default();
    for place in 0..head.edges.offsets.len().saturating_sub(1) {
        if place == 0 {
            edges.offsets.push(0);
        }
        edges.keys.extend(head.edges_of(place).iter().filter(|key| (lo..hi).contains(key)));
        edges.offsets.push(edges.keys.len() as u32);
    }
    if edges.keys.is_empty() {
        edges = Edges::default();
    }
    HeadMask { rows, words, edges, ..head.clone() }
}

//! How far the planned rows reach, by the rows of K that their steps name and the places of those queries: what
//! [`super::verify`] holds a sweep to. Shares nothing with [`crate::program::reaches`].

use super::{MaskPlan, PieceKeys, Step, Stretch};
use crate::mask::QUERY_BLOCK;
use crate::program::Reach;

pub(super) fn planned_reach(mask: &MaskPlan, kv_len: usize) -> Reach {
    let mut place_of: Vec<u32> = (0..kv_len as u32).collect();
    for (place, &query) in mask.order.iter().flatten().enumerate() {
        if let Some(entry) = place_of.get_mut(query as usize) {
            *entry = place as u32;
        }
    }
    let mut reach = Reach::default();
    let mut see = |t: u32, key: u32| {
        let place = place_of.get(key as usize).copied().unwrap_or(0);
        reach = reach.join(Reach::of(t, place, place));
    };
    for (row, t) in mask.rows.iter().flat_map(|row| (0..row.count).map(move |i| (row, i))) {
        for keys in row.steps.iter().flat_map(keys_of) {
            match keys {
                PieceKeys::List { list, first, len } => {
                    let list = mask.lists.get(list as usize).map_or(&[][..], Vec::as_slice);
                    let list = list.get(first as usize..(first + len) as usize).unwrap_or(&[]);
                    list.iter().for_each(|&key| see(row.first + t, key));
                }
                PieceKeys::Range(Stretch { start, len, start_step, len_step }) => {
                    let (start, len) = (start + t * start_step, len + t * len_step);
                    (0..len).for_each(|i| see(row.first + t, start + i * mask.key_step));
                }
            }
        }
    }
    for (place, ends) in mask.edges.offsets.windows(2).enumerate() {
        let keys = mask.edges.keys.get(ends[0] as usize..ends[1] as usize).unwrap_or(&[]);
        keys.iter().for_each(|&key| see((place / QUERY_BLOCK) as u32, key));
    }
    reach
}

fn keys_of(step: &Step) -> impl Iterator<Item = PieceKeys> {
    let (pieces, stream): (&[_], _) = match step {
        Step::Edges => (&[], None),
        Step::Joint { pieces, .. } => (pieces, None),
        Step::Stream(stretch) => (&[], Some(PieceKeys::Range(*stretch))),
    };
    pieces.iter().map(|piece| piece.keys).chain(stream)
}

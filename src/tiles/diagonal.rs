//! The weights between the queries of a block row and their own keys, out of the row's panel: what [`super::solve`] takes.
//!
//! A panel holds the keys of a row in the order of its pieces, and scattered edges beside it. The 64 keys that stand where
//! the row's queries stand are gathered into a panel of their own, in order; weights that are nowhere are 0.
#![allow(unsafe_code)]

use super::{BLOCK, LANES};

/// What is gathered. Fields that a tile does not name are not read.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DiagonalCall {
    /// Group 0 of the weights of some keys, or the weights of edges.
    pub p: *const f32,
    /// Floats from one group's panel to the next.
    pub p_stride: usize,
    /// Keys.
    pub nkeys: usize,
    /// First key of a range.
    pub first_key: usize,
    /// Keys of a list, or null for a range.
    pub keys: *const u32,
    /// `[rows + 1]` offsets of the block's queries into the list of edges.
    pub offsets: *const u32,
    /// Keys of all edges.
    pub edge_keys: *const u32,
    /// Place of the first query.
    pub place: usize,
    /// Queries, 1 to 64.
    pub rows: usize,
    /// `[group of 16][64 keys][16]`, what is written.
    pub out: *mut f32,
    /// Rows that are cleared.
    pub z: *mut f32,
    /// Floats from one of them to the next.
    pub z_stride: usize,
    /// Their width.
    pub width: usize,
}

/// Clears `out`, and `rows` rows of z if there are any.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn clear(call: *const DiagonalCall) {
    // SAFETY: the caller's contract: four groups of 64 keys, and rows of `width` floats.
    unsafe {
        let c = &*call;
        std::ptr::write_bytes(c.out, 0, BLOCK * BLOCK);
        if !c.z.is_null() {
            for r in 0..c.rows {
                std::ptr::write_bytes(c.z.add(r * c.z_stride), 0, c.width);
            }
        }
    }
}

/// Takes from `nkeys` keys those of the row's own.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn pieces(call: *const DiagonalCall) {
    // SAFETY: the caller's contract: a panel of `nkeys` keys and as many listed ones; own keys lie below 64.
    unsafe {
        let c = &*call;
        let copy = |at: usize, own: usize, count: usize| {
            for group in 0..c.rows.div_ceil(LANES) {
                let from = c.p.add(group * c.p_stride + at * LANES);
                std::ptr::copy_nonoverlapping(from, c.out.add((group * BLOCK + own) * LANES), count * LANES);
            }
        };
        if c.keys.is_null() {
            let first = c.first_key.max(c.place);
            let end = (c.first_key + c.nkeys).min(c.place + BLOCK);
            if first < end {
                copy(first - c.first_key, first - c.place, end - first);
            }
        } else {
            for at in 0..c.nkeys {
                let own = (*c.keys.add(at) as usize).wrapping_sub(c.place);
                if own < BLOCK {
                    copy(at, own, 1);
                }
            }
        }
    }
}

/// Takes from the row's scattered edges those to its own keys.
///
/// # Safety
/// The record's pointers hold what its fields say (contract of [`super`]).
pub unsafe extern "C" fn edges(call: *const DiagonalCall) {
    // SAFETY: the caller's contract: `rows + 1` offsets, weights from the first of them on.
    unsafe {
        let c = &*call;
        let start = *c.offsets as usize;
        for r in 0..c.rows {
            for edge in *c.offsets.add(r) as usize..*c.offsets.add(r + 1) as usize {
                let own = (*c.edge_keys.add(edge) as usize).wrapping_sub(c.place);
                if own < BLOCK {
                    *c.out.add((r / LANES * BLOCK + own) * LANES + r % LANES) = *c.p.add(edge - start);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiles::guard::GuardedBuffer;

    /// Weights by query and own key, in a panel of `keys` and a list of edges; what of them is gathered.
    fn gathered(rows: usize, place: usize, keys: &[u32], listed: bool, edges_of: &[Vec<u32>]) -> Vec<f32> {
        let weight = |r: usize, key: u32| (1 + r * 1000) as f32 + key as f32;
        let groups = rows.div_ceil(LANES);
        let stride = (keys.len() | 1) * LANES;
        let mut panel = vec![f32::NAN; groups * stride];
        for (at, &key) in keys.iter().enumerate() {
            for r in 0..groups * LANES {
                panel[r / LANES * stride + at * LANES + r % LANES] = if r < rows { weight(r, key) } else { 0.0 };
            }
        }
        let panel = GuardedBuffer::new(&panel);
        // Offsets of a block in the middle of a head's list.
        let mut offsets = vec![7_u32];
        let (mut edge_keys, mut weights) = (vec![u32::MAX; 7], Vec::new());
        for (r, of_row) in edges_of.iter().enumerate() {
            edge_keys.extend(of_row);
            weights.extend(of_row.iter().map(|&key| weight(r, key)));
            offsets.push(edge_keys.len() as u32);
        }
        let (offsets, weights) = (GuardedBuffer::new(&offsets), GuardedBuffer::new(&weights));
        let edge_keys = GuardedBuffer::new(&edge_keys);
        let list = GuardedBuffer::new(keys);
        let mut out = GuardedBuffer::new(&[f32::NAN; BLOCK * BLOCK]);
        let mut z = GuardedBuffer::new(&vec![f32::NAN; rows * 5]);
        let mut call = DiagonalCall {
            p: panel.as_ptr(),
            p_stride: stride,
            nkeys: keys.len(),
            first_key: keys.first().map_or(0, |&key| key as usize),
            keys: if listed { list.as_ptr() } else { std::ptr::null() },
            offsets: offsets.as_ptr(),
            edge_keys: edge_keys.as_ptr(),
            place,
            rows,
            out: out.as_mut_ptr(),
            z: z.as_mut_ptr(),
            z_stride: 5,
            width: 5,
        };
        // SAFETY: every pointer is that of a buffer of the size its field says.
        unsafe {
            clear(&call);
            pieces(&call);
            call.p = weights.as_ptr();
            edges(&call);
        }
        assert!(z.iter().all(|&x| x == 0.0));
        // The keys of a range are those from the first on.
        let mut expected = vec![0.0; BLOCK * BLOCK];
        for r in 0..rows {
            for &key in keys.iter().chain(edges_of.get(r).into_iter().flatten()) {
                if (key as usize) >= place && (key as usize) < place + BLOCK {
                    expected[(r / LANES * BLOCK + key as usize - place) * LANES + r % LANES] = weight(r, key);
                }
            }
        }
        let found = out.to_vec();
        for r in 0..rows {
            for own in 0..BLOCK {
                let at = (r / LANES * BLOCK + own) * LANES + r % LANES;
                assert_eq!(found[at], expected[at], "row {r}, own key {own}");
            }
        }
        found
    }

    #[test]
    fn own_keys_are_gathered_from_ranges_lists_and_edges() {
        let range = |first: u32, count: u32| (first..first + count).collect::<Vec<_>>();
        let none = |rows: usize| vec![Vec::new(); rows];
        for rows in [1, 16, 17, 63, 64] {
            for (first, count) in [(0, 64), (0, 200), (100, 28), (128, 64), (130, 3), (150, 100), (192, 5), (128, 0)] {
                gathered(rows, 128, &range(first, count), false, &none(rows));
            }
            gathered(rows, 128, &[3, 127, 128, 140, 191, 192, 4000], true, &none(rows));
            let edges: Vec<Vec<u32>> = (0..rows as u32).map(|r| vec![r, 120 + r, 128 + r]).collect();
            gathered(rows, 128, &range(0, 0), false, &edges);
        }
    }
}

//! Cuts score and value calls into register tiles, for every family alike.
//!
//! In: a call record and a family's table of micro-kernels, one per register shape. Each micro-kernel keeps its
//! sums in registers; this file decides which keys, groups, rows and columns it gets.
#![allow(unsafe_code)]

use super::{LANES, ROW_CUTS, ScoreCall, ValueCall};

/// Keys in a score register tile.
pub(super) const SCORE_KEYS: usize = 6;
/// Rows in a value register tile.
pub(super) const VALUE_ROWS: usize = 6;
/// Keys that all row blocks of a value call walk before the next keys are taken up: their values (16 KiB at 64
/// columns) and probabilities then come from L1 for all but the first row block. The sums wait in `acc`.
pub(super) const VALUE_KEYS: usize = 64;

/// One score register tile: up to 6 keys times some groups of 16 queries.
pub(super) struct ScoreTile {
    /// First group's packed queries.
    pub qt: *const f32,
    /// Floats from one group's packed queries to the next.
    pub qt_stride: usize,
    /// The tile's keys; those beyond its count repeat the first.
    pub keys: [*const f32; SCORE_KEYS],
    /// Width of a key.
    pub d: usize,
    /// The first group's scores of the first key.
    pub s: *mut f32,
    /// Floats from one group's panel to the next.
    pub s_stride: usize,
    /// The first key's 16 bits of the first group (those of the next key come 4 later), or null.
    pub words: *const u16,
    /// The first group's running maximum, or null.
    pub max: *mut f32,
}

/// A score micro-kernel; its shape is its place in the table.
pub(super) type ScoreKernel = unsafe fn(&ScoreTile);

/// Runs a score call over `kernels[keys - 1][groups - 1]`.
///
/// # Safety
/// `call` keeps the contract of [`super`], and the CPU has the kernels' instructions.
pub(super) unsafe fn score<const G: usize>(call: &ScoreCall, kernels: &[[ScoreKernel; G]; SCORE_KEYS]) {
    let mut first = 0;
    while first < call.nkeys {
        let left = call.nkeys - first;
        // One or two keys alone do not fill the FMA pipes, so the last 7 or 8 are halved.
        let count = if left == 7 || left == 8 { 4 } else { left.min(SCORE_KEYS) };
        let (mut group, mut end) = (0, call.groups);
        if !call.words.is_null() {
            let mut any = 0;
            for key in first..first + count {
                // SAFETY: `words` holds `nkeys` words.
                any |= unsafe { *call.words.add(key) };
            }
            any &= u64::MAX >> (64 - LANES * call.groups);
            if any == 0 {
                first += count;
                continue;
            }
            group = any.trailing_zeros() as usize / LANES;
            end = (63 - any.leading_zeros() as usize) / LANES + 1;
        }
        let mut keys = [call.k; SCORE_KEYS];
        for (i, key) in keys.iter_mut().enumerate() {
            let at = first + if i < count { i } else { 0 };
            // SAFETY: `at < nkeys`; `keys` holds `nkeys` row numbers of rows that lie at `k`.
            *key = unsafe {
                let row = if call.keys.is_null() { at } else { *call.keys.add(at) as usize };
                call.k.add(row * call.k_stride)
            };
        }
        while group < end {
            let groups = (end - group).min(G);
            // SAFETY: `group < groups` and `first < nkeys`, so that every pointer stays in the record's arrays.
            unsafe {
                let tile = ScoreTile {
                    qt: call.qt.add(group * call.d * LANES),
                    qt_stride: call.d * LANES,
                    keys,
                    d: call.d,
                    s: call.s.add(group * call.s_stride + first * LANES),
                    s_stride: call.s_stride,
                    words: if call.words.is_null() {
                        std::ptr::null()
                    } else {
                        call.words.add(first).cast::<u16>().add(group)
                    },
                    max: if call.max.is_null() { call.max } else { call.max.add(group * LANES) },
                };
                kernels[count - 1][groups - 1](&tile);
            }
            group += groups;
        }
        first += count;
    }
}

/// One value register tile: up to 6 rows times up to a family's width of columns, over some keys.
pub(super) struct ValueTile {
    /// The first row's probability of the first key; the next key's comes 16 floats later.
    pub p: *const f32,
    /// First column of row 0 of the values.
    pub v: *const f32,
    /// Floats from one value row to the next.
    pub v_stride: usize,
    /// Row numbers of the values, or null for rows `0..nkeys`.
    pub keys: *const u32,
    /// Keys.
    pub nkeys: usize,
    /// Columns in the last vector, 1 to its width.
    pub tail: usize,
    /// First row's and column's sum.
    pub acc: *mut f32,
    /// Floats from one row of sums to the next.
    pub acc_stride: usize,
    /// Whether to start from `acc` rather than zero.
    pub accumulate: bool,
    /// First column of the first row's output, or of row 0 where `out_rows` is given; null to leave sums in `acc`.
    pub out: *mut f32,
    /// Floats from one output row to the next.
    pub out_stride: usize,
    /// Row numbers for `out` and `rv`, from the tile's first row, or null.
    pub out_rows: *const u32,
    /// The first row's factor.
    pub factor: *const f32,
    /// As `out`, for the restart values; null where there are none.
    pub rv: *const f32,
    /// Floats from one restart row to the next.
    pub rv_stride: usize,
    /// Factor on the restart row.
    pub restart: f32,
}

/// A value micro-kernel; tells whether it wrote a value to the output that is not finite.
pub(super) type ValueKernel = unsafe fn(&ValueTile) -> bool;

/// Runs a value call over `kernels[rows - 1][vectors - 1][tail cut]`, vectors of `W` floats; returns the tile's result.
///
/// # Safety
/// `call` keeps the contract of [`super`], and the CPU has the kernels' instructions.
pub(super) unsafe fn value<const C: usize, const W: usize>(
    call: &ValueCall,
    kernels: &[[[ValueKernel; 2]; C]; VALUE_ROWS],
) -> u64 {
    let mut bad = false;
    let mut from = 0;
    loop {
        let to = call.nkeys.min(from + VALUE_KEYS);
        // A short rest is not worth another pass over the sums.
        let to = if call.nkeys - to < VALUE_KEYS / 2 { call.nkeys } else { to };
        let last = to == call.nkeys;
        let vectors = call.dv.div_ceil(W);
        let mut vector = 0;
        while vector < vectors {
            let left = vectors - vector;
            // Too few vectors leave the FMA pipes idle: the last ones are halved.
            let count = if left <= C {
                left
            } else if left < 2 * C {
                left.div_ceil(2)
            } else {
                C
            };
            let column = vector * W;
            let tail = if count == left { call.dv - (vectors - 1) * W } else { W };
            for block in 0..call.rows.div_ceil(LANES) * 3 {
                let (group, cut) = (block / 3, block % 3);
                let row = group * LANES + ROW_CUTS[cut];
                let rows = (group * LANES + ROW_CUTS[cut + 1]).min(call.rows).saturating_sub(row);
                if rows == 0 {
                    continue;
                }
                // SAFETY: `block < ROW_BLOCKS`, the length of `trims`.
                let [front, back] = if call.trims.is_null() { [0; 2] } else { unsafe { *call.trims.add(block) } };
                let begin = from.max(front as usize).min(to);
                let end = to.min(call.nkeys.saturating_sub(back as usize)).max(begin);
                let keep = from > 0 || call.accumulate != 0;
                if begin == end && keep && (!last || call.out.is_null()) {
                    continue;
                }
                // SAFETY: `row < rows`, `column < dv` and `begin < nkeys` (or no key is read), so that every pointer
                // stays in the record's arrays.
                bad |= unsafe {
                    let (v, keys) = if call.keys.is_null() {
                        (call.v.wrapping_add(begin * call.v_stride + column), call.keys)
                    } else {
                        (call.v.wrapping_add(column), call.keys.wrapping_add(begin))
                    };
                    let at = if call.out_rows.is_null() { row } else { 0 };
                    let tile = ValueTile {
                        p: call.p.wrapping_add(group * call.p_stride + begin * LANES + ROW_CUTS[cut]),
                        v,
                        v_stride: call.v_stride,
                        keys,
                        nkeys: end - begin,
                        tail,
                        acc: call.acc.wrapping_add(row * call.acc_stride + column),
                        acc_stride: call.acc_stride,
                        accumulate: keep,
                        out: if last && !call.out.is_null() {
                            call.out.wrapping_add(at * call.out_stride + column)
                        } else {
                            std::ptr::null_mut()
                        },
                        out_stride: call.out_stride,
                        out_rows: if call.out_rows.is_null() { call.out_rows } else { call.out_rows.add(row) },
                        factor: call.factor.wrapping_add(row),
                        rv: if call.rv.is_null() {
                            call.rv
                        } else {
                            call.rv.wrapping_add(at * call.rv_stride + column)
                        },
                        rv_stride: call.rv_stride,
                        restart: call.restart,
                    };
                    kernels[rows - 1][count - 1][usize::from(tail < W)](&tile)
                };
            }
            vector += count;
        }
        if last {
            return u64::from(bad);
        }
        from = to;
    }
}

//! Cuts score and value calls into register tiles, for every family alike.
//!
//! In: a call record and a family's table of micro-kernels, one per register shape. Each micro-kernel keeps its
//! sums in registers; this file decides which keys, groups, rows and columns it gets.
#![allow(unsafe_code)]

use super::prefetch::{self, LINE};
use super::{AHEAD_LINES, Ahead, LANES, ROW_CUTS, ScoreCall, ValueCall};

/// Keys in a score register tile.
pub(super) const SCORE_KEYS: usize = 6;
/// Rows in a value register tile.
pub(super) const VALUE_ROWS: usize = 6;
/// Keys of a contiguous run that all row blocks of a value call walk before the next keys are taken up. The hardware
/// prefetches such runs from L2 in time: at 64 columns, sums that stay in registers over 320 or 512 keys reach 99 %
/// of the FMA peak with AVX-512, sums that wait in `acc` every 64, 96 or 192 keys 95.5, 97 and 97 %.
const RUN_KEYS: usize = 512;
/// The same for gathered keys. No prefetcher follows these: the first row block brings 128 of them (32 KiB at 64
/// columns) into L1 for the others (94.5 %; without this 88 %).
const GATHERED_KEYS: usize = 128;

/// One row of score register tiles: up to 6 keys times the groups that see any of them.
pub(super) struct ScoreTile {
    /// First group's packed queries.
    pub qt: *const f32,
    /// Floats from one group's packed queries to the next.
    pub qt_stride: usize,
    /// The tile's keys; those beyond its count are not read.
    pub keys: [*const f32; SCORE_KEYS],
    /// Width of a key.
    pub d: usize,
    /// Groups.
    pub groups: usize,
    /// The first group's scores of the first key.
    pub s: *mut f32,
    /// Floats from one group's panel to the next.
    pub s_stride: usize,
    /// The first key's 16 bits of the first group (those of the next key come 4 later), or null.
    pub words: *const u16,
    /// The first group's running maximum, or null.
    pub max: *mut f32,
    /// Memory to bring into L2 on the way.
    pub ahead: Fetch,
    /// Where the next tile's keys start, to bring into L1 on the way, or null where they are not one run of memory.
    pub next: *const f32,
}

/// A score micro-kernel; its count of keys is its place in the table.
pub(super) type ScoreKernel = unsafe fn(&ScoreTile);

/// Keys for which register tiles of their own pay, where other groups see them than their neighbors.
const LEAST_RUN: usize = 4;

/// How many keys ahead the rows of a small block are brought near.
const NEAR_KEYS: usize = 18;

/// Runs a score call over `kernels[keys - 1]`, on keys whose elements have `BYTES` bytes.
///
/// # Safety
/// `call` keeps the contract of [`super`], and the CPU has the kernels' instructions.
pub(super) unsafe fn score<const BYTES: usize>(call: &ScoreCall, kernels: &[ScoreKernel; SCORE_KEYS]) {
    let quads = call.d / 4;
    let mut ahead = AheadCursor::new(&call.ahead, || call.nkeys.div_ceil(SCORE_KEYS) * quads);
    let mut first = 0;
    while first < call.nkeys {
        // SAFETY: the caller's, and `first < nkeys`.
        let ScoreRun { end, any, all } = unsafe { ScoreRun::new(call, first) };
        if any == 0 {
            first = end;
            continue;
        }
        let group = any.trailing_zeros() as usize / LANES;
        let groups = (63 - any.leading_zeros() as usize) / LANES + 1 - group;
        let seen = u64::MAX >> (64 - LANES * groups) << (LANES * group);
        // SAFETY: `group < groups` and `first < nkeys`, so that every pointer stays in the record's arrays; `keys`
        // holds `nkeys` row numbers of rows that lie at `k`.
        unsafe {
            let mut tile = ScoreTile {
                qt: call.qt.add(group * call.d * LANES),
                qt_stride: call.d * LANES,
                keys: [call.k; SCORE_KEYS],
                d: call.d,
                groups,
                s: call.s.add(group * call.s_stride + first * LANES),
                s_stride: call.s_stride,
                words: call.words.wrapping_add(first).cast::<u16>().wrapping_add(group),
                max: if call.max.is_null() { call.max } else { call.max.add(group * LANES) },
                ahead: Fetch::NOTHING,
                next: std::ptr::null(),
            };
            if all & seen == seen {
                tile.words = std::ptr::null();
            }
            // As even as can be: one or two keys alone do not fill the FMA pipes.
            let tiles = (end - first).div_ceil(SCORE_KEYS);
            let (least, larger) = ((end - first) / tiles, (end - first) % tiles);
            for index in 0..tiles {
                let count = least + usize::from(index < larger);
                for (i, key) in tile.keys.iter_mut().enumerate() {
                    // Keys beyond the count are not read.
                    let at = first + i.min(count - 1);
                    let row = if call.keys.is_null() { at } else { *call.keys.add(at) as usize };
                    *key = call.k.byte_add(row * call.k_stride * BYTES);
                }
                if call.groups == 1 && call.keys.is_null() {
                    // With so little to compute a key, memory is what is waited for.
                    for i in 0..count {
                        let row = call.k.cast::<u8>().wrapping_add((first + NEAR_KEYS + i) * call.k_stride * BYTES);
                        for line in 0..(call.d * BYTES).div_ceil(64) {
                            prefetch::into_l1(row.wrapping_add(line * 64));
                        }
                    }
                }
                if groups > 1 {
                    tile.ahead = ahead.next(quads);
                }
                if call.keys.is_null() && call.k_stride == call.d {
                    tile.next = tile.keys[0].wrapping_byte_add(count * call.d * BYTES);
                }
                kernels[count - 1](&tile);
                first += count;
                tile.s = tile.s.wrapping_add(count * LANES);
                if !tile.words.is_null() {
                    tile.words = tile.words.wrapping_add(count * size_of::<u64>() / size_of::<u16>());
                }
            }
        }
    }
}

/// Keys that register tiles may share, since the same groups see them.
struct ScoreRun {
    /// After the last key.
    end: usize,
    /// Bits that any key's word has.
    any: u64,
    /// Bits that all keys' words have.
    all: u64,
}

impl ScoreRun {
    /// The run from key `first` on. Where the groups change within a few keys, a register tile for each costs more than
    /// what all of them compute too much, and one tile's keys are taken together.
    ///
    /// # Safety
    /// As [`score`], and `first < nkeys`.
    unsafe fn new(call: &ScoreCall, first: usize) -> Self {
        let of_groups = u64::MAX >> (64 - LANES * call.groups);
        if call.words.is_null() {
            return Self { end: call.nkeys, any: of_groups, all: u64::MAX };
        }
        // SAFETY: `words` holds `nkeys` words.
        let words = unsafe { std::slice::from_raw_parts(call.words.add(first), call.nkeys - first) };
        let groups = |word: u64| (word.trailing_zeros() as usize / LANES, word.leading_zeros() as usize / LANES);
        let seen = groups(words[0] & of_groups);
        let same = words.iter().take_while(|&&word| groups(word & of_groups) == seen).count();
        let len = if same < LEAST_RUN { words.len().min(SCORE_KEYS) } else { same };
        let join = |(any, all), &word| (any | word, all & word);
        let (any, all) = words[..len].iter().fold((0, u64::MAX), join);
        Self { end: first + len, any: any & of_groups, all }
    }
}

/// Hands out [`ScoreCall::ahead`] and [`ValueCall::ahead`] in portions. Spread evenly over the register tiles, the
/// fetches hide behind their arithmetic; in a bunch they would take the buffers that the tiles' own rows come through.
/// The hardware's own prefetchers start anew with every row and come too late from beyond L2.
struct AheadCursor<'a> {
    regions: &'a [Ahead],
    piece: usize,
    /// Lines that a tile fetches at a time.
    lines: usize,
}

impl<'a> AheadCursor<'a> {
    /// For tiles that can fetch `slots` times in all; not asked where there is nothing to fetch.
    fn new(regions: &'a [Ahead], slots: impl FnOnce() -> usize) -> Self {
        let lines = match regions.iter().map(|region| region.count).sum::<usize>() {
            0 => 0,
            pieces => (pieces * AHEAD_LINES).div_ceil(slots().max(1)).min(AHEAD_LINES),
        };
        Self { regions, piece: 0, lines }
    }

    /// What a tile that can fetch `slots` times fetches; a portion may reach beyond its region.
    fn next(&mut self, slots: usize) -> Fetch {
        while let Some((region, rest)) = self.regions.split_first() {
            if self.piece < region.count {
                let at = region.start.wrapping_byte_add(self.piece.wrapping_mul(region.step));
                self.piece += (slots * self.lines / AHEAD_LINES).max(1);
                return Fetch { at, step: region.step, left: AHEAD_LINES, lines: self.lines };
            }
            (self.regions, self.piece) = (rest, 0);
        }
        Fetch::NOTHING
    }
}

/// Memory that a register tile brings into L2, some lines at a time.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    /// The next line.
    at: *const f32,
    /// Bytes from a piece of [`AHEAD_LINES`] lines to the next.
    step: usize,
    /// Lines left of the piece.
    left: usize,
    /// Lines at a time, 0 for nothing.
    lines: usize,
}

impl Fetch {
    /// Nothing.
    const NOTHING: Self = Self { at: std::ptr::null(), step: 0, left: AHEAD_LINES, lines: 0 };

    /// Fetches the next lines.
    #[inline(always)]
    pub(super) fn some(&mut self) {
        for _ in 0..self.lines {
            prefetch::into_l2(self.at);
            self.left -= 1;
            let next = self.at.wrapping_add(LINE);
            self.at =
                if self.left == 0 { next.wrapping_byte_add(self.step).wrapping_sub(AHEAD_LINES * LINE) } else { next };
            self.left = if self.left == 0 { AHEAD_LINES } else { self.left };
        }
    }
}

/// One value register tile: up to 6 rows times up to a family's width of columns, over some keys.
pub(super) struct ValueTile {
    /// The first row's probability of the first key; the next key's comes 16 floats later.
    pub p: *const f32,
    /// Floats from a key's probability to one that is needed soon, as a number that may wrap: the next group's, or where
    /// the last group would be followed by another: that of the next keys, or of the next block row's panel.
    pub p_ahead: usize,
    /// First column of row 0 of the values.
    pub v: *const f32,
    /// Floats from one value row to the next.
    pub v_stride: usize,
    /// Where each key's values start, in floats from `v`, or null for rows `0..nkeys`.
    pub offsets: *const usize,
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
    /// Memory to bring into L2 on the way, some every [`FETCH_KEYS`] keys.
    pub ahead: Fetch,
}

/// Keys between two fetches of a value tile.
pub(super) const FETCH_KEYS: usize = 4;

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
    let mut offsets = [0; GATHERED_KEYS];
    let trims = |block: usize| match call.trims.is_null() {
        true => [0; 2],
        // SAFETY: `block < ROW_BLOCKS`, the length of `trims`.
        false => unsafe { *call.trims.add(block) }.map(|keys| keys as usize),
    };
    let groups = call.rows.div_ceil(LANES);
    let blocks = groups * 3;
    let front_of = |group: usize| trims(3 * group)[0];
    let place = |group: usize, key: usize| group * call.p_stride + key * LANES;
    let slots = || {
        let keys = |block| call.nkeys.saturating_sub(trims(block).iter().sum());
        (0..blocks).map(|block| keys(block) / FETCH_KEYS).sum::<usize>() * call.dv.div_ceil(C * W)
    };
    let mut ahead = AheadCursor::new(&call.ahead, slots);
    loop {
        let most = if call.keys.is_null() { RUN_KEYS } else { GATHERED_KEYS };
        let to = call.nkeys.min(from + most);
        if !call.keys.is_null() {
            // Once for all rows and columns: the product would take an FMA port.
            for (offset, key) in offsets.iter_mut().zip(from..to) {
                // SAFETY: `key < nkeys`.
                *offset = unsafe { *call.keys.add(key) } as usize * call.v_stride;
            }
        }
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
            for block in 0..blocks {
                let (group, cut) = (block / 3, block % 3);
                let row = group * LANES + ROW_CUTS[cut];
                let rows = (group * LANES + ROW_CUTS[cut + 1]).min(call.rows).saturating_sub(row);
                if rows == 0 {
                    continue;
                }
                let [front, back] = trims(block);
                let begin = from.max(front).min(to);
                let end = to.min(call.nkeys.saturating_sub(back)).max(begin);
                let keep = from > 0 || call.accumulate != 0;
                if begin == end && keep && (!last || call.out.is_null()) {
                    continue;
                }
                let next = if group + 1 < groups {
                    (group + 1, from.max(front_of(group + 1)).min(to))
                } else if last {
                    (groups, front_of(0))
                } else {
                    (0, to.max(front_of(0)))
                };
                // SAFETY: `row < rows`, `column < dv` and `begin < nkeys` (or no key is read), so that every pointer
                // stays in the record's arrays.
                bad |= unsafe {
                    let (v, offsets) = if call.keys.is_null() {
                        (call.v.wrapping_add(begin * call.v_stride + column), std::ptr::null())
                    } else {
                        (call.v.wrapping_add(column), offsets.as_ptr().add(begin - from))
                    };
                    let at = if call.out_rows.is_null() { row } else { 0 };
                    let tile = ValueTile {
                        p: call.p.wrapping_add(group * call.p_stride + begin * LANES + ROW_CUTS[cut]),
                        p_ahead: place(next.0, next.1).wrapping_sub(place(group, begin)),
                        v,
                        v_stride: call.v_stride,
                        offsets,
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
                        ahead: if call.keys.is_null() {
                            ahead.next((end - begin) / FETCH_KEYS)
                        } else {
                            Fetch::NOTHING
                        },
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

//! Tiles over 16-bit tensors: rows are widened into a buffer that stays in the caches, the f32 tile runs on it, and
//! what it writes is narrowed once.
//!
//! In: a [`StoredCall`], which names an f32 tile and its record. Out: what that tile would have made of the same
//! numbers in f32, with the output rounded to the storage type. A row of K or V is widened once for the 64 queries of a
//! block, which is a sixty-fourth of the work that follows. One implementation serves every family, the emitted one
//! included; only its `Convert` knows instruction sets.
#![allow(unsafe_code)]

use std::ops::Range;

use half::{bf16, f16};

use super::convert::{Convert, Plain, StoredRows};
use super::exact::{ExactCall, value_exact};
use super::{Ahead, BLOCK, EdgeCall, LANES, PackCall, ROW_BLOCKS, ScoreCall, Tile, ValueCall, family};
use crate::dtype::Dtype;
use crate::target::Isa;

/// In [`StoredCall::wide`]: the values are f32 already (Z of an earlier hop).
pub const WIDE_VALUES: u64 = 1;
/// In [`StoredCall::wide`]: the output is f32 (Z for a later hop).
pub const WIDE_OUT: u64 = 2;

/// A call of an f32 tile on rows of 16-bit elements.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct StoredCall {
    /// The f32 tile; unused for [`ExactCall`], which has one implementation.
    pub tile: *const u8,
    /// The tile's record. Rows of q, k, v, out and rv in it are stored elements, and strides count those; `wide` names
    /// the exceptions.
    pub call: *const u8,
    /// [`buffer_floats`] floats, 64-byte aligned, reached by nobody else.
    pub buffer: *mut f32,
    /// [`WIDE_VALUES`], [`WIDE_OUT`], both or neither; restart values are always stored elements.
    pub wide: u64,
}

/// The tiles that touch tensors, for one storage type on one instruction set.
#[derive(Debug, Clone, Copy)]
pub struct StoredFamily {
    /// Around [`PackCall`].
    pub pack: Tile<StoredCall>,
    /// Around [`ScoreCall`].
    pub score: Tile<StoredCall>,
    /// Around [`ValueCall`]; returns the tile's flag.
    pub value: unsafe extern "C" fn(*const StoredCall) -> u64,
    /// Around [`EdgeCall`], edge score.
    pub edge_score: Tile<StoredCall>,
    /// Around [`EdgeCall`], edge value.
    pub edge_value: Tile<StoredCall>,
    /// Around [`ExactCall`].
    pub value_exact: Tile<StoredCall>,
    /// Where the family has them on some CPUs.
    dots: Option<Dots>,
}

/// Packing and scores of bf16 by dot products of pairs, for a family on some CPUs that have it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dots {
    /// Whether this CPU, which has the family's features, has those too that these need.
    pub available: fn() -> bool,
    /// In place of [`StoredFamily::pack`].
    pub pack: Tile<StoredCall>,
    /// In place of [`StoredFamily::score`].
    pub score: Tile<StoredCall>,
    /// As [`Family::chains`](super::Family::chains), of dot products.
    pub chains: unsafe fn(usize) -> f32,
    /// Multiply-adds of an instruction.
    pub products: usize,
}

/// The wrappers with one way to convert rows.
pub(super) const fn of<C: Convert>(dots: Option<Dots>) -> StoredFamily {
    StoredFamily {
        pack: pack::<C>,
        score: score::<C>,
        value: value::<C>,
        edge_score: edge_score::<C>,
        edge_value: edge_value::<C>,
        value_exact: exact::<C>,
        dots,
    }
}

/// The wrappers of `dtype` around the tiles of `isa`, element by element where the CPU lacks the instructions; `None`
/// for f32, which needs none.
pub fn stored_family(isa: Isa, dtype: Dtype) -> Option<StoredFamily> {
    match (dtype, family(isa)) {
        (Dtype::F32, _) => None,
        (Dtype::Bf16, family) => Some(family.map_or(of::<Plain<bf16>>(None), |family| family.bf16)),
        (Dtype::F16, family) => Some(family.map_or(of::<Plain<f16>>(None), |family| family.f16)),
    }
}

/// Whether scores of bf16 can be dot products of pairs ([`with_dots`](StoredFamily::with_dots)): this CPU has them for this
/// family and storage type, and they serve queries of width `d`.
pub fn dots_serve(isa: Isa, dtype: Dtype, d: usize) -> bool {
    d >= 2 && stored_family(isa, dtype).is_some_and(|stored| stored.dots().is_some())
}

impl StoredFamily {
    /// Dot products of bf16 pairs, where this CPU has them.
    pub(super) fn dots(self) -> Option<Dots> {
        self.dots.filter(|dots| (dots.available)())
    }

    /// The same with scores by dot products of bf16 pairs; only where [`dots_serve`] says so.
    #[must_use]
    pub fn with_dots(self) -> Self {
        self.dots().map_or(self, |dots| Self { pack: dots.pack, score: dots.score, ..self })
    }
}

/// Floats of widened keys at a time, 6 KiB. Measured beside f32 tiles at 64 columns with AVX-512: 24 keys reach 94 % of
/// their speed, 6 keys 88, 48 keys 92, 96 keys 91 %.
const SCORE_FLOATS: usize = 3 << 9;
/// Floats of widened values at a time, 24 KiB: 96 keys reach 94 %, 192 and more, which are written to L2, 85 to 88 %.
const VALUE_FLOATS: usize = 6 << 10;
/// Values widened at a time, at least: sums are kept and fetched again in between.
const LEAST_VALUES: usize = 48;
/// Floats of rows widened for scattered edges at a time.
const EDGE_FLOATS: usize = 4 << 10;
/// Rows widened for scattered edges at a time, at most.
const EDGE_ROWS: usize = 128;

/// Row numbers of rows that were gathered one behind the other.
static IN_ORDER: [u32; EDGE_ROWS] = {
    let mut rows = [0; EDGE_ROWS];
    let mut row = 0;
    while row < EDGE_ROWS {
        rows[row] = row as u32;
        row += 1;
    }
    rows
};

/// Floats from one widened row to the next: whole cache lines.
const fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// Keys widened for one score call: whole register tiles.
const fn score_keys(d: usize) -> usize {
    let keys = SCORE_FLOATS / padded(d) / 6 * 6;
    if keys < 6 { 6 } else { keys }
}

/// Keys widened for one value call.
const fn value_keys(dv: usize) -> usize {
    let keys = VALUE_FLOATS / padded(dv);
    if keys < LEAST_VALUES { LEAST_VALUES } else { keys }
}

/// Edges widened at a time.
const fn edge_rows(width: usize) -> usize {
    let rows = EDGE_FLOATS / padded(width);
    if rows > EDGE_ROWS { EDGE_ROWS } else { rows }
}

/// Floats that [`StoredCall::buffer`] must hold for these widths.
pub const fn buffer_floats(d: usize, dv: usize) -> usize {
    // Packed queries, or the queries of scattered edges and their keys.
    let queries = (BLOCK + edge_rows(d)) * padded(d);
    let keys = score_keys(d) * padded(d);
    // Values, the output and restart rows; edges have fewer values.
    let values = (value_keys(dv) + 2 * BLOCK) * padded(dv);
    let edges = edge_rows(dv) * padded(dv);
    let mut most = queries;
    let mut index = 0;
    while index < 3 {
        let floats = [keys, values, edges][index];
        most = if floats > most { floats } else { most };
        index += 1;
    }
    most
}

/// The record that `call` wraps.
///
/// # Safety
/// [`StoredCall::call`] points at a `Call`.
pub(super) unsafe fn record<'a, Call>(call: *const StoredCall) -> (&'a StoredCall, &'a Call) {
    // SAFETY: the caller's.
    unsafe {
        let call = &*call;
        (call, &*call.call.cast())
    }
}

/// The wrapped tile.
///
/// # Safety
/// [`StoredCall::tile`] is the address of a tile that takes a `Call` and returns nothing.
unsafe fn tile<Call>(call: &StoredCall) -> Tile<Call> {
    // SAFETY: the caller's; a function pointer is as wide as an address.
    unsafe { std::mem::transmute::<*const u8, Tile<Call>>(call.tile) }
}

unsafe extern "C" fn pack<C: Convert>(call: *const StoredCall) {
    // SAFETY: contract of `super` for the record, with stored rows; the buffer holds 64 padded rows.
    unsafe {
        let (s, c) = record::<PackCall>(call);
        let stride = padded(c.d);
        let rows = StoredRows { base: c.q.cast(), stride: c.q_stride, rows: c.rows, count: c.count, width: c.d };
        C::widen(&rows, s.buffer, stride);
        let wide = PackCall { q: s.buffer, q_stride: stride, rows: std::ptr::null(), ..*c };
        tile::<PackCall>(s)(&wide);
    }
}

unsafe extern "C" fn score<C: Convert>(call: *const StoredCall) {
    // SAFETY: contract of `super` for the record, with stored rows; keys stay below `nkeys`, and the buffer holds
    // `score_keys` padded rows.
    unsafe {
        let (s, c) = record::<ScoreCall>(call);
        let (stride, most) = (padded(c.d), score_keys(c.d));
        let mut part = ScoreCall { k: s.buffer, k_stride: stride, keys: std::ptr::null(), ..*c };
        let mut first = 0;
        while first < c.nkeys {
            part.nkeys = most.min(c.nkeys - first);
            let rows = run(c.k, c.k_stride, c.keys, first, part.nkeys, c.d);
            C::widen(&rows, s.buffer, stride);
            part.ahead = share(&c.ahead, first..first + part.nkeys, c.nkeys);
            tile::<ScoreCall>(s)(&part);
            part.s = part.s.wrapping_add(part.nkeys * LANES);
            if !part.words.is_null() {
                part.words = part.words.wrapping_add(part.nkeys);
            }
            first += part.nkeys;
        }
    }
}

/// The share of the hints that falls to keys `keys` of `of`.
fn share<const N: usize>(ahead: &[Ahead; N], keys: Range<usize>, of: usize) -> [Ahead; N] {
    let total: usize = ahead.iter().map(|region| region.count).sum();
    let (mut begin, mut end) = (keys.start * total / of, keys.end * total / of);
    ahead.map(|region| {
        let (from, to) = (begin.min(region.count), end.min(region.count));
        (begin, end) = (begin - from, end - to);
        Ahead { start: region.start.wrapping_byte_add(from.wrapping_mul(region.step)), count: to - from, ..region }
    })
}

/// Stored rows of keys `first .. first + count` of a run or a list.
fn run(base: *const f32, stride: usize, keys: *const u32, first: usize, count: usize, width: usize) -> StoredRows {
    let base = base.cast::<u16>();
    let (base, rows) =
        if keys.is_null() { (base.wrapping_add(first * stride), keys) } else { (base, keys.wrapping_add(first)) };
    StoredRows { base, stride, rows, count, width }
}

unsafe extern "C" fn value<C: Convert>(call: *const StoredCall) -> u64 {
    // SAFETY: contract of `super` for the record, with stored rows where `wide` does not say otherwise; the buffer
    // holds `value_keys` padded rows and twice 64 behind them.
    unsafe {
        let (s, c) = record::<ValueCall>(call);
        let tile = std::mem::transmute::<*const u8, unsafe extern "C" fn(*const ValueCall) -> u64>(s.tile);
        let (stride, most) = (padded(c.dv), value_keys(c.dv));
        let wide_out = s.wide & WIDE_OUT != 0;
        // Rows of the output pass through the buffer, also f32 ones whose restart rows do: both share row numbers.
        let through = !c.out.is_null() && (!wide_out || !c.rv.is_null());
        let mut last = *c;
        if through {
            last.out = s.buffer.add(most * stride);
            last.out_stride = stride;
            last.out_rows = std::ptr::null();
            if !c.rv.is_null() {
                let rows =
                    StoredRows { base: c.rv.cast(), stride: c.rv_stride, rows: c.out_rows, count: c.rows, width: c.dv };
                last.rv = last.out.add(BLOCK * stride);
                last.rv_stride = stride;
                C::widen(&rows, last.rv.cast_mut(), stride);
            }
        }
        let flag = if s.wide & WIDE_VALUES != 0 || c.nkeys == 0 {
            tile(&last)
        } else {
            let mut part = ValueCall { v: s.buffer, v_stride: stride, keys: std::ptr::null(), ..last };
            let mut trims = [[0; 2]; ROW_BLOCKS];
            let keys = c.nkeys.div_ceil(c.nkeys.div_ceil(most));
            let mut first = 0;
            loop {
                part.nkeys = keys.min(c.nkeys - first);
                let behind = c.nkeys - first - part.nkeys;
                C::widen(&run(c.v, c.v_stride, c.keys, first, part.nkeys, c.dv), s.buffer, stride);
                part.ahead = share(&c.ahead, first..first + part.nkeys, c.nkeys);
                part.p = c.p.wrapping_add(first * LANES);
                if !c.trims.is_null() {
                    for (block, trims) in trims.iter_mut().enumerate() {
                        let [front, back] = *c.trims.add(block);
                        let cut = |trim: u32, before: usize| (trim as usize).saturating_sub(before).min(part.nkeys);
                        *trims = [cut(front, first) as u32, cut(back, behind) as u32];
                    }
                    part.trims = trims.as_ptr();
                }
                if behind == 0 {
                    part.out = last.out;
                    break tile(&part);
                }
                part.out = std::ptr::null_mut();
                tile(&part);
                part.accumulate = 1;
                first += part.nkeys;
            }
        };
        if through && wide_out {
            for r in 0..c.rows {
                let row = if c.out_rows.is_null() { r } else { *c.out_rows.add(r) as usize };
                std::ptr::copy_nonoverlapping(last.out.add(r * stride), c.out.add(row * c.out_stride), c.dv);
            }
        } else if through {
            let base = c.out.cast_const().cast();
            let rows = StoredRows { base, stride: c.out_stride, rows: c.out_rows, count: c.rows, width: c.dv };
            C::narrow(last.out, stride, &rows);
        }
        flag
    }
}

unsafe extern "C" fn exact<C: Convert>(call: *const StoredCall) {
    // SAFETY: as for `value`.
    unsafe {
        let (s, c) = record::<ExactCall>(call);
        if s.wide & WIDE_VALUES != 0 {
            return value_exact(c);
        }
        let (stride, most) = (padded(c.dv), value_keys(c.dv));
        let mut part = ExactCall { v: s.buffer, v_stride: stride, keys: std::ptr::null(), ..*c };
        let mut first = 0;
        while first < c.nkeys {
            part.nkeys = most.min(c.nkeys - first);
            C::widen(&run(c.v, c.v_stride, c.keys, first, part.nkeys, c.dv), s.buffer, stride);
            value_exact(&part);
            part.accumulate = 1;
            part.p = part.p.wrapping_add(part.nkeys * LANES);
            if !part.words.is_null() {
                part.words = part.words.wrapping_add(part.nkeys);
            }
            first += part.nkeys;
        }
    }
}

unsafe extern "C" fn edge_score<C: Convert>(call: *const StoredCall) {
    // SAFETY: contract of `super` for the record, with stored rows; the buffer holds 64 and `edge_rows` padded rows.
    unsafe {
        let (s, c) = record::<EdgeCall>(call);
        if *c.offsets == *c.offsets.add(c.rows) {
            return;
        }
        let stride = padded(c.d);
        let rows = StoredRows { base: c.q.cast(), stride: c.q_stride, rows: c.q_rows, count: c.rows, width: c.d };
        C::widen(&rows, s.buffer, stride);
        let call = EdgeCall { q: s.buffer, q_stride: stride, q_rows: std::ptr::null(), ..*c };
        edges::<C>(tile(s), &call, c.d, s.buffer.add(BLOCK * stride));
    }
}

unsafe extern "C" fn edge_value<C: Convert>(call: *const StoredCall) {
    // SAFETY: contract of `super` for the record, with stored rows where `wide` does not say otherwise; the buffer
    // holds `edge_rows` padded rows.
    unsafe {
        let (s, c) = record::<EdgeCall>(call);
        if s.wide & WIDE_VALUES != 0 {
            tile::<EdgeCall>(s)(c);
        } else {
            edges::<C>(tile(s), c, c.dv, s.buffer);
        }
    }
}

/// Calls an edge tile for as many queries at a time as have edges whose rows fit into the buffer; a query with more
/// takes several calls.
///
/// # Safety
/// As the wrappers; rows of `kv` have `width` elements, and `buffer` holds `edge_rows(width)` padded rows.
unsafe fn edges<C: Convert>(tile: Tile<EdgeCall>, c: &EdgeCall, width: usize, buffer: *mut f32) {
    let (stride, most) = (padded(width), edge_rows(width));
    let mut offsets = [0; BLOCK + 1];
    // SAFETY: queries stay below `rows`, edges below the last offset.
    unsafe {
        let offset = |r: usize| *c.offsets.add(r) as usize;
        let base = offset(0);
        let mut r = 0;
        while r < c.rows {
            let begin = offset(r);
            let mut next = r + 1;
            while next < c.rows && offset(next + 1) - begin <= most {
                next += 1;
            }
            let end = offset(next);
            let mut first = begin;
            loop {
                let last = end.min(first + most);
                let rows = StoredRows {
                    base: c.kv.cast(),
                    stride: c.kv_stride,
                    rows: c.edge_keys.add(first),
                    count: last - first,
                    width,
                };
                C::widen(&rows, buffer, stride);
                for (i, at) in offsets.iter_mut().enumerate().take(next - r + 1) {
                    *at = (offset(r + i).clamp(first, last) - first) as u32;
                }
                // Row numbers are counted by hand where they are listed, and so are the arrays over queries.
                tile(&EdgeCall {
                    q: c.q.wrapping_add(r * c.q_stride),
                    rows: next - r,
                    offsets: offsets.as_ptr(),
                    edge_keys: IN_ORDER.as_ptr(),
                    kv: buffer,
                    kv_stride: stride,
                    s: c.s.wrapping_add(first - base),
                    max: c.max.wrapping_add(r),
                    sum: c.sum.wrapping_add(r),
                    acc: c.acc.wrapping_add(r * c.acc_stride),
                    accumulate: if first == begin { c.accumulate } else { 1 },
                    ..*c
                });
                first = last;
                if first == end {
                    break;
                }
            }
            r = next;
        }
    }
}

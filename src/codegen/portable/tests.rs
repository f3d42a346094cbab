//! Every portable tile against plain loops in f64, over odd shapes.
//!
//! Row data ends at a page that may not be touched; panels carry sentinels around their values.

use core::ptr;

use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::default_libcall_names;

use super::*;
use crate::tiles::{
    Ahead, BLOCK, EdgeCall, ExpCall, LANES, LEAST_POWER, PackCall, ROW_BLOCKS, ROW_CUTS, ScoreCall, ValueCall,
};

const WIDTHS: [usize; 14] = [1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 64, 65, 100, 128];
const SENTINEL: f32 = 12345.0;

/// The tiles as functions; the module is freed with them.
struct Tiles {
    module: Option<JITModule>,
    symbols: Symbols,
}

impl Tiles {
    fn new(d: usize, dv: usize) -> Self {
        Self::on(d, dv, true)
    }

    /// Tiles for this CPU, or for the oldest of its kind.
    fn on(d: usize, dv: usize, native: bool) -> Self {
        let isa = tile_isa(Options { verify: true, ..Options::default() }, native).unwrap();
        let mut module = JITModule::new(JITBuilder::with_isa(isa.clone(), default_libcall_names()));
        let symbols = define_for(&mut module, isa, Shapes { d, dv }, Options::default()).unwrap();
        module.finalize_definitions().unwrap();
        Self { module: Some(module), symbols }
    }

    #[allow(unsafe_code)]
    fn call<Call>(&self, id: FuncId, call: &Call) -> u64 {
        let code = self.module.as_ref().unwrap().get_finalized_function(id);
        // SAFETY: the module is finalized and lives as long as `self`; every tile takes one pointer to its record
        // in the system's calling convention, and a caller that expects no result ignores the register. The
        // records in these tests point to vectors that live through the call.
        unsafe {
            let tile: unsafe extern "C" fn(*const Call) -> u64 = core::mem::transmute(code);
            tile(call)
        }
    }
}

impl Drop for Tiles {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: no function of the module is running, and no address of one outlives `self`.
            unsafe { module.free_memory() };
        }
    }
}

/// A small generator; tests must not depend on the crate's own random choices.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    /// Uniform in [-1, 1).
    fn float(&mut self) -> f32 {
        ((self.next() >> 40) as f32) / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    /// `count` row numbers below `limit`, in any order, with repeats.
    fn rows(&mut self, count: usize, limit: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(limit) as u32).collect()
    }
}

/// Floats on a 64-byte boundary, with a sentinel behind them.
struct Panel {
    storage: Vec<f32>,
    start: usize,
    len: usize,
}

impl Panel {
    fn new(len: usize, value: f32) -> Self {
        let storage = vec![SENTINEL; len + 32];
        let start = storage.as_ptr().align_offset(64);
        let mut panel = Self { storage, start, len };
        panel.values_mut().fill(value);
        panel
    }

    fn from(values: &[f32]) -> Self {
        let mut panel = Self::new(values.len(), 0.0);
        panel.values_mut().copy_from_slice(values);
        panel
    }

    fn values(&self) -> &[f32] {
        &self.storage[self.start..self.start + self.len]
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.start..self.start + self.len]
    }

    fn pointer(&mut self) -> *mut f32 {
        self.values_mut().as_mut_ptr()
    }

    /// Fails where something was written in front of or behind the values.
    fn check_borders(&self) {
        let (front, back) = (&self.storage[..self.start], &self.storage[self.start + self.len..]);
        assert!(front.iter().chain(back).all(|&value| value == SENTINEL), "written outside the panel");
    }
}

fn close(found: f32, expected: f64, scale: f64, what: &str) {
    if expected.is_nan() {
        assert!(found.is_nan(), "{what}: {found} instead of NaN");
        return;
    }
    if expected.is_infinite() {
        assert_eq!(f64::from(found), expected, "{what}");
        return;
    }
    let error = (f64::from(found) - expected).abs();
    assert!(error <= 2e-6 * scale, "{what}: {found} instead of {expected}");
}

fn pointer_or_null<T>(values: Option<&[T]>) -> *const T {
    values.map_or(ptr::null(), <[T]>::as_ptr)
}

/// The kinds of mask words that tests go through; bits of lanes beyond the queries are 0, as in a block mask.
fn word_kinds(random: &mut Random, nkeys: usize) -> Vec<Option<Vec<u64>>> {
    let band = (0..nkeys).map(|key| u64::MAX << (key % 64)).collect();
    vec![
        None,
        Some((0..nkeys).map(|_| random.next()).collect()),
        Some((0..nkeys).map(|_| random.next() & random.next() & random.next() & random.next()).collect()),
        Some(band),
        Some(vec![0; nkeys]),
    ]
}

fn allowed(words: Option<&[u64]>, key: usize, query: usize) -> bool {
    words.is_none_or(|words| words[key] >> query & 1 == 1)
}

#[test]
fn widths_of_zero_are_refused() {
    let isa = tile_isa(Options::default(), true).unwrap();
    let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
    let refused = define(&mut module, Shapes { d: 0, dv: 4 }, Options::default());
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}

#[test]
fn pack_transposes_scales_and_clears_lanes_beyond_the_last_query() {
    let mut random = Random(1);
    for d in WIDTHS {
        let tiles = Tiles::new(d, 1);
        for count in [1, 3, 4, 5, 15, 16, 17, 64] {
            for gathered in [false, true] {
                let stride = d + random.below(3);
                let total = if gathered { count + 7 } else { count };
                // The last row ends where the vector ends.
                let mut q = Guarded::from(&random.floats((total - 1) * stride + d));
                q[(count - 1) * stride] = f32::NAN;
                let rows = gathered.then(|| random.rows(count, total));
                let groups = count.div_ceil(LANES);
                let mut out = Panel::new(groups * d * LANES, f32::NAN);
                let call = PackCall {
                    q: q.as_ptr(),
                    q_stride: stride,
                    rows: pointer_or_null(rows.as_deref()),
                    count,
                    d,
                    out: out.pointer(),
                    scale: 0.37,
                };
                tiles.call(tiles.symbols.pack, &call);
                out.check_borders();
                for (index, &found) in out.values().iter().enumerate() {
                    let (query, x) = (index / (LANES * d) * LANES + index % LANES, index / LANES % d);
                    let expected = if query < count {
                        q[rows.as_ref().map_or(query, |rows| rows[query] as usize) * stride + x] * 0.37
                    } else {
                        0.0
                    };
                    assert!(
                        found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                        "d {d}, count {count}, query {query}, x {x}: {found} instead of {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn scores_and_maxima_match_plain_loops() {
    let mut random = Random(2);
    for d in WIDTHS {
        let tiles = Tiles::new(d, 1);
        for nkeys in [1, 4, 5, 6, 7, 64, 65] {
            for groups in [1, 2, 4] {
                for words in word_kinds(&mut random, nkeys) {
                    check_score(&tiles, &mut random, d, nkeys, groups, words.as_deref());
                }
            }
        }
    }
}

fn check_score(tiles: &Tiles, random: &mut Random, d: usize, nkeys: usize, groups: usize, words: Option<&[u64]>) {
    let gathered = random.below(2) == 1;
    let with_max = random.below(4) != 0;
    let stride = d + random.below(3);
    let total = if gathered { nkeys + 5 } else { nkeys };
    let mut k = Guarded::from(&random.floats((total - 1) * stride + d));
    let keys = gathered.then(|| random.rows(nkeys, total));
    let row = |key: usize| keys.as_ref().map_or(key, |keys| keys[key] as usize);
    // A key with NaN and one with infinity: they may reach only scores and maxima that see them.
    if nkeys > 4 {
        k[row(2) * stride] = f32::NAN;
        k[row(4) * stride + d - 1] = f32::INFINITY;
    }
    let mut qt = Panel::from(&random.floats(groups * d * LANES));
    let s_stride = (nkeys + random.below(4)) * LANES;
    let mut s = Panel::new((groups - 1) * s_stride + nkeys * LANES, SENTINEL);
    let before = 0.01;
    let mut max = Panel::new(groups * LANES, before);
    let call = ScoreCall {
        ahead: [Ahead::NONE; 4],
        qt: qt.pointer(),
        k: k.as_ptr(),
        k_stride: stride,
        keys: pointer_or_null(keys.as_deref()),
        nkeys,
        d,
        groups,
        words: pointer_or_null(words),
        s: s.pointer(),
        s_stride,
        max: if with_max { max.pointer() } else { ptr::null_mut() },
    };
    tiles.call(tiles.symbols.score, &call);
    s.check_borders();
    max.check_borders();
    for query in 0..groups * LANES {
        let (group, lane) = (query / LANES, query % LANES);
        let mut best = f64::from(before);
        for key in 0..nkeys {
            if !allowed(words, key, query) {
                continue;
            }
            let terms: Vec<f64> = (0..d)
                .map(|x| f64::from(k[row(key) * stride + x]) * f64::from(qt.values()[(group * d + x) * LANES + lane]))
                .collect();
            let expected: f64 = terms.iter().sum();
            let scale: f64 = terms.iter().map(|term| term.abs()).sum::<f64>().max(1e-3);
            let found = s.values()[group * s_stride + key * LANES + lane];
            close(found, expected, scale, &format!("d {d}, {nkeys} keys, score of query {query}, key {key}"));
            if expected > best {
                best = expected;
            }
        }
        let found = max.values()[query];
        let best = if with_max { best } else { f64::from(before) };
        close(found, best, d as f64, &format!("d {d}, {nkeys} keys, maximum of query {query}"));
    }
    // Between the groups' panels nothing is written.
    for group in 1..groups {
        let gap = &s.values()[(group - 1) * s_stride + nkeys * LANES..group * s_stride];
        assert!(gap.iter().all(|&value| value == SENTINEL), "written behind a group's panel");
    }
}

#[test]
fn probabilities_and_sums_match_plain_loops() {
    let mut random = Random(3);
    let tiles = Tiles::new(1, 1);
    for nkeys in [1, 2, 5, 6, 7, 64, 65] {
        for groups in 1..=4 {
            for words in word_kinds(&mut random, nkeys) {
                check_exp(&tiles, &mut random, nkeys, groups, words.as_deref());
            }
        }
    }
}

fn check_exp(tiles: &Tiles, random: &mut Random, nkeys: usize, groups: usize, words: Option<&[u64]>) {
    let s_stride = (nkeys + random.below(3)) * LANES;
    let len = (groups - 1) * s_stride + nkeys * LANES;
    let mut scores: Vec<f32> = (0..len).map(|_| 20.0 * random.float()).collect();
    for (index, special) in [f32::NEG_INFINITY, f32::NAN, f32::INFINITY, -130.0, -1e30, 100.0].into_iter().enumerate() {
        scores[(index * 5 + 3) % (nkeys * LANES)] = special;
    }
    let mut s = Panel::from(&scores);
    let mut max = Panel::new(groups * LANES, 3.25);
    let mut sum = Panel::new(groups * LANES, 0.5);
    let call = ExpCall {
        s: s.pointer(),
        s_stride,
        nkeys,
        groups,
        words: pointer_or_null(words),
        max: max.pointer(),
        sum: sum.pointer(),
    };
    tiles.call(tiles.symbols.exp, &call);
    for panel in [&s, &max, &sum] {
        panel.check_borders();
    }
    for query in 0..groups * LANES {
        let mut total = 0.5;
        for key in 0..nkeys {
            let place = query / LANES * s_stride + key * LANES + query % LANES;
            let found = s.values()[place];
            let expected = probability(scores[place], 3.25, allowed(words, key, query));
            close(found, expected, expected.max(1e-37), &format!("2^({} - 3.25)", scores[place]));
            total += expected;
        }
        close(sum.values()[query], total, total, "sum");
    }
}

/// Probabilities below 2^[`LEAST_POWER`] are 0; +inf, which a row that has it turns into NaN anyway, gives NaN.
fn probability(score: f32, max: f32, allowed: bool) -> f64 {
    let x = f64::from(score - max);
    match x {
        _ if !allowed => 0.0,
        x if x < f64::from(LEAST_POWER) => 0.0,
        x if x == f64::INFINITY => f64::NAN,
        x => x.exp2(),
    }
}

#[test]
fn powers_of_two_are_exact_and_others_close() {
    let tiles = Tiles::new(1, 1);
    let mut worst = 0.0f64;
    for base in LEAST_POWER as i32..127 {
        let mut s = Panel::new(LANES, 0.0);
        for (lane, value) in s.values_mut().iter_mut().enumerate() {
            *value = base as f32 + lane as f32 / LANES as f32;
        }
        let scores = s.values().to_vec();
        let mut max = Panel::new(LANES, 0.0);
        let mut sum = Panel::new(LANES, 0.0);
        let call = ExpCall {
            s: s.pointer(),
            s_stride: LANES,
            nkeys: 1,
            groups: 1,
            words: ptr::null(),
            max: max.pointer(),
            sum: sum.pointer(),
        };
        tiles.call(tiles.symbols.exp, &call);
        assert_eq!(f64::from(s.values()[0]), f64::from(base).exp2());
        for (&found, &score) in s.values().iter().zip(&scores) {
            worst = worst.max((f64::from(found) / f64::from(score).exp2() - 1.0).abs());
        }
    }
    assert!(worst < 2e-7, "largest relative error {worst:e}");
}

/// Floats that end where a page begins that may not be touched: one element read or written too far is a fault.
struct Guarded {
    start: *mut libc::c_void,
    bytes: usize,
    values: *mut f32,
    len: usize,
}

impl Guarded {
    #[allow(unsafe_code)]
    fn from(values: &[f32]) -> Self {
        // SAFETY: plain queries and a fresh private mapping; its last page is made inaccessible before anything
        // points into the mapping, and the copy ends where that page begins.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let bytes = (4 * values.len()).next_multiple_of(page) + page;
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED, "no memory for a guarded buffer");
            let guard = start.byte_add(bytes - page);
            assert_eq!(libc::mprotect(guard, page, libc::PROT_NONE), 0);
            let first = guard.cast::<f32>().sub(values.len());
            ptr::copy_nonoverlapping(values.as_ptr(), first, values.len());
            Self { start, bytes, values: first, len: values.len() }
        }
    }
}

impl Drop for Guarded {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the mapping of `from`, which nothing refers to any more.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

impl core::ops::Deref for Guarded {
    type Target = [f32];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[f32] {
        // SAFETY: `len` floats of a mapping that lives as long as `self`, written in `from`.
        unsafe { core::slice::from_raw_parts(self.values, self.len) }
    }
}

impl core::ops::DerefMut for Guarded {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as for `deref`, and `self` is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.values, self.len) }
    }
}

/// A value call's inputs, kept alive together.
struct ValueCase {
    nkeys: usize,
    rows: usize,
    dv: usize,
    p: Panel,
    p_stride: usize,
    v: Guarded,
    v_stride: usize,
    keys: Option<Vec<u32>>,
    trims: Option<Vec<[u32; 2]>>,
    accumulate: bool,
}

impl ValueCase {
    fn random(random: &mut Random, dv: usize, nkeys: usize, rows: usize) -> Self {
        let groups = rows.div_ceil(LANES);
        let p_stride = (nkeys + random.below(3)) * LANES;
        let mut p = random.floats((groups.max(1) - 1) * p_stride + nkeys * LANES);
        let gathered = random.below(2) == 1;
        let trims: Option<Vec<[u32; 2]>> = (random.below(2) == 1).then(|| {
            (0..ROW_BLOCKS).map(|_| [random.below(nkeys + 1) as u32, random.below(nkeys + 1) as u32]).collect()
        });
        if let Some(trims) = &trims {
            for (block, &[front, back]) in trims.iter().enumerate() {
                let (group, cut) = (block / 3, block % 3);
                for key in (0..nkeys).filter(|&key| key < front as usize || key >= nkeys - back as usize) {
                    for lane in ROW_CUTS[cut]..ROW_CUTS[cut + 1] {
                        if let Some(place) = p.get_mut(group * p_stride + key * LANES + lane) {
                            *place = 0.0;
                        }
                    }
                }
            }
        }
        let total = if gathered { nkeys + 4 } else { nkeys };
        let v_stride = dv + random.below(3);
        let v = Guarded::from(&random.floats(if total == 0 { 0 } else { (total - 1) * v_stride + dv }));
        let keys = gathered.then(|| random.rows(nkeys, total.max(1)));
        Self {
            nkeys,
            rows,
            dv,
            p: Panel::from(&p),
            p_stride,
            v,
            v_stride,
            keys,
            trims,
            accumulate: random.below(2) == 1,
        }
    }

    /// The sum and the sum of magnitudes of one element.
    fn expected(&self, before: f32, row: usize, column: usize) -> (f64, f64) {
        let mut sum = if self.accumulate { f64::from(before) } else { 0.0 };
        let mut scale = sum.abs();
        for key in 0..self.nkeys {
            let p = self.p.values()[row / LANES * self.p_stride + key * LANES + row % LANES];
            let number = self.keys.as_ref().map_or(key, |keys| keys[key] as usize);
            let term = f64::from(p) * f64::from(self.v[number * self.v_stride + column]);
            sum += term;
            scale += term.abs();
        }
        (sum, scale.max(1e-3))
    }

    fn call(&mut self, acc: &mut Panel, acc_stride: usize) -> ValueCall {
        ValueCall {
            p: self.p.pointer(),
            p_stride: self.p_stride,
            v: self.v.as_ptr(),
            v_stride: self.v_stride,
            keys: pointer_or_null(self.keys.as_deref()),
            nkeys: self.nkeys,
            dv: self.dv,
            rows: self.rows,
            trims: pointer_or_null(self.trims.as_deref()),
            acc: acc.pointer(),
            acc_stride,
            accumulate: usize::from(self.accumulate),
            out: ptr::null_mut(),
            out_stride: 0,
            out_rows: ptr::null(),
            factor: ptr::null(),
            rv: ptr::null(),
            rv_stride: 0,
            restart: f32::NAN,
            ahead: [Ahead::NONE; 2],
        }
    }
}

#[test]
fn value_sums_match_plain_loops() {
    let mut random = Random(4);
    for dv in WIDTHS {
        let tiles = Tiles::new(1, dv);
        for nkeys in [0, 1, 5, 6, 7, 64, 65, 129, 300] {
            for rows in [1, 5, 6, 11, 16, 17, 64] {
                check_value_sums(&tiles, &mut random, dv, nkeys, rows);
            }
        }
    }
}

fn check_value_sums(tiles: &Tiles, random: &mut Random, dv: usize, nkeys: usize, rows: usize) {
    let mut case = ValueCase::random(random, dv, nkeys, rows);
    let acc_stride = dv.next_multiple_of(LANES);
    let start = if case.accumulate { 0.75 } else { f32::NAN };
    let mut acc = Panel::new(rows * acc_stride, start);
    let call = case.call(&mut acc, acc_stride);
    assert_eq!(tiles.call(tiles.symbols.value, &call), 0);
    acc.check_borders();
    for (row, column) in (0..rows).flat_map(|row| (0..dv).map(move |column| (row, column))) {
        let (expected, scale) = case.expected(start, row, column);
        let what = format!("dv {dv}, {nkeys} keys, {rows} rows, row {row}, column {column}");
        close(acc.values()[row * acc_stride + column], expected, scale, &what);
    }
}

#[test]
fn value_outputs_take_factor_and_restart() {
    let mut random = Random(5);
    for dv in WIDTHS {
        let tiles = Tiles::new(1, dv);
        for (nkeys, rows) in [(0, 7), (5, 1), (64, 64), (65, 17), (7, 16)] {
            for (scattered, restarts) in [(false, false), (true, true), (false, true), (true, false)] {
                let mut case = ValueCase::random(&mut random, dv, nkeys, rows);
                let acc_stride = dv.next_multiple_of(LANES);
                let mut acc = Panel::new(rows * acc_stride, 0.25);
                let (out_stride, rv_stride) = (dv + random.below(3), dv + random.below(3));
                let total = if scattered { 2 * rows } else { rows };
                let numbers: Option<Vec<u32>> =
                    scattered.then(|| (0..rows as u32).rev().map(|row| 2 * row + 1).collect());
                let mut out = Guarded::from(&vec![SENTINEL; (total - 1) * out_stride + dv]);
                let rv = Guarded::from(&random.floats((total - 1) * rv_stride + dv));
                let factor = random.floats(rows);
                let call = ValueCall {
                    out: out.as_mut_ptr(),
                    out_stride,
                    out_rows: pointer_or_null(numbers.as_deref()),
                    factor: factor.as_ptr(),
                    rv: if restarts { rv.as_ptr() } else { ptr::null() },
                    rv_stride,
                    restart: 0.3,
                    ..case.call(&mut acc, acc_stride)
                };
                assert_eq!(tiles.call(tiles.symbols.value, &call), 0);
                let mut seen = vec![false; out.len()];
                for (row, column) in (0..rows).flat_map(|row| (0..dv).map(move |column| (row, column))) {
                    let number = numbers.as_ref().map_or(row, |numbers| numbers[row] as usize);
                    let (sum, scale) = case.expected(0.25, row, column);
                    let term = if restarts { 0.3 * f64::from(rv[number * rv_stride + column]) } else { 0.0 };
                    let expected = f64::from(factor[row]) * sum + term;
                    let place = number * out_stride + column;
                    seen[place] = true;
                    close(out[place], expected, scale + 1.0, &format!("dv {dv}, row {row}, column {column}"));
                }
                for (place, &value) in out.iter().enumerate() {
                    assert!(seen[place] || value == SENTINEL, "written outside the output's rows");
                }
            }
        }
    }
}

#[test]
fn value_reports_what_is_not_finite() {
    let mut random = Random(6);
    for dv in [1, 3, 4, 8, 13, 64] {
        let tiles = Tiles::new(1, dv);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for column in 0..dv {
                let mut case = ValueCase::random(&mut random, dv, 9, 20);
                (case.accumulate, case.trims) = (false, None);
                let number = case.keys.as_ref().map_or(4, |keys| keys[4] as usize);
                case.v[number * case.v_stride + column] = bad;
                let acc_stride = dv.next_multiple_of(LANES);
                let mut acc = Panel::new(20 * acc_stride, 0.0);
                let mut out = Panel::new(20 * dv, 0.0);
                let factor = [1.0; 20];
                let call = ValueCall {
                    out: out.pointer(),
                    out_stride: dv,
                    factor: factor.as_ptr(),
                    ..case.call(&mut acc, acc_stride)
                };
                assert_eq!(tiles.call(tiles.symbols.value, &call), 1, "dv {dv}, {bad} in column {column}");
                // Other columns stay clean.
                for (place, value) in out.values().iter().enumerate() {
                    assert_eq!(value.is_finite(), place % dv != column, "place {place}");
                }
            }
        }
    }
}

#[test]
fn trimmed_keys_are_not_read() {
    let mut random = Random(7);
    let tiles = Tiles::new(1, 11);
    let mut case = ValueCase::random(&mut random, 11, 30, 64);
    (case.accumulate, case.keys) = (false, None);
    case.trims = Some(vec![[3, 4]; ROW_BLOCKS]);
    for key in (0..3).chain(26..30) {
        case.v[key * case.v_stride..][..11].fill(f32::NAN);
    }
    let mut acc = Panel::new(BLOCK * LANES, 0.0);
    let call = case.call(&mut acc, LANES);
    tiles.call(tiles.symbols.value, &call);
    assert!((0..BLOCK).all(|row| acc.values()[row * LANES..][..11].iter().all(|value| value.is_finite())));
}

#[test]
fn edges_match_plain_loops() {
    let mut random = Random(8);
    for width in WIDTHS {
        let tiles = Tiles::new(width, width);
        for rows in [1, 6, 17, 64] {
            for gathered in [false, true] {
                check_edges(&tiles, &mut random, width, rows, gathered);
            }
        }
    }
}

fn check_edges(tiles: &Tiles, random: &mut Random, width: usize, rows: usize, gathered: bool) {
    let nkeys = 23;
    let base = random.below(9) as u32;
    let mut offsets = vec![base];
    for row in 0..rows {
        offsets.push(offsets[row] + random.below(11) as u32);
    }
    let count = (offsets[rows] - base) as usize;
    let edge_keys = random.rows(offsets[rows] as usize, nkeys);
    let (q_stride, kv_stride) = (width + random.below(3), width + random.below(3));
    let total = if gathered { rows + 3 } else { rows };
    let q = Guarded::from(&random.floats((total - 1) * q_stride + width));
    let kv = Guarded::from(&random.floats((nkeys - 1) * kv_stride + width));
    let q_rows = gathered.then(|| random.rows(rows, total));
    let mut s = Guarded::from(&vec![0.0; count]);
    let mut max = Panel::new(rows, -0.5);
    let mut sum = Panel::new(rows, 0.25);
    let acc_stride = width.next_multiple_of(LANES);
    let accumulate = random.below(2);
    let start = if accumulate == 1 { 0.5 } else { f32::NAN };
    let mut acc = Panel::new(rows * acc_stride, start);
    let call = EdgeCall {
        q: q.as_ptr(),
        q_stride,
        q_rows: pointer_or_null(q_rows.as_deref()),
        scale: 1.5,
        rows,
        d: width,
        dv: width,
        offsets: offsets.as_ptr(),
        edge_keys: edge_keys.as_ptr(),
        kv: kv.as_ptr(),
        kv_stride,
        s: s.as_mut_ptr(),
        max: max.pointer(),
        sum: sum.pointer(),
        acc: acc.pointer(),
        acc_stride,
        accumulate,
    };
    let edges = |row: usize| (offsets[row] - base) as usize..(offsets[row + 1] - base) as usize;
    let key = |edge: usize| edge_keys[edge + base as usize] as usize;

    tiles.call(tiles.symbols.edges.unwrap().score, &call);
    let scores = s.to_vec();
    for row in 0..rows {
        let mut best = -0.5f32;
        for edge in edges(row) {
            let number = q_rows.as_ref().map_or(row, |rows| rows[row] as usize);
            let expected: f64 = (0..width)
                .map(|x| 1.5 * f64::from(q[number * q_stride + x]) * f64::from(kv[key(edge) * kv_stride + x]))
                .sum();
            close(scores[edge], expected, width as f64, &format!("d {width}, row {row}, edge {edge}"));
            best = best.max(scores[edge]);
        }
        assert_eq!(max.values()[row], best, "maximum of row {row}");
    }

    tiles.call(tiles.symbols.edges.unwrap().exp, &call);
    for row in 0..rows {
        let mut total = 0.25;
        for edge in edges(row) {
            let expected = f64::from(scores[edge] - max.values()[row]).exp2();
            close(s[edge], expected, expected, "edge probability");
            total += expected;
        }
        close(sum.values()[row], total, total, "edge sum");
    }

    tiles.call(tiles.symbols.edges.unwrap().value, &call);
    for (row, column) in (0..rows).flat_map(|row| (0..width).map(move |column| (row, column))) {
        let mut expected = if accumulate == 1 { 0.5 } else { 0.0 };
        for edge in edges(row) {
            expected += f64::from(s[edge]) * f64::from(kv[key(edge) * kv_stride + column]);
        }
        close(acc.values()[row * acc_stride + column], expected, 12.0, &format!("dv {width}, row {row}"));
    }
    for panel in [&max, &sum, &acc] {
        panel.check_borders();
    }
}

/// The instructions that every CPU of this kind has: no fused multiply-add, no AVX on x86-64.
#[test]
fn tiles_for_the_oldest_cpu_match_plain_loops() {
    let mut random = Random(9);
    for width in [1, 7, 8, 33, 64] {
        check_all(&Tiles::on(width, width, false), &mut random, width);
    }
}

#[test]
fn tiles_of_the_largest_width_match_plain_loops() {
    check_all(&Tiles::new(512, 512), &mut Random(10), 512);
}

fn check_all(tiles: &Tiles, random: &mut Random, width: usize) {
    for nkeys in [1, 7, 65] {
        for words in word_kinds(random, nkeys) {
            check_score(tiles, random, width, nkeys, 4, words.as_deref());
            check_exp(tiles, random, nkeys, 4, words.as_deref());
        }
        check_value_sums(tiles, random, width, nkeys, 64);
        check_value_sums(tiles, random, width, nkeys, 17);
    }
    check_edges(tiles, random, width, 17, true);
}

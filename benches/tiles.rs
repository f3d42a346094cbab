//! Tiles alone, per family: score, value, exp, softcap and alibi of a 64 × 64 × 64 block from L1 and over 512 keys from L2, and
//! scattered edges at 64 random keys per query, and the triangle of 64 rows. Throughput counts FLOPs (for exp and mods: scores;
//! for edges: 2 · 64 per edge). After each family's score, value and triangles the share of the FMA peak is printed, with the
//! peak measured in turn with the tile, so that a busy machine disturbs both alike.
//!
//! ```text
//! cargo bench --bench tiles
//! ```
#![allow(unsafe_code, missing_docs)]

use std::hint::black_box;
use std::mem::{ManuallyDrop, transmute};
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::default_libcall_names;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hopweave::codegen::portable;
use hopweave::plan::{ModsBy, ModsPlan};
use hopweave::target::Isa;
use hopweave::tiles::peak::fma_peak;
use hopweave::tiles::solve::{SolveCall, solve, solve_transposed};
use hopweave::tiles::{Ahead, BLOCK, EdgeCall, ExpCall, Family, LANES, ModCall, ScoreCall, Tile, ValueCall, family};

/// Width of keys and values.
const D: usize = 64;

/// A cache line, so that buffers of lines are aligned as tiles ask.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; LANES]);

/// At least `len` floats, 64-byte aligned, all `value`.
struct Buffer(Vec<Line>);

impl Buffer {
    fn new(len: usize, value: f32) -> Self {
        Self(vec![Line([value; LANES]); len.div_ceil(LANES)])
    }

    fn pointer(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// The tiles under test.
#[derive(Clone, Copy)]
struct Tiles {
    isa: Isa,
    score: Tile<ScoreCall>,
    exp: Tile<ExpCall>,
    value: unsafe extern "C" fn(*const ValueCall) -> u64,
    edge_score: Tile<EdgeCall>,
    edge_value: Tile<EdgeCall>,
    softcap: Tile<ModCall>,
    alibi: Tile<ModCall>,
}

/// The emitted family for width [`D`], then those of this CPU.
fn families() -> impl Iterator<Item = Tiles> {
    let of = |family: Family| {
        let Family { isa, score, exp, value, edge_score, edge_value, softcap, alibi, .. } = family;
        Tiles { isa, score, exp, value, edge_score, edge_value, softcap, alibi }
    };
    std::iter::once(portable()).chain(Isa::ALL.into_iter().filter_map(family).map(of))
}

/// The portable tiles as function pointers; their code stays until the process ends.
fn portable() -> Tiles {
    let isa = hopweave::jit::target_isa().expect("a CPU that Cranelift knows");
    let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
    let shapes = portable::Shapes { d: D, dv: D };
    let options = portable::Options { verify: false, ..portable::Options::default() };
    let symbols = portable::define(&mut module, shapes, options).expect("tiles");
    let edges = symbols.edges.expect("edge tiles were asked for");
    module.finalize_definitions().expect("finished code");
    let module = ManuallyDrop::new(module);
    let code = |id| module.get_finalized_function(id);
    // SAFETY: `define` promises these signatures, and the module is never freed.
    unsafe {
        Tiles {
            isa: Isa::Portable,
            score: transmute::<*const u8, Tile<ScoreCall>>(code(symbols.score)),
            exp: transmute::<*const u8, Tile<ExpCall>>(code(symbols.exp)),
            value: transmute::<*const u8, unsafe extern "C" fn(*const ValueCall) -> u64>(code(symbols.value)),
            edge_score: transmute::<*const u8, Tile<EdgeCall>>(code(edges.score)),
            edge_value: transmute::<*const u8, Tile<EdgeCall>>(code(edges.value)),
            softcap: mods("softcap 30.0"),
            alibi: mods("alibi [0.5]"),
        }
    }
}

/// The code of one score mod.
fn mods(text: &str) -> Tile<ModCall> {
    let isa = hopweave::jit::target_isa().expect("a CPU that Cranelift knows");
    let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
    let mods = format!("positions q_len 512 kv_len 512 heads 1 q_offset 0\n{text}").parse().expect("a score mod");
    let plan = ModsPlan { mods, factor: 1.0, fused: true, by: ModsBy::Code };
    let options = portable::Options { verify: false, edges: false, ..portable::Options::default() };
    let symbols = portable::define_mods(&mut module, &plan, options).expect("code");
    module.finalize_definitions().expect("finished code");
    let code = ManuallyDrop::new(module).get_finalized_function(symbols.panel.expect("code for panels"));
    // SAFETY: `define_mods` promises this signature, and the module is never freed.
    unsafe { transmute::<*const u8, Tile<ModCall>>(code) }
}

/// The block tiles of one family over `nkeys` keys, on data that stays the same from call to call.
struct Block {
    family: Tiles,
    score: ScoreCall,
    exp: ExpCall,
    value: ValueCall,
    mods: ModCall,
    _buffers: [Buffer; 8],
    _inputs: Box<[*const f32; 1]>,
}

impl Block {
    fn new(family: Tiles, nkeys: usize) -> Self {
        let mut qt = Buffer::new(BLOCK * D, 0.01);
        let mut kv = Buffer::new(nkeys * D, 0.5);
        let mut s = Buffer::new(BLOCK * nkeys, 0.25);
        let (mut max, mut sum) = (Buffer::new(BLOCK, 0.0), Buffer::new(BLOCK, 0.0));
        let mut acc = Buffer::new(BLOCK * D, 0.0);
        let s_stride = nkeys * LANES;
        let score = ScoreCall {
            ahead: [Ahead::NONE; 4],
            qt: qt.pointer(),
            k: kv.pointer(),
            k_stride: D,
            keys: null(),
            nkeys,
            d: D,
            groups: BLOCK / LANES,
            words: null(),
            s: s.pointer(),
            s_stride,
            max: max.pointer(),
        };
        let exp = ExpCall {
            s: s.pointer(),
            s_stride,
            nkeys,
            groups: BLOCK / LANES,
            words: null(),
            max: max.pointer(),
            sum: sum.pointer(),
        };
        let value = ValueCall {
            p: s.pointer(),
            p_stride: s_stride,
            v: kv.pointer(),
            v_stride: D,
            keys: null(),
            nkeys,
            dv: D,
            rows: BLOCK,
            trims: null(),
            acc: acc.pointer(),
            acc_stride: D,
            accumulate: 0,
            out: null_mut(),
            out_stride: 0,
            out_rows: null(),
            factor: null(),
            rv: null(),
            rv_stride: 0,
            restart: 0.0,
            ahead: [Ahead::NONE; 2],
        };
        let (mut positions, mut slopes) = (Buffer::new(BLOCK, 0.0), Buffer::new(1, 0.5));
        let inputs = Box::new([slopes.pointer().cast_const()]);
        let mods = ModCall {
            s: s.pointer(),
            s_stride,
            nkeys,
            groups: BLOCK / LANES,
            words: null(),
            max: max.pointer(),
            keys: null(),
            first_key: 0,
            key_step: 1,
            positions: positions.pointer().cast(),
            head: 0,
            inputs: inputs.as_ptr(),
            constant: 30.0,
            factor: 1.0,
        };
        let buffers = [qt, kv, s, max, sum, acc, positions, slopes];
        Self { family, score, exp, value, mods, _buffers: buffers, _inputs: inputs }
    }

    fn flops(&self) -> u64 {
        (2 * BLOCK * self.score.nkeys * D) as u64
    }

    fn run_score(&self) {
        // SAFETY: the records point into `_buffers`, sized as the records say.
        unsafe { (self.family.score)(black_box(&self.score)) };
    }

    fn run_exp(&self) {
        // SAFETY: as above.
        unsafe { (self.family.exp)(black_box(&self.exp)) };
    }

    fn run_softcap(&self) {
        // SAFETY: as above.
        unsafe { (self.family.softcap)(black_box(&self.mods)) };
    }

    fn run_alibi(&self) {
        // SAFETY: as above.
        unsafe { (self.family.alibi)(black_box(&self.mods)) };
    }

    fn run_value(&self) {
        // SAFETY: as above.
        unsafe { (self.family.value)(black_box(&self.value)) };
    }
}

/// The tile's best rate over the best peak, measured in turn.
fn share_of_peak(isa: Isa, flops: u64, run: impl Fn()) -> f64 {
    const CALLS: u32 = 16;
    let (mut best, mut peak) = (0.0f64, 0.0f64);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        peak = peak.max(fma_peak(isa, 0.0005));
        let slice = Instant::now();
        for _ in 0..CALLS {
            run();
        }
        let seconds = slice.elapsed().as_secs_f64();
        best = best.max(flops as f64 * f64::from(CALLS) / seconds * 1e-9);
    }
    best / peak
}

fn blocks(c: &mut Criterion) {
    for family in families() {
        for nkeys in [64, 512] {
            let block = Block::new(family, nkeys);
            let id = |what: &str| BenchmarkId::new(format!("{what}/{}", family.isa), nkeys);
            let mut group = c.benchmark_group("block");
            group.throughput(Throughput::Elements(block.flops()));
            group.bench_function(id("score"), |b| b.iter(|| block.run_score()));
            group.bench_function(id("value"), |b| b.iter(|| block.run_value()));
            group.throughput(Throughput::Elements((BLOCK * nkeys) as u64));
            group.bench_function(id("softcap"), |b| b.iter(|| block.run_softcap()));
            group.bench_function(id("alibi"), |b| b.iter(|| block.run_alibi()));
            group.bench_function(id("exp"), |b| b.iter(|| block.run_exp()));
            group.finish();
            println!(
                "{} {nkeys} keys: score {:.1} %, value {:.1} % of the FMA peak in the same run\n",
                family.isa,
                100.0 * share_of_peak(family.isa, block.flops(), || block.run_score()),
                100.0 * share_of_peak(family.isa, block.flops(), || block.run_value()),
            );
        }
    }
}

fn edges(c: &mut Criterion) {
    const PER_QUERY: usize = 64;
    for family in families() {
        for n in [4096usize, 16384] {
            let mut q = Buffer::new(n * D, 0.01);
            let mut kv = Buffer::new(n * D, 0.5);
            let mut s = Buffer::new(BLOCK * PER_QUERY, 0.0);
            let (mut max, mut sum) = (Buffer::new(BLOCK, 0.0), Buffer::new(BLOCK, 0.0));
            let mut acc = Buffer::new(BLOCK * D, 0.0);
            let offsets: Vec<u32> = (0..=n).map(|i| (i * PER_QUERY) as u32).collect();
            // Weyl sequence: spread over all rows, repeating none within a query.
            let keys: Vec<u32> = (0..n * PER_QUERY).map(|e| (e * 40_503 % n) as u32).collect();
            let mut call = EdgeCall {
                q: q.pointer(),
                q_stride: D,
                q_rows: null(),
                scale: 1.0,
                rows: BLOCK,
                d: D,
                dv: D,
                offsets: offsets.as_ptr(),
                edge_keys: keys.as_ptr(),
                kv: kv.pointer(),
                kv_stride: D,
                s: s.pointer(),
                max: max.pointer(),
                sum: sum.pointer(),
                acc: acc.pointer(),
                acc_stride: D,
                accumulate: 0,
            };
            let mut block = 0;
            let mut next = || {
                block = (block + 1) % (n / BLOCK);
                call.offsets = offsets[block * BLOCK..].as_ptr();
                call
            };
            let mut group = c.benchmark_group("edges");
            group.throughput(Throughput::Elements((BLOCK * PER_QUERY * 2 * D) as u64));
            // SAFETY: the record points into the buffers above, sized as it says.
            group.bench_function(BenchmarkId::new(format!("score/{}", family.isa), n), |b| {
                b.iter(|| unsafe { (family.edge_score)(black_box(&next())) });
            });
            // SAFETY: as above.
            group.bench_function(BenchmarkId::new(format!("value/{}", family.isa), n), |b| {
                b.iter(|| unsafe { (family.edge_value)(black_box(&next())) });
            });
            group.finish();
        }
    }
}

fn triangles(c: &mut Criterion) {
    let plain = std::iter::once((Isa::Portable, solve as Tile<SolveCall>, solve_transposed as Tile<SolveCall>));
    let families = Isa::ALL.into_iter().filter_map(family);
    for (isa, solve, solve_transposed) in
        plain.chain(families.map(|family| (family.isa, family.solve, family.solve_transposed)))
    {
        for width in [D, 2 * D] {
            // Weights of 0 take as long as others, and leave the rows as they are from call to call.
            let (mut p, mut factor) = (Buffer::new(BLOCK * BLOCK, 0.0), Buffer::new(BLOCK, 0.5));
            let mut z = Buffer::new(BLOCK * width, 0.5);
            let call = SolveCall {
                p: p.pointer(),
                p_stride: BLOCK * LANES,
                rows: BLOCK,
                factor: factor.pointer(),
                z: z.pointer(),
                z_stride: width,
                width,
            };
            let flops = (BLOCK * (BLOCK + 1) * width) as u64;
            for (name, tile) in [("solve", solve), ("solve_transposed", solve_transposed)] {
                // SAFETY: the record points into the buffers above, sized as it says.
                let run = || unsafe { tile(black_box(&call)) };
                let mut group = c.benchmark_group("triangle");
                group.throughput(Throughput::Elements(flops));
                group.bench_function(BenchmarkId::new(format!("{name}/{isa}"), width), |b| b.iter(run));
                group.finish();
                println!(
                    "{isa} {name} {width} wide: {:.1} % of the FMA peak\n",
                    100.0 * share_of_peak(isa, flops, run)
                );
            }
        }
    }
}

criterion_group! {
    name = tiles;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .without_plots();
    targets = blocks, edges, triangles
}
criterion_main!(tiles);

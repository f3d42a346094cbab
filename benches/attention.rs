//! Whole calls: 4096 tokens, 12 heads of 64, two threads, each pattern beside a baseline (`dense` for dense
//! patterns, `unfused` for sparse ones). Throughput counts useful work: the FLOPs of allowed pairs alone. After each
//! kernel its share of the FMA peak is printed, with the peak measured in turn with the kernel, so that a busy
//! machine disturbs both alike.
//!
//! ```text
//! cargo bench --bench attention
//! ```
#![allow(missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hopweave::baselines::{Baseline, Problem};
use hopweave::compiler::{self, Options};
use hopweave::spec::{self, PatternSpec};
use hopweave::{analysis, machine};
use ndarray::Array4;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const N: usize = 4096;
const THREADS: usize = 2;
/// How long share of peak is measured.
const SHARE_TIME: Duration = Duration::from_millis(1500);

/// Pattern files, what is overridden in them, and the baseline.
const CASES: &[(&str, &str, &str)] = &[
    ("full", "", "dense"),
    ("causal", "", "dense"),
    ("sliding-window", "", "unfused"),
    ("longformer", "", "unfused"),
    ("bigbird", "", "unfused"),
    ("diffuser", "", "unfused"),
    // The same pattern at one hop: what the other four cost.
    ("diffuser", "diffusion.hops=1", "unfused"),
];

fn load(file: &str, set: &str) -> PatternSpec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("patterns").join(file).with_extension("yaml");
    let text = std::fs::read_to_string(&path).expect("a pattern file");
    let sets: Vec<(String, String)> = set.split_once('=').map(|(a, b)| (a.into(), b.into())).into_iter().collect();
    spec::parse_with(&text, file, &sets).expect("a right spec")
}

/// Independent numbers of mean 0 and variance 1, the same in every run.
fn tensor(spec: &PatternSpec, width: usize, stream: u64) -> Array4<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    random.set_stream(stream);
    Array4::from_shape_simple_fn((1, spec.heads, N, width), || {
        let bits = random.next_u64();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f32 / 65_535.0 - 2.0) * 3.0_f32.sqrt()
    })
}

fn attention(c: &mut Criterion) {
    let options = Options { threads: THREADS, ..Options::reproducible() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().expect("threads");
    let mut group = c.benchmark_group("attention");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for &(file, set, baseline) in CASES {
        let spec = load(file, set);
        let name = if set.is_empty() { file.to_string() } else { format!("{file} {set}") };
        let compiled = compiler::compile(&spec, N, N, &options).expect("a kernel");
        let nnz = compiled.mask.counts().nnz();
        let flops = analysis::flops(nnz, &spec);
        let (q, k, v) =
            (tensor(&spec, spec.head_dim, 0), tensor(&spec, spec.head_dim, 1), tensor(&spec, spec.value_dim, 2));
        let mut out = Array4::zeros((1, spec.heads, N, spec.value_dim));
        let mut kernel = || {
            compiled
                .kernel
                .forward_into(q.view(), k.view(), v.view(), &mut out.view_mut(), None)
                .expect("tensors that fit");
        };
        group.throughput(Throughput::Elements(flops));
        group.bench_function(BenchmarkId::new("hopweave", &name), |b| b.iter(&mut kernel));
        println!("{name}: {:.1} % of the FMA peak", 100.0 * share_of_peak(&options, flops, &mut kernel));

        let baseline = Baseline::find(baseline).expect("a baseline");
        let problem = Problem { pattern: &compiled.pattern, spec: &spec, batch: 1, nnz, threads: THREADS };
        match baseline.prepare(&problem, options.memory_limit) {
            Ok(prepared) => {
                group.bench_function(BenchmarkId::new(baseline.name, &name), |b| {
                    b.iter(|| pool.install(|| prepared.run(q.view(), k.view(), v.view())).expect("a result"));
                });
            }
            Err(error) => println!("{} on {name} was skipped: {error}", baseline.name),
        }
    }
    group.finish();
}

/// Median share of the FMA peak on the same threads; the peak is the best of all slices.
fn share_of_peak(options: &Options, flops: u64, kernel: &mut impl FnMut()) -> f64 {
    let mut peak = 0.0_f64;
    let mut rates = Vec::new();
    let start = Instant::now();
    while start.elapsed() < SHARE_TIME || rates.is_empty() {
        peak = peak.max(machine::fma_peak(options.isa, options.threads, 0.01));
        // The first run wakes the threads and brings the tensors back.
        kernel();
        for _ in 0..3 {
            let run = Instant::now();
            kernel();
            rates.push(flops as f64 / run.elapsed().as_secs_f64() * 1e-9);
        }
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2] / peak
}

criterion_group!(benches, attention);
criterion_main!(benches);

//! Training steps: 12 heads of 64, two threads, f32. A forward call, then a backward call that is given what it gave.
//! Shares are of the FMA peak, measured in turn with the calls; useful work counts allowed pairs alone: of a pair, a
//! score and K values forward, and backward the score again, K - 1 values again, K adjoint values, K dot products with
//! Z, and one row each for dq and dk.
//!
//! ```text
//! cargo bench --bench gradients [NAME...]
//! ```
#![allow(missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use hopweave::baselines::{Problem, Training};
use hopweave::compiler::{self, Options};
use hopweave::machine;
use hopweave::runtime::{Saved, Step};
use hopweave::spec::{self, PatternSpec};
use ndarray::Array4;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const THREADS: usize = 2;

/// Pattern files, what is overridden in them, and the length.
const CASES: &[(&str, &[&str], usize)] = &[
    ("sliding-window", &[], 2048),
    ("sliding-window", &[], 8192),
    ("full", &[], 2048),
    ("causal", &[], 2048),
    ("sliding-window", &["diffusion={hops: 5, alpha: 0.1}"], 2048),
    ("longformer", &[], 4096),
    ("diffuser", &[], 4096),
    ("diffuser-reference", &[], 4096),
];

fn load(file: &str, sets: &[&str]) -> PatternSpec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("patterns").join(file).with_extension("yaml");
    let text = std::fs::read_to_string(&path).expect("a pattern file");
    let mut pairs = vec![("heads".to_owned(), "12".to_owned()), ("head_dim".to_owned(), "64".to_owned())];
    pairs.extend(sets.iter().map(|set| set.split_once('=').expect("PATH=VALUE")).map(|(a, b)| (a.into(), b.into())));
    spec::parse_with(&text, file, &pairs).expect("a right spec")
}

/// Independent numbers of mean 0 and variance 1, the same in every run.
fn tensor(spec: &PatternSpec, n: usize, width: usize, stream: u64) -> Array4<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    random.set_stream(stream);
    Array4::from_shape_simple_fn((1, spec.heads, n, width), || {
        let bits = random.next_u64();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f32 / 65_535.0 - 2.0) * 3.0_f32.sqrt()
    })
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let options = Options { threads: THREADS, ..Options::reproducible() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().expect("a pool");
    println!("| pattern | n | forward ms | backward ms | of peak | both ms | unfused backward ms | unfused both ms |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for &(file, sets, n) in CASES {
        let name = format!("{file} {}", sets.join(" ")).trim().to_owned();
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let spec = load(file, sets);
        let compiled = compiler::compile(&spec, n, n, &options).expect("a kernel");
        let training = compiler::compile_training(&spec, &compiled.pattern, &options, false).expect("a kernel");
        let (q, k) = (tensor(&spec, n, 64, 0), tensor(&spec, n, 64, 1));
        let (v, grad) = (tensor(&spec, n, 64, 2), tensor(&spec, n, 64, 3));
        let hops = spec.diffusion.hops().max(1) as f64;
        let nnz = compiled.mask.counts().nnz();
        let flops = 2.0 * nnz as f64 * 64.0;
        let problem = Problem { pattern: &compiled.pattern, spec: &spec, batch: 1, nnz, threads: THREADS };
        let unfused = Training::prepare(&problem, 8 << 30).expect("edge lists");
        let (mut both_unfused, mut backward_unfused) = (Vec::new(), Vec::new());
        let (mut forward, mut backward, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
        let budget = Instant::now();
        while forward.len() < 5 || (budget.elapsed() < Duration::from_secs(3) && forward.len() < 50) {
            peaks.push(machine::fma_peak(options.isa, THREADS, 0.01));
            let start = Instant::now();
            let output = compiled.kernel.forward(q.view(), k.view(), v.view()).expect("tensors that fit");
            forward.push(start.elapsed());
            let start = Instant::now();
            let saved = Saved { out: output.out.view(), lse: output.lse.view() };
            training
                .backward(q.view(), k.view(), v.view(), grad.view(), Some(saved), &Step::default())
                .expect("tensors that fit");
            backward.push(start.elapsed());
            pool.install(|| {
                let start = Instant::now();
                let kept = unfused.forward(q.view(), k.view(), v.view()).expect("tensors that fit");
                let turn = Instant::now();
                let views = [q.view(), k.view(), v.view(), grad.view()];
                unfused.backward(&kept, views).expect("tensors that fit");
                backward_unfused.push(turn.elapsed());
                both_unfused.push(start.elapsed());
            });
        }
        peaks.sort_by(f64::total_cmp);
        let (forward, backward, peak) = (median(forward), median(backward), peaks[peaks.len() - 1]);
        let share = flops * (3.0 * hops + 2.0) / backward / peak * 1e-9;
        let ms = |seconds: f64| 1e3 * seconds;
        println!(
            "| {name} | {n} | {:.2} | {:.2} | {:.1} % | {:.2} | {:.2} | {:.2} |",
            ms(forward),
            ms(backward),
            100.0 * share,
            ms(forward + backward),
            ms(median(backward_unfused)),
            ms(median(both_unfused))
        );
    }
}

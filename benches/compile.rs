//! From the text of a spec to a callable kernel, cold: every file in `patterns/` at 4096 tokens, and the regular
//! ones at a million, for this CPU's best tile family and for the portable one, whose tiles are compiled with the
//! kernel. Then masks of predicates alone.
//!
//! ```text
//! cargo bench --bench compile
//! ```
#![allow(missing_docs)]

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hopweave::compiler::{self, Options};
use hopweave::target::Isa;
use hopweave::{mask, pattern, spec};

/// Patterns whose mask does not grow with the length: a handful of row runs.
const REGULAR: [&str; 8] =
    ["full", "causal", "sliding-window", "dilated-window", "local-chunks", "longformer", "prefix-lm", "streaming-sink"];

/// Name and text of every pattern file, by name.
fn patterns() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("patterns");
    let mut patterns: Vec<(String, String)> = std::fs::read_dir(folder)
        .expect("the folder of patterns")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).expect("a text"))
        })
        .collect();
    patterns.sort();
    patterns
}

fn compile(c: &mut Criterion) {
    let isas = if Isa::best() == Isa::Portable { vec![Isa::Portable] } else { vec![Isa::best(), Isa::Portable] };
    for (isa, n) in isas.into_iter().flat_map(|isa| [(isa, 4096), (isa, 1_000_000)]) {
        let mut group = c.benchmark_group(format!("compile/{isa}/{n}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
        for (name, text) in patterns() {
            if n > 4096 && !REGULAR.contains(&name.as_str()) {
                continue;
            }
            let options = Options { isa, ..Options::reproducible() };
            group.bench_function(BenchmarkId::from_parameter(&name), |b| {
                b.iter(|| {
                    let spec = spec::parse(black_box(&text), &name).expect("a right spec");
                    compiler::compile(&spec, n, n, &options).expect("a kernel")
                });
            });
        }
        group.finish();
    }
}

/// Masks of predicates that bounds decide nowhere: every point is asked.
fn opaque_masks(c: &mut Criterion) {
    let mut group = c.benchmark_group("mask/where/4096");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    for (name, predicate) in [
        ("sum modulo", "(q * 7 + k * 13) % 17 < 5"),
        ("causal hash", "k <= q and (q * 31 + k * k) % 101 < 50"),
        ("distance", "abs(q - k) % 3 == 1 or (q + k) % 5 == 0"),
        ("not integers", "sqrt(abs(q - k)) / 3 % 1 < 0.5"),
    ] {
        let text = format!("name: x\nhead_dim: 64\npattern: {{where: \"{predicate}\"}}\n");
        let spec = spec::parse(&text, name).expect("a right spec");
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                let pattern = pattern::resolve(&spec, 4096, 4096).expect("a pattern");
                mask::build(&pattern, u64::MAX).expect("a mask")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, compile, opaque_masks);
criterion_main!(benches);

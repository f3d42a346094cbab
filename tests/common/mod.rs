//! What several test files share: inputs, the oracle with its error bound, tile families, golden files.
// Every binary of tests, the soak and a fuzz target use a part of this.
#![allow(dead_code)]

pub mod bound;
pub mod extremes;
pub mod guarded;
pub mod process;
pub mod specs;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use guarded::Place;
use hopweave::compiler::{self, Compiled, Options};
use hopweave::passes::Strategy;
use hopweave::pattern::Pattern;
use hopweave::runtime;
use hopweave::spec::{self, PatternSpec};
use hopweave::target::Isa;
use hopweave::{interpreter, pattern};
use ndarray::{Array3, Array4, ArrayView4};

/// Tile families that this machine runs; the others are named on standard error, once a test file.
pub fn families() -> Vec<Isa> {
    static SAID: std::sync::Once = std::sync::Once::new();
    let (here, missing): (Vec<Isa>, Vec<Isa>) = Isa::ALL.into_iter().partition(|isa| isa.available());
    SAID.call_once(|| missing.iter().for_each(|isa| eprintln!("skipped: tile family {isa}, which this CPU lacks")));
    assert!(here.contains(&Isa::Portable));
    here
}

/// Every file in `patterns/`: its name without the ending, and its text.
pub fn pattern_files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("patterns");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder of patterns")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 13, "{files:?}");
    let name = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    files.into_iter().map(|path| (name(&path), std::fs::read_to_string(&path).expect("a text"))).collect()
}

/// The shortest length from `n` on that the spec has a pattern for: a grid does not have every number of tokens.
pub fn fitting_length(spec: &PatternSpec, n: usize) -> usize {
    let fits = |n: &usize| pattern::resolve(spec, *n, *n).is_ok();
    (n..n + 100).find(fits).unwrap_or_else(|| panic!("{}: no length near {n}", spec.name))
}

/// A pattern file at a small size: 2 heads, unless it says what each of its heads does.
pub fn small_spec(text: &str, sets: &[&str]) -> PatternSpec {
    let by_head = matches!(spec_with(text, &[]).pattern, spec::Node::PerHead(_));
    let mut all = vec!["head_dim=8"];
    if !by_head {
        let spec = spec_with(text, &[]);
        all.extend(["heads=2", if spec.kv_heads == spec.heads { "kv_heads=2" } else { "kv_heads=1" }]);
    }
    all.extend(sets);
    spec_with(text, &all)
}

/// A spec from text and overrides, `PATH=VALUE`.
pub fn spec_with(text: &str, sets: &[&str]) -> PatternSpec {
    let pairs: Vec<(String, String)> = sets
        .iter()
        .map(|set| set.split_once('=').expect("PATH=VALUE"))
        .map(|(path, value)| (path.to_string(), value.to_string()))
        .collect();
    spec::parse_with(text, "<test>", &pairs).unwrap_or_else(|error| panic!("{text}\n{sets:?}\n{error}"))
}

/// A spec of 2 heads with the pattern as YAML in flow style.
pub fn spec_of(pattern: &str, head_dim: usize, value_dim: usize, diffusion: &str) -> PatternSpec {
    let text = format!(
        "name: test\nheads: 2\nhead_dim: {head_dim}\nvalue_dim: {value_dim}\npattern: {pattern}\ndiffusion: {diffusion}\n"
    );
    spec_with(&text, &[])
}

/// Options of a test: one thread unless said otherwise.
pub fn options(isa: Isa, strategy: Option<Strategy>) -> Options {
    Options { isa, threads: 1, strategy, ..Options::reproducible() }
}

/// The kernel of a spec, or a panic that names the spec.
pub fn compile(spec: &PatternSpec, n: usize, options: &Options) -> Compiled {
    compiler::compile(spec, n, n, options).unwrap_or_else(|error| panic!("{}\nn {n}\n{error}", spec.print()))
}

/// The strategies that are legal for a spec at a length.
pub fn strategies(spec: &PatternSpec, n: usize) -> Vec<Strategy> {
    strategies_at(spec, (n, n))
}

/// The same where queries and keys differ in number.
pub fn strategies_at(spec: &PatternSpec, (q_len, kv_len): (usize, usize)) -> Vec<Strategy> {
    let verdicts = compiler::strategies(spec, q_len, kv_len, &Options::reproducible());
    let verdicts = verdicts.unwrap_or_else(|error| panic!("{}\n{error}", spec.print()));
    verdicts.into_iter().filter(|(_, verdict)| verdict.is_ok()).map(|(strategy, _)| strategy).collect()
}

/// P stored, P computed again, and one hop at a time.
pub fn ways(isa: Isa, spec: &PatternSpec, pattern: &Pattern) -> Vec<(&'static str, Options)> {
    let stored = options(isa, None);
    if spec.diffusion.hops() <= 1 {
        return vec![("one hop", stored)];
    }
    let again = options(isa, Some(Strategy::RECOMPUTE));
    // Just too little for the Z of all hops.
    let kernel = compiler::compile_training(spec, pattern, &again, false).expect("a kernel");
    let single = Options { memory_limit: kernel.scratch_bytes(1) - 1, ..again.clone() };
    let least = compiler::compile_training(spec, pattern, &single, false);
    let mut ways = vec![("stored", stored), ("again", again)];
    // With few hops or long values two Z in turn may take no less.
    if least.is_ok_and(|kernel| kernel.plan().strategy == Strategy::FRUGAL) {
        ways.push(("hop by hop", single));
    }
    ways
}

/// Numbers from a seed (SplitMix64, Steele et al. 2014).
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// About normal with variance 1: twelve uniform numbers, summed.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.bits() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// Inputs of a call.
#[derive(Debug, Clone)]
pub struct Tensors {
    pub q: Array4<f32>,
    pub k: Array4<f32>,
    pub v: Array4<f32>,
}

impl Tensors {
    /// Random inputs of the spec's shape.
    pub fn random(spec: &PatternSpec, batch: usize, n: usize, seed: u64) -> Self {
        Self::at(spec, batch, (n, n), seed)
    }

    /// The same for another number of queries than keys.
    pub fn at(spec: &PatternSpec, batch: usize, (q_len, kv_len): (usize, usize), seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let mut tensor = |heads, n, width| Array4::from_shape_simple_fn((batch, heads, n, width), || numbers.normal());
        Self {
            q: tensor(spec.heads, q_len, spec.head_dim),
            k: tensor(spec.kv_heads, kv_len, spec.head_dim),
            v: tensor(spec.kv_heads, kv_len, spec.value_dim),
        }
    }

    /// The kernel's result on them, from and to memory that ends at guard pages.
    pub fn run(&self, compiled: &Compiled) -> runtime::Output {
        guarded::forward(compiled, [&self.q, &self.k, &self.v], Place::End)
    }
}

/// The interpreter's result, and how far a kernel may be from it.
///
/// The bound is 10 times the error of plain f32 attention on the same input, at least 1e-6 relative. Errors are
/// taken as the largest over the tensor and are relative to the tensor's largest number: an element in which
/// large terms cancel cannot be held to its own size.
#[derive(Debug)]
pub struct Oracle {
    pub out: Array4<f64>,
    pub lse: Array3<f64>,
    pub out_bound: f64,
    pub lse_bound: f64,
}

impl Oracle {
    /// Runs the interpreter, and f32 attention to know the bound.
    pub fn new(pattern: &Pattern, spec: &PatternSpec, tensors: &Tensors) -> Self {
        let Tensors { q, k, v } = tensors;
        let exact = interpreter::run(pattern, spec, q.view(), k.view(), v.view());
        let exact = exact.unwrap_or_else(|error| panic!("{error}"));
        if !spec.mods.is_empty() {
            // Plain attention has no score mods. What they make of a score is a few roundings further from exact.
            let (out_bound, lse_bound) = (1e-5 * largest(&exact.out), 2e-6 * largest(&exact.lse).max(5.0));
            return Self { out: exact.out, lse: exact.lse, out_bound, lse_bound };
        }
        let (out, lse) = plain(pattern, spec, tensors);
        let out_bound = (10.0 * distance(&out, &exact.out)).max(1e-6 * largest(&exact.out));
        let lse_bound = (10.0 * distance(&lse, &exact.lse)).max(1e-6 * largest(&exact.lse).max(1.0));
        Self { out: exact.out, lse: exact.lse, out_bound, lse_bound }
    }

    /// Asserts that a kernel's result is within the bound, finite exactly where the oracle is.
    pub fn check(&self, found: &runtime::Output, what: &dyn Fn() -> String) {
        check(&found.out, &self.out, self.out_bound, "out", what);
        check(&found.lse, &self.lse, self.lse_bound, "lse", what);
    }
}

/// The oracle of random inputs at length `n`.
pub fn oracle(spec: &PatternSpec, batch: usize, n: usize, seed: u64) -> (Tensors, Oracle) {
    let tensors = Tensors::random(spec, batch, n, seed);
    let pattern = pattern::resolve(spec, n, n).unwrap_or_else(|error| panic!("{}\n{error}", spec.print()));
    let oracle = Oracle::new(&pattern, spec, &tensors);
    (tensors, oracle)
}

fn check<D: ndarray::Dimension>(
    found: &ndarray::Array<f32, D>,
    exact: &ndarray::Array<f64, D>,
    bound: f64,
    name: &str,
    what: &dyn Fn() -> String,
) {
    assert_eq!(found.shape(), exact.shape(), "{name} of {}", what());
    for (index, (&x, &y)) in found.iter().zip(exact).enumerate() {
        let near = match y {
            f64::NEG_INFINITY if name == "lse" => x == f32::NEG_INFINITY,
            y if y.is_finite() => (f64::from(x) - y).abs() <= bound,
            _ => !x.is_finite(),
        };
        if !near {
            let mut place = Vec::new();
            let mut rest = index;
            for &axis in found.shape().iter().rev() {
                place.insert(0, rest % axis);
                rest /= axis;
            }
            panic!("{name} at {place:?} is {x:e}, expected {y:e} within {bound:e}: {}", what());
        }
    }
}

/// The largest difference where the exact number is finite.
fn distance<D: ndarray::Dimension>(found: &ndarray::Array<f32, D>, exact: &ndarray::Array<f64, D>) -> f64 {
    let pairs = found.iter().zip(exact).filter(|(x, y)| x.is_finite() && y.is_finite());
    pairs.fold(0.0, |most, (&x, &y)| most.max((f64::from(x) - y).abs()))
}

fn largest<D: ndarray::Dimension>(exact: &ndarray::Array<f64, D>) -> f64 {
    exact.iter().filter(|x| x.is_finite()).fold(0.0, |most, x| most.max(x.abs()))
}

/// Attention in f32 as one would write it: a row of scores, softmax, products, hop by hop.
fn plain(pattern: &Pattern, spec: &PatternSpec, tensors: &Tensors) -> (Array4<f32>, Array3<f32>) {
    let (batch, n) = (tensors.q.dim().0, pattern.q_len);
    let mut out = Array4::zeros((batch, spec.heads, n, spec.value_dim));
    let mut lse = Array3::zeros((batch, spec.heads, n));
    for h in 0..spec.heads {
        let factors = spec.diffusion.typical();
        // Of every hop; without hops, for the log-sum-exp.
        let allowed = |hop: usize| -> Vec<Vec<usize>> {
            let pattern = pattern.of_hop(hop);
            (0..n).map(|i| (0..pattern.kv_len).filter(|&j| pattern.allows(h, i, j)).collect()).collect()
        };
        let allowed: Vec<Vec<Vec<usize>>> = match pattern.others() {
            [] => vec![allowed(0)],
            _ => (0..factors.hops.len()).map(allowed).collect(),
        };
        for b in 0..batch {
            let kv = spec.kv_head(h);
            let [q, k, v] = [(&tensors.q, h), (&tensors.k, kv), (&tensors.v, kv)].map(|(x, h)| rows(x.view(), b, h));
            let mut weights: Vec<Vec<Vec<f32>>> = Vec::new();
            for (hop, allowed) in allowed.iter().enumerate() {
                let mut a: Vec<Vec<f32>> = Vec::new();
                for (i, keys) in allowed.iter().enumerate() {
                    let score = |&j: &usize| {
                        let dot: f32 = q[i].iter().zip(&k[j]).fold(0.0, |sum, (&x, &y)| sum + x * y);
                        spec.scale as f32 * dot
                    };
                    let mut p: Vec<f32> = keys.iter().map(score).collect();
                    let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    p.iter_mut().for_each(|p| *p = (*p - max).exp());
                    let sum: f32 = p.iter().fold(0.0, |sum, p| sum + p);
                    p.iter_mut().for_each(|p| *p /= sum);
                    if hop == 0 {
                        lse[(b, h, i)] = if keys.is_empty() { f32::NEG_INFINITY } else { max + sum.ln() };
                    }
                    a.push(p);
                }
                weights.push(a);
            }
            let initial = factors.initial as f32;
            let mut z: Vec<Vec<f32>> = v.iter().map(|row| row.iter().map(|x| initial * x).collect()).collect();
            for (number, hop) in factors.hops.iter().enumerate() {
                let (a, allowed) = (&weights[number.min(weights.len() - 1)], &allowed[number.min(allowed.len() - 1)]);
                let (step, restart) = (hop.step as f32, hop.restart as f32);
                let next = |i: usize| {
                    let mut sums = vec![0.0; spec.value_dim];
                    for (&p, &j) in a[i].iter().zip(&allowed[i]) {
                        sums.iter_mut().zip(&z[j]).for_each(|(sum, x)| *sum += p * x);
                    }
                    sums.iter_mut().for_each(|sum| *sum *= step);
                    if restart != 0.0 {
                        sums.iter_mut().zip(&v[i]).for_each(|(sum, x)| *sum += restart * x);
                    }
                    sums
                };
                z = (0..n).map(next).collect();
            }
            for (i, row) in z.iter().enumerate() {
                row.iter().enumerate().for_each(|(x, &value)| out[(b, h, i, x)] = value);
            }
        }
    }
    (out, lse)
}

fn rows(tensor: ArrayView4<'_, f32>, b: usize, h: usize) -> Vec<Vec<f32>> {
    let head = tensor.slice(ndarray::s![b, h, .., ..]).to_owned();
    head.rows().into_iter().map(|row| row.to_vec()).collect()
}

/// Compares with a file under `tests/`; with `HOPWEAVE_BLESS=1` shows what changed and writes the file anew.
pub fn golden(file: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if found == expected {
        return;
    }
    let changes = diff(&expected, found);
    if std::env::var_os("HOPWEAVE_BLESS").is_some() {
        eprintln!("{file}:\n{changes}");
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for the golden file");
        std::fs::write(&path, found).expect("writing the golden file");
    } else {
        panic!("{file} changed (HOPWEAVE_BLESS=1 accepts it):\n{changes}");
    }
}

/// The lines between the common start and the common end of two texts, at most 40 of each.
fn diff(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let start = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - start;
    let end = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let mut out = format!("line {}:\n", start + 1);
    for (sign, lines) in [('-', &old[start..old.len() - end]), ('+', &new[start..new.len() - end])] {
        for line in lines.iter().take(40) {
            let _ = writeln!(out, "{sign} {line}");
        }
        if lines.len() > 40 {
            let _ = writeln!(out, "{sign} … {} more lines", lines.len() - 40);
        }
    }
    out
}

/// Inputs that score mods of tests may read.
pub const MOD_INPUTS: &str =
    "{rel: {shape: [heads, \"2*n - 1\"]}, key: {shape: [n]}, table: {shape: [m, n]}, small: {shape: [8]}}";

/// The names in a folder, sorted.
pub fn names_in(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

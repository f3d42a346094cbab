//! `run`: a spec on tensors in `.npy` files.
//!
//! Files, shapes and outputs are checked before any work; outputs are written whole or not at all.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use ndarray::{Array3, Array4, s};

use super::inputs::{self, InputFiles};
use super::options::{Global, SpecArg, shown};
use super::run_time::RunTimeFiles;
use super::say::{remark, warn_of};
use super::table::milliseconds;
use super::tensors::{Extents, Files, Tensors};
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::operator::{Arguments, Facts, Operator};
use crate::pattern::{Awaited, Awaits, Picked};
use crate::spec::PatternSpec;
use crate::{interpreter, mask, npy, pattern};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    spec: SpecArg,
    /// Queries [batch, heads, q_len, head_dim]
    #[arg(long, value_name = "Q.npy")]
    q: PathBuf,
    /// Keys [batch, kv_heads, kv_len, head_dim]
    #[arg(long, value_name = "K.npy")]
    k: PathBuf,
    /// Values [batch, kv_heads, kv_len, value_dim]
    #[arg(long, value_name = "V.npy")]
    v: PathBuf,
    /// Where the output [batch, heads, q_len, value_dim] goes
    #[arg(short = 'o', long = "output", value_name = "OUT.npy")]
    output: PathBuf,
    /// Where the log-sum-exp of the scores [batch, heads, q_len] goes, natural log
    #[arg(long, value_name = "LSE.npy")]
    lse: Option<PathBuf>,
    /// A tensor that the spec names: one of the `inputs` of its score mods, what its hops take, the ids [batch, kv_len] of
    /// `segments`, or picked blocks or keys (bool, u8 or i32)
    #[arg(long = "input", value_name = "NAME=FILE.npy", value_parser = inputs::assignment)]
    inputs: Vec<inputs::Assignment>,
    /// Where the blocks go that the pattern's `top_blocks` picks, bool [batch, heads, query blocks, key blocks]
    #[arg(long, value_name = "PICKED.npy")]
    save_picked: Option<PathBuf>,
    /// How many keys each sequence of the batch has [batch], i32 or i64; keys from there on are padding, never read
    #[arg(long, value_name = "L.npy")]
    key_lengths: Option<PathBuf>,
    /// Who computes: the compiled kernel, or the interpreter in f64, edge by edge
    #[arg(long, value_enum, default_value_t = Engine::Jit)]
    engine: Engine,
}

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    Jit,
    Interpreter,
}

/// What a run is given besides q, k and v.
#[derive(Clone, Copy)]
struct Given<'a> {
    inputs: &'a InputFiles,
    run_time: &'a RunTimeFiles,
    extents: Extents,
}

/// An output with how it was made.
struct Done<T> {
    out: Array4<T>,
    lse: Array3<f32>,
    picked: Option<Array4<u8>>,
    how: String,
    prepared: Duration,
    ran: Duration,
}

/// Runs the spec and writes the outputs.
///
/// # Errors
/// Everything that can be wrong with the spec, the files and their shapes.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let outputs = [("output", Some(&args.output)), ("log-sum-exp", args.lse.as_ref())];
    let outputs = outputs.into_iter().chain([("picked blocks", args.save_picked.as_ref())]);
    let outputs: Vec<(&str, &PathBuf)> = outputs.filter_map(|(what, path)| Some((what, path?))).collect();
    for (at, (what, path)) in outputs.iter().enumerate() {
        npy::check_output(path)?;
        if let Some((other, _)) = outputs[..at].iter().find(|(_, other)| other == path) {
            return Err(Error::Input {
                path: (*path).clone(),
                message: format!("is asked to hold both the {other} and the {what}; give two names"),
            });
        }
    }
    let spec = options.load(&args.spec.spec)?;
    let files = Files { q: args.q.clone(), k: args.k.clone(), v: args.v.clone() };
    let extents = files.check(&spec)?;
    extents.check_memory(&spec, options.memory_limit())?;
    let run_time = RunTimeFiles::read(&spec, &args.inputs, args.key_lengths.as_deref(), extents)?;
    let inputs = InputFiles::check(&spec, &run_time.others, extents.q_len, extents.kv_len)?;
    let given = Given { inputs: &inputs, run_time: &run_time, extents };
    match spec.dtype {
        Dtype::F32 => compute::<f32>(args, options, &spec, &files, given),
        Dtype::Bf16 => compute::<bf16>(args, options, &spec, &files, given),
        Dtype::F16 => compute::<f16>(args, options, &spec, &files, given),
    }
}

/// Computes on files that were checked to hold tensors of `T`, and writes the outputs.
fn compute<T: Element>(
    args: &Args,
    options: &Global,
    spec: &PatternSpec,
    files: &Files,
    given: Given<'_>,
) -> Result<()> {
    let done = match args.engine {
        Engine::Jit => jit::<T>(spec, files, given, (options, args.save_picked.is_some()))?,
        Engine::Interpreter => interpret::<T>(spec, files, given, (options, args.save_picked.is_some()))?,
    };
    let mut written: Vec<(_, &dyn npy::Writable)> = vec![(args.output.as_path(), &done.out)];
    if let Some(path) = &args.lse {
        written.push((path.as_path(), &done.lse));
    }
    let picked = done.picked.as_ref().map(|picked| npy::Bools(picked.view()));
    if let (Some(path), Some(picked)) = (&args.save_picked, &picked) {
        written.push((path.as_path(), picked));
    }
    npy::write_all(&written)?;
    let Extents { batch, q_len, .. } = given.extents;
    remark(&format!(
        "{}: [{batch}, {}, {q_len}, {}] in {}, {}, compiled in {}",
        shown(&args.spec.spec),
        spec.heads,
        spec.value_dim,
        milliseconds(done.ran),
        done.how,
        milliseconds(done.prepared),
    ));
    Ok(())
}

fn jit<T: Element>(
    spec: &PatternSpec,
    files: &Files,
    given: Given<'_>,
    (options, save_picked): (&Global, bool),
) -> Result<Done<T>> {
    let Given { inputs, run_time, extents } = given;
    let start = Instant::now();
    let operator = Operator::new(spec.clone(), extents.q_len, extents.kv_len, options.compiler()?)?;
    // What every sequence needs is compiled before the tensors are read, unless they decide on it.
    let mut facts = run_time.arguments().facts(extents.batch, operator.pattern(), spec.kv_heads)?;
    if facts.is_empty() {
        facts.push(Facts::default());
    }
    let decides = operator.pattern().awaits().iter().any(|awaited| matches!(awaited.what, Awaits::Top(_)));
    if decides {
        facts.clear();
    }
    let compiled = facts.iter().map(|facts| operator.kernel(facts)).collect::<Result<Vec<_>>>()?;
    let prepared = start.elapsed();
    if let Some(compiled) = compiled.first() {
        warn_of(compiled);
    }
    let scratch = compiled.iter().map(|compiled| compiled.kernel.scratch_bytes(extents.batch)).max().unwrap_or(0);
    let given = scratch.saturating_add(extents.bytes(spec)).saturating_add(inputs.bytes());
    if given > options.memory_limit() {
        let what = "the kernel with its tensors".into();
        return Err(Error::Memory { what, given, limit: options.memory_limit() });
    }
    let Tensors { q, k, v } = files.read::<T>()?;
    let inputs = inputs.read()?;
    let start = Instant::now();
    let arguments = Arguments { inputs: inputs.views(), ..run_time.arguments() };
    let output = operator.forward(q.view(), k.view(), v.view(), &arguments)?;
    let ran = start.elapsed();
    let how = match compiled.first().map(|compiled| compiled.kernel.plan()) {
        Some(plan) => format!("{} on {}, {}", plan.strategy, plan.isa, threads(options.threads())),
        None => format!("with neighbors picked and compiled, {}", threads(options.threads())),
    };
    let picked = save_picked.then(|| operator.select(q.view(), k.view())).transpose()?;
    Ok(Done { out: output.out, lse: output.lse, picked, how, prepared, ran })
}

fn interpret<T: Element>(
    spec: &PatternSpec,
    files: &Files,
    given: Given<'_>,
    (options, save_picked): (&Global, bool),
) -> Result<Done<T>> {
    let Given { inputs, run_time, extents } = given;
    let start = Instant::now();
    let pattern = pattern::resolve(spec, extents.q_len, extents.kv_len)?;
    let mut facts = run_time.arguments().facts(extents.batch, &pattern, spec.kv_heads)?;
    let mut picked = None;
    for Awaited { name, what } in pattern.awaits() {
        if let Awaits::Top(top) = what {
            let Tensors { q, k, .. } = files.read::<T>()?.widened();
            let layout = interpreter::picked_blocks(q.view(), k.view(), &top, spec.scale);
            for (facts, layout) in facts.iter_mut().zip(layout.outer_iter()) {
                facts.pick(&name, Picked::from_layout(&layout));
            }
            picked = Some(layout);
        }
    }
    if save_picked && picked.is_none() {
        return Err(Error::unsupported("saving picked blocks of this spec", "its pattern has a `top_blocks` node"));
    }
    let patterns = facts.iter().map(|facts| facts.bind(&pattern)).collect::<Result<Vec<_>>>()?;
    // The interpreter holds 16 bytes an edge for each head in work, the tensors in f32, and the output twice over in
    // f64.
    let mut nnz = 0;
    for pattern in &patterns {
        nnz = nnz.max(mask::build(pattern, options.memory_limit())?.counts().nnz());
    }
    let running = options.threads().min(extents.batch * spec.heads).max(1) as u64;
    let edges = (nnz / spec.heads as u64).saturating_mul(16 * running);
    let tensors = extents.bytes(spec).saturating_mul(12 / spec.dtype.bytes() as u64);
    let given = edges.saturating_add(tensors).saturating_add(inputs.bytes());
    if given > options.memory_limit() {
        return Err(Error::Memory { what: "the interpreter".into(), given, limit: options.memory_limit() });
    }
    let prepared = start.elapsed();
    let Tensors { q, k, v } = files.read::<T>()?.widened();
    let inputs = inputs.read()?;
    let start = Instant::now();
    let inputs = inputs.views();
    let mut out = Array4::default((extents.batch, spec.heads, extents.q_len, spec.value_dim));
    let mut lse = Array3::zeros((extents.batch, spec.heads, extents.q_len));
    let pool = options.pool()?;
    for (b, (pattern, facts)) in patterns.iter().zip(&facts).enumerate() {
        let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.slice(s![b..=b, .., .., ..]));
        let padded = facts.values(spec, &v);
        let v = padded.as_ref().map_or(v, |padded| padded.view());
        let output = pool.install(|| interpreter::run_with(pattern, spec, q, k, v, &inputs))?;
        out.slice_mut(s![b..=b, .., .., ..]).assign(&output.out.mapv(T::nearest_f64));
        lse.slice_mut(s![b..=b, .., ..]).assign(&output.lse.mapv(|x| x as f32));
    }
    Ok(Done {
        out,
        lse,
        picked,
        how: format!("interpreted in f64, {}", threads(options.threads())),
        prepared,
        ran: start.elapsed(),
    })
}

fn threads(count: usize) -> String {
    format!("{count} {}", if count == 1 { "thread" } else { "threads" })
}

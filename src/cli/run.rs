//! `run`: a spec on tensors in `.npy` files.
//!
//! Files, shapes and outputs are checked before any work; outputs are written whole or not at all.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use ndarray::{Array3, Array4};

use super::inputs::{self, InputFiles};
use super::options::{Global, SpecArg, shown};
use super::remark;
use super::table::milliseconds;
use super::tensors::{Extents, Files, Tensors};
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::spec::PatternSpec;
use crate::{compiler, interpreter, mask, npy, pattern};

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
    /// A tensor that the spec's score mods read; once for each of its `inputs`
    #[arg(long = "input", value_name = "NAME=FILE.npy", value_parser = inputs::assignment)]
    inputs: Vec<inputs::Assignment>,
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

/// An output with how it was made.
struct Done<T> {
    out: Array4<T>,
    lse: Array3<f32>,
    how: String,
    prepared: Duration,
    ran: Duration,
}

/// Runs the spec and writes the outputs.
///
/// # Errors
/// Everything that can be wrong with the spec, the files and their shapes.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let outputs: Vec<&PathBuf> = std::iter::once(&args.output).chain(&args.lse).collect();
    for path in &outputs {
        npy::check_output(path)?;
    }
    if outputs.len() == 2 && outputs[0] == outputs[1] {
        return Err(Error::Input {
            path: args.output.clone(),
            message: "is asked to hold both the output and the log-sum-exp; give two names".into(),
        });
    }
    let spec = options.load(&args.spec.spec)?;
    let files = Files { q: args.q.clone(), k: args.k.clone(), v: args.v.clone() };
    let extents = files.check(&spec)?;
    extents.check_memory(&spec, options.memory_limit())?;
    let inputs = InputFiles::check(&spec, &args.inputs, extents.q_len, extents.kv_len)?;
    match spec.dtype {
        Dtype::F32 => compute::<f32>(args, options, &spec, &files, &inputs, extents),
        Dtype::Bf16 => compute::<bf16>(args, options, &spec, &files, &inputs, extents),
        Dtype::F16 => compute::<f16>(args, options, &spec, &files, &inputs, extents),
    }
}

/// Computes on files that were checked to hold tensors of `T`, and writes the outputs.
fn compute<T: Element>(
    args: &Args,
    options: &Global,
    spec: &PatternSpec,
    files: &Files,
    inputs: &InputFiles,
    extents: Extents,
) -> Result<()> {
    let done = match args.engine {
        Engine::Jit => jit::<T>(spec, files, inputs, extents, options)?,
        Engine::Interpreter => interpret::<T>(spec, files, inputs, extents, options)?,
    };
    let mut written: Vec<(_, &dyn npy::Writable)> = vec![(args.output.as_path(), &done.out)];
    if let Some(path) = &args.lse {
        written.push((path.as_path(), &done.lse));
    }
    npy::write_all(&written)?;
    let Extents { batch, q_len, .. } = extents;
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
    inputs: &InputFiles,
    extents: Extents,
    options: &Global,
) -> Result<Done<T>> {
    let start = Instant::now();
    let compiled = compiler::compile(spec, extents.q_len, extents.kv_len, &options.compiler()?)?;
    let prepared = start.elapsed();
    let scratch = compiled.kernel.scratch_bytes(extents.batch);
    let given = scratch.saturating_add(extents.bytes(spec)).saturating_add(inputs.bytes());
    if given > options.memory_limit() {
        let what = "the kernel with its tensors".into();
        return Err(Error::Memory { what, given, limit: options.memory_limit() });
    }
    let Tensors { q, k, v } = files.read::<T>()?;
    let inputs = inputs.read()?;
    let start = Instant::now();
    let output = compiled.kernel.forward_with(q.view(), k.view(), v.view(), &inputs.views())?;
    let ran = start.elapsed();
    let plan = compiled.kernel.plan();
    let how = format!("{} on {}, {}", plan.strategy, plan.isa, threads(options.threads()));
    Ok(Done { out: output.out, lse: output.lse, how, prepared, ran })
}

fn interpret<T: Element>(
    spec: &PatternSpec,
    files: &Files,
    inputs: &InputFiles,
    extents: Extents,
    options: &Global,
) -> Result<Done<T>> {
    let start = Instant::now();
    let pattern = pattern::resolve(spec, extents.q_len, extents.kv_len)?;
    // The interpreter holds 16 bytes an edge for each head in work, the tensors in f32, and the output twice over in
    // f64.
    let nnz = mask::build(&pattern, options.memory_limit())?.counts().nnz();
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
    let run = || interpreter::run_with(&pattern, spec, q.view(), k.view(), v.view(), &inputs);
    let output = options.pool()?.install(run)?;
    Ok(Done {
        out: output.out.mapv(T::nearest_f64),
        lse: output.lse.mapv(|x| x as f32),
        how: format!("interpreted in f64, {}", threads(options.threads())),
        prepared,
        ran: start.elapsed(),
    })
}

fn threads(count: usize) -> String {
    format!("{count} {}", if count == 1 { "thread" } else { "threads" })
}

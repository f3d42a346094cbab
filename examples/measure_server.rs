//! Times kernels on demand, so that two builds of the library can take turns: `benches/two_commits.py` starts one for
//! each of two commits. It uses only what stays the same between commits.
//!
//! In: a request a line on standard input, as JSON:
//!
//! ```text
//! {"spec": "patterns/diffuser.yaml", "n": 1024, "set": ["diffusion.hops=5"], "do": "forward", "ms": 100}
//! ```
//!
//! `do` is `forward`, `backward`, `compile` (from the spec's text to a callable kernel) or `compile_training` (the kernel for
//! training of a compiled spec). A request runs for `ms` milliseconds, or for exactly `calls` calls. `forward` and `backward`
//! keep kernel and tensors for the next request of the same spec, `n` and `set`. With `write`, their result goes to a file, in
//! f32; with `against`, it is compared with such a file.
//!
//! Out: a line of JSON for each: milliseconds of a call, scratch in bytes and what was compared, or `refused` with the reason.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};
use std::{fs, hint, thread};

use clap::Parser;
use hopweave::compiler::{self, Options, TuningSource};
use hopweave::half::{bf16, f16};
use hopweave::runtime::Kernel;
use hopweave::spec::{self, PatternSpec};
use hopweave::target::Isa;
use hopweave::{Dtype, Element, Error, Result};
use ndarray::{ArrayView4, ArrayViewMut4};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// A call that takes less than this share of its turn is made once uncounted: caches still hold what others left there.
const WARM: u32 = 4;

#[derive(Debug, Parser)]
#[command(about = "Times kernels on demand: requests on standard input, answers on standard output, both JSON lines")]
struct Arguments {
    /// Threads of a call; all cores where it is not given
    #[arg(long)]
    threads: Option<usize>,
    /// Tile family
    #[arg(long, default_value = "auto")]
    isa: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// Path of a pattern file.
    spec: String,
    n: usize,
    /// Values of the spec to replace, as `PATH=VALUE`.
    #[serde(default)]
    set: Vec<String>,
    #[serde(rename = "do")]
    action: Action,
    #[serde(default)]
    ms: f64,
    calls: Option<usize>,
    write: Option<String>,
    against: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Forward,
    Backward,
    Compile,
    CompileTraining,
}

/// Milliseconds of the calls of a turn.
#[derive(Debug, Serialize)]
struct Answer {
    calls: usize,
    median_ms: f64,
    min_ms: f64,
    /// Processor time of all threads over the calls, where the system tells: other processes take none of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ms: Option<f64>,
    scratch_bytes: u64,
    /// Largest difference to `against`, over its largest number.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Refusal {
    refused: String,
}

/// A kernel with its tensors, whatever they are stored in.
trait Problem {
    fn forward(&mut self) -> Result<()>;
    fn backward(&mut self) -> Result<()>;
    /// The result of a forward or backward call: its tensors in f32.
    fn result(&mut self, action: Action) -> Result<Vec<Vec<f32>>>;
    fn scratch_bytes(&self, action: Action) -> Result<u64>;
}

struct Tensor<T> {
    cells: Vec<T>,
    start: usize,
    shape: [usize; 4],
}

struct Tensors<T> {
    kernel: Kernel,
    q: Tensor<T>,
    k: Tensor<T>,
    v: Tensor<T>,
    grad_out: Tensor<T>,
    out: Tensor<T>,
}

impl<T: Element> Tensor<T> {
    /// Numbers of mean 0 and variance 1, the same on every machine. They start at a cache line: where an allocator happens
    /// to place them costs some percent.
    fn random(shape: [usize; 4], stream: u64) -> Self {
        const LINE: usize = 64;
        let mut random = ChaCha8Rng::seed_from_u64(1);
        random.set_stream(stream);
        let mut cells = vec![T::default(); shape.iter().product::<usize>() + LINE / size_of::<T>()];
        let start = cells.as_ptr().align_offset(LINE);
        for cell in &mut cells {
            // Four uniform numbers of variance 1/12 add up to something close to normal.
            let bits = random.next_u64();
            let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
            *cell = T::nearest((sum as f32 / 65_535.0 - 2.0) * 3.0_f32.sqrt());
        }
        Self { cells, start, shape }
    }

    fn view(&self) -> Result<ArrayView4<'_, T>> {
        let cells = &self.cells[self.start..][..self.shape.iter().product()];
        ArrayView4::from_shape(self.shape, cells).map_err(shape_error)
    }

    fn view_mut(&mut self) -> Result<ArrayViewMut4<'_, T>> {
        let cells = &mut self.cells[self.start..][..self.shape.iter().product()];
        ArrayViewMut4::from_shape(self.shape, cells).map_err(shape_error)
    }
}

impl<T: Element> Tensors<T> {
    fn new(kernel: Kernel, spec: &PatternSpec, n: usize) -> Self {
        let tensor = |stream, heads, width| Tensor::random([1, heads, n, width], stream);
        Self {
            kernel,
            q: tensor(0, spec.heads, spec.head_dim),
            k: tensor(1, spec.kv_heads, spec.head_dim),
            v: tensor(2, spec.kv_heads, spec.value_dim),
            grad_out: tensor(3, spec.heads, spec.value_dim),
            out: tensor(4, spec.heads, spec.value_dim),
        }
    }
}

impl<T: Element> Problem for Tensors<T> {
    fn forward(&mut self) -> Result<()> {
        let (q, k, v) = (self.q.view()?, self.k.view()?, self.v.view()?);
        self.kernel.forward_into(q, k, v, &mut self.out.view_mut()?, None)
    }

    fn backward(&mut self) -> Result<()> {
        let (q, k, v) = (self.q.view()?, self.k.view()?, self.v.view()?);
        hint::black_box(self.kernel.backward(q, k, v, self.grad_out.view()?)?);
        Ok(())
    }

    fn result(&mut self, action: Action) -> Result<Vec<Vec<f32>>> {
        if action == Action::Forward {
            self.forward()?;
            return Ok(vec![self.out.view()?.iter().map(|x| x.widen()).collect()]);
        }
        let (q, k, v) = (self.q.view()?, self.k.view()?, self.v.view()?);
        let gradients = self.kernel.backward(q, k, v, self.grad_out.view()?)?;
        let all = [&gradients.q, &gradients.k, &gradients.v];
        Ok(all.map(|tensor| tensor.iter().map(|x| x.widen()).collect()).into())
    }

    fn scratch_bytes(&self, action: Action) -> Result<u64> {
        Ok(match action {
            Action::Forward => self.kernel.scratch_bytes(1),
            _ => self.kernel.training()?.scratch_bytes(1),
        })
    }
}

struct Server {
    options: Options,
    problems: HashMap<(String, usize, Vec<String>), Box<dyn Problem>>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let base = Options { isa: Isa::choose(&arguments.isa)?, tuning: TuningSource::Nothing, ..Options::default() };
    let options = Options { threads: arguments.threads.unwrap_or(base.threads), ..base };
    let mut server = Server { options, problems: HashMap::new() };
    for line in io::stdin().lock().lines() {
        let answer = line.map_err(|error| other(error.to_string())).and_then(|line| server.answer(&line));
        let text = match answer {
            Ok(answer) => serde_json::to_string(&answer),
            Err(error) => serde_json::to_string(&Refusal { refused: error.to_string() }),
        };
        println!("{}", text.map_err(|error| other(error.to_string()))?);
        io::stdout().flush().map_err(|error| other(error.to_string()))?;
    }
    Ok(())
}

impl Server {
    fn answer(&mut self, line: &str) -> Result<Answer> {
        let request: Request = serde_json::from_str(line).map_err(|error| other(error.to_string()))?;
        match request.action {
            Action::Forward | Action::Backward => self.call(&request),
            Action::Compile | Action::CompileTraining => self.compile(&request),
        }
    }

    fn call(&mut self, request: &Request) -> Result<Answer> {
        let problem = self.problem(request)?;
        let mut difference = None;
        if request.write.is_some() || request.against.is_some() {
            let result = problem.result(request.action)?;
            if let Some(path) = &request.write {
                let bytes: Vec<u8> = result.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
                fs::write(path, bytes).map_err(|error| other(format!("{path}: {error}")))?;
            }
            if let Some(path) = &request.against {
                let bytes = fs::read(path).map_err(|error| other(format!("{path}: {error}")))?;
                difference = Some(largest_difference(&result, &bytes)?);
            }
        }
        let (mut times, mut started) = (Vec::new(), Instant::now());
        let budget = Duration::from_secs_f64(request.ms / 1e3);
        let mut warming = request.calls.is_none();
        let mut cpu = cpu_time();
        while request.calls.map_or(times.is_empty() || started.elapsed() < budget, |calls| times.len() < calls) {
            let start = Instant::now();
            match request.action {
                Action::Forward => problem.forward()?,
                _ => problem.backward()?,
            }
            let time = start.elapsed();
            if warming && time < budget / WARM {
                (started, cpu) = (Instant::now(), cpu_time());
            } else {
                times.push(time);
            }
            warming = false;
        }
        let cpu = spent_since(cpu);
        Ok(Answer { difference, ..summary(times, cpu, problem.scratch_bytes(request.action)?) })
    }

    /// The kernel of a request, with tensors.
    fn problem(&mut self, request: &Request) -> Result<&mut Box<dyn Problem>> {
        let key = (request.spec.clone(), request.n, request.set.clone());
        if !self.problems.contains_key(&key) {
            let spec = load(request, &text(request)?)?;
            let kernel = compiler::compile(&spec, request.n, request.n, &self.options)?.kernel;
            let problem: Box<dyn Problem> = match spec.dtype {
                Dtype::F32 => Box::new(Tensors::<f32>::new(kernel, &spec, request.n)),
                Dtype::Bf16 => Box::new(Tensors::<bf16>::new(kernel, &spec, request.n)),
                Dtype::F16 => Box::new(Tensors::<f16>::new(kernel, &spec, request.n)),
            };
            self.problems.insert(key.clone(), problem);
        }
        self.problems.get_mut(&key).ok_or_else(|| other("a kernel is lost".into()))
    }

    /// Fresh compilations, the first of which does not count.
    fn compile(&self, request: &Request) -> Result<Answer> {
        let text = text(request)?;
        let fresh = || {
            let (cpu, start) = (cpu_time(), Instant::now());
            let compiled = compiler::compile(&load(request, &text)?, request.n, request.n, &self.options)?;
            let (time, scratch) = (start.elapsed(), compiled.kernel.scratch_bytes(1));
            if request.action == Action::Compile {
                return Ok((time, spent_since(cpu), scratch));
            }
            let (cpu, start) = (cpu_time(), Instant::now());
            let training = compiled.kernel.training()?;
            Ok::<_, Error>((start.elapsed(), spent_since(cpu), training.scratch_bytes(1)))
        };
        let calls = request.calls.unwrap_or(usize::MAX);
        let (.., scratch) = fresh()?;
        let (mut times, mut spent, mut total) = (Vec::new(), Duration::ZERO, Some(Duration::ZERO));
        while times.is_empty() || (spent < Duration::from_secs_f64(request.ms / 1e3) && times.len() < calls) {
            let (time, cpu, _) = fresh()?;
            spent += time;
            total = total.zip(cpu).map(|(total, cpu)| total + cpu);
            times.push(time);
        }
        Ok(summary(times, total, scratch))
    }
}

fn text(request: &Request) -> Result<String> {
    fs::read_to_string(&request.spec).map_err(|error| other(format!("{}: {error}", request.spec)))
}

/// The spec of a request whose text was read.
fn load(request: &Request, text: &str) -> Result<PatternSpec> {
    let pair = |set: &String| match set.split_once('=') {
        Some((path, value)) => Ok((path.to_owned(), value.to_owned())),
        None => Err(other(format!("`{set}`; expected PATH=VALUE"))),
    };
    let sets = request.set.iter().map(pair).collect::<Result<Vec<_>>>()?;
    spec::parse_with(text, &request.spec, &sets)
}

/// Processor time of all threads of this process so far.
fn cpu_time() -> Option<Duration> {
    // Whoever runs is charged when it next waits.
    thread::sleep(Duration::from_micros(20));
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task").ok()? {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanoseconds))
}

fn spent_since(start: Option<Duration>) -> Option<Duration> {
    // A thread that has ended takes its time with it.
    cpu_time()?.checked_sub(start?)
}

fn summary(mut times: Vec<Duration>, cpu: Option<Duration>, scratch_bytes: u64) -> Answer {
    times.sort();
    let ms = |i: usize| times.get(i).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
    let calls = times.len();
    let median_ms = (ms(calls.saturating_sub(1) / 2) + ms(calls / 2)) / 2.0;
    let median_ms = if calls == 0 { f64::NAN } else { median_ms };
    let cpu_ms = cpu.filter(|_| calls > 0).map(|cpu| cpu.as_secs_f64() * 1e3 / calls as f64);
    Answer { calls, median_ms, min_ms: ms(0), cpu_ms, scratch_bytes, difference: None }
}

/// The largest difference of tensors to those of a file, each over the largest number of its tensor.
fn largest_difference(result: &[Vec<f32>], bytes: &[u8]) -> Result<f64> {
    let expected: Vec<f32> = bytes.chunks_exact(4).map(f32::from_le).collect();
    if expected.len() != result.iter().map(Vec::len).sum::<usize>() {
        return Err(other("the file holds a result of another shape".into()));
    }
    let (mut rest, mut worst) = (&expected[..], 0.0_f64);
    for tensor in result {
        let (head, tail) = rest.split_at(tensor.len());
        rest = tail;
        let largest = head.iter().map(|x| f64::from(x.abs())).fold(f64::MIN_POSITIVE, f64::max);
        for (&found, &want) in tensor.iter().zip(head) {
            if found.to_bits() == want.to_bits() {
                continue;
            }
            let difference = (f64::from(found) - f64::from(want)).abs() / largest;
            worst = worst.max(if difference.is_nan() { f64::MAX } else { difference });
        }
    }
    Ok(worst)
}

fn shape_error(error: ndarray::ShapeError) -> Error {
    other(error.to_string())
}

fn other(message: String) -> Error {
    Error::Input { path: "request".into(), message }
}

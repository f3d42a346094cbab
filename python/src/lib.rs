//! The native half of the Python package: specs and operators of Hopweave, on tensors that Python describes by address,
//! shape and strides.
//!
//! In: [`tensor::Tensor`]s, which the Python half makes of numpy arrays and torch tensors that it keeps alive during the
//! call, those that results are written to among them. The lock of the interpreter is released while anything is compiled or
//! computed.

#[cfg(unix)]
mod openmp;
mod processes;
mod tensor;
mod threads;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use hopweave::compiler::Options;
use hopweave::dropout::Dropout;
use hopweave::dtype::Element;
use hopweave::limits::{Limit, Limits, Setting};
use hopweave::operator::{Arguments, Operator, PickedInput};
use hopweave::pattern;
use hopweave::runtime::Saved;
use hopweave::spec::{Inputs, PatternSpec, Source};
use hopweave::target::Isa;
use hopweave::{Dtype, Error};
use ndarray::{Array3, Ix2, Ix3, Ix4};
use numpy::{IntoPyArray, PyArray3};
use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use tensor::{Tensor, check_apart};
use threads::{Threads, detached};

pyo3::create_exception!(
    _hopweave,
    SpecError,
    PyValueError,
    "A spec is wrong; the message shows where, and what was expected."
);
pyo3::create_exception!(
    _hopweave,
    ShapeError,
    PyValueError,
    "A tensor does not fit: the message names it, what it is, and what it must be."
);
pyo3::create_exception!(
    _hopweave,
    UnsupportedError,
    PyRuntimeError,
    "Something meaningful that this version or machine cannot serve."
);

fn raise(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Spec(_) => SpecError::new_err(message),
        Error::Shape { .. } | Error::Value { .. } | Error::Dtype { .. } => ShapeError::new_err(message),
        Error::Limit { .. } | Error::Unsupported { .. } => UnsupportedError::new_err(message),
        Error::Memory { .. } | Error::OutOfMemory { .. } => PyMemoryError::new_err(message),
        Error::Input { .. } => PyOSError::new_err(message),
        Error::Text { .. } | Error::Internal { .. } => PyRuntimeError::new_err(message),
    }
}

/// A parsed spec.
#[pyclass(frozen, name = "Spec", module = "hopweave._hopweave")]
struct PySpec {
    inner: PatternSpec,
}

#[pymethods]
impl PySpec {
    /// Parses a text; `file` is its name in messages, `sets` are overrides `(path, value)`, `limits` are `name=value`.
    #[staticmethod]
    fn parse(text: String, file: String, sets: Vec<(String, String)>, limits: Vec<String>) -> PyResult<Self> {
        // A text that is no file names no files.
        let source = Source { limits: read_limits(&limits)?, ..Source::new(text, file) };
        let inner = pattern::read(source, &sets).map_err(raise)?;
        Ok(Self { inner })
    }

    /// Reads a file; the arrays that it names stay within its folder unless `allow_files`.
    #[staticmethod]
    fn load(path: PathBuf, sets: Vec<(String, String)>, limits: Vec<String>, allow_files: bool) -> PyResult<Self> {
        let limits = read_limits(&limits)?;
        let fails = |error| PyOSError::new_err(format!("{}: {error}", path.display()));
        let bytes = std::fs::metadata(&path).map_err(fails)?.len();
        limits.check(Limit::Text, &path.to_string_lossy(), bytes).map_err(raise)?;
        let text = std::fs::read_to_string(&path).map_err(fails)?;
        let source = Source { allow_files, limits, ..Source::new(text, path.to_string_lossy()) };
        let inner = pattern::read(source, &sets).map_err(raise)?;
        Ok(Self { inner })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.inner.name
    }

    #[getter]
    fn description(&self) -> Option<&str> {
        self.inner.description.as_deref()
    }

    #[getter]
    fn heads(&self) -> usize {
        self.inner.heads
    }

    #[getter]
    fn kv_heads(&self) -> usize {
        self.inner.kv_heads
    }

    #[getter]
    fn head_dim(&self) -> usize {
        self.inner.head_dim
    }

    #[getter]
    fn value_dim(&self) -> usize {
        self.inner.value_dim
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.inner.dtype.name()
    }

    #[getter]
    fn hops(&self) -> usize {
        self.inner.diffusion.hops()
    }

    /// The spec as YAML, which parses to the same spec.
    fn to_yaml(&self) -> String {
        self.inner.print()
    }

    /// Who may attend to whom, bool `[heads, q_len, kv_len]`.
    fn mask<'py>(&self, py: Python<'py>, q_len: usize, kv_len: usize) -> PyResult<Bound<'py, PyArray3<bool>>> {
        const MOST: usize = 4 << 30;
        let heads = self.inner.heads;
        let cells = heads.checked_mul(q_len).and_then(|cells| cells.checked_mul(kv_len));
        if cells.is_none_or(|cells| cells > MOST) {
            let message = format!("a mask of {heads} x {q_len} x {kv_len} cells; at most {MOST} are written out");
            return Err(UnsupportedError::new_err(message));
        }
        let mask = detached(py, None, || {
            let pattern = pattern::resolve(&self.inner, q_len, kv_len)?;
            pattern.require_bound()?;
            let mut mask = Array3::from_elem((heads, q_len, kv_len), false);
            let blocks: Vec<u32> = (0..kv_len.div_ceil(64) as u32).collect();
            let mut words = vec![0; blocks.len()];
            for h in 0..heads {
                for q in 0..q_len {
                    words.fill(0);
                    pattern.words(h, q, &blocks, &mut words);
                    for (k, allowed) in mask.slice_mut(ndarray::s![h, q, ..]).iter_mut().enumerate() {
                        *allowed = words[k / 64] >> (k % 64) & 1 == 1;
                    }
                }
            }
            Ok(mask)
        });
        Ok(mask.map_err(raise)?.into_pyarray(py))
    }
}

fn read_limits(settings: &[String]) -> PyResult<Limits> {
    settings.iter().try_fold(Limits::default(), |limits, text| {
        let Setting(limit, value) =
            text.parse().map_err(|message| PyValueError::new_err(format!("{text}: {message}")))?;
        Ok(limits.with(limit, value))
    })
}

/// A spec at given lengths.
#[pyclass(frozen, name = "Operator", module = "hopweave._hopweave")]
struct PyOperator {
    inner: Operator,
}

/// What the compiler is asked for.
fn options(isa: &str, threads: Option<usize>, strategy: Option<&str>, memory_limit: Option<u64>) -> PyResult<Options> {
    let mut options = Options { isa: Isa::choose(isa).map_err(raise)?, ..Options::default() };
    // Plans are the same whether or not torch is loaded, and however many threads it has.
    let cores = options.threads;
    options.threads = threads.unwrap_or(cores).max(1);
    options.pool = Some(Arc::new(Threads::new(threads, cores)));
    options.memory_limit = memory_limit.unwrap_or(options.memory_limit);
    options.strategy = strategy.map(str::parse).transpose().map_err(raise)?;
    Ok(options)
}

/// What a call brings besides tensors, as Python describes it.
#[derive(FromPyObject)]
struct PyArguments {
    key_lengths: Option<Vec<i64>>,
    inputs: Vec<(String, Tensor)>,
    segments: Vec<(String, Tensor)>,
    /// Picked neighbors: u8 layouts, and i32 lists.
    layouts: Vec<(String, Tensor)>,
    lists: Vec<(String, Tensor)>,
    /// Rates for weights and hops, and the seed.
    dropout: Option<(f32, f32, u64)>,
}

impl PyArguments {
    fn with<R>(&self, work: impl FnOnce(&Arguments<'_>) -> hopweave::Result<R>) -> hopweave::Result<R> {
        let mut inputs = Inputs::none();
        for (name, tensor) in &self.inputs {
            inputs = inputs.with(name, tensor.view::<f32>(name)?);
        }
        let segments = self
            .segments
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.fixed::<i32, Ix2>(name)?)))
            .collect::<hopweave::Result<_>>()?;
        let mut picked = Vec::new();
        for (name, tensor) in &self.layouts {
            picked.push((name.clone(), PickedInput::Layout(tensor.fixed::<u8, Ix4>(name)?)));
        }
        for (name, tensor) in &self.lists {
            picked.push((name.clone(), PickedInput::Lists(tensor.fixed::<i32, Ix4>(name)?)));
        }
        let dropout = match self.dropout {
            Some((attention, hop, seed)) => Some(Dropout::new(attention, hop, seed)?),
            None => None,
        };
        work(&Arguments { inputs, key_lengths: self.key_lengths.as_deref(), segments, picked, dropout })
    }
}

impl PyArguments {
    /// Where its tensors lie, by name; floats, ids and lists have four bytes.
    fn spans(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        let tensors = self.inputs.iter().chain(&self.segments).chain(&self.lists);
        let spans = tensors.map(|(name, tensor)| (name.as_str(), tensor.span(size_of::<f32>())));
        spans.chain(self.layouts.iter().map(|(name, tensor)| (name.as_str(), tensor.span(size_of::<u8>()))))
    }
}

/// Runs a generic method with the element type of a dtype.
macro_rules! by_dtype {
    ($dtype:expr, $this:ident.$method:ident($($arg:expr),*)) => {
        match $dtype {
            Dtype::F32 => $this.$method::<f32>($($arg),*),
            Dtype::Bf16 => $this.$method::<tensor::bf16>($($arg),*),
            Dtype::F16 => $this.$method::<tensor::f16>($($arg),*),
        }
    };
}

/// An array of Python's, by the element type that numpy has for it.
type Array<'py> = Bound<'py, PyAny>;

#[pymethods]
impl PyOperator {
    #[new]
    #[pyo3(signature = (spec, q_len, kv_len, isa, threads, strategy, memory_limit))]
    fn new(
        py: Python<'_>,
        spec: &PySpec,
        q_len: usize,
        kv_len: usize,
        isa: &str,
        threads: Option<usize>,
        strategy: Option<&str>,
        memory_limit: Option<u64>,
    ) -> PyResult<Self> {
        let options = options(isa, threads, strategy, memory_limit)?;
        let spec = spec.inner.clone();
        let inner = detached(py, None, || Operator::new(spec, q_len, kv_len, options)).map_err(raise)?;
        Ok(Self { inner })
    }

    /// What the plan of the kernel says, for people; `None` for a pattern that waits for segment ids.
    fn plan(&self, py: Python<'_>) -> PyResult<Option<(String, String, Vec<String>)>> {
        let compiled = detached(py, None, || self.inner.kernel(&Default::default()));
        let Ok(compiled) = compiled else { return Ok(None) };
        let plan = compiled.kernel.plan();
        Ok(Some((plan.isa.to_string(), plan.strategy.to_string(), plan.reasons.clone())))
    }

    /// Writes output and log-sum-exp. `of_torch` threads are torch's, where it is loaded.
    #[allow(clippy::too_many_arguments)]
    fn forward(
        &self,
        py: Python<'_>,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        arguments: PyArguments,
        out: Tensor,
        lse: Tensor,
        of_torch: Option<usize>,
    ) -> PyResult<()> {
        by_dtype!(self.inner.spec().dtype, self.forward_of(py, [q, k, v], arguments, (out, lse), of_torch))
    }

    /// The layout that `top_blocks` picks for q and k, u8 `[batch, heads, query blocks, key blocks]`.
    fn select<'py>(&self, py: Python<'py>, q: Tensor, k: Tensor, of_torch: Option<usize>) -> PyResult<Array<'py>> {
        by_dtype!(self.inner.spec().dtype, self.select_of(py, [q, k], of_torch))
    }

    /// Writes the gradients of q, k and v to the three of `into`, and gives those of the float inputs by name.
    #[allow(clippy::too_many_arguments)]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grad_out: Tensor,
        saved: Option<(Tensor, Tensor)>,
        arguments: PyArguments,
        into: [Tensor; 3],
        of_torch: Option<usize>,
    ) -> PyResult<Vec<(String, Array<'py>)>> {
        by_dtype!(self.inner.spec().dtype, self.backward_of(py, [q, k, v, grad_out], saved, arguments, into, of_torch))
    }
}

impl PyOperator {
    fn select_of<'py, T: Element>(
        &self,
        py: Python<'py>,
        [q, k]: [Tensor; 2],
        of_torch: Option<usize>,
    ) -> PyResult<Array<'py>> {
        let layout = detached(py, of_torch, || self.inner.select::<T>(q.fixed("q")?, k.fixed("k")?));
        Ok(layout.map_err(raise)?.into_pyarray(py).into_any())
    }

    fn forward_of<T: Element>(
        &self,
        py: Python<'_>,
        [q, k, v]: [Tensor; 3],
        arguments: PyArguments,
        (mut out, mut lse): (Tensor, Tensor),
        of_torch: Option<usize>,
    ) -> PyResult<()> {
        let size = size_of::<T>();
        let mut read = vec![("q", q.span(size)), ("k", k.span(size)), ("v", v.span(size))];
        read.extend(arguments.spans());
        check_apart(&[("out", out.span(size)), ("lse", lse.span(size_of::<f32>()))], &read)?;
        let done = detached(py, of_torch, || {
            let (q, k, v) = (q.fixed::<T, _>("q")?, k.fixed("k")?, v.fixed("v")?);
            let (mut out, mut lse) = (out.fixed_mut("out")?, lse.fixed_mut("lse")?);
            arguments.with(|arguments| self.inner.forward_into([q, k, v], arguments, &mut out, &mut lse))
        });
        done.map_err(raise)
    }

    fn backward_of<'py, T: Element>(
        &self,
        py: Python<'py>,
        [q, k, v, grad_out]: [Tensor; 4],
        saved: Option<(Tensor, Tensor)>,
        arguments: PyArguments,
        [mut dq, mut dk, mut dv]: [Tensor; 3],
        of_torch: Option<usize>,
    ) -> PyResult<Vec<(String, Array<'py>)>> {
        let size = size_of::<T>();
        let mut read = vec![("q", q.span(size)), ("k", k.span(size)), ("v", v.span(size))];
        read.push(("grad_out", grad_out.span(size)));
        if let Some((out, lse)) = &saved {
            read.extend([("out", out.span(size)), ("lse", lse.span(size_of::<f32>()))]);
        }
        read.extend(arguments.spans());
        check_apart(&[("dq", dq.span(size)), ("dk", dk.span(size)), ("dv", dv.span(size))], &read)?;
        let of_inputs = detached(py, of_torch, || {
            let (q, k, v) = (q.fixed::<T, _>("q")?, k.fixed("k")?, v.fixed("v")?);
            let grad_out = grad_out.fixed("grad_out")?;
            let saved = match &saved {
                Some((out, lse)) => Some(Saved { out: out.fixed("out")?, lse: lse.fixed::<f32, Ix3>("lse")? }),
                None => None,
            };
            let into = [dq.fixed_mut("dq")?, dk.fixed_mut("dk")?, dv.fixed_mut("dv")?];
            arguments.with(|arguments| self.inner.backward_into([q, k, v, grad_out], saved, arguments, into))
        });
        let of_inputs = of_inputs.map_err(raise)?.into_iter();
        Ok(of_inputs.map(|(name, grad)| (name, grad.into_pyarray(py).into_any())).collect())
    }
}

/// Kernels that this process has compiled.
#[pyfunction]
fn compilations() -> u64 {
    hopweave::jit::compilations()
}

/// The module.
#[pymodule]
fn _hopweave(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add_class::<PySpec>()?;
    module.add_class::<PyOperator>()?;
    module.add_class::<processes::PyExchange>()?;
    threads::import();
    module.add_function(wrap_pyfunction!(compilations, module)?)?;
    module.add_function(wrap_pyfunction!(threads::forked, module)?)?;
    module.add_function(wrap_pyfunction!(threads::cores, module)?)?;
    module.add_function(wrap_pyfunction!(threads::use_openmp, module)?)?;
    module.add("SpecError", py.get_type::<SpecError>())?;
    module.add("ShapeError", py.get_type::<ShapeError>())?;
    module.add("UnsupportedError", py.get_type::<UnsupportedError>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

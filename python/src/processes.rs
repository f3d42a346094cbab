//! Plans of attention over many processes, and the kernels of their slices.

use hopweave::exchange::Exchange;
use hopweave::machine;
use hopweave::operator::Operator;
use hopweave::pattern::KeySet;
use hopweave::spec::GivenRange;
use pyo3::prelude::*;

use super::{PyOperator, PySpec, options, raise};
use crate::threads::detached;

/// Who holds and who receives which rows.
#[pyclass(frozen, name = "Exchange", module = "hopweave._hopweave")]
pub struct PyExchange {
    inner: Exchange,
}

/// The factor on V, and for every hop those on A Z and on V.
type Factors = (f64, Vec<(f64, f64)>);

#[pymethods]
impl PyExchange {
    #[new]
    fn new(py: Python<'_>, spec: &PySpec, n: usize, world: usize) -> PyResult<Self> {
        let make = || Exchange::new(&spec.inner, n, world, machine::default_memory_limit());
        let inner = detached(py, None, make).map_err(raise)?;
        Ok(Self { inner })
    }

    /// First token of every process, and the one after its last.
    #[getter]
    fn slices(&self) -> Vec<(usize, usize)> {
        self.inner.slices.iter().map(|rows| (rows.start, rows.end)).collect()
    }

    /// For every hop, the number of its pattern.
    #[getter]
    fn of_hop(&self) -> Vec<usize> {
        self.inner.of_hop.clone()
    }

    #[getter]
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    #[getter]
    fn rounds(&self) -> usize {
        self.inner.rounds()
    }

    #[getter]
    fn all_gather_bytes(&self) -> u64 {
        self.inner.all_gather_bytes()
    }

    #[getter]
    fn is_plain(&self) -> bool {
        self.inner.is_plain()
    }

    fn text(&self) -> String {
        self.inner.text()
    }

    /// Rows that each process receives before a hop of this pattern, as ranges.
    fn received(&self, pattern: usize) -> Vec<Vec<(i64, i64)>> {
        let ranges = |keys: KeySet| keys.intervals().to_vec();
        (0..self.inner.world()).map(|rank| ranges(self.inner.received(pattern, rank))).collect()
    }

    /// Bytes that a process receives before a hop, at batch 1.
    fn bytes_of(&self, hop: usize, rank: usize) -> u64 {
        self.inner.bytes_of(hop, rank)
    }

    /// The slice of a process: the first query that is counted, how many are, and the blocks of 64 keys that are there.
    fn cut(&self, pattern: usize, rank: usize) -> (usize, usize, Vec<u32>) {
        let cut = self.inner.cut(pattern, rank);
        (cut.first, cut.q_len, cut.blocks)
    }

    /// The factors of all hops; `None` where they come with the call.
    fn factors(&self) -> PyResult<Option<Factors>> {
        let factors = self.inner.factors().map_err(raise)?;
        Ok(factors.map(|of| (of.initial, of.hops.iter().map(|hop| (hop.step, hop.restart)).collect())))
    }

    /// What the factors of hops come from, where it is the call: the name of the input, and whether it holds
    /// coefficients (else alpha).
    fn given(&self) -> Option<(String, bool)> {
        self.inner.given().map(|given| (given.input.name.clone(), given.range == GivenRange::Any))
    }

    /// The spec of one product with A, of the first or of a later hop.
    fn hop_spec(&self, first: bool) -> PySpec {
        PySpec { inner: self.inner.hop_spec(first) }
    }

    /// Compiles that product for a process.
    fn operator(
        &self,
        py: Python<'_>,
        hop: (usize, usize, bool),
        isa: &str,
        threads: Option<usize>,
    ) -> PyResult<PyOperator> {
        let (pattern, rank, first) = hop;
        let options = options(isa, threads, None, None)?;
        let make = || Operator::of_pattern(self.inner.hop_spec(first), self.inner.pattern(pattern, rank), options);
        Ok(PyOperator { inner: detached(py, None, make).map_err(raise)? })
    }
}

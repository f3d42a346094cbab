//! A sample of rows, for lengths at which all n² points are too many.
//!
//! A row of Z_K needs the rows of Z_{K−1} of its keys, and so on: the K-hop neighborhood of the sampled rows,
//! which may be everything. Each (batch, head) therefore has a budget of work. Rows are taken in the order
//! given until the next one would pass the budget, and the result says which were computed.

use std::collections::{BTreeSet, HashMap};

use ndarray::ArrayView4;

use super::{Head, Mods, Row, Series, all_series, at, check_shapes, initial_row, restart, step};
use crate::error::Result;
use crate::pattern::Pattern;
use crate::spec::{Inputs, PatternSpec};

/// What asking the pattern for one point costs, in multiplications.
const POINT: u64 = 16;

/// Rows that were computed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// The rows, in the order of the places asked for.
    pub rows: Vec<SampleRow>,
    /// Rows that were asked for and left out, because the budget was spent.
    pub left_out: usize,
}

/// One row of the output.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRow {
    /// Batch index.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Query.
    pub query: usize,
    /// Output, `[value_dim]`.
    pub out: Vec<f64>,
    /// Log-sum-exp, natural log.
    pub lse: f64,
}

/// Computes the rows `queries` of each (batch, head) in `places`, as [`run`](super::run) would.
///
/// `budget` bounds the work on each place, in multiplications; a point asked of the pattern counts as
/// 16 of them.
/// A row whose neighborhood does not fit any more is left out, and so are those after it.
///
/// # Errors
/// As [`run`](super::run). Places and queries beyond the tensors are passed over.
pub fn run_rows(
    pattern: &Pattern,
    spec: &PatternSpec,
    q: ArrayView4<'_, f32>,
    k: ArrayView4<'_, f32>,
    v: ArrayView4<'_, f32>,
    inputs: &Inputs<'_>,
    places: &[(usize, usize)],
    queries: &[usize],
    budget: u64,
) -> Result<Sample> {
    check_shapes(pattern, spec, &q, &k, &v)?;
    let mods = &Mods::new(spec, pattern.q_len, pattern.kv_len, inputs)?;
    // All points would be too many to be looked at.
    let series_of_head = all_series(pattern, spec, mods, |head| pattern.is_lower_triangular(head))?;
    let mut sample = Sample::default();
    for &(batch, index) in places.iter().filter(|&&(b, h)| b < q.dim().0 && h < spec.heads) {
        let kv = spec.kv_head(index);
        let (q, k, v) = (at(&q, batch, index), at(&k, batch, kv), at(&v, batch, kv));
        let series = series_of_head[index].clone();
        let hops = series.hops().len();
        let item = (batch * spec.heads + index) as u64;
        let head = Head { pattern, spec, mods, series, dropout: None, item, index, q, k, v };
        let mut walk = Walk { head, known: HashMap::new(), spent: 0, budget };
        // needed[j]: rows of Z_j that must be computed.
        let mut needed: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); hops + 1];
        let mut taken = Vec::new();
        for &query in queries.iter().filter(|&&query| query < pattern.q_len) {
            match walk.reach(query, &needed) {
                Some(reach) => {
                    for (all, more) in needed.iter_mut().zip(reach) {
                        all.extend(more);
                    }
                    taken.push(query);
                }
                None => break,
            }
        }
        sample.left_out += queries.len() - taken.len();
        let z = walk.forward(&needed);
        for query in taken {
            sample.rows.push(SampleRow {
                batch,
                head: index,
                query,
                out: z[&query].clone(),
                lse: walk.known[&(pattern.index_of_hop(0), query)].lse,
            });
        }
    }
    Ok(sample)
}

/// The walk through one head's neighborhoods.
struct Walk<'a> {
    head: Head<'a>,
    /// Rows computed so far, by which of the patterns they are of.
    known: HashMap<(usize, usize), Row>,
    spent: u64,
    budget: u64,
}

impl Walk<'_> {
    /// The rows of each Z_j that row `query` of the output needs and that `needed` does not hold yet; `None`
    /// when the budget ends first. A limit has one Z, which reads itself.
    fn reach(&mut self, query: usize, needed: &[BTreeSet<usize>]) -> Option<Vec<BTreeSet<usize>>> {
        let hops = self.head.series.hops().to_vec();
        let mut reach = vec![BTreeSet::new(); hops.len() + 1];
        // The log-sum-exp is asked for even where no hop reads the row of A.
        self.row(self.head.pattern.index_of_hop(0), query)?;
        reach[hops.len()].insert(query);
        if let Series::Limit(_) = self.head.series {
            let mut left = vec![query];
            while let Some(row) = left.pop() {
                for key in self.keys(0, row)? {
                    if !needed[0].contains(&key) && reach[0].insert(key) {
                        left.push(key);
                    }
                }
            }
        }
        for j in (0..hops.len()).rev() {
            if self.head.term(hops[j].step).is_none() {
                break;
            }
            let index = self.head.pattern.index_of_hop(j);
            let (low, high) = reach.split_at_mut(j + 1);
            for &row in &high[0] {
                low[j].extend(self.keys(index, row)?.into_iter().filter(|key| !needed[j].contains(key)));
            }
        }
        (self.spent <= self.budget).then_some(reach)
    }

    /// The keys of row `i`, which a product with it reads.
    fn keys(&mut self, index: usize, i: usize) -> Option<Vec<usize>> {
        let width = self.head.spec.value_dim as u64;
        let row = self.row(index, i)?;
        let (keys, work) = (row.edges.iter().map(|&(key, _)| key as usize).collect(), keys_len(row) * width);
        self.spent += work;
        Some(keys)
    }

    /// Row `i` of the A of one of the patterns, computed on first use.
    fn row(&mut self, index: usize, i: usize) -> Option<&Row> {
        if !self.known.contains_key(&(index, i)) {
            let points = POINT * self.head.pattern.kv_len as u64;
            if self.spent + points > self.budget {
                return None;
            }
            let row = self.head.probabilities(index, i);
            self.spent += points + keys_len(&row) * self.head.spec.head_dim as u64;
            self.known.insert((index, i), row);
        }
        self.known.get(&(index, i))
    }

    /// The needed rows of Z_K, from those of Z_0 up.
    fn forward(&self, needed: &[BTreeSet<usize>]) -> HashMap<usize, Vec<f64>> {
        let Head { spec, series, v, pattern, .. } = &self.head;
        let factors = match series {
            Series::Hops(factors) => factors,
            Series::Limit(alpha) => {
                let mut z: HashMap<usize, Vec<f64>> = HashMap::new();
                for &i in &needed[0] {
                    let solved = self.head.solve_row(*alpha, i, &self.known[&(0, i)], |key| &z[&key]);
                    z.insert(i, solved);
                }
                return z;
            }
        };
        let initial = self.head.term(factors.initial);
        let mut z: HashMap<usize, Vec<f64>> = needed[0].iter().map(|&i| (i, initial_row(initial, v.row(i)))).collect();
        for (number, (hop, rows)) in factors.hops.iter().zip(&needed[1..]).enumerate() {
            let index = pattern.index_of_hop(number);
            z = rows
                .iter()
                .map(|&i| {
                    let mut sums = vec![0.0; spec.value_dim];
                    // A row that no step reads was never computed.
                    let edges = self.known.get(&(index, i)).map_or(&[][..], |row| &row.edges);
                    step(&mut sums, self.head.term(hop.step), edges, |key| &z[&key]);
                    restart(&mut sums, self.head.term(hop.restart), v, i);
                    (i, sums)
                })
                .collect();
        }
        z
    }
}

fn keys_len(row: &Row) -> u64 {
    row.edges.len() as u64
}

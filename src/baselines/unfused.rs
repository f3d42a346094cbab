//! Edge lists, one pass after another, as graph libraries compute it: SDDMM, edge softmax, then one SpMM a
//! hop. Every pass reads and writes an array over all edges of all heads.

use std::borrow::Cow;
use std::f64::consts::LOG2_E;
use std::ops::Range;

use ndarray::{Array4, ArrayView4};
use rayon::prelude::*;

use super::{Baseline, Prepared, Problem, head_classes, lanes};
use crate::analysis::EdgeList;
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::spec::{Factors, PatternSpec};

mod training;

pub use training::{Gradients, Kept, Training};

/// The line in the table.
pub const BASELINE: Baseline = Baseline {
    name: "unfused",
    about: "edge lists: SDDMM, edge softmax, one SpMM a hop, each a pass over all edges",
    bytes,
    prepare,
};

/// Rows of one head that a thread takes at a time.
const ROWS: usize = 256;

/// Edge lists of the distinct heads, one probability an edge, two of Z.
fn bytes(problem: &Problem<'_>) -> u64 {
    let Problem { pattern, spec, batch, nnz, .. } = *problem;
    let (classes, batch) = (head_classes(pattern).0 as u64, batch as u64);
    let edges_of_classes = if classes == 1 { nnz / spec.heads as u64 } else { nnz };
    let lists = (EdgeList::bytes(pattern.q_len, 0) * classes).saturating_add(4 * edges_of_classes);
    let widths = 8 * spec.heads as u64 * pattern.q_len as u64 * spec.value_dim as u64;
    lists.saturating_add(batch.saturating_mul((4 * nnz).saturating_add(widths)))
}

fn prepare(problem: &Problem<'_>) -> Box<dyn Prepared> {
    Box::new(Unfused::new(problem))
}

struct Unfused {
    pattern: Pattern,
    spec: PatternSpec,
    /// What a call gives for each head is made up: see [`Diffusion::typical`](crate::spec::Diffusion::typical).
    factors: Factors,
    /// One of each distinct head.
    lists: Vec<EdgeList>,
}

/// Some rows of one (batch, head).
struct Task<'a> {
    /// Which (batch, head), counted through.
    place: usize,
    rows: Range<usize>,
    /// `rows.len() + 1` offsets of their edges.
    offsets: &'a [usize],
    keys: &'a [u32],
}

impl Unfused {
    fn new(problem: &Problem<'_>) -> Self {
        let (classes, _) = head_classes(problem.pattern);
        let lists = (0..classes).into_par_iter().map(|head| EdgeList::build(problem.pattern, head)).collect();
        Self {
            pattern: problem.pattern.clone(),
            spec: problem.spec.clone(),
            factors: problem.spec.diffusion.typical(),
            lists,
        }
    }

    /// All rows of all (batch, head), cut into tasks.
    fn tasks(&self, batch: usize) -> Vec<Task<'_>> {
        let (_, class) = head_classes(&self.pattern);
        let q_len = self.pattern.q_len;
        let mut tasks = Vec::new();
        for place in 0..batch * self.spec.heads {
            let list = &self.lists[class(place % self.spec.heads)];
            for start in (0..q_len).step_by(ROWS) {
                let rows = start..(start + ROWS).min(q_len);
                let offsets = &list.offsets[rows.start..=rows.end];
                let keys = &list.keys[offsets[0]..offsets[rows.len()]];
                tasks.push(Task { place, rows, offsets, keys });
            }
        }
        tasks
    }
}

/// Cuts `whole` into one part a task, of the lengths that `len` gives.
fn parts<'t, 'a, 'w>(
    tasks: &'t [Task<'a>],
    mut whole: &'w mut [f32],
    len: impl Fn(&Task<'a>) -> usize,
) -> Vec<(&'t Task<'a>, &'w mut [f32])> {
    let cut = |task: &'t Task<'a>| {
        let (part, rest) = std::mem::take(&mut whole).split_at_mut(len(task));
        whole = rest;
        (task, part)
    };
    tasks.iter().map(cut).collect()
}

impl Unfused {
    /// Which (batch, key/value head) a (batch, head) reads. The batch is part of a place, so places divide as heads do.
    fn kv_place(&self, place: usize) -> usize {
        place / (self.spec.heads / self.spec.kv_heads)
    }

    /// A, an entry an edge.
    fn probabilities(&self, tasks: &[Task<'_>], q: &[f32], k: &[f32]) -> Vec<f32> {
        let (q_len, kv_len, d) = (self.pattern.q_len, self.pattern.kv_len, self.spec.head_dim);
        let mut p = vec![0.0; tasks.iter().map(|task| task.keys.len()).sum()];
        let scale = (self.spec.scale * LOG2_E) as f32;
        parts(tasks, &mut p, |task| task.keys.len()).into_par_iter().for_each(|(task, p)| {
            let q = &q[(task.place * q_len + task.rows.start) * d..(task.place * q_len + task.rows.end) * d];
            let k = &k[self.kv_place(task.place) * kv_len * d..][..kv_len * d];
            lanes::sddmm(q, k, d, task.offsets, task.keys, scale, p);
        });
        parts(tasks, &mut p, |task| task.keys.len())
            .into_par_iter()
            .for_each(|(task, p)| lanes::edge_softmax(task.offsets, p));
        p
    }

    /// Z_0.
    fn first<'v>(&self, v: &'v [f32]) -> Cow<'v, [f32]> {
        let initial = self.factors.initial;
        if initial == 1.0 { Cow::Borrowed(v) } else { v.iter().map(|x| x * initial as f32).collect() }
    }

    /// Rows of the key/value heads for each of their query heads: the output where there are no hops.
    fn by_head(&self, batch: usize, z: &[f32]) -> Vec<f32> {
        let size = self.pattern.kv_len * self.spec.value_dim;
        (0..batch * self.spec.heads).flat_map(|place| &z[self.kv_place(place) * size..][..size]).copied().collect()
    }

    /// Z after hop number `number`, from the one before.
    fn hop(&self, number: usize, tasks: &[Task<'_>], p: &mut [f32], z: &[f32], v: &[f32]) -> Vec<f32> {
        let (kv_len, width) = (self.pattern.kv_len, self.spec.value_dim);
        let hop = self.factors.hops[number];
        let rows: usize = tasks.iter().map(|task| task.rows.len()).sum();
        let mut next = vec![0.0; rows * width];
        let probabilities = parts(tasks, p, |task| task.keys.len());
        let outputs = parts(tasks, &mut next, |task| task.rows.len() * width);
        probabilities.into_par_iter().zip(outputs).for_each(|((task, p), (_, out))| {
            // V is read first, one matrix a key/value head; afterwards every query head has its own Z.
            let source = if number == 0 { self.kv_place(task.place) } else { task.place };
            let z = &z[source * kv_len * width..][..kv_len * width];
            let first = self.kv_place(task.place) * kv_len + task.rows.start;
            let v = (hop.restart != 0.0).then(|| &v[first * width..(first + task.rows.len()) * width]);
            lanes::spmm(p, task.keys, task.offsets, z, width, (hop.step as f32, hop.restart as f32), v, out);
        });
        next
    }
}

impl Prepared for Unfused {
    fn run(&self, q: ArrayView4<'_, f32>, k: ArrayView4<'_, f32>, v: ArrayView4<'_, f32>) -> Result<Array4<f32>> {
        let shape = (q.dim().0, self.spec.heads, self.pattern.q_len, self.spec.value_dim);
        let (q, k, v) = (flat(q), flat(k), flat(v));
        let tasks = self.tasks(shape.0);
        let mut p = self.probabilities(&tasks, &q, &k);
        let mut z = self.first(&v);
        for number in 0..self.factors.hops.len() {
            z = Cow::Owned(self.hop(number, &tasks, &mut p, &z, &v));
        }
        array(shape, if self.factors.hops.is_empty() { self.by_head(shape.0, &z) } else { z.into_owned() })
    }
}

fn array(shape: (usize, usize, usize, usize), elements: Vec<f32>) -> Result<Array4<f32>> {
    Array4::from_shape_vec(shape, elements)
        .map_err(|error| Error::internal("baseline unfused", error.to_string(), format!("{shape:?}")))
}

/// The elements in C order, copied only where they lie otherwise.
fn flat(tensor: ArrayView4<'_, f32>) -> Cow<'_, [f32]> {
    tensor.to_slice().map_or_else(|| tensor.iter().copied().collect(), Cow::Borrowed)
}

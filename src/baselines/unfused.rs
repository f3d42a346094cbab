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
use crate::spec::PatternSpec;

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
    let (classes, _) = head_classes(problem.pattern);
    let lists = (0..classes).into_par_iter().map(|head| EdgeList::build(problem.pattern, head)).collect();
    Box::new(Unfused { pattern: problem.pattern.clone(), spec: problem.spec.clone(), lists })
}

struct Unfused {
    pattern: Pattern,
    spec: PatternSpec,
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

impl Prepared for Unfused {
    fn run(&self, q: ArrayView4<'_, f32>, k: ArrayView4<'_, f32>, v: ArrayView4<'_, f32>) -> Result<Array4<f32>> {
        let (q_len, kv_len) = (self.pattern.q_len, self.pattern.kv_len);
        let (d, width) = (self.spec.head_dim, self.spec.value_dim);
        let shape = (q.dim().0, self.spec.heads, q_len, width);
        let (q, k, v) = (flat(q), flat(k), flat(v));
        // Grouped heads share keys and values; the batch is part of a place, so places divide as heads do.
        let group = self.spec.heads / self.spec.kv_heads;
        let kv_place = |place: usize| place / group;
        let tasks = self.tasks(shape.0);
        let mut p = vec![0.0; tasks.iter().map(|task| task.keys.len()).sum()];
        let scale = (self.spec.scale * LOG2_E) as f32;
        parts(&tasks, &mut p, |task| task.keys.len()).into_par_iter().for_each(|(task, p)| {
            let q = &q[(task.place * q_len + task.rows.start) * d..(task.place * q_len + task.rows.end) * d];
            let k = &k[kv_place(task.place) * kv_len * d..][..kv_len * d];
            lanes::sddmm(q, k, d, task.offsets, task.keys, scale, p);
        });
        parts(&tasks, &mut p, |task| task.keys.len())
            .into_par_iter()
            .for_each(|(task, p)| lanes::edge_softmax(task.offsets, p));

        let diffusion = &self.spec.diffusion;
        let mut z = Cow::Borrowed(&v[..]);
        if diffusion.initial != 1.0 {
            z.to_mut().iter_mut().for_each(|x| *x *= diffusion.initial as f32);
        }
        for (number, hop) in diffusion.hops.iter().enumerate() {
            let mut next = vec![0.0; shape.0 * shape.1 * q_len * width];
            let probabilities = parts(&tasks, &mut p, |task| task.keys.len());
            let outputs = parts(&tasks, &mut next, |task| task.rows.len() * width);
            probabilities.into_par_iter().zip(outputs).for_each(|((task, p), (_, out))| {
                // V is read first, one matrix a key/value head; afterwards every query head has its own Z.
                let source = if number == 0 { kv_place(task.place) } else { task.place };
                let z = &z[source * kv_len * width..][..kv_len * width];
                let first = kv_place(task.place) * kv_len + task.rows.start;
                let v = (hop.restart != 0.0).then(|| &v[first * width..(first + task.rows.len()) * width]);
                lanes::spmm(p, task.keys, task.offsets, z, width, (hop.step as f32, hop.restart as f32), v, out);
            });
            z = Cow::Owned(next);
        }
        Array4::from_shape_vec(shape, z.into_owned())
            .map_err(|error| Error::internal("baseline unfused", error.to_string(), format!("{shape:?}")))
    }
}

/// The elements in C order, copied only where they lie otherwise.
fn flat(tensor: ArrayView4<'_, f32>) -> Cow<'_, [f32]> {
    tensor.to_slice().map_or_else(|| tensor.iter().copied().collect(), Cow::Borrowed)
}

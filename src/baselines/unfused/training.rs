//! Training by edge lists, as graph libraries do it: the forward pass keeps A and every Z; the backward pass is an SDDMM
//! and a transposed SpMM a hop, the gradient of the edge softmax, and an SpMM each for queries and keys.
//!
//! Every pass reads and writes arrays over all edges of all heads. The transposed lists are made in
//! [`Training::prepare`]. Score mods and dropout are not served.

use std::ops::Range;

use ndarray::{Array4, ArrayView4};
use rayon::prelude::*;

use super::{ROWS, Unfused, array, bytes, flat, head_classes, lanes, parts};
use crate::analysis::EdgeList;
use crate::baselines::Problem;
use crate::error::{Error, Result};

/// Edge lists of both directions, ready for training steps.
pub struct Training {
    unfused: Unfused,
    /// One of each distinct head.
    transposed: Vec<Transposed>,
}

/// What a forward pass keeps for the backward pass.
#[derive(Debug)]
pub struct Kept {
    /// The output, `[batch, heads, q_len, value_dim]`.
    pub out: Array4<f32>,
    /// A, an entry an edge.
    p: Vec<f32>,
    /// Z between the hops.
    z: Vec<Vec<f32>>,
}

/// What a backward pass gives, in the shapes of the tensors.
#[derive(Debug)]
pub struct Gradients {
    /// By the queries.
    pub q: Array4<f32>,
    /// By the keys.
    pub k: Array4<f32>,
    /// By the values.
    pub v: Array4<f32>,
}

/// An edge list by key.
struct Transposed {
    /// `kv_len + 1` offsets.
    offsets: Vec<usize>,
    /// Queries, ascending within a key.
    queries: Vec<u32>,
    /// Where each edge stands in the list by query.
    edges: Vec<u32>,
}

impl Transposed {
    fn new(list: &EdgeList, kv_len: usize) -> Self {
        let mut offsets = vec![0; kv_len + 1];
        for &key in &list.keys {
            offsets[key as usize + 1] += 1;
        }
        for key in 0..kv_len {
            offsets[key + 1] += offsets[key];
        }
        let mut next = offsets.clone();
        let mut transposed = Self { offsets, queries: vec![0; list.keys.len()], edges: vec![0; list.keys.len()] };
        for query in 0..list.offsets.len() - 1 {
            for edge in list.offsets[query]..list.offsets[query + 1] {
                let place = &mut next[list.keys[edge] as usize];
                transposed.queries[*place] = query as u32;
                transposed.edges[*place] = edge as u32;
                *place += 1;
            }
        }
        transposed
    }
}

impl Training {
    /// Bytes that a step holds, tensors aside.
    pub fn bytes(problem: &Problem<'_>) -> u64 {
        let Problem { pattern, spec, batch, nnz, .. } = *problem;
        let (classes, batch) = (head_classes(pattern).0 as u64, batch as u64);
        let edges_of_classes = if classes == 1 { nnz / spec.heads as u64 } else { nnz };
        let lists = (8 * (pattern.kv_len as u64 + 1) * classes).saturating_add(8 * edges_of_classes);
        let kept = spec.diffusion.hops() as u64 * 4 * spec.heads as u64 * pattern.q_len as u64;
        let kept = kept.saturating_mul(spec.value_dim as u64);
        let running = batch.saturating_mul((4 * nnz).saturating_add(kept));
        bytes(problem).saturating_add(lists).saturating_add(running)
    }

    /// Makes what depends on the pattern alone.
    ///
    /// # Errors
    /// [`Error::Memory`] when [`bytes`](Self::bytes) passes `memory_limit`, [`Error::Unsupported`] for score mods and for
    /// more than 2^32 edges a head.
    pub fn prepare(problem: &Problem<'_>, memory_limit: u64) -> Result<Self> {
        if !problem.spec.mods.is_empty() {
            return Err(Error::unsupported("score mods in the baseline unfused", "plain scores alone"));
        }
        let given = Self::bytes(problem);
        if given > memory_limit {
            return Err(Error::Memory { what: "baseline unfused, training,".into(), given, limit: memory_limit });
        }
        let unfused = Unfused::new(problem);
        if let Some(list) = unfused.lists.iter().find(|list| u32::try_from(list.keys.len()).is_err()) {
            let given = format!("{} edges of a head in the baseline unfused", list.keys.len());
            return Err(Error::unsupported(given, format!("up to {} edges", u32::MAX)));
        }
        let kv_len = problem.pattern.kv_len;
        let transposed = unfused.lists.par_iter().map(|list| Transposed::new(list, kv_len)).collect();
        Ok(Self { unfused, transposed })
    }

    /// The output, and what [`backward`](Self::backward) reads. The tensors have the shapes of the problem.
    ///
    /// # Errors
    /// [`Error::Internal`] alone.
    pub fn forward(&self, q: ArrayView4<'_, f32>, k: ArrayView4<'_, f32>, v: ArrayView4<'_, f32>) -> Result<Kept> {
        let Unfused { pattern, spec, .. } = &self.unfused;
        let shape = (q.dim().0, spec.heads, pattern.q_len, spec.value_dim);
        let (q, k, v) = (flat(q), flat(k), flat(v));
        let tasks = self.unfused.tasks(shape.0);
        let mut p = self.unfused.probabilities(&tasks, &q, &k);
        let first = self.unfused.first(&v);
        let mut z: Vec<Vec<f32>> = Vec::new();
        for number in 0..self.unfused.factors.hops.len() {
            let before = z.last().map_or(&first[..], Vec::as_slice);
            let next = self.unfused.hop(number, &tasks, &mut p, before, &v);
            z.push(next);
        }
        let out = z.pop().unwrap_or_else(|| self.unfused.by_head(shape.0, &first));
        Ok(Kept { out: array(shape, out)?, p, z })
    }

    /// The gradients of Σ grad_out · out by q, k and v, on the threads of the current rayon pool. `grad_out` has the shape
    /// of the output; `kept` is what [`forward`](Self::forward) gave for the same tensors.
    ///
    /// # Errors
    /// [`Error::Internal`] alone.
    pub fn backward(&self, kept: &Kept, [q, k, v, grad_out]: [ArrayView4<'_, f32>; 4]) -> Result<Gradients> {
        let Unfused { pattern, spec, .. } = &self.unfused;
        let (q_len, kv_len, d, width) = (pattern.q_len, pattern.kv_len, spec.head_dim, spec.value_dim);
        let shapes = [q.dim(), k.dim(), v.dim()];
        let group = spec.heads / spec.kv_heads;
        let (q, k, v, grad_out) = (flat(q), flat(k), flat(v), flat(grad_out));
        let tasks = self.unfused.tasks(shapes[0].0);
        let first = self.unfused.first(&v);
        let (mut dp, mut dv) = (vec![0.0; kept.p.len()], vec![0.0; v.len()]);
        let mut g = grad_out;
        let diffusion = &self.unfused.factors;
        for (number, hop) in diffusion.hops.iter().enumerate().rev() {
            let step = hop.step as f32;
            if hop.restart != 0.0 {
                self.add_heads(&g, hop.restart as f32, &mut dv);
            }
            // dA += step · G Zᵀ on the edges.
            let z = if number == 0 { &first[..] } else { &kept.z[number - 1] };
            parts(&tasks, &mut dp, |task| task.keys.len()).into_par_iter().for_each(|(task, dp)| {
                let source = if number == 0 { self.unfused.kv_place(task.place) } else { task.place };
                let z = &z[source * kv_len * width..][..kv_len * width];
                let g =
                    &g[(task.place * q_len + task.rows.start) * width..(task.place * q_len + task.rows.end) * width];
                lanes::add_sddmm(g, z, width, task.offsets, task.keys, step, dp);
            });
            // G = step · Aᵀ G; of Z_0 at once what V gets.
            if number == 0 {
                self.add_transposed(&kept.p, &g, (q_len, width), step * diffusion.initial as f32, group, &mut dv);
            } else {
                let mut before = vec![0.0; g.len()];
                self.add_transposed(&kept.p, &g, (q_len, width), step, 1, &mut before);
                g = before.into();
            }
        }
        if diffusion.hops.is_empty() {
            self.add_heads(&g, diffusion.initial as f32, &mut dv);
        }
        // Through the softmax and the products.
        let starts = self.starts(shapes[0].0);
        parts(&tasks, &mut dp, |task| task.keys.len()).into_par_iter().for_each(|(task, dp)| {
            let start = starts[task.place] + task.offsets[0];
            lanes::edge_softmax_gradient(task.offsets, &kept.p[start..start + dp.len()], dp);
        });
        let (mut dq, mut dk) = (vec![0.0; q.len()], vec![0.0; k.len()]);
        let scale = spec.scale as f32;
        let outputs = parts(&tasks, &mut dq, |task| task.rows.len() * d);
        outputs.into_par_iter().for_each(|(task, dq)| {
            let start = starts[task.place] + task.offsets[0];
            let ds = &dp[start..start + task.keys.len()];
            let k = &k[self.unfused.kv_place(task.place) * kv_len * d..][..kv_len * d];
            lanes::spmm(ds, task.keys, task.offsets, k, d, (scale, 0.0), None, dq);
        });
        self.add_transposed(&dp, &q, (q_len, d), scale, group, &mut dk);
        Ok(Gradients { q: array(shapes[0], dq)?, k: array(shapes[1], dk)?, v: array(shapes[2], dv)? })
    }

    /// Where the edges of every (batch, head) start.
    fn starts(&self, batch: usize) -> Vec<usize> {
        let (_, class) = head_classes(&self.unfused.pattern);
        let mut starts = vec![0];
        for place in 0..batch * self.unfused.spec.heads {
            starts.push(starts[place] + self.unfused.lists[class(place % self.unfused.spec.heads)].keys.len());
        }
        starts
    }

    /// Adds `factor` · Xᵀ G for the matrices X over the edges, `group` (batch, head)s to one of `out`; G has `rows` rows a
    /// (batch, head).
    fn add_transposed(
        &self,
        x: &[f32],
        g: &[f32],
        (rows, width): (usize, usize),
        factor: f32,
        group: usize,
        out: &mut [f32],
    ) {
        let Unfused { pattern, spec, .. } = &self.unfused;
        let (_, class) = head_classes(pattern);
        let kv_len = pattern.kv_len;
        if kv_len * width == 0 {
            return;
        }
        let batch = out.len() * group / (kv_len * width * spec.heads);
        let starts = self.starts(batch);
        let mut tasks: Vec<(usize, Range<usize>, &mut [f32])> = Vec::new();
        for (target, out) in out.chunks_mut(kv_len * width).enumerate() {
            for (number, out) in out.chunks_mut(ROWS * width).enumerate() {
                tasks.push((target, number * ROWS..(number * ROWS + ROWS).min(kv_len), out));
            }
        }
        tasks.into_par_iter().for_each(|(target, keys, out)| {
            for place in target * group..(target + 1) * group {
                let list = &self.transposed[class(place % spec.heads)];
                let offsets = &list.offsets[keys.start..=keys.end];
                let edges = offsets[0]..offsets[keys.len()];
                let of_place = &x[starts[place]..starts[place + 1]];
                let g = &g[place * rows * width..][..rows * width];
                let ends = (&list.queries[edges.clone()], &list.edges[edges]);
                lanes::add_spmm_transposed(of_place, ends, offsets, g, width, factor, out);
            }
        });
    }

    /// Adds `factor` · G, the heads of a group to their key/value head.
    fn add_heads(&self, g: &[f32], factor: f32, dv: &mut [f32]) {
        let spec = &self.unfused.spec;
        let (group, size) = (spec.heads / spec.kv_heads, self.unfused.pattern.q_len * spec.value_dim);
        if size == 0 {
            return;
        }
        dv.par_chunks_mut(size).zip(g.par_chunks(group * size)).for_each(|(dv, of_group)| {
            for g in of_group.chunks(size) {
                dv.iter_mut().zip(g).for_each(|(dv, &g)| *dv = factor.mul_add(g, *dv));
            }
        });
    }
}

//! Which key blocks `top_blocks` picks: a score for each pair of a query block and a key block, and the best of them.
//!
//! In: q, k, and how to pick. Out: [`Picked`] for every batch element. The score is the dot product of two means, in f32
//! (as MoBA has it, arXiv 2502.13189), so that it costs one reading of q and k and a product of n / block rows. A pattern that
//! waits for it is bound to it like to any other input, and no gradient flows through it.

use ndarray::{Array3, ArrayView2, ArrayView4, Axis};
use rayon::prelude::*;

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::pattern::{Keep, Picked, TopBlocks};

/// The key blocks that are picked for every batch element, by query head.
///
/// `q [batch, heads, q_len, head_dim]`, `k [batch, kv_heads, kv_len, head_dim]`; `scale` is what scores are multiplied by
/// where `mass` decides. A block whose score is NaN comes behind all others.
///
/// # Errors
/// [`Error::Shape`] where q and k are not of the lengths that the choice is for, or do not fit each other.
pub fn top_blocks<T: Element>(
    q: ArrayView4<'_, T>,
    k: ArrayView4<'_, T>,
    choice: &TopBlocks,
    scale: f64,
) -> Result<Vec<Picked>> {
    let (batch, heads, q_len, width) = q.dim();
    let (k_batch, kv_heads, kv_len, k_width) = k.dim();
    let wrong = |tensor: &str, expected: String, found: &[usize]| Error::Shape {
        tensor: tensor.into(),
        expected,
        found: format!("{found:?}"),
    };
    if q_len != choice.lengths.0 {
        return Err(wrong("q", format!("[batch, heads, q_len {}, head_dim]", choice.lengths.0), q.shape()));
    }
    if (k_batch, kv_len, k_width) != (batch, choice.lengths.1, width)
        || kv_heads == 0
        || !heads.is_multiple_of(kv_heads)
    {
        let expected = format!("[batch {batch}, kv_heads, kv_len {}, head_dim {width}]", choice.lengths.1);
        return Err(wrong("k", expected, k.shape()));
    }
    let (rows, columns) = choice.blocks();
    let group = heads / kv_heads;
    let means = |tensor: &ArrayView4<'_, T>, b: usize, h: usize| {
        block_means(tensor.index_axis(Axis(0), b).index_axis_move(Axis(0), h), choice.block)
    };
    let units: Vec<(usize, usize)> = (0..batch).flat_map(|b| (0..kv_heads).map(move |h| (b, h))).collect();
    let picks = units.into_par_iter().map(|(b, kv_head)| {
        let keys = means(&k, b, kv_head);
        let pick_head = |head: usize| {
            let queries = means(&q, b, head);
            let mut layout = vec![0_u8; rows * columns];
            let mut scores = Vec::with_capacity(columns);
            for row in 0..rows {
                let (among, own) = choice.among(row);
                let query = &queries[row * width..(row + 1) * width];
                scores.clear();
                scores.extend((0..among).map(|block| dot(query, &keys[block * width..(block + 1) * width])));
                let picked = &mut layout[row * columns..(row + 1) * columns];
                pick(&scores, own, choice.keep, scale, picked);
            }
            layout
        };
        (kv_head * group..(kv_head + 1) * group).map(pick_head).collect::<Vec<_>>().concat()
    });
    let picks: Vec<Vec<u8>> = picks.collect();
    let element = |picks: &[Vec<u8>]| {
        let layout = Array3::from_shape_vec((heads, rows, columns), picks.concat())
            .map_err(|error| Error::internal("select", error.to_string(), ""))?;
        Ok(Picked::from_layout(&layout.view()))
    };
    picks.chunks(kv_heads).map(element).collect()
}

/// The mean of every block of rows, `[blocks, width]`.
fn block_means<T: Element>(rows: ArrayView2<'_, T>, block: usize) -> Vec<f32> {
    let width = rows.ncols();
    let mut means = vec![0.0_f32; rows.nrows().div_ceil(block) * width];
    for (rows, mean) in rows.axis_chunks_iter(Axis(0), block).zip(means.chunks_mut(width.max(1))) {
        for row in rows.outer_iter() {
            match row.as_slice() {
                Some(row) => mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x.widen()),
                None => mean.iter_mut().zip(&row).for_each(|(sum, &x)| *sum += x.widen()),
            }
        }
        let count = rows.nrows() as f32;
        mean.iter_mut().for_each(|sum| *sum /= count);
    }
    means
}

/// A dot product, summed in eight lanes so that it needs no order of its own.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0_f32; LANES];
    let (a, b) = (a.chunks(LANES), b.chunks(LANES));
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}

/// Marks the blocks that are kept. `own` is kept always, and counts.
fn pick(scores: &[f32], own: Option<usize>, keep: Keep, scale: f64, picked: &mut [u8]) {
    // NaN behind everything; of equal scores the smaller block first.
    let rank = |block: usize| if scores[block].is_nan() { f32::NEG_INFINITY } else { scores[block] };
    let before = |&a: &usize, &b: &usize| {
        let of_nan = scores[a].is_nan().cmp(&scores[b].is_nan());
        of_nan.then(rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal)).then(a.cmp(&b))
    };
    let mut others: Vec<usize> = (0..scores.len()).filter(|&block| Some(block) != own).collect();
    if let Some(own) = own {
        picked[own] = 1;
    }
    match keep {
        Keep::Count(count) => {
            let count = count.saturating_sub(usize::from(own.is_some())).min(others.len());
            if count > 0 && count < others.len() {
                others.select_nth_unstable_by(count - 1, before);
            }
            others[..count].iter().for_each(|&block| picked[block] = 1);
        }
        Keep::Mass(mass) => {
            others.sort_unstable_by(before);
            let score = |block: usize| scale * f64::from(rank(block));
            let most = (0..scores.len()).map(score).fold(f64::NEG_INFINITY, f64::max);
            let weight = |block: usize| match most.is_infinite() {
                true => f64::from(u8::from(score(block) == most)),
                false => (score(block) - most).exp(),
            };
            let whole: f64 = (0..scores.len()).map(weight).sum();
            let mut reached = own.map_or(0.0, weight);
            for block in others {
                if reached >= mass * whole {
                    break;
                }
                picked[block] = 1;
                reached += weight(block);
            }
        }
    }
}

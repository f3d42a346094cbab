//! Which key blocks `top_blocks` picks, by its definition: block by block, sorted whole.

use ndarray::{Array4, ArrayView4};

use crate::pattern::{Keep, TopBlocks};

/// What `top_blocks` picks of `q [batch, heads, q_len, head_dim]` and `k [batch, kv_heads, kv_len, head_dim]`:
/// `[batch, heads, query blocks, key blocks]`, 1 where a block is picked.
pub fn picked_blocks(q: ArrayView4<'_, f32>, k: ArrayView4<'_, f32>, choice: &TopBlocks, scale: f64) -> Array4<u8> {
    let (batch, heads, q_len, width) = q.dim();
    let (_, kv_heads, kv_len, _) = k.dim();
    let block = choice.block;
    let mean = |tensor: &ArrayView4<'_, f32>, b: usize, h: usize, length: usize, t: usize, x: usize| {
        let rows = t * block..((t + 1) * block).min(length);
        let count = rows.len() as f64;
        rows.map(|row| f64::from(tensor[[b, h, row, x]])).sum::<f64>() / count
    };
    let (rows, columns) = (q_len.div_ceil(block), kv_len.div_ceil(block));
    let mut picked = Array4::zeros((batch, heads, rows, columns));
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..rows {
                let last = choice.first + ((t + 1) * block).min(q_len) as i64 - 1;
                let allowed = |s: usize| !choice.past || (s * block) as i64 <= last;
                let own = |s: usize| choice.past && last.div_euclid(block as i64) == s as i64;
                let score = |s: usize| {
                    let kv_head = h * kv_heads / heads;
                    let product = |x: usize| mean(&q, b, h, q_len, t, x) * mean(&k, b, kv_head, kv_len, s, x);
                    (0..width).map(product).sum::<f64>()
                };
                // Own, NaN, score, number: the order in which blocks are taken.
                let mut order: Vec<(bool, f64, usize)> =
                    (0..columns).filter(|&s| allowed(s)).map(|s| (own(s), score(s), s)).collect();
                order.sort_by(|a, b| {
                    b.0.cmp(&a.0)
                        .then(a.1.is_nan().cmp(&b.1.is_nan()))
                        .then(b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal))
                        .then(a.2.cmp(&b.2))
                });
                let most = order.iter().map(|one| scale * one.1).fold(f64::NEG_INFINITY, f64::max);
                let weight = |score: f64| if score.is_nan() { 0.0 } else { (scale * score - most).exp() };
                let whole: f64 = order.iter().map(|one| weight(one.1)).sum();
                let mut reached = 0.0;
                for (place, one) in order.iter().enumerate() {
                    let enough = match choice.keep {
                        Keep::Count(count) => place >= count,
                        Keep::Mass(mass) => reached >= mass * whole,
                    };
                    if enough && !one.0 {
                        break;
                    }
                    picked[[b, h, t, one.2]] = 1;
                    reached += weight(one.1);
                }
            }
        }
    }
    picked
}

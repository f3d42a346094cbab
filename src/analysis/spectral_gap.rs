//! How fast repeated hops mix: 1 − |λ2| of the pattern as a random walk, and the same of the whole diffusion.
//!
//! The walk goes from a query to each of its keys with the same probability. Its matrix A has row sums 1, so the constant
//! vector belongs to λ1 = 1; on the vectors of mean 0 (A applied, the mean taken off again) the largest eigenvalue is λ2.
//! Of a causal pattern the matrix is triangular and its eigenvalues stand on the diagonal. Otherwise vectors are
//! multiplied with A, without the matrix, until what is left of them lies in the space of two eigenvectors (two steps of
//! Arnoldi's method), or until the budget is spent.
//!
//! A vector that the first one hardly holds can be missed; what falls into parts that never meet is found beforehand.
//!
//! The diffused operator is a polynomial p of A, so that its eigenvalues are p(λ); that of hops without end is
//! p(λ) = α / (1 − (1 − α) λ).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use super::{Diffused, Searcher, Walk};
use crate::pattern::Pattern;

/// Additions that may be spent in all, over all heads.
const BUDGET: u64 = 600_000_000;
/// Steps between two looks.
const WINDOW: usize = 16;
/// Fewest and most steps.
const STEPS: (usize, usize) = (32, 4096);
/// The residual at which λ2 counts as found, as a share of the gap.
const TOLERANCE: f64 = 0.01;

/// Share of noise in the first vector: enough for vectors that are not smooth to grow, little enough for smooth ones to
/// settle.
const NOISE: f64 = 0.05;

/// The spectral gaps, or why there are none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpectralGap {
    /// 1 − |λ2|, the least over all heads; `None` with the reason in `spectral_gap_note`.
    pub spectral_gap: Option<f64>,
    /// 1 − |p(λ2)| / |p(1)| of the diffused operator, for the same head; `None` where p(1) = 0 too.
    pub diffused_gap: Option<f64>,
    /// λ2, real and imaginary part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_eigenvalue: Option<[f64; 2]>,
    /// ‖A w − λ2 w‖ / ‖w‖ for the vector w that was found; 0 where the eigenvalues are exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spectral_gap_residual: Option<f64>,
    /// Why there is no gap, or how far the numbers may be trusted; empty where they have converged.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub spectral_gap_note: String,
}

impl SpectralGap {
    pub(super) fn none(note: impl Into<String>) -> Self {
        Self {
            spectral_gap: None,
            diffused_gap: None,
            second_eigenvalue: None,
            spectral_gap_residual: None,
            spectral_gap_note: note.into(),
        }
    }
}

/// The eigenvalue behind 1.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Second {
    value: Complex,
    residual: f64,
    settled: bool,
}

/// Real and imaginary part.
type Complex = (f64, f64);

/// Finds the gaps; `walks` are those of the distinct heads, with their numbers.
pub fn spectral_gap(pattern: &Pattern, walks: &[(usize, Walk<'_>)], diffused: &Diffused) -> SpectralGap {
    let n = pattern.q_len;
    if n != pattern.kv_len {
        return SpectralGap::none("queries and keys are not the same tokens");
    }
    if n == 0 {
        return SpectralGap::none("there are no tokens");
    }
    if walks.is_empty() {
        return SpectralGap::none("the queries of several heads stand in one row");
    }
    let empty: usize = walks.iter().map(|(_, walk)| walk.degrees().iter().filter(|&&keys| keys == 0).count()).sum();
    if empty > 0 {
        return SpectralGap::none(format!("{empty} queries have no key, so the walk ends there"));
    }
    let mut worst: Option<Second> = None;
    for (head, walk) in walks {
        let found = if falls_apart(walk) {
            Some(Second { value: (1.0, 0.0), residual: 0.0, settled: true })
        } else if walk.is_causal() {
            Some(on_diagonal(pattern, *head, walk))
        } else {
            let steps = BUDGET / walks.len() as u64 / walk.cost().max(1);
            (steps >= STEPS.0 as u64).then(|| iterate(walk, steps.min(STEPS.1 as u64) as usize))
        };
        let Some(found) = found else {
            return SpectralGap::none(format!("a step takes {} additions, too many to go often enough", walk.cost()));
        };
        if worst.is_none_or(|worst| modulus(found.value) > modulus(worst.value)) {
            worst = Some(Second { settled: found.settled && worst.is_none_or(|worst| worst.settled), ..found });
        }
    }
    let Some(Second { value, residual, settled }) = worst else { return SpectralGap::none("there are no heads") };
    let (image, all) = (modulus(of_eigenvalue(diffused, value)), modulus(of_eigenvalue(diffused, (1.0, 0.0))));
    SpectralGap {
        spectral_gap: Some((1.0 - modulus(value)).clamp(0.0, 1.0)),
        diffused_gap: (all > 0.0).then(|| 1.0 - image / all),
        second_eigenvalue: Some([value.0, value.1]),
        spectral_gap_residual: Some(residual),
        spectral_gap_note: if settled {
            String::new()
        } else {
            "not settled: the residual is larger than the gap allows".into()
        },
    }
}

fn modulus((re, im): Complex) -> f64 {
    re.hypot(im)
}

/// p(λ), where Z = p(A) V: the recurrence of the hops on a number, or its limit.
fn of_eigenvalue(Diffused { factors, limit }: &Diffused, (re, im): Complex) -> Complex {
    if let Some(alpha) = limit {
        let (x, y) = (1.0 - (1.0 - alpha) * re, -(1.0 - alpha) * im);
        let norm = x * x + y * y;
        return (alpha * x / norm, -alpha * y / norm);
    }
    factors.hops.iter().fold((factors.initial, 0.0), |(x, y), hop| {
        (hop.step * (re * x - im * y) + hop.restart, hop.step * (re * y + im * x))
    })
}

/// Whether some tokens never reach what others reach: each such part has an eigenvalue 1 of its own. Looked for from
/// both ends, the middle, and beside the first.
fn falls_apart(walk: &Walk<'_>) -> bool {
    let n = walk.queries();
    let mut searcher = Searcher::default();
    let mut sets: Vec<Vec<u64>> = Vec::new();
    for from in [0, 1, n / 2, n - 1] {
        // What is all meets everything.
        if from >= n || walk.follow(from, &mut searcher).reached == n {
            return false;
        }
        sets.push(searcher.reached().to_vec());
    }
    let apart = |a: &[u64], b: &[u64]| a.iter().zip(b).all(|(a, b)| a & b == 0);
    (1..sets.len()).any(|i| sets[..i].iter().any(|other| apart(other, &sets[i])))
}

/// Of a triangular matrix: the largest entry on the diagonal behind the first query's, which is 1.
fn on_diagonal(pattern: &Pattern, head: usize, walk: &Walk<'_>) -> Second {
    let own = |query: usize| {
        if pattern.allows(head, query, query) { 1.0 / f64::from(walk.degrees()[query].max(1)) } else { 0.0 }
    };
    // The first query with a key of its own has eigenvalue 1, and there is one, since row sums are 1.
    let mut values: Vec<f64> = (0..walk.queries()).map(own).collect();
    let first = values.iter().position(|&value| value == 1.0);
    first.map(|first| values.swap_remove(first));
    Second { value: (values.into_iter().fold(0.0, f64::max), 0.0), residual: 0.0, settled: true }
}

/// Steps until the two eigenvalues that are left fit.
fn iterate(walk: &Walk<'_>, steps: usize) -> Second {
    let n = walk.queries();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    // Slow walks are local and their slow vectors smooth, from one end to the other; noise is for all others.
    let mut x: Vec<f64> = (0..n)
        .map(|i| {
            let noise = f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5;
            (std::f64::consts::PI * (i as f64 + 0.5) / n as f64).cos() + NOISE * noise
        })
        .collect();
    center(&mut x);
    let nothing = Second { value: (0.0, 0.0), residual: 0.0, settled: true };
    if normalise(&mut x) == 0.0 {
        return nothing;
    }
    let (mut once, mut twice) = (vec![0.0; n], vec![0.0; n]);
    let mut found = nothing;
    for step in 1..=steps {
        walk.apply(&x, &mut once);
        center(&mut once);
        // What is left of a vector that one step wipes out is rounding.
        if dot(&once, &once).sqrt() < 1e-13 {
            return nothing;
        }
        if step % WINDOW == 0 {
            walk.apply(&once, &mut twice);
            center(&mut twice);
            found = fit(&x, &once, &mut twice);
            if step >= STEPS.0 && found.settled {
                return found;
            }
        }
        normalise(&mut once);
        std::mem::swap(&mut x, &mut once);
    }
    found
}

/// The larger eigenvalue of A on the space of x and A x, and its residual: two steps of Arnoldi's method. `x` has norm
/// 1, and `twice` holds A² x, which is used up.
fn fit(x: &[f64], once: &[f64], twice: &mut [f64]) -> Second {
    let settles = |value: Complex, residual: f64| residual <= TOLERANCE * (1.0 - modulus(value)).max(1e-12);
    // A q1 = h11 q1 + h21 q2, with q1 = x. Differences are taken of vectors and not of products, which would cancel.
    let h11 = dot(x, once);
    let rest: Vec<f64> = once.iter().zip(x).map(|(y, x)| y - h11 * x).collect();
    let h21 = dot(&rest, &rest).sqrt();
    let single = Second { value: (h11, 0.0), residual: h21, settled: settles((h11, 0.0), h21) };
    if h21 <= 1e-12 {
        return single;
    }
    // A q2 = (A² x − h11 A x) / h21.
    twice.iter_mut().zip(once).for_each(|(z, y)| *z = (*z - h11 * y) / h21);
    let second: Vec<f64> = rest.iter().map(|x| x / h21).collect();
    let (h12, h22) = (dot(x, twice), dot(&second, twice));
    twice.iter_mut().zip(x).zip(&second).for_each(|((z, x), q)| *z -= h12 * x + h22 * q);
    let h32 = dot(twice, twice).sqrt();
    // λ² − (h11 + h22) λ + h11 h22 − h12 h21 = 0.
    let middle = (h11 + h22) / 2.0;
    let root = ((h11 - h22) / 2.0).powi(2) + h12 * h21;
    let value = match root {
        root if root < 0.0 => (middle, (-root).sqrt()),
        root if middle >= 0.0 => (middle + root.sqrt(), 0.0),
        root => (middle - root.sqrt(), 0.0),
    };
    // The eigenvector is (λ − h22, h21).
    let share = h21 / (value.0 - h22).hypot(value.1).hypot(h21);
    let residual = h32 * share;
    if residual <= single.residual && modulus(value) <= 1.0 + 1e-9 {
        Second { value, residual, settled: settles(value, residual) }
    } else {
        single
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Takes the mean off.
fn center(x: &mut [f64]) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    x.iter_mut().for_each(|x| *x -= mean);
}

/// Divides by the norm, and returns it.
fn normalise(x: &mut [f64]) -> f64 {
    let norm = dot(x, x).sqrt();
    if norm > 0.0 {
        x.iter_mut().for_each(|x| *x /= norm);
    }
    norm
}

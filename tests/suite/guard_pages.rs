//! Tensors that end, or start, at a page that may not be touched: one float too far is a fault, and the test dies.

use crate::common::guarded::{Place, forward};
use crate::common::{Tensors, compile, families, options, oracle, spec_of, strategies};
use hopweave::compiler::{Compiled, Options};
use hopweave::runtime::Output;
use hopweave::tiles::guard::GuardedBuffer;
use ndarray::{Array4, ArrayView4, ShapeBuilder, s};

const PATTERNS: [&str; 6] = [
    "full",
    "causal",
    "{window: {radius: 20}}",
    // Gathered lists with the last key, and dense rows of the last query.
    "{any: [{window: {radius: 5}}, {global: {tokens: {random: {count: 9, seed: 3}}}}, {global: {tokens: {last: 1}}}]}",
    "{any: [{global: {tokens: {every: 5}, axis: keys}}, {sink: 3}, {global: {tokens: {last: 2}, axis: keys}}]}",
    // Scattered edges.
    "{random: {keys_per_query: 4, seed: 7}}",
];

fn run(tensors: &Tensors, compiled: &Compiled, place: Place) -> Output {
    forward(compiled, [&tensors.q, &tensors.k, &tensors.v], place)
}

fn guarded(lengths: &[usize], widths: &[(usize, usize)]) {
    for (i, pattern) in PATTERNS.iter().enumerate() {
        for diffusion in ["{hops: 1}", "{hops: 1, alpha: 0.5}", "{hops: 2, alpha: 0.1}"] {
            for &n in lengths {
                // Every pattern meets every width over the lengths and diffusions, not each with each.
                let (head_dim, value_dim) = widths[(i + n + diffusion.len()) % widths.len()];
                let spec = spec_of(pattern, head_dim, value_dim, diffusion);
                let (tensors, oracle) = oracle(&spec, 1, n, n as u64);
                for isa in families() {
                    for strategy in strategies(&spec, n) {
                        let compiled = compile(&spec, n, &options(isa, Some(strategy)));
                        for place in Place::ALL {
                            let what = || {
                                format!("{pattern} {diffusion} n {n} {head_dim} {value_dim} {isa} {strategy} {place:?}")
                            };
                            oracle.check(&run(&tensors, &compiled, place), &what);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn tensors_at_guard_pages() {
    guarded(&[1, 2, 15, 17, 63, 65, 130, 201], &[(1, 1), (3, 5), (17, 15), (33, 31), (7, 65), (64, 64), (100, 9)]);
}

#[test]
fn tensors_at_guard_pages_on_two_threads() {
    let spec = spec_of(PATTERNS[3], 17, 19, "{hops: 2, alpha: 0.1}");
    let (tensors, oracle) = oracle(&spec, 1, 201, 1);
    for isa in families() {
        let compiled = compile(&spec, 201, &Options { threads: 2, ..options(isa, None) });
        for place in Place::ALL {
            oracle.check(&run(&tensors, &compiled, place), &|| format!("{isa} {place:?}"));
        }
    }
}

#[test]
fn rows_with_gaps_that_end_at_guard_pages() {
    // The last row has no gap behind it: its last float is the last that may be read.
    for pattern in PATTERNS {
        let spec = spec_of(pattern, 5, 3, "{hops: 1}");
        let n = 67;
        let (tensors, oracle) = oracle(&spec, 1, n, 2);
        let spread = |tensor: &Array4<f32>| {
            let (_, h, n, width) = tensor.dim();
            let stride = width + 4;
            let mut wide = Array4::from_elem((1, h, n, stride), f32::NAN);
            wide.slice_mut(s![.., .., .., ..width]).assign(tensor);
            GuardedBuffer::new(&wide.as_slice().expect("a contiguous tensor")[..h * n * stride - 4])
        };
        let buffers = [&tensors.q, &tensors.k, &tensors.v].map(spread);
        let view = |i: usize, width: usize| {
            let stride = width + 4;
            let shape = (1, 2, n, width).strides((2 * n * stride, n * stride, stride, 1));
            ArrayView4::from_shape(shape, &buffers[i]).expect("a view")
        };
        for isa in families() {
            for strategy in strategies(&spec, n) {
                let compiled = compile(&spec, n, &options(isa, Some(strategy)));
                let found = compiled.kernel.forward(view(0, 5), view(1, 5), view(2, 3)).expect("a result");
                oracle.check(&found, &|| format!("{pattern} {isa} {strategy}"));
            }
        }
    }
}

//! The library in one page: a spec, the kernel compiled for one length, a call, and what to ask of both.
//!
//! ```text
//! cargo run --release --example forward
//! ```

use hopweave::compiler::{self, Options};
use hopweave::spec;
use ndarray::Array4;

const SPEC: &str = "\
name: two-hops
description: A window of 32 on each side and 4 global tokens, diffused over two hops
heads: 2
head_dim: 64
pattern:
  any:
    - window: {radius: 32}
    - global: {tokens: {first: 4}}
diffusion: {hops: 2, alpha: 0.1}
";

fn main() -> hopweave::Result<()> {
    let n = 1000;
    // The second argument is the file's name in error messages.
    let spec = spec::parse(SPEC, "two-hops.yaml")?;
    let compiled = compiler::compile(&spec, n, n, &Options::default())?;
    for (step, time) in &compiled.timings {
        println!("{step:>10} {:8.3} ms", time.as_secs_f64() * 1e3);
    }

    // [batch, heads, length, width]; any strides will do as long as the last one is 1.
    let tensor = |seed: f32| {
        Array4::from_shape_fn((1, spec.heads, n, spec.head_dim), |(_, h, i, x)| {
            (seed + h as f32 + 0.37 * i as f32 + 1.91 * x as f32).sin()
        })
    };
    let (q, k, v) = (tensor(0.0), tensor(1.0), tensor(2.0));
    let output = compiled.kernel.forward(q.view(), k.view(), v.view())?;

    let plan = compiled.kernel.plan();
    println!("{} tiles, strategy {}: {}", plan.isa, plan.strategy, plan.reasons.join("; "));
    println!("output {:?}, its first numbers {:.4?}", output.out.shape(), &output.out.as_slice().unwrap_or(&[])[..4]);
    println!("log-sum-exp of query 0 in head 0: {:.4}", output.lse[[0, 0, 0]]);

    // A constant V stays constant under any number of hops, since rows of A sum to 1.
    let ones = Array4::ones(v.raw_dim());
    let kept = compiled.kernel.forward(q.view(), k.view(), ones.view())?;
    let farthest = kept.out.iter().map(|x| (x - 1.0_f32).abs()).fold(0.0, f32::max);
    println!("largest distance from 1 where V is 1: {farthest:.1e}");
    Ok(())
}

//! Gradients in one page: a training step of two hops, and a look at whether it is right.
//!
//! ```text
//! cargo run --release --example backward
//! ```

use hopweave::compiler::{self, Options};
use hopweave::runtime::{Saved, Step};
use hopweave::spec;
use ndarray::Array4;

const SPEC: &str = "\
name: two-hops
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
    let spec = spec::parse(SPEC, "two-hops.yaml")?;
    let kernel = compiler::compile(&spec, n, n, &Options::default())?.kernel;
    // [batch, heads, length, width]; any strides will do as long as the last one is 1.
    let tensor = |seed: f32| {
        Array4::from_shape_fn((1, spec.heads, n, spec.head_dim), |(_, h, i, x)| {
            (seed + h as f32 + 0.37 * i as f32 + 1.91 * x as f32).sin()
        })
    };
    let (q, k, v) = (tensor(0.0), tensor(1.0), tensor(2.0));

    // The loss is half the sum of squares of the output, so that its gradient is the output.
    let output = kernel.forward(q.view(), k.view(), v.view())?;
    let loss = |out: &Array4<f32>| 0.5 * out.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    println!("loss {:.4}", loss(&output.out));

    // The kernel for training is compiled at the first call. It takes what the forward call gave; `kernel.backward(q, k, v,
    // grad)` does without.
    let saved = Saved { out: output.out.view(), lse: output.lse.view() };
    let training = kernel.training()?;
    let gradients =
        training.backward(q.view(), k.view(), v.view(), output.out.view(), Some(saved), &Step::default())?;
    println!("dq {:?}, dk {:?}, dv {:?}", gradients.q.shape(), gradients.k.shape(), gradients.v.shape());

    // A small step against the gradient takes as much off the loss as the gradient's length says.
    let step = 1e-3_f32;
    let nearer = |x: &Array4<f32>, grad: &Array4<f32>| x - &(grad * step);
    let (q, k, v) = (nearer(&q, &gradients.q), nearer(&k, &gradients.k), nearer(&v, &gradients.v));
    let after = kernel.forward(q.view(), k.view(), v.view())?;
    let squares = |grad: &Array4<f32>| grad.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    let expected = f64::from(step) * (squares(&gradients.q) + squares(&gradients.k) + squares(&gradients.v));
    println!("the loss fell by {:.6}, the gradient says {expected:.6}", loss(&output.out) - loss(&after.out));
    Ok(())
}

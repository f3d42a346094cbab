//! One small case worked out on paper, on every tile family of this machine; README.md shows it too.

use hopweave::compiler::{self, Options};
use hopweave::interpreter;
use hopweave::passes::Strategy;
use hopweave::spec;
use hopweave::target::Isa;
use ndarray::Array4;

/// Each of 6 tokens sees its neighbors and token 0; two hops, half of V restarts in each.
const SPEC: &str = "\
name: six
head_dim: 2
pattern:
  any:
    - window: {radius: 1}
    - global: {tokens: [0], axis: keys}
diffusion: {hops: 2, alpha: 0.5}
";

/// q and k are 0, so every allowed key weighs the same; V is 0, 1, .. 5.
///
/// ```text
/// A V   = 1/2, 1, 3/2, 9/4, 3, 3                    (0+1)/2, (0+1+2)/3, (0+1+2+3)/4, (0+2+3+4)/4, ..
/// Z_1   = 1/4, 1, 7/4, 21/8, 7/2, 4                 half A V, half V
/// A Z_1 = 5/8, 1, 45/32, 65/32, 83/32, 31/12
/// Z_2   = 5/16, 1, 109/64, 161/64, 211/64, 91/24    half A Z_1, half V
/// ```
const EXPECTED: [f64; 6] = [5.0 / 16.0, 1.0, 109.0 / 64.0, 161.0 / 64.0, 211.0 / 64.0, 91.0 / 24.0];

#[test]
fn six_tokens_and_two_hops_are_as_on_paper() {
    let spec = spec::parse(SPEC, "six.yaml").unwrap();
    let zeros = Array4::<f32>::zeros((1, 1, 6, 2));
    let v = Array4::from_shape_fn((1, 1, 6, 2), |(_, _, i, _)| i as f32);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        for strategy in [Strategy::RESIDENT, Strategy::RECOMPUTE, Strategy::WAVEFRONT, Strategy::TRIANGULAR] {
            let options = Options { isa, strategy: Some(strategy), ..Options::reproducible() };
            let kernel = compiler::compile(&spec, 6, 6, &options).unwrap().kernel;
            assert_eq!(kernel.plan().strategy, strategy);
            let output = kernel.forward(zeros.view(), zeros.view(), v.view()).unwrap();
            for (i, expected) in EXPECTED.into_iter().enumerate() {
                for x in 0..2 {
                    let found = f64::from(output.out[[0, 0, i, x]]);
                    assert!((found - expected).abs() < 1e-6, "{isa}, token {i}: {found}, on paper {expected}");
                }
            }
            // Scores are 0: the log-sum-exp is the logarithm of the number of keys.
            for (i, keys) in [2.0_f32, 3.0, 4.0, 4.0, 4.0, 3.0].into_iter().enumerate() {
                assert!((output.lse[[0, 0, i]] - keys.ln()).abs() < 1e-6, "{isa}, token {i}");
            }
        }
    }
    let pattern = hopweave::pattern::resolve(&spec, 6, 6).unwrap();
    let oracle = interpreter::run(&pattern, &spec, zeros.view(), zeros.view(), v.view()).unwrap();
    for (i, expected) in EXPECTED.into_iter().enumerate() {
        assert!((oracle.out[[0, 0, i, 0]] - expected).abs() < 1e-14, "interpreter, token {i}");
    }
}

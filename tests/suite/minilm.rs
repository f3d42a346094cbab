//! The tensors of a trained encoder in `examples/`, against outputs that another library computed in f64.

use std::path::{Path, PathBuf};

use crate::common::{Oracle, Tensors, compile, families, options, spec_with, strategies};
use hopweave::{npy, pattern};
use ndarray::{Array4, Ix4};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/minilm-layer3")
}

fn tensor(name: &str) -> Array4<f32> {
    npy::read::<f32, Ix4>(&folder().join(format!("{name}.npy"))).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_trained_encoder_conforms() {
    let tensors = Tensors { q: tensor("q"), k: tensor("k"), v: tensor("v") };
    let n = tensors.q.dim().2;
    assert_eq!(tensors.q.dim(), (1, 12, 512, 32));
    for name in ["full", "window32", "window32-hops5"] {
        let text = std::fs::read_to_string(folder().join(format!("{name}.yaml"))).expect("a spec");
        let spec = spec_with(&text, &[]);
        let expected = tensor(name);
        let pattern = pattern::resolve(&spec, n, n).unwrap_or_else(|error| panic!("{error}"));
        let oracle = Oracle::new(&pattern, &spec, &tensors);
        // The expected outputs were rounded to f32 when they were stored: half a unit in the last place.
        let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let rounding = f64::from(largest * f32::EPSILON / 2.0);
        let distance = |found: f64, expected: f32| (found - f64::from(expected)).abs();
        assert!(
            oracle.out.iter().zip(&expected).all(|(&x, &y)| distance(x, y) <= rounding),
            "{name}: the interpreter and the other library disagree"
        );
        for isa in families() {
            for strategy in strategies(&spec, n) {
                let found = tensors.run(&compile(&spec, n, &options(isa, Some(strategy))));
                oracle.check(&found, &|| format!("{name} {isa} {strategy}"));
                let worst = found.out.iter().zip(&expected).map(|(&x, &y)| distance(f64::from(x), y));
                let worst = worst.fold(0.0, f64::max);
                assert!(worst <= oracle.out_bound + rounding, "{name} {isa} {strategy}: {worst}");
            }
        }
    }
}

//! Factors of hops that come with the call, as users of the command meet them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ndarray::{Array1, Array2, Array4};
use ndarray_npy::{read_npy, write_npy};
use tempfile::TempDir;

/// A folder with tensors of 2 heads of 4 and 70 tokens.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        for (seed, name) in ["q.npy", "k.npy", "v.npy"].into_iter().enumerate() {
            let wave = |(_, h, i, x)| ((seed * 5 + h * 13 + i * 31 + x * 17) as f32 * 0.7).sin();
            write_npy(folder.path(name), &Array4::from_shape_fn((1, 2, 70, 4), wave)).expect("a file");
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the command in the folder.
    fn hopweave(&self, args: &[&str]) -> Output {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-cache");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hopweave"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null()).env("HOPWEAVE_CACHE_DIR", cache);
        command.output().expect("the command starts")
    }

    fn spec(&self, diffusion: &str) {
        let text = format!("name: x\nheads: 2\nhead_dim: 4\npattern: causal\ndiffusion: {diffusion}\n");
        std::fs::write(self.path("spec.yaml"), text).expect("a file");
    }

    fn run(&self, more: &[&str]) -> Output {
        let args = ["run", "spec.yaml", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "out.npy"];
        self.hopweave(&[&args[..], more].concat())
    }

    /// The output of a run that must succeed.
    fn out(&self, more: &[&str]) -> Array4<f32> {
        let output = self.run(more);
        assert!(output.status.success(), "{}", stderr(&output));
        read_npy(self.path("out.npy")).expect("an output")
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn run_takes_alpha_and_coefficients_from_files() {
    let folder = Folder::new();
    write_npy(folder.path("a.npy"), &Array1::from_vec(vec![0.25_f32, 0.25])).expect("a file");
    write_npy(folder.path("one.npy"), &Array1::from_vec(vec![0.25_f32])).expect("a file");
    let theta = Array2::from_shape_vec((2, 3), vec![0.5_f32, 0.25, 2.0, 0.5, 0.25, 2.0]).expect("a shape");
    write_npy(folder.path("theta.npy"), &theta).expect("a file");
    for (given, input, fixed) in [
        ("{hops: 3, alpha: {input: a}}", "a=a.npy", "{hops: 3, alpha: 0.25}"),
        ("{hops: 3, alpha: {input: a}}", "a=one.npy", "{hops: 3, alpha: 0.25}"),
        ("{coefficients: {input: theta}, hops: 2}", "theta=theta.npy", "{coefficients: [0.5, 0.25, 2]}"),
    ] {
        for engine in ["jit", "interpreter"] {
            folder.spec(fixed);
            let expected = folder.out(&["--engine", engine]);
            folder.spec(given);
            let found = folder.out(&["--engine", engine, "--input", input]);
            let error = (&found - &expected).iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            assert!(error < 2e-6, "{given} by {engine}: {error}");
        }
    }
}

#[test]
fn files_that_do_not_fit_the_hops_are_refused_with_their_place() {
    let folder = Folder::new();
    write_npy(folder.path("three.npy"), &Array1::from_elem(3, 0.1_f32)).expect("a file");
    write_npy(folder.path("large.npy"), &Array1::from_vec(vec![0.1_f32, 1.5])).expect("a file");
    write_npy(folder.path("theta.npy"), &Array2::from_elem((2, 2), 0.1_f32)).expect("a file");
    let alpha = "{hops: 3, alpha: {input: a}}";
    for (diffusion, inputs, expected) in [
        (alpha, &[][..], &["spec.yaml:5:", "no tensor is given for input `a`", "`--input a=FILE.npy`"][..]),
        (
            alpha,
            &["--input", "a=three.npy"],
            &["spec.yaml:5:", "three.npy holds [3] for input `a`", "[2] or [1] (heads)"],
        ),
        (alpha, &["--input", "a=theta.npy"], &["theta.npy", "heads"]),
        (alpha, &["--input", "a=large.npy"], &["input `a`", "it is 1.5 for head 1; expected 0 to 1"]),
        (alpha, &["--input", "b=large.npy"], &["is given as input `b`; expected one of `a`"]),
        (
            "{coefficients: {input: theta}, hops: 2}",
            &["--input", "theta=theta.npy"],
            &["spec.yaml:5:", "holds [2, 2] for input `theta`", "[2, 3] (heads, hops + 1)"],
        ),
        ("{hops: 3}", &["--input", "a=three.npy"], &["the spec's score mods and hops read no inputs"]),
    ] {
        folder.spec(diffusion);
        let output = folder.run(inputs);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(expected.iter().all(|part| text.contains(part)), "{diffusion} {inputs:?}: {text}");
    }
    folder.spec("{coefficients: [0.5, 0.5]}");
    let output = folder.hopweave(&["check", "spec.yaml", "--set", "diffusion.hops=3"]);
    let text = stderr(&output);
    assert!(output.status.code() == Some(1) && text.contains("`hops` does not go with `coefficients`"), "{text}");
}

#[test]
fn bench_makes_up_what_hops_take_and_says_so() {
    let folder = Folder::new();
    for (diffusion, said) in [
        ("{hops: 3, alpha: {input: a}}", "the input `a` of the hops is made up: 0.1 for every head"),
        ("{coefficients: {input: theta}, hops: 3}", "the input `theta` of the hops is made up: 0.25 for every head"),
    ] {
        folder.spec(diffusion);
        let output = folder.hopweave(&["bench", "spec.yaml", "-n", "70", "--time", "0", "--baseline", "unfused"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
}

#[test]
fn explain_looks_at_the_numbers_that_are_given() {
    let folder = Folder::new();
    let explain = |more: &[&str]| {
        let output = folder.hopweave(&[&["explain", "spec.yaml", "-n", "70", "--json"], more].concat());
        let json = || serde_json::from_str::<serde_json::Value>(&stdout(&output)).expect("JSON");
        if output.status.success() { Ok(json()) } else { Err(stderr(&output)) }
    };
    write_npy(folder.path("a.npy"), &Array1::from_vec(vec![0.4_f32, 0.9])).expect("a file");
    let gap = |value: serde_json::Value| value["diffused_gap"].as_f64().expect("a gap");
    folder.spec("{hops: 3, alpha: 0.4}");
    let expected = gap(explain(&[]).expect("an explanation"));
    folder.spec("{hops: 3, alpha: {input: a}}");
    for more in [&["--alpha", "0.4"], &["--alpha", "a.npy"]] {
        let found = explain(more).expect("an explanation");
        assert!((gap(found.clone()) - expected).abs() < 1e-7);
        let radius = found["one_hop_of_equal_cost"]["radius"].as_u64();
        assert!(radius.is_some_and(|radius| radius < 70), "{}", found["one_hop_of_equal_cost"]);
    }
    let refused = explain(&["--alpha", "1.5"]).expect_err("a refusal");
    assert!(refused.contains("it is 1.5 for head 0; expected 0 to 1"), "{refused}");
    let refused = explain(&["--theta", "a.npy"]).expect_err("a refusal");
    assert!(refused.contains("--theta for `x`, whose hops take no such numbers"), "{refused}");
    // A pattern of its own for each hop, of two heads.
    folder.spec(
        "{hops: [{}, {pattern: {per_head: [{heads: [0], pattern: full}, {heads: [1], pattern: causal}]}}], alpha: 0.1}",
    );
    let found = explain(&[]).expect("an explanation");
    assert_eq!(found["receptive_field"]["hops"].as_array().map(Vec::len), Some(2), "{}", found["receptive_field"]);
    assert!(found["full_attention_distance"]["value"].as_f64().is_some_and(|value| value > 0.0));
    let text = "name: x\nhead_dim: 4\npattern: {edges: {pairs: [[0, 1], [1, 0]]}}\ndiffusion: {hops: 3, alpha: 0.1}\n";
    std::fs::write(folder.path("spec.yaml"), text).expect("a file");
    let found = explain(&[]).expect("an explanation");
    assert_eq!(found["one_hop_of_equal_cost"]["note"], "the neighbors come from a graph");
}

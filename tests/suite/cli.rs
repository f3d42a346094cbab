//! The command as its users meet it: exit status, messages, files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ndarray::{Array1, Array2, Array3, Array4, s};
use ndarray_npy::{read_npy, write_npy};
use tempfile::TempDir;

use crate::common::names_in;

const WINDOW: &str = "name: window\nheads: 2\nhead_dim: 4\npattern: {window: {radius: 3}}\n";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hopweave"));
    // What the machine's user has measured and tuned is no business of tests.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-cache");
    command.args(args).stdin(Stdio::null()).env("HOPWEAVE_CACHE_DIR", cache);
    command
}

fn hopweave(args: &[&str]) -> Output {
    command(args).output().expect("the command starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("the command is not killed by a signal")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// A folder with a spec and tensors that fit it: 2 heads of 4, 20 tokens, batch 3.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = Self { dir: tempfile::tempdir().expect("a folder") };
        folder.write("spec.yaml", WINDOW.as_bytes());
        for (seed, name) in ["q.npy", "k.npy", "v.npy"].into_iter().enumerate() {
            folder.tensor(name, (3, 2, 20, 4), seed);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("a file");
    }

    fn tensor(&self, name: &str, shape: (usize, usize, usize, usize), seed: usize) {
        let wave = |(b, h, i, x)| ((seed * 5 + b * 7 + h * 13 + i * 31 + x * 17) as f32 * 0.7).sin();
        write_npy(self.path(name), &Array4::from_shape_fn(shape, wave)).expect("a file");
    }

    /// `run` on the tensors, with more arguments.
    fn run(&self, more: &[&str]) -> Output {
        let (spec, q, k, v, out) =
            (self.text("spec.yaml"), self.text("q.npy"), self.text("k.npy"), self.text("v.npy"), self.text("out.npy"));
        let mut args = vec!["run", &spec, "--q", &q, "--k", &k, "--v", &v, "-o", &out];
        args.extend(more);
        hopweave(&args)
    }

    fn names(&self) -> Vec<String> {
        names_in(self.dir.path())
    }
}

fn refused(output: &Output, message: &str) {
    assert_eq!(code(output), 1, "{}", stderr(output));
    assert!(stderr(output).starts_with("error: "), "{}", stderr(output));
    assert!(stderr(output).contains(message), "expected {message:?} in {}", stderr(output));
}

#[test]
fn a_wrong_command_line_is_status_two() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["check"],
        &["emit", "a.yaml", "-n", "4", "--stage", "soup"],
        &["emit", "a.yaml", "--stage", "plan"],
        &["explain", "a.yaml", "-n", "4", "--kv-len", "4"],
        &["explain", "a.yaml", "-n", "minus one"],
        &["check", "a.yaml", "--threads", "0"],
        &["check", "a.yaml", "--isa", "mmx"],
        &["check", "a.yaml", "--memory-limit", "lots"],
        &["check", "a.yaml", "--set", "heads"],
        &["check", "a.yaml", "--limit", "edges"],
        &["check", "a.yaml", "--limit", "edge=3"],
        &["check", "a.yaml", "--limit", "time=10"],
        &["check", "a.yaml", "--limit", "depth=1000"],
        &["bench", "a.yaml"],
        &["bench", "a.yaml", "-n", "8", "--time", "-1"],
    ] {
        let output = hopweave(args);
        assert_eq!(code(&output), 2, "{args:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn check_goes_through_all_specs() {
    let folder = Folder::new();
    folder.write("bad.yaml", b"name: bad\nhead_dim: 4\nheds: 2\npattern: full\n");
    let (good, bad, missing) = (folder.text("spec.yaml"), folder.text("bad.yaml"), folder.text("missing.yaml"));
    let output = hopweave(&["check", &bad, &missing, &good]);
    refused(&output, &format!("{bad}:3:1: "));
    assert!(stderr(&output).contains("`heads`"), "the nearest key is named: {}", stderr(&output));
    assert!(stderr(&output).contains(&format!("error: {missing}: cannot be read")));
    assert_eq!(stdout(&output), format!("ok {good}: window, 2 heads of 4, 1 hop\n"));
    assert_eq!(code(&hopweave(&["check", &good])), 0);
}

#[test]
fn specs_come_from_standard_input() {
    let piped = |text: &[u8], args: &[&str]| {
        let mut child = command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        child.stdin.take().expect("a pipe").write_all(text).expect("the command reads");
        child.wait_with_output().expect("the command ends")
    };
    let output = piped(WINDOW.as_bytes(), &["check", "-"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "ok <stdin>: window, 2 heads of 4, 1 hop\n"));
    let output =
        piped(WINDOW.as_bytes(), &["check", "-", "--set", "diffusion={hops: 3, alpha: 0.1}", "--set", "heads=1"]);
    assert_eq!(stdout(&output), "ok <stdin>: window, 1 head of 4, 3 hops\n", "{}", stderr(&output));
    refused(&piped(b"name: [", &["check", "-"]), "<stdin>:");
    refused(&piped(b"", &["check", "-"]), "<stdin>:1:1: ");
    refused(&piped(b"\xff\xfe", &["check", "-"]), "is not UTF-8 text");
}

#[test]
fn run_writes_what_the_interpreter_writes() {
    let folder = Folder::new();
    let (lse, other, other_lse) = (folder.text("lse.npy"), folder.path("other.npy"), folder.text("other-lse.npy"));
    let output = folder.run(&["--lse", &lse]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(output.stdout.is_empty() && stderr(&output).contains("[3, 2, 20, 4]"), "{}", stderr(&output));
    fs::rename(folder.path("out.npy"), &other).expect("the output is there");
    fs::rename(&lse, &other_lse).expect("the log-sum-exp is there");
    assert_eq!(code(&folder.run(&["--engine", "interpreter", "--lse", &lse])), 0);
    let (a, b): (Array4<f32>, Array4<f32>) = (read_npy(other).unwrap(), read_npy(folder.path("out.npy")).unwrap());
    assert_eq!(a.dim(), (3, 2, 20, 4));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
    let (a, b): (Array3<f32>, Array3<f32>) = (read_npy(other_lse).unwrap(), read_npy(lse).unwrap());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
    assert_eq!(
        folder.names(),
        ["k.npy", "lse.npy", "other-lse.npy", "other.npy", "out.npy", "q.npy", "spec.yaml", "v.npy"]
    );
}

#[test]
fn empty_problems_give_empty_results() {
    let folder = Folder::new();
    for shape in [(0, 2, 20, 4), (3, 2, 0, 4)] {
        for name in ["q.npy", "k.npy", "v.npy"] {
            folder.tensor(name, shape, 0);
        }
        for engine in ["jit", "interpreter"] {
            let output = folder.run(&["--engine", engine]);
            assert_eq!(code(&output), 0, "{shape:?} {engine}: {}", stderr(&output));
            let out: Array4<f32> = read_npy(folder.path("out.npy")).unwrap();
            assert_eq!(out.dim(), shape);
        }
    }
}

#[test]
fn bad_tensors_are_refused_and_nothing_is_written() {
    let folder = Folder::new();
    folder.write("out.npy", b"precious");
    let before = folder.names();
    let attempt = |message: &str| {
        refused(&folder.run(&[]), message);
        assert_eq!(fs::read(folder.path("out.npy")).unwrap(), b"precious");
        assert_eq!(folder.names(), before);
    };
    folder.tensor("k.npy", (3, 2, 20, 5), 0);
    attempt("expected shape [batch 3, kv_heads 2, kv_len 20, head_dim 4], found [3, 2, 20, 5]");
    folder.tensor("k.npy", (3, 1, 20, 4), 0);
    attempt("expected shape [batch 3, kv_heads 2, kv_len 20, head_dim 4], found [3, 1, 20, 4]");
    folder.tensor("k.npy", (3, 2, 20, 4), 0);
    folder.tensor("v.npy", (3, 2, 19, 4), 0);
    attempt("expected shape [batch 3, kv_heads 2, kv_len 20, value_dim 4], found [3, 2, 19, 4]");
    write_npy(folder.path("v.npy"), &Array4::<f64>::zeros((3, 2, 20, 4))).unwrap();
    attempt("`<f8`; expected `<f4`");
    write_npy(folder.path("v.npy"), &Array3::<f32>::zeros((3, 2, 20))).unwrap();
    attempt("has 3 axes");
    write_npy(folder.path("v.npy"), &Array4::<f32>::zeros((4, 20, 2, 3)).reversed_axes()).unwrap();
    attempt("is in Fortran order");
    folder.write("v.npy", b"");
    attempt("is empty");
    folder.write("v.npy", b"not a tensor at all");
    attempt("is no .npy file");
    fs::remove_file(folder.path("v.npy")).unwrap();
    refused(&folder.run(&[]), "v.npy: cannot be read");
    fs::create_dir(folder.path("v.npy")).unwrap();
    refused(&folder.run(&[]), "is a folder");
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_any_work() {
    let folder = Folder::new();
    let nowhere = folder.text("nowhere/lse.npy");
    refused(&folder.run(&["--lse", &nowhere]), "there is no folder");
    let same = folder.text("out.npy");
    refused(&folder.run(&["--lse", &same]), "give two names");
    assert!(!folder.path("out.npy").exists());
}

#[test]
fn memory_limits_are_kept() {
    let folder = Folder::new();
    refused(&folder.run(&["--memory-limit", "1K"]), "the limit is 1.0 KiB; raise it with --memory-limit");
    assert!(!folder.path("out.npy").exists());
    let spec = folder.text("spec.yaml");
    refused(&hopweave(&["bench", &spec, "-n", "1000000", "--memory-limit", "1M"]), "the limit is 1.0 MiB");
}

#[test]
fn bench_measures_all_and_writes_json() {
    let folder = Folder::new();
    let (spec, json) = (folder.text("spec.yaml"), folder.text("bench.json"));
    let output = hopweave(&["bench", &spec, "-n", "1,65", "--batch", "2", "--time", "0.001", "--json", &json]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "no progress in a pipe: {}", stderr(&output));
    let value: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert!(value["machine"]["cpu"].is_string());
    let rows = value["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["implementation"].as_str().unwrap()).collect();
    assert_eq!(names, ["hopweave", "dense", "unfused", "hopweave", "dense", "unfused"]);
    for row in rows {
        assert_eq!((row["batch"].as_u64(), row["spec"].as_str()), (Some(2), Some("window")));
        assert!(row["max_abs_err"].as_f64().unwrap() < 1e-5, "{row}");
        assert!(row["median_ms"].as_f64() >= row["min_ms"].as_f64() && row["runs"].as_u64() >= Some(1));
        for key in ["max_ms", "gflops", "peak_fraction", "scratch_bytes"] {
            assert!(row[key].is_number(), "{key} in {row}");
        }
    }
    // 2 · nnz · (head_dim + value_dim) over 2 heads; window 3 over 65 tokens: 65 · 7 − 2 · (3 + 2 + 1) pairs.
    let (nnz, batch) = (2 * (65 * 7 - 12), 2);
    assert_eq!(rows[3]["nnz"].as_u64(), Some(nnz));
    let gflops = (batch * nnz * 2 * 8) as f64 / rows[3]["median_ms"].as_f64().unwrap() * 1e-6;
    assert!((rows[3]["gflops"].as_f64().unwrap() / gflops - 1.0).abs() < 1e-9);
    assert!(rows[0]["compile_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn bench_takes_tensors_and_skips_what_is_too_large() {
    let folder = Folder::new();
    let (spec, q, k, v) = (folder.text("spec.yaml"), folder.text("q.npy"), folder.text("k.npy"), folder.text("v.npy"));
    assert_eq!(code(&folder.run(&[])), 0);
    let expected = folder.text("out.npy");
    let tensors = ["--q", &q, "--k", &k, "--v", &v, "--expected", &expected, "--time", "0"];
    let output = hopweave(&[&["bench", &spec, "--baseline", "unfused"], &tensors[..]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("to expected") && !stdout(&output).contains("dense"), "{}", stdout(&output));
    refused(&hopweave(&["bench", &spec, "-n", "8", "--baseline", "torch"]), "known are dense, unfused and none");
    // 4096² scores do not fit, edge lists and the kernel do.
    let output = hopweave(&["bench", &spec, "-n", "4096", "--time", "0", "--memory-limit", "30M"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("dense was skipped: baseline dense needs "), "{}", stdout(&output));
    folder.tensor("out.npy", (3, 2, 20, 3), 0);
    refused(&hopweave(&[&["bench", &spec], &tensors[..]].concat()), "value_dim 4");
}

#[test]
fn explain_counts_the_pattern() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    let args = ["explain", &spec, "-n", "100", "--json", "--set", "diffusion={hops: 2, alpha: 0.1}"];
    let output = hopweave(&args);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let nnz = 2 * (700 - 12);
    assert_eq!(value["nnz"].as_u64(), Some(nnz));
    assert_eq!(value["flops"].as_u64(), Some(nnz * (2 * 4 + 2 * 2 * 4)));
    assert_eq!(value["density"].as_f64(), Some(nnz as f64 / 20_000.0));
    assert_eq!(value["empty_rows"].as_u64(), Some(0));
    let reach: Vec<f64> = value["receptive_field"]["hops"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hop| hop["minimum"].as_f64().unwrap())
        .collect();
    assert_eq!(reach, [0.04, 0.07]);
    assert!(value["spectral_gap"].is_number() && value["strategy"].is_string() && value["scratch_bytes"].is_number());
    for key in ["full", "partial", "scattered_edges"] {
        assert!(value["blocks"][key].is_number(), "{key}");
    }
    let human = hopweave(&["explain", &spec, "--q-len", "100", "--kv-len", "100"]);
    assert!(stdout(&human).contains("allowed pairs") && code(&human) == 0, "{}", stderr(&human));
}

#[test]
fn explain_says_what_moves_between_processes() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    let args = ["explain", &spec, "-n", "100", "--world", "2"];
    let output = hopweave(&[&args[..], &["--json"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let processes = &value["processes"];
    assert_eq!(processes["slices"], serde_json::json!([[0, 64], [64, 100]]));
    assert_eq!(processes["rounds"].as_u64(), Some(1));
    // Three rows each way; of all rows, the second process would receive the 64 of the first.
    let bytes = processes["bytes"].as_u64().unwrap();
    let all = processes["all_gather_bytes"].as_u64().unwrap();
    assert!(bytes > 0 && bytes * 64 == all * 3, "{bytes} of {all}");
    let human = hopweave(&args);
    assert!(stdout(&human).contains("2 processes, 100 tokens"), "{}", stdout(&human));
    refused(
        &hopweave(&["explain", &spec, "--q-len", "64", "--kv-len", "100", "--world", "2"]),
        "as many queries as keys",
    );
}

#[test]
fn emit_prints_every_stage() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    for stage in ["pattern", "mask", "schedule", "fused", "plan", "clif", "asm"] {
        let output = hopweave(&["emit", &spec, "-n", "100", "--stage", stage]);
        assert_eq!(code(&output), 0, "{stage}: {}", stderr(&output));
        assert!(stdout(&output).ends_with('\n') && stdout(&output).len() > 10, "{stage}");
    }
    let negative = hopweave(&["emit", &spec, "-n", "100", "--stage", "plan", "--without", "no-such-pass"]);
    refused(&negative, "no-such-pass");
}

#[test]
fn patterns_lists_every_node_with_its_example() {
    let output = hopweave(&["patterns"]);
    assert_eq!(code(&output), 0);
    for node in hopweave::pattern::NODES {
        assert!(stdout(&output).contains(&format!("\n  {}: {}\n", node.name, node.meaning)), "{}", node.name);
        assert!(stdout(&output).contains(node.example), "{}", node.name);
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child =
        command(&["patterns"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[test]
fn the_shipped_example_has_its_expected_outputs() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/minilm-layer3");
    let file = |name: &str| data.join(name).display().to_string();
    let folder = Folder::new();
    let out = folder.path("result.npy");
    let out_text = out.display().to_string();
    for name in ["full", "window32", "window32-hops5"] {
        let spec = file(&format!("{name}.yaml"));
        let (q, k, v) = (file("q.npy"), file("k.npy"), file("v.npy"));
        let output = hopweave(&["run", &spec, "--q", &q, "--k", &k, "--v", &v, "-o", &out_text]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let (found, want): (Array4<f32>, Array4<f32>) =
            (read_npy(&out).unwrap(), read_npy(file(&format!("{name}.npy"))).unwrap());
        let error = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 5e-6, "{name}: {error}");
    }
}

/// The bytes of a `.npy` file of 16-bit elements.
fn npy16(descr: &str, shape: &str, words: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let header = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    words.into_iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes
}

#[test]
fn sixteen_bit_tensors_go_through_both_engines() {
    for (dtype, descr) in [("bf16", "<V2"), ("f16", "<f2")] {
        let narrow = |x: f32| match dtype {
            "bf16" => half::bf16::from_f32(x).to_bits(),
            _ => half::f16::from_f32(x).to_bits(),
        };
        let widen = |bits: u16| match dtype {
            "bf16" => half::bf16::from_bits(bits).to_f32(),
            _ => half::f16::from_bits(bits).to_f32(),
        };
        let folder = Folder::new();
        let set = format!("dtype={dtype}");
        // f32 files are refused, and say what to do.
        refused(&folder.run(&["--set", &set]), "q.npy: holds elements of type `<f4`; expected ");
        refused(&folder.run(&["--set", &set]), "or write `dtype: f32` in the spec");
        assert!(!folder.names().contains(&"out.npy".into()));
        for name in ["q.npy", "k.npy", "v.npy"] {
            let wide: Array4<f32> = read_npy(folder.path(name)).expect("a tensor");
            folder.write(name, &npy16(descr, "(3, 2, 20, 4)", wide.iter().map(|&x| narrow(x))));
        }
        // And these by a spec of f32.
        refused(&folder.run(&[]), &format!("or write `dtype: {dtype}` in the spec"));
        let mut outputs = Vec::new();
        for engine in ["jit", "interpreter"] {
            let lse = folder.text("lse.npy");
            let output = folder.run(&["--set", &set, "--engine", engine, "--lse", &lse]);
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            let bytes = fs::read(folder.path("out.npy")).expect("an output");
            assert_eq!(bytes.len(), npy16(descr, "(3, 2, 20, 4)", vec![0; 3 * 2 * 20 * 4]).len());
            let header = String::from_utf8_lossy(&bytes[..128]).into_owned();
            assert!(header.contains(&format!("'descr': '{descr}'")), "{header}");
            assert!(header.contains("'shape': (3, 2, 20, 4)"), "{header}");
            let out = bytes[128..].chunks_exact(2).map(|word| widen(u16::from_le_bytes([word[0], word[1]])));
            let lse: Array3<f32> = read_npy(folder.path("lse.npy")).expect("the log-sum-exp in f32");
            assert!(lse.iter().all(|x| x.is_finite()));
            outputs.push(out.collect::<Vec<f32>>());
        }
        // A number on the border of two roundings may fall either way.
        let spacing = if dtype == "bf16" { 1.0 / 256.0 } else { 1.0 / 2048.0 };
        for (jit, oracle) in outputs[0].iter().zip(&outputs[1]) {
            assert!((jit - oracle).abs() <= spacing * 2.0, "{dtype}: {jit} and {oracle}");
        }
        let same = outputs[0].iter().zip(&outputs[1]).filter(|(jit, oracle)| jit == oracle).count();
        assert!(same * 100 >= outputs[0].len() * 98, "{same} of {}", outputs[0].len());
    }
}

#[test]
fn bench_measures_sixteen_bits() {
    let folder = Folder::new();
    let (spec, json) = (folder.text("spec.yaml"), folder.text("out.json"));
    let args =
        ["bench", &spec, "-n", "70", "--set", "dtype=bf16", "--baseline", "unfused", "--time", "0.01", "--json", &json];
    let output = hopweave(&args);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("2 heads of 4 in bf16 (baselines in f32)"), "{}", stdout(&output));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&json).expect("a file")).expect("JSON");
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows[0]["dtype"], "bf16");
    // Half of the last place of numbers around 2, and not less than some rounding.
    let error = rows[0]["max_abs_err"].as_f64().expect("a number");
    assert!(error > 1e-4 && error < 0.01, "{error}");
    assert!(rows[1]["max_abs_err"].as_f64().expect("a number") < 1e-5);
}
const BIASED: &str = "name: biased\nheads: 2\nhead_dim: 4\ninputs: {rel: {shape: [heads, \"2*n - 1\"]}}\n\
                      pattern: {window: {radius: 3}}\nscore: {mods: [{bias: {input: rel, index: [h, \"q - k + n - 1\"]}}]}\n";

#[test]
fn inputs_of_score_mods_come_from_files() {
    let folder = Folder::new();
    folder.write("spec.yaml", BIASED.as_bytes());
    let rel = format!("rel={}", folder.text("rel.npy"));
    write_npy(folder.path("rel.npy"), &Array2::from_shape_fn((2, 39), |(h, x)| (h * 39 + x) as f32 * 0.1)).unwrap();
    let out = |engine: &str| -> Array4<f32> {
        let output = folder.run(&["--input", &rel, "--engine", engine]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        read_npy(folder.path("out.npy")).unwrap()
    };
    let (kernel, interpreter) = (out("jit"), out("interpreter"));
    assert!(kernel.iter().zip(&interpreter).all(|(x, y)| (x - y).abs() < 1e-5));
    let spec = folder.text("spec.yaml");
    let output = hopweave(&["bench", &spec, "-n", "65", "--time", "0.001"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("dense was skipped: baselines have no score mods"), "{}", stdout(&output));
    let output = hopweave(&["explain", &spec, "-n", "65"]);
    assert!(stdout(&output).contains("bias: 2 operations a pair"), "{}", stdout(&output));
}

#[test]
fn wrong_inputs_are_refused_with_their_line() {
    let folder = Folder::new();
    folder.write("spec.yaml", BIASED.as_bytes());
    let rel = format!("rel={}", folder.text("rel.npy"));
    let spec = folder.text("spec.yaml");
    for engine in ["jit", "interpreter"] {
        refused(&folder.run(&["--engine", engine]), &format!("{spec}:4:10: no tensor is given for input `rel`"));
    }
    refused(&folder.run(&["--input", &rel]), "rel.npy: cannot be read");
    write_npy(folder.path("rel.npy"), &Array2::<f32>::zeros((2, 40))).unwrap();
    refused(&folder.run(&["--input", &rel]), "holds [2, 40] for input `rel`");
    refused(&folder.run(&["--input", &rel]), "expected: [heads = 2, 2 * n - 1 = 39]");
    write_npy(folder.path("rel.npy"), &Array2::<f64>::zeros((2, 39))).unwrap();
    refused(&folder.run(&["--input", &rel]), "`<f8`; expected `<f4`");
    write_npy(folder.path("rel.npy"), &Array3::<f32>::zeros((2, 39, 1))).unwrap();
    refused(&folder.run(&["--input", &rel]), "has 3 axes");
    write_npy(folder.path("rel.npy"), &Array2::<f32>::zeros((39, 2)).reversed_axes()).unwrap();
    refused(&folder.run(&["--input", &rel]), "is in Fortran order");
    let other = rel.replace("rel=", "real=");
    refused(&folder.run(&["--input", &other]), "is given as input `real`; expected one of `rel`");
    write_npy(folder.path("rel.npy"), &Array2::<f32>::zeros((2, 39))).unwrap();
    refused(&folder.run(&["--input", &rel, "--input", &rel]), "is a second file for input `rel`");
    assert_eq!(code(&folder.run(&["--input", "rel"])), 2);
    folder.write("spec.yaml", WINDOW.as_bytes());
    refused(&folder.run(&["--input", &rel]), "the spec's score mods and hops read no inputs");
    assert!(!folder.path("out.npy").exists());
}

#[test]
fn patterns_lists_every_score_mod() {
    let text = stdout(&hopweave(&["patterns"]));
    for def in hopweave::spec::score::SCORE_MODS {
        assert!(text.contains(&format!("\n  {}: {}\n", def.name, def.meaning)), "{}", def.name);
        assert!(text.contains(def.example), "{}", def.name);
    }
}

#[test]
fn import_prints_a_spec_that_check_takes() {
    let folder = Folder::new();
    folder.write("ds.json", br#"{"sparse_attention": {"mode": "bigbird", "block": 16}}"#);
    let imported = hopweave(&["import", "deepspeed", &folder.text("ds.json"), "--heads", "4"]);
    assert_eq!(code(&imported), 0, "{}", stderr(&imported));
    assert!(stderr(&imported).contains("note: DeepSpeed draws its random blocks"), "{}", stderr(&imported));
    folder.write("imported.yaml", &imported.stdout);
    let checked = hopweave(&["check", &folder.text("imported.yaml")]);
    assert!(stdout(&checked).contains("deepspeed-bigbird, 4 heads of 64"), "{}", stderr(&checked));
    folder.write("ds.json", br#"{"sparse_attention": {"mode": "bigbrid"}}"#);
    refused(&hopweave(&["import", "deepspeed", &folder.text("ds.json")]), "unknown mode `bigbrid`");
    refused(&hopweave(&["import", "deepspeed", &folder.text("none.json")]), "cannot be read");
    assert_eq!(code(&hopweave(&["import", "tensorflow", "x"])), 2);
}

#[test]
fn specs_from_standard_input_name_files_with_leave_only() {
    let folder = Folder::new();
    write_npy(folder.path("edges.npy"), &ndarray::arr2(&[[3_i64, 1], [0, 0]])).expect("a file");
    let spec = format!("name: x\nhead_dim: 4\npattern: {{edges: {{file: {}}}}}\n", folder.text("edges.npy"));
    let emit = |more: &[&str]| {
        let mut args = vec!["emit", "-", "-n", "4", "--stage", "pattern"];
        args.extend(more);
        let mut child = command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        child.stdin.take().expect("a pipe").write_all(spec.as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    };
    refused(&emit(&[]), "a spec that is not a file cannot name one");
    let output = emit(&["--allow-files"]);
    assert!(stdout(&output).ends_with("edges: {pairs: [[0, 0], [3, 1]]}\n"), "{}", stderr(&output));
}

#[test]
fn lengths_that_differ_reach_the_mask() {
    let folder = Folder::new();
    let emit = |stage: &str, more: &[&str]| {
        let spec = folder.text("spec.yaml");
        let mut args = vec!["emit", &spec, "--q-len", "2", "--kv-len", "9", "--stage", stage];
        args.extend(more);
        let output = hopweave(&args);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stdout(&output)
    };
    assert!(emit("pattern", &[]).starts_with("pattern q_len=2 kv_len=9 heads=2\n"));
    assert!(emit("pattern", &["--set", "align=start"]).starts_with("pattern q_len=2 kv_len=9 heads=2 align=start\n"));
    assert!(emit("mask", &[]).starts_with("mask q_len 2 kv_len 9 "));
}

#[test]
fn padding_and_segments_come_from_files() {
    let folder = Folder::new();
    write_npy(folder.path("lengths.npy"), &Array1::from(vec![20_i64, 7, 0])).unwrap();
    write_npy(folder.path("short.npy"), &Array1::from(vec![20_i32, 21, 0])).unwrap();
    write_npy(folder.path("ids.npy"), &Array2::from_shape_fn((3, 20), |(b, k)| (k / (b + 3)) as i32)).unwrap();
    let [lengths, short, lse] = ["lengths.npy", "short.npy", "lse.npy"].map(|name| folder.text(name));
    let ids = format!("docs={}", folder.text("ids.npy"));
    let both = |more: &[&str]| {
        let outputs = ["jit", "interpreter"].map(|engine| {
            let output = folder.run(&[more, &["--engine", engine, "--lse", &lse][..]].concat());
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            let out: Array4<f32> = read_npy(folder.path("out.npy")).expect("an output");
            let lse: Array3<f32> = read_npy(folder.path("lse.npy")).expect("the log-sum-exp");
            (out, lse)
        });
        let [(out, lse), (exact, exact_lse)] = outputs;
        assert!(out.iter().zip(&exact).all(|(x, y)| (x - y).abs() < 1e-5), "{more:?}");
        assert!(lse.iter().zip(&exact_lse).all(|(x, y)| x == y || (x - y).abs() < 1e-5), "{more:?}");
        (out, lse)
    };
    let (all, _) = both(&[]);
    let (out, lse) = both(&["--key-lengths", &lengths]);
    assert_eq!(out.slice(s![0, .., .., ..]), all.slice(s![0, .., .., ..]));
    assert_ne!(out.slice(s![1, .., .., ..]), all.slice(s![1, .., .., ..]));
    assert!(out.slice(s![2, .., .., ..]).iter().all(|&x| x == 0.0));
    assert!(lse.slice(s![2, .., ..]).iter().all(|&x| x == f32::NEG_INFINITY));
    refused(&folder.run(&["--key-lengths", &short]), "key_lengths: a key length is 21; expected at most 20");
    refused(&folder.run(&["--key-lengths", &folder.text("q.npy")]), "holds elements of type `<f4`; expected integers");
    refused(&folder.run(&["--input", &ids]), "is given as input `docs`");

    let spec = WINDOW.split("pattern:").next().expect("a head").to_string()
        + "pattern: {all: [causal, {segments: {input: docs}}]}\n";
    folder.write("spec.yaml", spec.as_bytes());
    refused(&folder.run(&[]), "docs: segment ids are not given; expected `--input docs=FILE.npy`");
    both(&["--input", &ids]);
    both(&["--input", &ids, "--key-lengths", &lengths]);
    write_npy(folder.path("ids.npy"), &Array2::from_shape_fn((3, 20), |(_, k)| 20 - k as i32)).unwrap();
    refused(&folder.run(&["--input", &ids]), "docs: the segment id at 1 is 19, after 20");
}

#[test]
fn limits_are_kept_and_named() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    let softcap = "score: {mods: [{expr: \"s / (1 + abs(s))\"}]}\n";
    folder.write("mods.yaml", (WINDOW.to_owned() + softcap).as_bytes());
    let mods = folder.text("mods.yaml");
    let edges = "name: x\nhead_dim: 4\npattern: {edges: {file: edges.npy}}\n";
    folder.write("edges.yaml", edges.as_bytes());
    write_npy(folder.path("edges.npy"), &Array2::<i64>::zeros((100, 2))).expect("a file");
    let edges = folder.text("edges.yaml");
    folder.write("slow.yaml", b"name: x\nhead_dim: 4\npattern: {where: \"(q * q + k * k * k) % 7 == h\"}\n");
    let slow = folder.text("slow.yaml");
    folder.write("long.yaml", &b"# \n".repeat(400_000));
    let long = folder.text("long.yaml");
    for (args, message) in [
        (&["check", &long][..], "long.yaml: 1.1 MiB; at most 1.0 MiB, the limit `text`; `--limit text=... ` moves it"),
        (&["check", &spec, "--limit", "text=40"], "spec.yaml: 65 B; at most 40 B, the limit `text`"),
        (&["check", &edges, "--limit", "file=1k"], "edges.npy: 1.7 KiB\n"),
        (&["check", &edges, "--limit", "edges=99"], "the array has 100 pairs\n"),
        (&["explain", &spec, "-n", "65", "--limit", "length=64"], "the length: 65; at most 64, the limit `length`"),
        (&["emit", &slow, "-n", "65536", "--stage", "mask", "--limit", "time=0ms"], "compiling has taken too long: "),
        (&["explain", &spec, "-n", "64", "--limit", "code=64"], "the kernel's machine code is too long: "),
        (&["explain", &mods, "-n", "64", "--isa", "portable", "--limit", "code=64"], "at most 64 B, the limit `code`"),
    ] {
        refused(&hopweave(args), &message.replace("... `", "...`"));
    }
    for limit in ["text=80", "code=1M", "time=1h"] {
        assert_eq!(code(&hopweave(&["explain", &spec, "-n", "64", "--limit", limit])), 0, "{limit}");
    }
    // Mods are code as well.
    let enough = "code=16k";
    assert_eq!(code(&hopweave(&["explain", &mods, "-n", "64", "--limit", enough])), 0);
}

#[test]
fn several_errors_of_a_spec_are_reported_at_once() {
    let folder = Folder::new();
    folder.write("bad.yaml", b"name: x\nhead_dim: 0\npattern: {any: [casual, {sink: -1}]}\n");
    let output = hopweave(&["check", &folder.text("bad.yaml")]);
    let text = stderr(&output);
    let heads: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((code(&output), heads.len()), (1, 3), "{text}");
    assert!(heads[0].ends_with("bad.yaml:2:11: `head_dim` cannot be `0`"), "{text}");
    assert!(heads[2].ends_with("bad.yaml:3:32: `sink` is -1"), "{text}");
}

#[test]
fn shipped_patterns_go_by_their_names_and_lengths_by_thousands() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |args: &[&str]| command(args).current_dir(folder.path()).output().expect("the command starts");
    let text = |args: &[&str]| {
        let output = run(args);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stdout(&output)
    };
    let pattern = |name: &str, n: &str| text(&["emit", "--stage", "pattern", name, "-n", n]);
    assert_eq!(pattern("longformer", "4k"), pattern("longformer", "4096"));
    assert!(pattern("causal", "1M").contains("q_len=1048576 kv_len=1048576"));
    // A file of that name wins.
    std::fs::write(folder.path().join("causal"), "name: mine\nhead_dim: 4\npattern: {window: {radius: 3}}")
        .expect("a file");
    assert!(pattern("causal", "64").contains("window"));
    for (args, says) in [
        (["emit", "--stage", "pattern", "longformers", "-n", "64"], "no shipped pattern; those are alibi-causal, "),
        (["emit", "--stage", "pattern", "longformer", "-n", "4q"], "such as 4096, 4k (4096) or 1M (1048576)"),
        (["emit", "--stage", "pattern", "longformer", "-n", "99999999999999M"], "such as 4096"),
    ] {
        let output = run(&args);
        assert_ne!(code(&output), 0);
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}

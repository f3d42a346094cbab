//! `tune` and `machine` as their users meet them: what is kept, who uses it, and every way in which a cache can be bad.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hopweave::cache::Cache;
use hopweave::compiler::{self, Options, TuningSource};
use hopweave::dtype::Dtype;
use hopweave::passes::Strategy;
use hopweave::plan::{Choice, Tuning};
use hopweave::spec::{self, PatternSpec};
use hopweave::target::Isa;
use hopweave::tune::{Call, Callable, Search, search};
use hopweave::tuned::{Found, Problem};
use tempfile::TempDir;

const WINDOW: &str = "name: window\nheads: 2\nhead_dim: 4\npattern: {window: {radius: 3}}\n";

/// A folder with a spec, and a cache in it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::write(place.path("spec.yaml"), WINDOW).expect("a file");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hopweave"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("HOPWEAVE_CACHE_DIR", self.path("cache"));
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        shown(&self.command(args).output().expect("the command starts"))
    }

    fn tune(&self, more: &[&str]) -> (i32, String, String) {
        let args = ["tune", "spec.yaml", "-n", "100", "--budget", "0.05", "--threads", "1"];
        self.run(&[&args[..], more].concat())
    }

    fn bench(&self, more: &[&str]) -> (i32, String, String) {
        let args = ["bench", "spec.yaml", "-n", "100", "--threads", "1", "--time", "0", "--baseline", "none"];
        self.run(&[&args[..], more].concat())
    }

    /// The entry that `tune` has left.
    fn entry(&self) -> PathBuf {
        let entries = fs::read_dir(self.path("cache")).expect("the cache");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let mut tuned = paths.filter(|path| path.file_name().expect("a name").to_string_lossy().starts_with("tuned-"));
        let entry = tuned.next().expect("an entry");
        assert_eq!(tuned.next(), None, "one entry");
        entry
    }

    fn change_entry(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.entry()).expect("a text");
        assert!(text.contains(from), "{from} is not in {text}");
        fs::write(self.entry(), text.replace(from, to)).expect("a file");
    }
}

fn shown(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code().expect("no signal"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_tune_finds_is_used_and_named() {
    let place = Place::new();
    let (code, out, _) = place.bench(&[]);
    assert!(code == 0 && out.contains("chosen by the cost model"), "{out}");
    let (code, out, err) = place.tune(&["--explain"]);
    assert_eq!(code, 0, "{err}");
    let entry = place.entry().display().to_string();
    for part in ["window: n 100, 1 threads", "median ms", "the cost model's choice", "flash", &entry] {
        assert!(out.contains(part), "{part} is not in {out}");
    }
    let (_, out, err) = place.bench(&["--json", "rows.json"]);
    assert!(out.contains(&format!("tuned ({entry})")), "{out}");
    assert!(!err.contains("warning"), "{err}");
    let rows = fs::read_to_string(place.path("rows.json")).expect("rows");
    assert!(rows.contains(&format!("\"tuned_by\": {:?}", entry)), "{rows}");
    let (_, out, _) = place.run(&["explain", "spec.yaml", "-n", "100", "--threads", "1"]);
    assert!(out.contains(&entry), "{out}");
    // Everything else is left to the model.
    for more in [&["--no-tuning"][..], &["--set", "head_dim=5"], &["--isa", "portable"]] {
        let (code, out, _) = place.bench(more);
        let named = out.contains("tuned (");
        assert!(code == 0 && (!named || Isa::best() == Isa::Portable && more[0] == "--isa"), "{more:?}: {out}");
    }
    let (_, out, _) = place.bench(&["--strategy", "resident"]);
    assert!(!out.contains("tuned (") && !out.contains("chosen by"), "{out}");
    // Another name for the same pattern is the same pattern.
    let (_, out, _) = place.bench(&["--set", "name=other"]);
    assert!(out.contains("tuned ("), "{out}");
}

#[test]
fn entries_that_are_of_no_use_are_named_and_passed_over() {
    let place = Place::new();
    let (code, _, err) = place.tune(&[]);
    assert_eq!(code, 0, "{err}");
    let entry = place.entry();
    let good = fs::read_to_string(&entry).expect("a text");
    let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
    let cpu = format!("\"cpu\": {:?}", hopweave::machine::cpu_name());
    type Break<'a> = (&'a str, &'a str, &'a dyn Fn());
    let breaks: [Break<'_>; 6] = [
        ("half written", "no whole cache entry", &|| fs::write(&entry, &good[..good.len() / 2]).expect("a file")),
        ("empty", "no whole cache entry", &|| fs::write(&entry, "").expect("a file")),
        ("bytes", "cannot be read", &|| fs::write(&entry, b"\xff\xfe\x00").expect("a file")),
        ("another CPU", "is of the CPU `Abacus`", &|| place.change_entry(&cpu, "\"cpu\": \"Abacus\"")),
        ("another version", "is of version 0.0.7", &|| place.change_entry(&version, "\"version\": \"0.0.7\"")),
        ("a folder", "is a folder", &|| {
            fs::remove_file(&entry).expect("removing");
            fs::create_dir(&entry).expect("a folder");
        }),
    ];
    let tensors = place.folder.path();
    let q = ndarray::Array4::<f32>::ones((1, 2, 100, 4));
    for name in ["q.npy", "k.npy", "v.npy"] {
        ndarray_npy::write_npy(tensors.join(name), &q).expect("a file");
    }
    for (what, message, break_it) in breaks {
        break_it();
        let commands: [&[&str]; 3] = [
            &["bench", "spec.yaml", "-n", "100", "--time", "0", "--baseline", "none"],
            &["explain", "spec.yaml", "-n", "100"],
            &["run", "spec.yaml", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "out.npy"],
        ];
        for args in commands {
            let (code, _, err) = place.run(&[args, &["--threads", "1"]].concat());
            assert_eq!(code, 0, "{what}: {err}");
            let named = err.contains("warning: ") && err.contains(&entry.display().to_string());
            assert!(named && err.contains(message), "{what}, {args:?}: {err}");
            let (_, _, err) = place.run(&[args, &["--threads", "1", "--no-tuning"]].concat());
            assert!(!err.contains("warning"), "{what}: {err}");
        }
        let (code, _, err) = place.tune(&[]);
        if what == "a folder" {
            assert!(code == 1 && err.contains("error: ") && err.contains(&entry.display().to_string()), "{err}");
        } else {
            // Tuning again mends it.
            assert_eq!(code, 0, "{what}: {err}");
            let (_, out, err) = place.bench(&[]);
            assert!(out.contains("tuned (") && !err.contains("warning"), "{what}: {out}{err}");
        }
    }
}

#[test]
fn entries_that_ask_for_the_impossible_are_passed_over() {
    let place = Place::new();
    assert_eq!(place.tune(&[]).0, 0);
    place.change_entry("\"chunk_keys\": ", "\"chunk_keys\": 99");
    let (code, out, err) = place.bench(&[]);
    assert!(code == 0 && err.contains("sizes that no plan has") && out.contains("chosen by"), "{out}{err}");
    assert_eq!(place.tune(&[]).0, 0);
    // A strategy that this spec does not allow.
    fs::write(place.path("spec.yaml"), format!("{WINDOW}diffusion: {{hops: 3, alpha: 0.1}}\n")).expect("a file");
    fs::remove_file(place.entry()).expect("removing");
    assert_eq!(place.tune(&[]).0, 0);
    let text = fs::read_to_string(place.entry()).expect("a text");
    let entry: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let strategy = entry["choice"]["strategy"].as_str().expect("a strategy").to_owned();
    place.change_entry(&format!("\"strategy\": \"{strategy}\""), "\"strategy\": \"flash\"");
    let (code, out, err) = place.bench(&[]);
    assert!(code == 0 && err.contains("is passed over") && out.contains("chosen by"), "{out}{err}");
}

#[test]
fn caches_that_are_no_folder_or_may_not_be_written() {
    let place = Place::new();
    fs::write(place.path("cache"), "a file").expect("a file");
    let (code, _, err) = place.tune(&[]);
    assert!(code == 1 && err.contains("is no folder"), "{err}");
    let (code, out, err) = place.bench(&[]);
    assert!(code == 0 && out.contains("chosen by") && err.contains("is no folder"), "{out}{err}");
    let (code, out, err) = place.run(&["machine"]);
    assert!(code == 0 && out.contains("GB/s") && err.contains("is no folder"), "{out}{err}");
    let (code, _, err) = place.run(&["machine", "--measure"]);
    assert!(code == 1 && err.contains("is no folder"), "{err}");

    fs::remove_file(place.path("cache")).expect("removing");
    fs::create_dir(place.path("cache")).expect("a folder");
    let mut mode = fs::metadata(place.path("cache")).expect("a folder").permissions();
    mode.set_readonly(true);
    fs::set_permissions(place.path("cache"), mode).expect("permissions");
    if fs::write(place.path("cache/probe"), "").is_ok() {
        eprintln!("skipped: a cache that may not be written, since this user may write anywhere");
        return;
    }
    let (code, _, err) = place.tune(&[]);
    assert!(code == 1 && err.contains("cannot be written") && err.contains("HOPWEAVE_CACHE_DIR"), "{err}");
    let (code, out, _) = place.bench(&[]);
    assert!(code == 0 && out.contains("chosen by"), "{out}");
}

#[test]
fn two_who_tune_at_once_lose_nothing() {
    let place = Place::new();
    let start = |n: &str| {
        let mut command = place.command(&["tune", "spec.yaml", "-n", n, "--budget", "0.1", "--threads", "1"]);
        command.stdout(Stdio::null()).spawn().expect("the command starts")
    };
    let children = ["64", "65", "64"].map(start);
    for mut child in children {
        assert!(child.wait().expect("an end").success());
    }
    let cache = Cache::at(place.path("cache"));
    let spec = read(WINDOW);
    for n in [64, 65] {
        assert!(problem(&spec, n, Isa::best()).find(&cache).expect("an entry").is_some(), "{n}");
    }
}

#[test]
fn command_lines_that_ask_for_nothing_are_refused() {
    let place = Place::new();
    for (more, message) in [
        (&["--budget", "0"][..], "nothing can be measured in 0 seconds"),
        (&["--budget=-1"], "expected seconds"),
        (&["--budget", "soon"], "expected seconds"),
    ] {
        let (code, _, err) = place.run(&[&["tune", "spec.yaml", "-n", "100"][..], more].concat());
        assert!(code == 2 && err.contains(message), "{more:?}: {err}");
    }
    let (code, _, err) = place.tune(&["--strategy", "flash"]);
    assert!(code == 1 && err.contains("leave out --strategy"), "{err}");
    let (code, _, err) = place.run(&["tune", "spec.yaml"]);
    assert!(code == 2, "{err}");
    assert!(!place.path("cache").join("tuned").exists());
}

#[test]
fn strategies_are_measured_beside_what_is_predicted() {
    let place = Place::new();
    let args = ["bench", "spec.yaml", "-n", "64,100", "--hops", "1,3", "--all-strategies", "--time", "0"];
    let (code, out, err) = place.run(&[&args[..], &["--json", "rows.json"]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("predicted ms") && out.contains("4 cases:"), "{out}");
    let text = fs::read_to_string(place.path("rows.json")).expect("rows");
    let file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let rows = file["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4 * Strategy::ALL.len());
    for row in rows {
        let measured = row["median_ms"].as_f64();
        assert_eq!(row["predicted_ms"].as_f64().is_some(), measured.is_some(), "{row}");
        assert_eq!(row["skipped"].is_string(), measured.is_none(), "{row}");
        let close = row["max_abs_err"].as_f64().is_none_or(|error| error < 1e-4);
        assert!(close, "{row}");
    }
    for case in rows.chunks(Strategy::ALL.len()) {
        assert_eq!(case.iter().filter(|row| row["chosen"] == true).count(), 1);
    }
    let (code, out, _) = place.run(&[&args[..], &["--summary"]].concat());
    assert!(code == 0 && !out.contains("predicted ms") && out.contains("4 cases:"), "{out}");
}

#[test]
fn the_machine_is_measured_once() {
    let place = Place::new();
    let (code, text, err) = place.run(&["machine"]);
    assert!(code == 0 && text.contains("GF/s") && text.contains("level 2"), "{text}{err}");
    let (_, again, _) = place.run(&["machine"]);
    assert_eq!(text, again);
    let (code, json, _) = place.run(&["machine", "--measure", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let peak = &json["tiles"][Isa::best().name()]["fma_gflops"];
    assert!(code == 0 && peak.as_f64().is_some_and(|peak| peak > 0.0), "{json}");
    assert!(json["file"].as_str().is_some_and(|file| file.starts_with(&place.path("cache").display().to_string())));
}

fn read(text: &str) -> PatternSpec {
    spec::parse(text, "<text>").expect("a spec")
}

fn problem(spec: &PatternSpec, n: usize, isa: Isa) -> Problem<'_> {
    Problem { spec, q_len: n, kv_len: n, isa, threads: 1 }
}

#[test]
fn libraries_use_the_cache_that_they_are_given_and_only_that() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::at(folder.path().into());
    let spec = read("name: all\nhead_dim: 8\npattern: full\n");
    let tuning = Tuning { joint_keys: 128, chunk_keys: 64, unit_rows: 2 };
    let choice = Choice { strategy: Strategy::FLASH, store: Dtype::F32, tuning };
    let path = problem(&spec, 300, Isa::Portable)
        .keep(&cache, Found { choice, model: choice, median_ms: 1.0, model_ms: 1.0 })
        .expect("an entry");
    let options = Options { isa: Isa::Portable, threads: 1, ..Options::reproducible() };
    let compile = |tuning, n| {
        let options = Options { tuning, ..options.clone() };
        compiler::compile(&spec, n, n, &options).expect("a kernel")
    };
    let tuned = compile(TuningSource::Cache(cache.clone()), 300);
    assert_eq!((tuned.kernel.plan().choice(), tuned.tuned_by), (choice, Some(path)));
    assert_eq!(tuned.warnings, Vec::<String>::new());
    for (tuning, n) in [(TuningSource::Cache(cache), 301), (TuningSource::Nothing, 300)] {
        let plain = compile(tuning, n);
        assert_eq!((plain.kernel.plan().tuning, plain.tuned_by), (Tuning::default(), None));
    }
    // The plan's text has its sizes, and keeps them.
    let given = compile(TuningSource::Given(choice), 300);
    let text = given.kernel.plan().print();
    assert!(text.contains("joint_keys: 128"), "{text}");
    assert_eq!(hopweave::plan::parse(&text).expect("a plan"), **given.kernel.plan());
    let other = hopweave::plan::parse(&text.replace("joint_keys: 128", "joint_keys: 1")).expect("a plan");
    assert!(hopweave::plan::verify(other).is_err());
}

#[test]
fn what_does_not_fit_is_computed_again() {
    let spec = read("name: all\nhead_dim: 64\npattern: full\ndiffusion: {hops: 3, alpha: 0.1}\n");
    let compile = |memory_limit, strategy| {
        let options = Options { threads: 1, memory_limit, strategy, ..Options::reproducible() };
        compiler::compile(&spec, 2000, 2000, &options)
    };
    let chosen = |memory_limit| compile(memory_limit, None).map(|compiled| compiled.kernel.plan().strategy);
    assert_eq!(chosen(1 << 30).expect("a kernel"), Strategy::RESIDENT);
    assert_eq!(chosen(4 << 20).expect("a kernel"), Strategy::RECOMPUTE);
    let reasons = compile(4 << 20, None).expect("a kernel").kernel.plan().reasons.join("\n");
    assert!(reasons.contains("recompute: chosen, since scratch of the resident kernel needs"), "{reasons}");
    let refused = |strategy| compile(1 << 16, strategy).expect_err("no memory").to_string();
    assert!(refused(None).contains("resident"), "{}", refused(None));
    let asked = compile(4 << 20, Some(Strategy::RESIDENT)).expect_err("no memory").to_string();
    assert!(asked.contains("resident"), "{asked}");
}

/// Tensors that take no time to be called on.
struct Instantly;

impl Callable for Instantly {
    fn call<'k>(&'k self, _: &'k compiler::Compiled) -> Call<'k> {
        Box::new(|| Ok(()))
    }
}

#[test]
fn every_strategy_is_measured_or_refused_with_a_reason() {
    for (text, legal) in [
        ("name: w\nheads: 3\nhead_dim: 4\npattern: {window: {radius: 70}}\n", 4),
        ("name: w\nhead_dim: 4\npattern: causal\ndiffusion: {hops: 3, alpha: 0.1, store: bf16}\n", 7),
    ] {
        let spec = read(text);
        let options = Options { threads: 2, isa: Isa::Portable, ..Options::reproducible() };
        let findings = search(&Search {
            spec: &spec,
            q_len: 640,
            kv_len: 640,
            options: &options,
            budget: Duration::from_millis(20),
            batch: 1,
            tensors: &Instantly,
            progress: &|share, what| assert!((0.0..=1.0).contains(&share) && !what.is_empty()),
        })
        .expect("findings");
        let model = compiler::compile(&spec, 640, 640, &options).expect("a kernel").kernel.plan().choice();
        let candidates = &findings.candidates;
        assert_eq!(candidates[0].choice, model);
        assert!(candidates[0].median_ms.is_some() && findings.winner().median_ms.is_some());
        for (i, candidate) in candidates.iter().enumerate() {
            assert!(candidate.median_ms.is_some() || candidate.remark.is_some(), "{candidate:?}");
            assert!(candidates[..i].iter().all(|earlier| earlier.choice != candidate.choice), "{candidate:?}");
        }
        for &strategy in Strategy::ALL {
            assert!(candidates.iter().any(|candidate| candidate.choice.strategy == strategy), "{strategy}");
        }
        let stages = candidates.iter().filter(|candidate| candidate.choice.tuning == Tuning::default());
        let measured = stages.filter(|candidate| candidate.remark.is_none()).count();
        assert!(measured >= 1 && measured <= legal, "{candidates:#?}");
        let (winner, model_ms) = findings.times();
        assert!(winner >= 0.0 && model_ms >= 0.0);
    }
    let spec = read(WINDOW);
    let options = Options::reproducible();
    let refused = |options: &Options, budget| {
        let tensors = &Instantly;
        let progress: &dyn Fn(f64, &str) = &|_, _| {};
        search(&Search { spec: &spec, q_len: 64, kv_len: 64, options, budget, batch: 1, tensors, progress })
            .expect_err("a refusal")
            .to_string()
    };
    assert!(refused(&options, Duration::ZERO).contains("budget of 0"));
    let forced = Options { strategy: Some(Strategy::FLASH), ..options };
    assert!(refused(&forced, Duration::from_secs(1)).contains("leave out --strategy"));
}

#[test]
fn every_tuning_computes_the_same() {
    let specs = [
        "name: full\nheads: 3\nhead_dim: 8\npattern: full\n",
        "name: causal\nheads: 2\nhead_dim: 8\npattern: causal\n",
        "name: window\nheads: 1\nhead_dim: 8\npattern: {window: {radius: 40}}\ndiffusion: {hops: 3, alpha: 0.2}\n",
    ];
    for text in specs {
        let spec = read(text);
        let n = 400;
        let tensor = |heads, seed: usize| {
            ndarray::Array4::from_shape_fn((1, heads, n, 8), |(_, h, i, x)| {
                ((seed * 3 + h * 13 + i * 31 + x * 17) as f32 * 0.7).sin()
            })
        };
        let (q, k, v) = (tensor(spec.heads, 1), tensor(spec.kv_heads, 2), tensor(spec.kv_heads, 3));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let run = |strategy: Strategy, tuning: Tuning, threads| {
                let choice = Choice { strategy, store: Dtype::F32, tuning };
                let tuning = TuningSource::Given(choice);
                let options = Options { isa, threads, tuning, ..Options::reproducible() };
                let compiled = compiler::compile(&spec, n, n, &options).ok()?;
                Some(compiled.kernel.forward(q.view(), k.view(), v.view()).expect("an output").out)
            };
            let mut legal = 0;
            for &strategy in Strategy::ALL {
                let Some(plain) = run(strategy, Tuning::default(), 1) else { continue };
                legal += 1;
                for (joint_keys, chunk_keys, unit_rows) in [(64, 64, 1), (100, 97, 3), (2048, 256, 1000), (128, 640, 0)]
                {
                    let tuning = Tuning { joint_keys, chunk_keys, unit_rows };
                    let out = run(strategy, tuning, 2).expect("as legal as the default");
                    let far = plain.iter().zip(&out).fold(0.0_f32, |far, (a, b)| far.max((a - b).abs()));
                    assert!(far < 1e-5, "{}, {strategy} on {isa}, {tuning:?}: {far}", spec.name);
                }
            }
            assert!(legal > 0);
        }
    }
}

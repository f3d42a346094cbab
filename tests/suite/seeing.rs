//! The commands that show what a pattern is: exit status, messages, files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::common::names_in;

const SPEC: &str = "\
name: two-hops
heads: 2
head_dim: 4
pattern:
  any:
    - window: {radius: 3}
    - global: {tokens: [0, 40], axis: keys}
diffusion: {hops: 2, alpha: 0.1}
";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hopweave"));
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seeing-cache");
    command
        .args(args)
        .stdin(Stdio::null())
        .env("HOPWEAVE_CACHE_DIR", cache)
        .env_remove("NO_COLOR")
        .env_remove("COLORTERM");
    command
}

fn hopweave(args: &[&str]) -> Output {
    command(args).output().expect("the command starts")
}

fn done(args: &[&str]) -> String {
    let output = hopweave(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn refused(args: &[&str], message: &str) {
    let output = hopweave(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
    assert!(error.starts_with("error: ") && error.contains(message), "expected {message:?} in {error}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

/// A folder with the spec.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = Self { dir: tempfile::tempdir().expect("a folder") };
        fs::write(folder.path("spec.yaml"), SPEC).expect("a file");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn names(&self) -> Vec<String> {
        names_in(self.dir.path())
    }
}

#[test]
fn show_draws_in_the_terminal() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    let text = done(&["show", &spec, "-n", "60"]);
    assert!(text.starts_with("two-hops, head 0: 60 queries (down) × 60 keys (across)\n"), "{text}");
    assert!(text.contains("global panel: ") && text.contains('█') && !text.contains('\x1b'), "{text}");
    // Wherever it goes, a picture is no wider than asked for.
    let wide = done(&["show", &spec, "-n", "5000", "--width", "50"]);
    let drawn: Vec<usize> = wide
        .lines()
        .filter(|line| line.contains('░') && !line.contains('%'))
        .map(|line| line.chars().count())
        .collect();
    assert!(drawn.len() > 10 && drawn.iter().all(|&columns| columns <= 50), "{wide}");
    assert!(drawn.iter().any(|&columns| columns > 40), "{wide}");
    let coloured = done(&["show", &spec, "-n", "60", "--color", "always"]);
    assert!(coloured.contains("\x1b[38;5;") && coloured.contains('▀'), "{coloured}");
    let output = command(&["show", &spec, "-n", "60", "--color", "always"]).env("COLORTERM", "truecolor").output();
    assert!(String::from_utf8_lossy(&output.expect("the command starts").stdout).contains("\x1b[38;2;"));
    assert!(done(&["show", &spec, "-n", "60", "--ascii"]).is_ascii());
    let hops = done(&["show", &spec, "-n", "60", "--hops", "--head", "1"]);
    assert!(hops.contains("after 1 hop: ") && hops.contains("after 2 hops: "), "{hops}");
    let more = done(&["show", &spec, "-n", "60", "--hops", "--set", "diffusion.hops=3"]);
    assert!(more.contains("after 3 hops: "), "{more}");
    let rectangle = done(&[
        "show",
        &spec,
        "--q-len",
        "1",
        "--kv-len",
        "90",
        "--set",
        "diffusion.hops=1",
        "--set",
        "diffusion.alpha=0",
    ]);
    assert!(rectangle.contains("1 queries (down) × 90 keys"), "{rectangle}");
}

#[test]
fn show_writes_svg_and_png() {
    let folder = Folder::new();
    let [spec, svg, png] = ["spec.yaml", "mask.svg", "mask.PNG"].map(|name| folder.text(name));
    for hops in [&[][..], &["--hops"]] {
        for file in [&svg, &png] {
            let output = done(&[&["show", &spec, "-n", "300", "-o", file][..], hops].concat());
            assert_eq!(output, "");
        }
        let text = fs::read_to_string(&svg).expect("the picture");
        assert!(text.starts_with("<svg xmlns=") && text.contains("two-hops, head 0"), "{text}");
        let bytes = fs::read(&png).expect("the picture");
        let info = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("a PNG file").info().size();
        assert!(info.0 >= 512 && info.1 >= 512, "{info:?}");
    }
    assert_eq!(folder.names(), ["mask.PNG", "mask.svg", "spec.yaml"]);
}

#[test]
fn show_says_what_is_wrong_and_writes_nothing() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    let file = |name: &str| folder.text(name);
    refused(
        &["show", &spec, "-n", "60", "-o", &file("mask.gif")],
        "mask.gif: ends in `.gif`; expected `.svg` or `.png`",
    );
    refused(&["show", &spec, "-n", "60", "-o", &file("mask")], "mask: has no ending; expected `.svg` or `.png`");
    refused(&["show", &spec, "-n", "60", "-o", &file("none/mask.svg")], "there is no folder");
    refused(
        &["show", &spec, "-n", "60", "--head", "2", "-o", &file("mask.svg")],
        "has no head 2; heads go from 0 to 1",
    );
    refused(
        &["show", &spec, "-n", "99999999999", "-o", &file("mask.svg")],
        "the length: 99999999999; at most 2147483584, the limit `length`",
    );
    refused(&["show", &spec, "--q-len", "5", "--kv-len", "6"], "diffusion needs as many queries as keys");
    assert_eq!(folder.names(), ["spec.yaml"]);
    for args in [&["--ascii", "-o", "x.svg"][..], &["--color", "blue"], &["--width", "3"], &["--head", "-1"]] {
        assert_eq!(hopweave(&[&["show", &spec, "-n", "60"][..], args].concat()).status.code(), Some(2), "{args:?}");
    }
    // Nothing to see is no error.
    let nothing = done(&["show", &spec, "-n", "0"]);
    assert!(nothing.starts_with("two-hops, head 0: 0 queries"), "{nothing}");
    done(&["show", &spec, "-n", "0", "-o", &file("mask.svg"), "--hops"]);
}

/// From nothing to the longest sequences, on either side: an answer or a reason, whatever command looks.
#[test]
fn every_length_can_be_looked_at() {
    for spec in ["full", "streaming-sink", "logsparse"] {
        for (queries, keys) in
            [("0", "0"), ("0", "5000000"), ("1", "5000000"), ("0", "1"), ("1", "0"), ("7", "2147483584")]
        {
            for args in [&["show"][..], &["show", "--hops"], &["explain"], &["explain", "--json"]] {
                let path = format!("{}/patterns/{spec}.yaml", env!("CARGO_MANIFEST_DIR"));
                let mut args = args.to_vec();
                args.extend([&path, "--q-len", queries, "--kv-len", keys, "--memory-limit", "1G"]);
                let out = hopweave(&args);
                let error = String::from_utf8_lossy(&out.stderr).into_owned();
                assert!(matches!(out.status.code(), Some(0 | 1)), "{args:?}: {error}");
                assert_eq!(out.status.success(), !error.contains("error: "), "{args:?}: {error}");
            }
        }
    }
}

#[test]
fn explain_says_what_a_pattern_can_do() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    let text = done(&["explain", &spec, "-n", "100"]);
    for line in
        ["keys of a query", "keys after hop 2", "all it can reach", "far weight", "spectral gap", "distance to full"]
    {
        assert!(text.lines().any(|found| found.starts_with(line)), "no {line:?} in {text}");
    }
    let value: serde_json::Value =
        serde_json::from_str(&done(&["explain", &spec, "-n", "100", "--json"])).expect("JSON");
    let number = |path: &str| {
        value.pointer(path).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("no {path} in {value:#}"))
    };
    // Query 99 sees 96..100 and tokens 0 and 40; the worst queries stand at the ends.
    assert!((number("/receptive_field/hops/0/minimum") - 0.05).abs() < 1e-12);
    assert_eq!(number("/receptive_field/hops/0/worst/query"), 0.0);
    assert!(number("/reach_everything/hops") > 10.0 && number("/reach_everything/never_all") == 0.0);
    assert!((number("/far_weight/full") - 0.25).abs() < 1e-12);
    let (gap, diffused) = (number("/spectral_gap"), number("/diffused_gap"));
    assert!(0.0 < gap && gap < diffused && diffused < 1.0, "{gap} {diffused}");
    assert!(number("/spectral_gap_residual") <= 0.011 * gap);
    assert_eq!((number("/balance/most_keys"), number("/balance/fewest_keys")), (9.0, 5.0));
    assert!(number("/full_attention_distance/value") > 0.5);
    // The distance of full attention to itself is rounding.
    let full =
        done(&["explain", &spec, "-n", "100", "--json", "--set", "pattern=full", "--set", "diffusion={hops: 1}"]);
    let full: serde_json::Value = serde_json::from_str(&full).expect("JSON");
    assert!(full["full_attention_distance"]["value"].as_f64().is_some_and(|distance| distance < 1e-5), "{full:#}");
    assert_eq!(full["spectral_gap"], 1.0);
    for n in ["0", "1", "2"] {
        done(&["explain", &spec, "-n", n]);
    }
    // Decoding, where the heads of a group stand in one row.
    let decoding = ["--q-len", "1", "--kv-len", "50", "--set", "diffusion={hops: 1}", "--json"];
    for more in [&[][..], &["--set", "heads=8", "--set", "kv_heads=1"]] {
        let text = done(&[&["explain", &spec][..], &decoding, more].concat());
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        // Query 49 sees 46..50 and the tokens 0 and 40.
        assert_eq!(value["receptive_field"]["hops"][0]["mean"], 0.12, "{value:#}");
    }
}

#[test]
fn compare_puts_specs_side_by_side() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    fs::write(folder.path("full.yaml"), "name: full\nhead_dim: 4\npattern: full\n").expect("a file");
    let full = folder.text("full.yaml");
    let text = done(&["compare", &spec, &full, "-n", "120", "--time", "0.01"]);
    let line =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    assert!(
        line("allowed pairs").ends_with("100 %") && line("hops ").split_whitespace().eq(["hops", "2", "1"]),
        "{text}"
    );
    assert!(!line("measured ms").contains('–'), "{text}");
    let value: serde_json::Value =
        serde_json::from_str(&done(&["compare", &spec, &full, "-n", "120", "--time", "0", "--json"])).expect("JSON");
    assert_eq!(value[0]["spec"], "two-hops");
    assert_eq!(value[1]["nnz"], 14_400);
    assert!(value[1]["median_ms"].is_null() && value[1]["predicted_ms"].is_number(), "{value:#}");
    refused(&["compare", &spec, &folder.text("none.yaml"), "-n", "120"], "none.yaml: cannot be read");
}

#[test]
fn pages_are_written_whole_or_not_at_all() {
    let folder = Folder::new();
    let spec = folder.text("spec.yaml");
    refused(&["explain", &spec, "-n", "60", "--html", &folder.text("none/page.html")], "there is no folder");
    refused(&["bench", &spec, "-n", "60", "--html", &folder.text("none/page.html")], "there is no folder");
    fs::write(folder.path("page.html"), "before").expect("a file");
    refused(&["explain", &spec, "-n", "60", "--html", &folder.text("page.html"), "--set", "heads=0"], "heads");
    assert_eq!(fs::read_to_string(folder.path("page.html")).expect("the file"), "before");
    assert_eq!(folder.names(), ["page.html", "spec.yaml"]);
    // What a spec says of itself is text and no part of the page.
    done(&[
        "explain",
        &spec,
        "-n",
        "60",
        "--html",
        &folder.text("page.html"),
        "--set",
        "description=<script>alert(1)</script>",
    ]);
    let page = fs::read_to_string(folder.path("page.html")).expect("the page");
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script") && !page.contains("src="), "{page}");
    assert!(!page.contains("NaN") && page.ends_with("</html>"));
}

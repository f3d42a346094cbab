//! The commands that show what a pattern is: exit status, messages, files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

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
        let entries = fs::read_dir(self.dir.path()).expect("the folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into()).collect();
        names.sort();
        names
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
    let columns = |text: &str| text.lines().filter(|line| line.contains('█')).map(|line| line.chars().count()).max();
    assert!(columns(&wide).is_some_and(|columns| (30..=50).contains(&columns)), "{wide}");
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
    refused(&["show", &spec, "-n", "99999999999", "-o", &file("mask.svg")], "unsupported: length 99999999999");
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

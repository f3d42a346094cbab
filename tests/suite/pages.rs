//! The pages as a browser shows them. Where no Chromium is found this is skipped, and says so.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use serde_json::Value;

/// Widths of a phone and of a desk.
const WIDTHS: [u32; 2] = [390, 1200];

/// A page that shows another one in a frame (windows have a least width, frames have none) and leaves what it finds there
/// as JSON in its title.
const LOOK: &str = r#"<!DOCTYPE html><meta name="color-scheme" content="light dark"><title></title>
<style>body{margin:0}iframe{border:0;height:2000px;width:WIDTHpx}</style>
<iframe srcdoc="PAGE"></iframe>
<script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe").contentWindow, page = frame.document;
  const all = selector => [...page.querySelectorAll(selector)];
  const rect = element => element.getBoundingClientRect();
  const figures = all("figure > svg").map(rect), labels = all("figure > svg text");
  const beyond = all("body *").filter(e => !e.closest(".scroll") && !e.closest("svg") && rect(e).right > frame.innerWidth + 1);
  const cut = labels.filter(label => {
    const t = rect(label), s = rect(label.closest("svg"));
    return t.left < s.left || t.right > s.right || t.bottom > s.bottom || t.top < s.top;
  });
  document.title = JSON.stringify({
    inner: frame.innerWidth, scroll: page.documentElement.scrollWidth, back: frame.getComputedStyle(page.body).backgroundColor,
    beyond: beyond.map(e => e.tagName + "." + e.getAttribute("class")), cut: cut.map(label => label.textContent),
    figures: figures.length, drawn: figures.filter(r => r.width > 200 && r.height > 40).length,
    empty: all("svg").filter(svg => rect(svg).width < 1).length, least: Math.min(...labels.map(label => rect(label).height)),
    paths: all("path").length,
  });
});
</script>"#;

fn chromium() -> Option<PathBuf> {
    let named = env::var_os("CHROMIUM").map(PathBuf::from);
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders)
        .flat_map(|folder| ["chromium", "chromium-browser", "google-chrome", "chrome"].map(|name| folder.join(name)));
    named.into_iter().chain(found).find(|path| path.is_file())
}

fn hopweave(args: &[&str]) {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages-cache");
    let output = Command::new(env!("CARGO_BIN_EXE_hopweave"))
        .args(args)
        .stdin(Stdio::null())
        .env("HOPWEAVE_CACHE_DIR", cache)
        .output()
        .expect("the command starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs the browser on a file, with more arguments; its standard output.
fn browse(chromium: &Path, page: &Path, width: u32, dark: bool, more: &[String]) -> String {
    let profile = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(chromium);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
    ]);
    if dark {
        command.args(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]);
    }
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("--window-size={width},2000")).args(more).arg(format!("file://{}", page.display()));
    let output = command.stdin(Stdio::null()).output().expect("Chromium starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What [`LOOK`] finds in a page.
fn look(chromium: &Path, page: &Path, width: u32, dark: bool) -> Value {
    let text = fs::read_to_string(page).expect("the page");
    let looking = page.with_extension("looking.html");
    let escaped = text.replace('&', "&amp;").replace('"', "&quot;");
    fs::write(&looking, LOOK.replace("WIDTH", &width.to_string()).replace("PAGE", &escaped)).expect("a file");
    let dom = browse(chromium, &looking, 1300, dark, &["--dump-dom".into()]);
    let title = dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
    let title = title.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&title).unwrap_or_else(|error| panic!("{error} in {title:?}"))
}

/// Checks a page at all widths, light and dark; `figures` is how many it shows at least.
fn check(chromium: &Path, page: &Path, figures: u64) {
    for width in WIDTHS {
        for dark in [false, true] {
            let found = look(chromium, page, width, dark);
            let about = format!("{} at {width}, dark {dark}: {found:#}", page.display());
            let number = |name: &str| found[name].as_f64().unwrap_or_else(|| panic!("no {name}: {about}"));
            assert!(number("scroll") <= number("inner") + 1.0, "wider than the window: {about}");
            assert_eq!(number("inner"), f64::from(width), "{about}");
            assert_eq!(found["beyond"], Value::Array(Vec::new()), "beyond the window: {about}");
            assert_eq!(found["cut"], Value::Array(Vec::new()), "cut labels: {about}");
            assert!(number("figures") >= figures as f64 && found["drawn"] == found["figures"], "{about}");
            assert!(number("empty") == 0.0 && number("paths") >= 2.0 && number("least") >= 8.0, "{about}");
            let back = if dark { "rgb(20, 24, 29)" } else { "rgb(255, 255, 255)" };
            assert_eq!(found["back"], back, "{about}");
        }
    }
}

/// The share of the pixels of a screenshot that have a colour.
fn share_of(pixels: &[u8], channels: usize, colour: [u8; 3]) -> f64 {
    let hits = pixels.chunks(channels).filter(|pixel| pixel[..3] == colour).count();
    hits as f64 / (pixels.len() / channels) as f64
}

#[test]
fn pages_look_right_in_a_browser() {
    let Some(chromium) = chromium() else {
        // Written past the capture of test output, so that it is seen.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: 1 test of rendered pages, since there is no Chromium; CHROMIUM may name one"
        );
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("patterns");
    let pattern = |name: &str| root.join(name).display().to_string();
    let file = |name: &str| folder.path().join(name);
    let [explained, benched] = [file("explain.html"), file("bench.html")];

    // Several heads, hops and global tokens: every kind of picture and chart.
    let [diffuser, window] = [pattern("diffuser.yaml"), pattern("sliding-window.yaml")];
    hopweave(&["explain", &diffuser, "-n", "512", "--html", &explained.display().to_string(), "--set", "heads=2"]);
    check(&chromium, &explained, 8);
    let html = benched.display().to_string();
    let few = ["--set", "heads=1", "--time", "0.01", "--html", &html];
    hopweave(&[&["bench", &window, &diffuser, "-n", "64,128,256", "--baseline", "unfused"][..], &few].concat());
    check(&chromium, &benched, 4);
    hopweave(&[&["bench", &window, "-n", "64", "--all-strategies", "--hops", "2"][..], &few].concat());
    check_bars(&chromium, &benched);

    // The picture is there for the eye: the colours of full blocks and of the global panel fill some of the screen.
    let shot = file("page.png");
    browse(&chromium, &explained, 1200, false, &[format!("--screenshot={}", shot.display())]);
    let bytes = fs::read(&shot).expect("a screenshot");
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("a PNG file");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let frame = reader.next_frame(&mut pixels).expect("pixels");
    let channels = frame.color_type.samples();
    for colour in [[0, 114, 178], [230, 159, 0], [0, 158, 115]] {
        let share = share_of(&pixels, channels, colour);
        assert!(share > 0.003, "{colour:?} fills {share} of the page");
    }
    let white = share_of(&pixels, channels, [255, 255, 255]);
    assert!((0.2..0.95).contains(&white), "{white} of the page is white");
}

/// One length alone: bars, which have no paths.
fn check_bars(chromium: &Path, page: &Path) {
    let found = look(chromium, page, WIDTHS[0], false);
    assert!(found["figures"] == 2 && found["drawn"] == 2, "{found:#}");
    assert_eq!(found["cut"], Value::Array(Vec::new()), "cut labels: {found:#}");
}

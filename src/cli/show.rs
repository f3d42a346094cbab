//! `show`: the mask of a head as a picture, in the terminal or a file.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use super::files;
use super::options::{Global, Lengths, SpecArg};
use super::say::print;
use crate::error::{Error, Result};
use crate::picture::{self, Colour, Detail, Picture};
use crate::spec::PatternSpec;
use crate::{npy, pattern};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    spec: SpecArg,
    #[command(flatten)]
    lengths: Lengths,
    /// Which query head
    #[arg(long, value_name = "H", default_value_t = 0)]
    head: usize,
    /// Write the picture to a file: SVG or PNG, by its ending
    #[arg(short, long, value_name = "FILE.svg|FILE.png")]
    output: Option<PathBuf>,
    /// One panel for each hop: what is reached after 1, 2, … hops
    #[arg(long)]
    hops: bool,
    /// Colours in the terminal; auto: where it is one, and NO_COLOR is not set
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = ["auto", "always", "never"])]
    color: String,
    /// Letters of 7 bits only, without colours
    #[arg(long, conflicts_with = "output")]
    ascii: bool,
    /// Columns to draw in; those of the terminal, or 80, where it is not given
    #[arg(long, value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(16..=1000), conflicts_with = "output")]
    width: Option<u16>,
}

/// What a file holds, by its ending.
enum Format {
    Svg,
    Png,
}

/// Most cells a side in files.
const SVG_CELLS: usize = 256;
const PNG_CELLS: usize = 512;
/// Most cells a side of each of several panels.
const PANEL_CELLS: usize = 128;
/// Columns that labels take.
const LABELS: usize = 8;
/// Lines around a picture: heading, ruler, legend, prompt.
const LINES: usize = 9;

/// Draws the picture.
///
/// # Errors
/// What is wrong with the spec, the head or the file.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let output = args.output.as_deref().map(|path| Ok::<_, Error>((path, format_of(path)?))).transpose()?;
    if let Some((path, _)) = output {
        npy::check_output(path)?;
    }
    let spec = options.load(&args.spec.spec)?;
    if args.head >= spec.heads {
        return Err(no_such_head(args.head, &spec));
    }
    let detail = match &output {
        Some(_) if args.hops => square(PANEL_CELLS),
        Some((_, Format::Svg)) => square(SVG_CELLS),
        Some((_, Format::Png)) => square(PNG_CELLS),
        None => of_terminal(args.width, args.hops),
    };
    let mut picture = options.pool()?.install(|| draw(args, options, &spec, detail))?;
    picture.title = format!("{}, {}", spec.name, picture.title);
    match output {
        Some((path, Format::Svg)) => files::write(path, picture::svg(&picture).as_bytes()),
        Some((path, Format::Png)) => files::write(path, &picture::png(&picture)?),
        None => {
            let colour = if args.ascii { Colour::None } else { colour(&args.color) };
            print(&picture::terminal(&picture, colour, args.ascii))
        }
    }
}

fn draw(args: &Args, options: &Global, spec: &PatternSpec, detail: Detail) -> Result<Picture> {
    let (q_len, kv_len) = args.lengths.get();
    let pattern = pattern::resolve(spec, q_len, kv_len)?;
    let limit = options.memory_limit();
    let detail = fit(detail, q_len, kv_len);
    if args.hops {
        return picture::of_hops(&pattern, &spec.diffusion.typical(), args.head, detail, limit);
    }
    let one_hop = spec.diffusion.hops() <= 1;
    picture::of_pattern(&pattern, args.head, one_hop, detail, limit)
}

fn square(cells: usize) -> Detail {
    Detail { rows: cells, columns: cells }
}

/// As many cells as the terminal has room for: two rows of cells a line.
fn of_terminal(width: Option<u16>, several: bool) -> Detail {
    let (lines, columns) = console::Term::stdout().size_checked().unwrap_or((42, 80));
    let columns = usize::from(width.unwrap_or(columns)).saturating_sub(LABELS).max(LABELS);
    // A given width says that the picture may be as long as it gets; several panels scroll by anyway.
    let rows = if width.is_some() || several { columns } else { 2 * usize::from(lines).saturating_sub(LINES).max(8) };
    Detail { rows, columns }
}

/// The same scale on both axes, as far as there is room; a few queries are not drawn as a line.
fn fit(detail: Detail, q_len: usize, kv_len: usize) -> Detail {
    let (q_len, kv_len) = (q_len.max(1) as f64, kv_len.max(1) as f64);
    // Tokens a cell.
    let scale = (q_len / detail.rows as f64).max(kv_len / detail.columns as f64).max(1.0);
    let cells = |length: f64, most: usize| ((length / scale).round() as usize).clamp(1, most);
    Detail { rows: cells(q_len, detail.rows).max(q_len.min(8.0) as usize), columns: cells(kv_len, detail.columns) }
}

fn format_of(path: &Path) -> Result<Format> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending.as_deref() {
        Some("svg") => Ok(Format::Svg),
        Some("png") => Ok(Format::Png),
        other => {
            let found = other.map_or_else(|| "has no ending".into(), |other| format!("ends in `.{other}`"));
            Err(Error::Input { path: path.into(), message: format!("{found}; expected `.svg` or `.png`") })
        }
    }
}

fn no_such_head(head: usize, spec: &PatternSpec) -> Error {
    let there =
        if spec.heads == 1 { "it has head 0 alone".into() } else { format!("heads go from 0 to {}", spec.heads - 1) };
    Error::Input { path: (&spec.source.file).into(), message: format!("has no head {head}; {there}") }
}

fn colour(when: &str) -> Colour {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let wanted = match when {
        "always" => true,
        "never" => false,
        _ => {
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
        }
    };
    let depth = std::env::var("COLORTERM").unwrap_or_default();
    match wanted {
        false => Colour::None,
        true if depth == "truecolor" || depth == "24bit" => Colour::True,
        true => Colour::Palette,
    }
}

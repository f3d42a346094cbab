//! Pictures in a terminal: two cells a character by half blocks, or one with a shade where there is no colour.

use std::fmt::Write as _;

use super::{Cell, Panel, Picture, SHADES, percent, share_of_shade, short, strength};

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Shades by characters, nothing else.
    None,
    /// The 256 colours of xterm.
    Palette,
    /// Any colour.
    True,
}

/// What colours fade into: dark enough for light terminals, light enough for dark ones.
const GROUND: [u8; 3] = [40, 40, 40];
/// Shades without colour, from sparse to full.
const CHARACTERS: [char; SHADES + 1] = [' ', '·', '░', '░', '▒', '▒', '▓', '▓', '█'];
/// The same in ASCII.
const ASCII: [char; SHADES + 1] = [' ', '.', ':', '-', '=', '+', '*', '%', '@'];

/// Draws every panel, with axes, legend and scale; `ascii` keeps to letters of 7 bits.
pub fn terminal(picture: &Picture, colour: Colour, ascii: bool) -> String {
    let mut text = format!(
        "{}: {} queries (down) × {} keys (across)\n",
        picture.title,
        short(picture.q_len as f64),
        short(picture.kv_len as f64)
    );
    for panel in &picture.panels {
        if picture.panels.len() > 1 {
            let _ = write!(text, "\n{}: {} of all pairs\n", panel.title, percent(panel.shares.iter().sum()));
        }
        text += &matrix(picture, panel, colour, ascii);
    }
    text += &legend(picture, colour, ascii);
    if !picture.note.is_empty() {
        let _ = writeln!(text, "{}", picture.note);
    }
    if ascii { text.replace('×', "x") } else { text }
}

/// A token is drawn as so many cells where there are few.
fn zoom(picture: &Picture) -> usize {
    (24 / picture.columns.max(picture.rows).max(1)).clamp(1, 3)
}

fn matrix(picture: &Picture, panel: &Panel, colour: Colour, ascii: bool) -> String {
    let zoom = zoom(picture);
    let (rows, columns) = (picture.rows * zoom, picture.columns * zoom);
    let cell = |row: usize, column: usize| -> Cell {
        if row < rows { panel.cells[row / zoom * picture.columns + column / zoom] } else { Cell::default() }
    };
    let sharp = is_sharp(panel);
    let mut text = ruler(picture, columns);
    for line in 0..rows.div_ceil(2) {
        // The query of the upper row of cells, every eighth line.
        let label =
            if line % 8 == 0 { short((2 * line / zoom * picture.q_len / picture.rows) as f64) } else { String::new() };
        let _ = write!(text, "{label:>6} ");
        let mut last = None;
        for column in 0..columns {
            let (upper, lower) = (cell(2 * line, column), cell(2 * line + 1, column));
            match colour {
                Colour::None if ascii => text.push(ASCII[mean(upper, lower).shade()]),
                Colour::None if sharp => text.push(match (upper.share > 0.0, lower.share > 0.0) {
                    (false, false) => ' ',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (true, true) => '█',
                }),
                Colour::None => text.push(CHARACTERS[mean(upper, lower).shade()]),
                Colour::Palette | Colour::True => {
                    let inks = (ink(picture, upper), ink(picture, lower));
                    let (code, letter) = coloured(inks, colour);
                    if last.as_ref() != Some(&code) {
                        text += &code;
                        last = Some(code);
                    }
                    text.push(letter);
                }
            }
        }
        if last.is_some() {
            text += RESET;
        }
        while text.ends_with(' ') {
            text.pop();
        }
        text.push('\n');
    }
    text
}

const RESET: &str = "\x1b[0m";

/// Two cells as one: their pairs count alike.
fn mean(upper: Cell, lower: Cell) -> Cell {
    Cell { share: (upper.share + lower.share) / 2.0, ..upper }
}

/// Whether every cell is all or nothing: half blocks then need no colour.
fn is_sharp(panel: &Panel) -> bool {
    panel.cells.iter().all(|cell| cell.share == 0.0 || cell.share == 1.0)
}

/// Keys above the first column, the middle and the last.
fn ruler(picture: &Picture, columns: usize) -> String {
    let mut line = vec![' '; columns + 8];
    for part in [0, 1, 2, 3] {
        let key = part * picture.kv_len / 4;
        let at = key * columns / picture.kv_len.max(1);
        let label = short(key as f64);
        let free = columns / 4 > label.len();
        if part == 0 || (free && columns >= 16) {
            label.chars().enumerate().for_each(|(i, letter)| line[at + i] = letter);
        }
    }
    let line: String = line.into_iter().collect();
    format!("{:7}{}\n", "", line.trim_end())
}

/// The colour of a cell; `None` where nothing is.
fn ink(picture: &Picture, cell: Cell) -> Option<[u8; 3]> {
    let shade = cell.shade();
    (shade > 0).then(|| blend(picture.classes[cell.class].colour, shade))
}

fn blend(colour: [u8; 3], shade: usize) -> [u8; 3] {
    let strength = strength(shade);
    std::array::from_fn(|i| (f64::from(colour[i]) * strength + f64::from(GROUND[i]) * (1.0 - strength)).round() as u8)
}

/// The escape code and the letter of two cells above each other.
fn coloured((upper, lower): (Option<[u8; 3]>, Option<[u8; 3]>), colour: Colour) -> (String, char) {
    let front = |ink: [u8; 3]| code(38, ink, colour);
    match (upper, lower) {
        (None, None) => (RESET.into(), ' '),
        (Some(upper), None) => (format!("{RESET}{}", front(upper)), '▀'),
        (None, Some(lower)) => (format!("{RESET}{}", front(lower)), '▄'),
        (Some(upper), Some(lower)) => (format!("{}{}", front(upper), code(48, lower, colour)), '▀'),
    }
}

/// The escape code of a colour: plane 38 is the front, 48 the back.
fn code(plane: u8, [red, green, blue]: [u8; 3], colour: Colour) -> String {
    if colour == Colour::True {
        return format!("\x1b[{plane};2;{red};{green};{blue}m");
    }
    // The cube of 6 × 6 × 6 colours starts at 16; its steps are 0, 95, 135, 175, 215, 255.
    let step = |x: u8| if x < 48 { 0 } else { ((u16::from(x).saturating_sub(35)) / 40).clamp(1, 5) };
    format!("\x1b[{plane};5;{}m", 16 + 36 * step(red) + 6 * step(green) + step(blue))
}

/// Classes with their shares, and what shades mean.
fn legend(picture: &Picture, colour: Colour, ascii: bool) -> String {
    let mut text = String::new();
    // Without colour a panel's classes cannot be told apart; their shares can still be told.
    for (number, class) in picture.classes.iter().enumerate() {
        let swatch = match colour {
            Colour::None => String::new(),
            Colour::Palette | Colour::True => format!("{}██{RESET} ", code(38, class.colour, colour)),
        };
        let share: Vec<String> = picture.panels.iter().map(|panel| percent(panel.shares[number])).collect();
        if picture.panels.iter().any(|panel| panel.shares[number] > 0.0) {
            let _ = writeln!(text, "{:7}{swatch}{}: {} of all pairs", "", class.name, share.join(", "));
        }
    }
    let plain = colour == Colour::None && !ascii;
    if plain && picture.panels.iter().all(is_sharp) {
        return text;
    }
    // Several shades share a character.
    let shades: Vec<usize> = if plain { vec![1, 3, 5, 7, SHADES] } else { (1..=SHADES).collect() };
    let sample = |shade: usize| match colour {
        Colour::None if ascii => ASCII[shade].to_string(),
        Colour::None => CHARACTERS[shade].to_string(),
        Colour::Palette | Colour::True => {
            format!("{}█{RESET}", code(38, blend(picture.classes[0].colour, shade), colour))
        }
    };
    let samples: Vec<String> =
        shades.iter().map(|&shade| format!("{} {}", sample(shade), percent(share_of_shade(shade)))).collect();
    let _ = writeln!(text, "{:7}share of a cell's pairs, up to: {}", "", samples.join("  "));
    text
}

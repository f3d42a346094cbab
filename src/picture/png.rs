//! Pictures as PNG, on white: whole pixels a cell, letters of 8 × 8 pixels.

use font8x8::{BASIC_FONTS, UnicodeFonts};

use super::{Panel, Picture, SHADES, percent, share_of_shade, short, strength};
use crate::error::{Error, Result};

/// Least side of a panel's matrix in pixels.
const SIDE: usize = 512;
/// Pixels left of a matrix, for the numbers of queries, and above, for those of keys.
const MARGIN: (usize, usize) = (56, 44);
/// Pixels of a letter.
const LETTER: usize = 8;
/// Panels beside each other.
const ACROSS: usize = 3;
const INK: [u8; 3] = [36, 41, 47];
const FRAME: [u8; 3] = [208, 215, 222];

/// The picture as the bytes of a PNG file: title, panels, legend, scale.
///
/// # Errors
/// [`Error::Internal`] where the encoder refuses.
pub fn png(picture: &Picture) -> Result<Vec<u8>> {
    let zoom = SIDE.div_ceil(picture.rows.max(picture.columns).max(1));
    let (width, height) = (picture.columns * zoom, picture.rows * zoom);
    let (panel_width, panel_height) = (width + MARGIN.0 + 24, height + MARGIN.1 + 16);
    let across = picture.panels.len().clamp(1, ACROSS);
    let down = picture.panels.len().div_ceil(across);
    let notes = wrapped(&picture.note, (panel_width * across).max(560) / LETTER - 4);
    let head = 28;
    let below = 44 + 14 * (notes.len() + picture.classes.len().div_ceil(2));
    let mut canvas = Canvas::new((panel_width * across).max(560), head + panel_height * down + below);
    let title =
        format!("{}: {} queries x {} keys", picture.title, short(picture.q_len as f64), short(picture.kv_len as f64));
    canvas.text(16, 12, &title);
    for (number, panel) in picture.panels.iter().enumerate() {
        let (x, y) = (number % across * panel_width, head + number / across * panel_height);
        matrix(&mut canvas, picture, panel, (x, y), zoom);
    }
    // Two classes a line.
    let mut y = head + panel_height * down + 8;
    for (number, class) in picture.classes.iter().enumerate() {
        let x = 16 + number % 2 * canvas.width / 2;
        canvas.fill(x, y, 8, 8, class.colour);
        let share: f64 = picture.panels.iter().map(|panel| panel.shares[number]).sum();
        let of_all = if picture.panels.len() > 1 { String::new() } else { format!(" {}", percent(share)) };
        canvas.text(x + 12, y, &format!("{}{of_all}", class.name));
        y += number % 2 * 14;
    }
    y += picture.classes.len() % 2 * 14 + 4;
    let mut x = 16;
    for shade in 1..=SHADES {
        canvas.fill(x, y, 8, 8, over_white(picture.classes[0].colour, shade));
        let label = percent(share_of_shade(shade));
        canvas.text(x + 10, y, &label);
        x += 10 + LETTER * label.len() + 6;
    }
    canvas.text(x, y, "of a cell");
    for (line, note) in notes.iter().enumerate() {
        canvas.text(16, y + 20 + 14 * line, note);
    }
    canvas.encode()
}

fn matrix(canvas: &mut Canvas, picture: &Picture, panel: &Panel, (left, top): (usize, usize), zoom: usize) {
    let (x0, y0) = (left + MARGIN.0, top + MARGIN.1);
    let (width, height) = (picture.columns * zoom, picture.rows * zoom);
    if picture.panels.len() > 1 {
        let share = percent(panel.shares.iter().sum());
        canvas.text(x0, top + 4, &format!("{}: {share} of all pairs", panel.title));
    }
    canvas.fill(x0 - 1, y0 - 1, width + 2, height + 2, FRAME);
    for (at, cell) in panel.cells.iter().enumerate() {
        let (row, column) = (at / picture.columns, at % picture.columns);
        let colour = over_white(picture.classes[cell.class].colour, cell.shade());
        canvas.fill(x0 + column * zoom, y0 + row * zoom, zoom, zoom, colour);
    }
    for part in 0..=4 {
        let key = short((part * picture.kv_len / 4) as f64);
        if part % 4 == 0 || width >= 300 {
            canvas.text((x0 + part * width / 4).saturating_sub(key.len() * LETTER / 2), y0 - 14, &key);
        }
        let query = short((part * picture.q_len / 4) as f64);
        if part % 4 == 0 || height >= 100 {
            let x = (x0 - 6).saturating_sub(query.len() * LETTER);
            canvas.text(x, (y0 + part * height / 4).saturating_sub(4), &query);
        }
    }
}

fn over_white(colour: [u8; 3], shade: usize) -> [u8; 3] {
    let strength = strength(shade);
    colour.map(|part| (f64::from(part) * strength + 255.0 * (1.0 - strength)).round() as u8)
}

/// Lines of at most so many letters.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= most => *line = format!("{line} {word}"),
            _ => lines.push(word.into()),
        }
    }
    lines
}

/// Pixels, row by row, in red, green and blue.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![255; 3 * width * height] }
    }

    /// Fills a rectangle, as far as it lies within.
    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, colour: [u8; 3]) {
        let (from, to) = (x.min(self.width), (x + width).min(self.width));
        for row in y..(y + height).min(self.height) {
            for pixel in self.pixels[3 * (row * self.width + from)..3 * (row * self.width + to)].chunks_exact_mut(3) {
                pixel.copy_from_slice(&colour);
            }
        }
    }

    /// Writes a line; letters that the font lacks become a question mark.
    fn text(&mut self, x: usize, y: usize, text: &str) {
        let text = text.replace('×', "x").replace('·', ":");
        for (number, letter) in text.chars().enumerate() {
            let glyph = BASIC_FONTS.get(letter).or_else(|| BASIC_FONTS.get('?')).unwrap_or_default();
            for (row, bits) in glyph.iter().enumerate() {
                for column in (0..LETTER).filter(|column| (bits >> column) & 1 == 1) {
                    self.fill(x + number * LETTER + column, y + row, 1, 1, INK);
                }
            }
        }
    }

    fn encode(self) -> Result<Vec<u8>> {
        let wrong = |error: png::EncodingError| Error::internal("png", error.to_string(), "");
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(wrong)?;
        writer.write_image_data(&self.pixels).map_err(wrong)?;
        writer.finish().map_err(wrong)?;
        Ok(bytes)
    }
}

use super::*;
use crate::pattern::{Pattern, resolve};
use crate::spec::{PatternSpec, parse};

fn spec(pattern: &str, more: &str) -> PatternSpec {
    parse(&format!("name: x\nhead_dim: 4\npattern: {pattern}\n{more}"), "<text>")
        .unwrap_or_else(|error| panic!("{error}"))
}

fn pattern(text: &str, q_len: usize, kv_len: usize) -> Pattern {
    resolve(&spec(text, ""), q_len, kv_len).unwrap_or_else(|error| panic!("{error}"))
}

fn draw(pattern: &Pattern, in_parts: bool, rows: usize, columns: usize) -> Picture {
    of_pattern(pattern, 0, in_parts, Detail { rows, columns }, u64::MAX).unwrap_or_else(|error| panic!("{error}"))
}

/// The share of allowed pairs in each cell, point by point.
fn by_points(pattern: &Pattern, rows: usize, columns: usize) -> Vec<f64> {
    let mut counts = vec![(0_u32, 0_u32); rows * columns];
    for q in 0..pattern.q_len {
        for k in 0..pattern.kv_len {
            let cell = &mut counts[q * rows / pattern.q_len * columns + k * columns / pattern.kv_len];
            cell.0 += u32::from(pattern.allows(0, q, k));
            cell.1 += 1;
        }
    }
    counts.into_iter().map(|(some, all)| f64::from(some) / f64::from(all)).collect()
}

#[test]
fn cells_hold_exactly_the_allowed_pairs() {
    let patterns = [
        "full",
        "causal",
        "{window: {radius: 20}}",
        "{window: {radius: 9, dilation: 3}}",
        "{any: [{window: {radius: 5}}, {global: {tokens: [3, 70]}}, {random: {keys_per_query: 4, seed: 1}}]}",
        "{all: [causal, {any: [{window: {radius: 16}}, {sink: 4}]}]}",
        "{all: [causal, {any: [{window: {radius: 7}}, {strided: {step: 8, mode: diagonal}}]}]}",
        "{where: \"(q * 7 + k * 3) % 11 == 0\"}",
        "{not: {window: {radius: 30}}}",
        "{random_cells: {count: 500, seed: 4}}",
    ];
    for text in patterns {
        for (q_len, kv_len) in [(200, 200), (1, 70), (65, 131), (300, 300)] {
            let pattern = pattern(text, q_len, kv_len);
            for (rows, columns) in [(1, 1), (7, 13), (64, 64), (1000, 1000)] {
                for in_parts in [false, true] {
                    let picture = draw(&pattern, in_parts, rows, columns);
                    assert_eq!((picture.rows, picture.columns), (rows.min(q_len), columns.min(kv_len)));
                    assert_eq!(picture.note, "");
                    let found = picture.panels[0].cells.iter().map(|cell| cell.share);
                    let expected = by_points(&pattern, picture.rows, picture.columns);
                    for (at, (found, expected)) in found.zip(expected).enumerate() {
                        assert!(
                            (found - expected).abs() < 1e-12,
                            "{text} {q_len} {kv_len} cell {at}: {found} {expected}"
                        );
                    }
                    let all = pattern.q_len as f64 * pattern.kv_len as f64;
                    let nnz = (0..q_len).flat_map(|q| (0..kv_len).map(move |k| (q, k)));
                    let nnz = nnz.filter(|&(q, k)| pattern.allows(0, q, k)).count() as f64;
                    // A sum over up to 90,000 cells.
                    assert!((picture.panels[0].shares.iter().sum::<f64>() - nnz / all).abs() < 1e-10);
                }
            }
        }
    }
}

#[test]
fn kinds_are_those_of_the_mask() {
    let share = |text: &str, n: usize| draw(&pattern(text, n, n), false, 8, 8).panels[0].shares.clone();
    let full = share("full", 256);
    assert_eq!(full, [1.0, 0.0, 0.0, 0.0]);
    let sinks = share("{sink: 4}", 256);
    assert_eq!(sinks, [0.0, 0.0, 0.0, 4.0 / 256.0]);
    let [whole, partial, scattered, global] = share("{window: {radius: 100}}", 1024)[..] else { panic!() };
    assert!(whole > partial && partial > 0.0 && scattered == 0.0 && global == 0.0);
    let lone = share("{random: {keys_per_query: 2, seed: 1}}", 1024);
    assert_eq!(lone, [0.0, 0.0, 2.0 / 1024.0, 0.0]);
    // A token that is global both ways: its row and its column.
    let global = share("{global: {tokens: [100]}}", 256);
    assert!((global[3] - 511.0 / 65_536.0).abs() < 1e-12, "{global:?}");
    let corner = &draw(&pattern("causal", 128, 128), false, 128, 128).panels[0].cells;
    assert_eq!((corner[0].share, corner[1].share), (1.0, 0.0));
}

#[test]
fn a_sample_of_rows_is_near_and_says_so() {
    // Scattered edges all over: too many to build for a picture.
    let spread = "{any: [{random: {keys_per_query: 64, seed: 1}}, {sink: 1024}, {global: {tokens: {first: 100}}}]}";
    let pattern = pattern(spread, 1 << 17, 1 << 17);
    let picture = draw(&pattern, false, 16, 16);
    assert!(picture.note.contains("256 of its 8192 queries"), "{}", picture.note);
    let expected = (1024.0 + 64.0 + 100.0) / f64::from(1 << 17);
    assert!((picture.panels[0].shares.iter().sum::<f64>() / expected - 1.0).abs() < 0.01);
    assert!(picture.panels[0].cells.iter().all(|cell| cell.share > 0.0));
    // The global queries stand at the very top, between the rows that were looked at.
    assert!((picture.panels[0].shares[3] / ((1024.0 + 100.0) / f64::from(1 << 17)) - 1.0).abs() < 0.01);
}

#[test]
fn a_million_tokens_are_drawn_from_runs() {
    for (text, share) in [("{window: {left: 128, right: 0}}", 129.0 / 1e6), ("causal", 0.5), ("full", 1.0)] {
        let picture = draw(&pattern(text, 1_000_000, 1_000_000), true, 64, 64);
        assert_eq!(picture.note, "");
        assert!((picture.panels[0].shares.iter().sum::<f64>() / share - 1.0).abs() < 1e-3, "{text}");
    }
}

fn hops(text: &str, diffusion: &str, n: usize, cells: usize) -> Picture {
    let spec = spec(text, diffusion);
    let pattern = resolve(&spec, n, n).unwrap_or_else(|error| panic!("{error}"));
    of_hops(&pattern, &spec.diffusion.typical(), 0, Detail { rows: cells, columns: cells }, u64::MAX)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn hops_reach_as_far_as_paths_go() {
    let picture = hops("{window: {radius: 1}}", "diffusion: {hops: 3, alpha: 0.1}", 100, 100);
    assert_eq!(picture.panels.len(), 3);
    for (hop, panel) in (1..).zip(&picture.panels) {
        for (at, cell) in panel.cells.iter().enumerate() {
            let distance = (at / 100).abs_diff(at % 100);
            assert_eq!(cell.share, f64::from(u8::from(distance <= hop)), "hop {hop}, cell {at}");
            if distance <= hop {
                assert_eq!(cell.class, usize::from(distance == hop || hop == 1), "hop {hop}, cell {at}");
            }
        }
    }
    assert_eq!(picture.note, "");
}

#[test]
fn long_reach_is_followed_block_by_block_and_says_so() {
    let picture = hops("{window: {radius: 64}}", "diffusion: {hops: 2}", 16_384, 64);
    assert!(picture.note.contains("64 × 64 blocks"), "{}", picture.note);
    // A window of 64 meets neighboring blocks of 256 only, and two hops those beside them.
    for (reach, panel) in (1..).zip(&picture.panels) {
        for (at, cell) in panel.cells.iter().enumerate() {
            assert_eq!(cell.share > 0.0, (at / 64).abs_diff(at % 64) <= reach);
        }
    }
    let many = hops("{window: {radius: 1}}", "diffusion: {hops: 30}", 50, 50);
    assert!(many.panels.len() == 12 && many.note.contains("hops 12 to 29 are left out"), "{}", many.note);
}

#[test]
fn nothing_is_drawn_as_nothing() {
    for (q_len, kv_len) in [(0, 0), (0, 5), (5, 0), (1, 1)] {
        let picture = draw(&pattern("causal", q_len, kv_len), true, 64, 64);
        assert!(terminal(&picture, Colour::Palette, false).contains("queries"));
        assert!(svg(&picture).ends_with("</svg>") && !png(&picture).unwrap().is_empty());
    }
    let empty = draw(&pattern("{not: full}", 50, 50), true, 64, 64);
    assert!(empty.panels[0].cells.iter().all(|cell| cell.share == 0.0));
}

#[test]
fn half_blocks_are_exact_where_each_cell_is_a_token() {
    let picture = draw(&pattern("causal", 30, 30), false, 64, 64);
    let text = terminal(&picture, Colour::None, false);
    let lines: Vec<&str> = text.lines().skip(2).take(15).collect();
    for (line, found) in lines.iter().enumerate() {
        let expected: String = (0..30)
            .filter_map(|key| if key <= 2 * line { Some('█') } else { (key == 2 * line + 1).then_some('▄') })
            .collect();
        assert_eq!(found[7..], expected, "line {line}");
    }
    let ascii = terminal(&picture, Colour::None, true);
    assert!(ascii.is_ascii(), "{ascii}");
    let coloured = terminal(&picture, Colour::True, false);
    assert!(coloured.contains("\x1b[38;2;") && !text.contains('\x1b'));
    for line in coloured.lines().filter(|line| line.contains('\x1b')) {
        assert!(line.contains("\x1b[0m"), "colours end with their line");
    }
}

#[test]
fn files_are_what_they_say() {
    let picture = hops("{window: {radius: 5}}", "diffusion: {hops: 4, alpha: 0.1}", 200, 50);
    let bytes = png(&picture).unwrap();
    let mut reader = ::png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    assert!(frame.width > 1000 && frame.height > 1000, "four panels of 500 pixels");
    let near = |colour: [u8; 3]| pixels.chunks(3).filter(|pixel| *pixel == colour).count();
    // The diagonal is reached before and the rim by the hop; both appear at full strength.
    assert!(near(REACHED[0].colour) > 100 && near(REACHED[1].colour) > 100);
    let text = svg(&picture);
    assert!(text.starts_with("<svg xmlns="));
    assert_eq!(text.matches("class=\"frame\"").count(), 4);
    assert!(text.contains("after 1 hop ·") && text.contains("after 4 hops ·"), "{text}");
    assert!(!text.contains("NaN") && !text.contains("inf"));
}

#[test]
fn shades_cover_all_shares() {
    let shade = |share: f64| Cell { class: 0, share }.shade();
    assert_eq!((shade(0.0), shade(1e-9), shade(1.0)), (0, 1, SHADES));
    for shade_number in 1..=SHADES {
        assert_eq!(shade(share_of_shade(shade_number) * 0.999), shade_number);
    }
    assert_eq!([0.0, 4096.0, 65_536.0, 1e6, 512.5].map(short), ["0", "4096", "65.5k", "1M", "512"]);
}

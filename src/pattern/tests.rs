//! Every leaf against its own definition: bounds and words against `allows`, period, text form.

use std::ops::Range;

use super::*;
use crate::spec::{self, Align};

/// Odd lengths around the block size.
const LENGTHS: [usize; 6] = [1, 2, 63, 64, 65, 130];

fn spec_of(node: &str) -> spec::PatternSpec {
    let text = format!("name: test\nheads: 3\nhead_dim: 8\npattern: {{{node}}}\n").replace("{full}", "full");
    let text = text.replace("{causal}", "causal");
    read(spec::Source::new(text, "<text>"), &[]).unwrap_or_else(|error| panic!("{node}: {error}"))
}

fn pattern_of(node: &str, n: usize) -> Pattern {
    pattern_at(node, n, n, Align::End)
}

fn pattern_at(node: &str, q_len: usize, kv_len: usize, align: Align) -> Pattern {
    let spec = spec::PatternSpec { align, ..spec_of(node) };
    resolve(&spec, q_len, kv_len).unwrap_or_else(|error| panic!("{node}: {error}"))
}

fn leaf_of(pattern: &Pattern) -> &dyn Leaf {
    match &pattern.tree {
        Tree::Leaf(leaf) => leaf.as_ref(),
        other => panic!("not a leaf: {other:?}"),
    }
}

/// Nodes whose bounds come from intervals: exact, so every slack is a fault.
const REGULAR: &[&str] = &[
    "full",
    "causal",
    "window: {radius: 0}",
    "window: {radius: 5}",
    "window: {left: 70, right: 0}",
    "window: {left: 3, right: 40}",
    "window: {radius: 4, dilation: 3}",
    "window: {radius: 2, dilation: 20}",
    "window: {left: 1, right: 2, dilation: 64}",
    "window: {radius: 3, dilation: 1000000000000}",
    "window: {radius: 9007199254740991}",
    "chunk: {size: 1}",
    "chunk: {size: 16}",
    "chunk: {size: 10, stride: 3}",
    "chunk: {size: 3, stride: 10}",
    "chunk: {size: 64, stride: 32}",
    "chunk: {size: 1000000000000, stride: 7}",
    "chunk: {size: 5, stride: 1000000000000}",
    "sink: 0",
    "sink: 4",
    "prefix: \"n/2\"",
    "global: {tokens: [0, 3, 64, 1000]}",
    "global: {tokens: {first: 2}, axis: keys}",
    "global: {tokens: {last: 3}, axis: queries}",
    "global: {tokens: {every: 9, offset: 2}}",
    "global: {tokens: {random: {count: 4, seed: 1, from: 10}}}",
    "global: {tokens: {random: {count: 100, seed: 1}}, axis: queries}",
    "strided: {step: 1, mode: diagonal}",
    "strided: {step: 7, mode: diagonal}",
    "strided: {step: 100, mode: diagonal}",
    "strided: {step: 5, mode: vertical, phase: -2}",
    "strided: {step: 70, mode: vertical, phase: 69}",
    "strided: {step: 4, mode: vertical, phase: \"h*3\"}",
    "exponential: {base: 2}",
    "exponential: {base: 3}",
    "exponential: {base: 1000000000000}",
    "segments: {lengths: [\"n\"]}",
    "segments: {lengths: [\"n//3\", 0, \"n//5\", \"n - n//3 - n//5\"]}",
    "edges: {pairs: []}",
    "edges: {pairs: [[0, 0], [0, 0]]}",
    "grid: {shape: [\"n\"], kernel: [5]}",
    "grid: {shape: [\"n\"], kernel: [4], dilation: [3], edge: truncate}",
    "grid: {shape: [\"n\", 1], kernel: [7, 3], dilation: [20, 1], causal: [true, false]}",
    "axial: {shape: [\"n\", 1], axes: [0]}",
    "axial: {shape: [1, \"n\"], axes: [0]}",
    "axial: {shape: [\"n\"], axes: []}",
    "random: {keys_per_query: 0, seed: 1}",
    "random: {keys_per_query: 5, seed: 1}",
    "random: {keys_per_query: 64, seed: 18446744073709551615, among: past}",
    "random: {keys_per_query: 3, seed: 2, per_head: true}",
    "random_cells: {count: 0, seed: 1}",
    "random_cells: {count: \"n*3\", seed: 1}",
    "random_cells: {count: \"max(0, n*n - 2)\", seed: 1}",
    "random_cells: {count: \"n*n*2\", seed: 1}",
    "random_blocks: {block: 16, blocks_per_row: 2, seed: 1}",
    "random_blocks: {block: 5, blocks_per_row: 1, seed: 3, per_head: true, among: past}",
    "random_blocks: {block: 100, blocks_per_row: 9, seed: 3}",
];

/// Nodes with bounds that may be loose.
const OPAQUE: &[&str] = &[
    "where: \"k <= q\"",
    "where: \"abs(q - k) <= 3 + h or k % 7 == 0\"",
    "where: \"k % (q - 5) == 1\"",
    "where: \"not (k < n/2) and q // 8 == k // 8\"",
    "where: \"sqrt(q - k) < 3 and d == 8 and m == n\"",
];

/// Positions of the queries.
fn positions(pattern: &Pattern) -> Range<i64> {
    pattern.position(0)..pattern.position(pattern.q_len)
}

fn check_cover(node: &str, pattern: &Pattern, exact: bool) {
    let (leaf, n) = (leaf_of(pattern), pattern.kv_len);
    let all = positions(pattern);
    for head in 0..3 {
        let starts = all.clone().step_by(if pattern.q_len > 64 { 7 } else { 3 });
        let ends = |start: i64| {
            [start + 1, start + 2, start + 10, start + 64, all.end].into_iter().filter(|&end| end <= all.end)
        };
        for range in starts.flat_map(|start| ends(start).map(move |end| start..end)) {
            let cover = leaf.cover(head, range.clone());
            for keys in [-5..1, 0..n as i64 / 2, 3..4, n as i64 / 3..n as i64 + 9, 2..2] {
                let within = leaf.cover_within(head, range.clone(), &keys);
                let clip =
                    |cover: &Cover| (cover.some.clip(keys.start, keys.end), cover.all.clip(keys.start, keys.end));
                assert_eq!(clip(&within), clip(&cover), "{node}, n {n}, head {head}, queries {range:?}, keys {keys:?}");
            }
            let queries = range.end - range.start;
            for k in 0..n {
                let count = range.clone().filter(|&q| leaf.allows(head, q, k)).count() as i64;
                let (some, all) = (cover.some.contains(k as i64), cover.all.contains(k as i64));
                let at = format!("{node}, n {n}, head {head}, queries {range:?}, key {k}: {count} allowed, {cover:?}");
                assert!(some || count == 0, "missing in some: {at}");
                assert!(!all || count == queries, "wrong in all: {at}");
                if exact {
                    assert!(!some || count > 0, "loose in some: {at}");
                    assert!(all || count < queries, "missing in all: {at}");
                }
            }
        }
    }
}

fn check_words(node: &str, pattern: &Pattern) {
    let (leaf, n) = (leaf_of(pattern), pattern.kv_len);
    let blocks: Vec<u32> = (0..n.div_ceil(64) as u32).collect();
    for blocks in [&blocks[..], &blocks[blocks.len() - 1..]] {
        for (head, q) in (0..3).flat_map(|head| positions(pattern).map(move |q| (head, q))) {
            let mut words = vec![0; blocks.len()];
            leaf.words(head, q, blocks, &mut words);
            for (&block, word) in blocks.iter().zip(&words) {
                for k in block as usize * 64..n.min(block as usize * 64 + 64) {
                    let bit = word >> (k % 64) & 1 == 1;
                    assert_eq!(bit, leaf.allows(head, q, k), "{node}, n {n}, head {head}, q {q}, k {k}");
                }
            }
        }
    }
}

/// The modulus of every allowed pair, and bounds over residue classes on keys of the class. Where the step is the
/// modulus, regrouping counts on bounds that are as exact as points.
fn check_classes(node: &str, pattern: &Pattern, exact: bool) {
    let (leaf, n) = (leaf_of(pattern), pattern.kv_len);
    let (all, modulus) = (positions(pattern), leaf.modulus() as i64);
    for (head, q, k) in (0..3).flat_map(|head| all.clone().flat_map(move |q| (0..n).map(move |k| (head, q, k)))) {
        let congruent = (q - k as i64) % modulus == 0;
        assert!(congruent || !leaf.allows(head, q, k), "{node}, n {n}, modulus {modulus}: {q}, {k}");
    }
    let steps = [modulus, modulus * 2, 3, 64].into_iter().filter(|&step| step <= n as i64 + 1);
    for (step, first) in steps.flat_map(|step| all.clone().step_by(5).map(move |first| (step, first))) {
        let members = (all.end - first - 1) / step + 1;
        for count in [1, 2, 16, members].into_iter().filter(|&count| count <= members) {
            let cover = leaf.cover_class(1, first, count, step);
            for k in (first.rem_euclid(step) as usize..n).step_by(step as usize) {
                let allowed = (0..count).filter(|i| leaf.allows(1, first + i * step, k)).count() as i64;
                let (some, all) = (cover.some.contains(k as i64), cover.all.contains(k as i64));
                let at =
                    format!("{node}, n {n}, {count} from {first} by {step}, key {k}: {allowed} allowed, {cover:?}");
                assert!(some || allowed == 0, "missing in some: {at}");
                assert!(!all || allowed == count, "wrong in all: {at}");
                if exact && step == modulus && first >= 0 && first + (count - 1) * step < n as i64 {
                    assert!(!some || allowed > 0, "loose in some: {at}");
                    assert!(all || allowed < count, "missing in all: {at}");
                }
            }
        }
    }
}

fn check_period(node: &str, pattern: &Pattern) {
    let (leaf, n) = (leaf_of(pattern), pattern.kv_len as i64);
    let Some(period) = leaf.period() else { return };
    let period = i64::try_from(period).unwrap();
    let all = positions(pattern);
    for (q, k) in (all.start.max(0)..all.end).flat_map(|q| (0..n).map(move |k| (q, k))) {
        if q.saturating_add(period) < all.end && k.saturating_add(period) < n {
            let shifted = leaf.allows(1, q + period, (k + period) as usize);
            assert_eq!(leaf.allows(1, q, k as usize), shifted, "{node}, n {n}: {q}, {k}");
        }
    }
}

#[test]
fn bounds_words_and_period_agree_with_the_definition() {
    for (nodes, exact) in [(REGULAR, true), (OPAQUE, false)] {
        for node in nodes {
            for n in LENGTHS {
                let pattern = pattern_of(node, n);
                check_cover(node, &pattern, exact);
                check_words(node, &pattern);
                check_period(node, &pattern);
                check_classes(node, &pattern, exact);
                let leaf = leaf_of(&pattern);
                let differ = (0..n).any(|q| (0..n).any(|k| leaf.allows(0, q as i64, k) != leaf.allows(1, q as i64, k)));
                assert!(leaf.depends_on_head() || !differ, "{node} depends on the head");
            }
        }
    }
}

#[test]
fn lengths_that_differ_agree_with_the_definition() {
    for (nodes, exact) in [(REGULAR, true), (OPAQUE, false)] {
        for node in nodes {
            for (q_len, kv_len) in [(1, 130), (65, 130), (130, 1), (130, 70)] {
                for align in [Align::End, Align::Start] {
                    let pattern = pattern_at(node, q_len, kv_len, align);
                    let named = format!("{node} {q_len} {align:?}");
                    check_cover(&named, &pattern, exact);
                    check_words(&named, &pattern);
                    check_period(&named, &pattern);
                    check_classes(&named, &pattern, exact);
                }
            }
        }
    }
}

#[test]
fn queries_stand_where_align_says() {
    let allowed = |node: &str, q_len: usize, kv_len: usize, align: Align| -> Vec<(usize, usize)> {
        let pattern = pattern_at(node, q_len, kv_len, align);
        let text = pattern.print();
        let again = parse_text(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let points = (0..q_len).flat_map(|q| (0..kv_len).map(move |k| (q, k)));
        points
            .inspect(|&(q, k)| assert_eq!(again.allows(0, q, k), pattern.allows(0, q, k), "{text}: {q}, {k}"))
            .filter(|&(q, k)| pattern.allows(0, q, k))
            .collect()
    };
    assert_eq!(allowed("causal", 2, 4, Align::End), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]);
    assert_eq!(allowed("causal", 2, 4, Align::Start), [(0, 0), (1, 0), (1, 1)]);
    assert_eq!(allowed("causal", 4, 2, Align::End), [(2, 0), (3, 0), (3, 1)]);
    assert_eq!(allowed("causal", 3, 1, Align::Start), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(allowed("chunk: {size: 3}", 4, 2, Align::End), [(2, 0), (2, 1), (3, 0), (3, 1)]);
    assert_eq!(allowed("global: {tokens: [3], axis: queries}", 4, 1, Align::Start), [(3, 0)]);
    assert_eq!(allowed("global: {tokens: [3], axis: queries}", 1, 4, Align::End).len(), 4);
    assert_eq!(allowed("where: \"q < 0\"", 4, 2, Align::End), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    let layout = "blocks: {block: 2, layout: [[1, 0], [0, 1]]}";
    assert_eq!(allowed(layout, 1, 4, Align::End), [(0, 2), (0, 3)]);
    assert_eq!(allowed("strided: {step: 3, mode: diagonal}", 4, 2, Align::End), [(0, 1), (2, 0), (3, 1)]);
}

#[test]
fn draws_do_not_depend_on_align() {
    for node in ["random: {keys_per_query: 5, seed: 1}", "random_cells: {count: 99, seed: 1}"] {
        let [end, start] = [Align::End, Align::Start].map(|align| pattern_at(node, 20, 70, align));
        assert!((0..20).all(|q| (0..70).all(|k| end.allows(0, q, k) == start.allows(0, q, k))), "{node}");
    }
}

#[test]
fn diffusion_over_lengths_that_differ_is_refused_with_its_line() {
    let text = |diffusion: &str| format!("name: x\nhead_dim: 4\npattern: full\ndiffusion: {diffusion}\n");
    for diffusion in ["{hops: 2}", "{hops: 1, alpha: 0.1}", "{hops: 0}", "{coefficients: [1, 1]}"] {
        let spec = spec::parse(&text(diffusion), "a.yaml").unwrap();
        let error = resolve(&spec, 3, 4).unwrap_err().to_string();
        assert!(error.starts_with("a.yaml:4:1: diffusion needs as many queries as keys; there are 3 and 4"), "{error}");
        assert!(resolve(&spec, 4, 4).is_ok());
    }
    for diffusion in ["{hops: 1}", "{coefficients: [0, 2]}"] {
        assert!(resolve(&spec::parse(&text(diffusion), "a.yaml").unwrap(), 3, 4).is_ok(), "{diffusion}");
    }
}

/// Nodes on a grid, at lengths that are its product.
const GRIDS: &[(&str, usize)] = &[
    ("grid: {shape: [9, 7], kernel: [3, 5]}", 63),
    ("grid: {shape: [8, 8], kernel: [3, 3], edge: truncate}", 64),
    ("grid: {shape: [5, 26], kernel: [13, 4], dilation: [1, 5]}", 130),
    ("grid: {shape: [10, 13], kernel: [3, 3], dilation: [3, 2], causal: [true, false]}", 130),
    ("grid: {shape: [13, 10], kernel: [4, 2], dilation: [2, 4], edge: truncate, causal: [false, true]}", 130),
    ("grid: {shape: [4, 5, 6], kernel: [3, 2, 3], dilation: [1, 2, 1]}", 120),
    ("grid: {shape: [3, 4, 8], kernel: [2, 3, 3], edge: truncate, causal: [true, false, false]}", 96),
    ("grid: {shape: [2, 1, 64], kernel: [1, 1, 64]}", 128),
    ("axial: {shape: [10, 13], axes: [1]}", 130),
    ("axial: {shape: [10, 13], axes: [0]}", 130),
    ("axial: {shape: [4, 5, 6], axes: [1]}", 120),
    ("axial: {shape: [4, 5, 6], axes: [0, 2]}", 120),
    ("axial: {shape: [4, 5, 6], axes: [2, 0, 1]}", 120),
];

#[test]
fn grids_agree_with_the_definition() {
    for &(node, n) in GRIDS {
        for (q_len, align) in [(n, Align::End), (20, Align::End), (n + 9, Align::End), (n + 9, Align::Start)] {
            let pattern = pattern_at(node, q_len, n, align);
            check_cover(node, &pattern, true);
            check_words(node, &pattern);
            check_period(node, &pattern);
            check_classes(node, &pattern, true);
            assert_eq!(parse_text(&pattern.print()).unwrap().print(), pattern.print());
        }
        let spec = spec_of(node);
        let error = resolve(&spec, n, n + 1).unwrap_err().to_string();
        assert!(error.contains(&format!("has {n} tokens")) && error.contains(&(n + 1).to_string()), "{error}");
    }
}

#[test]
fn inner_rows_of_a_grid_repeat() {
    let pattern = pattern_of("grid: {shape: [40, 32], kernel: [5, 7], dilation: [2, 1]}", 1280);
    let leaf = leaf_of(&pattern);
    let inside = 4 * 32..36 * 32;
    assert_eq!((leaf.period(), leaf.period_within(&inside)), (None, Some(32)));
    for (q, k) in (inside.start..inside.end - 64).flat_map(|q| (0..1280 - 64).map(move |k| (q, k))) {
        assert_eq!(leaf.allows(0, q, k as usize), leaf.allows(0, q + 64, k as usize + 64), "{q}, {k}");
    }
    assert!(leaf.period_within(&(3 * 32..36 * 32)).is_none() && leaf.period_within(&(4 * 32..37 * 32)).is_none());
}

/// The first key of neighborhood attention and the one after its last, among the tokens of one residue, as
/// coordinates count them: a fixed number of neighbors on each side, moved where the border is near.
fn neighbors(i: i64, len: i64, kernel: i64, dilation: i64) -> Vec<i64> {
    let class: Vec<i64> = (0..len).filter(|j| j % dilation == i % dilation).collect();
    let mut nearest = class.clone();
    // The nearest ones; of two at one distance the one before comes first.
    nearest.sort_by_key(|j| (2 * (j - i)).abs() - i64::from(*j < i));
    nearest.truncate(kernel as usize);
    nearest.sort_unstable();
    nearest
}

#[test]
fn neighborhoods_are_the_nearest_keys() {
    for (len, kernel, dilation) in [(9, 3, 1), (9, 4, 1), (20, 5, 3), (20, 6, 3), (21, 2, 4), (7, 7, 1), (7, 9, 2)] {
        let node = format!("grid: {{shape: [{len}], kernel: [{kernel}], dilation: [{dilation}]}}");
        let pattern = pattern_of(&node, len as usize);
        for q in 0..len {
            let keys: Vec<i64> = (0..len).filter(|&k| pattern.allows(0, q as usize, k as usize)).collect();
            assert_eq!(keys, neighbors(q, len, kernel, dilation), "{node}: {q}");
        }
    }
}

#[test]
fn layouts_agree_with_the_definition() {
    for node in [
        "blocks: {block: 50, layout: [[1, 0, 1], [0, 0, 7], [1, 1, 1]]}",
        "blocks: {block: 50, layout: [[[1, 0, 1], [0, 0, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1], [1, 1, 1]]]}",
    ] {
        let pattern = pattern_of(node, 130);
        let leaf = leaf_of(&pattern);
        check_cover(node, &pattern, true);
        check_words(node, &pattern);
        assert!(leaf.allows(0, 0, 0) && !leaf.allows(0, 60, 60) && leaf.allows(0, 60, 100));
        assert_eq!(leaf.depends_on_head(), node.contains("[[["));
        assert_eq!(parse_text(&pattern.print()).unwrap().print(), pattern.print());
    }
}

#[test]
fn definitions_are_those_of_the_contract() {
    type Rule = fn(i64, i64) -> bool;
    let rules: [(&str, Rule); 15] = [
        ("causal", |q, k| k <= q),
        ("window: {left: 2, right: 1, dilation: 3}", |q, k| [-6, -3, 0, 3].contains(&(k - q))),
        ("chunk: {size: 4, stride: 2}", |q, k| (0..99).any(|c| 2 * c <= q.min(k) && q.max(k) < 2 * c + 4)),
        ("chunk: {size: 2, stride: 5}", |q, k| (0..99).any(|c| 5 * c <= q.min(k) && q.max(k) < 5 * c + 2)),
        ("global: {tokens: [1, 5]}", |q, k| [1, 5].contains(&q) || [1, 5].contains(&k)),
        ("global: {tokens: {every: 4, offset: 1}, axis: queries}", |q, _| q % 4 == 1),
        ("strided: {step: 3, mode: vertical, phase: 2}", |_, k| k % 3 == 2),
        ("strided: {step: 3, mode: diagonal}", |q, k| (q - k) % 3 == 0),
        ("exponential: {base: 2}", |q, k| [0, 1, 2, 4, 8, 16].contains(&(q - k).abs())),
        ("exponential: {base: 3}", |q, k| [0, 1, 3, 9].contains(&(q - k).abs())),
        ("segments: {lengths: [5, 0, 12, 3]}", |q, k| {
            [0..5, 5..17, 17..20].iter().any(|s| s.contains(&q) && s.contains(&k))
        }),
        ("edges: {pairs: [[3, 4], [0, 19], [3, 1]]}", |q, k| [(3, 4), (0, 19), (3, 1)].contains(&(q, k))),
        ("axial: {shape: [4, 5], axes: [1]}", |q, k| q / 5 == k / 5),
        ("axial: {shape: [2, 2, 5], axes: [0, 2]}", |q, k| q / 5 % 2 == k / 5 % 2),
        ("where: \"k * 2 <= q and k != 3\"", |q, k| k * 2 <= q && k != 3),
    ];
    for (node, rule) in rules {
        let pattern = pattern_of(node, 20);
        for (q, k) in (0..20).flat_map(|q| (0..20).map(move |k| (q, k))) {
            assert_eq!(pattern.allows(0, q, k), rule(q as i64, k as i64), "{node}: {q}, {k}");
        }
    }
}

#[test]
fn random_nodes_draw_as_many_as_they_say() {
    let row = |leaf: &dyn Leaf, head, q: usize, n: usize| (0..n).filter(|&k| leaf.allows(head, q as i64, k)).count();
    let all = pattern_of("random: {keys_per_query: 7, seed: 4}", 130);
    let past = pattern_of("random: {keys_per_query: 7, seed: 4, among: past}", 130);
    for q in 0..130 {
        assert_eq!(row(leaf_of(&all), 0, q, 130), 7);
        assert_eq!(row(leaf_of(&past), 0, q, 130), 7.min(q + 1));
        assert!((q + 1..130).all(|k| !past.allows(0, q, k)));
    }
    for (text, count) in [("5", 5), ("16000", 16_000), ("99999", 16_900), ("8451", 8451)] {
        let cells = pattern_of(&format!("random_cells: {{count: {text}, seed: 9}}"), 130);
        assert_eq!((0..130).map(|q| row(leaf_of(&cells), 0, q, 130)).sum::<usize>(), count);
    }
    let blocks = pattern_of("random_blocks: {block: 10, blocks_per_row: 3, seed: 1, among: past}", 130);
    assert!((0..130).all(|q| row(leaf_of(&blocks), 0, q, 130) == 10 * 3.min(q / 10 + 1)));
    let heads = pattern_of("random: {keys_per_query: 7, seed: 4, per_head: true}", 130);
    assert!((0..130).any(|k| leaf_of(&heads).allows(0, 50, k) != leaf_of(&heads).allows(1, 50, k)));
    let other = pattern_of("random: {keys_per_query: 7, seed: 5}", 130);
    assert!((0..130).any(|k| leaf_of(&all).allows(0, 50, k) != leaf_of(&other).allows(0, 50, k)));
}

#[test]
fn every_node_of_the_table_reads_resolves_and_round_trips() {
    for def in NODES {
        let spec = spec_of(def.example);
        let printed = spec.print();
        let again = spec::parse(&printed, "<printed>").unwrap_or_else(|error| panic!("{printed}\n{error}"));
        assert!(spec.same(&again), "{printed}");
        let pattern = resolve(&spec, 130, 130).unwrap_or_else(|error| panic!("{}: {error}", def.name));
        assert!(def.example.starts_with(def.name) && leaf_of(&pattern).print().starts_with(def.name));
    }
    for combinator in COMBINATORS {
        let spec = spec_of(combinator.example);
        assert!(spec.same(&spec::parse(&spec.print(), "<printed>").unwrap()), "{}", spec.print());
        resolve(&spec, 10, 10).unwrap();
    }
}

#[test]
fn text_form_round_trips() {
    let nested = "all: [{any: [causal, {not: {any: [{sink: 2}, {not: full}]}}]}, {not: {all: [full]}}]";
    for node in REGULAR.iter().chain(OPAQUE).chain([&nested]) {
        let pattern = pattern_of(node, 65);
        let text = pattern.print();
        let again = parse_text(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        assert_eq!(again.print(), text);
        for (head, q, k) in (0..3).flat_map(|h| (0..65).flat_map(move |q| (0..65).map(move |k| (h, q, k)))) {
            assert_eq!(again.allows(head, q, k), pattern.allows(head, q, k), "{text}: {head}, {q}, {k}");
        }
    }
    for text in ["", "pattern", "pattern q_len=1 kv_len=x heads=1\nfull", "pattern q_len=1 kv_len=1 heads=0\nfull"] {
        assert!(matches!(parse_text(text), Err(crate::error::Error::Text { line: 1, .. })), "{text}");
    }
}

#[test]
fn empty_sequences_resolve() {
    for def in NODES {
        resolve(&spec_of(def.example), 0, 0).unwrap_or_else(|error| panic!("{}: {error}", def.name));
    }
}

#[test]
fn heads_have_patterns_of_their_own() {
    let text = "name: x\nheads: 4\nhead_dim: 8\npattern:\n  per_head:\n    - {heads: \"1..3\", pattern: causal}\n    \
                - {heads: [3, 0], pattern: {any: [{window: {radius: 1}}, {strided: {step: 5, mode: vertical, phase: h}}]}}\n";
    let spec = read(spec::Source::new(text, "<text>"), &[]).unwrap_or_else(|error| panic!("{error}"));
    assert!(spec.same(&spec::parse(&spec.print(), "<printed>").unwrap()), "{}", spec.print());
    let pattern = resolve(&spec, 20, 20).unwrap();
    let again = parse_text(&pattern.print()).unwrap_or_else(|error| panic!("{}\n{error}", pattern.print()));
    assert_eq!(again.print(), pattern.print());
    for (q, k) in (0..20_usize).flat_map(|q| (0..20).map(move |k| (q, k))) {
        for head in 0..4 {
            let expected = match head {
                1 | 2 => k <= q,
                _ => q.abs_diff(k) <= 1 || k % 5 == head,
            };
            assert_eq!(pattern.allows(head, q, k), expected, "{head}, {q}, {k}");
            assert_eq!(again.allows(head, q, k), expected, "{head}, {q}, {k}");
        }
    }
    let classes = pattern.head_classes();
    assert!(pattern.depends_on_head() && classes[1] == classes[2] && classes[0] != classes[3]);
    assert_eq!(pattern_of("causal", 5).head_classes(), [0, 0, 0]);
}

#[test]
fn run_time_ids_are_segments() {
    let spec = spec_of("all: [causal, {segments: {input: ids}}, {not: {segments: {input: other}}}]");
    for (q_len, align) in [(7, Align::End), (2, Align::End), (9, Align::Start)] {
        let pattern = resolve(&spec::PatternSpec { align, ..spec.clone() }, q_len, 7).unwrap();
        assert_eq!(parse_text(&pattern.print()).unwrap().print(), pattern.print());
        assert_eq!(pattern.run_time_segments(), ["ids", "other"]);
        assert!(pattern.require_bound().unwrap_err().to_string().contains("`ids`, `other`"));
        let ids = [0, 0, 3, 3, 3, 7, 7];
        let other = [0, 1, 2, 3, 3, 4, 5];
        let segments = |name: &str| Some(if name == "ids" { &ids[..] } else { &other[..] });
        for key_length in [None, Some(6), Some(7), Some(0)] {
            let bound = pattern.bind(&RunTime { key_length, segments: &segments, picked: &|_| None }).unwrap();
            bound.require_bound().unwrap();
            for (q, k) in (0..q_len).flat_map(|q| (0..7).map(move |k| (q, k))) {
                let place = bound.position(q);
                let same = |ids: &[i32]| place < 7 && ids[place as usize] == ids[k];
                let expected =
                    k as i64 <= place && same(&ids) && !same(&other) && key_length.is_none_or(|most| k < most);
                assert_eq!(bound.allows(0, q, k), expected, "{q}, {k}, {key_length:?}");
            }
            assert_eq!(parse_text(&bound.print()).unwrap().print(), bound.print());
        }
    }
    let pattern = resolve(&spec_of("segments: {input: ids}"), 3, 3).unwrap();
    let message = |ids: Option<&'static [i32]>, key_length| {
        pattern.bind(&RunTime { key_length, segments: &|_| ids, picked: &|_| None }).unwrap_err().to_string()
    };
    assert_eq!(
        message(Some(&[0, 2, 1]), None),
        "ids: the segment id at 2 is 1, after 2; expected ids that never decrease"
    );
    assert_eq!(message(Some(&[-1, 2, 1]), None), "ids: the segment id at 0 is -1; expected ids from 0 on");
    assert_eq!(
        message(Some(&[0, 1]), None),
        "ids: expected shape [batch, 3] (batch, kv_len), found 2 ids of a batch element"
    );
    assert_eq!(message(None, None), "ids: is not given; expected i32 segment ids, [batch, kv_len]");
    assert_eq!(
        message(Some(&[0, 0, 0]), Some(4)),
        "key_lengths: a key length is 4; expected at most 3, as many as keys"
    );
    let per_head = "name: x\nheads: 2\nhead_dim: 8\npattern: {per_head: [{heads: [0], pattern: causal}, {heads: [1], pattern: full}]}";
    let pattern = resolve(&spec::parse(per_head, "<text>").unwrap(), 5, 5).unwrap();
    let bound = pattern.bind(&RunTime { key_length: Some(2), segments: &|_| None, picked: &|_| None }).unwrap();
    assert!(bound.allows(1, 0, 1) && !bound.allows(0, 0, 1) && !bound.allows(1, 4, 2));
    assert_eq!(parse_text(&bound.print()).unwrap().print(), bound.print());
}

#[test]
fn edges_are_read_from_files_beside_the_spec() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, pairs: &[[i64; 2]]| {
        ndarray_npy::write_npy(folder.path().join(name), &ndarray::arr2(pairs)).unwrap();
    };
    write("good.npy", &[[5, 0], [1, 6], [5, 0]]);
    write("far.npy", &[[0, 0], [1, 7]]);
    write("negative.npy", &[[-1, 0]]);
    ndarray_npy::write_npy(folder.path().join("i4.npy"), &ndarray::arr2(&[[2_i32, 2]])).unwrap();
    ndarray_npy::write_npy(folder.path().join("f4.npy"), &ndarray::arr2(&[[2_f32, 2.0]])).unwrap();
    ndarray_npy::write_npy(folder.path().join("wide.npy"), &ndarray::arr2(&[[1_i64, 2, 3]])).unwrap();
    let spec_file = folder.path().join("a.yaml").to_string_lossy().into_owned();
    let resolved = |file: &str| {
        let text = format!("name: x\nhead_dim: 4\npattern: {{edges: {{file: {file}}}}}\n");
        resolve(&spec::parse(&text, &spec_file)?, 7, 7)
    };
    let pattern = resolved("good.npy").unwrap();
    let points = (0..7).flat_map(|q| (0..7).map(move |k| (q, k)));
    assert_eq!(points.filter(|&(q, k)| pattern.allows(0, q, k)).collect::<Vec<_>>(), [(1, 6), (5, 0)]);
    assert_eq!(parse_text(&pattern.print()).unwrap().print(), pattern.print());
    assert!(resolved("i4.npy").unwrap().allows(0, 2, 2));
    for (file, message) in [
        ("far.npy", "pair 1, (1, 7), is out of range"),
        ("negative.npy", "pair 0, (-1, 0), is out of range"),
        ("f4.npy", "an array of another type"),
        ("wide.npy", "the array has shape [1, 3]"),
        ("none.npy", "none.npy: No such file"),
    ] {
        let error = resolved(file).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("a.yaml:3:25: "), "{file}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn files_outside_the_folder_need_leave() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let far = other.path().join("far.npy");
    ndarray_npy::write_npy(&far, &ndarray::arr2(&[[1_i64, 1]])).unwrap();
    std::os::unix::fs::symlink(&far, folder.path().join("link.npy")).unwrap();
    let spec_file = folder.path().join("a.yaml").to_string_lossy().into_owned();
    let resolved = |file: &str, name: &str, allow_files: bool| {
        let text = format!("name: x\nhead_dim: 4\npattern: {{edges: {{file: {file}}}}}\n");
        let source = spec::Source { allow_files, ..spec::Source::new(text, name) };
        resolve(&spec::parse_source(source, &[])?, 2, 2)
    };
    for file in [far.to_str().unwrap(), "link.npy"] {
        let error = resolved(file, &spec_file, false).unwrap_err().to_string();
        assert!(error.contains("`--allow-files`"), "{error}");
        assert!(resolved(file, &spec_file, true).unwrap().allows(0, 1, 1));
    }
    let error = resolved(far.to_str().unwrap(), "<stdin>", false).unwrap_err().to_string();
    assert!(error.contains("a spec that is not a file cannot name one"), "{error}");
    assert!(resolved(far.to_str().unwrap(), "<stdin>", true).unwrap().allows(0, 1, 1));
}

#[test]
fn layouts_are_read_from_files_beside_the_spec() {
    let folder = tempfile::tempdir().unwrap();
    let spec_file = folder.path().join("a.yaml");
    let flat = ndarray::arr2(&[[1_u8, 0], [0, 2]]);
    ndarray_npy::write_npy(folder.path().join("flat.npy"), &flat).unwrap();
    let turned = ndarray::arr2(&[[1_i64, 0], [5, 1]]).reversed_axes();
    ndarray_npy::write_npy(folder.path().join("turned.npy"), &turned).unwrap();
    let heads = ndarray::arr3(&[[[true, false], [false, false]], [[false, true], [true, true]]]);
    ndarray_npy::write_npy(folder.path().join("heads.npy"), &heads).unwrap();
    std::fs::write(folder.path().join("cut.npy"), &std::fs::read(folder.path().join("flat.npy")).unwrap()[..100])
        .unwrap();
    std::fs::write(folder.path().join("empty.npy"), []).unwrap();
    ndarray_npy::write_npy(folder.path().join("line.npy"), &ndarray::arr1(&[1_u8])).unwrap();
    let resolved = |file: &str, n: usize| {
        let text = format!("name: x\nheads: 2\nhead_dim: 4\npattern: {{blocks: {{block: 4, file: {file}}}}}\n");
        resolve(&spec::parse(&text, &spec_file.to_string_lossy())?, n, n)
    };
    let allowed = |file: &str| {
        let pattern = resolved(file, 7).unwrap();
        let bits = [(0, 0), (0, 4), (4, 0), (4, 4)].map(|(q, k)| u8::from(pattern.allows(1, q, k)));
        assert_eq!(parse_text(&pattern.print()).unwrap().print(), pattern.print());
        bits
    };
    assert_eq!(allowed("flat.npy"), [1, 0, 0, 1]);
    assert_eq!(allowed("turned.npy"), [1, 1, 0, 1]);
    assert_eq!(allowed("heads.npy"), [0, 1, 1, 1]);
    for (file, n, message) in [
        ("flat.npy", 9, "the layout has shape [2, 2]"),
        ("cut.npy", 7, "cut.npy"),
        ("empty.npy", 7, "empty.npy"),
        ("line.npy", 7, "the layout has 1 axes"),
        ("/etc/passwd", 7, "`file` cannot be"),
        (".", 7, "not a file"),
    ] {
        let error = resolved(file, n).unwrap_err().to_string();
        assert!(error.contains(message), "{file}: {error}");
    }
    let text = "name: x\nhead_dim: 4\npattern: {blocks: {block: 4, file: flat.npy}}\n";
    let error = read(spec::Source::new(text, "<stdin>"), &[]).unwrap_err().to_string();
    assert!(error.contains("cannot name one"), "{error}");
}

#[test]
fn lengths_beyond_the_limit_are_refused() {
    let spec = spec_of("causal");
    for (q_len, kv_len) in [(1, MAX_LENGTH + 1), (MAX_LENGTH + 1, 1)] {
        assert!(matches!(resolve(&spec, q_len, kv_len), Err(crate::error::Error::Limit { .. })));
    }
    assert!(resolve(&spec, MAX_LENGTH, MAX_LENGTH).is_ok());
}

fn hops_of(pattern: &str, hops: &str, q_len: usize, kv_len: usize) -> Result<Pattern, String> {
    let text = format!("name: x\nheads: 3\nhead_dim: 1\npattern: {pattern}\ndiffusion: {{hops: {hops}}}\n");
    let spec = spec::parse(&text, "<text>").unwrap_or_else(|error| panic!("{error}"));
    resolve(&spec, q_len, kv_len).map_err(|error| error.to_string())
}

#[test]
fn hops_with_equal_nodes_share_a_pattern() {
    let random = "{random: {keys_per_query: 4, seed: 7, per_head: true}}";
    let hops =
        format!("[{{pattern: causal}}, {{}}, {{pattern: {random}}}, {{pattern: causal}}, {{pattern: {{sink: 2}}}}]");
    let pattern = hops_of(random, &hops, 30, 30).unwrap();
    assert_eq!((0..6).map(|hop| pattern.index_of_hop(hop)).collect::<Vec<_>>(), [1, 0, 0, 1, 2, 0]);
    assert_eq!(pattern.others().len(), 2);
    let points = |pattern: &Pattern| -> Vec<bool> {
        let place = |i: usize| (i / 900, i / 30 % 30, i % 30);
        (0..2700).map(place).map(|(head, q, k)| pattern.allows(head, q, k)).collect()
    };
    let single = |node: &str| points(&hops_of(node, "1", 30, 30).unwrap());
    for (hop, node) in [(0, "causal"), (1, random), (2, random), (4, "{sink: 2}"), (9, random)] {
        assert_eq!(points(pattern.of_hop(hop)), single(node), "hop {hop}");
    }
    let lone = pattern.first_head_alone();
    assert!(lone.heads == 1 && lone.others().iter().all(|other| other.heads == 1));
    for (q, k) in (0..900).map(|i| (i / 30, i % 30)) {
        assert!((0..5).all(|hop| lone.of_hop(hop).allows(0, q, k) == pattern.of_hop(hop).allows(0, q, k)));
    }
    // The text holds all of them.
    let again = parse_text(&pattern.print()).unwrap_or_else(|error| panic!("{}\n{error}", pattern.print()));
    assert_eq!(again.print(), pattern.print());
    for hop in 0..5 {
        assert_eq!(again.index_of_hop(hop), pattern.index_of_hop(hop));
        assert_eq!(points(again.of_hop(hop)), points(pattern.of_hop(hop)));
    }
    for (text, line) in [
        ("pattern q_len=3 kv_len=3 heads=1 hops=0,2\nfull\npattern of hops 1\ncausal\n", 1),
        ("pattern q_len=3 kv_len=3 heads=1\nfull\npattern of hops 1\ncausal\n", 1),
        ("pattern q_len=3 kv_len=3 heads=1 hops=x\nfull\n", 1),
    ] {
        assert!(
            matches!(parse_text(text), Err(crate::error::Error::Text { line: found, .. }) if found == line),
            "{text}"
        );
    }
    let misspelt = "pattern q_len=3 kv_len=3 heads=1 hops=0,1\nfull\npattern of hops 1\ncasual\n";
    let error = parse_text(misspelt).unwrap_err().to_string();
    assert!(error.contains("<pattern>:4:1") && error.contains("casual"), "{error}");
}

#[test]
fn hops_patterns_are_bound_and_refused_together() {
    let hops = "[{pattern: {segments: {input: a}}}, {pattern: {segments: {input: b}}}, {}]";
    let pattern = hops_of("{segments: {input: b}}", hops, 4, 4).unwrap();
    assert_eq!(pattern.run_time_segments(), ["b", "a"]);
    assert_eq!((pattern.index_of_hop(0), pattern.index_of_hop(1), pattern.index_of_hop(2)), (1, 0, 0));
    let ids = |name: &str| Some(if name == "a" { &[0, 0, 1, 1][..] } else { &[0, 1, 1, 1] });
    let bound = pattern.bind(&RunTime { key_length: Some(3), segments: &ids, picked: &|_| None }).unwrap();
    assert!(bound.run_time_segments().is_empty());
    let keys = |hop: usize, q: usize| (0..4).filter(|&k| bound.of_hop(hop).allows(0, q, k)).collect::<Vec<_>>();
    assert_eq!((keys(0, 0), keys(0, 2)), (vec![0, 1], vec![2]));
    assert_eq!((keys(1, 0), keys(2, 2)), (vec![0], vec![1, 2]));
    let error = hops_of("full", "[{pattern: causal}]", 3, 4).unwrap_err();
    assert!(error.contains("a pattern for each hop needs as many queries as keys; there are 3 and 4"), "{error}");
    // What does not fit the length is told where it stands.
    let error = hops_of("full", "[{pattern: {segments: {lengths: [2, 3]}}}, {}]", 4, 4).unwrap_err();
    assert!(error.contains("<text>:5:"), "{error}");
}

#[test]
fn lower_triangular_masks_are_known_as_their_points_are() {
    let more = [
        "where: \"k <= q\"",
        "where: \"k < q or (q == 60 and k == 61)\"",
        "all: [causal, {random: {keys_per_query: 3, seed: 1}}]",
        "random: {keys_per_query: 3, seed: 1, among: past}",
        "window: {left: 3, right: 0}",
        "not: full",
        "per_head: [{heads: [0], pattern: causal}, {heads: [1, 2], pattern: full}]",
    ];
    let mut found = [0, 0];
    for node in REGULAR.iter().chain(OPAQUE).chain(&more) {
        for n in [1, 64, 130] {
            let pattern = pattern_of(node, n);
            for head in 0..3 {
                let by_points = (0..n).all(|q| (q + 1..n).all(|k| !pattern.allows(head, q, k)));
                assert_eq!(pattern.is_lower_triangular(head), by_points, "{node} at {n}, head {head}");
                found[usize::from(by_points)] += 1;
            }
        }
    }
    assert!(found.iter().all(|&count| count > 20), "{found:?}");
}

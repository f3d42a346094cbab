//! Imported DeepSpeed configurations against layouts written out block by block.

use hopweave::import::{Sizes, deepspeed};
use hopweave::{pattern, spec};

const SIZES: Sizes = Sizes { heads: 4, head_dim: 8 };

/// Blocks of queries by blocks of keys.
type Layout = Vec<Vec<bool>>;

fn layout(blocks: usize, on: impl Fn(usize, usize) -> bool) -> Layout {
    (0..blocks).map(|row| (0..blocks).map(|column| on(row, column)).collect()).collect()
}

/// The pairs that the imported spec allows to a head are those of the layout, token by token; a unidirectional one is
/// causal besides. With `random`, a row has up to so many blocks more.
fn assert_layout(config: &str, head: usize, blocks: usize, causal: bool, random: usize, expected: &Layout) {
    let imported = deepspeed::import(config, "config.json", SIZES).unwrap_or_else(|error| panic!("{error}"));
    let parsed =
        spec::parse(&imported.yaml, "imported.yaml").unwrap_or_else(|error| panic!("{}\n{error}", imported.yaml));
    let block = 4;
    let n = blocks * block;
    let pattern = pattern::resolve(&parsed, n, n).unwrap_or_else(|error| panic!("{}\n{error}", imported.yaml));
    for (row, expected) in expected.iter().enumerate() {
        let mut more = 0;
        for (column, &expected) in expected.iter().enumerate() {
            let tokens = (row * block..(row + 1) * block)
                .flat_map(|q| (column * block..(column + 1) * block).map(move |k| (q, k)))
                .filter(|&(q, k)| !causal || k <= q);
            let found: Vec<bool> = tokens.map(|(q, k)| pattern.allows(head, q, k)).collect();
            if found.is_empty() {
                continue;
            }
            let whole = found.iter().all(|&x| x);
            let at = format!("{config}\n{}\n{blocks} blocks, head {head}, row {row}, column {column}", imported.yaml);
            assert!(whole || found.iter().all(|&x| !x), "a part of a block: {at}");
            assert!(whole || !expected, "missing: {at}");
            more += usize::from(whole && !expected);
            if causal && column == row {
                let later = (row * block..(row + 1) * block - 1).any(|q| pattern.allows(head, q, q + 1));
                assert!(!later, "not causal: {at}");
            }
        }
        assert!(more <= random, "{more} blocks too many in row {row} of {config}\n{}", imported.yaml);
    }
    if causal {
        assert!((0..n).all(|q| (q + 1..n).all(|k| !pattern.allows(head, q, k))), "not causal: {config}");
    }
}

#[test]
fn dense_and_local() {
    for blocks in [1, 3, 9] {
        assert_layout(r#"{"mode": "dense", "block": 4}"#, 0, blocks, false, 0, &layout(blocks, |_, _| true));
        for (window, reach) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
            for mode in ["local", "local_sliding_window"] {
                let config = format!(r#"{{"mode": "{mode}", "block": 4, "num_sliding_window_blocks": {window}}}"#);
                let back = layout(blocks, |row, column| column <= row && row - column <= reach);
                assert_layout(&config, 0, blocks, true, 0, &back);
                let config = config.replace('}', r#", "attention": "bidirectional"}"#);
                let both = layout(blocks, |row, column| row.abs_diff(column) <= reach);
                assert_layout(&config, 0, blocks, false, 0, &both);
            }
        }
    }
}

/// One head of DeepSpeed's fixed layout: windows, and in each window some blocks that stand for it.
fn fixed(blocks: usize, locals: usize, globals: usize, number: usize, causal: bool, horizontal: bool) -> Layout {
    let mut representatives = vec![false; blocks];
    for window in (0..blocks).step_by(locals) {
        let mut first = window + locals - (number + 1) * globals;
        if window + locals > blocks {
            // The last window is short.
            first = first.min(blocks - globals);
        }
        (first..first + globals).for_each(|block| representatives[block] = true);
    }
    layout(blocks, |row, column| {
        let near = row / locals == column / locals;
        let seen = near || representatives[column] || horizontal && representatives[row];
        seen && (!causal || column <= row)
    })
}

#[test]
fn fixed_windows_have_representatives() {
    for (locals, globals, patterns) in [(4, 1, 1), (4, 2, 2), (3, 1, 3), (8, 2, 4), (1, 1, 1)] {
        for (attention, causal, horizontal) in
            [("bidirectional", false, false), ("bidirectional", false, true), ("unidirectional", true, false)]
        {
            let config = format!(
                r#"{{"train_batch_size": 8, "sparse_attention": {{
	"mode": "fixed", "block": 4, "different_layout_per_head": true, "num_local_blocks": {locals},
	"num_global_blocks": {globals}, "attention": "{attention}",
	"horizontal_global_attention": {horizontal}, "num_different_global_patterns": {patterns}}}}}"#
            );
            for blocks in [2, 5, 8, 9, 16, 19].into_iter().filter(|&blocks| blocks >= globals) {
                for head in 0..4 {
                    let expected = fixed(blocks, locals, globals, head % patterns, causal, horizontal);
                    assert_layout(&config, head, blocks, causal, 0, &expected);
                }
            }
        }
    }
}

#[test]
fn variable_windows_and_globals() {
    // More keys, lengths of windows, and global blocks from and until.
    type Case = (&'static str, &'static [usize], &'static [(usize, usize)]);
    let cases: [Case; 5] = [
        ("", &[4], &[(0, 1)]),
        (r#", "local_window_blocks": [1, 3, 2]"#, &[1, 3, 2], &[(0, 1)]),
        (
            r#", "local_window_blocks": [2, 2], "global_block_indices": [0, 3, 100]"#,
            &[2, 2],
            &[(0, 1), (3, 4), (100, 101)],
        ),
        (r#", "global_block_indices": [1, 6], "global_block_end_indices": [3, 8]"#, &[4], &[(1, 3), (6, 8)]),
        (r#", "global_block_indices": []"#, &[4], &[]),
    ];
    for (more, windows, globals) in cases {
        for (attention, causal, horizontal) in
            [("bidirectional", false, false), ("bidirectional", false, true), ("unidirectional", true, false)]
        {
            for random in [0, 2] {
                let config = format!(
                    r#"{{"mode": "variable", "block": 4, "attention": "{attention}", "num_random_blocks": {random},
                    "horizontal_global_attention": {horizontal}{more}}}"#
                );
                for blocks in [2, 6, 7, 13] {
                    // Which window each block lies in; the last length goes on.
                    let mut lengths = windows.iter().copied().chain(std::iter::repeat(*windows.last().unwrap()));
                    let mut of_block = Vec::new();
                    for window in 0.. {
                        of_block.extend(vec![window; lengths.next().unwrap()]);
                        if of_block.len() >= blocks {
                            break;
                        }
                    }
                    let global = |block: usize| globals.iter().any(|&(from, until)| from <= block && block < until);
                    let expected = layout(blocks, |row, column| {
                        let seen = of_block[row] == of_block[column] || global(column) || horizontal && global(row);
                        seen && (!causal || column <= row)
                    });
                    assert_layout(&config, 1, blocks, causal, random, &expected);
                }
            }
        }
    }
}

#[test]
fn bigbird_and_longformer() {
    for (attention, causal) in [("bidirectional", false), ("unidirectional", true)] {
        for (window, globals, random) in [(3, 1, 1), (5, 2, 0), (1, 0, 3)] {
            let config = format!(
                r#"{{"mode": "bigbird", "block": 4, "attention": "{attention}", "num_sliding_window_blocks": {window},
                "num_global_blocks": {globals}, "num_random_blocks": {random}}}"#
            );
            for blocks in [5, 12] {
                let expected = layout(blocks, |row, column| {
                    let seen = row.abs_diff(column) <= window / 2 || row.min(column) < globals;
                    seen && (!causal || column <= row)
                });
                assert_layout(&config, 2, blocks, causal, random, &expected);
            }
        }
        let config = format!(
            r#"{{"mode": "bslongformer", "block": 4, "attention": "{attention}",
            "global_block_indices": [0, 4], "global_block_end_indices": [1, 6]}}"#
        );
        for blocks in [3, 5, 12] {
            let global = |block: usize| block == 0 || (4..6).contains(&block);
            let expected = layout(blocks, |row, column| {
                let seen = row.abs_diff(column) <= 1 || global(row) || global(column);
                seen && (!causal || column <= row)
            });
            assert_layout(&config, 3, blocks, causal, 0, &expected);
        }
    }
}

#[test]
fn what_has_no_equivalent_is_named() {
    let config = r#"{"mode": "bigbird", "num_local_blocks": 3, "attention": "unidirectional"}"#;
    let imported = deepspeed::import(config, "config.json", SIZES).unwrap_or_else(|error| panic!("{error}"));
    for word in ["random", "num_local_blocks", "causal token by token", "heads", "multiples of 16"] {
        assert!(imported.remarks.iter().any(|remark| remark.contains(word)), "{word}: {:?}", imported.remarks);
        assert!(imported.yaml.lines().any(|line| line.starts_with("# - ") && line.contains(word)), "{}", imported.yaml);
    }
}

#[test]
fn wrong_configurations_are_refused_with_their_place() {
    let cases = [
        (r#"{"zero_optimization": {}}"#, "1:1: `sparse_attention` is missing"),
        (r#"{"sparse_attention": {"mode": "fixd"}}"#, "1:31: unknown mode `fixd`"),
        (r#"{"mode": "fixed", "num_local_block": 4}"#, "1:19: unknown key `num_local_block` in sparse_attention"),
        ("{\n\t\"mode\": \"fixed\",\n\t\"block\": 0}", "3:11: `block` cannot be `0`"),
        (r#"{"mode": "fixed", "num_local_blocks": 4, "num_global_blocks": 3}"#, "which does not divide 4"),
        (
            r#"{"mode": "fixed", "attention": "unidirectional", "horizontal_global_attention": true}"#,
            "horizontal global attention in a unidirectional layout",
        ),
        (r#"{"mode": "fixed", "num_different_global_patterns": 2}"#, "2 global patterns with one layout"),
        (
            r#"{"mode": "fixed", "different_layout_per_head": true, "num_different_global_patterns": 5}"#,
            "`num_different_global_patterns` is 5",
        ),
        (r#"{"mode": "variable", "global_block_indices": [3], "global_block_end_indices": [3]}"#, "from 3 to 3"),
        (r#"{"mode": "variable", "global_block_indices": [3, 4], "global_block_end_indices": [5]}"#, "1 end indices"),
        (r#"{"mode": "variable", "local_window_blocks": []}"#, "`local_window_blocks` is empty"),
        ("[1, 2]", "the configuration cannot be a list"),
        (r#"{"mode": "#, "not valid YAML"),
    ];
    for (config, message) in cases {
        let error = deepspeed::import(config, "config.json", SIZES).unwrap_err().to_string();
        assert!(error.starts_with("config.json:") && error.contains(message), "{config}\n{error}");
    }
}

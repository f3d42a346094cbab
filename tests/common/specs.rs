//! Random specs: the input of the property tests, and of the fuzz targets.

use proptest::prelude::*;

/// A leaf, in YAML's flow style, at a length.
fn leaf(n: usize) -> BoxedStrategy<String> {
    let number = || 0..70_u32;
    let tokens = prop_oneof![
        number().prop_map(|count| format!("{{first: {count}}}")),
        number().prop_map(|count| format!("{{last: {count}}}")),
        (1..50_u32, number()).prop_map(|(step, offset)| format!("{{every: {step}, offset: {offset}}}")),
        (0..30_u32, 0..9_u32, number())
            .prop_map(|(count, seed, from)| format!("{{random: {{count: {count}, seed: {seed}, from: {from}}}}}")),
        prop::collection::vec(0..200_u32, 0..6).prop_map(|list| format!("{list:?}")),
    ];
    let axis = prop::sample::select(vec!["both", "keys", "queries"]);
    let among = || prop::sample::select(vec!["all", "past"]);
    // A layout must fit the length.
    let blocks = (1..80_usize, any::<u64>()).prop_map(move |(block, bits)| {
        let count = n.div_ceil(block);
        let row = |i: usize| {
            let entry = |j: usize| u64::to_string(&(bits.rotate_left((i * 7 + j * 13) as u32) & 1));
            format!("[{}]", (0..count).map(entry).collect::<Vec<_>>().join(", "))
        };
        let layout: Vec<String> = (0..count).map(row).collect();
        match count {
            0 => "full".to_string(),
            _ => format!("{{blocks: {{block: {block}, layout: [{}]}}}}", layout.join(", ")),
        }
    });
    let predicates = (1..9_i32, 0..9_i32, -80..200_i32).prop_map(|(a, b, c)| {
        let choices = [
            format!("(q - k) % {a} == {b}"),
            format!("q + k < n + {c}"),
            format!("h % 2 == 0 or k < {c}"),
            format!("abs(q - k) < {c} and not k % {a} == 0"),
            format!("q // {a} == k // {a}"),
            format!("min(q, k) * {a} <= max(q, k) + {c}"),
        ];
        format!("{{where: \"{}\"}}", choices[b as usize % choices.len()])
    });
    // The first axis is a divisor of the length, found from any number.
    let shape = move |from: usize| {
        let extent = (1..=from % n.max(1) + 1).rev().find(|extent| n.is_multiple_of(*extent)).unwrap_or(1);
        format!("[{extent}, {}]", n / extent)
    };
    let pair = |low: u32, high: u32| (low..high, low..high).prop_map(|(a, b)| format!("[{a}, {b}]"));
    let edge = prop::sample::select(vec!["clamp", "truncate"]);
    let grids = (0..400_usize, pair(1, 20), pair(1, 4), edge, any::<bool>(), any::<bool>()).prop_map(
        move |(from, kernel, dilation, edge, a, b)| {
            let shape = shape(from);
            format!(
                "{{grid: {{shape: {shape}, kernel: {kernel}, dilation: {dilation}, edge: {edge}, causal: [{a}, {b}]}}}}"
            )
        },
    );
    let axial = (0..400_usize, prop::sample::select(vec!["[]", "[0]", "[1]", "[1, 0]"]))
        .prop_map(move |(from, axes)| format!("{{axial: {{shape: {}, axes: {axes}}}}}", shape(from)));
    let segments = prop::collection::vec(0..90_usize, 0..5).prop_map(move |lengths| {
        let mut left = n;
        let mut lengths = lengths;
        for length in &mut lengths {
            *length = left.min(*length);
            left -= *length;
        }
        lengths.push(left);
        format!("{{segments: {{lengths: {lengths:?}}}}}")
    });
    let edges = prop::collection::vec((0..n.max(1), 0..n.max(1)), 0..9).prop_map(|pairs| {
        let pairs: Vec<String> = pairs.into_iter().map(|(q, k)| format!("[{q}, {k}]")).collect();
        format!("{{edges: {{pairs: [{}]}}}}", pairs.join(", "))
    });
    prop_oneof![
        grids,
        axial,
        segments,
        edges,
        (2..9_u32).prop_map(|base| format!("{{exponential: {{base: {base}}}}}")),
        Just("full".to_string()),
        Just("causal".to_string()),
        number().prop_map(|radius| format!("{{window: {{radius: {radius}}}}}")),
        (number(), number(), 1..6_u32)
            .prop_map(|(l, r, dilation)| format!("{{window: {{left: {l}, right: {r}, dilation: {dilation}}}}}")),
        (1..130_u32, 1..130_u32).prop_map(|(size, stride)| format!("{{chunk: {{size: {size}, stride: {stride}}}}}")),
        (tokens, axis).prop_map(|(tokens, axis)| format!("{{global: {{tokens: {tokens}, axis: {axis}}}}}")),
        number().prop_map(|count| format!("{{sink: {count}}}")),
        (1..5_u32).prop_map(|part| format!("{{prefix: \"n // {part}\"}}")),
        (1..70_u32).prop_map(|step| format!("{{strided: {{step: {step}, mode: diagonal}}}}")),
        (1..70_u32, number())
            .prop_map(|(step, phase)| format!("{{strided: {{step: {step}, mode: vertical, phase: \"{phase} + h\"}}}}")),
        (0..12_u32, 0..9_u32, any::<bool>(), among()).prop_map(|(count, seed, per_head, among)| format!(
            "{{random: {{keys_per_query: {count}, seed: {seed}, per_head: {per_head}, among: {among}}}}}"
        )),
        (0..600_u32, 0..9_u32)
            .prop_map(|(count, seed)| format!("{{random_cells: {{count: {count}, seed: {seed}}}}}")),
        (1..80_u32, 0..4_u32, 0..9_u32, any::<bool>(), among()).prop_map(|(block, rows, seed, per_head, among)| {
            format!("{{random_blocks: {{block: {block}, blocks_per_row: {rows}, seed: {seed}, per_head: {per_head}, among: {among}}}}}")
        }),
        blocks,
        predicates,
    ]
    .boxed()
}

fn tree(n: usize) -> BoxedStrategy<String> {
    leaf(n)
        .prop_recursive(3, 8, 3, |inner| {
            let several = || prop::collection::vec(inner.clone(), 1..4).prop_map(|nodes| nodes.join(", "));
            prop_oneof![
                3 => several().prop_map(|nodes| format!("{{any: [{nodes}]}}")),
                2 => several().prop_map(|nodes| format!("{{all: [{nodes}]}}")),
                1 => inner.clone().prop_map(|node| format!("{{not: {node}}}")),
            ]
        })
        .boxed()
}

fn diffusion() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("{hops: 1}".to_string()),
        3 => (0..5_u32, 0..5_u32).prop_map(|(hops, alpha)| format!("{{hops: {hops}, alpha: {}}}", f64::from(alpha) / 4.0)),
        1 => (1..4_u32).prop_map(|hops| format!("{{heat: 1.5, hops: {hops}}}")),
        1 => prop::collection::vec(-2..3_i32, 1..5).prop_map(|terms| format!("{{coefficients: {terms:?}}}")),
        1 => Just("{hops: all, alpha: 0.5}".to_string()),
        1 => Just("{hops: [{}, {pattern: causal}, {pattern: {window: {radius: 9}}}], alpha: 0.25}".to_string()),
    ]
}

/// The text of a spec, and its length.
pub fn spec_text() -> impl Strategy<Value = (String, usize)> {
    let n = prop_oneof![8 => 0..200_usize, 1 => Just(64), 1 => Just(128), 1 => 200..400_usize];
    let dims = || prop_oneof![4 => 1..20_usize, 1 => 20..100_usize];
    // Some patterns are chosen by head.
    let root = |n: usize, heads: usize| {
        let parts = prop::collection::vec(tree(n), heads).prop_map(|trees| {
            let part = |(head, tree)| format!("{{heads: [{head}], pattern: {tree}}}");
            format!("{{per_head: [{}]}}", trees.iter().enumerate().map(part).collect::<Vec<_>>().join(", "))
        });
        prop_oneof![5 => tree(n), 1 => parts]
    };
    let sizes = (n, 1..4_usize);
    sizes.prop_flat_map(move |(n, heads)| (Just(n), root(n, heads), dims(), dims(), Just(heads), any::<bool>(), diffusion())).prop_map(
        |(n, tree, head_dim, value_dim, heads, grouped, diffusion)| {
            let kv_heads = if grouped { 1 } else { heads };
            // Hops without end are solved row after row where no key comes after its query.
            let causal = diffusion.contains("all") && !tree.contains("per_head") && n % 4 != 0;
            let tree = if causal { format!("{{all: [causal, {tree}]}}") } else { tree };
            let text = format!(
                "name: random\nheads: {heads}\nkv_heads: {kv_heads}\nhead_dim: {head_dim}\nvalue_dim: {value_dim}\npattern: {tree}\n\
                 diffusion: {diffusion}\n"
            );
            (text, n)
        },
    )
}

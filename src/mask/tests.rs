//! The mask against its definition: every pair of every test pattern, decoded, and structure at a million.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::pattern::{Cover, HopPatterns, KeySet, Leaf, Pattern, Tree};
use crate::spec::Align;

const LIMIT: u64 = 1 << 30;
const LENGTHS: [usize; 9] = [0, 1, 2, 63, 64, 65, 127, 251, 1000];

/// `-left <= k - q <= right` and `step` divides `k - q`.
#[derive(Debug)]
struct Window {
    left: i64,
    right: i64,
    step: i64,
}

impl Leaf for Window {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        let apart = k as i64 - q;
        -self.left <= apart && apart <= self.right && apart % self.step == 0
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        let (first, last) = (queries.start, queries.end - 1);
        let some = KeySet::span(first - self.left, last + self.right + 1);
        let all = if self.step == 1 { KeySet::span(last - self.left, first + self.right + 1) } else { KeySet::empty() };
        Cover { some, all }
    }

    fn period(&self) -> Option<u64> {
        Some(1)
    }

    fn print(&self) -> String {
        format!("{self:?}")
    }
}

/// `k < end`.
#[derive(Debug)]
struct Sink {
    end: i64,
}

impl Leaf for Sink {
    fn allows(&self, _: usize, _: i64, k: usize) -> bool {
        (k as i64) < self.end
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        let keys = KeySet::span(-KeySet::BOUND, self.end);
        Cover { some: keys.clone(), all: keys }
    }

    fn print(&self) -> String {
        format!("{self:?}")
    }
}

/// `q` or `k` is one of `tokens`.
#[derive(Debug)]
struct Global {
    tokens: Vec<i64>,
}

impl Leaf for Global {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        self.tokens.binary_search(&q).is_ok() || self.tokens.binary_search(&(k as i64)).is_ok()
    }

    fn cover(&self, _: usize, queries: Range<i64>) -> Cover {
        let keys = KeySet::from_sorted_keys(self.tokens.iter().copied());
        let inside = self.tokens.iter().filter(|token| queries.contains(token)).count() as i64;
        let every = KeySet::everything();
        Cover {
            some: if inside > 0 { every.clone() } else { keys.clone() },
            all: if inside == queries.end - queries.start { every } else { keys },
        }
    }

    fn dense_queries(&self) -> &[i64] {
        &self.tokens
    }

    fn print(&self) -> String {
        format!("{self:?}")
    }
}

/// `count` keys a query by a hash of the query, differing by head.
#[derive(Debug)]
struct Random {
    count: u64,
    keys: u64,
    by_head: bool,
}

impl Random {
    fn drawn(&self, head: usize, q: i64) -> Vec<u32> {
        let head = if self.by_head { head as u64 + 1 } else { 0 };
        let mut keys: Vec<u32> = (0..self.count.min(self.keys))
            .map(|draw| {
                let mixed = (q as u64)
                    .wrapping_mul(7919)
                    .wrapping_add(draw * 104_729 + head * 31)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                ((mixed >> 20) % self.keys) as u32
            })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

impl Leaf for Random {
    fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        self.drawn(head, q).contains(&(k as u32))
    }

    fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        let mut keys: Vec<u32> = queries.clone().flat_map(|q| self.drawn(head, q)).collect();
        keys.sort_unstable();
        let some = KeySet::from_sorted_keys(keys.iter().map(|&key| i64::from(key)));
        Cover { all: if queries.end - queries.start == 1 { some.clone() } else { KeySet::empty() }, some }
    }

    fn words(&self, head: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        for key in self.drawn(head, q) {
            if let Ok(at) = blocks.binary_search(&(key / 64)) {
                out[at] |= 1 << (key % 64);
            }
        }
    }

    fn depends_on_head(&self) -> bool {
        self.by_head
    }

    fn print(&self) -> String {
        format!("{self:?}")
    }
}

/// Nothing is known but points; with a period that divides the block, does not, or is missing.
#[derive(Debug)]
struct Opaque {
    modulus: u64,
    density: u64,
    period: Option<u64>,
}

impl Leaf for Opaque {
    fn allows(&self, _: usize, q: i64, k: usize) -> bool {
        let (q, k) = match self.period {
            Some(period) => {
                let period = period as i64;
                let shift = q.div_euclid(period) * period;
                ((q - shift) as u64, (k as i64 + (period << 20) - shift) as u64)
            }
            None => (q as u64, k as u64),
        };
        (q.wrapping_mul(31).wrapping_add(k.wrapping_mul(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % self.modulus
            < self.density
    }

    fn cover(&self, _: usize, _: Range<i64>) -> Cover {
        Cover { some: KeySet::everything(), all: KeySet::empty() }
    }

    fn period(&self) -> Option<u64> {
        self.period
    }

    fn print(&self) -> String {
        format!("{self:?}")
    }
}

fn leaf(leaf: impl Leaf + 'static) -> Tree {
    Tree::Leaf(Arc::new(leaf))
}

fn window(left: i64, right: i64) -> Tree {
    leaf(Window { left, right, step: 1 })
}

fn causal() -> Tree {
    window(1 << 40, 0)
}

fn full() -> Tree {
    window(1 << 40, 1 << 40)
}

fn pattern(tree: Tree, n: usize) -> Pattern {
    Pattern { q_len: n, kv_len: n, heads: 2, align: Align::End, tree, hops: HopPatterns::default() }
}

fn random(count: u64, n: usize, by_head: bool) -> Tree {
    leaf(Random { count, keys: n.max(1) as u64, by_head })
}

fn trees(n: usize) -> Vec<(&'static str, Tree)> {
    let global = |step: usize| leaf(Global { tokens: (3..n as i64).step_by(step).collect() });
    vec![
        ("full", full()),
        ("causal", causal()),
        ("anti-causal", Tree::Not(Box::new(causal()))),
        ("nothing", Tree::Not(Box::new(full()))),
        ("window", window(17, 17)),
        ("wide window", window(128, 100)),
        ("dilated", leaf(Window { left: 60, right: 30, step: 3 })),
        ("streaming", Tree::Any(vec![leaf(Sink { end: 4 }), Tree::All(vec![window(70, 3), causal()])])),
        ("outside a window", Tree::Not(Box::new(window(40, 200)))),
        ("longformer", Tree::Any(vec![window(32, 32), leaf(Global { tokens: (0..70.min(n as i64)).collect() })])),
        ("scattered globals", Tree::Any(vec![window(32, 32), global(97)])),
        ("diffuser", Tree::Any(vec![window(32, 32), global(131), random(9, n, false)])),
        ("random by head", Tree::Any(vec![window(3, 3), random(5, n, true)])),
        ("opaque", leaf(Opaque { modulus: 7, density: 3, period: None })),
        ("opaque, period 32", leaf(Opaque { modulus: 7, density: 6, period: Some(32) })),
        (
            "opaque in a band",
            Tree::All(vec![window(90, 90), leaf(Opaque { modulus: 9, density: 5, period: Some(24) })]),
        ),
    ]
}

/// Every pair of the mask equals the pattern's, for every head.
fn assert_equal_to_points(name: &str, pattern: &Pattern, mask: &BlockMask) {
    assert_eq!((mask.q_len, mask.kv_len, mask.mask_of_head.len()), (pattern.q_len, pattern.kv_len, pattern.heads));
    for head in 0..pattern.heads {
        let mut nnz = 0;
        let mut empty = 0;
        for place in 0..pattern.q_len {
            let q = mask.masks[mask.mask_of_head[head] as usize].order.query_at(place);
            let expected: Vec<u32> =
                (0..pattern.kv_len).filter(|&k| pattern.allows(head, q, k)).map(|k| k as u32).collect();
            assert_eq!(mask.keys_of(head, q), expected, "{name}: n {}, head {head}, query {q}", pattern.q_len);
            nnz += expected.len() as u64;
            empty += u64::from(expected.is_empty());
        }
        assert_eq!(mask.nnz(head), nnz, "{name}: pairs");
        assert_eq!(mask.empty_rows(head), empty, "{name}: empty rows");
    }
}

#[test]
fn decoded_masks_equal_points() {
    for n in LENGTHS {
        for (name, tree) in trees(n) {
            let pattern = pattern(tree, n);
            assert_equal_through_passes(name, &pattern);
        }
    }
}

#[test]
fn lengths_that_differ_equal_points() {
    for (q_len, kv_len) in [(1, 700), (65, 400), (200, 500), (500, 200), (300, 1), (64, 0), (0, 64)] {
        for align in [Align::End, Align::Start] {
            for (name, tree) in trees(kv_len) {
                let name = format!("{name}, {align:?}, {q_len} queries, {kv_len} keys");
                assert_equal_through_passes(
                    &name,
                    &Pattern { q_len, kv_len, heads: 2, align, tree, hops: HopPatterns::default() },
                );
            }
        }
    }
}

#[test]
fn nodes_that_repeat_in_places_equal_points() {
    // Rows of a grid repeat away from its border; segments and blocks repeat where they are decided.
    for (node, n) in [
        ("grid: {shape: [20, 32], kernel: [5, 7], dilation: [2, 1]}", 640),
        ("grid: {shape: [10, 64], kernel: [3, 9], edge: truncate, causal: [true, false]}", 640),
        ("grid: {shape: [6, 16, 8], kernel: [3, 3, 3]}", 768),
        ("grid: {shape: [500], kernel: [31], dilation: [3]}", 500),
        ("grid: {shape: [15, 40], kernel: [7, 7]}", 600),
        ("grid: {shape: [20, 32], kernel: [7, 9]}", 640),
        ("grid: {shape: [2, 21, 18], kernel: [1, 7, 7], causal: [false, true, false]}", 756),
        ("axial: {shape: [8, 64], axes: [1]}", 512),
        ("axial: {shape: [8, 64], axes: [0]}", 512),
        ("segments: {lengths: [100, 1, 64, 320, \"n - 485\"]}", 600),
        ("exponential: {base: 2}", 400),
        ("edges: {pairs: [[0, 399], [70, 3], [71, 3], [200, 200]]}", 400),
    ] {
        for tree in [node.to_string(), format!("any: [{{{node}}}, {{sink: 3}}]"), format!("all: [causal, {{{node}}}]")]
        {
            let text = format!("name: test\nheads: 2\nhead_dim: 8\npattern: {{{tree}}}\n");
            let spec = crate::spec::parse(&text, "<text>").unwrap_or_else(|error| panic!("{error}"));
            let pattern = crate::pattern::resolve(&spec, n, n).unwrap_or_else(|error| panic!("{error}"));
            assert_equal_through_passes(&tree, &pattern);
        }
    }
}

#[test]
fn neighbors_on_a_grid_stand_in_patches() {
    let mask_of = |node: &str, n: usize| {
        let text = format!("name: test\nhead_dim: 8\npattern: {{{node}}}\n");
        let pattern = crate::pattern::resolve(&crate::spec::parse(&text, "<text>").unwrap(), n, n).unwrap();
        build(&pattern, u64::MAX).unwrap().masks.remove(0)
    };
    let patches = mask_of("grid: {shape: [64, 64], kernel: [13, 13]}", 4096);
    let RowOrder::Permuted(order) = &patches.order else { panic!("in the order of memory") };
    assert_eq!(order[..9], [0, 1, 2, 3, 64, 65, 66, 67, 128]);
    assert_eq!((order[16], order[64], order[1024]), (4, 16, 1024));
    // A patch of one line sees no fewer keys.
    assert_eq!(mask_of("grid: {shape: [4, 1024], kernel: [1, 13]}", 4096).order, RowOrder::Identity);
    assert_eq!(mask_of("grid: {shape: [4096], kernel: [13]}", 4096).order, RowOrder::Identity);
}

#[test]
fn patterns_by_head_share_masks() {
    let text = "name: test\nheads: 6\nhead_dim: 8\npattern: {per_head: [{heads: [5, 0, 2], pattern: causal}, \
                {heads: [1, 3], pattern: {random: {keys_per_query: 3, seed: 1, per_head: true}}}, {heads: [4], pattern: full}]}\n";
    let spec = crate::spec::parse(text, "<text>").unwrap_or_else(|error| panic!("{error}"));
    let pattern = crate::pattern::resolve(&spec, 200, 200).unwrap_or_else(|error| panic!("{error}"));
    assert_equal_through_passes("by head", &pattern);
    let mask = build(&pattern, LIMIT).unwrap();
    assert_eq!((mask.masks.len(), mask.mask_of_head.as_slice()), (4, &[0, 1, 0, 2, 3, 0][..]));
}

#[test]
fn patterns_that_wait_for_inputs_have_no_mask() {
    let spec = crate::spec::parse("name: x\nhead_dim: 8\npattern: {segments: {input: ids}}\n", "<text>").unwrap();
    let error = build(&crate::pattern::resolve(&spec, 9, 9).unwrap(), LIMIT).unwrap_err();
    assert!(matches!(&error, crate::error::Error::Unsupported { given, .. } if given.contains("`ids`")), "{error}");
}

#[test]
fn a_long_cache_costs_no_more_runs() {
    let (q_len, kv_len) = (100_000, 1_000_000);
    for align in [Align::End, Align::Start] {
        let tree = Tree::Any(vec![leaf(Sink { end: 4 }), Tree::All(vec![window(255, 3), causal()])]);
        let mask =
            build(&Pattern { q_len, kv_len, heads: 1, align, tree, hops: HopPatterns::default() }, LIMIT).unwrap();
        verify(&mask).unwrap();
        assert!(mask.masks[0].rows.len() <= 8, "{align:?}: {} runs", mask.masks[0].rows.len());
    }
    let mask = build(
        &Pattern { q_len: 1, kv_len, heads: 1, align: Align::End, tree: window(1000, 0), hops: HopPatterns::default() },
        LIMIT,
    )
    .unwrap();
    assert_eq!(mask.keys_of(0, 0), (kv_len as u32 - 1001..kv_len as u32).collect::<Vec<_>>());
}

/// The mask as built, after each pass, and after its text, with the rules checked each time.
fn assert_equal_through_passes(name: &str, pattern: &Pattern) {
    let mut mask = build(pattern, LIMIT).unwrap();
    let check = |mask: &BlockMask| {
        verify(mask).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_equal_to_points(name, pattern, mask);
        assert_eq!(parse(&mask.print()).unwrap(), *mask, "{name}");
    };
    check(&mask);
    mask.masks.iter_mut().for_each(|head| coalesce(head, pattern.q_len));
    check(&mask);
    let again = mask.clone();
    mask.masks.iter_mut().for_each(|head| coalesce(head, pattern.q_len));
    assert_eq!(mask, again, "{name}: coalesce twice");
    mask.masks.iter_mut().for_each(gather_columns);
    check(&mask);
}

fn some_tree() -> impl Strategy<Value = Tree> {
    let leaves = prop_oneof![
        (0i64..200, 0i64..200, 1i64..4).prop_map(|(left, right, step)| leaf(Window { left, right, step })),
        (0i64..150).prop_map(|end| leaf(Sink { end })),
        prop::collection::btree_set(0i64..300, 1..40)
            .prop_map(|tokens| leaf(Global { tokens: tokens.into_iter().collect() })),
        (1u64..8, any::<bool>()).prop_map(|(count, by_head)| random(count, 300, by_head)),
        (2u64..9, prop_oneof![Just(None), Just(Some(16)), Just(Some(64)), Just(Some(24))])
            .prop_map(|(modulus, period)| leaf(Opaque { modulus, density: 2, period })),
    ];
    leaves.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Tree::Any),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Tree::All),
            inner.prop_map(|tree| Tree::Not(Box::new(tree))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn random_trees_equal_points(
        tree in some_tree(),
        q_len in 0usize..400,
        kv_len in 0usize..400,
        align in prop::sample::select(vec![Align::End, Align::Start]),
    ) {
        let pattern = Pattern { q_len, kv_len, heads: 2, align, tree, hops: HopPatterns::default() };
        assert_equal_through_passes("random tree", &pattern);
    }
}

#[test]
fn copied_and_scattered_rows_equal_points_at_length() {
    let n = 20_000;
    let far = leaf(Global { tokens: vec![70, 5000, 5001, 9999, 19_990] });
    let cases = [
        ("window", window(128, 100)),
        ("causal", causal()),
        ("future", Tree::Not(Box::new(causal()))),
        ("streaming", Tree::Any(vec![leaf(Sink { end: 4 }), Tree::All(vec![window(255, 0), causal()])])),
        ("cut off", Tree::All(vec![window(500, 500), Tree::Not(Box::new(leaf(Sink { end: 9000 })))])),
        ("far globals", Tree::Any(vec![window(64, 64), far])),
        ("causal globals", Tree::All(vec![causal(), Tree::Any(vec![window(64, 64), leaf(Sink { end: 100 })])])),
        ("random", Tree::Any(vec![window(20, 20), random(5, n, true)])),
        ("random past", Tree::All(vec![causal(), random(40, n, false)])),
    ];
    for (name, tree) in cases {
        let pattern = pattern(tree, n);
        let mask = build(&pattern, LIMIT).unwrap();
        verify(&mask).unwrap();
        for place in (0..n).step_by(97).chain(n - 130..n) {
            let q = mask.masks[mask.mask_of_head[1] as usize].order.query_at(place);
            let expected: Vec<u32> = (0..n).filter(|&k| pattern.allows(1, q, k)).map(|k| k as u32).collect();
            assert!(mask.keys_of(1, q) == expected, "{name}: query {q}");
        }
    }
}

#[test]
fn a_million_tokens_are_a_handful_of_runs() {
    let n = 1_000_000;
    let structures = [
        ("full", full(), 1, n as u64 * n as u64),
        ("causal", causal(), 3, (n * (n + 1) / 2) as u64),
        ("window", window(128, 128), 8, 257 * n as u64 - 128 * 129),
        (
            "streaming",
            Tree::Any(vec![leaf(Sink { end: 4 }), Tree::All(vec![window(255, 0), causal()])]),
            8,
            // The band cut at key 0, the sink beside it, and the sink's keys ahead of queries 0 to 2.
            256 * n as u64 - 255 * 256 / 2 + (4..n).map(|q| (q as u64).saturating_sub(255).min(4)).sum::<u64>() + 6,
        ),
        ("longformer", Tree::Any(vec![window(128, 128), leaf(Global { tokens: (0..64).collect() })]), 9, 0),
    ];
    for (name, tree, runs, nnz) in structures {
        let mask = build(&pattern(tree, n), LIMIT).unwrap();
        assert!(mask.masks[0].rows.len() <= runs, "{name}: {} runs", mask.masks[0].rows.len());
        if nnz > 0 {
            assert_eq!(mask.nnz(0), nnz, "{name}");
        }
    }
}

#[test]
fn heads_share_a_mask_unless_they_differ() {
    let shared = build(&pattern(random(4, 200, false), 200), LIMIT).unwrap();
    assert_eq!((shared.masks.len(), shared.mask_of_head.as_slice()), (1, &[0, 0][..]));
    let own = build(&pattern(random(4, 200, true), 200), LIMIT).unwrap();
    assert_eq!((own.masks.len(), own.mask_of_head.as_slice()), (2, &[0, 1][..]));
}

#[test]
fn scattered_globals_share_one_list() {
    let tokens: Vec<i64> = (100..2000).step_by(50).collect();
    let n = 6400;
    let tree = Tree::Any(vec![window(40, 40), leaf(Global { tokens: tokens.clone() })]);
    let mut mask = build(&pattern(tree, n), LIMIT).unwrap().masks.remove(0);
    coalesce(&mut mask, n);
    let before = mask.counts(n);
    gather_columns(&mut mask);
    let after = mask.counts(n);
    assert_eq!((before.nnz(), before.empty_rows), (after.nnz(), after.empty_rows));
    let list: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
    assert!(mask.lists.contains(&list), "rows far from all tokens have them all in one list");
    assert!(after.row_runs < 50 && after.full_segments < before.full_segments / 10, "{after:?}");
}

#[test]
fn short_neighbors_join() {
    let range = |start, len, mask| Segment { keys: Keys::Range { start, len, start_step: 0, len_step: 0 }, mask };
    let segments = vec![range(0, 2, Some(0)), range(2, 3, None), range(5, 2, Some(0)), range(7, 90, None)];
    let mut mask = HeadMask {
        keys: KeyOrder::Identity,
        order: RowOrder::Identity,
        rows: vec![RowRun { first: 0, count: 1, segments }],
        words: vec![vec![1, 2]],
        lists: Vec::new(),
        edges: Edges::default(),
    };
    coalesce(&mut mask, 3);
    assert_eq!(mask.rows[0].segments, [range(0, 7, Some(0)), range(7, 90, None)]);
    assert_eq!(mask.words, [vec![1, 2, 7, 7, 7, 1, 2]]);
}

#[test]
fn text_is_readable() {
    let mut tree = vec![window(70, 0), leaf(Sink { end: 4 })];
    tree.push(leaf(Global { tokens: vec![600] }));
    let mask = build(&pattern(Tree::Any(tree), 640), LIMIT).unwrap();
    let text = mask.print();
    assert!(
        text.starts_with(
            "mask q_len 640 kv_len 640 parts 1 stack 1 heads 0*2\nhead mask 0\norder 0..600 601..640 600\nkeys identity\n"
        ),
        "{text}"
    );
    assert!(text.contains("\nrows 2..9: [0 +4] [64t-70 +63 mask"), "{text}");
}

#[test]
fn broken_texts_are_refused_with_their_line() {
    let good = build(&pattern(window(70, 3), 300), LIMIT).unwrap().print();
    let broken = [
        ("", "", 0),
        (good.as_str(), "", 0),
        ("heads 0*2", "heads 0*99999999999", 1),
        ("rows 0..1:", "rows 0..0:", 5),
        ("rows 0..1:", "rows 0:", 5),
        ("order identity", "order 1 2 3", 0),
        ("order identity", "ordering", 3),
        ("parts 1", "parts 2x", 1),
        ("parts 1", "parts 0", 0),
        ("stack 1", "stack 0", 0),
        ("keys identity", "keys residue", 4),
        ("keys identity", "keys residue 0", 0),
        ("[0 +", "[400 +", 0),
        ("mask0 =", "mask7 =", 0),
        ("head mask 0", "head mask 1", 2),
    ];
    for (from, to, line) in broken {
        let text = if from.is_empty() { String::new() } else { good.replacen(from, to, 1) };
        match parse(&text) {
            Err(crate::error::Error::Text { line: found, .. }) => assert!(line == 0 || line == found, "{to}: {found}"),
            other => panic!("`{to}` gave {other:?}"),
        }
    }
}

#[test]
fn verify_finds_each_broken_rule() {
    let n = 300;
    let tree = Tree::Any(vec![window(10, 10), random(3, n, false), leaf(Global { tokens: vec![7, 90, 200] })]);
    let good = build(&pattern(tree, n), LIMIT).unwrap();
    type Breaker = fn(&mut HeadMask);
    let breakers: Vec<(&str, Breaker)> = vec![
        ("row", |mask| mask.rows[1].first += 1),
        ("reach", |mask| drop(mask.rows.pop())),
        ("share", |mask| {
            let again = mask.rows[0].segments[0];
            mask.rows[0].segments.insert(0, again);
        }),
        ("permutation", |mask| mask.order = RowOrder::Permuted(vec![0; 300])),
        ("words", |mask| mask.words.iter_mut().for_each(|words| words.push(1))),
        ("beyond the last query", |mask| mask.words.iter_mut().for_each(|words| words.fill(u64::MAX))),
        ("ascending", |mask| mask.edges.keys.fill(299)),
        ("offsets", |mask| mask.edges.offsets.truncate(300)),
        ("beyond", |mask| {
            mask.rows[0].segments[0].keys = Keys::Range { start: 299, len: 2, start_step: 0, len_step: 0 };
        }),
        ("no list", |mask| mask.rows[0].segments[0].keys = Keys::List { list: 9 }),
    ];
    verify(&good).unwrap();
    for (message, break_it) in breakers {
        let mut mask = good.clone();
        break_it(&mut mask.masks[0]);
        let error = verify(&mask).unwrap_err().to_string();
        assert!(error.contains(message), "expected `{message}` in {error}");
    }
}

#[test]
fn the_memory_limit_is_kept() {
    let error = build(&pattern(random(64, 4096, false), 4096), 1 << 16).unwrap_err();
    assert!(matches!(error, crate::error::Error::Memory { limit: 65536, .. }), "{error}");
}

#[test]
fn dense_queries_stand_at_the_end() {
    let tree = Tree::Any(vec![window(5, 5), leaf(Global { tokens: vec![3, 100, 250] })]);
    let mask = build(&pattern(tree, 300), LIMIT).unwrap();
    let RowOrder::Permuted(order) = &mask.masks[0].order else { panic!("dense queries were not gathered") };
    assert_eq!(order[297..], [3, 100, 250]);
    assert!(order[..297].is_sorted());
}

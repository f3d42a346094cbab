//! Neighbors picked at run time, against the interpreter: every input form, alone and in combinations.

use std::process::{Command, Stdio};

use hopweave::compiler::{self, Options};
use hopweave::jit::Codes;
use hopweave::operator::{Arguments, Facts, Operator, PickedInput};
use hopweave::pattern::{self, Awaits, Picked};
use hopweave::runtime::Saved;
use hopweave::spec::PatternSpec;
use hopweave::target::Isa;
use hopweave::{codegen, interpreter, jit};
use ndarray::{Array1, Array2, Array4, ArrayView4, s};
use ndarray_npy::{read_npy, write_npy};

/// A number in 0..1 that looks random.
fn hash(seed: u64, place: u64) -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 30)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x = (x ^ (x >> 27)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn tensor(seed: u64, shape: [usize; 4]) -> Array4<f32> {
    let mut place = 0;
    Array4::from_shape_simple_fn(shape, || {
        place += 1;
        (2.0 * hash(seed, place) - 1.0) as f32
    })
}

fn layout(seed: u64, shape: [usize; 4], density: f64) -> Array4<u8> {
    let mut place = 0;
    Array4::from_shape_simple_fn(shape, || {
        place += 1;
        u8::from(hash(seed, place) < density)
    })
}

/// Lists of numbers below `count`, in any order and with repetitions; some end early, some are full, some empty.
fn lists(seed: u64, shape: [usize; 4], count: usize) -> Array4<i32> {
    let mut place = 0;
    Array4::from_shape_simple_fn(shape, || {
        place += 1;
        if hash(seed, place) < 0.15 { -1 } else { (hash(seed + 1, place) * count as f64) as i32 }
    })
}

struct Case {
    spec: PatternSpec,
    operator: Operator,
    q: Array4<f32>,
    k: Array4<f32>,
    v: Array4<f32>,
    lengths: Option<Vec<i64>>,
    ids: Option<Array2<i32>>,
    layouts: Vec<(String, Array4<u8>)>,
    lists: Vec<(String, Array4<i32>)>,
}

const BATCH: usize = 2;
const HEADS: usize = 4;

impl Case {
    fn new(pattern: &str, more: &str, (m, n): (usize, usize), isa: Isa) -> Self {
        let text = format!("name: picked\nheads: {HEADS}\nkv_heads: 2\nhead_dim: 8\npattern: {pattern}\n{more}");
        let spec = hopweave::spec::parse(&text, "picked.yaml").unwrap_or_else(|error| panic!("{text}\n{error}"));
        let options = Options { isa, ..Options::reproducible() };
        let operator = Operator::new(spec.clone(), m, n, options).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let q = tensor(1, [BATCH, HEADS, m, 8]);
        let (k, v) = (tensor(2, [BATCH, 2, n, 8]), tensor(3, [BATCH, 2, n, 8]));
        Self { spec, operator, q, k, v, lengths: None, ids: None, layouts: vec![], lists: vec![] }
    }

    fn arguments(&self) -> Arguments<'_> {
        let layouts = self.layouts.iter().map(|(name, layout)| (name.clone(), PickedInput::Layout(layout.view())));
        let lists = self.lists.iter().map(|(name, lists)| (name.clone(), PickedInput::Lists(lists.view())));
        Arguments {
            key_lengths: self.lengths.as_deref(),
            segments: self.ids.iter().map(|ids| ("ids".to_owned(), ids.view())).collect(),
            picked: layouts.chain(lists).collect(),
            ..Arguments::default()
        }
    }

    /// The facts of every batch element; what q and k decide on is decided by the interpreter.
    fn facts(&self) -> Vec<Facts> {
        let pattern = self.operator.pattern();
        let mut all = self.arguments().facts(BATCH, pattern, 2).expect("facts");
        for awaited in pattern.awaits() {
            if let Awaits::Top(top) = awaited.what {
                let picked = interpreter::picked_blocks(self.q.view(), self.k.view(), &top, self.spec.scale);
                for (b, facts) in all.iter_mut().enumerate() {
                    facts.pick(&awaited.name, Picked::from_layout(&picked.slice(s![b, .., .., ..])));
                }
            }
        }
        all
    }

    /// Checks outputs and gradients of all batch elements.
    fn check(&self, what: &str) {
        let arguments = self.arguments();
        let (q, k, v) = (self.q.view(), self.k.view(), self.v.view());
        let found = self.operator.forward(q, k, v, &arguments).unwrap_or_else(|error| panic!("{what}: {error}"));
        let grad = tensor(4, [BATCH, HEADS, self.q.dim().2, 8]);
        let saved = Saved { out: found.out.view(), lse: found.lse.view() };
        let gradients = self
            .operator
            .backward(q, k, v, grad.view(), Some(saved), &arguments)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        for (b, facts) in self.facts().iter().enumerate() {
            let bound = facts.bind(self.operator.pattern()).expect("a pattern");
            let one = s![b..=b, .., .., ..];
            let mut values = v.slice(one).to_owned();
            if let Some(lengths) = &self.lengths {
                values.slice_mut(s![.., .., lengths[b] as usize.., ..]).fill(0.0);
            }
            let tensors = [q.slice(one), k.slice(one), values.view(), grad.slice(one)];
            let inputs = hopweave::spec::Inputs::none();
            let expected = interpreter::run(&bound, &self.spec, tensors[0], tensors[1], tensors[2]).expect("an output");
            near(found.out.slice(one), &expected.out, what);
            let of_lse = found.lse.slice(s![b..=b, .., ..]);
            let equal = |(found, expected): (&f32, &f64)| {
                (f64::from(*found) - expected).abs() < 1e-4 || f64::from(*found) == *expected
            };
            assert!(of_lse.iter().zip(&expected.lse).all(equal), "{what}: lse");
            let expected = interpreter::gradients(&bound, &self.spec, tensors, &inputs, None).expect("gradients");
            near(gradients.q.slice(one), &expected.q, what);
            near(gradients.k.slice(one), &expected.k, what);
            let mut of_v = expected.v;
            if let Some(lengths) = &self.lengths {
                of_v.slice_mut(s![.., .., lengths[b] as usize.., ..]).fill(0.0);
            }
            near(gradients.v.slice(one), &of_v, what);
        }
    }
}

fn near(found: ArrayView4<'_, f32>, expected: &Array4<f64>, what: &str) {
    assert_eq!(found.dim(), expected.dim(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error < 2e-5 * (1.0 + expected.abs()), "{what}: {found} for {expected} at {at}");
    }
}

const PATTERNS: &[&str] = &[
    "{blocks: {block: 16, input: picked}}",
    "{all: [causal, {blocks: {block: 16, input: picked}}]}",
    "{any: [{window: {radius: 5}}, {blocks: {block: 16, input: picked}}]}",
    "{not: {blocks: {block: 16, input: picked}}}",
    "{all: [{segments: {input: ids}}, {any: [{sink: 3}, {blocks: {block: 16, input: picked}}]}]}",
    "{per_head: [{heads: [0, 2], pattern: {blocks: {block: 16, input: picked}}}, {heads: [1, 3], pattern: causal}]}",
];

const HOPS: &[&str] = &[
    "",
    "diffusion: {hops: 3, alpha: 0.2}\n",
    "diffusion: {coefficients: [0.5, 0.25, 0.25]}\n",
    "score: {mods: [{softcap: 5.0}]}\n",
];

/// Lengths of the batch elements' segments: others for each.
fn ids(n: usize) -> Array2<i32> {
    Array2::from_shape_fn((BATCH, n), |(b, i)| (i / (20 + 17 * b)) as i32)
}

#[test]
fn block_layouts_conform() {
    for pattern in PATTERNS {
        for more in HOPS {
            for (heads, m, density) in [(1, 70, 0.4), (2, 130, 0.3), (HEADS, 130, 0.3)] {
                let mut case = Case::new(pattern, more, (m, m), Isa::best());
                let blocks = m.div_ceil(16);
                let elements = if heads == 1 { 1 } else { BATCH };
                case.layouts.push(("picked".into(), layout(7, [elements, heads, blocks, blocks], density)));
                if pattern.contains("ids") {
                    case.ids = Some(ids(m));
                }
                case.check(&format!("{pattern} {more}{heads} {m}"));
            }
        }
    }
}

#[test]
fn lists_of_blocks_and_of_keys_conform_on_every_family() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        for (m, n, block) in [(70, 130, 16), (130, 130, 64), (65, 200, 7)] {
            let mut case = Case::new(&format!("{{blocks: {{block: {block}, input: picked}}}}"), "", (m, n), isa);
            let shape = [BATCH, HEADS, m.div_ceil(block), 3];
            case.lists.push(("picked".into(), lists(9, shape, n.div_ceil(block))));
            case.check(&format!("lists of blocks of {block}, {m} by {n} on {isa}"));
            for pattern in ["{keys: {input: picked}}", "{any: [{window: {radius: 3}}, {keys: {input: picked}}]}"] {
                let mut case = Case::new(pattern, "", (m, n), isa);
                case.lists.push(("picked".into(), lists(11, [BATCH, 2, m, 9], n)));
                case.check(&format!("{pattern}, {m} by {n} on {isa}"));
            }
        }
    }
}

#[test]
fn key_lengths_cut_what_is_picked() {
    for more in HOPS {
        let mut case = Case::new(PATTERNS[2], more, (130, 130), Isa::best());
        case.layouts.push(("picked".into(), layout(13, [BATCH, HEADS, 9, 9], 0.4)));
        case.lengths = Some(vec![97, 130]);
        case.check(more);
    }
}

#[test]
fn top_blocks_conform_forward_and_backward() {
    for pattern in [
        "{top_blocks: {block: 16, keep: 3}}",
        "{top_blocks: {block: 16, keep: 3, among: past}}",
        "{all: [causal, {top_blocks: {block: 16, mass: 0.5, among: past}}]}",
        "{any: [{window: {radius: 5}}, {top_blocks: {block: 64, mass: 0.3}}]}",
    ] {
        for more in HOPS {
            // Hops need as many queries as keys.
            let unequal = (!more.contains("diffusion")).then_some((70, 130));
            for lengths in [(130, 130)].into_iter().chain(unequal) {
                Case::new(pattern, more, lengths, Isa::best()).check(&format!("{pattern} {more}{lengths:?}"));
            }
        }
    }
    // Hops without end over blocks of the past.
    let pattern = "{all: [causal, {top_blocks: {block: 16, keep: 3, among: past}}]}";
    Case::new(pattern, "diffusion: {hops: all, alpha: 0.2}\n", (130, 130), Isa::best()).check("all hops");
}

/// Both selections pick the same blocks, of every dtype's numbers, and count as they should.
#[test]
fn selection_is_that_of_the_definition() {
    for keep in ["keep: 1", "keep: 4", "keep: 100", "mass: 0.2", "mass: 0.999", "mass: 1.0"] {
        for among in ["all", "past"] {
            for (m, n) in [(200, 200), (70, 200), (200, 70), (1, 40)] {
                let pattern = format!("{{top_blocks: {{block: 24, {keep}, among: {among}}}}}");
                let case = Case::new(&pattern, "", (m, n), Isa::best());
                let awaited = case.operator.pattern().awaits();
                let Awaits::Top(top) = awaited[0].what else { panic!("{awaited:?}") };
                let expected = interpreter::picked_blocks(case.q.view(), case.k.view(), &top, case.spec.scale);
                let found = hopweave::select::top_blocks(case.q.view(), case.k.view(), &top, case.spec.scale);
                for (b, found) in found.expect("picks").iter().enumerate() {
                    let expected = Picked::from_layout(&expected.slice(s![b, .., .., ..]));
                    assert_eq!(*found, expected, "{pattern} {m} {n}");
                    let (rows, columns) = top.blocks();
                    for row in 0..rows {
                        let count = found.row(0, row).len();
                        assert!(count <= columns);
                        if keep == "keep: 4" && among == "all" {
                            assert_eq!(count, columns.min(4), "{pattern}");
                        }
                    }
                }
            }
        }
    }
}

/// A block whose score is NaN comes behind all others, and is picked where nothing else is left.
#[test]
fn nan_scores_are_picked_last() {
    let mut case = Case::new("{top_blocks: {block: 16, keep: 2}}", "", (48, 48), Isa::best());
    case.k.slice_mut(s![.., .., 16..17, ..]).fill(f32::NAN);
    let awaited = case.operator.pattern().awaits();
    let Awaits::Top(top) = awaited[0].what else { panic!("{awaited:?}") };
    let picked = hopweave::select::top_blocks(case.q.view(), case.k.view(), &top, 1.0).expect("picks");
    assert!(picked.iter().all(|of_element| (0..3).all(|row| of_element.row(0, row) == [0, 2])));
    let found = case.operator.forward(case.q.view(), case.k.view(), case.v.view(), &Arguments::default());
    assert!(found.expect("an output").out.iter().all(|x| x.is_finite()));
}

/// Other neighbors, other key lengths and other segments compile nothing once their kernels have been made.
#[test]
fn values_of_a_call_compile_nothing() {
    let kernels = |operator: &Operator| operator.compilations();
    let mut case = Case::new(PATTERNS[2], "diffusion: {hops: 3, alpha: 0.2}\n", (130, 130), Isa::best());
    case.layouts.push(("picked".into(), layout(1, [BATCH, HEADS, 9, 9], 0.3)));
    for seed in 0..40 {
        case.layouts[0].1 = layout(seed, [BATCH, HEADS, 9, 9], 0.3);
        case.operator.forward(case.q.view(), case.k.view(), case.v.view(), &case.arguments()).expect("an output");
    }
    assert!((1..=4).contains(&kernels(&case.operator)), "{} kernels", kernels(&case.operator));
    let mut case = Case::new("{all: [causal, {segments: {input: ids}}]}", "", (300, 300), Isa::best());
    for seed in 0..60 {
        let mut id = 0;
        let mut next = |at: u64| {
            id += i32::from(hash(seed, at) < 0.04);
            id
        };
        let row = Array1::from_shape_fn(300, |i| next(i as u64));
        case.ids = Some(Array2::from_shape_fn((BATCH, 300), |(_, i)| row[i]));
        case.lengths = Some(vec![(hash(seed, 1000) * 300.0) as i64, 300]);
        case.operator.forward(case.q.view(), case.k.view(), case.v.view(), &case.arguments()).expect("an output");
    }
    assert!((1..=6).contains(&kernels(&case.operator)), "{} kernels", kernels(&case.operator));
}

/// What does not fit is refused with its place.
#[test]
fn what_is_picked_is_checked() {
    let refused = |case: &Case| {
        let found = case.operator.forward(case.q.view(), case.k.view(), case.v.view(), &case.arguments());
        found.expect_err("a refusal").to_string()
    };
    let mut case = Case::new(PATTERNS[0], "", (130, 130), Isa::best());
    assert!(refused(&case).contains("picked: is not given; expected bool or u8"), "{}", refused(&case));
    let mut wrong = lists(1, [1, 1, 9, 2], 9);
    wrong[[0, 0, 4, 0]] = 9;
    case.lists.push(("picked".into(), wrong));
    let said = refused(&case);
    assert!(said.contains("input `picked`") && said.contains("row 4 has 9; expected 0 to 8"), "{said}");
    case.lists[0].1[[0, 0, 4, 0]] = -2;
    assert!(refused(&case).contains("row 4 has -2"), "{}", refused(&case));
    for shape in [[1, 3, 9, 2], [3, 1, 9, 2], [1, 1, 8, 2]] {
        case.lists[0].1 = lists(1, shape, 8);
        assert!(refused(&case).contains("[batch or 1, heads or kv_heads or 1, 9, "), "{}", refused(&case));
    }
    case.lists[0].0 = "other".into();
    assert!(refused(&case).contains("other"), "{}", refused(&case));
    for (pattern, says) in [
        ("{top_blocks: {block: 16, keep: 0}}", "`keep` is 0"),
        ("{top_blocks: {block: 16, mass: 0}}", "mass"),
        ("{top_blocks: {block: 16}}", "`keep` is missing"),
        ("{top_blocks: {block: 16, keep: 2, mass: 0.5}}", "does not go with"),
        ("{blocks: {block: 16, input: a, layout: [[1]]}}", "does not go with"),
    ] {
        let text = format!("name: x\nhead_dim: 8\npattern: {pattern}");
        let spec = hopweave::spec::parse(&text, "x.yaml");
        let error = spec.and_then(|spec| pattern::resolve(&spec, 130, 130)).expect_err("a refusal").to_string();
        assert!(error.contains(says), "{pattern}: {error}");
    }
}

/// What shares code is what code generation writes alike: all of a plan but its tables.
#[test]
fn plans_of_one_outline_have_one_code() {
    let isa = jit::target_isa().expect("this CPU");
    let options = Options { codes: Some(Codes::default()), ..Options::reproducible() };
    let mut shared = 0;
    for pattern in PATTERNS {
        for more in HOPS {
            let mut known: Vec<(hopweave::plan::Outline, String)> = Vec::new();
            for seed in 0..5 {
                let mut case = Case::new(pattern, more, (130, 130), Isa::best());
                // From hardly any block to nearly all.
                case.layouts.push(("picked".into(), layout(seed, [1, HEADS, 9, 9], 0.1 + 0.2 * seed as f64)));
                case.ids = pattern.contains("ids").then(|| ids(130));
                let bound = case.facts()[0].bind(case.operator.pattern()).expect("a pattern");
                let compiled = compiler::compile_pattern(&case.spec, bound, &options).expect("a kernel");
                let plan = compiled.kernel.plan().clone();
                let outline = plan.outline().expect("rows from tables");
                let lowered = codegen::lower(plan, &*isa);
                let text: String = lowered.functions().iter().map(|one| one.function.display().to_string()).collect();
                match known.iter().find(|(other, _)| *other == outline) {
                    Some((_, other)) => {
                        assert!(*other == text, "{pattern} {more}: one outline, two codes");
                        shared += 1;
                    }
                    None => known.push((outline, text)),
                }
            }
        }
    }
    assert!(shared > 2 * PATTERNS.len() * HOPS.len(), "{shared} kernels shared code");
}

/// The command takes picked neighbors from files, and writes those that `top_blocks` picks.
#[test]
fn the_command_takes_and_saves_what_is_picked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for (seed, name, heads) in [(1, "q.npy", HEADS), (2, "k.npy", 2), (3, "v.npy", 2)] {
        write_npy(path(name), &tensor(seed, [1, heads, 130, 8])).expect("a file");
    }
    let spec = |pattern: &str| {
        let text = format!("name: picked\nheads: {HEADS}\nkv_heads: 2\nhead_dim: 8\npattern: {pattern}\n");
        std::fs::write(path("spec.yaml"), text).expect("a file");
    };
    let run = |more: &[&str]| {
        let args = ["run", "spec.yaml", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "-o", "out.npy"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_hopweave"));
        let output = command.args(args).args(more).current_dir(folder.path()).stdin(Stdio::null()).output();
        let output = output.expect("the command starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let out = |more: &[&str]| -> Array4<f32> {
        let (done, said) = run(more);
        assert!(done, "{said}");
        read_npy(path("out.npy")).expect("an output")
    };
    spec("{top_blocks: {block: 16, keep: 3, among: past}}");
    let by_top = out(&["--save-picked", "picked.npy"]);
    let saved: Array4<bool> = read_npy(path("picked.npy")).expect("a layout");
    assert_eq!(saved.dim(), (1, HEADS, 9, 9));
    assert!(
        saved
            .rows()
            .into_iter()
            .enumerate()
            .all(|(row, picked)| { picked.iter().filter(|&&picked| picked).count() == (row % 9 + 1).min(3) })
    );
    let by_interpreter = out(&["--engine", "interpreter", "--save-picked", "again.npy"]);
    assert_eq!(saved, read_npy::<_, Array4<bool>>(path("again.npy")).expect("a layout"));
    spec("{blocks: {block: 16, input: picked}}");
    let by_file = out(&["--input", "picked=picked.npy"]);
    for (other, what) in [(&by_interpreter, "interpreter"), (&by_file, "file")] {
        assert!((&by_top - other).iter().all(|x| x.abs() < 1e-5), "{what}");
    }
    write_npy(path("lists.npy"), &lists(1, [1, 1, 9, 2], 12)).expect("a file");
    let (done, said) = run(&["--input", "picked=lists.npy"]);
    assert!(!done && said.contains("expected 0 to 8"), "{said}");
    let (done, said) = run(&[]);
    assert!(!done && said.contains("--input picked=FILE.npy"), "{said}");
    let (done, said) = run(&["--input", "picked=picked.npy", "--save-picked", "more.npy"]);
    assert!(!done && said.contains("top_blocks") && !path("more.npy").exists(), "{said}");
}

/// Tensors of 16 bits: the output is that of the numbers they hold, rounded once.
#[test]
fn picks_serve_16_bit_tensors() {
    use hopweave::half::bf16;
    for pattern in [PATTERNS[2], "{top_blocks: {block: 16, keep: 3, among: past}}"] {
        let mut case = Case::new(pattern, "dtype: bf16\n", (130, 130), Isa::best());
        if pattern == PATTERNS[2] {
            case.layouts.push(("picked".into(), layout(17, [BATCH, HEADS, 9, 9], 0.3)));
        }
        let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| tensor.mapv(bf16::from_f32));
        let found = case.operator.forward(q.view(), k.view(), v.view(), &case.arguments()).expect("an output");
        [case.q, case.k, case.v] = [q, k, v].map(|tensor| tensor.mapv(bf16::to_f32));
        for (b, facts) in case.facts().iter().enumerate() {
            let bound = facts.bind(case.operator.pattern()).expect("a pattern");
            let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| tensor.slice(s![b..=b, .., .., ..]));
            let expected = interpreter::run(&bound, &case.spec, q, k, v).expect("an output");
            for (found, expected) in found.out.slice(s![b..=b, .., .., ..]).iter().zip(&expected.out) {
                let error = (f64::from(found.to_f32()) - expected).abs();
                // Half of the last of 8 bits, and what f32 errs by.
                assert!(error <= expected.abs() / 256.0 + 1e-4, "{pattern}: {found} for {expected}");
            }
        }
    }
}

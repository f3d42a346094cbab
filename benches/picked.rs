//! Neighbors that are picked at run time: 4096 tokens, 12 heads of 64, blocks of 64, a tenth of them picked at random for every
//! head; as kernels that are given them at each call and as static ones, in turn. Also what it costs to pick blocks.
//!
//! ```text
//! cargo bench --bench picked
//! ```
#![allow(missing_docs)]

use std::time::Instant;

use hopweave::compiler::Options;
use hopweave::operator::{Arguments, Operator, PickedInput};
use hopweave::runtime::Saved;
use hopweave::target::Isa;
use hopweave::{machine, spec};
use ndarray::Array4;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const N: usize = 4096;
const HEADS: usize = 12;
const WIDTH: usize = 64;
const ROUNDS: usize = 15;

fn tensor(stream: u64, heads: usize, length: usize) -> Array4<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    random.set_stream(stream);
    Array4::from_shape_simple_fn((1, heads, length, WIDTH), || {
        let bits = random.next_u64();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f32 / 65_535.0 - 2.0) * 3.0_f32.sqrt()
    })
}

/// A layout with exactly a tenth of the key blocks in every row.
fn layout(seed: u64) -> Array4<u8> {
    const BLOCKS: usize = N / 64;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut layout = Array4::zeros((1, HEADS, BLOCKS, BLOCKS));
    for mut row in layout.rows_mut() {
        let mut left = BLOCKS.div_ceil(10);
        while left > 0 {
            let block = random.next_u64() as usize % BLOCKS;
            left -= usize::from(row[block] == 0);
            row[block] = 1;
        }
    }
    layout
}

fn operator(heads: usize, pattern: &str, n: usize) -> Operator {
    let text = format!("name: picked\nheads: {heads}\nhead_dim: {WIDTH}\npattern: {pattern}");
    let spec = spec::parse(&text, "picked.yaml").expect("a right spec");
    Operator::new(spec, n, n, Options::reproducible()).expect("an operator")
}

fn milliseconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Something to measure, told the round: its name, and a call of it.
type Contender<'a> = (&'a str, Box<dyn FnMut(usize) + 'a>);

/// Medians of several contenders, called in turn, after a first call that does not count.
fn in_turn(mut contenders: Vec<Contender<'_>>) {
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=ROUNDS {
        for (at, (_, work)) in contenders.iter_mut().enumerate() {
            let time = milliseconds(|| work(round));
            if round > 0 {
                times[at].push(time);
            }
        }
    }
    let base = times[0].clone();
    for ((name, _), times) in contenders.iter().zip(&times) {
        let ratio = median(times.iter().zip(&base).map(|(time, base)| time / base).collect());
        println!("| {name} | {:.2} ms | {ratio:.3} |", median(times.clone()));
    }
}

fn given(layout: &Array4<u8>) -> Vec<(String, PickedInput<'_>)> {
    vec![("picked".into(), PickedInput::Layout(layout.view()))]
}

fn main() {
    let [q, k, v] = [0, 1, 2].map(|stream| tensor(stream, HEADS, N));
    let grad = tensor(3, HEADS, N);
    let tensors = || [q.view(), k.view(), v.view()];
    let layouts: Vec<Array4<u8>> = (0..=ROUNDS as u64).map(layout).collect();
    let heads: Vec<String> = layouts[0]
        .index_axis(ndarray::Axis(0), 0)
        .outer_iter()
        .map(|head| {
            let rows: Vec<String> = head.outer_iter().map(|row| format!("{:?}", row.to_vec())).collect();
            format!("[{}]", rows.join(", "))
        })
        .collect();
    let fixed = operator(HEADS, &format!("{{blocks: {{block: 64, layout: [{}]}}}}", heads.join(", ")), N);
    let picked = operator(HEADS, "{blocks: {block: 64, input: picked}}", N);
    let forward = |operator: &Operator, picked: Vec<(String, PickedInput<'_>)>| {
        let [q, k, v] = tensors();
        let arguments = Arguments { picked, ..Arguments::default() };
        operator.forward(q, k, v, &arguments).expect("an output")
    };
    println!("blocks of 64, a tenth picked, outputs | median | ratio");
    in_turn(vec![
        ("the same layout as a static node", Box::new(|_| drop(forward(&fixed, Vec::new())))),
        ("one layout at every call", Box::new(|_| drop(forward(&picked, given(&layouts[0]))))),
        ("another layout at every call", Box::new(|round| drop(forward(&picked, given(&layouts[round]))))),
    ]);
    // Useful work, and the peak beside it.
    let pairs = HEADS as f64 * (N / 64) as f64 * 7.0 * 64.0 * 64.0;
    let flops = pairs * 4.0 * WIDTH as f64;
    let (mut times, mut peaks) = (Vec::new(), Vec::new());
    for layout in &layouts {
        peaks.push(machine::fma_peak(Isa::best(), machine::cores(), 0.02));
        times.push(milliseconds(|| drop(forward(&picked, given(layout)))));
    }
    let shares = times.iter().zip(&peaks).map(|(time, peak)| flops / (time * 1e6) / peak);
    println!("share of the FMA peak with another layout at every call: {:.1} %", 100.0 * median(shares.collect()));
    println!("kernels compiled: {}", picked.compilations());

    println!("gradients | median | ratio");
    let backward = |operator: &Operator, layout: Option<&Array4<u8>>| {
        let [q, k, v] = tensors();
        let arguments = Arguments { picked: layout.map(given).unwrap_or_default(), ..Arguments::default() };
        let output = operator.forward(q, k, v, &arguments).expect("an output");
        let saved = Saved { out: output.out.view(), lse: output.lse.view() };
        let [q, k, v] = tensors();
        let arguments = Arguments { picked: layout.map(given).unwrap_or_default(), ..Arguments::default() };
        drop(operator.backward(q, k, v, grad.view(), Some(saved), &arguments).expect("gradients"));
    };
    in_turn(vec![
        ("outputs and gradients, static", Box::new(|_| backward(&fixed, None))),
        (
            "outputs and gradients, another layout at every call",
            Box::new(|round| backward(&picked, Some(&layouts[round]))),
        ),
    ]);

    println!("64 keys for each query | median | ratio");
    let random = operator(HEADS, "{random: {keys_per_query: 64, seed: 1, per_head: true}}", N);
    let keys = operator(HEADS, "{keys: {input: picked}}", N);
    let mut numbers = ChaCha8Rng::seed_from_u64(5);
    let lists = Array4::from_shape_simple_fn((1, HEADS, N, 64), || (numbers.next_u64() as usize % N) as i32);
    in_turn(vec![
        ("the static node `random`", Box::new(|_| drop(forward(&random, Vec::new())))),
        (
            "lists at every call, the same",
            Box::new(|_| {
                drop(forward(&keys, vec![("picked".into(), PickedInput::Lists(lists.view()))]));
            }),
        ),
    ]);

    println!("picking, n 16384, blocks of 64, 16 of 256 kept | median | ratio");
    let n = 16_384;
    let [q, k, v] = [0, 1, 2].map(|stream| tensor(stream, HEADS, n));
    let top = operator(HEADS, "{top_blocks: {block: 64, keep: 16}}", n);
    in_turn(vec![
        (
            "attention, picking and tables with it",
            Box::new(|_| drop(top.forward(q.view(), k.view(), v.view(), &Arguments::default()).expect("an output"))),
        ),
        ("picking alone", Box::new(|_| drop(top.select(q.view(), k.view()).expect("a layout")))),
    ]);
}

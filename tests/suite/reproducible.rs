//! `Options::reproducible` on machines that differ in cores, free memory, measured numbers and what was tuned: plans and
//! bits are the same, though nothing is forced.

use hopweave::Element;
use hopweave::cache::Cache;
use hopweave::compiler::{Compiled, Options, TuningSource};
use hopweave::half::bf16;
use hopweave::machine::Facts;
use hopweave::passes::Strategy;
use hopweave::plan::{Choice, Tuning};
use hopweave::spec::PatternSpec;

use crate::common::{Tensors, compile, families, fitting_length, pattern_files, small_spec};

/// Runs, gathered keys and a global row, scattered edges, a grid in patches, mods, parts.
const FILES: [&str; 6] = ["diffuser", "sliding-window", "bigbird", "natten-2d", "alibi-causal", "axial"];

/// What options are by default on some machines: `threads` cores, and so many bytes free.
fn machines() -> Vec<Options> {
    let free: [u64; 5] = [64 << 30, 3 << 30, 1 << 20, 300 << 10, 1 << 40];
    let mut machines: Vec<Options> = (1..)
        .zip(free)
        .map(|(threads, free)| Options { threads, memory_limit: free / 5 * 4, ..Options::default() })
        .collect();
    // One was measured: slow memory, fast dot products. One was tuned. One has a cache folder without anything.
    let mut facts = Facts { measured: true, cores: 3, read_gb_per_s: [9.0, 4.0, 2.0, 0.5], ..Facts::TYPICAL };
    facts.tiles.iter_mut().for_each(|tiles| (tiles.exp_ns, tiles.bf16_dots) = (50.0, 2.0));
    machines[2].facts = Some(facts);
    let tuning = Tuning { joint_keys: 64, chunk_keys: 64, unit_rows: 3 };
    let choice = Choice { strategy: Strategy::RECOMPUTE, store: hopweave::Dtype::F32, tuning };
    machines[3].tuning = TuningSource::Given(choice);
    machines[4].tuning = TuningSource::Cache(Cache::at("nowhere".into()));
    machines
}

/// The bits of an output and its gradients.
fn bits<T: Element>(spec: &PatternSpec, n: usize, compiled: &Compiled) -> Vec<u32> {
    let Tensors { q, k, v } = Tensors::random(spec, 1, n, 3);
    let [q, k, v] = [q, k, v].map(|tensor| tensor.mapv(T::nearest));
    let output = compiled.kernel.forward(q.view(), k.view(), v.view()).expect("a result");
    // Widths are the same, so that queries have the shape of the output.
    let gradients = compiled.kernel.backward(q.view(), k.view(), v.view(), q.view()).expect("gradients");
    let tensors = [&output.out, &gradients.q, &gradients.k, &gradients.v];
    tensors.into_iter().flatten().map(|x| x.widen().to_bits()).chain(output.lse.iter().map(|x| x.to_bits())).collect()
}

/// Compares all machines; in how many cases plans differ where nothing is fixed.
fn compare<T: Element>(spec: &PatternSpec) -> usize {
    let n = fitting_length(spec, 300);
    let mut differ = 0;
    for isa in families() {
        let (mut expected, mut others) = (None, 0);
        for (i, machine) in machines().into_iter().enumerate() {
            let machine = Options { isa, ..machine };
            let what = || format!("{} {} {isa}, machine {i}", spec.name, T::DTYPE);
            let compiled = compile(spec, n, &machine.clone().made_reproducible());
            assert_eq!(compiled.kernel.threads(), machine.threads, "{}", what());
            let plan = compiled.kernel.plan().print();
            let training = compiled.kernel.training().expect("a kernel for training");
            let training = training.plan().print();
            let found = (plan, training, bits::<T>(spec, n, &compiled));
            let first = expected.get_or_insert_with(|| found.clone());
            assert_eq!(found.0, first.0, "{}", what());
            assert_eq!(found.1, first.1, "{}", what());
            assert!(found.2 == first.2, "other bits: {}", what());
            // On the machine as it is.
            let own = hopweave::compiler::compile(spec, n, n, &machine);
            others += usize::from(!own.is_ok_and(|own| own.kernel.plan().print() == first.0));
        }
        differ += usize::from(others > 0);
    }
    differ
}

#[test]
fn machines_change_neither_plans_nor_bits() {
    let mut differ = 0;
    for (name, text) in pattern_files() {
        if !FILES.contains(&name.as_str()) {
            continue;
        }
        for diffusion in ["diffusion={hops: 1}", "diffusion={hops: 5, alpha: 0.1}"] {
            let spec = |dtype: &str| small_spec(&text, &[diffusion, &format!("dtype={dtype}")]);
            differ += compare::<f32>(&spec("f32")) + compare::<bf16>(&spec("bf16"));
        }
    }
    assert!(differ > FILES.len(), "only {differ} cases tell machines apart");
}

#[test]
fn nothing_of_this_machine_is_left() {
    let [here, elsewhere] = [Options::reproducible(), machines().swap_remove(3).made_reproducible()];
    let fixed = |options: &Options| {
        let Options { planned_threads, memory_limit, bf16_dots, .. } = *options;
        (planned_threads, memory_limit, bf16_dots, options.tuning.clone(), options.facts)
    };
    assert_eq!(fixed(&here), fixed(&elsewhere));
    assert_eq!(fixed(&here), (Some(1), Options::REPRODUCIBLE_MEMORY, None, TuningSource::Nothing, None));
}

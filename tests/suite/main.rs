//! The integration tests, one file a subject. One binary, since each links all of Cranelift. A file has a binary of its own
//! beside this folder where its tests cannot share a process, and says why at its top.

#[path = "../common/mod.rs"]
mod common;

mod architecture;
mod by_hand;
mod cli;
mod conformance;
mod dtypes;
mod features;
mod folders;
mod goldens;
mod gradients;
mod guard_pages;
mod hop_forms;
mod hop_inputs;
mod hops;
mod import_deepspeed;
mod interpreter_gradients;
mod invariants;
mod lengths;
mod middle;
mod minilm;
mod mod_gradients;
mod numerics;
mod numerics_gradients;
mod pages;
mod pattern_files;
mod picked;
mod plan_rules;
mod pools;
mod properties;
mod reproducible;
mod schema;
mod score_mods;
mod seeing;
mod spec_errors;
mod threads;
mod tune;

//! `emit`: the text of a stage of the compiler.

use super::options::{Global, Lengths, SpecArg};
use super::say::print;
use crate::compiler::{self, Stage};
use crate::error::{Error, Result};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    spec: SpecArg,
    #[command(flatten)]
    lengths: Lengths,
    /// One of pattern, mask, schedule, fused, plan, clif, asm
    #[arg(long, value_name = "STAGE", value_parser = stage)]
    stage: Stage,
    /// Of the kernel that computes gradients
    #[arg(long)]
    training: bool,
}

fn stage(text: &str) -> Result<Stage, String> {
    text.parse().map_err(|error: Error| error.to_string())
}

/// Prints the stage.
///
/// # Errors
/// Those of the compiler.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let spec = options.load(&args.spec.spec)?;
    let (q_len, kv_len) = args.lengths.get();
    let mut text = compiler::emit(&spec, q_len, kv_len, &options.compiler()?, (args.stage, args.training))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    print(&text)
}

//! The command line: arguments in, calls into the library, text out.
//!
//! Results go to standard output, errors and remarks to standard error. Exit status 0: done; 1: the input is
//! wrong; 2: the command line is wrong. Each command is a file with its arguments and one `run`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod case_inputs;
mod check;
mod compare;
mod emit;
mod explain;
mod files;
mod import;
mod inputs;
mod machine;
mod options;
mod page;
mod patterns;
mod run;
mod run_time;
mod say;
mod schema;
mod show;
mod table;
mod tensors;
mod tune;

/// Compiles sparse, multi-hop attention for this CPU, from a YAML pattern to machine code in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "hopweave", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    options: options::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read specs and say what is wrong with them
    Check(check::Args),
    /// Draw the mask of a head, in the terminal or as SVG or PNG
    Show(show::Args),
    /// Several specs side by side: what they reach, what they cost, how long they take
    Compare(compare::Args),
    /// Print what the compiler makes of a spec, at any stage
    Emit(emit::Args),
    /// Run a spec on tensors in .npy files
    Run(run::Args),
    /// Measure the compiled kernel against baselines
    Bench(bench::Args),
    /// Search for the fastest plan at given lengths by measuring, and keep it
    Tune(tune::Args),
    /// List the nodes that a pattern may be made of
    Patterns,
    /// Print a JSON Schema of specs, for editors
    Schema,
    /// Print a spec that is equivalent to the configuration of another library
    Import(import::Args),
    /// Say what this machine is, and the measured numbers that plans are chosen by
    Machine(machine::Args),
    /// Say what a pattern costs, how far it reaches, and which plan was chosen
    Explain(explain::Args),
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let Cli { options, command } = Cli::parse();
    let done = match command {
        Command::Check(args) => check::run(&args, &options),
        Command::Show(args) => show::run(&args, &options),
        Command::Compare(args) => compare::run(&args, &options),
        Command::Emit(args) => emit::run(&args, &options),
        Command::Run(args) => run::run(&args, &options),
        Command::Bench(args) => bench::run(&args, &options),
        Command::Tune(args) => tune::run(&args, &options),
        Command::Patterns => patterns::run(),
        Command::Schema => schema::run(),
        Command::Import(args) => import::run(&args, &options),
        Command::Machine(args) => machine::run(&args),
        Command::Explain(args) => explain::run(&args, &options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::report(&error);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_argument_tables_are_consistent() {
        Cli::command().debug_assert();
    }
}

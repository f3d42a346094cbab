//! The `hopweave` command; everything it does is in [`hopweave::cli`].

fn main() -> std::process::ExitCode {
    hopweave::cli::main()
}

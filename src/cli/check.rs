//! `check`: read specs and say what is wrong with them.

use std::path::PathBuf;

use super::options::{Global, shown};
use super::say::{print, report};
use crate::error::{Error, Result};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Specs in YAML; - reads standard input
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<PathBuf>,
}

/// Checks every spec, also after one that is wrong, and prints a line for each good one.
///
/// # Errors
/// The last error; those before it are reported on the way.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let mut failed: Option<Error> = None;
    for path in &args.specs {
        match options.load(path) {
            Ok(spec) => {
                let hops = spec.diffusion.hops();
                print(&format!(
                    "ok {}: {}, {} {} of {}, {}\n",
                    shown(path),
                    spec.name,
                    spec.heads,
                    if spec.heads == 1 { "head" } else { "heads" },
                    if spec.head_dim == spec.value_dim {
                        spec.head_dim.to_string()
                    } else {
                        format!("{} (values {})", spec.head_dim, spec.value_dim)
                    },
                    match hops {
                        _ if spec.diffusion.is_endless() => "hops without end".to_owned(),
                        1 => "1 hop".to_owned(),
                        hops => format!("{hops} hops"),
                    },
                ))?;
            }
            Err(error) => {
                if let Some(before) = failed.replace(error) {
                    report(&before);
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

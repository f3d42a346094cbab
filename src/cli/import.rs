//! `import`: a spec out of the configuration of another library.

use std::path::PathBuf;

use super::options::{Global, shown};
use super::say::{print, remark};
use crate::error::Result;
use crate::import::{Sizes, deepspeed};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, clap::Subcommand)]
enum From {
    /// The sparse_attention block of a DeepSpeed configuration, in JSON
    Deepspeed {
        /// The configuration, whole or the block alone; - reads standard input
        #[arg(value_name = "CONFIG")]
        config: PathBuf,
        /// Query heads, which the configuration does not say
        #[arg(long, value_name = "H", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=65_536))]
        heads: u32,
        /// Width of a query or key, which the configuration does not say
        #[arg(long, value_name = "D", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
        head_dim: u32,
    },
}

/// Prints the spec, and what it cannot say on standard error.
///
/// # Errors
/// Those of reading and converting the configuration.
pub fn run(args: &Args, options: &Global) -> Result<()> {
    let From::Deepspeed { config, heads, head_dim } = &args.from;
    let sizes = Sizes { heads: *heads as usize, head_dim: *head_dim as usize };
    let imported = deepspeed::import(&options.text(config)?, &shown(config), sizes)?;
    imported.remarks.iter().for_each(|text| remark(&format!("note: {text}")));
    print(&imported.yaml)
}

//! `machine`: what this machine is, and the measured numbers that the cost model goes by.

use serde_json::json;

use super::options::facts;
use super::say::print;
use super::table::{Align, Table, significant};
use crate::cache::Cache;
use crate::error::{Bytes, Error, Result};
use crate::machine::{self, Facts, Machine};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measure again, whatever the cache holds
    #[arg(long)]
    measure: bool,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Prints the machine; measures it where the cache has no numbers of it.
///
/// # Errors
/// Where `--measure` is given and the numbers cannot be kept.
pub fn run(args: &Args) -> Result<()> {
    let facts = match args.measure {
        false => facts(),
        true => {
            let (facts, kept) = Facts::measure_into(&Cache::required()?);
            kept?;
            facts
        }
    };
    let machine = machine::describe();
    let kept_in = Cache::of_user().map(|cache| Facts::path(&cache));
    if args.json {
        let tiles: serde_json::Map<_, _> =
            machine.isas.iter().map(|&isa| (isa.to_string(), json!(facts.tiles(isa)))).collect();
        let mut value =
            serde_json::to_value(&machine).map_err(|error| Error::internal("machine", error.to_string(), ""))?;
        if let Some(object) = value.as_object_mut() {
            object.extend([
                ("version".into(), json!(env!("CARGO_PKG_VERSION"))),
                ("cache_bytes".into(), json!(facts.cache_bytes)),
                ("level_3_reach".into(), json!(facts.level_3_reach)),
                ("read_gb_per_s".into(), json!(facts.read_gb_per_s)),
                ("read_gb_per_s_all".into(), json!(facts.read_gb_per_s_all)),
                ("tiles".into(), json!(tiles)),
                ("file".into(), json!(kept_in)),
            ]);
        }
        return print(&format!("{value:#}\n"));
    }
    let kept =
        kept_in.map_or_else(|| "nowhere: this user has no cache folder".into(), |path| path.display().to_string());
    print(&human(&machine, &facts, &kept))
}

fn human(machine: &Machine, facts: &Facts, kept: &str) -> String {
    let mut about = Table::new([Align::Left, Align::Left]);
    about.row(["CPU", &machine.cpu]);
    about.row(["platform", &machine.platform]);
    about.row(["cores".to_string(), machine.cores.to_string()]);
    if let Some(bytes) = machine.memory_bytes {
        about.row(["memory".to_string(), Bytes(bytes).to_string()]);
    }
    about.row(["measured numbers", kept]);

    let threads = |count: usize| if count == 1 { "1 thread".to_string() } else { format!("{count} threads") };
    let mut tiles = Table::new([Align::Left, Align::Right, Align::Right, Align::Right, Align::Right]);
    let (one, all) = (threads(1), threads(facts.cores));
    tiles.row(["tiles".into(), format!("GF/s, {one}"), format!("GF/s, {all}"), "ns an exp".into(), "ns a call".into()]);
    for &isa in &machine.isas {
        let numbers = facts.tiles(isa);
        let cells = [numbers.fma_gflops, numbers.fma_gflops_all, numbers.exp_ns, numbers.call_ns].map(significant);
        tiles.row([isa.to_string()].into_iter().chain(cells));
    }

    let mut levels = Table::new([Align::Left, Align::Right, Align::Right, Align::Right]);
    levels.row(["reads from".into(), "size".into(), format!("GB/s, {one}"), format!("GB/s, {all}")]);
    for (level, name) in ["level 1", "level 2", "level 3", "memory"].into_iter().enumerate() {
        let size = facts.cache_bytes.get(level).copied().or(machine.memory_bytes);
        levels.row([
            name.to_string(),
            size.map_or_else(|| "–".into(), |bytes| Bytes(bytes).to_string()),
            significant(facts.read_gb_per_s[level]),
            significant(facts.read_gb_per_s_all[level]),
        ]);
    }
    let reach = format!("level 3 is as fast up to {}\n", Bytes(facts.level_3_reach));
    [about, tiles, levels].map(|table| table.indented(0)).join("\n") + &reach
}

//! `patterns`: the nodes that a pattern may be made of, and the score mods.

use super::say::print;
use super::table::{Align, Table};
use crate::error::Result;
use crate::pattern::{COMBINATORS, NODES};
use crate::spec::score::SCORE_MODS;

/// Prints every combinator, leaf and score mod of the tables, with arguments and an example.
///
/// # Errors
/// When standard output cannot be written.
pub fn run() -> Result<()> {
    let mut text = String::from("Combinators\n");
    for node in COMBINATORS {
        text += &format!("\n  {}: {}\n      {}\n", node.name, node.meaning, node.example);
    }
    text += "\nLeaves\n";
    for node in NODES {
        text += &format!("\n  {}: {}\n", node.name, node.meaning);
        let mut args = Table::new([Align::Left; 4]);
        for arg in node.args {
            let name = if arg.name.is_empty() { "(value)" } else { arg.name };
            args.row([name, &arg.kind.to_string(), &node.need(arg), arg.meaning]);
        }
        text += &args.indented(6);
        text += &format!("      {}\n", node.example);
    }
    text += "\nScore mods\n";
    for def in SCORE_MODS {
        text += &format!("\n  {}: {}\n", def.name, def.meaning);
        let mut args = Table::new([Align::Left; 4]);
        for &(name, kind, default, meaning) in def.args {
            let default = default.map_or("required".into(), |default| format!("default {default}"));
            args.row([if name.is_empty() { "(value)" } else { name }, kind, &default, meaning]);
        }
        text += &args.indented(6);
        text += &format!("      {}\n", def.example);
    }
    print(&text)
}

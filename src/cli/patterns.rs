//! `patterns`: the nodes that a pattern may be made of.

use super::print;
use super::table::{Align, Table};
use crate::error::Result;
use crate::pattern::{COMBINATORS, NODES};

/// Prints every combinator and leaf of the node tables, with arguments and an example.
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
    print(&text)
}

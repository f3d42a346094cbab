//! `random_blocks` and `blocks`: whole blocks of queries against whole blocks of keys, drawn (Zaheer et al.,
//! "Big Bird", NeurIPS 2020) or given as a layout.

use std::ops::Range;

use super::bits::fill;
use super::draw::Draw;
use super::layout::Layout;
use super::node::{ArgDef, Args, Draft, Kind, NodeDef, leaf};
use super::picked::blocks_of_call;
use super::random::check_edges;
use super::rows::Rows;
use super::{Cover, KeySet, Leaf, MAX_LENGTH};
use crate::error::Result;

/// `random_blocks`
pub const RANDOM_BLOCKS: NodeDef = NodeDef {
    name: "random_blocks",
    meaning: "a block of queries attends to that many distinct blocks of keys drawn for it (all where fewer exist)",
    args: &[
        ArgDef { name: "block", kind: Kind::Integer, default: None, meaning: "tokens in a block" },
        ArgDef {
            name: "blocks_per_row",
            kind: Kind::Integer,
            default: None,
            meaning: "key blocks drawn per query block",
        },
        ArgDef { name: "seed", kind: Kind::Seed, default: None, meaning: "another seed, another choice" },
        ArgDef { name: "per_head", kind: Kind::Flag, default: Some("false"), meaning: "every head draws its own" },
        ArgDef {
            name: "among",
            kind: Kind::Choice(&["all", "past"]),
            default: Some("all"),
            meaning: "past: only from key blocks up to the query block",
        },
    ],
    forms: &[],
    example: "random_blocks: {block: 64, blocks_per_row: 3, seed: 1}",
    read: read_random,
};

/// `blocks`
pub const BLOCKS: NodeDef = NodeDef {
    name: "blocks",
    meaning: "(q, k) is allowed where layout[q / block][k / block] is not zero",
    args: &[
        ArgDef { name: "block", kind: Kind::Integer, default: None, meaning: "tokens in a block" },
        ArgDef {
            name: "layout",
            kind: Kind::Layout,
            default: None,
            meaning: "query blocks by key blocks; possibly a list of heads of them",
        },
        ArgDef {
            name: "file",
            kind: Kind::File,
            default: None,
            meaning: "an array beside the spec, [query blocks, key blocks], possibly [heads, ...]",
        },
        ArgDef {
            name: "input",
            kind: Kind::Input,
            default: None,
            meaning: "given at run time: bool or u8 [batch or 1, heads or kv_heads or 1, query blocks, key blocks], or i32 \
                      lists of key blocks, -1 at their ends",
        },
    ],
    forms: &[&["layout"], &["file"], &["input"]],
    example: "blocks: {block: \"max(1, ceil(n/2))\", layout: [[1, 0], [1, 1]]}",
    read: read_layout,
};

fn read_random<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let (block, per_row) = (args.int("block", 1, None)?, args.int("blocks_per_row", 0, None)?);
    let (seed, per_head) = (args.seed()?, args.flag("per_head")?);
    let past = args.choice("among", &["all", "past"])? == "past";
    Ok(Box::new(move |scope| {
        let block = block.at_most(scope, MAX_LENGTH as i64)? as usize;
        let first = scope.first().div_euclid(block as i64);
        let q_blocks = scope.blocks(block);
        let k_blocks = scope.kv_len.div_ceil(block) as u32;
        let per_row = per_row.at_most(scope, i64::from(k_blocks))? as u32;
        let heads = if per_head { scope.heads } else { 1 };
        let edges = q_blocks * per_row as usize;
        // Empty rows take memory too.
        check_edges(&args, edges.max(q_blocks) as u128 * heads as u128)?;
        let draw_head = |head: usize| {
            let mut draw = Draw::new(seed, Draw::BLOCKS + head as u64);
            Rows::build(q_blocks, edges, |row, keys| {
                let bound = if past { (first + row as i64 + 1).clamp(0, i64::from(k_blocks)) as u32 } else { k_blocks };
                draw.distinct(per_row, bound, keys);
            })
        };
        let rows = (0..heads).map(draw_head).collect();
        let among = if past { "past" } else { "all" };
        let text = format!(
            "random_blocks: {{block: {block}, blocks_per_row: {per_row}, seed: {seed}, per_head: {per_head}, among: {among}}}"
        );
        leaf(BlockRows { block, first, rows, text })
    }))
}

fn read_layout<'a>(args: &Args<'a>) -> Result<Draft<'a>> {
    let args = *args;
    let block = args.int("block", 1, None)?;
    if let Some(input) = args.get("input") {
        if args.get("layout").or(args.get("file")).is_some() {
            return Err(args.source.error(input.at, "`input` does not go with `layout` or `file`", "one of them"));
        }
        let name = input.text(args.source, "input")?.to_string();
        return Ok(Box::new(move |scope| {
            let block = block.at_most(scope, MAX_LENGTH as i64)? as usize;
            leaf(blocks_of_call(name, block, scope))
        }));
    }
    let layout = Layout::read(&args)?;
    Ok(Box::new(move |scope| {
        let block = block.at_most(scope, MAX_LENGTH as i64)? as usize;
        let rows = layout.at(&args, scope, block)?;
        let text = format!("blocks: {{block: {block}, layout: {}}}", layout.text());
        leaf(BlockRows { block, first: 0, rows, text })
    }))
}

/// Key blocks by query block.
#[derive(Debug)]
struct BlockRows {
    block: usize,
    /// Query block of the first row.
    first: i64,
    /// By head; one entry where heads agree.
    rows: Vec<Rows>,
    text: String,
}

impl BlockRows {
    fn head(&self, head: usize) -> &Rows {
        &self.rows[head.min(self.rows.len() - 1)]
    }

    /// The row of a query's block; none where it stands before the first one, as queries before position 0 do
    /// with a layout.
    fn row(&self, q: i64) -> Option<usize> {
        usize::try_from(q.div_euclid(self.block as i64) - self.first).ok()
    }

    fn keys_of(&self, head: usize, q: i64) -> &[u32] {
        self.row(q).map_or(&[], |row| self.head(head).row(row))
    }

    fn keys(&self, blocks: &[u32]) -> KeySet {
        let mut keys = KeySet::empty();
        for &block in blocks {
            let start = i64::from(block) * self.block as i64;
            keys.push(start, start + self.block as i64);
        }
        keys
    }
}

impl Leaf for BlockRows {
    fn allows(&self, head: usize, q: i64, k: usize) -> bool {
        self.keys_of(head, q).binary_search(&((k / self.block) as u32)).is_ok()
    }

    fn cover(&self, head: usize, queries: Range<i64>) -> Cover {
        let head = self.head(head);
        let Some(last) = self.row(queries.end - 1) else { return Cover::default() };
        let Some(first) = self.row(queries.start) else {
            return Cover { some: self.keys(&head.union(0..last + 1)), all: KeySet::empty() };
        };
        let rows = first..last + 1;
        if rows.len() == 1 {
            let keys = self.keys(head.row(rows.start));
            return Cover { some: keys.clone(), all: keys };
        }
        Cover { some: self.keys(&head.union(rows.clone())), all: self.keys(&head.common(rows)) }
    }

    fn words(&self, head: usize, q: i64, blocks: &[u32], out: &mut [u64]) {
        let row = self.keys_of(head, q);
        for (i, &block) in blocks.iter().enumerate() {
            let (first, end) = (block as usize * 64, block as usize * 64 + 64);
            let from = row.partition_point(|&b| (b as usize + 1) * self.block <= first);
            for &b in row[from..].iter().take_while(|&&b| b as usize * self.block < end) {
                let start = (b as usize * self.block) as i64;
                fill(&blocks[i..=i], &mut out[i..=i], start, start + self.block as i64);
            }
        }
    }

    fn depends_on_head(&self) -> bool {
        self.rows.len() > 1
    }

    fn listed(&self) -> u64 {
        self.rows.iter().map(Rows::listed).sum()
    }

    fn print(&self) -> String {
        self.text.clone()
    }
}

//! DeepSpeed's `sparse_attention` block (JSON) as a spec.
//!
//! DeepSpeed describes a layout: blocks of queries against blocks of keys. Modes, keys and defaults are those of its
//! sparsity configurations; each becomes nodes over tokens that allow exactly the pairs of the layout's blocks, at
//! every length that is a multiple of the block. Unidirectional layouts keep whole blocks on their diagonal and leave
//! it to the model to mask what is later within them; the spec does that itself, with `causal`.

use super::{Imported, Sizes};
use crate::error::{Result, Span};
use crate::spec::{Fields, Source, Value, nearest, read_value};

/// Modes of DeepSpeed, with the keys each reads beside `mode` and `block`.
const MODES: [(&str, &[&str]); 7] = [
    ("dense", &["different_layout_per_head"]),
    (
        "fixed",
        &[
            "different_layout_per_head",
            "num_local_blocks",
            "num_global_blocks",
            "attention",
            "horizontal_global_attention",
            "num_different_global_patterns",
        ],
    ),
    (
        "variable",
        &[
            "different_layout_per_head",
            "num_random_blocks",
            "local_window_blocks",
            "global_block_indices",
            "global_block_end_indices",
            "attention",
            "horizontal_global_attention",
        ],
    ),
    (
        "bigbird",
        &[
            "different_layout_per_head",
            "num_random_blocks",
            "num_sliding_window_blocks",
            "num_global_blocks",
            "attention",
        ],
    ),
    (
        "bslongformer",
        &[
            "different_layout_per_head",
            "num_sliding_window_blocks",
            "global_block_indices",
            "global_block_end_indices",
            "attention",
        ],
    ),
    ("local", &["num_sliding_window_blocks", "attention"]),
    ("local_sliding_window", &["num_sliding_window_blocks", "attention"]),
];

/// Blocks and counts beyond this are refused, so that products stay small.
const MOST: u64 = 1 << 20;

/// Reads a whole DeepSpeed configuration, or its `sparse_attention` block alone; `file` is its name in messages.
///
/// # Errors
/// [`Error::Spec`](crate::Error::Spec) with the place of what is wrong: no such block, an unknown mode or key, values
/// that DeepSpeed refuses.
pub fn import(text: &str, file: &str, sizes: Sizes) -> Result<Imported> {
    // JSON may be indented with tabs, which YAML, whose reader keeps places, does not take.
    let source = Source::new(text.replace('\t', " "), file);
    let root = read_value(&source)?;
    let mut config = Config::read(&source, &root)?;
    let nodes = config.nodes()?;
    let mode = config.mode;
    config.remarks.push(format!(
        "the number of heads and their width are not in DeepSpeed's file; here they are {} and {}",
        sizes.heads, sizes.head_dim
    ));
    config.remarks.push(format!("DeepSpeed takes lengths that are multiples of {} only", config.block));
    let mut yaml = format!("# The layout of DeepSpeed's sparse attention, mode {mode}.\n");
    for remark in &config.remarks {
        yaml += &format!("# - {remark}\n");
    }
    yaml += &format!("name: deepspeed-{mode}\nheads: {}\nhead_dim: {}\npattern:\n", sizes.heads, sizes.head_dim);
    let mut indent = "  ".to_string();
    if config.causal {
        yaml += &format!("{indent}all:\n{indent}  - causal\n{indent}  - ");
        indent += "    ";
    } else {
        yaml += &indent;
    }
    match nodes.as_slice() {
        [only] => yaml += &format!("{only}\n"),
        several => {
            yaml += "any:\n";
            several.iter().for_each(|node| yaml += &format!("{indent}  - {node}\n"));
        }
    }
    Ok(Imported { yaml, remarks: config.remarks })
}

struct Config<'a> {
    source: &'a Source,
    fields: Fields<'a>,
    mode: &'static str,
    block: u64,
    /// Whether the layout is unidirectional.
    causal: bool,
    remarks: Vec<String>,
}

impl<'a> Config<'a> {
    fn read(source: &'a Source, root: &'a Value) -> Result<Self> {
        let top = Span { line: 1, column: 1, width: 1 };
        let crate::spec::Data::Map(entries) = &root.data else {
            let expected = "a JSON object: DeepSpeed's configuration, or its `sparse_attention` block";
            return Err(source.error(root.at, format!("the configuration cannot be {}", root.describe()), expected));
        };
        let (at, block) = match entries.iter().find(|(key, ..)| key == "sparse_attention") {
            Some((_, at, block)) => (*at, block),
            None if entries.iter().any(|(key, ..)| key == "mode" || key == "block") => (top, root),
            None => {
                let expected = "`\"sparse_attention\": {\"mode\": \"fixed\", ...}`, or what stands in it";
                return Err(source.error(top, "`sparse_attention` is missing in the configuration", expected));
            }
        };
        let mut known = vec!["mode", "block"];
        for (_, keys) in MODES {
            known.extend(keys.iter().filter(|key| !known.contains(key)).collect::<Vec<_>>());
        }
        let fields = Fields::new(source, "sparse_attention", at, block, &known)?;
        let (mode, keys) = match fields.get("mode") {
            None => MODES[1],
            Some(value) => {
                let word = value.text(source, "mode")?;
                let found = MODES.iter().find(|(mode, _)| *mode == word).copied();
                found.ok_or_else(|| {
                    let names = MODES.map(|(mode, _)| mode);
                    let expected =
                        nearest(word, names).map_or(format!("one of {}", names.join(", ")), |near| format!("`{near}`"));
                    source.error(value.at, format!("unknown mode `{word}`"), expected)
                })?
            }
        };
        let mut remarks = Vec::new();
        if fields.get("mode").is_none() {
            remarks.push("there is no mode; DeepSpeed takes fixed".to_string());
        }
        for key in known.iter().filter(|key| !["mode", "block"].contains(key) && !keys.contains(key)) {
            if fields.get(key).is_some() {
                remarks.push(format!("mode {mode} does not read {key}"));
            }
        }
        let mut config = Self { source, fields, mode, block: 16, causal: false, remarks };
        config.block = config.count("block", 1, 16)?;
        if keys.contains(&"attention") {
            let default = if mode.starts_with("local") { "unidirectional" } else { "bidirectional" };
            let attention = match config.fields.get("attention") {
                Some(value) => value.choice(source, "attention", &["unidirectional", "bidirectional"])?,
                None => default,
            };
            config.causal = attention == "unidirectional";
        }
        if config.causal {
            config.remarks.push(
                "unidirectional layouts keep whole blocks on the diagonal, for the model to mask; here it is causal token by token"
                    .to_string(),
            );
        }
        Ok(config)
    }

    /// The nodes whose union is the layout, in YAML's flow style.
    fn nodes(&mut self) -> Result<Vec<String>> {
        match self.mode {
            "fixed" => self.fixed(),
            "variable" => self.variable(),
            "bigbird" => {
                let globals = self.count("num_global_blocks", 0, 1)?;
                let mut nodes = vec![self.sliding()?];
                nodes.extend(self.random(1, self.causal)?);
                nodes.extend(self.globals(&[(0, globals)], true));
                Ok(nodes)
            }
            "bslongformer" => {
                let mut nodes = vec![self.sliding()?];
                nodes.extend(self.globals(&self.global_ranges()?, true));
                Ok(nodes)
            }
            "local" | "local_sliding_window" => Ok(vec![self.sliding()?]),
            _ => Ok(vec!["full".into()]),
        }
    }

    fn fixed(&mut self) -> Result<Vec<String>> {
        let block = self.block;
        let (locals, globals) = (self.count("num_local_blocks", 1, 4)?, self.count("num_global_blocks", 1, 1)?);
        if locals % globals != 0 {
            let message = format!("`num_global_blocks` is {globals}, which does not divide {locals} local blocks");
            return Err(self.refuse("num_global_blocks", message, "a divisor of `num_local_blocks`"));
        }
        let horizontal = self.horizontal()?;
        let patterns = self.count("num_different_global_patterns", 1, 1)?;
        if patterns > 1 && !self.flag("different_layout_per_head")? {
            let message = format!("{patterns} global patterns with one layout for all heads");
            let expected = "`\"different_layout_per_head\": true`, or 1";
            return Err(self.refuse("num_different_global_patterns", message, expected));
        }
        if patterns > locals / globals {
            let message = format!("`num_different_global_patterns` is {patterns}");
            let expected = format!("at most {}, local blocks by global blocks", locals / globals);
            return Err(self.refuse("num_different_global_patterns", message, expected));
        }
        // Head h takes the last blocks of every window but h mod patterns times as many.
        let first = match patterns {
            1 => (locals - globals).to_string(),
            _ => format!("({locals} - (1 + h % {patterns}) * {globals})"),
        };
        let blocks = format!("ceil(n / {block})");
        let whole = format!("{blocks} // {locals} * {locals}");
        // A short last window has its representatives at the same place, or at the end where that is beyond.
        let last = format!("min({whole} + {first}, {blocks} - {globals})");
        let on = |x: &str| {
            let at = format!("{x} // {block}");
            let inner =
                format!("{at} < {whole} and {at} % {locals} >= {first} and {at} % {locals} < {first} + {globals}");
            let short = format!("{blocks} % {locals} != 0 and {at} >= {last} and {at} < {last} + {globals}");
            format!("where: \"({inner}) or ({short})\"")
        };
        let mut nodes = vec![format!("chunk: {{size: {}}}", locals * block), on("k")];
        if horizontal {
            nodes.push(on("q"));
        }
        Ok(nodes)
    }

    fn variable(&mut self) -> Result<Vec<String>> {
        let block = self.block;
        let windows = self.list("local_window_blocks", 1, &[4])?;
        let Some((&last, before)) = windows.split_last() else {
            let expected = "at least one number of blocks";
            return Err(self.refuse("local_window_blocks", "`local_window_blocks` is empty".into(), expected));
        };
        let mut nodes = Vec::new();
        if before.iter().all(|&window| window == last) {
            nodes.push(format!("chunk: {{size: {}}}", last * block));
        } else {
            let mut start = 0;
            for &window in before {
                let end = start + window * block;
                nodes.push(format!("where: \"min(q, k) >= {start} and max(q, k) < {end}\""));
                start = end;
            }
            let size = last * block;
            nodes.push(format!(
                "where: \"min(q, k) >= {start} and (q - {start}) // {size} == (k - {start}) // {size}\""
            ));
        }
        let horizontal = self.horizontal()?;
        nodes.extend(self.random(0, false)?);
        nodes.extend(self.globals(&self.global_ranges()?, horizontal));
        Ok(nodes)
    }

    /// Blocks at most half the window away, in either direction.
    fn sliding(&self) -> Result<String> {
        let reach = self.count("num_sliding_window_blocks", 1, 3)? / 2;
        // So many neighbors are in one of the overlapping chunks exactly if they are near enough.
        Ok(format!("chunk: {{size: {}, stride: {}}}", (reach + 1) * self.block, self.block))
    }

    fn random(&mut self, default: u64, past: bool) -> Result<Option<String>> {
        let count = self.count("num_random_blocks", 0, default)?;
        if count == 0 {
            return Ok(None);
        }
        self.remarks.push(
            "DeepSpeed draws its random blocks from the state of Python's random; here they are other blocks, drawn from a seed"
                .to_string(),
        );
        let per_head = self.flag("different_layout_per_head")?;
        let among = if past { "past" } else { "all" };
        Ok(Some(format!(
            "random_blocks: {{block: {}, blocks_per_row: {count}, seed: 0, per_head: {per_head}, among: {among}}}",
            self.block
        )))
    }

    /// Global blocks as ranges, first and after the last.
    fn global_ranges(&self) -> Result<Vec<(u64, u64)>> {
        let starts = self.list("global_block_indices", 0, &[0])?;
        let ends = match self.fields.get("global_block_end_indices") {
            Some(value) if !matches!(value.data, crate::spec::Data::Null) => {
                self.list("global_block_end_indices", 0, &[])?
            }
            _ => starts.iter().map(|start| start + 1).collect(),
        };
        if ends.len() != starts.len() {
            let message = format!("{} end indices for {} global blocks", ends.len(), starts.len());
            return Err(self.refuse("global_block_end_indices", message, "as many as `global_block_indices`"));
        }
        let ranges: Vec<(u64, u64)> = starts.into_iter().zip(ends).collect();
        if let Some((start, end)) = ranges.iter().find(|(start, end)| start >= end) {
            let message = format!("global blocks from {start} to {end}");
            return Err(self.refuse("global_block_end_indices", message, "ends beyond their starts"));
        }
        Ok(ranges)
    }

    /// Blocks that everyone attends to and, with `rows`, that attend to everyone.
    fn globals(&self, ranges: &[(u64, u64)], rows: bool) -> Vec<String> {
        let axis = if rows { "both" } else { "keys" };
        let node = |&(start, end): &(u64, u64)| {
            let (start, end) = (start * self.block, end * self.block);
            if start == 0 {
                return format!("global: {{tokens: {{first: {end}}}, axis: {axis}}}");
            }
            let on = |x: &str| format!("{start} <= {x} and {x} < {end}");
            match rows {
                true => format!("where: \"({}) or ({})\"", on("k"), on("q")),
                false => format!("where: \"{}\"", on("k")),
            }
        };
        ranges.iter().filter(|(start, end)| start < end).map(node).collect()
    }

    fn horizontal(&self) -> Result<bool> {
        let horizontal = self.flag("horizontal_global_attention")?;
        if horizontal && self.causal {
            let message = "horizontal global attention in a unidirectional layout".into();
            return Err(self.refuse("horizontal_global_attention", message, "`\"attention\": \"bidirectional\"`"));
        }
        Ok(horizontal)
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.fields.get(key).map_or(Ok(false), |value| value.boolean(self.source, key))
    }

    fn count(&self, key: &str, least: u64, default: u64) -> Result<u64> {
        self.fields.get(key).map_or(Ok(default), |value| value.integer(self.source, key, least, MOST))
    }

    fn list(&self, key: &str, least: u64, default: &[u64]) -> Result<Vec<u64>> {
        let Some(value) = self.fields.get(key) else { return Ok(default.to_vec()) };
        let items = value.list(self.source, key, "a list of numbers of blocks, such as [4]")?;
        items.iter().map(|item| item.integer(self.source, key, least, MOST)).collect()
    }

    fn refuse(&self, key: &str, message: String, expected: impl Into<String>) -> crate::error::Error {
        let at = self.fields.get(key).map_or(self.fields.at, |value| value.at);
        self.source.error(at, message, expected)
    }
}

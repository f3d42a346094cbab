//! Attention over many processes: which rows each of them holds, reads and receives.
//!
//! In: a spec, a number of tokens, and of processes. Out: an [`Exchange`]. Each process holds a slice of the tokens, and
//! computes its own queries. Before a hop it receives the rows of others that those queries attend to, exactly: the halo of
//! a window from its neighbors, global tokens from wherever they are, everything where the pattern asks for everything. K
//! and V are sent in the dtype of the spec, once for each kv head; the Z of later hops in f32 for each query head. The
//! gradient sends the same rows back.

use std::fmt::Write;
use std::ops::Range;

use crate::error::{Bytes, Error, Result};
use crate::limits::Allowance;
use crate::mask::{self, Keys};
use crate::pattern::slice::Cut;
use crate::pattern::{self, KeySet, Pattern};
use crate::spec::score::ModKind;
use crate::spec::{Diffusion, DiffusionForm, Dtype, Factors, Given, PatternSpec};

/// Slices begin at multiples of this many tokens.
const BLOCK: usize = mask::QUERY_BLOCK;
/// Most processes.
const MOST_WORLD: usize = 65_536;

/// Who holds and who receives which rows.
#[derive(Debug, Clone)]
pub struct Exchange {
    spec: PatternSpec,
    /// Tokens.
    pub n: usize,
    /// The tokens of every process.
    pub slices: Vec<Range<usize>>,
    /// For every hop, its place in `patterns`.
    pub of_hop: Vec<usize>,
    /// The distinct patterns of hops.
    patterns: Vec<Pattern>,
    /// For every pattern and process, the rows that it reads, its own among them.
    reads: Vec<Vec<KeySet>>,
}

/// The tokens of every process: as even as multiples of 64 allow, the first ones larger; some are empty where there are
/// fewer blocks of 64 than processes.
pub fn slices(n: usize, world: usize) -> Vec<Range<usize>> {
    let blocks = n.div_ceil(BLOCK);
    let (each, more) = (blocks / world.max(1), blocks % world.max(1));
    let border = |rank: usize| ((rank * each + rank.min(more)) * BLOCK).min(n);
    (0..world).map(|rank| border(rank)..border(rank + 1)).collect()
}

impl Exchange {
    /// Works out the exchange of a spec for `n` tokens over `world` processes, within `allowance`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for no processes or too many, for patterns that wait for segment ids, and for hops without end
    /// that are solved row after row or whose number depends on the call; else those of resolving and of building masks.
    pub fn new(spec: &PatternSpec, n: usize, world: usize, allowance: impl Into<Allowance>) -> Result<Self> {
        if !(1..=MOST_WORLD).contains(&world) {
            return Err(Error::unsupported(format!("{world} processes"), format!("1 to {MOST_WORLD} are")));
        }
        let allowance = allowance.into();
        let whole = pattern::resolve(spec, n, n)?;
        whole.require_bound()?;
        let hops = hops(spec, &whole)?;
        let mut indices: Vec<usize> = Vec::new();
        let mut of_hop = Vec::new();
        let mut patterns = Vec::new();
        for hop in 0..hops {
            let index = whole.index_of_hop(hop);
            let place = indices.iter().position(|&known| known == index).unwrap_or_else(|| {
                indices.push(index);
                patterns.push(whole.of_hop(hop).clone().without_hops());
                indices.len() - 1
            });
            of_hop.push(place);
        }
        let slices = slices(n, world);
        let of_pattern = |pattern: &Pattern| -> Result<Vec<KeySet>> {
            slices.iter().map(|rows| reads(pattern, rows, allowance)).collect()
        };
        let reads = patterns.iter().map(of_pattern).collect::<Result<_>>()?;
        Ok(Self { spec: spec.clone(), n, slices, of_hop, patterns, reads })
    }

    /// Processes.
    pub fn world(&self) -> usize {
        self.slices.len()
    }

    /// Distinct patterns of hops.
    pub fn patterns(&self) -> usize {
        self.patterns.len()
    }

    /// The rows that `rank` receives before a hop of pattern number `pattern`: ascending, apart, none of its own.
    pub fn received(&self, pattern: usize, rank: usize) -> KeySet {
        let own = &self.slices[rank];
        self.reads[pattern][rank].difference(&KeySet::span(own.start as i64, own.end as i64))
    }

    /// The slice that `rank` computes a hop of pattern number `pattern` on. Score mods that read positions need everything
    /// in its place; other specs have only those blocks of keys that are there.
    pub fn cut(&self, pattern: usize, rank: usize) -> Cut {
        let own = self.slices[rank].clone();
        if own.is_empty() {
            return Cut::new(own, Vec::new());
        }
        if self.spec.mods.iter().any(|item| !matches!(item.kind, ModKind::Softcap(_))) {
            return Cut::in_place(own, self.n);
        }
        let mut keys = self.reads[pattern][rank].clone();
        keys = keys.union(&KeySet::span(own.start as i64, own.end as i64));
        let mut blocks: Vec<u32> = Vec::new();
        for &(lo, hi) in keys.intervals() {
            let first = (lo as usize / BLOCK) as u32;
            let next = blocks.last().map_or(0, |last| last + 1);
            blocks.extend(first.max(next)..(hi as usize).div_ceil(BLOCK) as u32);
        }
        Cut::new(own, blocks)
    }

    /// The pattern of that slice.
    pub fn pattern(&self, pattern: usize, rank: usize) -> Pattern {
        self.patterns[pattern].slice(self.cut(pattern, rank))
    }

    /// The spec of one hop, the product with A alone: the first with the heads of k and v, later ones with one of each for
    /// every query head, since Z has them all. Where there are several hops, everything is computed in f32.
    pub fn hop_spec(&self, first: bool) -> PatternSpec {
        let mut spec = self.spec.clone();
        spec.diffusion = Diffusion::plain();
        spec.hop_patterns = Vec::new();
        if !first {
            spec.kv_heads = spec.heads;
        }
        if !self.is_plain() {
            spec.dtype = Dtype::F32;
        }
        spec
    }

    /// Whether the result is the product with A alone, once.
    pub fn is_plain(&self) -> bool {
        self.spec.diffusion.fixed().is_some_and(|factors| *factors == Factors::restart(1, 0.0))
    }

    /// The factors of all hops, where they are known without a call.
    ///
    /// # Errors
    /// [`Error::Spec`] where hops without end do not reach their tolerance.
    pub fn factors(&self) -> Result<Option<Factors>> {
        match self.spec.diffusion.given() {
            Some(_) => Ok(None),
            None => self.spec.factors_of_head(0, &[]).map(Some),
        }
    }

    /// What a call gives for the factors.
    pub fn given(&self) -> Option<Given> {
        self.spec.diffusion.given()
    }

    /// Bytes of all that is sent of a token before a hop, at batch 1.
    fn bytes_of_row(&self, hop: usize) -> u64 {
        let spec = &self.spec;
        let size = spec.dtype.bytes() as u64;
        // K comes with the first hop of its pattern.
        let known = self.of_hop[..hop].contains(&self.of_hop[hop]);
        let keys = if known { 0 } else { (spec.kv_heads * spec.head_dim) as u64 * size };
        let values = match hop {
            0 => (spec.kv_heads * spec.value_dim) as u64 * size,
            _ => (spec.heads * spec.value_dim) as u64 * 4,
        };
        keys + values
    }

    /// Bytes that `rank` receives before a hop, at batch 1.
    pub fn bytes_of(&self, hop: usize, rank: usize) -> u64 {
        self.received(self.of_hop[hop], rank).len() * self.bytes_of_row(hop)
    }

    /// The most bytes that any one process receives in a forward call, at batch 1.
    pub fn bytes(&self) -> u64 {
        let of_rank = |rank| (0..self.of_hop.len()).map(|hop| self.bytes_of(hop, rank)).sum();
        (0..self.world()).map(of_rank).max().unwrap_or(0)
    }

    /// The same where every process receives all rows of others before every hop.
    pub fn all_gather_bytes(&self) -> u64 {
        let of_rank = |rank: usize| -> u64 {
            let others = (self.n - self.slices[rank].len()) as u64;
            (0..self.of_hop.len()).map(|hop| others * self.bytes_of_row(hop)).sum()
        };
        (0..self.world()).map(of_rank).max().unwrap_or(0)
    }

    /// How many times rows are sent in a forward call: once before every hop before which some process needs any.
    pub fn rounds(&self) -> usize {
        (0..self.of_hop.len()).filter(|&hop| self.moves(self.of_hop[hop])).count()
    }

    /// The plan, for people.
    pub fn text(&self) -> String {
        let mut out = format!("{} processes, {} tokens\n", self.world(), self.n);
        let most = self.slices.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let least = self.slices.iter().map(ExactSizeIterator::len).min().unwrap_or(0);
        let _ = writeln!(out, "  each holds {least} to {most} of them, cut at multiples of {BLOCK}");
        for hop in 0..self.of_hop.len() {
            let pattern = self.of_hop[hop];
            let rows = (0..self.world()).map(|rank| self.received(pattern, rank).len()).max().unwrap_or(0);
            let what = if hop == 0 { "K and V" } else { "Z" };
            let most = (0..self.world()).map(|rank| self.bytes_of(hop, rank)).max().unwrap_or(0);
            let all = rows > 0
                && (0..self.world()).all(|rank| {
                    let own = &self.slices[rank];
                    own.is_empty() || self.received(pattern, rank).len() as usize == self.n - own.len()
                });
            let how = if all { ", all there are: every process reads every row" } else { "" };
            let _ = writeln!(out, "  hop {}: at most {rows} rows of {what}, {}{how}", hop + 1, Bytes(most));
        }
        let _ = writeln!(
            out,
            "  in all: {} rounds, {} received by one process at most; {} if all rows went to all",
            self.rounds(),
            Bytes(self.bytes()),
            Bytes(self.all_gather_bytes())
        );
        out
    }

    fn moves(&self, pattern: usize) -> bool {
        (0..self.world()).any(|rank| !self.received(pattern, rank).is_empty())
    }
}

/// Hops that a call takes.
fn hops(spec: &PatternSpec, whole: &Pattern) -> Result<usize> {
    let DiffusionForm::Limit { .. } = spec.diffusion.form else { return Ok(spec.diffusion.hops()) };
    let instead =
        "a number of hops, or hops without end whose alpha is in the spec and whose queries see later keys too";
    if spec.diffusion.given().is_some() {
        return Err(Error::unsupported("`hops: all` with an alpha of the call over many processes", instead));
    }
    if (0..spec.heads).any(|head| whole.is_lower_triangular(head)) {
        return Err(Error::unsupported("`hops: all` of a causal pattern over many processes", instead));
    }
    Ok(spec.factors_of_head(0, &[])?.hops.len())
}

/// The rows that some head of some query in `rows` attends to.
fn reads(pattern: &Pattern, rows: &Range<usize>, allowance: Allowance) -> Result<KeySet> {
    let mut seen = vec![0_u64; pattern.kv_len.div_ceil(64)];
    let mut set = |key: u32| seen[key as usize / 64] |= 1 << (key % 64);
    let blocks: Vec<u32> = (rows.start.div_ceil(BLOCK) as u32..rows.end.div_ceil(BLOCK) as u32).collect();
    let classes = pattern.head_classes();
    for head in 0..pattern.heads {
        if blocks.is_empty() || classes[..head].contains(&classes[head]) {
            continue;
        }
        let mask = mask::build_some_rows(pattern, head, &blocks, allowance)?;
        for run in &mask.rows {
            for segment in &run.segments {
                let words = segment.mask.map(|words| &mask.words[words as usize]);
                let read = |at: usize| words.is_none_or(|words| words[at] != 0);
                match segment.keys {
                    Keys::List { list } => {
                        let keys = mask.lists[list as usize].iter().enumerate();
                        keys.filter(|(at, _)| read(*at)).for_each(|(_, &key)| set(key));
                    }
                    Keys::Range { start, len, start_step, len_step } => {
                        for row in 0..run.count {
                            let start = start + row * start_step;
                            let keys = 0..len + row * len_step;
                            keys.filter(|&at| read(at as usize)).for_each(|at| set(start + at));
                        }
                    }
                }
            }
        }
        mask.edges.keys.iter().for_each(|&key| set(key));
    }
    let keys = (0..pattern.kv_len).filter(|key| seen[key / 64] >> (key % 64) & 1 == 1);
    Ok(KeySet::from_sorted_keys(keys.map(|key| key as i64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    fn spec_of(rest: &str) -> PatternSpec {
        spec::parse(&format!("name: t\nheads: 4\nkv_heads: 2\nhead_dim: 8\n{rest}"), "t").unwrap()
    }

    fn exchange(rest: &str, n: usize, world: usize) -> Exchange {
        Exchange::new(&spec_of(rest), n, world, 1_u64 << 30).unwrap()
    }

    #[test]
    fn slices_are_even_and_cover_everything() {
        for (n, world) in [(0, 3), (1, 4), (64, 2), (700, 3), (1024, 4), (1000, 1)] {
            let slices = slices(n, world);
            assert_eq!(slices.len(), world);
            assert_eq!((slices[0].start, slices[world - 1].end), (0, n));
            assert!(slices.windows(2).all(|two| two[0].end == two[1].start && two[0].end % 64 * (n - two[0].end) == 0));
            let blocks: Vec<usize> = slices.iter().map(|rows| rows.len().div_ceil(64)).collect();
            assert!(blocks.iter().max().unwrap() - blocks.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn a_window_takes_halos_and_its_bytes_follow_by_hand() {
        let window = exchange("pattern: {window: {radius: 100}}\ndiffusion: {hops: 3, alpha: 0.1}", 1024, 4);
        assert_eq!(window.received(0, 1).intervals(), [(156, 256), (512, 612)]);
        assert_eq!(window.received(0, 0).intervals(), [(256, 356)]);
        // 200 rows: K and V of 2 heads of 8, then twice Z of 4 heads.
        assert_eq!(window.bytes(), 200 * (2 * 8 * 4 * 2) + 2 * 200 * 4 * 8 * 4);
        assert_eq!(window.rounds(), 3);
        assert_eq!(exchange("pattern: full", 1024, 4).bytes(), 768 * 2 * 8 * 4 * 2);
        assert_eq!(exchange("pattern: {chunk: {size: 64}}", 1024, 4).rounds(), 0);
    }

    #[test]
    fn slices_of_every_process_allow_what_the_whole_allows() {
        let nodes = [
            "{any: [{window: {radius: 70}}, {global: {tokens: {first: 3}}}]}",
            "{random: {keys_per_query: 3, seed: 5, per_head: true}}",
            "{window: {radius: 9, dilation: 8}}",
            "causal",
        ];
        for node in nodes {
            let n = 300;
            let exchange = exchange(&format!("pattern: {node}"), n, 3);
            let whole = &exchange.patterns[0];
            for rank in 0..3 {
                let cut = exchange.cut(0, rank);
                let own = exchange.slices[rank].clone();
                for cut in [cut, Cut::in_place(own.clone(), n)] {
                    let part = whole.slice(cut.clone());
                    let mut allowed = 0;
                    for (head, q) in (0..4).flat_map(|head| (0..part.q_len).map(move |q| (head, q))) {
                        let token = q + cut.first;
                        let cover = part.cover(head, q..q + 1);
                        let mut words = vec![0; cut.blocks.len()];
                        let blocks: Vec<u32> = (0..cut.blocks.len() as u32).collect();
                        part.words(head, q, &blocks, &mut words);
                        for k in 0..part.kv_len {
                            let key = cut.blocks[k / 64] as usize * 64 + k % 64;
                            let expected = own.contains(&token) && whole.allows(head, token, key);
                            allowed += usize::from(expected);
                            assert_eq!(part.allows(head, q, k), expected, "{node} {rank} {head} {q} {k}");
                            assert_eq!(words[k / 64] >> (k % 64) & 1 == 1, expected, "{node} {rank} {head} {q} {k}");
                            assert!(!expected || cover.some.contains(k as i64), "{node} {rank} {head} {q} {k}");
                            assert!(expected || !cover.all.contains(k as i64), "{node} {rank} {head} {q} {k}");
                        }
                    }
                    // Nothing that a query reads is missing.
                    let all = (0..4).flat_map(|head| own.clone().map(move |q| (head, q)));
                    let wanted: usize = all.map(|(head, q)| (0..n).filter(|&k| whole.allows(head, q, k)).count()).sum();
                    assert_eq!(allowed, wanted, "{node} {rank}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_in_words() {
        let refused =
            |rest: &str, world| Exchange::new(&spec_of(rest), 256, world, 1_u64 << 30).unwrap_err().to_string();
        assert!(refused("pattern: causal\ndiffusion: {hops: all, alpha: 0.1}", 2).contains("a number of hops"));
        assert!(refused("pattern: causal", 0).contains("0 processes"));
        assert!(refused("pattern: {segments: {input: ids}}", 2).contains("ids"));
    }
}

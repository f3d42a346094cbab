//! How the hops of a block row follow each other, and when each way is legal.
//!
//! In: the block mask of a schedule, the number of hops, what the caller wishes. Out: the strategy, with a sentence on
//! every one of them. What decides is how far a block row reaches ([`Reach`]): a hop needs the rows it reads from the
//! hop before.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{MaskPlan, Model, PieceKeys, Step, Stretch};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::mask::{BlockMask, HeadMask, Keys, QUERY_BLOCK, RowOrder};
use crate::schedule::{Op, VerifiedSchedule};

/// How the hops of a block row follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// One hop, online softmax, P never leaves the panel of its block row.
    Flash,
    /// P is stored once per head, then read by one SpMM per hop.
    Resident,
    /// P is computed again in every hop, from the row statistics of the first.
    Recompute,
    /// Block rows in order, every hop some rows behind the one before: P waits in a ring of rows until its last hop.
    Wavefront,
    /// Block rows in order, all hops of a row at once: P is that of one row.
    Triangular,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 5] = [Self::Flash, Self::Resident, Self::Recompute, Self::Wavefront, Self::Triangular];

    /// Name on the command line and in every text form.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flash => "flash",
            Self::Resident => "resident",
            Self::Recompute => "recompute",
            Self::Wavefront => "wavefront",
            Self::Triangular => "triangular",
        }
    }

    /// Whether probabilities are kept between a row's softmax and its hops.
    pub const fn stores_p(self) -> bool {
        matches!(self, Self::Resident | Self::Wavefront | Self::Triangular)
    }

    /// Whether block rows are swept in order, all hops in one go.
    pub const fn sweeps(self) -> bool {
        matches!(self, Self::Wavefront | Self::Triangular)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            Error::unsupported(format!("strategy `{name}`"), format!("the strategies are {}", names.join(", ")))
        })
    }
}

/// How far block rows reach, counted in block rows: a row `t` reads rows `t - behind ..= t + ahead` of Z at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reach {
    /// Rows behind itself.
    pub behind: u32,
    /// Rows ahead of itself: by so many each hop of a sweep lags behind the one before.
    pub ahead: u32,
}

impl Reach {
    fn join(self, other: Self) -> Self {
        Self { behind: self.behind.max(other.behind), ahead: self.ahead.max(other.ahead) }
    }

    /// Of a row `t` that reads the places `first ..= last`.
    fn of(t: u32, first: u32, last: u32) -> Self {
        let block = QUERY_BLOCK as u32;
        Self { behind: t.saturating_sub(first / block), ahead: (last / block).saturating_sub(t) }
    }

    /// Rows of P that are alive at once in a sweep of `hops` hops.
    pub fn ring_slots(self, hops: usize) -> usize {
        hops.saturating_sub(1) * self.ahead as usize + 1
    }

    /// Block rows of a Z that are alive at once.
    pub const fn window(self) -> usize {
        self.behind as usize + self.ahead as usize + 1
    }
}

/// What a mask's block rows reach, or why hops cannot follow its rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reaches {
    /// Places of queries and numbers of keys are the same, and rows reach this far; the row that reaches furthest ahead.
    Band(Reach, u32),
    /// They are not.
    Unordered(String),
}

/// How far the rows of all masks reach.
pub(super) fn reaches(neighbors: &BlockMask) -> Reaches {
    let mut all = (Reach::default(), 0);
    for mask in &neighbors.masks {
        if !follows_keys(mask, neighbors.kv_len) {
            return Reaches::Unordered(unordered(mask, neighbors));
        }
        let mut see = |t: u32, first: u32, last: u32| {
            let reach = Reach::of(t, first, last);
            all = (all.0.join(reach), if reach.ahead > all.0.ahead { t } else { all.1 });
        };
        for run in &mask.rows {
            for segment in &run.segments {
                // Starts and ends move evenly, so that the first and the last row of a run reach furthest.
                for row in [0, run.count - 1] {
                    match segment.keys {
                        Keys::Range { start, start_step, .. } => {
                            let start = start + row * start_step;
                            if let Some(len) = mask.segment_len(segment, row).checked_sub(1) {
                                see(run.first + row, start, start + len as u32);
                            }
                        }
                        Keys::List { list } => {
                            let list = &mask.lists[list as usize];
                            if let (Some(&first), Some(&last)) = (list.first(), list.last()) {
                                see(run.first + row, first, last);
                            }
                        }
                    }
                }
            }
        }
        for (place, ends) in mask.edges.offsets.windows(2).enumerate() {
            let keys = &mask.edges.keys[ends[0] as usize..ends[1] as usize];
            if let (Some(&first), Some(&last)) = (keys.first(), keys.last()) {
                see((place / QUERY_BLOCK) as u32, first, last);
            }
        }
    }
    Reaches::Band(all.0, all.1)
}

/// Whether query `i` of the mask's order is key number `i`.
fn follows_keys(mask: &HeadMask, kv_len: usize) -> bool {
    match (&mask.order, mask.keys) {
        (RowOrder::Identity, keys) => keys.step() == 1,
        (RowOrder::Permuted(order), keys) => {
            order.len() == kv_len && order.iter().zip(0..).all(|(&query, number)| query == keys.key_at(number, kv_len))
        }
    }
}

/// Why rows stand in another order than keys: the global queries that were moved to the end, if there are any.
fn unordered(mask: &HeadMask, neighbors: &BlockMask) -> String {
    let mut global = Vec::new();
    if let (Some(run), RowOrder::Permuted(order)) = (mask.rows.last(), &mask.order) {
        let row = run.count - 1;
        let mut keys = [0; QUERY_BLOCK];
        for segment in &run.segments {
            for (place, count) in keys.iter_mut().enumerate() {
                *count += match segment.mask {
                    None => mask.segment_len(segment, row),
                    Some(table) => mask.words[table as usize].iter().filter(|&word| word >> place & 1 == 1).count(),
                };
            }
        }
        let first = (run.first + row) as usize * QUERY_BLOCK;
        for (place, count) in keys.iter_mut().enumerate() {
            if let [from, to, ..] = mask.edges.offsets.get(first + place..).unwrap_or(&[]) {
                *count += (to - from) as usize;
            }
        }
        let here = order.iter().skip(first);
        global = here.zip(keys).filter(|&(_, keys)| 2 * keys > neighbors.kv_len).map(|(&query, _)| query).collect();
        global.sort_unstable();
    }
    match global[..] {
        [] => "rows stand in another order than keys".to_owned(),
        [only] => format!("global row {only} reaches every row"),
        [first, .., last] if last as usize - first as usize + 1 == global.len() => {
            format!("global rows {first}..{last} reach every row")
        }
        [first, .., last] => format!("{} global rows among {first}..{last} reach every row", global.len()),
    }
}

/// What the planner knows when it chooses.
pub(super) struct Situation<'a> {
    pub neighbors: &'a BlockMask,
    pub hops: usize,
    /// The schedule still loops over a single hop.
    pub looped: bool,
    /// The schedule computes gradients.
    pub training: bool,
    pub wish: Option<Strategy>,
}

/// What is said of a strategy that was wished.
pub const ASKED_FOR: &str = "asked for";

/// The strategy, how far rows reach where it needs that, and a sentence on each strategy: the wished one, else the legal
/// one that the cost model finds fastest, where P is stored as `store` says if it is kept.
///
/// # Errors
/// [`Error::Unsupported`] with the reason where the wished strategy is not legal.
pub(super) fn choose(
    situation: &Situation<'_>,
    model: &Model,
    store: Dtype,
) -> crate::error::Result<(Strategy, Option<Reach>, Vec<String>)> {
    let Situation { neighbors, hops, wish, .. } = *situation;
    // A single hop is flash's; how far rows reach is looked at only where it is asked for.
    let reaches = match (hops, wish) {
        (1, None | Some(Strategy::Flash | Strategy::Resident | Strategy::Recompute)) => None,
        _ => Some(reaches(neighbors)),
    };
    let verdict = |strategy: Strategy| legal(strategy, situation, reaches.as_ref());
    let band = match reaches {
        Some(Reaches::Band(reach, _)) => Some(reach),
        _ => None,
    };
    let time = |strategy| model.forecast(strategy, store, band).seconds;
    let rows = neighbors.q_len.div_ceil(QUERY_BLOCK);
    let strategy = match wish {
        Some(wish) => match verdict(wish) {
            Ok(_) => wish,
            Err(reason) => {
                let others: Vec<&str> =
                    Strategy::ALL.into_iter().filter(|&s| verdict(s).is_ok()).map(Strategy::name).collect();
                let others = format!("{wish}: no, {reason}; legal here: {}", others.join(", "));
                return Err(Error::unsupported(format!("strategy {wish}"), others));
            }
        },
        None => {
            let legal = Strategy::ALL.into_iter().filter(|&strategy| verdict(strategy).is_ok());
            let times = legal.map(|strategy| (strategy, time(strategy)));
            times.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(Strategy::Resident, |(strategy, _)| strategy)
        }
    };
    let reach = match &reaches {
        Some(Reaches::Band(reach, _)) if strategy.sweeps() => {
            debug_assert!(reach.ring_slots(hops) <= rows.max(1));
            Some(*reach)
        }
        _ => None,
    };
    let mut reasons: Vec<String> = Strategy::ALL
        .into_iter()
        .map(|strategy| match verdict(strategy) {
            Ok(why) => {
                let words = model.words(strategy, store, band).map_or(String::new(), |words| format!("; {words}"));
                format!("{strategy}: legal, {why}{words}")
            }
            Err(why) => format!("{strategy}: no, {why}"),
        })
        .collect();
    reasons.push(match wish {
        Some(_) => format!("{strategy}: {ASKED_FOR}"),
        None => format!("{strategy}: chosen"),
    });
    Ok((strategy, reach, reasons))
}

/// Every strategy for a schedule whose mask is whole, with why it is legal or why not.
pub fn verdicts(schedule: &VerifiedSchedule) -> Vec<(Strategy, Result<String, String>)> {
    let looped = schedule.body.iter().any(|op| matches!(op, Op::Hops { looped: true, .. }));
    let situation = Situation {
        neighbors: &schedule.neighbors,
        hops: schedule.hops().len(),
        looped,
        training: schedule.gradient_scale().is_some(),
        wish: None,
    };
    let reaches = reaches(&schedule.neighbors);
    Strategy::ALL.into_iter().map(|strategy| (strategy, legal(strategy, &situation, Some(&reaches)))).collect()
}

/// Why a strategy is legal, or why not.
fn legal(strategy: Strategy, situation: &Situation<'_>, reaches: Option<&Reaches>) -> Result<String, String> {
    let Situation { neighbors, hops, looped, training, .. } = *situation;
    if training && !matches!(strategy, Strategy::Resident | Strategy::Recompute) {
        return Err("gradients are computed hop by hop".to_owned());
    }
    if strategy != Strategy::Flash && neighbors.parts > 1 {
        return Err("not with a mask in parts; asked for, it has the mask built whole".to_owned());
    }
    let band = || match reaches {
        None => Err("not needed for a single hop unless it is asked for".to_owned()),
        Some(Reaches::Unordered(why)) => Err(why.clone()),
        Some(Reaches::Band(reach, row)) => Ok((*reach, *row)),
    };
    let queries = |row: u32| {
        let first = row as usize * QUERY_BLOCK;
        format!("rows {first}..{}", neighbors.q_len.min(first + QUERY_BLOCK).saturating_sub(1))
    };
    match strategy {
        Strategy::Flash if hops > 1 => Err("every hop but the last needs P again".to_owned()),
        Strategy::Flash if looped => {
            Err("the schedule still loops over its hop (drop_single_hop_loop is off)".to_owned())
        }
        Strategy::Flash => Ok("the only hop needs no P after its block row".to_owned()),
        Strategy::Resident => Ok("P is stored once and read by every hop".to_owned()),
        Strategy::Recompute => Ok("P is computed again from q, k and the row statistics in every hop".to_owned()),
        Strategy::Wavefront => {
            let (reach, row) = band()?;
            let (slots, rows) = (reach.ring_slots(hops), neighbors.q_len.div_ceil(QUERY_BLOCK));
            if slots > rows.max(1) {
                let ahead = reach.ahead;
                return Err(format!(
                    "{} reach {ahead} block rows ahead, and {hops} hops would keep {slots} of {rows} block rows of P",
                    queries(row)
                ));
            }
            let Reach { behind, ahead } = reach;
            Ok(format!(
                "rows reach {behind} block rows behind and {ahead} ahead; {slots} of {rows} block rows of P wait"
            ))
        }
        Strategy::Triangular => {
            let (reach, row) = band()?;
            if reach.ahead > 0 {
                return Err(format!("{} reach {} block rows ahead", queries(row), reach.ahead));
            }
            Ok(format!("no row reads a later block row, and {} behind at most", reach.behind))
        }
    }
}

/// How far the planned rows reach, by the rows of K that their steps name and the places of those queries: what
/// [`super::verify`] holds a sweep to. Shares nothing with [`reaches`].
pub(super) fn planned_reach(mask: &MaskPlan, kv_len: usize) -> Reach {
    let mut place_of: Vec<u32> = (0..kv_len as u32).collect();
    for (place, &query) in mask.order.iter().flatten().enumerate() {
        if let Some(entry) = place_of.get_mut(query as usize) {
            *entry = place as u32;
        }
    }
    let mut reach = Reach::default();
    let mut see = |t: u32, key: u32| {
        let place = place_of.get(key as usize).copied().unwrap_or(0);
        reach = reach.join(Reach::of(t, place, place));
    };
    for (row, t) in mask.rows.iter().flat_map(|row| (0..row.count).map(move |i| (row, i))) {
        for keys in row.steps.iter().flat_map(keys_of) {
            match keys {
                PieceKeys::List { list, first, len } => {
                    let list = mask.lists.get(list as usize).map_or(&[][..], Vec::as_slice);
                    let list = list.get(first as usize..(first + len) as usize).unwrap_or(&[]);
                    list.iter().for_each(|&key| see(row.first + t, key));
                }
                PieceKeys::Range(Stretch { start, len, start_step, len_step }) => {
                    let (start, len) = (start + t * start_step, len + t * len_step);
                    (0..len).for_each(|i| see(row.first + t, start + i * mask.key_step));
                }
            }
        }
    }
    for (place, ends) in mask.edges.offsets.windows(2).enumerate() {
        let keys = mask.edges.keys.get(ends[0] as usize..ends[1] as usize).unwrap_or(&[]);
        keys.iter().for_each(|&key| see((place / QUERY_BLOCK) as u32, key));
    }
    reach
}

fn keys_of(step: &Step) -> impl Iterator<Item = PieceKeys> {
    let (pieces, stream): (&[_], _) = match step {
        Step::Edges => (&[], None),
        Step::Joint { pieces, .. } => (pieces, None),
        Step::Stream(stretch) => (&[], Some(PieceKeys::Range(*stretch))),
    };
    pieces.iter().map(|piece| piece.keys).chain(stream)
}

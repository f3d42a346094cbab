//! Sets of positions, written T in the contract: a list, the first, the last, every so many, or drawn.

use super::draw::Draw;
use super::node::{Args, Int, Scope};
use super::random::check_edges;
use super::{KeySet, MAX_LENGTH};
use crate::error::Result;
use crate::spec::Data;
use crate::spec::expr::Var;

const KINDS: &str =
    "a list of positions, {first: E}, {last: E}, {every: E, offset: E} or {random: {count, seed, from}}";

/// A token set as written.
#[derive(Debug, Clone)]
pub(super) enum TokenArg<'a> {
    List(Vec<Int<'a>>),
    First(Int<'a>),
    Last(Int<'a>),
    Every { step: Int<'a>, offset: Int<'a> },
    Random { count: Int<'a>, seed: u64, from: Int<'a> },
}

/// A token set at given lengths: positions below the length, and how to write them.
#[derive(Debug)]
pub(super) struct Tokens {
    pub set: KeySet,
    pub text: String,
}

impl<'a> TokenArg<'a> {
    /// Reads the argument `tokens`.
    pub fn read(args: &Args<'a>) -> Result<Self> {
        let value = args.require("tokens", "{first: 1}")?;
        if let Data::List(items) = &value.data {
            let read = |item| Int::read(args.source, "tokens", item, 0, &Var::LENGTHS);
            return Ok(Self::List(items.iter().map(read).collect::<Result<_>>()?));
        }
        if !matches!(value.data, Data::Map(_)) {
            let message = format!("`tokens` cannot be {}", value.describe());
            return Err(args.source.error(value.at, message, KINDS));
        }
        let args = args.nested("tokens", value, &["first", "last", "every", "offset", "random"])?;
        let forms: Vec<&'static str> =
            ["first", "last", "every", "random"].into_iter().filter(|form| args.get(form).is_some()).collect();
        let &[form] = forms.as_slice() else {
            let message = format!("`tokens` has {} kinds of positions", forms.len());
            return Err(args.source.error(value.at, message, KINDS));
        };
        if let Some(offset) = args.get("offset").filter(|_| form != "every") {
            let message = format!("`offset` does not go with `{form}`");
            return Err(args.source.error(offset.at, message, "`every` beside `offset`"));
        }
        match form {
            "first" => Ok(Self::First(args.int("first", 0, None)?)),
            "last" => Ok(Self::Last(args.int("last", 0, None)?)),
            "every" => Ok(Self::Every { step: args.int("every", 1, None)?, offset: args.int("offset", 0, Some(0))? }),
            _ => {
                let random = args.require("random", "{count: 64, seed: 1}")?;
                let args = args.nested("random", random, &["count", "seed", "from"])?;
                let (count, from) = (args.int("count", 0, None)?, args.int("from", 0, Some(0))?);
                Ok(Self::Random { count, seed: args.seed()?, from })
            }
        }
    }

    /// The positions of keys and queries. Those beyond it are left out rather than refused, because one spec
    /// serves every length; where fewer positions exist than are to be drawn, all of them are taken.
    pub fn at(&self, args: &Args<'_>, scope: &Scope) -> Result<Tokens> {
        let len = scope.kv_len as i64;
        // Queries may stand beyond the last key, and be tokens there.
        let beyond = len.max(scope.end());
        let most = MAX_LENGTH as i64;
        let (set, text) = match self {
            Self::List(items) => {
                let mut keys = items.iter().map(|item| item.at(scope)).collect::<Result<Vec<_>>>()?;
                keys.retain(|&key| key < beyond);
                keys.sort_unstable();
                keys.dedup();
                let text = keys.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
                (KeySet::from_sorted_keys(keys), format!("[{text}]"))
            }
            Self::First(count) => {
                let count = count.at_most(scope, beyond)?;
                (KeySet::span(0, count), format!("{{first: {count}}}"))
            }
            Self::Last(count) => {
                let count = count.at_most(scope, len)?;
                (KeySet::span(len - count, len), format!("{{last: {count}}}"))
            }
            Self::Every { step, offset } => {
                let (step, offset) = (step.at_most(scope, most)?, offset.at_most(scope, most)?);
                check_edges(args, ((beyond - offset).max(0) / step) as u128)?;
                let keys = (offset..beyond).step_by(step as usize);
                (KeySet::from_sorted_keys(keys), format!("{{every: {step}, offset: {offset}}}"))
            }
            Self::Random { count, seed, from } => {
                let from = from.at_most(scope, len)?;
                let count = count.at_most(scope, len - from)?;
                check_edges(args, count as u128)?;
                let mut keys = Vec::new();
                Draw::new(*seed, Draw::TOKENS).distinct(count as u32, (len - from) as u32, &mut keys);
                let set = KeySet::from_sorted_keys(keys.iter().map(|&key| from + i64::from(key)));
                (set, format!("{{random: {{count: {count}, seed: {seed}, from: {from}}}}}"))
            }
        };
        Ok(Tokens { set, text })
    }
}

//! Score mods: what happens to a scaled score before the mask and the softmax, and the tensors that it may read.
//!
//! In: the keys `score.mods` and `inputs` of a spec. Out: [`ModDef`]s and [`InputDef`]s, checked for everything that
//! needs no length; [`resolve`] turns them, at given lengths, into [`ScoreMods`], in which every index of every input
//! is proved to lie within its axis. Refused: unknown mods and inputs, values of the wrong kind, and indices that may
//! leave their tensor, with the range found.

use super::expr::{Expr, Var};
use super::keys::LARGEST_FACTOR;
use super::{Data, Fields, PatternSpec, Source, Value, nearest};
use crate::error::{Result, Span};

mod inputs;
mod mods;
mod parse;
mod proof;
mod term;
mod text;

pub use inputs::{Checked, HeadNumbers, Inputs};
pub use mods::{InputShape, Positions, ScoreMod, ScoreMods, offset, resolve};
pub use parse::Signature;
pub use proof::Linear;
pub use term::{Condition, Element, Index, Term, TermFunc};

/// Axes of an input.
const MAX_RANK: usize = 8;
/// Mods of a spec.
const MAX_MODS: usize = 64;
/// Inputs of a spec.
const MAX_INPUTS: usize = 64;

/// A score mod of the spec language, for listings.
#[derive(Debug)]
pub struct ScoreModDef {
    /// Its name in a spec.
    pub name: &'static str,
    /// What it makes of the score, in one line.
    pub meaning: &'static str,
    /// Its arguments: name (empty for the value itself), what may stand there, default, meaning.
    pub args: &'static [(&'static str, &'static str, Option<&'static str>, &'static str)],
    /// A mod as one would write it, in YAML's flow style.
    pub example: &'static str,
}

/// Every score mod. `s` is the score so far, at first the scaled one.
pub const SCORE_MODS: &[ScoreModDef] = &[
    ScoreModDef {
        name: "softcap",
        meaning: "c * tanh(s / c): scores stay between -c and c",
        args: &[("", "a number above 0", None, "the cap c")],
        example: "softcap: 30",
    },
    ScoreModDef {
        name: "alibi",
        meaning: "s + slope_h * (k - q): distant keys count less",
        args: &[("slopes", "a list of numbers, one a head", Some("2^(-8(h+1)/heads)"), "the slope of each head")],
        example: "alibi",
    },
    ScoreModDef {
        name: "bias",
        meaning: "s + an element of an input",
        args: &[
            ("input", "a name", None, "one of the spec's `inputs`"),
            ("index", "a list of expressions", None, "one index an axis, over q, k, h, n, m, d"),
        ],
        example: "bias: {input: rel, index: [h, \"q - k + n - 1\"]}",
    },
    ScoreModDef {
        name: "expr",
        meaning: "any arithmetic over s, q, k, h, n, m, d and elements of inputs",
        args: &[(
            "",
            "an expression",
            None,
            "with + - * / // % **, exp log tanh sigmoid sqrt abs floor min max, if(condition, a, b)",
        )],
        example: "expr: \"if(q - k < 64, s, s - 0.1 * (q - k - 64))\"",
    },
];

/// A tensor that is given at run time, as written.
#[derive(Debug, Clone)]
pub struct InputDef {
    /// Its name.
    pub name: String,
    /// Place of the name.
    pub at: Span,
    /// Its axes, with their places.
    pub shape: Vec<(Dim, Value)>,
    /// All of it, as written.
    pub args: Value,
}

/// The extent of an axis.
#[derive(Debug, Clone, PartialEq)]
pub enum Dim {
    /// The word `heads`.
    Heads,
    /// The word `kv_heads`.
    KvHeads,
    /// An integer or an expression over lengths.
    Expr(Expr),
}

/// A score mod, as written.
#[derive(Debug, Clone)]
pub struct ModDef {
    /// What it does.
    pub kind: ModKind,
    /// All of it, as written.
    pub value: Value,
}

/// What a score mod does.
#[derive(Debug, Clone)]
pub enum ModKind {
    /// c · tanh(s / c)
    Softcap(f64),
    /// s + slope_h · (k − q), a slope for each head.
    Alibi(Vec<f64>),
    /// s + an element; the values that hold its indices.
    Bias(Element, Vec<Value>),
    /// Any term, and the value that holds it.
    Expr(Term, Value),
}

/// Reads `inputs`.
pub(super) fn read_inputs(source: &Source, fields: &Fields<'_>) -> Result<Vec<InputDef>> {
    let Some(value) = fields.get("inputs") else { return Ok(Vec::new()) };
    let entries = match &value.data {
        Data::Map(entries) => entries,
        Data::Null => return Ok(Vec::new()),
        Data::Scalar { .. } | Data::List(_) => {
            let message = format!("`inputs` cannot be {}", value.describe());
            return Err(source.error(value.at, message, "a mapping, such as {rel: {shape: [heads, \"2*n - 1\"]}}"));
        }
    };
    if entries.len() > MAX_INPUTS {
        return Err(source.error(value.at, format!("{} inputs", entries.len()), format!("at most {MAX_INPUTS}")));
    }
    entries.iter().map(|(name, at, args)| read_input(source, name, *at, args)).collect()
}

fn read_input(source: &Source, name: &str, at: Span, args: &Value) -> Result<InputDef> {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || !name.chars().all(letter) {
        let message = format!("an input cannot be called `{name}`");
        return Err(source.error(at, message, "a name of letters, digits and `_`, such as `rel`"));
    }
    let words = ["s", "if", "and", "or", "not"];
    let functions = TermFunc::ALL.iter().map(|(f, _)| *f);
    if words.into_iter().chain(functions).chain(Var::ALL.map(Var::name)).any(|taken| taken == name) {
        let message = format!("`{name}` already has a meaning in expressions");
        return Err(source.error(at, message, format!("another name, such as `{name}_table`")));
    }
    let fields = Fields::new(source, name, at, args, &["shape", "dtype"])?;
    if let Some(dtype) = fields.get("dtype")
        && dtype.choice(source, "dtype", &["f32", "bf16", "f16"])? != "f32"
    {
        return Err(source.unsupported(dtype.at, "an input that is not f32", "`f32`"));
    }
    let shape = fields.require("shape", "[heads, \"2*n - 1\"]")?;
    let items = shape.list(source, "shape", "a list of extents, such as [heads, \"2*n - 1\"]")?;
    if items.is_empty() || items.len() > MAX_RANK {
        let message = format!("the shape of `{name}` has {} axes", items.len());
        return Err(source.error(shape.at, message, format!("1 to {MAX_RANK} axes")));
    }
    let dim = |item: &Value| -> Result<(Dim, Value)> {
        let dim = match &item.data {
            Data::Scalar { text, .. } if text == "heads" => Dim::Heads,
            Data::Scalar { text, .. } if text == "kv_heads" => Dim::KvHeads,
            _ => Dim::Expr(item.expr(source, "shape", &Var::LENGTHS)?),
        };
        Ok((dim, item.clone()))
    };
    let shape = items.iter().map(dim).collect::<Result<Vec<_>>>()?;
    Ok(InputDef { name: name.to_owned(), at, shape, args: args.clone() })
}

/// Reads `score.mods` for a spec of `heads` heads.
pub(super) fn read_mods(source: &Source, value: &Value, inputs: &[InputDef], heads: usize) -> Result<Vec<ModDef>> {
    let items = value.list(source, "mods", "a list of score mods, such as [{softcap: 30}, alibi]")?;
    if items.len() > MAX_MODS {
        return Err(source.error(value.at, format!("{} score mods", items.len()), format!("at most {MAX_MODS}")));
    }
    items.iter().map(|item| read_mod(source, item, inputs, heads)).collect()
}

fn read_mod(source: &Source, item: &Value, inputs: &[InputDef], heads: usize) -> Result<ModDef> {
    let nothing = Value { at: item.at, data: Data::Null };
    let (name, at, args) = match &item.data {
        Data::Scalar { text, .. } => (text.as_str(), item.at, &nothing),
        Data::Map(entries) => match entries.as_slice() {
            [(name, at, args)] => (name.as_str(), *at, args),
            [] => return Err(source.error(item.at, "the score mod is empty", "a score mod, such as `softcap: 30`")),
            [(first, ..), (second, at, _), ..] => {
                let message = format!("a second key `{second}` in the score mod `{first}`");
                return Err(source.error(*at, message, "one key; each mod is an item of the list"));
            }
        },
        Data::List(_) | Data::Null => {
            let message = format!("a score mod cannot be {}", item.describe());
            return Err(source.error(item.at, message, "a score mod, such as `softcap: 30`"));
        }
    };
    let signatures: Vec<Signature> =
        inputs.iter().map(|input| Signature { name: input.name.clone(), rank: input.shape.len() }).collect();
    let kind = match name {
        "softcap" => {
            // Far beyond, products with it would leave the range of f32.
            ModKind::Softcap(args.float(source, "softcap", 1e-6, 1e9)?)
        }
        "alibi" => ModKind::Alibi(read_slopes(source, at, args, heads)?),
        "bias" => read_bias(source, at, args, &signatures)?,
        "expr" => match &args.data {
            Data::Scalar { text, .. } => {
                args.check_expression(source, text)?;
                let term = parse::term(text, &signatures).map_err(|fault| args.fault(source, fault))?;
                ModKind::Expr(term, args.clone())
            }
            Data::Null | Data::List(_) | Data::Map(_) => {
                let message = format!("`expr` cannot be {}", args.describe());
                return Err(source.error(args.at, message, "an expression, such as \"s - 0.1 * abs(q - k)\""));
            }
        },
        _ => {
            let names = SCORE_MODS.iter().map(|def| def.name);
            let expected = match nearest(name, names.clone()) {
                Some(near) => format!("`{near}`"),
                None => format!("one of {}", names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
            };
            return Err(source.error(at, format!("unknown score mod `{name}`"), expected));
        }
    };
    Ok(ModDef { kind, value: item.clone() })
}

fn read_slopes(source: &Source, at: Span, args: &Value, heads: usize) -> Result<Vec<f64>> {
    let fields = Fields::new(source, "alibi", at, args, &["slopes"])?;
    let Some(value) = fields.get("slopes") else {
        // Press, Smith and Lewis 2022, "Train short, test long", for a power of two of heads.
        return Ok((1..=heads).map(|h| (-8.0 * h as f64 / heads as f64).exp2()).collect());
    };
    let items = value.list(source, "slopes", "a list of numbers, one a head")?;
    if items.len() != heads {
        let message = format!("`slopes` has {} numbers for {heads} heads", items.len());
        return Err(source.error(value.at, message, "one slope for each head"));
    }
    items.iter().map(|item| item.float(source, "slopes", -LARGEST_FACTOR, LARGEST_FACTOR)).collect()
}

fn read_bias(source: &Source, at: Span, args: &Value, inputs: &[Signature]) -> Result<ModKind> {
    let fields = Fields::new(source, "bias", at, args, &["input", "index"])?;
    let named = fields.require("input", "rel")?;
    let name = named.text(source, "input")?;
    let Some(input) = inputs.iter().position(|input| input.name == name) else {
        let expected = match nearest(name, inputs.iter().map(|input| input.name.as_str())) {
            Some(near) => format!("`{near}`"),
            None => format!("`inputs: {{{name}: {{shape: [...]}}}}` in the spec"),
        };
        return Err(source.error(named.at, format!("no input is called `{name}`"), expected));
    };
    let value = fields.require("index", "[h, \"q - k + n - 1\"]")?;
    let items = value.list(source, "index", "a list of expressions, such as [h, \"q - k + n - 1\"]")?;
    let rank = inputs[input].rank;
    if items.len() != rank {
        let axes = if rank == 1 { "axis" } else { "axes" };
        let message = format!("`{name}` has {rank} {axes}, and `index` has {} items", items.len());
        return Err(source.error(value.at, message, "one index for each axis"));
    }
    let index = |item: &Value| -> Result<Index> {
        let expr = item.expr(source, "index", &Var::ALL)?;
        let width = match &item.data {
            Data::Scalar { text, .. } => text.chars().count() as u32,
            _ => 1,
        };
        Ok(Index { expr, place: super::expr::Place { offset: 0, width } })
    };
    let index = items.iter().map(index).collect::<Result<Vec<_>>>()?;
    Ok(ModKind::Bias(Element { input, name: name.to_owned(), index }, items.to_vec()))
}

impl PatternSpec {
    /// The `inputs` key and the `mods` of `score`, as canonical YAML; both empty where there are none.
    pub(super) fn print_mods(&self) -> (String, String) {
        let inputs: Vec<String> = self
            .inputs
            .iter()
            .map(|input| format!("{}: {}", super::print::scalar(&input.name), super::flow(&input.args)))
            .collect();
        let mods: Vec<String> = self.mods.iter().map(|def| super::flow(&def.value)).collect();
        (
            if inputs.is_empty() { String::new() } else { format!("inputs: {{{}}}\n", inputs.join(", ")) },
            if mods.is_empty() { String::new() } else { format!(", mods: [{}]", mods.join(", ")) },
        )
    }

    /// Whether the two have the same inputs and mods, wherever they stand.
    pub(super) fn same_mods(&self, other: &Self) -> bool {
        let inputs = |spec: &Self| spec.inputs.iter().map(|i| (i.name.clone(), i.args.clone())).collect::<Vec<_>>();
        let (mine, theirs) = (inputs(self), inputs(other));
        mine.len() == theirs.len()
            && mine.iter().zip(&theirs).all(|((a, x), (b, y))| a == b && x.same(y))
            && self.mods.len() == other.mods.len()
            && self.mods.iter().zip(&other.mods).all(|(x, y)| x.value.same(&y.value))
    }
}

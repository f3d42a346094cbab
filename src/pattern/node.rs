//! What a node of the pattern tree is to the rest of the crate: a line in a table.
//!
//! A leaf is read in two steps. Reading its arguments checks all that needs no length and gives a [`Draft`];
//! the draft, given lengths, evaluates the expressions, draws what is random, and gives the [`Leaf`].

use std::sync::Arc;

use super::Leaf;
use crate::error::{Result, Span};
use crate::spec::expr::{Env, Expr, Var};
use crate::spec::{Align, Fields, Source, Value};

/// A node of the spec language, for its reader and for listings.
#[derive(Debug)]
pub struct NodeDef {
    /// Its name in a spec.
    pub name: &'static str,
    /// What it allows, in one line.
    pub meaning: &'static str,
    /// Its arguments.
    pub args: &'static [ArgDef],
    /// Sets of arguments of which exactly one must be given; empty where there is no choice.
    pub forms: &'static [&'static [&'static str]],
    /// A node as one would write it, in YAML's flow style.
    pub example: &'static str,
    /// Reads the arguments.
    pub read: for<'a> fn(&Args<'a>) -> Result<Draft<'a>>,
}

/// An argument of a node. One without a name is the node's value itself, as in `sink: 4`.
#[derive(Debug)]
pub struct ArgDef {
    /// Its key.
    pub name: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// What holds when it is left out; `None` where it must be given, by itself or with its form.
    pub default: Option<&'static str>,
    /// What it means.
    pub meaning: &'static str,
}

/// What may stand as an argument, for listings and the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An integer or an expression for one.
    Integer,
    /// A list of them.
    Integers,
    /// A plain integer that is not negative.
    Seed,
    /// A plain number from 0 to 1.
    Share,
    /// `true` or `false`.
    Flag,
    /// A list of them.
    Flags,
    /// One of some words.
    Choice(&'static [&'static str]),
    /// A set of positions.
    Tokens,
    /// A condition over positions.
    Condition,
    /// Lists of zeros and ones, two or three deep.
    Layout,
    /// A list of pairs of integers.
    Pairs,
    /// The name of a `.npy` file.
    File,
    /// The name of a run-time input.
    Input,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Integer => "integer",
            Self::Integers => "[integer, ...]",
            Self::Seed => "plain integer",
            Self::Share => "number from 0 to 1",
            Self::Flag => "true | false",
            Self::Flags => "[true | false, ...]",
            Self::Choice(words) => return f.write_str(&words.join(" | ")),
            Self::Tokens => "positions",
            Self::Condition => "condition",
            Self::Layout => "[[0, 1], ...]",
            Self::Pairs => "[[q, k], ...]",
            Self::File => "file.npy",
            Self::Input => "name",
        })
    }
}

impl NodeDef {
    /// Whether an argument must be given, may be left out, or belongs to one of several forms: for listings.
    pub fn need(&self, arg: &ArgDef) -> String {
        if let Some(default) = arg.default {
            return format!("default {default}");
        }
        let others: Vec<String> =
            self.forms.iter().filter(|form| !form.contains(&arg.name)).map(|form| form.join(" and ")).collect();
        match self.forms.iter().find(|form| form.contains(&arg.name)) {
            Some(form) if form.len() > 1 => {
                let with: Vec<&str> = form.iter().copied().filter(|name| *name != arg.name).collect();
                format!("with {}, or {}", with.join(" and "), others.join(" or "))
            }
            Some(_) => format!("or {}", others.join(" or ")),
            None => "required".into(),
        }
    }
}

/// A node that joins others, for listings.
#[derive(Debug)]
pub struct CombinatorDef {
    /// Its name in a spec.
    pub name: &'static str,
    /// What it allows.
    pub meaning: &'static str,
    /// A node as one would write it.
    pub example: &'static str,
}

/// The combinators; the spec parser knows them, since they hold nodes and not arguments.
pub const COMBINATORS: &[CombinatorDef] = &[
    CombinatorDef {
        name: "any",
        meaning: "what at least one of its nodes allows",
        example: "any: [causal, {sink: 4}]",
    },
    CombinatorDef {
        name: "all",
        meaning: "what every one of its nodes allows",
        example: "all: [causal, {window: {radius: 64}}]",
    },
    CombinatorDef { name: "not", meaning: "what its node does not allow", example: "not: causal" },
    CombinatorDef {
        name: "per_head",
        meaning: "for every head what its node allows; at the root only, every head once",
        example: "per_head: [{heads: [0], pattern: causal}, {heads: \"1..3\", pattern: full}]",
    },
];

/// A leaf whose arguments were checked, waiting for lengths.
pub type Draft<'a> = Box<dyn FnOnce(&Scope) -> Result<Arc<dyn Leaf>> + 'a>;

/// Lengths, and the other numbers that a leaf depends on.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Width of a query.
    pub head_dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Where the queries stand.
    pub align: Align,
}

impl Scope {
    /// Position of the first query.
    pub fn first(&self) -> i64 {
        self.align.first(self.q_len, self.kv_len)
    }

    /// Position after the last query.
    pub fn end(&self) -> i64 {
        self.first() + self.q_len as i64
    }

    /// How many blocks of so many positions, counted from position 0, the queries meet.
    pub fn blocks(&self, block: usize) -> usize {
        match self.q_len {
            0 => 0,
            _ => ((self.end() - 1).div_euclid(block as i64) - self.first().div_euclid(block as i64) + 1) as usize,
        }
    }

    /// Values of `n`, `m` and `d`.
    pub fn env(&self) -> Env {
        Env::lengths(self.kv_len, self.q_len, self.head_dim)
    }
}

/// An integer argument: an expression, and what to say when its value will not do.
#[derive(Debug, Clone)]
pub struct Int<'a> {
    /// The expression.
    pub expr: Expr,
    written: Option<(&'a Source, &'a Value)>,
    name: &'a str,
    least: i64,
}

impl<'a> Int<'a> {
    /// Reads `value`, which may use `vars` and must not come out below `least`.
    pub fn read(source: &'a Source, name: &'a str, value: &'a Value, least: i64, vars: &[Var]) -> Result<Self> {
        let int = Self { expr: value.expr(source, name, vars)?, written: Some((source, value)), name, least };
        if int.expr.is_constant() {
            int.eval(&Env::default())?;
        }
        Ok(int)
    }

    /// A default, which nobody wrote.
    pub fn constant(x: u32) -> Self {
        Self { expr: Expr::Number(f64::from(x)), written: None, name: "", least: 0 }
    }

    /// The value at given lengths, rounded down and checked against the least one.
    pub fn eval(&self, env: &Env) -> Result<i64> {
        let value = self.expr.eval_integer(env);
        let Some((source, written)) = self.written else { return Ok(value.unwrap_or(0)) };
        let value = value.map_err(|fault| written.fault(source, fault))?;
        if value < self.least {
            let place = match self.expr.is_constant() {
                true => String::new(),
                false => format!(" (at n = {})", env.values[Var::N as usize]),
            };
            let message = format!("`{}` is {value}{place}", self.name);
            return Err(source.error(written.at, message, format!("an integer from {}", self.least)));
        }
        Ok(value)
    }

    /// The value at given lengths.
    pub fn at(&self, scope: &Scope) -> Result<i64> {
        self.eval(&scope.env())
    }

    /// The value at given lengths, no larger than `most`, for arguments where more makes no difference.
    pub fn at_most(&self, scope: &Scope, most: i64) -> Result<i64> {
        Ok(self.at(scope)?.min(most))
    }
}

/// The arguments of a leaf, as written.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    /// The text, for messages.
    pub source: &'a Source,
    /// The node's name.
    pub node: &'a str,
    /// Place of the name.
    pub at: Span,
    /// All that stands after the name.
    pub value: &'a Value,
    fields: Option<Fields<'a>>,
}

impl<'a> Args<'a> {
    /// Checks the keys of `value` against the node's arguments.
    pub fn new(source: &'a Source, def: &NodeDef, node: &'a str, at: Span, value: &'a Value) -> Result<Self> {
        let names: Vec<&str> = def.args.iter().map(|arg| arg.name).collect();
        let fields = match names.as_slice() {
            [""] => None,
            names => Some(Fields::new(source, node, at, value, names)?),
        };
        Ok(Self { source, node, at, value, fields })
    }

    /// Those of an inner mapping, such as `random` in a token set.
    pub fn nested(&self, name: &'a str, value: &'a Value, known: &[&str]) -> Result<Self> {
        let fields = Fields::new(self.source, name, value.at, value, known)?;
        Ok(Self { node: name, at: value.at, value, fields: Some(fields), ..*self })
    }

    /// The value of `key`, if it was given.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields.and_then(|fields| fields.get(key))
    }

    /// The value of `key`, which must be there.
    pub fn require(&self, key: &'static str, example: &str) -> Result<&'a Value> {
        match (self.fields, key) {
            (Some(fields), _) => fields.require(key, example),
            (None, _) => Ok(self.value),
        }
    }

    /// The integer at `key`, at least `least`; without it, `default` or a refusal.
    pub fn int(&self, key: &'static str, least: i64, default: Option<u32>) -> Result<Int<'a>> {
        self.int_over(key, least, default, &Var::LENGTHS)
    }

    /// The same, over other variables.
    pub fn int_over(&self, key: &'static str, least: i64, default: Option<u32>, vars: &[Var]) -> Result<Int<'a>> {
        match (self.get(key), default) {
            (Some(value), _) => Int::read(self.source, key, value, least, vars),
            (None, Some(default)) => Ok(Int::constant(default)),
            (None, None) => Int::read(self.source, key, self.require(key, "64")?, least, vars),
        }
    }

    /// The list of integers at `key`, each at least `least`.
    pub fn ints(&self, key: &'static str, least: i64, example: &str) -> Result<Vec<Int<'a>>> {
        let value = self.require(key, example)?;
        let items = value.list(self.source, key, &format!("a list of integers, such as {example}"))?;
        items.iter().map(|item| Int::read(self.source, key, item, least, &Var::LENGTHS)).collect()
    }

    /// The node's own value as an integer, at least `least`.
    pub fn own_int(&self, least: i64) -> Result<Int<'a>> {
        Int::read(self.source, self.node, self.value, least, &Var::LENGTHS)
    }

    /// The seed of random choices.
    pub fn seed(&self) -> Result<u64> {
        self.require("seed", "1")?.integer(self.source, "seed", 0, u64::MAX)
    }

    /// A truth value, false when left out.
    pub fn flag(&self, key: &'static str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |value| value.boolean(self.source, key))
    }

    /// One of some words, the first when left out.
    pub fn choice(&self, key: &'static str, words: &[&'static str]) -> Result<&'static str> {
        match self.get(key) {
            Some(value) => value.choice(self.source, key, words),
            None => Ok(words.first().copied().unwrap_or_default()),
        }
    }

    /// A refusal that points at the node's name.
    pub fn refuse(&self, message: impl Into<String>, expected: impl Into<String>) -> crate::error::Error {
        self.source.error(self.at, message, expected)
    }
}

/// A leaf as a draft's result.
pub fn leaf(leaf: impl Leaf + 'static) -> Result<Arc<dyn Leaf>> {
    Ok(Arc::new(leaf))
}

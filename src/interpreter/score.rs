//! Score mods as the definition has them: one pair at a time, in f64.

use crate::error::Result;
use crate::spec::expr::{BinOp, Env, Expr, Var};
use crate::spec::score::{self, Checked, Condition, Element, HeadNumbers, ScoreMod, ScoreMods, Term, TermFunc};
use crate::spec::{Given, Inputs, PatternSpec};

/// The mods of a spec at given lengths, with their inputs.
pub(super) struct Mods<'a> {
    pub(super) mods: Option<ScoreMods>,
    pub(super) inputs: Vec<&'a [f32]>,
    /// What the diffusion takes from the call.
    pub(super) given: Option<Given>,
    /// It, for each head.
    pub(super) numbers: HeadNumbers<'a>,
}

/// A pair of query and key, and its head.
pub(super) struct Pair<'a> {
    mods: &'a ScoreMods,
    inputs: &'a [&'a [f32]],
    h: f64,
    q: f64,
    k: f64,
}

impl<'a> Mods<'a> {
    pub fn new(spec: &PatternSpec, q_len: usize, kv_len: usize, inputs: &'a Inputs<'_>) -> Result<Self> {
        let mods = score::resolve(spec, q_len, kv_len)?;
        let given = spec.diffusion.given();
        let Checked { mods: inputs, numbers } = inputs.check(mods.as_ref(), given.as_ref(), spec.heads)?;
        Ok(Self { mods, inputs, given, numbers })
    }

    /// What the diffusion takes from the call for a head.
    pub fn numbers_of(&self, head: usize) -> Vec<f64> {
        self.numbers.of_head(head).iter().map(|&x| f64::from(x)).collect()
    }

    /// The modified score of query `i` and key `key`, from the scaled one.
    pub fn apply(&self, head: usize, i: usize, key: usize, scaled: f64) -> f64 {
        let Some(mods) = &self.mods else { return scaled };
        let pair = self.pair(mods, head, i, key);
        mods.mods.iter().fold(scaled, |s, score_mod| pair.modify(score_mod, s))
    }

    /// A pair, for evaluations.
    pub fn pair<'b>(&'b self, mods: &'b ScoreMods, head: usize, i: usize, key: usize) -> Pair<'b> {
        let q = (i as i64 + mods.positions.q_offset) as f64;
        Pair { mods, inputs: &self.inputs, h: head as f64, q, k: key as f64 }
    }
}

impl Pair<'_> {
    /// What one mod makes of a score.
    pub fn modify(&self, score_mod: &ScoreMod, s: f64) -> f64 {
        match score_mod {
            ScoreMod::Softcap(cap) => cap * (s / cap).tanh(),
            ScoreMod::Alibi(slopes) => s + slopes[self.h as usize] * (self.k - self.q),
            ScoreMod::Bias(element) => s + self.element(element),
            ScoreMod::Expr(term) => self.term(term, s),
        }
    }

    fn element(&self, element: &Element) -> f64 {
        // Every index was proved; were one wrong, NaN would show it.
        self.offset(element).map_or(f64::NAN, |offset| f64::from(self.inputs[element.input][offset]))
    }

    /// Where an element lies in its input, in C order.
    pub fn offset(&self, element: &Element) -> Option<usize> {
        let env = Env::default();
        let values = [(Var::H, self.h), (Var::Q, self.q), (Var::K, self.k)];
        let env = values.into_iter().fold(env, |mut env: Env, (var, value)| {
            env.values[var as usize] = value;
            env
        });
        let shape = &self.mods.inputs[element.input].shape;
        let at = |expr: &Expr| expr.eval_integer(&env).ok().and_then(|x| usize::try_from(x).ok());
        element.index.iter().zip(shape).try_fold(0, |offset, (index, &extent)| {
            at(&index.expr).filter(|&x| x < extent).map(|x| offset * extent + x)
        })
    }

    pub fn term(&self, term: &Term, s: f64) -> f64 {
        match term {
            Term::Number(x) => *x,
            Term::Score => s,
            Term::Var(Var::Q) => self.q,
            Term::Var(Var::K) => self.k,
            Term::Var(Var::H) => self.h,
            // Lengths have become numbers.
            Term::Var(Var::N | Var::M | Var::D) => f64::NAN,
            Term::Neg(x) => -self.term(x, s),
            Term::Binary(op, xs) => {
                let (x, y) = (self.term(&xs[0], s), self.term(&xs[1], s));
                match op {
                    BinOp::Add => x + y,
                    BinOp::Sub => x - y,
                    BinOp::Mul => x * y,
                    BinOp::Div => x / y,
                    BinOp::FloorDiv => (x / y).floor(),
                    BinOp::Mod => x - y * (x / y).floor(),
                    BinOp::Pow => x.powi(y as i32),
                }
            }
            Term::Call(func, xs) => {
                let x = self.term(&xs[0], s);
                match func {
                    TermFunc::Exp => x.exp(),
                    TermFunc::Log => x.ln(),
                    TermFunc::Tanh => x.tanh(),
                    TermFunc::Sigmoid => 1.0 / (1.0 + (-x).exp()),
                    TermFunc::Sqrt => x.sqrt(),
                    TermFunc::Abs => x.abs(),
                    TermFunc::Floor => x.floor(),
                    TermFunc::Min | TermFunc::Max => xs[1..].iter().fold(x, |best, y| {
                        let y = self.term(y, s);
                        let better = if *func == TermFunc::Min { y < best } else { y > best };
                        if better { y } else { best }
                    }),
                }
            }
            Term::Element(element) => self.element(element),
            Term::If(condition, xs) => self.term(&xs[usize::from(!self.holds(condition, s))], s),
        }
    }

    pub fn holds(&self, condition: &Condition, s: f64) -> bool {
        match condition {
            Condition::Compare(op, xs) => op.apply(self.term(&xs[0], s), self.term(&xs[1], s)),
            Condition::And(xs) => self.holds(&xs[0], s) && self.holds(&xs[1], s),
            Condition::Or(xs) => self.holds(&xs[0], s) || self.holds(&xs[1], s),
            Condition::Not(x) => !self.holds(x, s),
        }
    }
}

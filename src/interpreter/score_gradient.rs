//! Derivatives of score mods as calculus has them: reverse mode over the tree, one pair at a time, in f64.
//!
//! Where a term has no derivative, it is settled here, for everyone: `if`, `min` and `max` have that of the branch they
//! take (of equal arguments the first), `abs` has 0 at 0, `floor` and `//` have 0 everywhere and `%` that of its
//! dividend and, through the quotient that it rounds, of its divisor. What has a weight of 0 adds nothing, however steep it
//! is.

use super::score::{Mods, Pair};
use crate::spec::expr::BinOp;
use crate::spec::score::{Element, HeadNumbers, ScoreMod, ScoreMods, Term, TermFunc};

/// The gradient of the inputs, each in C order.
pub(super) type InputGradients = Vec<Vec<f64>>;

/// Back through the mods of one pair: from `weight`, the gradient by the modified score, that by the scaled one, and by every
/// input, in C order.
///
/// `place` is the head, the number of the query and the key; `inputs` are as many as `mods` has, of their shapes.
pub fn score_gradient(
    mods: &ScoreMods,
    inputs: &[&[f32]],
    place: (usize, usize, usize),
    scaled: f64,
    weight: f64,
) -> (f64, Vec<Vec<f64>>) {
    let (given, numbers) = (None, HeadNumbers::default());
    let mods = Mods { mods: Some(mods.clone()), inputs: inputs.to_vec(), given, numbers };
    let mut by_inputs = mods.no_gradients();
    let by_scaled = mods.pull(place, scaled, weight, &mut by_inputs);
    (by_scaled, by_inputs)
}

impl Mods<'_> {
    /// Zeros for every input.
    pub fn no_gradients(&self) -> InputGradients {
        let shapes = self.mods.iter().flat_map(|mods| &mods.inputs);
        shapes.map(|input| vec![0.0; input.shape.iter().product()]).collect()
    }

    /// The gradient by the scaled score of query `i` and key `key`, from `weight`, that by the modified one; adds to those of
    /// the inputs.
    pub fn pull(
        &self,
        (head, i, key): (usize, usize, usize),
        scaled: f64,
        weight: f64,
        inputs: &mut InputGradients,
    ) -> f64 {
        let Some(mods) = &self.mods else { return weight };
        let pair = self.pair(mods, head, i, key);
        // The score before each mod.
        let mut before = vec![scaled];
        for score_mod in &mods.mods {
            before.push(pair.modify(score_mod, before[before.len() - 1]));
        }
        mods.mods.iter().zip(before).rev().fold(weight, |weight, (score_mod, s)| {
            if weight == 0.0 {
                return 0.0;
            }
            match score_mod {
                ScoreMod::Softcap(cap) => weight * (1.0 - (s / cap).tanh().powi(2)),
                ScoreMod::Alibi(_) => weight,
                ScoreMod::Bias(element) => {
                    pair.add(element, weight, inputs);
                    weight
                }
                ScoreMod::Expr(term) => {
                    let mut by_score = 0.0;
                    pair.pull(term, s, weight, &mut by_score, inputs);
                    by_score
                }
            }
        })
    }
}

impl Pair<'_> {
    fn add(&self, element: &Element, weight: f64, inputs: &mut InputGradients) {
        if let Some(offset) = self.offset(element) {
            inputs[element.input][offset] += weight;
        }
    }

    /// Adds `weight` times the derivatives of `term` to what it reads.
    fn pull(&self, term: &Term, s: f64, weight: f64, by_score: &mut f64, inputs: &mut InputGradients) {
        if weight == 0.0 {
            return;
        }
        match term {
            Term::Number(_) | Term::Var(_) => {}
            Term::Score => *by_score += weight,
            Term::Element(element) => self.add(element, weight, inputs),
            Term::Neg(x) => self.pull(x, s, -weight, by_score, inputs),
            Term::Binary(op, xs) => {
                let (x, y) = (self.term(&xs[0], s), self.term(&xs[1], s));
                let (by_x, by_y) = match op {
                    BinOp::Add => (1.0, 1.0),
                    BinOp::Sub => (1.0, -1.0),
                    BinOp::Mul => (y, x),
                    BinOp::Div => (1.0 / y, -x / (y * y)),
                    BinOp::FloorDiv => (0.0, 0.0),
                    BinOp::Mod => (1.0, -(x / y).floor()),
                    // The exponent is a number.
                    BinOp::Pow if y == 0.0 => (0.0, 0.0),
                    BinOp::Pow => (y * x.powi(y as i32 - 1), 0.0),
                };
                self.pull(&xs[0], s, weight * by_x, by_score, inputs);
                self.pull(&xs[1], s, weight * by_y, by_score, inputs);
            }
            Term::Call(func, xs) => {
                let value = self.term(term, s);
                let x = self.term(&xs[0], s);
                let by_x = match func {
                    TermFunc::Exp => value,
                    TermFunc::Log => 1.0 / x,
                    TermFunc::Tanh => 1.0 - value * value,
                    TermFunc::Sigmoid => value * (1.0 - value),
                    TermFunc::Sqrt => 0.5 / value,
                    TermFunc::Abs if x == 0.0 => 0.0,
                    TermFunc::Abs => x.signum(),
                    TermFunc::Floor => 0.0,
                    TermFunc::Min | TermFunc::Max => {
                        let chosen = xs.iter().find(|x| self.term(x, s) == value).unwrap_or(&xs[0]);
                        return self.pull(chosen, s, weight, by_score, inputs);
                    }
                };
                self.pull(&xs[0], s, weight * by_x, by_score, inputs);
            }
            Term::If(condition, xs) => {
                let taken = &xs[usize::from(!self.holds(condition, s))];
                self.pull(taken, s, weight, by_score, inputs);
            }
        }
    }
}

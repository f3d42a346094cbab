//! Back through score mods: a pass over a panel of gradients, and one over those of scattered edges.
//!
//! In: [`ScoreMods`]. Out: functions that take one pointer to a [`ModGradientCall`] or an [`EdgeModGradientCall`]. For a key,
//! the mods are applied to its scores as they were on the way forth, with the value of every node kept; then the gradient
//! walks the trees from their roots down (reverse mode), so that every node costs a few operations however often its
//! value is read. Where a term has no derivative, it has the one of the branch that was taken: `if`, `min` and `max` that of
//! what they chose (of equal arguments the first), `abs` 0 at 0, `floor` and `//` 0, `%` that at a constant quotient.
//!
//! Lanes whose gradient is 0, or that took another branch, are selected away where it is added to something: there the
//! derivative may be infinite or NaN.

use std::cell::RefCell;

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};

use super::lower::{Lanes, Lower, Position, are_consecutive, lane, power, turned};
use super::{OFFSETS, key_position, lanes_at};
use crate::codegen::emit::Emit;
use crate::codegen::portable::field;
use crate::spec::expr::BinOp;
use crate::spec::score::{Element, ScoreMod, ScoreMods, Term, TermFunc};
use crate::tiles::LANES;
use crate::tiles::mod_gradients::{EdgeModGradientCall, ModGradientCall};

/// Emits the pass over a panel.
pub(in crate::codegen::portable) fn emit(e: &mut Emit, record: Value, mods: &ScoreMods) -> Vec<Value> {
    let inputs = field!(e, record, ModGradientCall, inputs);
    let head = field!(e, record, ModGradientCall, head);
    let mut lower = Lower::new(e, mods, inputs, head);
    lower.known = Some(RefCell::default());
    let gradients = field!(e, record, ModGradientCall, gradients);
    let gradients = addresses(e, gradients, mods);
    let factor = e.load_splat(record, core::mem::offset_of!(ModGradientCall, factor) as i32);
    let groups = field!(e, record, ModGradientCall, groups);
    let zero = e.int(0);
    e.for_range(zero, groups, 1, &[], |e, group, _| {
        let positions = field!(e, record, ModGradientCall, positions);
        let query = mods.uses_query().then(|| {
            let positions = e.offset(positions, group, (LANES * 4) as i64);
            let integers = OFFSETS.map(|offset| e.load(types::I32X4, positions, offset)).to_vec();
            let consecutive = are_consecutive(e, &integers);
            (Position::new(e, Lanes::Each(integers)), consecutive)
        });
        match query {
            Some((query, consecutive)) => lower.hoist(e, query, Some(consecutive)),
            None => {
                let none = e.lanes([0; 4], types::I32X4);
                let query = Position::new(e, Lanes::Same(none));
                lower.hoist(e, query, None);
            }
        }
        let real = real_lanes(e, record, group);
        let panels = [
            (field!(e, record, ModGradientCall, s), field!(e, record, ModGradientCall, s_stride)),
            (field!(e, record, ModGradientCall, d), field!(e, record, ModGradientCall, d_stride)),
        ]
        .map(|(panel, stride)| e.row(panel, group, stride));
        let words = field!(e, record, ModGradientCall, words);
        let nkeys = field!(e, record, ModGradientCall, nkeys);
        e.for_range(zero, nkeys, 1, &[], |e, key, _| {
            // The bits of the group's queries; all of them where there are no words.
            let seen = e.if_else(
                words,
                |e| {
                    let word = e.offset(words, key, 8);
                    let word = e.offset(word, group, 2);
                    vec![e.b.ins().uload16(types::I32, MemFlagsData::new().with_notrap(), word, 0)]
                },
                |e| vec![e.b.ins().iconst(types::I32, 1)],
            );
            e.if_true(seen[0], |e| {
                let list = field!(e, record, ModGradientCall, keys);
                let first = field!(e, record, ModGradientCall, first_key);
                let step = field!(e, record, ModGradientCall, key_step);
                let position = key_position(e, list, (first, step), key);
                let [scores, weights] = panels.map(|panel| {
                    let at = e.offset(panel, key, (LANES * 4) as i64);
                    OFFSETS.map(|offset| e.load(types::F32X4, at, offset)).to_vec()
                });
                let weights = weights.iter().zip(&real).map(|(&weight, &real)| e.keep(real, weight)).collect();
                let back = Back { lower: &lower, gradients: &gradients, key: &position };
                let found = back.run(e, scores, weights);
                let at = e.offset(panels[1], key, (LANES * 4) as i64);
                for (offset, gradient) in OFFSETS.into_iter().zip(found) {
                    let gradient = e.b.ins().fmul(gradient, factor);
                    e.store(gradient, at, offset);
                }
            });
            Vec::new()
        });
        Vec::new()
    });
    Vec::new()
}

/// Lanes of a group that hold a query.
fn real_lanes(e: &mut Emit, record: Value, group: Value) -> Vec<Value> {
    let count = field!(e, record, ModGradientCall, count);
    let before = e.b.ins().imul_imm_s(group, LANES as i64);
    let left = e.b.ins().isub(count, before);
    let left = e.low_half(left);
    let left = e.b.ins().splat(types::I32X4, left);
    let mask = |first: u32| {
        let lanes = e.lanes([first, first + 1, first + 2, first + 3], types::I32X4);
        e.b.ins().icmp(IntCC::SignedGreaterThan, left, lanes)
    };
    [0, 4, 8, 12].map(mask).to_vec()
}

/// Emits the pass over scattered edges. The last round of a query repeats its last edge in its free places, with a
/// gradient of 0 there; of those places only the first is written.
pub(in crate::codegen::portable) fn emit_edges(e: &mut Emit, record: Value, mods: &ScoreMods) -> Vec<Value> {
    let inputs = field!(e, record, EdgeModGradientCall, inputs);
    let head = field!(e, record, EdgeModGradientCall, head);
    let mut lower = Lower::new(e, mods, inputs, head);
    lower.known = Some(RefCell::default());
    let gradients = field!(e, record, EdgeModGradientCall, gradients);
    let gradients = addresses(e, gradients, mods);
    let factor = e.load_splat(record, core::mem::offset_of!(EdgeModGradientCall, factor) as i32);
    let rows = field!(e, record, EdgeModGradientCall, rows);
    let offsets = field!(e, record, EdgeModGradientCall, offsets);
    let keys = field!(e, record, EdgeModGradientCall, edge_keys);
    let s = field!(e, record, EdgeModGradientCall, s);
    let d = field!(e, record, EdgeModGradientCall, d);
    let base = e.load_u32(offsets, 0);
    let keys = e.offset(keys, base, 4);
    let zero = e.int(0);
    e.for_range(zero, rows, 1, &[], |e, row, _| {
        let at = e.offset(offsets, row, 4);
        let [first, end] = [0, 4].map(|offset| {
            let edge = e.load_u32(at, offset);
            e.b.ins().isub(edge, base)
        });
        let positions = field!(e, record, EdgeModGradientCall, positions);
        let position = e.offset(positions, row, 4);
        let position = e.load(types::I32, position, 0);
        let integers = Lanes::Same(e.b.ins().splat(types::I32X4, position));
        let query = Position::new(e, integers);
        lower.hoist(e, query, None);
        e.for_range(first, end, 4, &[], |e, edge, _| {
            let last = e.b.ins().iadd_imm_s(end, -1);
            let edges = [0, 1, 2, 3].map(|r| {
                let edge = e.b.ins().iadd_imm_s(edge, r);
                e.b.ins().smin(edge, last)
            });
            let left = e.b.ins().isub(end, edge);
            let left = e.low_half(left);
            let left = e.b.ins().splat(types::I32X4, left);
            let lanes = e.lanes([0, 1, 2, 3], types::I32X4);
            let real = e.b.ins().icmp(IntCC::SignedGreaterThan, left, lanes);
            let [scores, weights, numbers] =
                [(s, types::F32), (d, types::F32), (keys, types::I32)].map(|(list, ty)| {
                    let places = edges.map(|edge| e.offset(list, edge, 4));
                    lanes_at(e, &places, ty)
                });
            let key = Position::new(e, Lanes::Each(vec![numbers]));
            let weights = e.keep(real, weights);
            let back = Back { lower: &lower, gradients: &gradients, key: &key };
            let found = back.run(e, vec![scores], vec![weights])[0];
            let found = e.b.ins().fmul(found, factor);
            // From the last lane down: what a repeated place gets in the end is its own gradient.
            for lane in (0..4u8).rev() {
                let gradient = e.b.ins().extractlane(found, lane);
                let place = e.offset(d, edges[usize::from(lane)], 4);
                e.store(gradient, place, 0);
            }
            Vec::new()
        });
        Vec::new()
    });
    Vec::new()
}

/// Element 0 of the gradient of every input.
fn addresses(e: &mut Emit, list: Value, mods: &ScoreMods) -> Vec<Value> {
    (0..mods.inputs.len()).map(|i| e.load(e.ptr, list, (i * size_of::<usize>()) as i32)).collect()
}

/// The walk back from the modified scores of a key, or of keys in the lanes.
struct Back<'a, 'm> {
    lower: &'a Lower<'m>,
    gradients: &'a [Value],
    key: &'a Position,
}

/// What reaches a node: its gradient, and the lanes (all ones) in which it counts.
#[derive(Clone)]
struct Flow {
    weight: Lanes,
    counts: Lanes,
}

impl Flow {
    fn with(&self, weight: Lanes) -> Self {
        Self { weight, counts: self.counts.clone() }
    }

    /// The same by a factor.
    fn times(&self, e: &mut Emit, factor: &Lanes) -> Self {
        self.with(self.weight.zip(factor, e, |e, x, y| e.b.ins().fmul(x, y)))
    }

    fn negative(&self, e: &mut Emit) -> Self {
        self.with(self.weight.map(e, |e, x| e.b.ins().fneg(x)))
    }

    /// Only where `mask` is all ones.
    fn within(&self, e: &mut Emit, mask: &Lanes) -> Self {
        let counts = self.counts.zip(mask, e, |e, x, y| e.b.ins().band(x, y));
        Self { weight: self.weight.clone(), counts }
    }

    /// The gradient, 0 where it does not count.
    fn kept(&self, e: &mut Emit) -> Lanes {
        self.counts.zip(&self.weight, e, |e, mask, x| e.keep(mask, x))
    }
}

impl Back<'_, '_> {
    /// The gradient by the scores before the mods; adds to those of the inputs.
    fn run(&self, e: &mut Emit, scores: Vec<Value>, weights: Vec<Value>) -> Vec<Value> {
        let count = scores.len();
        if let Some(known) = &self.lower.known {
            known.borrow_mut().clear();
        }
        let mods = &self.lower.mods.mods;
        let mut before = vec![Lanes::Each(scores)];
        // What the last mod gives, nothing asks for.
        for place in 0..mods.len().saturating_sub(1) {
            let after = self.lower.modify(e, place, self.key, &before[place]);
            before.push(after);
        }
        let start = Lanes::Each(weights);
        let found = mods.iter().zip(before).rev().fold(start, |weight, (score_mod, s)| {
            if matches!(score_mod, ScoreMod::Alibi(_)) {
                return weight;
            }
            let zero = e.constant(0.0);
            let counts = weight.map(e, |e, x| e.b.ins().fcmp(FloatCC::NotEqual, x, zero));
            let flow = Flow { weight, counts };
            match score_mod {
                ScoreMod::Alibi(_) => flow.weight,
                ScoreMod::Softcap(cap) => {
                    let inner = self.lower.capped(e, *cap, &s);
                    let slope = one_less_square(e, &inner);
                    flow.times(e, &slope).kept(e)
                }
                ScoreMod::Bias(element) => {
                    self.add(e, element, &flow.weight);
                    flow.weight
                }
                ScoreMod::Expr(term) => {
                    let mut by_score = None;
                    self.pull(e, term, &s, &flow, &mut by_score);
                    by_score.unwrap_or(Lanes::Same(zero))
                }
            }
        });
        (0..count).map(|i| found.at(i)).collect()
    }

    /// Adds what reaches `term` to what it reads: to `by_score`, and to the gradients of inputs.
    fn pull(&self, e: &mut Emit, term: &Term, s: &Lanes, flow: &Flow, by_score: &mut Option<Lanes>) {
        if !term.uses_score() && term.elements().is_empty() {
            return;
        }
        let value = |e: &mut Emit, term: &Term| self.lower.term(e, term, self.key, s);
        match term {
            Term::Number(_) | Term::Var(_) => {}
            Term::Score => {
                let kept = flow.kept(e);
                *by_score = Some(match by_score.take() {
                    None => kept,
                    Some(sum) => sum.zip(&kept, e, |e, x, y| e.b.ins().fadd(x, y)),
                });
            }
            Term::Element(element) => {
                let kept = flow.kept(e);
                self.add(e, element, &kept);
            }
            Term::Neg(x) => {
                let flow = flow.negative(e);
                self.pull(e, x, s, &flow, by_score);
            }
            Term::Binary(op, xs) => {
                let [x, y] = &**xs;
                match op {
                    BinOp::Add => {
                        self.pull(e, x, s, flow, by_score);
                        self.pull(e, y, s, flow, by_score);
                    }
                    BinOp::Sub => {
                        self.pull(e, x, s, flow, by_score);
                        let flow = flow.negative(e);
                        self.pull(e, y, s, &flow, by_score);
                    }
                    BinOp::Mul => {
                        for (to, other) in [(x, y), (y, x)] {
                            let factor = value(e, other);
                            let flow = flow.times(e, &factor);
                            self.pull(e, to, s, &flow, by_score);
                        }
                    }
                    BinOp::Div => {
                        let divisor = value(e, y);
                        let of_x = flow.weight.zip(&divisor, e, |e, w, y| e.b.ins().fdiv(w, y));
                        self.pull(e, x, s, &flow.with(of_x.clone()), by_score);
                        let quotient = value(e, term);
                        let of_y = flow.with(of_x).times(e, &quotient).negative(e);
                        self.pull(e, y, s, &of_y, by_score);
                    }
                    // Steps, level between them.
                    BinOp::FloorDiv => {}
                    BinOp::Mod => {
                        self.pull(e, x, s, flow, by_score);
                        let (dividend, divisor) = (value(e, x), value(e, y));
                        let whole = dividend.zip(&divisor, e, |e, x, y| {
                            let quotient = e.b.ins().fdiv(x, y);
                            e.b.ins().floor(quotient)
                        });
                        let flow = flow.times(e, &whole).negative(e);
                        self.pull(e, y, s, &flow, by_score);
                    }
                    BinOp::Pow => {
                        let exponent = match y {
                            Term::Number(exponent) => *exponent as u32,
                            // With another right side it does not parse.
                            _ => 0,
                        };
                        if exponent > 0 {
                            let base = value(e, x);
                            let times = e.constant(exponent as f32);
                            let slope = base.map(e, |e, x| {
                                let power = power(e, x, exponent - 1);
                                e.b.ins().fmul(power, times)
                            });
                            let flow = flow.times(e, &slope);
                            self.pull(e, x, s, &flow, by_score);
                        }
                    }
                }
            }
            Term::Call(TermFunc::Min | TermFunc::Max, xs) => self.pull_choice(e, term, xs, s, flow, by_score),
            Term::Call(func, xs) => {
                let slope = match func {
                    TermFunc::Exp => value(e, term),
                    TermFunc::Log => {
                        let x = value(e, &xs[0]);
                        let flow = flow.with(flow.weight.zip(&x, e, |e, w, x| e.b.ins().fdiv(w, x)));
                        return self.pull(e, &xs[0], s, &flow, by_score);
                    }
                    TermFunc::Tanh => {
                        let value = value(e, term);
                        one_less_square(e, &value)
                    }
                    TermFunc::Sigmoid => value(e, term).map(e, |e, x| {
                        let one = e.constant(1.0);
                        let rest = e.b.ins().fsub(one, x);
                        e.b.ins().fmul(x, rest)
                    }),
                    TermFunc::Sqrt => value(e, term).map(e, |e, x| {
                        let half = e.constant(0.5);
                        e.b.ins().fdiv(half, x)
                    }),
                    TermFunc::Abs => value(e, &xs[0]).map(e, |e, x| {
                        let (zero, one, minus) = (e.constant(0.0), e.constant(1.0), e.constant(-1.0));
                        let above = e.b.ins().fcmp(FloatCC::GreaterThan, x, zero);
                        let below = e.b.ins().fcmp(FloatCC::LessThan, x, zero);
                        let (above, below) = (e.keep(above, one), e.keep(below, minus));
                        e.b.ins().fadd(above, below)
                    }),
                    TermFunc::Floor | TermFunc::Min | TermFunc::Max => return,
                };
                let flow = flow.times(e, &slope);
                self.pull(e, &xs[0], s, &flow, by_score);
            }
            Term::If(condition, xs) => {
                let mask = self.lower.condition(e, condition, self.key, s);
                let yes = flow.within(e, &mask);
                self.pull(e, &xs[0], s, &yes, by_score);
                let not = mask.map(e, |e, x| e.b.ins().bnot(x));
                let no = flow.within(e, &not);
                self.pull(e, &xs[1], s, &no, by_score);
            }
        }
    }

    /// The same for a smallest or largest: to the argument that was chosen.
    fn pull_choice(
        &self,
        e: &mut Emit,
        term: &Term,
        xs: &[Term],
        s: &Lanes,
        flow: &Flow,
        by_score: &mut Option<Lanes>,
    ) {
        let value = self.lower.term(e, term, self.key, s);
        let mut left = flow.clone();
        for x in xs {
            let x_value = self.lower.term(e, x, self.key, s);
            let chosen = x_value.zip(&value, e, |e, x, value| e.b.ins().fcmp(FloatCC::Equal, x, value));
            let flow = left.within(e, &chosen);
            self.pull(e, x, s, &flow, by_score);
            let others = chosen.map(e, |e, mask| e.b.ins().bnot(mask));
            left = left.within(e, &others);
        }
    }

    /// Adds to the gradient of an element, where it is wanted.
    fn add(&self, e: &mut Emit, element: &Element, weight: &Lanes) {
        let address = self.gradients[element.input];
        e.if_true(address, |e| {
            let (at, step) = self.lower.place(e, element, self.key);
            let vectors: Vec<Value> = match (&at, weight) {
                (Lanes::Each(offsets), _) => (0..offsets.len()).map(|i| weight.at(i)).collect(),
                (Lanes::Same(_), Lanes::Each(weights)) => weights.clone(),
                // Gradients are as many vectors as scores.
                (Lanes::Same(_), Lanes::Same(weight)) => vec![*weight],
            };
            match &at {
                Lanes::Same(at) => {
                    let sum = vectors[1..].iter().fold(vectors[0], |sum, &x| e.b.ins().fadd(sum, x));
                    let sum = e.sum_lanes(sum);
                    let offset = lane(e, *at, 0);
                    add_to(e, address, offset, sum);
                }
                Lanes::Each(offsets) => {
                    let by_lane = |e: &mut Emit| {
                        for (&at, &weight) in offsets.iter().zip(&vectors) {
                            for i in 0..4 {
                                let offset = lane(e, at, i);
                                let weight = e.b.ins().extractlane(weight, i);
                                add_to(e, address, offset, weight);
                            }
                        }
                    };
                    let (Some(step), Some(consecutive)) = (step, self.lower.consecutive) else { return by_lane(e) };
                    let backwards = step < 0.0;
                    e.if_else(
                        consecutive,
                        |e| {
                            for (&at, &weight) in offsets.iter().zip(&vectors) {
                                let offset = lane(e, at, if backwards { 3 } else { 0 });
                                let weight = if backwards { turned(e, weight) } else { weight };
                                let place = e.offset(address, offset, 4);
                                let sum = e.load(types::F32X4, place, 0);
                                let sum = e.b.ins().fadd(sum, weight);
                                e.store(sum, place, 0);
                            }
                            Vec::new()
                        },
                        |e| {
                            by_lane(e);
                            Vec::new()
                        },
                    );
                }
            }
        });
    }
}

/// Adds a scalar to an element.
fn add_to(e: &mut Emit, address: Value, offset: Value, x: Value) {
    let place = e.offset(address, offset, 4);
    let sum = e.load(types::F32, place, 0);
    let sum = e.b.ins().fadd(sum, x);
    e.store(sum, place, 0);
}

/// 1 − x²
fn one_less_square(e: &mut Emit, x: &Lanes) -> Lanes {
    x.map(e, |e, x| {
        let one = e.constant(1.0);
        let minus = e.b.ins().fneg(x);
        e.mul_add(minus, x, one)
    })
}

#[cfg(test)]
mod tests;

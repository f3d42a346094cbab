//! From terms to vector code.
//!
//! In: a [`Term`] over a score, positions, the head and inputs. Out: its value for every vector of scores that is
//! worked on. A value that is the same for all of them ([`Lanes::Same`]) is computed once; what depends neither on
//! the score nor on the key is computed once for all keys ([`Lower::hoist`]).

use std::cell::RefCell;
use std::collections::HashMap;

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, types};

use super::math;
use crate::codegen::emit::Emit;
use crate::spec::expr::{BinOp, CmpOp, Expr, Func, Var};
use crate::spec::score::{Condition, Element, Linear, ScoreMod, ScoreMods, Term, TermFunc, offset};

/// A value for every vector that is worked on.
#[derive(Debug, Clone)]
pub(super) enum Lanes {
    /// One vector for all, with the same number in all its lanes.
    Same(Value),
    /// One vector each, also where there is only one.
    Each(Vec<Value>),
}

impl Lanes {
    pub fn at(&self, vector: usize) -> Value {
        match self {
            Self::Same(value) => *value,
            Self::Each(values) => values[vector],
        }
    }

    pub fn map(&self, e: &mut Emit, f: impl Fn(&mut Emit, Value) -> Value) -> Self {
        match self {
            Self::Same(value) => Self::Same(f(e, *value)),
            Self::Each(values) => Self::Each(values.iter().map(|&value| f(e, value)).collect()),
        }
    }

    /// A function of several vectors at once.
    pub fn map_all(&self, e: &mut Emit, f: impl Fn(&mut Emit, &[Value]) -> Vec<Value>) -> Self {
        match self {
            Self::Same(value) => Self::Same(f(e, &[*value])[0]),
            Self::Each(values) => Self::Each(f(e, values)),
        }
    }

    pub fn zip(&self, other: &Self, e: &mut Emit, f: impl Fn(&mut Emit, Value, Value) -> Value) -> Self {
        match (self, other) {
            (Self::Same(x), Self::Same(y)) => Self::Same(f(e, *x, *y)),
            (Self::Each(xs), _) => Self::Each(xs.iter().enumerate().map(|(i, &x)| f(e, x, other.at(i))).collect()),
            (_, Self::Each(ys)) => Self::Each(ys.iter().enumerate().map(|(i, &y)| f(e, self.at(i), y)).collect()),
        }
    }
}

/// A position as 32-bit integers and as floats, both exact.
#[derive(Debug, Clone)]
pub(super) struct Position {
    integers: Lanes,
    floats: Lanes,
}

impl Position {
    pub fn new(e: &mut Emit, integers: Lanes) -> Self {
        let floats = integers.map(e, |e, x| e.b.ins().fcvt_from_sint(types::F32X4, x));
        Self { integers, floats }
    }
}

/// Lowers the mods of one kernel.
pub(super) struct Lower<'m> {
    pub(super) mods: &'m ScoreMods,
    /// Element 0 of every input and table of constants.
    inputs: Vec<Value>,
    head: Position,
    query: Position,
    /// Whether the queries of every vector follow each other, where vectors hold queries.
    pub(super) consecutive: Option<Value>,
    /// What was computed for all keys, by node.
    hoisted: HashMap<*const Term, Lanes>,
    /// The same for the parts of elements' offsets that hold no key, by element.
    bases: HashMap<*const Element, Lanes>,
    /// Slopes of each `alibi`, by its place among the mods.
    slopes: Vec<Option<Lanes>>,
    /// What was computed for this key, by node, where values are needed again to go back through the mods.
    pub(super) known: Option<RefCell<HashMap<*const Term, Lanes>>>,
}

impl<'m> Lower<'m> {
    /// Reads the addresses in `inputs`, and the head.
    pub fn new(e: &mut Emit, mods: &'m ScoreMods, inputs: Value, head: Value) -> Self {
        let count = mods.inputs.len() + mods.constants().len();
        let addresses = (0..count).map(|i| e.load(e.ptr, inputs, (i * size_of::<usize>()) as i32)).collect();
        let narrow = e.low_half(head);
        let integers = Lanes::Same(e.b.ins().splat(types::I32X4, narrow));
        let head = Position::new(e, integers);
        let query = head.clone();
        let mut lower = Self {
            mods,
            inputs: addresses,
            head,
            query,
            consecutive: None,
            hoisted: HashMap::new(),
            bases: HashMap::new(),
            slopes: Vec::new(),
            known: None,
        };
        let mut constants = mods.inputs.len();
        for score_mod in &mods.mods {
            let slope = matches!(score_mod, ScoreMod::Alibi(_)).then(|| {
                let at = lower.head.integers.clone();
                constants += 1;
                lower.load(e, constants - 1, &at)
            });
            lower.slopes.push(slope);
        }
        lower
    }

    /// Sets the positions of the queries, and computes what depends on nothing else.
    pub fn hoist(&mut self, e: &mut Emit, query: Position, consecutive: Option<Value>) {
        self.query = query;
        self.consecutive = consecutive;
        self.hoisted.clear();
        self.bases.clear();
        let mods = self.mods;
        for score_mod in &mods.mods {
            match score_mod {
                ScoreMod::Softcap(_) | ScoreMod::Alibi(_) => {}
                ScoreMod::Bias(element) => self.hoist_base(e, element),
                ScoreMod::Expr(term) => self.hoist_term(e, term),
            }
        }
    }

    fn hoist_term(&mut self, e: &mut Emit, term: &Term) {
        if !term.uses_score() && !term.uses(Var::K) {
            if !matches!(term, Term::Number(_)) {
                let none = self.head.clone();
                let value = self.term(e, term, &none, &none.floats);
                self.hoisted.insert(std::ptr::from_ref(term), value);
            }
            return;
        }
        if let Term::Element(element) = term {
            self.hoist_base(e, element);
        }
        for child in term.children() {
            self.hoist_term(e, child);
        }
    }

    /// The offset of an element without its multiple of the key, where the key occurs in no other way.
    fn hoist_base(&mut self, e: &mut Emit, element: &Element) {
        let expr = self.offset(element);
        let form = Linear::of(&expr);
        if let Some([q, _, h]) = form.of_positions() {
            let mut base = Lanes::Same(integer(e, form.constant));
            for (position, factor) in [(&self.query, q), (&self.head, h)] {
                if factor != 0.0 {
                    let term = scaled(e, &position.integers, factor);
                    base = base.zip(&term, e, |e, x, y| e.b.ins().iadd(x, y));
                }
            }
            self.bases.insert(std::ptr::from_ref(element), base);
        }
    }

    fn offset(&self, element: &Element) -> Expr {
        offset(element, &self.mods.inputs[element.input].strides())
    }

    /// Applies all mods to scores of a key (or of keys in the lanes).
    pub fn apply(&self, e: &mut Emit, key: &Position, scores: Vec<Value>) -> Vec<Value> {
        let count = scores.len();
        let s = (0..self.mods.mods.len()).fold(Lanes::Each(scores), |s, place| self.modify(e, place, key, &s));
        (0..count).map(|i| s.at(i)).collect()
    }

    /// What the mod at a place of the list makes of scores.
    pub fn modify(&self, e: &mut Emit, place: usize, key: &Position, s: &Lanes) -> Lanes {
        match (&self.mods.mods[place], &self.slopes[place]) {
            (ScoreMod::Softcap(cap), _) => {
                let inner = self.capped(e, *cap, s);
                let cap = e.constant(*cap as f32);
                inner.map(e, |e, x| e.b.ins().fmul(x, cap))
            }
            (ScoreMod::Alibi(_), Some(slope)) => {
                let distance = key.floats.zip(&self.query.floats, e, |e, k, q| e.b.ins().fsub(k, q));
                let slope = slope.at(0);
                s.zip(&distance, e, |e, s, distance| e.mul_add(distance, slope, s))
            }
            // Slopes are there for every alibi.
            (ScoreMod::Alibi(_), None) => s.clone(),
            (ScoreMod::Bias(element), _) => {
                let bias = self.element(e, element, key);
                s.zip(&bias, e, |e, s, bias| e.b.ins().fadd(s, bias))
            }
            (ScoreMod::Expr(term), _) => self.term(e, term, key, s),
        }
    }

    /// tanh(s / cap)
    pub fn capped(&self, e: &mut Emit, cap: f64, s: &Lanes) -> Lanes {
        let inverse = e.constant((1.0 / cap) as f32);
        let inner = s.map(e, |e, s| e.b.ins().fmul(s, inverse));
        inner.map_all(e, math::tanh)
    }

    /// The value of a term.
    pub fn term(&self, e: &mut Emit, term: &Term, key: &Position, s: &Lanes) -> Lanes {
        if let Some(known) = self.hoisted.get(&std::ptr::from_ref(term)) {
            return known.clone();
        }
        let Some(known) = &self.known else { return self.compute(e, term, key, s) };
        if let Some(known) = known.borrow().get(&std::ptr::from_ref(term)) {
            return known.clone();
        }
        let value = self.compute(e, term, key, s);
        known.borrow_mut().insert(std::ptr::from_ref(term), value.clone());
        value
    }

    fn compute(&self, e: &mut Emit, term: &Term, key: &Position, s: &Lanes) -> Lanes {
        match term {
            Term::Number(x) => Lanes::Same(e.constant(*x as f32)),
            Term::Score => s.clone(),
            Term::Var(Var::Q) => self.query.floats.clone(),
            Term::Var(Var::K) => key.floats.clone(),
            Term::Var(Var::H) => self.head.floats.clone(),
            // Lengths have become numbers.
            Term::Var(Var::N | Var::M | Var::D) => Lanes::Same(e.constant(f32::NAN)),
            Term::Neg(x) => self.term(e, x, key, s).map(e, |e, x| e.b.ins().fneg(x)),
            Term::Binary(op, xs) => {
                let x = self.term(e, &xs[0], key, s);
                if let (BinOp::Pow, Term::Number(exponent)) = (op, &xs[1]) {
                    return x.map(e, |e, x| power(e, x, *exponent as u32));
                }
                let y = self.term(e, &xs[1], key, s);
                x.zip(&y, e, |e, x, y| binary(e, *op, x, y))
            }
            Term::Call(func, xs) => {
                let x = self.term(e, &xs[0], key, s);
                match func {
                    TermFunc::Exp => x.map_all(e, math::exp),
                    TermFunc::Log => x.map_all(e, math::log),
                    TermFunc::Tanh => x.map_all(e, math::tanh),
                    TermFunc::Sigmoid => x.map_all(e, math::sigmoid),
                    TermFunc::Sqrt => x.map(e, |e, x| e.b.ins().sqrt(x)),
                    TermFunc::Abs => x.map(e, |e, x| e.b.ins().fabs(x)),
                    TermFunc::Floor => x.map(e, |e, x| e.b.ins().floor(x)),
                    TermFunc::Min | TermFunc::Max => xs[1..].iter().fold(x, |best, y| {
                        let y = self.term(e, y, key, s);
                        y.zip(&best, e, |e, y, best| match func {
                            TermFunc::Min => math::min(e, y, best),
                            _ => e.max(y, best),
                        })
                    }),
                }
            }
            Term::Element(element) => self.element(e, element, key),
            Term::If(condition, xs) => {
                let mask = self.condition(e, condition, key, s);
                let (yes, no) = (self.term(e, &xs[0], key, s), self.term(e, &xs[1], key, s));
                let count = [&mask, &yes, &no].iter().find_map(|lanes| match lanes {
                    Lanes::Each(values) => Some(values.len()),
                    Lanes::Same(_) => None,
                });
                let pick = |e: &mut Emit, i: usize| e.select(mask.at(i), yes.at(i), no.at(i));
                match count {
                    None => Lanes::Same(pick(e, 0)),
                    Some(count) => Lanes::Each((0..count).map(|i| pick(e, i)).collect()),
                }
            }
        }
    }

    /// A condition as integers, all ones where it holds.
    pub fn condition(&self, e: &mut Emit, condition: &Condition, key: &Position, s: &Lanes) -> Lanes {
        match condition {
            Condition::Compare(op, xs) => {
                let (x, y) = (self.term(e, &xs[0], key, s), self.term(e, &xs[1], key, s));
                let op = match op {
                    CmpOp::Lt => FloatCC::LessThan,
                    CmpOp::Le => FloatCC::LessThanOrEqual,
                    CmpOp::Gt => FloatCC::GreaterThan,
                    CmpOp::Ge => FloatCC::GreaterThanOrEqual,
                    CmpOp::Eq => FloatCC::Equal,
                    CmpOp::Ne => FloatCC::NotEqual,
                };
                x.zip(&y, e, |e, x, y| e.b.ins().fcmp(op, x, y))
            }
            Condition::And(xs) | Condition::Or(xs) => {
                let (x, y) = (self.condition(e, &xs[0], key, s), self.condition(e, &xs[1], key, s));
                x.zip(&y, e, |e, x, y| match condition {
                    Condition::And(_) => e.b.ins().band(x, y),
                    _ => e.b.ins().bor(x, y),
                })
            }
            Condition::Not(x) => self.condition(e, x, key, s).map(e, |e, x| e.b.ins().bnot(x)),
        }
    }

    /// The offsets of an element, and, where it is 1 or −1, what they change by from one query to the next.
    pub fn place(&self, e: &mut Emit, element: &Element, key: &Position) -> (Lanes, Option<f64>) {
        let expr = self.offset(element);
        let factors = Linear::of(&expr).of_positions();
        let at = match (factors, self.bases.get(&std::ptr::from_ref(element))) {
            (Some([_, 0.0, _]), Some(base)) => base.clone(),
            (Some([_, k, _]), Some(base)) => {
                let moved = scaled(e, &key.integers, k);
                base.zip(&moved, e, |e, base, moved| e.b.ins().iadd(base, moved))
            }
            _ => self.integer(e, &expr, key),
        };
        (at, factors.map(|[q, ..]| q).filter(|&q| q == 1.0 || q == -1.0))
    }

    fn element(&self, e: &mut Emit, element: &Element, key: &Position) -> Lanes {
        let (at, step) = self.place(e, element, key);
        match (&at, step, self.consecutive) {
            (Lanes::Each(offsets), Some(step), Some(consecutive)) => {
                let base = self.inputs[element.input];
                let values = e.if_else(
                    consecutive,
                    |e| offsets.iter().map(|&at| load_row(e, base, at, step < 0.0)).collect(),
                    |e| offsets.iter().map(|&at| gather(e, base, at)).collect(),
                );
                Lanes::Each(values)
            }
            _ => self.load(e, element.input, &at),
        }
    }

    /// The elements at offsets into an input.
    fn load(&self, e: &mut Emit, input: usize, at: &Lanes) -> Lanes {
        let base = self.inputs[input];
        match at {
            Lanes::Same(at) => {
                let offset = lane(e, *at, 0);
                let address = e.offset(base, offset, 4);
                Lanes::Same(e.load_splat(address, 0))
            }
            Lanes::Each(_) => at.map(e, |e, at| gather(e, base, at)),
        }
    }

    /// An integer expression in 32-bit integers; divisions by way of floats, which hold both sides exactly.
    fn integer(&self, e: &mut Emit, expr: &Expr, key: &Position) -> Lanes {
        match expr {
            Expr::Number(x) => Lanes::Same(integer(e, *x)),
            Expr::Var(Var::Q) => self.query.integers.clone(),
            Expr::Var(Var::K) => key.integers.clone(),
            Expr::Var(Var::H | Var::N | Var::M | Var::D) => self.head.integers.clone(),
            Expr::Neg(x) => self.integer(e, x, key).map(e, |e, x| e.b.ins().ineg(x)),
            Expr::Binary(op, _, xs) => {
                let (x, y) = (self.integer(e, &xs[0], key), self.integer(e, &xs[1], key));
                x.zip(&y, e, |e, x, y| match op {
                    BinOp::Add => e.b.ins().iadd(x, y),
                    BinOp::Sub => e.b.ins().isub(x, y),
                    BinOp::Mul => e.b.ins().imul(x, y),
                    BinOp::Div | BinOp::FloorDiv | BinOp::Mod | BinOp::Pow => {
                        let [dividend, divisor] = [x, y].map(|x| e.b.ins().fcvt_from_sint(types::F32X4, x));
                        let quotient = e.b.ins().fdiv(dividend, divisor);
                        let down = e.b.ins().floor(quotient);
                        let whole = e.b.ins().fcvt_to_sint_sat(types::I32X4, down);
                        if *op == BinOp::Mod {
                            let product = e.b.ins().imul(whole, y);
                            return e.b.ins().isub(x, product);
                        }
                        whole
                    }
                })
            }
            Expr::Call(func, _, xs) => {
                let first = self.integer(e, &xs[0], key);
                match func {
                    Func::Min | Func::Max => xs[1..].iter().fold(first, |best, x| {
                        let x = self.integer(e, x, key);
                        x.zip(&best, e, |e, x, best| match func {
                            Func::Min => e.b.ins().smin(x, best),
                            _ => e.b.ins().smax(x, best),
                        })
                    }),
                    Func::Abs => first.map(e, |e, x| e.b.ins().iabs(x)),
                    // Of integers, the others are these, or do not stand in an index.
                    Func::Floor | Func::Ceil | Func::Round | Func::Sqrt | Func::Log2 => first,
                }
            }
            // No condition stands in an index.
            Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => Lanes::Same(integer(e, 0.0)),
        }
    }
}

fn binary(e: &mut Emit, op: BinOp, x: Value, y: Value) -> Value {
    match op {
        BinOp::Add => e.b.ins().fadd(x, y),
        BinOp::Sub => e.b.ins().fsub(x, y),
        BinOp::Mul => e.b.ins().fmul(x, y),
        BinOp::Div => e.b.ins().fdiv(x, y),
        BinOp::FloorDiv | BinOp::Mod => {
            let quotient = e.b.ins().fdiv(x, y);
            let down = e.b.ins().floor(quotient);
            if op == BinOp::FloorDiv {
                return down;
            }
            let product = e.b.ins().fmul(y, down);
            e.b.ins().fsub(x, product)
        }
        // With a whole number as its right side, all that parses, it does not come here.
        BinOp::Pow => x,
    }
}

/// x to a whole power, by repeated squaring.
pub(super) fn power(e: &mut Emit, x: Value, mut exponent: u32) -> Value {
    let mut result = None;
    let mut base = x;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = Some(match result {
                None => base,
                Some(so_far) => e.b.ins().fmul(so_far, base),
            });
        }
        exponent >>= 1;
        if exponent > 0 {
            base = e.b.ins().fmul(base, base);
        }
    }
    result.unwrap_or_else(|| e.constant(1.0))
}

/// An integer in all lanes.
fn integer(e: &mut Emit, x: f64) -> Value {
    // Sums wrap: what cancels in a proved index may pass 32 bits on the way.
    e.lanes([x as i64 as u32; 4], types::I32X4)
}

fn scaled(e: &mut Emit, position: &Lanes, factor: f64) -> Lanes {
    if factor == 1.0 {
        return position.clone();
    }
    if factor == -1.0 {
        return position.map(e, |e, x| e.b.ins().ineg(x));
    }
    let factor = integer(e, factor);
    position.map(e, |e, x| e.b.ins().imul(x, factor))
}

/// One lane of an integer vector as an address-sized integer. Offsets are proved, so none is negative.
pub(super) fn lane(e: &mut Emit, vector: Value, lane: u8) -> Value {
    let x = e.b.ins().extractlane(vector, lane);
    let ptr: Type = e.ptr;
    if ptr == types::I32 { x } else { e.b.ins().uextend(ptr, x) }
}

/// Four elements at the offsets in `at`.
fn gather(e: &mut Emit, base: Value, at: Value) -> Value {
    let addresses: Vec<Value> = (0..4)
        .map(|i| {
            let offset = lane(e, at, i);
            e.offset(base, offset, 4)
        })
        .collect();
    let mut vector = e.load_splat(addresses[0], 0);
    for (i, &address) in (1u8..).zip(&addresses[1..]) {
        let value = e.load(types::F32, address, 0);
        vector = e.b.ins().insertlane(vector, value, i);
    }
    vector
}

/// Four elements that lie beside each other, the first lane's first or, where `backwards`, last.
fn load_row(e: &mut Emit, base: Value, at: Value, backwards: bool) -> Value {
    let offset = lane(e, at, if backwards { 3 } else { 0 });
    let address = e.offset(base, offset, 4);
    let vector = e.load(types::F32X4, address, 0);
    if !backwards {
        return vector;
    }
    turned(e, vector)
}

/// A vector's lanes in the opposite order.
pub(super) fn turned(e: &mut Emit, vector: Value) -> Value {
    let flags = MemFlagsData::new().with_endianness(cranelift_codegen::ir::Endianness::Little);
    let bytes = e.b.ins().bitcast(types::I8X16, flags, vector);
    let order: Vec<u8> = (0..4u8).rev().flat_map(|lane| (0..4).map(move |byte| 4 * lane + byte)).collect();
    let mask = e.b.func.dfg.immediates.push(order.into());
    let turned = e.b.ins().shuffle(bytes, bytes, mask);
    e.b.ins().bitcast(types::F32X4, flags, turned)
}

/// All ones in one byte where each of `vectors` holds four integers that follow each other.
pub(super) fn are_consecutive(e: &mut Emit, vectors: &[Value]) -> Value {
    let steps = e.lanes([0, 1, 2, 3], types::I32X4);
    let mut all = None;
    for &vector in vectors {
        let first = e.b.ins().extractlane(vector, 0u8);
        let first = e.b.ins().splat(types::I32X4, first);
        let expected = e.b.ins().iadd(first, steps);
        let same = e.b.ins().icmp(IntCC::Equal, vector, expected);
        all = Some(match all {
            None => same,
            Some(so_far) => e.b.ins().band(so_far, same),
        });
    }
    match all {
        Some(all) => e.b.ins().vall_true(all),
        None => e.b.ins().iconst(types::I8, 1),
    }
}

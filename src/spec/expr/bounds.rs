//! What an expression can be over ranges of its variables, without visiting the points.
//!
//! Sound: every value and every truth that [`Expr::eval`] and [`Expr::holds`] reach at a point of the ranges
//! lies within the answer. Rounding needs no care, because rounding to nearest is monotone: the bound of a
//! rounded operation is the rounded operation on the bounds.

use super::{BinOp, CmpOp, Expr, Func, LIMIT, Var, modulo, power};

/// Values from `lo` to `hi`, both included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Smallest value.
    pub lo: f64,
    /// Largest value.
    pub hi: f64,
    /// Whether the evaluation may be undefined somewhere in the ranges.
    pub undefined: bool,
}

/// Which outcomes a predicate can have over ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truth {
    /// It may hold.
    pub yes: bool,
    /// It may fail.
    pub no: bool,
    /// Its evaluation may be undefined, which counts as failing.
    pub undefined: bool,
}

impl Truth {
    /// Holds at every point.
    pub fn always(self) -> bool {
        !self.no && !self.undefined
    }

    /// Holds at no point.
    pub fn never(self) -> bool {
        !self.yes
    }
}

/// Ranges of the variables, in the order of [`Var::ALL`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// By [`Var`].
    pub ranges: [Interval; 6],
}

impl Bounds {
    /// Every variable at one value.
    pub fn at(env: &super::Env) -> Self {
        Self { ranges: env.values.map(|x| Interval::new(x, x)) }
    }

    /// The same with `var` from `lo` to `hi`, both included.
    pub fn with(mut self, var: Var, lo: i64, hi: i64) -> Self {
        self.ranges[var as usize] = Interval::new(lo as f64, hi as f64);
        self
    }
}

impl Interval {
    /// From `lo` to `hi`, always defined.
    pub fn new(lo: f64, hi: f64) -> Self {
        Self { lo, hi, undefined: false }
    }

    /// All that a defined evaluation can be.
    fn unknown() -> Self {
        Self { lo: -LIMIT, hi: LIMIT, undefined: true }
    }

    /// Brings magnitudes that would be refused back into the line, and remembers the refusal.
    fn checked(self) -> Self {
        if self.lo.is_nan() || self.hi.is_nan() {
            return Self::unknown();
        }
        let undefined = self.undefined || self.lo <= -LIMIT || self.hi >= LIMIT;
        Self { lo: self.lo.max(-LIMIT), hi: self.hi.min(LIMIT), undefined }
    }

    /// `libm` functions are only nearly monotone.
    fn widened(self) -> Self {
        let slack = |x: f64| x.abs() * 1e-12 + 1e-12;
        Self { lo: self.lo - slack(self.lo), hi: self.hi + slack(self.hi), ..self }
    }

    fn is_point(self) -> bool {
        self.lo == self.hi
    }
}

impl Expr {
    /// Bounds on the value of a number expression.
    pub fn bounds(&self, ranges: &Bounds) -> Interval {
        match self {
            Expr::Number(x) => Interval::new(*x, *x),
            Expr::Var(v) => ranges.ranges[*v as usize],
            Expr::Neg(x) => {
                let x = x.bounds(ranges);
                Interval { lo: -x.hi, hi: -x.lo, ..x }
            }
            Expr::Binary(op, _, xs) => binary(*op, xs[0].bounds(ranges), xs[1].bounds(ranges)),
            Expr::Call(func, _, xs) => {
                let mut value = xs[0].bounds(ranges);
                for x in &xs[1..] {
                    let x = x.bounds(ranges);
                    let undefined = value.undefined || x.undefined;
                    value = match func {
                        Func::Min => Interval { lo: value.lo.min(x.lo), hi: value.hi.min(x.hi), undefined },
                        _ => Interval { lo: value.lo.max(x.lo), hi: value.hi.max(x.hi), undefined },
                    };
                }
                call(*func, value)
            }
            Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => {
                let truth = self.truth_bounds(ranges);
                let (lo, hi) = (f64::from(u8::from(!truth.no)), f64::from(u8::from(truth.yes)));
                Interval { lo: lo.min(hi), hi: hi.max(lo), undefined: truth.undefined }
            }
        }
    }

    /// Which outcomes a predicate can have.
    pub fn truth_bounds(&self, ranges: &Bounds) -> Truth {
        match self {
            Expr::Compare(op, xs) => compare(*op, xs[0].bounds(ranges), xs[1].bounds(ranges)),
            // As in Expr::holds, the right side counts only where the left does not decide.
            Expr::And(xs) => {
                let (a, b) = (xs[0].truth_bounds(ranges), xs[1].truth_bounds(ranges));
                let undefined = a.undefined || a.yes && b.undefined;
                Truth { yes: a.yes && b.yes, no: a.no || a.yes && b.no, undefined }
            }
            Expr::Or(xs) => {
                let (a, b) = (xs[0].truth_bounds(ranges), xs[1].truth_bounds(ranges));
                let undefined = a.undefined || a.no && b.undefined;
                Truth { yes: a.yes || a.no && b.yes, no: a.no && b.no, undefined }
            }
            Expr::Not(x) => {
                let x = x.truth_bounds(ranges);
                Truth { yes: x.no, no: x.yes, undefined: x.undefined }
            }
            Expr::Number(_) | Expr::Var(_) | Expr::Neg(_) | Expr::Binary(..) | Expr::Call(..) => {
                compare(CmpOp::Ne, self.bounds(ranges), Interval::new(0.0, 0.0))
            }
        }
    }
}

/// Smallest and largest of `f` at the four corners; exact where `f` is monotone in each argument.
fn corners(x: Interval, y: Interval, f: impl Fn(f64, f64) -> f64) -> Interval {
    let values = [f(x.lo, y.lo), f(x.lo, y.hi), f(x.hi, y.lo), f(x.hi, y.hi)];
    if values.iter().any(|v| v.is_nan()) {
        return Interval::unknown();
    }
    let lo = values.iter().copied().fold(f64::INFINITY, f64::min);
    let hi = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Interval { lo, hi, undefined: x.undefined || y.undefined }.checked()
}

/// Bounds on `x op y`.
pub(in crate::spec) fn binary(op: BinOp, x: Interval, y: Interval) -> Interval {
    let undefined = x.undefined || y.undefined;
    match op {
        BinOp::Add => Interval { lo: x.lo + y.lo, hi: x.hi + y.hi, undefined }.checked(),
        BinOp::Sub => Interval { lo: x.lo - y.hi, hi: x.hi - y.lo, undefined }.checked(),
        BinOp::Mul => corners(x, y, |a, b| a * b),
        BinOp::Div | BinOp::FloorDiv | BinOp::Mod if y.lo <= 0.0 && y.hi >= 0.0 => Interval::unknown(),
        BinOp::Div => corners(x, y, |a, b| a / b),
        BinOp::FloorDiv => corners(x, y, |a, b| ((a - modulo(a, b)) / b).round()),
        BinOp::Mod => {
            let turn = |a: f64| ((a - modulo(a, y.lo)) / y.lo).round();
            if y.is_point() && turn(x.lo) == turn(x.hi) {
                let (lo, hi) = (modulo(x.lo, y.lo), modulo(x.hi, y.lo));
                return Interval { lo: lo.min(hi), hi: hi.max(lo), undefined };
            }
            Interval { lo: y.lo.min(0.0), hi: y.hi.max(0.0), undefined }
        }
        BinOp::Pow if y.is_point() && y.lo.fract() == 0.0 && (0.0..=1100.0).contains(&y.lo) => {
            let mut range = corners(x, y, power);
            // An even power turns round at zero.
            if x.lo < 0.0 && x.hi > 0.0 {
                range.lo = range.lo.min(power(0.0, y.lo));
            }
            range
        }
        BinOp::Pow if x.lo > 0.0 => corners(x, y, power).widened().checked(),
        BinOp::Pow => Interval::unknown(),
    }
}

/// Bounds on `func(x)`.
pub(in crate::spec) fn call(func: Func, x: Interval) -> Interval {
    let map = |f: fn(f64) -> f64| Interval { lo: f(x.lo), hi: f(x.hi), ..x }.checked();
    match func {
        Func::Min | Func::Max => x,
        Func::Floor => map(f64::floor),
        Func::Ceil => map(f64::ceil),
        Func::Round => map(f64::round_ties_even),
        Func::Abs if x.lo <= 0.0 && x.hi >= 0.0 => Interval { lo: 0.0, hi: x.hi.max(-x.lo), ..x },
        Func::Abs => Interval { lo: x.lo.abs().min(x.hi.abs()), hi: x.lo.abs().max(x.hi.abs()), ..x },
        Func::Sqrt | Func::Log2 if x.hi < 0.0 => Interval::unknown(),
        Func::Sqrt => Interval { lo: x.lo.max(0.0).sqrt(), hi: x.hi.sqrt(), undefined: x.undefined || x.lo < 0.0 },
        Func::Log2 if x.lo <= 0.0 => Interval::unknown(),
        Func::Log2 => map(f64::log2).widened(),
    }
}

fn compare(op: CmpOp, x: Interval, y: Interval) -> Truth {
    let undefined = x.undefined || y.undefined;
    let (yes, no) = match op {
        CmpOp::Lt => (x.lo < y.hi, x.hi >= y.lo),
        CmpOp::Le => (x.lo <= y.hi, x.hi > y.lo),
        CmpOp::Gt => (x.hi > y.lo, x.lo <= y.hi),
        CmpOp::Ge => (x.hi >= y.lo, x.lo < y.hi),
        CmpOp::Eq | CmpOp::Ne => {
            let meet = x.lo <= y.hi && y.lo <= x.hi;
            let same = x.is_point() && y.is_point() && x.lo == y.lo;
            if op == CmpOp::Eq { (meet, !same) } else { (!same, meet) }
        }
    };
    Truth { yes, no, undefined }
}

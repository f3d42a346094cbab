//! Expressions over lengths and positions: `max(32, n/64)`, `abs(q - k) <= 128 and k <= q`.
//!
//! In: the text of a scalar. Out: an [`Expr`], checked for syntax, types (number or truth value) and names.
//! Precedence, `//`, `%`, `**` and `round` are Python's. Values are f64, exact for integers below 2^53;
//! division by zero, a result that is no number, and a magnitude of 2^53 or more are faults that name the
//! operator at which they arose.

use std::fmt;

mod bounds;
mod lanes;
mod parse;

pub use bounds::{Bounds, Interval, Truth};
pub(in crate::spec) use bounds::{binary as binary_bounds, call as call_bounds};
pub use lanes::{LanePredicate, LaneStack};
pub(in crate::spec) use parse::{MAX_DEPTH, Parser, Token, fault};

/// Magnitudes from here on are refused: from 2^53, not every integer is an f64.
pub const LIMIT: f64 = 9_007_199_254_740_992.0;

/// A variable of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Var {
    /// `n`, the number of keys.
    N,
    /// `m`, the number of queries.
    M,
    /// `d`, the width of a query.
    D,
    /// `h`, the query head.
    H,
    /// `q`, the position of the query.
    Q,
    /// `k`, the position of the key.
    K,
}

impl Var {
    /// All variables.
    pub const ALL: [Var; 6] = [Var::N, Var::M, Var::D, Var::H, Var::Q, Var::K];
    /// What every expression may use.
    pub const LENGTHS: [Var; 3] = [Var::N, Var::M, Var::D];

    /// The letter.
    pub fn name(self) -> &'static str {
        match self {
            Var::N => "n",
            Var::M => "m",
            Var::D => "d",
            Var::H => "h",
            Var::Q => "q",
            Var::K => "k",
        }
    }
}

/// Values of the variables.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Env {
    /// By [`Var`], in the order of [`Var::ALL`].
    pub values: [f64; 6],
}

impl Env {
    /// The environment of expressions over lengths; `h`, `q` and `k` are 0.
    pub fn lengths(n: usize, m: usize, d: usize) -> Self {
        Self { values: [n as f64, m as f64, d as f64, 0.0, 0.0, 0.0] }
    }

    /// The same with one variable set.
    pub fn with(self, var: Var, value: usize) -> Self {
        self.at(var, value as i64)
    }

    /// The same with one variable set that may be negative, as a position.
    pub fn at(mut self, var: Var, value: i64) -> Self {
        self.values[var as usize] = value as f64;
        self
    }
}

/// Where an operator or name stands in the text of its expression.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    /// Characters before it.
    pub offset: u32,
    /// Its characters.
    pub width: u32,
}

/// Expressions are equal wherever they stand.
impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What is wrong in an expression, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What was expected, or empty.
    pub expected: String,
}

/// An operator on two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinOp {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`, not rounded.
    Div,
    /// `//`, rounded down.
    FloorDiv,
    /// `%`, with the sign of the divisor.
    Mod,
    /// `**`
    Pow,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `==`
    Eq,
    /// `!=`
    Ne,
}

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Func {
    /// Smallest of one or more.
    Min,
    /// Largest of one or more.
    Max,
    /// Rounded down.
    Floor,
    /// Rounded up.
    Ceil,
    /// Rounded to the nearest integer, halves to even.
    Round,
    /// Square root.
    Sqrt,
    /// Logarithm to base 2.
    Log2,
    /// Magnitude.
    Abs,
}

impl Func {
    /// All functions with their names.
    pub const ALL: [(&'static str, Func); 8] = [
        ("min", Func::Min),
        ("max", Func::Max),
        ("floor", Func::Floor),
        ("ceil", Func::Ceil),
        ("round", Func::Round),
        ("sqrt", Func::Sqrt),
        ("log2", Func::Log2),
        ("abs", Func::Abs),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("", |(name, _)| name)
    }
}

/// An expression tree. The parser builds only well-typed trees: truth values under `and or not`, numbers
/// under everything else.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// A number, not negative when parsed.
    Number(f64),
    /// A variable.
    Var(Var),
    /// `-x`
    Neg(Box<Expr>),
    /// `x op y`
    Binary(BinOp, Place, Box<[Expr; 2]>),
    /// `f(x, ...)`, at least one argument.
    Call(Func, Place, Vec<Expr>),
    /// `x < y`
    Compare(CmpOp, Box<[Expr; 2]>),
    /// `a and b`
    And(Box<[Expr; 2]>),
    /// `a or b`
    Or(Box<[Expr; 2]>),
    /// `not a`
    Not(Box<Expr>),
}

impl Expr {
    /// Reads an expression with a number as its value, over the variables in `vars`.
    pub fn parse(text: &str, vars: &[Var]) -> Result<Self, Fault> {
        parse::number(text, vars)
    }

    /// Reads an expression with a truth value, over the variables in `vars`.
    pub fn parse_predicate(text: &str, vars: &[Var]) -> Result<Self, Fault> {
        parse::predicate(text, vars)
    }

    /// Whether `var` occurs.
    pub fn uses(&self, var: Var) -> bool {
        match self {
            Expr::Number(_) => false,
            Expr::Var(v) => *v == var,
            Expr::Neg(x) | Expr::Not(x) => x.uses(var),
            Expr::Binary(_, _, xs) | Expr::Compare(_, xs) | Expr::And(xs) | Expr::Or(xs) => {
                xs.iter().any(|x| x.uses(var))
            }
            Expr::Call(_, _, xs) => xs.iter().any(|x| x.uses(var)),
        }
    }

    /// Whether no variable occurs.
    pub fn is_constant(&self) -> bool {
        !Var::ALL.iter().any(|&v| self.uses(v))
    }

    /// The same expression with the values of `vars` put in.
    pub fn substitute(&self, vars: &[Var], env: &Env) -> Self {
        let both = |xs: &[Expr; 2]| Box::new([xs[0].substitute(vars, env), xs[1].substitute(vars, env)]);
        match self {
            Expr::Number(x) => Expr::Number(*x),
            Expr::Var(v) if vars.contains(v) => Expr::Number(env.values[*v as usize]),
            Expr::Var(v) => Expr::Var(*v),
            Expr::Neg(x) => Expr::Neg(Box::new(x.substitute(vars, env))),
            Expr::Binary(op, place, xs) => Expr::Binary(*op, *place, both(xs)),
            Expr::Call(f, place, xs) => Expr::Call(*f, *place, xs.iter().map(|x| x.substitute(vars, env)).collect()),
            Expr::Compare(op, xs) => Expr::Compare(*op, both(xs)),
            Expr::And(xs) => Expr::And(both(xs)),
            Expr::Or(xs) => Expr::Or(both(xs)),
            Expr::Not(x) => Expr::Not(Box::new(x.substitute(vars, env))),
        }
    }

    /// The value of a number expression.
    pub fn eval(&self, env: &Env) -> Result<f64, Fault> {
        self.number(env).map_err(|(kind, place)| kind.describe(place))
    }

    /// The value, rounded down: what stands for an integer.
    pub fn eval_integer(&self, env: &Env) -> Result<i64, Fault> {
        Ok(self.eval(env)?.floor() as i64)
    }

    /// The truth of a predicate. `and` and `or` leave their right side alone when the left decides, so
    /// `q > 0 and k % q == 0` is defined at q = 0. Where the evaluation is undefined (a division by zero, a
    /// root of a negative number, an overflow) the predicate does not hold.
    pub fn holds(&self, env: &Env) -> bool {
        self.truth(env).unwrap_or(false)
    }

    fn truth(&self, env: &Env) -> Result<bool, (FaultKind, Place)> {
        match self {
            Expr::Compare(op, xs) => Ok(op.apply(xs[0].number(env)?, xs[1].number(env)?)),
            Expr::And(xs) => Ok(xs[0].truth(env)? && xs[1].truth(env)?),
            Expr::Or(xs) => Ok(xs[0].truth(env)? || xs[1].truth(env)?),
            Expr::Not(x) => Ok(!x.truth(env)?),
            // Only a hand-made tree gets here; a number holds where it is not zero.
            Expr::Number(_) | Expr::Var(_) | Expr::Neg(_) | Expr::Binary(..) | Expr::Call(..) => {
                Ok(self.number(env)? != 0.0)
            }
        }
    }

    fn number(&self, env: &Env) -> Result<f64, (FaultKind, Place)> {
        match self {
            Expr::Number(x) => Ok(*x),
            Expr::Var(v) => Ok(env.values[*v as usize]),
            Expr::Neg(x) => Ok(-x.number(env)?),
            Expr::Binary(op, place, xs) => {
                op.apply(xs[0].number(env)?, xs[1].number(env)?).map_err(|kind| (kind, *place))
            }
            Expr::Call(f, place, xs) => {
                let mut value = xs[0].number(env)?;
                for x in &xs[1..] {
                    let x = x.number(env)?;
                    value = if *f == Func::Min { value.min(x) } else { value.max(x) };
                }
                f.apply(value).map_err(|kind| (kind, *place))
            }
            Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => Ok(f64::from(u8::from(self.truth(env)?))),
        }
    }

    fn precedence(&self) -> u8 {
        match self {
            Expr::Or(_) => 0,
            Expr::And(_) => 1,
            Expr::Not(_) => 2,
            Expr::Compare(..) => 3,
            Expr::Binary(BinOp::Add | BinOp::Sub, ..) => 4,
            Expr::Binary(BinOp::Mul | BinOp::Div | BinOp::FloorDiv | BinOp::Mod, ..) => 5,
            Expr::Neg(_) => 6,
            // A negative number arises by substitution and prints like a negation.
            Expr::Number(x) if x.is_sign_negative() => 6,
            Expr::Binary(BinOp::Pow, ..) => 7,
            Expr::Number(_) | Expr::Var(_) | Expr::Call(..) => 8,
        }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, least: u8) -> fmt::Result {
        if self.precedence() < least {
            write!(f, "(")?;
            self.print(f, 0)?;
            return write!(f, ")");
        }
        let infix = |f: &mut fmt::Formatter<'_>, xs: &[Expr; 2], op: &str, left: u8, right: u8| {
            xs[0].print(f, left)?;
            write!(f, " {op} ")?;
            xs[1].print(f, right)
        };
        match self {
            Expr::Number(x) => write!(f, "{x}"),
            Expr::Var(v) => write!(f, "{}", v.name()),
            Expr::Neg(x) => {
                write!(f, "-")?;
                x.print(f, 6)
            }
            Expr::Binary(BinOp::Pow, _, xs) => infix(f, xs, "**", 8, 6),
            Expr::Binary(op, _, xs) => infix(f, xs, op.text(), self.precedence(), self.precedence() + 1),
            Expr::Call(func, _, xs) => {
                write!(f, "{}(", func.name())?;
                for (i, x) in xs.iter().enumerate() {
                    write!(f, "{}", if i > 0 { ", " } else { "" })?;
                    x.print(f, 4)?;
                }
                write!(f, ")")
            }
            Expr::Compare(op, xs) => infix(f, xs, op.text(), 4, 4),
            Expr::And(xs) => infix(f, xs, "and", 1, 2),
            Expr::Or(xs) => infix(f, xs, "or", 0, 1),
            Expr::Not(x) => {
                write!(f, "not ")?;
                x.print(f, 2)
            }
        }
    }
}

/// Prints with as few parentheses as reading it back needs.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, 0)
    }
}

/// Why an operation has no value. Kept apart from [`Fault`], which owns text, because predicates meet it
/// point by point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultKind {
    ZeroDivision,
    NotANumber,
    TooLarge,
}

impl FaultKind {
    fn describe(self, place: Place) -> Fault {
        let (message, expected) = match self {
            FaultKind::ZeroDivision => ("division by zero", "a divisor that is not zero; `max(1, ...)` keeps it so"),
            FaultKind::NotANumber => ("the result is not a number", "arguments for which this operation is defined"),
            FaultKind::TooLarge => ("the result is too large", "a magnitude below 2**53"),
        };
        Fault { place, message: message.into(), expected: expected.into() }
    }
}

fn checked(x: f64) -> Result<f64, FaultKind> {
    if x.is_nan() {
        Err(FaultKind::NotANumber)
    } else if x.abs() < LIMIT {
        Ok(x)
    } else {
        Err(FaultKind::TooLarge)
    }
}

impl BinOp {
    /// The symbol.
    pub fn text(self) -> &'static str {
        match self {
            BinOp::Add => "+",
            BinOp::Sub => "-",
            BinOp::Mul => "*",
            BinOp::Div => "/",
            BinOp::FloorDiv => "//",
            BinOp::Mod => "%",
            BinOp::Pow => "**",
        }
    }

    fn apply(self, x: f64, y: f64) -> Result<f64, FaultKind> {
        let divides = matches!(self, BinOp::Div | BinOp::FloorDiv | BinOp::Mod);
        if y == 0.0 && divides || self == BinOp::Pow && x == 0.0 && y < 0.0 {
            return Err(FaultKind::ZeroDivision);
        }
        checked(match self {
            BinOp::Add => x + y,
            BinOp::Sub => x - y,
            BinOp::Mul => x * y,
            BinOp::Div => x / y,
            // By way of the exact remainder: x / y, rounded to nearest, may already be the next integer.
            BinOp::FloorDiv => ((x - modulo(x, y)) / y).round(),
            BinOp::Mod => modulo(x, y),
            BinOp::Pow => power(x, y),
        })
    }
}

fn modulo(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
}

/// Integer exponents by repeated squaring, which rounds the same way on every machine; `powf` need not.
fn power(x: f64, y: f64) -> f64 {
    if y.fract() != 0.0 || y.abs() > 1100.0 {
        return x.powf(y);
    }
    let (mut base, mut exponent, mut result) = (x, y.abs() as u32, 1.0);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    if y < 0.0 { 1.0 / result } else { result }
}

impl CmpOp {
    /// The symbol.
    pub fn text(self) -> &'static str {
        match self {
            CmpOp::Lt => "<",
            CmpOp::Le => "<=",
            CmpOp::Gt => ">",
            CmpOp::Ge => ">=",
            CmpOp::Eq => "==",
            CmpOp::Ne => "!=",
        }
    }

    /// Whether it holds; with NaN only `!=` does.
    pub fn apply(self, x: f64, y: f64) -> bool {
        match self {
            CmpOp::Lt => x < y,
            CmpOp::Le => x <= y,
            CmpOp::Gt => x > y,
            CmpOp::Ge => x >= y,
            CmpOp::Eq => x == y,
            CmpOp::Ne => x != y,
        }
    }
}

impl Func {
    /// The function of its (already combined) argument.
    fn apply(self, x: f64) -> Result<f64, FaultKind> {
        checked(match self {
            Func::Min | Func::Max => x,
            Func::Floor => x.floor(),
            Func::Ceil => x.ceil(),
            Func::Round => x.round_ties_even(),
            Func::Sqrt => x.sqrt(),
            Func::Log2 if x <= 0.0 => f64::NAN,
            Func::Log2 => x.log2(),
            Func::Abs => x.abs(),
        })
    }
}

#[cfg(test)]
mod tests;

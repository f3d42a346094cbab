//! The language of score mods: `s - 0.1 * abs(q - k)`, `if(q >= k, s + rel[h, q - k], s)`.
//!
//! In: the text of a scalar and the inputs that it may index. Out: a [`Term`], a tree whose value is a real number.
//! Unlike [`Expr`], which gives integers at compile time, a term has a value for every pair of query and key, so
//! nothing in it is a fault: a division by zero is infinite or NaN, as IEEE 754 has it. What stands between the
//! brackets of an input is an [`Expr`], since indices are integers.

use std::fmt;

use crate::spec::expr::{BinOp, CmpOp, Env, Expr, Place, Var};

/// Largest whole exponent of `**`.
pub const MAX_EXPONENT: f64 = 64.0;

/// A function of real numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TermFunc {
    /// e^x
    Exp,
    /// Natural logarithm.
    Log,
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e^−x)
    Sigmoid,
    /// Square root.
    Sqrt,
    /// Magnitude.
    Abs,
    /// Rounded down.
    Floor,
    /// Smallest of one or more.
    Min,
    /// Largest of one or more.
    Max,
}

impl TermFunc {
    /// All functions with their names.
    pub const ALL: [(&'static str, TermFunc); 9] = [
        ("exp", TermFunc::Exp),
        ("log", TermFunc::Log),
        ("tanh", TermFunc::Tanh),
        ("sigmoid", TermFunc::Sigmoid),
        ("sqrt", TermFunc::Sqrt),
        ("abs", TermFunc::Abs),
        ("floor", TermFunc::Floor),
        ("min", TermFunc::Min),
        ("max", TermFunc::Max),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("", |(name, _)| name)
    }

    /// Whether it takes more than one argument.
    pub fn is_variadic(self) -> bool {
        matches!(self, Self::Min | Self::Max)
    }
}

/// An integer expression between the brackets of an input, with its place in the term's text.
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    /// The expression, over lengths, head and positions.
    pub expr: Expr,
    /// Where it stands.
    pub place: Place,
}

/// An element of an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// Which input, by its place in the spec.
    pub input: usize,
    /// The input's name.
    pub name: String,
    /// One index for each axis.
    pub index: Vec<Index>,
}

/// A real-valued expression over the score, positions, head, lengths and inputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Term {
    /// A number, not negative when parsed.
    Number(f64),
    /// `s`, the score so far.
    Score,
    /// A position, the head or a length.
    Var(Var),
    /// `-x`
    Neg(Box<Term>),
    /// `x op y`; the right side of `**` is a whole number from 0 to 64.
    Binary(BinOp, Box<[Term; 2]>),
    /// `f(x, ...)`, at least one argument.
    Call(TermFunc, Vec<Term>),
    /// `rel[h, q - k]`
    Element(Element),
    /// `if(condition, a, b)`
    If(Box<Condition>, Box<[Term; 2]>),
}

/// A truth value, under `if`.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// `x < y`
    Compare(CmpOp, Box<[Term; 2]>),
    /// `a and b`
    And(Box<[Condition; 2]>),
    /// `a or b`
    Or(Box<[Condition; 2]>),
    /// `not a`
    Not(Box<Condition>),
}

impl Term {
    /// The parts below this node, conditions looked through.
    pub fn children(&self) -> Vec<&Term> {
        match self {
            Term::Number(_) | Term::Score | Term::Var(_) | Term::Element(_) => Vec::new(),
            Term::Neg(x) => vec![x],
            Term::Binary(_, xs) => xs.iter().collect(),
            Term::Call(_, xs) => xs.iter().collect(),
            Term::If(condition, xs) => {
                let mut all = condition.terms();
                all.extend(xs.iter());
                all
            }
        }
    }

    /// Whether any node below and with this one satisfies `test`.
    pub fn any(&self, test: &impl Fn(&Term) -> bool) -> bool {
        test(self) || self.children().into_iter().any(|child| child.any(test))
    }

    /// Whether `var` occurs, in indices too.
    pub fn uses(&self, var: Var) -> bool {
        self.any(&|term| match term {
            Term::Var(v) => *v == var,
            Term::Element(element) => element.index.iter().any(|index| index.expr.uses(var)),
            _ => false,
        })
    }

    /// Whether the score occurs.
    pub fn uses_score(&self) -> bool {
        self.any(&|term| matches!(term, Term::Score))
    }

    /// Runs `change` on every element of an input, up to the first error.
    pub fn for_elements<E>(&mut self, change: &mut impl FnMut(&mut Element) -> Result<(), E>) -> Result<(), E> {
        match self {
            Term::Number(_) | Term::Score | Term::Var(_) => Ok(()),
            Term::Element(element) => change(element),
            Term::Neg(x) => x.for_elements(change),
            Term::Binary(_, xs) => xs.iter_mut().try_for_each(|x| x.for_elements(change)),
            Term::Call(_, xs) => xs.iter_mut().try_for_each(|x| x.for_elements(change)),
            Term::If(condition, xs) => {
                condition.for_elements(change)?;
                xs.iter_mut().try_for_each(|x| x.for_elements(change))
            }
        }
    }

    /// The elements of inputs that it reads.
    pub fn elements(&self) -> Vec<&Element> {
        match self {
            Term::Element(element) => vec![element],
            _ => self.children().into_iter().flat_map(Term::elements).collect(),
        }
    }

    /// The same term with the values of `vars` put in.
    pub fn substitute(&self, vars: &[Var], env: &Env) -> Self {
        let both = |xs: &[Term; 2]| Box::new([xs[0].substitute(vars, env), xs[1].substitute(vars, env)]);
        match self {
            Term::Number(x) => Term::Number(*x),
            Term::Score => Term::Score,
            Term::Var(v) if vars.contains(v) => Term::Number(env.values[*v as usize]),
            Term::Var(v) => Term::Var(*v),
            Term::Neg(x) => Term::Neg(Box::new(x.substitute(vars, env))),
            Term::Binary(op, xs) => Term::Binary(*op, both(xs)),
            Term::Call(f, xs) => Term::Call(*f, xs.iter().map(|x| x.substitute(vars, env)).collect()),
            Term::Element(element) => Term::Element(element.substitute(vars, env)),
            Term::If(condition, xs) => Term::If(Box::new(condition.substitute(vars, env)), both(xs)),
        }
    }

    fn precedence(&self) -> u8 {
        match self {
            Term::Binary(BinOp::Add | BinOp::Sub, _) => 0,
            Term::Binary(BinOp::Mul | BinOp::Div | BinOp::FloorDiv | BinOp::Mod, _) => 1,
            Term::Neg(_) => 2,
            // A negative number arises by substitution and prints like a negation.
            Term::Number(x) if x.is_sign_negative() => 2,
            Term::Binary(BinOp::Pow, _) => 3,
            Term::Number(_) | Term::Score | Term::Var(_) | Term::Call(..) | Term::Element(_) | Term::If(..) => 4,
        }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, least: u8) -> fmt::Result {
        if self.precedence() < least {
            return write!(f, "({self})");
        }
        match self {
            Term::Number(x) => write!(f, "{x}"),
            Term::Score => write!(f, "s"),
            Term::Var(v) => write!(f, "{}", v.name()),
            Term::Neg(x) => {
                write!(f, "-")?;
                x.print(f, 2)
            }
            Term::Binary(op, xs) => {
                let (left, right) = if *op == BinOp::Pow { (4, 4) } else { (self.precedence(), self.precedence() + 1) };
                xs[0].print(f, left)?;
                write!(f, " {} ", op.text())?;
                xs[1].print(f, right)
            }
            Term::Call(func, xs) => {
                write!(f, "{}(", func.name())?;
                for (i, x) in xs.iter().enumerate() {
                    write!(f, "{}{x}", if i > 0 { ", " } else { "" })?;
                }
                write!(f, ")")
            }
            Term::Element(element) => write!(f, "{element}"),
            Term::If(condition, xs) => write!(f, "if({condition}, {}, {})", xs[0], xs[1]),
        }
    }
}

/// Prints with as few parentheses as reading it back needs.
impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, 0)
    }
}

impl Element {
    /// The same element with the values of `vars` put in.
    pub fn substitute(&self, vars: &[Var], env: &Env) -> Self {
        let index = self.index.iter().map(|i| Index { expr: i.expr.substitute(vars, env), place: i.place });
        Self { input: self.input, name: self.name.clone(), index: index.collect() }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index: Vec<String> = self.index.iter().map(|index| index.expr.to_string()).collect();
        write!(f, "{}[{}]", self.name, index.join(", "))
    }
}

impl Condition {
    fn for_elements<E>(&mut self, change: &mut impl FnMut(&mut Element) -> Result<(), E>) -> Result<(), E> {
        match self {
            Condition::Compare(_, xs) => xs.iter_mut().try_for_each(|x| x.for_elements(change)),
            Condition::And(xs) | Condition::Or(xs) => xs.iter_mut().try_for_each(|x| x.for_elements(change)),
            Condition::Not(x) => x.for_elements(change),
        }
    }

    fn terms(&self) -> Vec<&Term> {
        match self {
            Condition::Compare(_, xs) => xs.iter().collect(),
            Condition::And(xs) | Condition::Or(xs) => xs.iter().flat_map(Condition::terms).collect(),
            Condition::Not(x) => x.terms(),
        }
    }

    fn substitute(&self, vars: &[Var], env: &Env) -> Self {
        let both = |xs: &[Condition; 2]| Box::new([xs[0].substitute(vars, env), xs[1].substitute(vars, env)]);
        match self {
            Condition::Compare(op, xs) => {
                Condition::Compare(*op, Box::new([xs[0].substitute(vars, env), xs[1].substitute(vars, env)]))
            }
            Condition::And(xs) => Condition::And(both(xs)),
            Condition::Or(xs) => Condition::Or(both(xs)),
            Condition::Not(x) => Condition::Not(Box::new(x.substitute(vars, env))),
        }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, least: u8) -> fmt::Result {
        let own = match self {
            Condition::Or(_) => 0,
            Condition::And(_) => 1,
            Condition::Not(_) => 2,
            Condition::Compare(..) => 3,
        };
        if own < least {
            return write!(f, "({self})");
        }
        let infix = |f: &mut fmt::Formatter<'_>, xs: &[Condition; 2], op: &str| {
            xs[0].print(f, own)?;
            write!(f, " {op} ")?;
            xs[1].print(f, own + 1)
        };
        match self {
            Condition::Compare(op, xs) => write!(f, "{} {} {}", xs[0], op.text(), xs[1]),
            Condition::And(xs) => infix(f, xs, "and"),
            Condition::Or(xs) => infix(f, xs, "or"),
            Condition::Not(x) => {
                write!(f, "not ")?;
                x.print(f, 2)
            }
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, 0)
    }
}

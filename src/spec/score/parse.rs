//! Text to [`Term`]: a descent over the tokens of [`crate::spec::expr`].
//!
//! Refused, each with its place: unknown names, functions and inputs (with the nearest known), inputs without
//! their brackets or with another number of indices than axes, a condition where a number stands and the reverse,
//! exponents that are not whole numbers, texts nested too deeply.

use super::term::{Condition, Element, Index, MAX_EXPONENT, Term, TermFunc};
use crate::spec::expr::{BinOp, CmpOp, Fault, MAX_DEPTH, Parser, Place, Token, Var, fault};
use crate::spec::nearest;

/// An input that a term may index: its name and its number of axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The name.
    pub name: String,
    /// Axes, at least 1.
    pub rank: usize,
}

/// Reads a term over `inputs`.
pub fn term(text: &str, inputs: &[Signature]) -> Result<Term, Fault> {
    let mut parser = TermParser { tokens: Parser::new(text, &Var::ALL)?, inputs, depth: 0 };
    if *parser.tokens.peek() == Token::End {
        return Err(fault(
            parser.tokens.place(),
            "the expression is empty",
            "an expression, such as `s - 0.1 * (q - k)`",
        ));
    }
    let (term, place) = parser.any()?;
    if *parser.tokens.peek() != Token::End {
        let message = format!("{} does not continue the expression", parser.tokens.show());
        return Err(fault(parser.tokens.place(), message, "an operator or the end"));
    }
    number(term, place)
}

struct TermParser<'a> {
    tokens: Parser<'a>,
    inputs: &'a [Signature],
    depth: u32,
}

/// What was read: only `if` takes a condition, so types are told apart as soon as possible.
enum Read {
    Term(Term),
    Condition(Condition),
}

/// With the place to point at when it has the wrong type.
type Placed = (Read, Place);

fn number(read: Read, place: Place) -> Result<Term, Fault> {
    match read {
        Read::Term(term) => Ok(term),
        Read::Condition(_) => {
            Err(fault(place, "a condition stands where a number belongs", "a number, such as `if(condition, a, b)`"))
        }
    }
}

fn truth(read: Read, place: Place) -> Result<Condition, Fault> {
    match read {
        Read::Condition(condition) => Ok(condition),
        Read::Term(_) => {
            Err(fault(place, "a number stands where a condition belongs", "a comparison, such as `k <= q`"))
        }
    }
}

impl TermParser<'_> {
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.depth == MAX_DEPTH {
            let expected = format!("at most {MAX_DEPTH} levels of parentheses, signs and `not`");
            return Err(fault(self.tokens.place(), "the expression is nested too deeply", expected));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn any(&mut self) -> Result<Placed, Fault> {
        self.join("or", Self::and, |xs| Condition::Or(Box::new(xs)))
    }

    fn and(&mut self) -> Result<Placed, Fault> {
        self.join("and", Self::not, |xs| Condition::And(Box::new(xs)))
    }

    fn join(
        &mut self,
        word: &str,
        inner: fn(&mut Self) -> Result<Placed, Fault>,
        joined: fn([Condition; 2]) -> Condition,
    ) -> Result<Placed, Fault> {
        let (mut left, mut at) = inner(self)?;
        let mut links = 0;
        while let Some(place) = self.tokens.take_word(word) {
            let (right, right_at) = inner(self)?;
            self.tokens.chain_limit(links, place)?;
            links += 1;
            left = Read::Condition(joined([truth(left, at)?, truth(right, right_at)?]));
            at = place;
        }
        Ok((left, at))
    }

    fn not(&mut self) -> Result<Placed, Fault> {
        let Some(place) = self.tokens.take_word("not") else { return self.comparison() };
        let (inner, at) = self.deeper(Self::not)?;
        Ok((Read::Condition(Condition::Not(Box::new(truth(inner, at)?))), place))
    }

    fn comparison(&mut self) -> Result<Placed, Fault> {
        const OPS: [&str; 6] = ["<", "<=", ">", ">=", "==", "!="];
        let (left, left_at) = self.sum()?;
        let Some((symbol, place)) = self.tokens.take(&OPS) else { return Ok((left, left_at)) };
        let (right, right_at) = self.sum()?;
        if let Some((second, place)) = self.tokens.take(&OPS) {
            let expected = format!("two comparisons joined by `and`, such as `a {symbol} b and b {second} c`");
            return Err(fault(place, "comparisons cannot be chained", expected));
        }
        let op = match symbol {
            "<" => CmpOp::Lt,
            "<=" => CmpOp::Le,
            ">" => CmpOp::Gt,
            ">=" => CmpOp::Ge,
            "==" => CmpOp::Eq,
            _ => CmpOp::Ne,
        };
        let both = [number(left, left_at)?, number(right, right_at)?];
        Ok((Read::Condition(Condition::Compare(op, Box::new(both))), place))
    }

    fn chain(
        &mut self,
        symbols: &[&'static str],
        inner: fn(&mut Self) -> Result<Placed, Fault>,
    ) -> Result<Placed, Fault> {
        let (mut left, mut at) = inner(self)?;
        let mut links = 0;
        while let Some((symbol, place)) = self.tokens.take(symbols) {
            let (right, right_at) = inner(self)?;
            self.tokens.chain_limit(links, place)?;
            links += 1;
            let op = match symbol {
                "+" => BinOp::Add,
                "-" => BinOp::Sub,
                "*" => BinOp::Mul,
                "/" => BinOp::Div,
                "//" => BinOp::FloorDiv,
                _ => BinOp::Mod,
            };
            let both = [number(left, at)?, number(right, right_at)?];
            left = Read::Term(Term::Binary(op, Box::new(both)));
            at = place;
        }
        Ok((left, at))
    }

    fn sum(&mut self) -> Result<Placed, Fault> {
        self.chain(&["+", "-"], Self::product)
    }

    fn product(&mut self) -> Result<Placed, Fault> {
        self.chain(&["*", "/", "//", "%"], Self::sign)
    }

    fn sign(&mut self) -> Result<Placed, Fault> {
        let Some((symbol, place)) = self.tokens.take(&["-", "+"]) else { return self.power() };
        let (inner, at) = self.deeper(Self::sign)?;
        let inner = number(inner, at)?;
        Ok((Read::Term(if symbol == "-" { Term::Neg(Box::new(inner)) } else { inner }), place))
    }

    fn power(&mut self) -> Result<Placed, Fault> {
        let (base, base_at) = self.atom()?;
        let Some((_, place)) = self.tokens.take(&["**"]) else { return Ok((base, base_at)) };
        let (exponent, at) = self.atom()?;
        match number(exponent, at)? {
            Term::Number(x) if x.fract() == 0.0 && x <= MAX_EXPONENT => {
                let both = [number(base, base_at)?, Term::Number(x)];
                Ok((Read::Term(Term::Binary(BinOp::Pow, Box::new(both))), place))
            }
            _ => {
                let expected = format!("a whole number from 0 to {MAX_EXPONENT}; `exp(y * log(x))` takes any y");
                Err(fault(at, "this exponent is not a whole number", expected))
            }
        }
    }

    fn atom(&mut self) -> Result<Placed, Fault> {
        let place = self.tokens.place();
        match self.tokens.peek().clone() {
            Token::Number(x) => {
                self.tokens.advance();
                Ok((Read::Term(Term::Number(x)), place))
            }
            Token::Symbol("(") => {
                self.tokens.advance();
                let inner = self.deeper(Self::any)?;
                self.close(place, ")")?;
                Ok(inner)
            }
            Token::Name(name) => {
                self.tokens.advance();
                match *self.tokens.peek() {
                    Token::Symbol("(") => self.call(&name, place),
                    Token::Symbol("[") => self.element(&name, place),
                    _ => Ok((Read::Term(self.variable(&name, place)?), place)),
                }
            }
            Token::Symbol(_) | Token::End => {
                let message = format!("{} stands where a value belongs", self.tokens.show());
                Err(fault(place, message, "a number, a name or a parenthesis"))
            }
        }
    }

    fn close(&mut self, open: Place, with: &'static str) -> Result<(), Fault> {
        if self.tokens.take(&[with]).is_some() {
            return Ok(());
        }
        if *self.tokens.peek() == Token::End {
            let message = if with == ")" { "the parenthesis is not closed" } else { "the bracket is not closed" };
            return Err(fault(open, message, format!("`{with}`")));
        }
        let message = format!("{} stands where `{with}` belongs", self.tokens.show());
        Err(fault(self.tokens.place(), message, format!("an operator or `{with}`")))
    }

    fn variable(&self, name: &str, place: Place) -> Result<Term, Fault> {
        if name == "s" {
            return Ok(Term::Score);
        }
        if let Some(&var) = Var::ALL.iter().find(|v| v.name() == name) {
            return Ok(Term::Var(var));
        }
        if let Some(input) = self.inputs.iter().find(|input| input.name == name) {
            let index = vec!["..."; input.rank].join(", ");
            return Err(fault(place, format!("`{name}` is an input"), format!("an element of it, `{name}[{index}]`")));
        }
        if name == "if" || TermFunc::ALL.iter().any(|(f, _)| *f == name) {
            return Err(fault(place, format!("`{name}` is a function"), format!("arguments, such as `{name}(s)`")));
        }
        let known = "one of `s`, `q`, `k`, `h`, `n`, `m`, `d`, or an element of an input";
        let expected = match nearest(name, self.inputs.iter().map(|input| input.name.as_str())) {
            Some(near) => format!("`{near}[...]`"),
            None => known.to_owned(),
        };
        Err(fault(place, format!("unknown name `{name}`"), expected))
    }

    fn call(&mut self, name: &str, place: Place) -> Result<Placed, Fault> {
        let func = TermFunc::ALL.iter().find(|(f, _)| *f == name).map(|&(_, func)| func);
        if func.is_none() && name != "if" {
            let names = TermFunc::ALL.map(|(f, _)| f);
            let expected = match nearest(name, names.into_iter().chain(["if"])) {
                Some(near) => format!("`{near}`"),
                None => format!("one of {}, if", names.join(", ")),
            };
            return Err(fault(place, format!("unknown function `{name}`"), expected));
        }
        let open = self.tokens.place();
        self.tokens.advance();
        if *self.tokens.peek() == Token::Symbol(")") {
            return Err(fault(self.tokens.place(), format!("`{name}` needs an argument"), format!("`{name}(...)`")));
        }
        let Some(func) = func else {
            let (condition, at) = self.deeper(Self::any)?;
            let condition = truth(condition, at)?;
            let yes = self.branch(place)?;
            let no = self.branch(place)?;
            self.close(open, ")")?;
            return Ok((Read::Term(Term::If(Box::new(condition), Box::new([yes, no]))), place));
        };
        let mut args = Vec::new();
        loop {
            let (arg, at) = self.deeper(Self::any)?;
            args.push(number(arg, at)?);
            let Some((_, comma)) = self.tokens.take(&[","]) else { break };
            if !func.is_variadic() {
                return Err(fault(comma, format!("`{name}` takes one argument"), "`)`"));
            }
        }
        self.close(open, ")")?;
        Ok((Read::Term(Term::Call(func, args)), place))
    }

    /// A comma and a value of `if`.
    fn branch(&mut self, place: Place) -> Result<Term, Fault> {
        if self.tokens.take(&[","]).is_none() {
            return Err(fault(place, "`if` has too few arguments", "`if(condition, a, b)`"));
        }
        let (value, at) = self.deeper(Self::any)?;
        number(value, at)
    }

    fn element(&mut self, name: &str, place: Place) -> Result<Placed, Fault> {
        let Some(input) = self.inputs.iter().position(|input| input.name == name) else {
            let names = self.inputs.iter().map(|input| input.name.as_str());
            let expected = match nearest(name, names.clone()) {
                Some(near) => format!("`{near}`"),
                None if self.inputs.is_empty() => format!("`inputs: {{{name}: {{shape: [...]}}}}` in the spec"),
                None => format!("one of {}", names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
            };
            return Err(fault(place, format!("no input is called `{name}`"), expected));
        };
        let open = self.tokens.place();
        self.tokens.advance();
        let mut index = Vec::new();
        loop {
            let at = self.tokens.place();
            if matches!(self.tokens.peek(), Token::Name(name) if name == "s") {
                return Err(fault(at, "an index cannot depend on the score", "positions, the head and lengths"));
            }
            let (expr, place) = self.tokens.embedded()?;
            index.push(Index { expr, place });
            if self.tokens.take(&[","]).is_none() {
                break;
            }
        }
        self.close(open, "]")?;
        let rank = self.inputs[input].rank;
        if index.len() != rank {
            let message =
                format!("`{name}` has {rank} {}, not {}", if rank == 1 { "axis" } else { "axes" }, index.len());
            let expected = format!("`{name}[{}]`", vec!["..."; rank].join(", "));
            return Err(fault(place, message, expected));
        }
        Ok((Read::Term(Term::Element(Element { input, name: name.to_owned(), index })), place))
    }
}

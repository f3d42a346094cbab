//! Text to [`Expr`]: a lexer and a descent over Python's precedence levels.
//!
//! Refused, each with its place: unknown names (with the nearest known), chained comparisons, a number where
//! a truth value stands and the reverse, texts that are too long or nested deeper than [`MAX_DEPTH`].

use crate::limits::Limit;

use super::{BinOp, CmpOp, Expr, Fault, Func, LIMIT, Place, Var};

/// Nested parentheses, signs and `not`s; bounds the recursion here and in every walk over the tree.
pub(in crate::spec) const MAX_DEPTH: u32 = 100;
/// Operators in a row on one level, which nest to the left; bounds the same recursion.
const MAX_CHAIN: usize = 512;

pub(super) fn number(text: &str, vars: &[Var]) -> Result<Expr, Fault> {
    let mut parser = Parser::new(text, vars)?;
    let (expr, place) = parser.whole()?;
    parser.want_number(&expr, place)?;
    Ok(expr)
}

pub(super) fn predicate(text: &str, vars: &[Var]) -> Result<Expr, Fault> {
    let mut parser = Parser::new(text, vars)?;
    let (expr, place) = parser.whole()?;
    parser.want_truth(&expr, place)?;
    Ok(expr)
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::spec) enum Token {
    Number(f64),
    Name(String),
    Symbol(&'static str),
    End,
}

// Brackets index the inputs of score mods; no other expression has a place for them.
const SYMBOLS: [&str; 18] =
    ["**", "//", "<=", ">=", "==", "!=", "+", "-", "*", "/", "%", "<", ">", "(", ")", "[", "]", ","];

/// A [`Fault`] at a place.
pub(in crate::spec) fn fault(place: Place, message: impl Into<String>, expected: impl Into<String>) -> Fault {
    Fault { place, message: message.into(), expected: expected.into() }
}

fn lex(text: &str) -> Result<Vec<(Token, Place)>, Fault> {
    let chars: Vec<char> = text.chars().collect();
    // Whoever reads a spec has checked its own limit; the largest bounds recursion wherever the text is from.
    if chars.len() as u64 > Limit::Expression.most() {
        let message = format!("the expression has {} characters", chars.len());
        return Err(fault(Place::default(), message, format!("at most {}", Limit::Expression.most())));
    }
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        if chars[i].is_whitespace() {
            i += 1;
            continue;
        }
        let start = i;
        let token = if chars[i].is_ascii_digit() || chars[i] == '.' {
            while i < chars.len() && (chars[i].is_ascii_digit() || chars[i] == '.') {
                i += 1;
            }
            if i < chars.len() && matches!(chars[i], 'e' | 'E') {
                let sign = usize::from(i + 1 < chars.len() && matches!(chars[i + 1], '+' | '-'));
                if chars.get(i + 1 + sign).is_some_and(char::is_ascii_digit) {
                    i += 1 + sign;
                    while i < chars.len() && chars[i].is_ascii_digit() {
                        i += 1;
                    }
                }
            }
            let digits: String = chars[start..i].iter().collect();
            let place = Place { offset: start as u32, width: (i - start) as u32 };
            match digits.parse::<f64>() {
                Ok(x) if x < LIMIT => Token::Number(x),
                Ok(_) => return Err(fault(place, "the number is too large", "a magnitude below 2**53")),
                Err(_) => return Err(fault(place, format!("`{digits}` is not a number"), "such as 64 or 0.5")),
            }
        } else if chars[i].is_alphabetic() || chars[i] == '_' {
            while i < chars.len() && (chars[i].is_alphanumeric() || chars[i] == '_') {
                i += 1;
            }
            Token::Name(chars[start..i].iter().collect())
        } else {
            let rest: String = chars[i..chars.len().min(i + 2)].iter().collect();
            let Some(&symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) else {
                let expected = if chars[i] == '=' { "`==`" } else { "an operator, a number, a name or a parenthesis" };
                let place = Place { offset: start as u32, width: 1 };
                return Err(fault(place, format!("`{}` is not part of an expression", chars[i]), expected));
            };
            i += symbol.len();
            Token::Symbol(symbol)
        };
        tokens.push((token, Place { offset: start as u32, width: (i - start) as u32 }));
    }
    tokens.push((Token::End, Place { offset: chars.len() as u32, width: 1 }));
    Ok(tokens)
}

/// The descent. Score mods have a grammar of their own ([`crate::spec::score`]) over the same tokens, with these
/// expressions inside.
pub(in crate::spec) struct Parser<'a> {
    tokens: Vec<(Token, Place)>,
    next: usize,
    depth: u32,
    vars: &'a [Var],
}

/// An expression with the place to point at when it has the wrong type.
type Placed = (Expr, Place);

impl<'a> Parser<'a> {
    /// Over the tokens of `text`, with the variables that may occur.
    pub fn new(text: &str, vars: &'a [Var]) -> Result<Self, Fault> {
        Ok(Self { tokens: lex(text)?, next: 0, depth: 0, vars })
    }

    /// The current token.
    pub fn peek(&self) -> &Token {
        &self.tokens[self.next].0
    }

    /// Its place.
    pub fn place(&self) -> Place {
        self.tokens[self.next].1
    }

    /// Steps over the current token; the end stays current.
    pub fn advance(&mut self) -> Place {
        let place = self.place();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        place
    }

    /// Steps over the current token where it is one of `symbols`.
    pub fn take(&mut self, symbols: &[&'static str]) -> Option<(&'static str, Place)> {
        match *self.peek() {
            Token::Symbol(s) if symbols.contains(&s) => Some((s, self.advance())),
            _ => None,
        }
    }

    /// Steps over the current token where it is this word.
    pub fn take_word(&mut self, word: &str) -> Option<Place> {
        matches!(self.peek(), Token::Name(name) if name == word).then(|| self.advance())
    }

    /// The current token, as messages call it.
    pub fn show(&self) -> String {
        match self.peek() {
            Token::Number(x) => format!("`{x}`"),
            Token::Name(name) => format!("`{name}`"),
            Token::Symbol(s) => format!("`{s}`"),
            Token::End => "the end of the expression".into(),
        }
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.depth == MAX_DEPTH {
            let expected = format!("at most {MAX_DEPTH} levels of parentheses, signs and `not`");
            return Err(fault(self.place(), "the expression is nested too deeply", expected));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn want_number(&self, expr: &Expr, place: Place) -> Result<(), Fault> {
        match expr {
            Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => {
                Err(fault(place, "a condition stands where a number belongs", "a number"))
            }
            _ => Ok(()),
        }
    }

    fn want_truth(&self, expr: &Expr, place: Place) -> Result<(), Fault> {
        match expr {
            Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => Ok(()),
            _ => Err(fault(place, "a number stands where a condition belongs", "a comparison, such as `k <= q`")),
        }
    }

    fn whole(&mut self) -> Result<Placed, Fault> {
        if *self.peek() == Token::End {
            return Err(fault(self.place(), "the expression is empty", "an expression, such as `max(32, n/64)`"));
        }
        let expr = self.or()?;
        if *self.peek() != Token::End {
            let message = format!("{} does not continue the expression", self.show());
            return Err(fault(self.place(), message, "an operator or the end"));
        }
        Ok(expr)
    }

    /// A number expression from the next token on, as far as it goes, with the place of all of it.
    pub fn embedded(&mut self) -> Result<Placed, Fault> {
        let start = self.place();
        let (expr, place) = self.or()?;
        self.want_number(&expr, place)?;
        let (_, last) = self.tokens[self.next.saturating_sub(1)];
        let width = (last.offset + last.width).saturating_sub(start.offset);
        Ok((expr, Place { offset: start.offset, width: width.max(1) }))
    }

    /// Refuses more than so many operators in a row.
    pub fn chain_limit(&self, links: usize, place: Place) -> Result<(), Fault> {
        if links < MAX_CHAIN {
            return Ok(());
        }
        Err(fault(place, "the expression has too many operators in a row", format!("at most {MAX_CHAIN}")))
    }

    fn or(&mut self) -> Result<Placed, Fault> {
        let mut left = self.and()?;
        let mut links = 0;
        while let Some(place) = self.take_word("or") {
            let right = self.and()?;
            self.want_truth(&left.0, left.1)?;
            self.want_truth(&right.0, right.1)?;
            self.chain_limit(links, place)?;
            links += 1;
            left = (Expr::Or(Box::new([left.0, right.0])), place);
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Placed, Fault> {
        let mut left = self.not()?;
        let mut links = 0;
        while let Some(place) = self.take_word("and") {
            let right = self.not()?;
            self.want_truth(&left.0, left.1)?;
            self.want_truth(&right.0, right.1)?;
            self.chain_limit(links, place)?;
            links += 1;
            left = (Expr::And(Box::new([left.0, right.0])), place);
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Placed, Fault> {
        let Some(place) = self.take_word("not") else { return self.comparison() };
        let inner = self.deeper(Self::not)?;
        self.want_truth(&inner.0, inner.1)?;
        Ok((Expr::Not(Box::new(inner.0)), place))
    }

    fn comparison(&mut self) -> Result<Placed, Fault> {
        const OPS: [&str; 6] = ["<", "<=", ">", ">=", "==", "!="];
        let left = self.sum()?;
        let Some((symbol, place)) = self.take(&OPS) else { return Ok(left) };
        let right = self.sum()?;
        self.want_number(&left.0, left.1)?;
        self.want_number(&right.0, right.1)?;
        if let Some((second, place)) = self.take(&OPS) {
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
        Ok((Expr::Compare(op, Box::new([left.0, right.0])), place))
    }

    fn binary(&self, op: BinOp, place: Place, left: Placed, right: Placed) -> Result<Placed, Fault> {
        self.want_number(&left.0, left.1)?;
        self.want_number(&right.0, right.1)?;
        Ok((Expr::Binary(op, place, Box::new([left.0, right.0])), place))
    }

    fn sum(&mut self) -> Result<Placed, Fault> {
        let mut left = self.product()?;
        let mut links = 0;
        while let Some((symbol, place)) = self.take(&["+", "-"]) {
            let right = self.product()?;
            self.chain_limit(links, place)?;
            links += 1;
            left = self.binary(if symbol == "+" { BinOp::Add } else { BinOp::Sub }, place, left, right)?;
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Placed, Fault> {
        let mut left = self.sign()?;
        let mut links = 0;
        while let Some((symbol, place)) = self.take(&["*", "/", "//", "%"]) {
            let right = self.sign()?;
            self.chain_limit(links, place)?;
            links += 1;
            let op = match symbol {
                "*" => BinOp::Mul,
                "/" => BinOp::Div,
                "//" => BinOp::FloorDiv,
                _ => BinOp::Mod,
            };
            left = self.binary(op, place, left, right)?;
        }
        Ok(left)
    }

    fn sign(&mut self) -> Result<Placed, Fault> {
        let Some((symbol, place)) = self.take(&["-", "+"]) else { return self.power() };
        let inner = self.deeper(Self::sign)?;
        self.want_number(&inner.0, inner.1)?;
        Ok((if symbol == "-" { Expr::Neg(Box::new(inner.0)) } else { inner.0 }, place))
    }

    fn power(&mut self) -> Result<Placed, Fault> {
        let base = self.atom()?;
        let Some((_, place)) = self.take(&["**"]) else { return Ok(base) };
        // Right-associative, and its right side may carry a sign: 2**-1.
        let exponent = self.deeper(Self::sign)?;
        self.binary(BinOp::Pow, place, base, exponent)
    }

    fn atom(&mut self) -> Result<Placed, Fault> {
        let place = self.place();
        match self.peek().clone() {
            Token::Number(x) => {
                self.advance();
                Ok((Expr::Number(x), place))
            }
            Token::Symbol("(") => {
                self.advance();
                let inner = self.deeper(Self::or)?;
                self.close(place)?;
                Ok(inner)
            }
            Token::Name(name) => {
                self.advance();
                if *self.peek() == Token::Symbol("(") { self.call(&name, place) } else { self.variable(&name, place) }
            }
            Token::Symbol(_) | Token::End => {
                let message = format!("{} stands where a value belongs", self.show());
                Err(fault(place, message, "a number, a name or a parenthesis"))
            }
        }
    }

    fn close(&mut self, open: Place) -> Result<(), Fault> {
        if self.take(&[")"]).is_some() {
            return Ok(());
        }
        if *self.peek() == Token::End {
            return Err(fault(open, "the parenthesis is not closed", "`)`"));
        }
        Err(fault(self.place(), format!("{} stands where `)` belongs", self.show()), "an operator or `)`"))
    }

    fn variable(&self, name: &str, place: Place) -> Result<Placed, Fault> {
        if let Some(&var) = self.vars.iter().find(|v| v.name() == name) {
            return Ok((Expr::Var(var), place));
        }
        if Func::ALL.iter().any(|(f, _)| *f == name) {
            return Err(fault(place, format!("`{name}` is a function"), format!("arguments, such as `{name}(n)`")));
        }
        let known: Vec<String> = self.vars.iter().map(|v| format!("`{}`", v.name())).collect();
        let message = match Var::ALL.iter().any(|v| v.name() == name) {
            true => format!("`{name}` is not defined here"),
            false => format!("unknown name `{name}`"),
        };
        Err(fault(place, message, format!("one of {}", known.join(", "))))
    }

    fn call(&mut self, name: &str, place: Place) -> Result<Placed, Fault> {
        let Some(&(_, func)) = Func::ALL.iter().find(|(f, _)| *f == name) else {
            let names = Func::ALL.map(|(f, _)| f);
            let expected = match crate::spec::nearest(name, names) {
                Some(near) => format!("`{near}`"),
                None => format!("one of {}", names.join(", ")),
            };
            return Err(fault(place, format!("unknown function `{name}`"), expected));
        };
        let open = self.advance();
        let mut args = Vec::new();
        if *self.peek() == Token::Symbol(")") {
            return Err(fault(self.place(), format!("`{name}` needs an argument"), format!("`{name}(...)`")));
        }
        loop {
            let arg = self.deeper(Self::or)?;
            self.want_number(&arg.0, arg.1)?;
            args.push(arg.0);
            let Some((_, comma)) = self.take(&[","]) else { break };
            if !matches!(func, Func::Min | Func::Max) {
                return Err(fault(comma, format!("`{name}` takes one argument"), "`)`"));
            }
        }
        self.close(open)?;
        Ok((Expr::Call(func, place, args), place))
    }
}

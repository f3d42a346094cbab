//! Indices: integer arithmetic, and proved to stay within their axes.
//!
//! In: an index over positions and head, lengths already put in. Out: the same in a form that code generation can
//! compute exactly in 32-bit integers, and the values that it can have. Sums and differences are taken as linear
//! forms, in which what occurs twice cancels: over q and k from 0 to n − 1, `q - k + n - 1` goes from 0 to 2n − 2 and
//! no further.

use std::collections::HashMap;

use crate::spec::expr::{BinOp, Bounds, Expr, Fault, Func, Interval, Place, Var, binary_bounds, call_bounds, fault};

/// What a whole number is that positions and their products may reach: every one is exact in f32, in which
/// divisions are computed.
pub(super) const EXACT: f64 = 16_777_216.0;

/// Rewrites an index into integer arithmetic: `+ - * // %`, `min max abs`, whole numbers, q, k and h.
pub(super) fn whole(expr: &Expr, place: Place) -> Result<Expr, Fault> {
    // What holds no position is a number by now, and is rounded down where it is all of the index.
    if let Some(value) = constant(expr)? {
        return Ok(Expr::Number(value.floor()));
    }
    match expr {
        // The result is rounded down, so a division at the top is one that rounds.
        Expr::Binary(BinOp::Div, at, xs) => Ok(Expr::Binary(BinOp::FloorDiv, *at, pair(xs, place)?)),
        _ => inner(expr, place),
    }
}

fn pair(xs: &[Expr; 2], place: Place) -> Result<Box<[Expr; 2]>, Fault> {
    Ok(Box::new([inner(&xs[0], place)?, inner(&xs[1], place)?]))
}

fn inner(expr: &Expr, place: Place) -> Result<Expr, Fault> {
    let refuse = |at: Place, what: String| {
        let expected = "integer arithmetic: `+ - * // %`, `floor(a / b)`, `min max abs`; a table of anything else can \
                        be an input";
        Err(fault(at, what, expected))
    };
    if let Some(value) = constant(expr)? {
        return match value.fract() == 0.0 {
            true => Ok(Expr::Number(value)),
            false => refuse(place, format!("{value} is no integer, and stands inside an index")),
        };
    }
    match expr {
        Expr::Number(x) => Ok(Expr::Number(*x)),
        Expr::Var(v) => Ok(Expr::Var(*v)),
        Expr::Neg(x) => Ok(Expr::Neg(Box::new(inner(x, place)?))),
        Expr::Binary(op @ (BinOp::Add | BinOp::Sub | BinOp::Mul | BinOp::FloorDiv | BinOp::Mod), at, xs) => {
            Ok(Expr::Binary(*op, *at, pair(xs, place)?))
        }
        Expr::Binary(op @ (BinOp::Div | BinOp::Pow), at, _) => {
            refuse(*at, format!("`{}` of positions stands inside an index", op.text()))
        }
        Expr::Call(Func::Floor, _, xs) => match &xs[0] {
            Expr::Binary(BinOp::Div, at, xs) => Ok(Expr::Binary(BinOp::FloorDiv, *at, pair(xs, place)?)),
            x => inner(x, place),
        },
        // Of an integer, these are the integer.
        Expr::Call(Func::Ceil | Func::Round, _, xs) => inner(&xs[0], place),
        Expr::Call(func @ (Func::Min | Func::Max | Func::Abs), at, xs) => {
            Ok(Expr::Call(*func, *at, xs.iter().map(|x| inner(x, place)).collect::<Result<_, _>>()?))
        }
        Expr::Call(func @ (Func::Sqrt | Func::Log2), at, _) => {
            refuse(*at, format!("`{}` of positions stands inside an index", func.name()))
        }
        Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => {
            refuse(place, "a condition stands inside an index".to_owned())
        }
    }
}

/// The value of an expression without positions.
fn constant(expr: &Expr) -> Result<Option<f64>, Fault> {
    if expr.is_constant() { expr.eval(&crate::spec::expr::Env::default()).map(Some) } else { Ok(None) }
}

/// Proves that an index in the form of [`whole`] stays within `0..extent`, and that 32-bit integers can compute it.
/// Returns its range.
pub(super) fn prove(expr: &Expr, place: Place, extent: usize, ranges: &Bounds) -> Result<Interval, Fault> {
    let range = Prover { ranges, place, known: HashMap::new() }.bounds(expr)?;
    if range.lo >= 0.0 && range.hi < extent as f64 {
        return Ok(range);
    }
    let message = format!("`{expr}` goes from {} to {}", range.lo, range.hi);
    let expected = match extent {
        0 => "an axis that is not empty".to_owned(),
        _ => format!("an index from 0 to {}; `max(0, min(..., {}))` keeps one there", extent - 1, extent - 1),
    };
    Err(fault(place, message, expected))
}

struct Prover<'a> {
    ranges: &'a Bounds,
    place: Place,
    /// What was found, by the node's address: sums ask for their parts twice.
    known: HashMap<*const Expr, Interval>,
}

impl<'a> Prover<'a> {
    /// Bounds on an index in the form of [`whole`], with a fault where 32-bit integers cannot compute it.
    fn bounds(&mut self, expr: &'a Expr) -> Result<Interval, Fault> {
        if let Some(&range) = self.known.get(&std::ptr::from_ref(expr)) {
            return Ok(range);
        }
        let range = self.parts(expr)?;
        if range.lo < f64::from(i32::MIN) || range.hi > f64::from(i32::MAX) {
            let message = format!("`{expr}` goes from {} to {}", range.lo, range.hi);
            return Err(fault(self.place, message, "an index whose parts fit 32-bit integers"));
        }
        self.known.insert(std::ptr::from_ref(expr), range);
        Ok(range)
    }

    fn parts(&mut self, expr: &'a Expr) -> Result<Interval, Fault> {
        Ok(match expr {
            Expr::Number(x) => Interval::new(*x, *x),
            Expr::Var(var) => self.ranges.ranges[*var as usize],
            Expr::Neg(x) => {
                let x = self.bounds(x)?;
                Interval::new(-x.hi, -x.lo)
            }
            Expr::Binary(op @ (BinOp::Add | BinOp::Sub | BinOp::Mul), _, xs) => {
                // Each part must be computable, whatever cancels in the sum.
                let parts = binary_bounds(*op, self.bounds(&xs[0])?, self.bounds(&xs[1])?);
                let form = Linear::of(expr);
                if form.terms.iter().any(|(term, _)| std::ptr::eq(*term, expr)) {
                    return Ok(parts);
                }
                let mut sum = Interval::new(form.constant, form.constant);
                for (term, factor) in form.terms {
                    let range = self.bounds(term)?;
                    let ends = [range.lo * factor, range.hi * factor];
                    sum = Interval::new(sum.lo + ends[0].min(ends[1]), sum.hi + ends[0].max(ends[1]));
                }
                Interval::new(sum.lo.max(parts.lo), sum.hi.min(parts.hi))
            }
            Expr::Binary(op, at, xs) => {
                let (x, y) = (self.bounds(&xs[0])?, self.bounds(&xs[1])?);
                let sides = format!("from {} to {}", y.lo, y.hi);
                if y.lo <= 0.0 && y.hi >= 0.0 {
                    let message = format!("`{}` may divide by zero: its right side goes {sides}", op.text());
                    return Err(fault(*at, message, "a divisor that is never 0, such as `max(1, ...)`"));
                }
                if [x, y].iter().any(|side| side.lo <= -EXACT || side.hi >= EXACT) {
                    let message = format!("`{}` of a number from {} to {} and one {sides}", op.text(), x.lo, x.hi);
                    return Err(fault(*at, message, format!("both sides between -{EXACT} and {EXACT}")));
                }
                let range = binary_bounds(*op, x, y);
                // The remainder of integers stays one below the divisor.
                match op {
                    BinOp::Mod if y.lo > 0.0 => Interval::new(range.lo, range.hi.min(y.hi - 1.0)),
                    BinOp::Mod => Interval::new(range.lo.max(y.lo + 1.0), range.hi),
                    _ => range,
                }
            }
            Expr::Call(func, _, xs) => {
                let mut value = self.bounds(&xs[0])?;
                for x in &xs[1..] {
                    let x = self.bounds(x)?;
                    value = match func {
                        Func::Min => Interval::new(value.lo.min(x.lo), value.hi.min(x.hi)),
                        _ => Interval::new(value.lo.max(x.lo), value.hi.max(x.hi)),
                    };
                }
                call_bounds(*func, value)
            }
            Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => Interval::new(0.0, 1.0),
        })
    }
}

/// A sum of products of a number and an expression that is no sum itself, each expression once.
#[derive(Debug, Default)]
pub struct Linear<'a> {
    /// Expression, factor; no factor is 0.
    pub terms: Vec<(&'a Expr, f64)>,
    /// What is added.
    pub constant: f64,
}

impl<'a> Linear<'a> {
    /// The linear form of an integer expression whose constant parts are numbers, as indices of
    /// [`ScoreMods`](super::ScoreMods) are.
    pub fn of(expr: &'a Expr) -> Self {
        let mut form = Self::default();
        form.add(expr, 1.0);
        form.terms.retain(|(_, factor)| *factor != 0.0);
        form
    }

    /// The factors of q, k and h, where nothing else occurs.
    pub fn of_positions(&self) -> Option<[f64; 3]> {
        let mut factors = [0.0; 3];
        for (expr, factor) in &self.terms {
            match expr {
                Expr::Var(Var::Q) => factors[0] += factor,
                Expr::Var(Var::K) => factors[1] += factor,
                Expr::Var(Var::H) => factors[2] += factor,
                _ => return None,
            }
        }
        Some(factors)
    }

    fn add(&mut self, expr: &'a Expr, factor: f64) {
        match expr {
            Expr::Number(x) => self.constant += factor * x,
            Expr::Neg(x) => self.add(x, -factor),
            Expr::Binary(BinOp::Add, _, xs) => xs.iter().for_each(|x| self.add(x, factor)),
            Expr::Binary(BinOp::Sub, _, xs) => {
                self.add(&xs[0], factor);
                self.add(&xs[1], -factor);
            }
            Expr::Binary(BinOp::Mul, _, xs) => match &**xs {
                [Expr::Number(by), x] | [x, Expr::Number(by)] => self.add(x, factor * by),
                _ => self.add_term(expr, factor),
            },
            _ => self.add_term(expr, factor),
        }
    }

    fn add_term(&mut self, expr: &'a Expr, factor: f64) {
        match self.terms.iter_mut().find(|(known, _)| *known == expr) {
            Some((_, sum)) => *sum += factor,
            None => self.terms.push((expr, factor)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::expr::Env;

    /// The range found for an index over q in 2..=9, k in 0..=20 and h in 0..=3.
    fn range(text: &str) -> Result<(f64, f64), String> {
        let expr = Expr::parse(text, &Var::ALL).map_err(|fault| fault.message)?;
        let place = Place::default();
        let expr = whole(&expr, place).map_err(|fault| fault.message)?;
        let ranges = Bounds::at(&Env::default()).with(Var::Q, 2, 9).with(Var::K, 0, 20).with(Var::H, 0, 3);
        let found = Prover { ranges: &ranges, place, known: HashMap::new() }.bounds(&expr);
        let found = found.map_err(|fault| fault.message)?;
        // Whatever is proved holds at every point.
        for (q, k, h) in (2..10).flat_map(|q| (0..21).flat_map(move |k| (0..4).map(move |h| (q, k, h)))) {
            let env = Env::default().with(Var::Q, q).with(Var::K, k).with(Var::H, h);
            let value = expr.eval(&env).expect("a value");
            assert!(value >= found.lo && value <= found.hi, "{text} is {value}");
        }
        Ok((found.lo, found.hi))
    }

    #[test]
    fn ranges_are_exact_where_it_matters() {
        let cases = [
            ("q - k + 20", 2.0, 29.0),
            ("q - k + k - q + h", 0.0, 3.0),
            ("(q - k) * 2 + 2 * k", 4.0, 18.0),
            ("3 * (q + 1) - -q", 11.0, 39.0),
            ("max(0, min(q - k, 5))", 0.0, 5.0),
            ("abs(q - k)", 0.0, 18.0),
            ("(q + k) % 8", 0.0, 7.0),
            ("(q - k) % -8", -7.0, 0.0),
            ("(q - k) // 4", -5.0, 2.0),
            ("q // 4 - q // 4 + k", 0.0, 20.0),
            ("q / 4", 0.0, 2.0),
            ("floor((q + k) / 3)", 0.0, 9.0),
            ("17 / 4", 4.0, 4.0),
            ("round(sqrt(16)) * k", 0.0, 80.0),
            ("q * k", 0.0, 180.0),
            ("k % max(1, h)", 0.0, 2.0),
        ];
        for (text, lo, hi) in cases {
            assert_eq!(range(text), Ok((lo, hi)), "{text}");
        }
    }

    #[test]
    fn what_integers_cannot_do_is_refused() {
        for text in [
            "k // h",
            "k % (q - 5)",
            "k * 0.5 + 1",
            "sqrt(k)",
            "log2(q) + 1",
            "k ** 2",
            "1 / k + 1",
            "q * 1e9",
            "k * 1e6 // 7",
        ] {
            assert!(range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deep_sums_are_proved_in_time() {
        let mut text = "k".to_owned();
        for _ in 0..45 {
            text = format!("(min({text} + k, 20) - k)");
        }
        assert!(range(&text).is_ok());
    }
}

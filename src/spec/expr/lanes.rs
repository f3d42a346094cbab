//! A predicate at 64 keys at once: `Expr` → postfix program → one bit a key.
//!
//! Exactly what [`Expr::holds`] says at each key. Every operation is a loop over 64 lanes, written for the
//! compiler's vectoriser and compiled once for each level of instruction set. Lanes in which something is
//! undefined are remembered as bits, and `and` and `or` forget those that their left side has decided.
//!
//! Remainders are the one operation whose scalar form does not vectorise. Where both sides are integers by
//! construction and small enough, `x - floor(x / y) * y` is exact up to one `y`, which is put right; all others
//! take the scalar way. A divisor that is the same in all lanes, as nearly all are, is divided by once.

use multiversion::multiversion;

use super::{BinOp, CmpOp, Env, Expr, Func, LIMIT, Var};

const LANES: usize = 64;

/// Magnitudes from here on, of either side, take the scalar way: below, `floor(x / y) * y` is exact.
const SMALL: f64 = LIMIT / 4.0;

/// A compiled predicate, with room to work in.
#[derive(Debug, Clone)]
pub struct LanePredicate {
    program: Vec<Op>,
    /// Numbers and truths that do not depend on the key.
    uniforms: Vec<Expr>,
    uniform_truths: Vec<Expr>,
    numbers: usize,
    truths: usize,
}

/// Room that evaluations share, and what they have in common for one query.
#[derive(Debug, Default)]
pub struct LaneStack {
    /// Values of `uniforms`; `None` where undefined.
    uniforms: Vec<Option<f64>>,
    uniform_truths: Vec<Truths>,
    numbers: Vec<Numbers>,
    truths: Vec<Truths>,
}

/// Aligned, so that no vector crosses a cache line.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Numbers {
    values: [f64; LANES],
    /// Lanes without a value; what stands in them is anything.
    undefined: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Truths {
    yes: u64,
    undefined: u64,
}

/// An operation on the two stacks.
#[derive(Debug, Clone)]
enum Op {
    /// A number that does not depend on the key, by its place in the list.
    Uniform(usize),
    /// A truth that does not depend on the key.
    UniformTruth(usize),
    Key,
    Neg,
    /// Whether both sides are integers by construction.
    Binary(BinOp, bool),
    /// The same with a right side that does not depend on the key.
    By(BinOp, bool, usize),
    /// `min` or `max` of two.
    Least,
    Largest,
    /// A function of one number.
    Call(Func),
    Compare(CmpOp),
    CompareWith(CmpOp, usize),
    Not,
    /// Jumps to the operation of this number where no lane holds.
    UnlessAny(usize),
    /// Jumps where every lane holds or is undefined.
    UnlessAnyFails(usize),
    And,
    Or,
}

impl LanePredicate {
    /// Compiles a predicate; `None` for a tree that no parser builds.
    pub fn new(predicate: &Expr) -> Option<Self> {
        let mut compiled =
            Self { program: Vec::new(), uniforms: Vec::new(), uniform_truths: Vec::new(), numbers: 0, truths: 0 };
        compiled.truth(predicate, 0, 0)?;
        Some(compiled)
    }

    /// Prepares `stack` for the query, head and lengths of `env`.
    pub fn start(&self, env: &Env, stack: &mut LaneStack) {
        stack.uniforms.clear();
        stack.uniforms.extend(self.uniforms.iter().map(|expr| expr.number(env).ok()));
        stack.uniform_truths.clear();
        stack.uniform_truths.extend(self.uniform_truths.iter().map(|expr| match expr.truth(env) {
            Ok(true) => Truths { yes: u64::MAX, undefined: 0 },
            Ok(false) => Truths { yes: 0, undefined: 0 },
            Err(_) => Truths { yes: 0, undefined: u64::MAX },
        }));
        let empty = Numbers { values: [0.0; LANES], undefined: 0 };
        if stack.numbers.len() < self.numbers {
            stack.numbers.resize(self.numbers, empty);
        }
        if stack.truths.len() < self.truths {
            stack.truths.resize(self.truths, Truths::default());
        }
    }

    /// Bit `j` of the result: whether the predicate holds at key `first + j`, for what `stack` was prepared for.
    pub fn holds(&self, first: i64, stack: &mut LaneStack) -> u64 {
        run(&self.program, first as f64, stack)
    }

    fn uniform(&mut self, expr: &Expr) -> usize {
        self.uniforms.push(expr.clone());
        self.uniforms.len() - 1
    }

    /// Appends code that leaves a truth on its stack, where `truths` lie already, and `numbers` on the other.
    fn truth(&mut self, expr: &Expr, numbers: usize, truths: usize) -> Option<()> {
        self.truths = self.truths.max(truths + 1);
        if !expr.uses(Var::K) {
            let is_truth = matches!(expr, Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_));
            self.program.push(Op::UniformTruth(self.uniform_truths.len()));
            self.uniform_truths.push(expr.clone());
            return is_truth.then_some(());
        }
        match expr {
            Expr::Compare(op, xs) if !xs[1].uses(Var::K) => {
                self.number(&xs[0], numbers)?;
                integer(&xs[1])?;
                let right = self.uniform(&xs[1]);
                self.program.push(Op::CompareWith(*op, right));
            }
            Expr::Compare(op, xs) => {
                self.number(&xs[0], numbers)?;
                self.number(&xs[1], numbers + 1)?;
                self.program.push(Op::Compare(*op));
            }
            Expr::And(xs) | Expr::Or(xs) => {
                let and = matches!(expr, Expr::And(_));
                self.truth(&xs[0], numbers, truths)?;
                let jump = self.program.len();
                self.program.push(Op::Not);
                self.truth(&xs[1], numbers, truths + 1)?;
                self.program.push(if and { Op::And } else { Op::Or });
                let end = self.program.len();
                self.program[jump] = if and { Op::UnlessAny(end) } else { Op::UnlessAnyFails(end) };
            }
            Expr::Not(x) => {
                self.truth(x, numbers, truths)?;
                self.program.push(Op::Not);
            }
            Expr::Number(_) | Expr::Var(_) | Expr::Neg(_) | Expr::Binary(..) | Expr::Call(..) => return None,
        }
        Some(())
    }

    /// Appends code that leaves a number; says whether it is an integer by construction.
    fn number(&mut self, expr: &Expr, numbers: usize) -> Option<bool> {
        self.numbers = self.numbers.max(numbers + 1);
        if !expr.uses(Var::K) {
            let place = self.uniform(expr);
            self.program.push(Op::Uniform(place));
            return integer(expr);
        }
        match expr {
            Expr::Var(_) => self.program.push(Op::Key),
            Expr::Neg(x) => {
                self.number(x, numbers)?;
                self.program.push(Op::Neg);
            }
            Expr::Binary(op, _, xs) if !xs[1].uses(Var::K) || commutes(*op) && !xs[0].uses(Var::K) => {
                // Sums and products of floats are the same either way round.
                let (left, right) = if xs[1].uses(Var::K) { (&xs[1], &xs[0]) } else { (&xs[0], &xs[1]) };
                let integers = [self.number(left, numbers)?, integer(right)?] == [true, true];
                let right = self.uniform(right);
                self.program.push(Op::By(*op, integers, right));
            }
            Expr::Binary(op, _, xs) => {
                let integers = [self.number(&xs[0], numbers)?, self.number(&xs[1], numbers + 1)?];
                self.program.push(Op::Binary(*op, integers == [true, true]));
            }
            Expr::Call(func, _, xs) => {
                self.number(&xs[0], numbers)?;
                for x in &xs[1..] {
                    self.number(x, numbers + 1)?;
                    self.program.push(if *func == Func::Min { Op::Least } else { Op::Largest });
                }
                self.program.push(Op::Call(*func));
            }
            Expr::Number(_) | Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => return None,
        }
        integer(expr)
    }
}

fn commutes(op: BinOp) -> bool {
    matches!(op, BinOp::Add | BinOp::Mul)
}

/// Whether a number expression has integer values wherever it has any; `None` where a truth value stands in it.
fn integer(expr: &Expr) -> Option<bool> {
    Some(match expr {
        Expr::Number(x) => x.fract() == 0.0,
        Expr::Var(_) => true,
        Expr::Neg(x) => integer(x)?,
        Expr::Binary(op, _, xs) => {
            let both = integer(&xs[0])? & integer(&xs[1])?;
            both && !matches!(op, BinOp::Div | BinOp::Pow)
        }
        Expr::Call(func, _, xs) => {
            let all = xs.iter().map(integer).try_fold(true, |all, x| Some(all & x?))?;
            match func {
                Func::Floor | Func::Ceil | Func::Round => true,
                Func::Min | Func::Max | Func::Abs => all,
                Func::Sqrt | Func::Log2 => false,
            }
        }
        Expr::Compare(..) | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => return None,
    })
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma", "x86_64+sse4.1"))]
fn run(program: &[Op], first: f64, stack: &mut LaneStack) -> u64 {
    let LaneStack { uniforms, uniform_truths, numbers, truths } = stack;
    // Both stacks grow upwards; what is above them is old.
    let (mut n, mut t, mut at) = (0, 0, 0);
    while let Some(op) = program.get(at) {
        at += 1;
        match op {
            Op::Uniform(place) => {
                let value = uniforms[*place];
                numbers[n].values = [value.unwrap_or(0.0); LANES];
                numbers[n].undefined = if value.is_some() { 0 } else { u64::MAX };
                n += 1;
            }
            Op::UniformTruth(place) => {
                truths[t] = uniform_truths[*place];
                t += 1;
            }
            Op::Key => {
                for (i, value) in numbers[n].values.iter_mut().enumerate() {
                    *value = first + i as f64;
                }
                numbers[n].undefined = 0;
                n += 1;
            }
            Op::Neg => numbers[n - 1].values.iter_mut().for_each(|x| *x = -*x),
            Op::Binary(op, integers) => {
                n -= 1;
                let (below, above) = numbers.split_at_mut(n);
                binary(*op, *integers, &mut below[n - 1], &above[0]);
            }
            Op::By(op, integers, place) => by(*op, *integers, &mut numbers[n - 1], uniforms[*place]),
            Op::Least => {
                n -= 1;
                let (below, above) = numbers.split_at_mut(n);
                join(&mut below[n - 1], &above[0], |x, y| if y < x { y } else { x });
            }
            Op::Largest => {
                n -= 1;
                let (below, above) = numbers.split_at_mut(n);
                join(&mut below[n - 1], &above[0], |x, y| if y > x { y } else { x });
            }
            Op::Call(func) => call(*func, &mut numbers[n - 1]),
            Op::Compare(op) => {
                n -= 2;
                let (x, y) = (&numbers[n], &numbers[n + 1]);
                truths[t] = compare(*op, x, x.undefined | y.undefined, |i| y.values[i]);
                t += 1;
            }
            Op::CompareWith(op, place) => {
                n -= 1;
                truths[t] = match uniforms[*place] {
                    Some(y) => compare(*op, &numbers[n], numbers[n].undefined, |_| y),
                    None => Truths { yes: 0, undefined: u64::MAX },
                };
                t += 1;
            }
            Op::Not => {
                let Truths { yes, undefined } = truths[t - 1];
                truths[t - 1].yes = !yes & !undefined;
            }
            Op::UnlessAny(to) => {
                if truths[t - 1].yes == 0 {
                    at = *to;
                }
            }
            Op::UnlessAnyFails(to) => {
                if truths[t - 1].yes | truths[t - 1].undefined == u64::MAX {
                    at = *to;
                }
            }
            Op::And => {
                t -= 1;
                let (left, right) = (truths[t - 1], truths[t]);
                truths[t - 1] =
                    Truths { yes: left.yes & right.yes, undefined: left.undefined | left.yes & right.undefined };
            }
            Op::Or => {
                t -= 1;
                let (left, right) = (truths[t - 1], truths[t]);
                let open = !left.yes & !left.undefined;
                truths[t - 1] =
                    Truths { yes: left.yes | open & right.yes, undefined: left.undefined | open & right.undefined };
            }
        }
    }
    truths[0].yes
}

/// Calls `keep` with each lane, and gathers its bit.
#[inline(always)]
fn bits(keep: impl Fn(usize) -> bool) -> u64 {
    let mut bytes = [0_u8; LANES];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from(keep(i));
    }
    let mut word = 0;
    for (i, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
        // The product moves bit 0 of byte j to bit 56 + j.
        word |= (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
    }
    word
}

/// Marks lanes whose value is no number or too large, as the scalar operations refuse it.
#[inline(always)]
fn check(x: &mut Numbers) {
    let outside = |value: f64| value.is_nan() || value.abs() >= LIMIT;
    if x.values.iter().fold(false, |any, &value| any | outside(value)) {
        x.undefined |= bits(|i| outside(x.values[i]));
    }
}

#[inline(always)]
fn join(x: &mut Numbers, y: &Numbers, with: impl Fn(f64, f64) -> f64) {
    for (x, &y) in x.values.iter_mut().zip(&y.values) {
        *x = with(*x, y);
    }
    x.undefined |= y.undefined;
}

#[inline(always)]
fn binary(op: BinOp, integers: bool, x: &mut Numbers, y: &Numbers) {
    match op {
        BinOp::Add => join(x, y, |x, y| x + y),
        BinOp::Sub => join(x, y, |x, y| x - y),
        BinOp::Mul => join(x, y, |x, y| x * y),
        BinOp::Div => {
            x.undefined |= zeros(y);
            join(x, y, |x, y| x / y);
        }
        BinOp::FloorDiv | BinOp::Mod if integers && are_small(x) && are_small(y) => {
            x.undefined |= zeros(y);
            if op == BinOp::Mod {
                join(x, y, remainder);
            } else {
                join(x, y, |x, y| (x - remainder(x, y)) / y);
            }
        }
        BinOp::FloorDiv | BinOp::Mod | BinOp::Pow => {
            let mut failed = 0;
            for i in 0..LANES {
                match op.apply(x.values[i], y.values[i]) {
                    Ok(value) => x.values[i] = value,
                    Err(_) => failed |= 1 << i,
                }
            }
            x.undefined |= y.undefined | failed;
            return;
        }
    }
    check(x);
}

/// An operation whose right side is the same in all lanes.
#[inline(always)]
fn by(op: BinOp, integers: bool, x: &mut Numbers, y: Option<f64>) {
    let divides = matches!(op, BinOp::Div | BinOp::FloorDiv | BinOp::Mod);
    let Some(y) = y.filter(|&y| !(divides && y == 0.0)) else {
        x.undefined = u64::MAX;
        return;
    };
    match op {
        BinOp::Add => x.values.iter_mut().for_each(|x| *x += y),
        BinOp::Sub => x.values.iter_mut().for_each(|x| *x -= y),
        BinOp::Mul => x.values.iter_mut().for_each(|x| *x *= y),
        BinOp::Div => x.values.iter_mut().for_each(|x| *x /= y),
        BinOp::FloorDiv if integers && are_small(x) && y.abs() < SMALL => {
            let inverse = 1.0 / y;
            return x.values.iter_mut().for_each(|x| *x = divide(*x, y, inverse).0);
        }
        BinOp::Mod if integers && are_small(x) && y.abs() < SMALL => {
            let inverse = 1.0 / y;
            return x.values.iter_mut().for_each(|x| *x = divide(*x, y, inverse).1);
        }
        BinOp::FloorDiv | BinOp::Mod | BinOp::Pow => {
            for (i, x_i) in x.values.iter_mut().enumerate() {
                match op.apply(*x_i, y) {
                    Ok(value) => *x_i = value,
                    Err(_) => x.undefined |= 1 << i,
                }
            }
            return;
        }
    }
    check(x);
}

#[inline(always)]
fn zeros(x: &Numbers) -> u64 {
    match x.values.iter().fold(false, |any, &x| any | (x == 0.0)) {
        true => bits(|i| x.values[i] == 0.0),
        false => 0,
    }
}

#[inline(always)]
fn are_small(x: &Numbers) -> bool {
    x.values.iter().fold(true, |all, &x| all & (x.abs() < SMALL))
}

/// Quotient, rounded down, and remainder of small integers. The product with the inverse is off by less than one
/// from the quotient, and one `y` puts it right.
#[inline(always)]
fn divide(x: f64, y: f64, inverse: f64) -> (f64, f64) {
    let quotient = (x * inverse).floor();
    let rest = x - quotient * y;
    // In units of the divisor's sign the remainder lies from 0 to |y|.
    let (rest_in, size) = if y < 0.0 { (-rest, -y) } else { (rest, y) };
    let more = if rest_in >= size { 1.0 } else { 0.0 };
    let less = if rest_in < 0.0 { 1.0 } else { 0.0 };
    let step = more - less;
    (quotient + step, rest - step * y)
}

/// The remainder of small integers, with the sign of the divisor. The quotient, rounded, may be one too large.
#[inline(always)]
fn remainder(x: f64, y: f64) -> f64 {
    let rest = x - (x / y).floor() * y;
    let short = (rest < 0.0) != (y < 0.0) && rest != 0.0;
    if short { rest + y } else { rest }
}

#[inline(always)]
fn call(func: Func, x: &mut Numbers) {
    let mut each = |f: fn(f64) -> f64| {
        for value in &mut x.values {
            *value = f(*value);
        }
        check(x);
    };
    match func {
        Func::Min | Func::Max => {}
        Func::Abs => x.values.iter_mut().for_each(|value| *value = value.abs()),
        Func::Floor => x.values.iter_mut().for_each(|value| *value = value.floor()),
        Func::Ceil => x.values.iter_mut().for_each(|value| *value = value.ceil()),
        Func::Round => x.values.iter_mut().for_each(|value| *value = value.round_ties_even()),
        Func::Sqrt => each(f64::sqrt),
        Func::Log2 => each(|value| if value <= 0.0 { f64::NAN } else { value.log2() }),
    }
}

#[inline(always)]
fn compare(op: CmpOp, x: &Numbers, undefined: u64, y: impl Fn(usize) -> f64) -> Truths {
    let a = &x.values;
    let yes = match op {
        CmpOp::Lt => bits(|i| a[i] < y(i)),
        CmpOp::Le => bits(|i| a[i] <= y(i)),
        CmpOp::Gt => bits(|i| a[i] > y(i)),
        CmpOp::Ge => bits(|i| a[i] >= y(i)),
        CmpOp::Eq => bits(|i| a[i] == y(i)),
        CmpOp::Ne => bits(|i| a[i] != y(i)),
    };
    Truths { yes: yes & !undefined, undefined }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            4 => Just("k".to_string()),
            3 => Just("q".to_string()),
            1 => Just("h".to_string()),
            3 => (0..40_u32).prop_map(|x| x.to_string()),
            1 => prop::sample::select(vec!["0.5", "2.75", "1e15", "4503599627370495", "9007199254740991", "1e-9"])
                .prop_map(str::to_string),
        ];
        leaf.prop_recursive(4, 20, 3, |inner| {
            let op = prop::sample::select(vec!["+", "-", "*", "/", "//", "%", "**"]);
            let func = prop::sample::select(vec!["floor", "ceil", "round", "sqrt", "log2", "abs"]);
            prop_oneof![
                5 => (inner.clone(), op, inner.clone()).prop_map(|(x, op, y)| format!("({x} {op} {y})")),
                1 => (func, inner.clone()).prop_map(|(func, x)| format!("{func}({x})")),
                1 => (any::<bool>(), inner.clone(), inner.clone(), inner.clone())
                    .prop_map(|(min, x, y, z)| format!("{}({x}, {y}, {z})", if min { "min" } else { "max" })),
                1 => inner.prop_map(|x| format!("(-{x})")),
            ]
        })
    }

    fn predicate() -> impl Strategy<Value = String> {
        let op = prop::sample::select(vec!["<", "<=", ">", ">=", "==", "!="]);
        let leaf = (number(), op, number()).prop_map(|(x, op, y)| format!("{x} {op} {y}"));
        leaf.prop_recursive(3, 6, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(x, y)| format!("({x} and {y})")),
                (inner.clone(), inner.clone()).prop_map(|(x, y)| format!("({x} or {y})")),
                inner.prop_map(|x| format!("(not {x})")),
            ]
        })
    }

    fn assert_same(text: &str, q: i64, first: i64) {
        let expr = Expr::parse_predicate(text, &Var::ALL).unwrap_or_else(|fault| panic!("{text}: {fault:?}"));
        let env = Env::lengths(100, 90, 64).with(Var::H, 3).at(Var::Q, q);
        let expected = (0..64).fold(0, |word, j| word | u64::from(expr.holds(&env.at(Var::K, first + j))) << j);
        let compiled = LanePredicate::new(&expr).expect("a predicate");
        let mut stack = LaneStack::default();
        for _ in 0..2 {
            compiled.start(&env, &mut stack);
            let found = compiled.holds(first, &mut stack);
            assert_eq!(found, expected, "{text} at q {q}, keys from {first}: {found:064b} {expected:064b}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn every_lane_is_its_point(text in predicate(), q in -9..200_i64, first in 0..40_i64) {
            assert_same(&text, q, first * 64);
        }
    }

    #[test]
    fn faults_stay_in_their_lanes() {
        for text in [
            "1 % (k - 5) == 0",
            "not 1 % (k - 5) == 0",
            "k == 5 or 7 // (k - 5) < 1",
            "k != 5 and 7 // (k - 5) < 1",
            "q % 0 == 1 or k > 3",
            "k > 3 or q % 0 == 1",
            "sqrt(k - 30) < 4 or k < 8",
            "2 ** k > 5",
            "k * 4503599627370496 % 7 == 0",
            "(0 - k) % 7 == (k + 3) // (-4) + 9",
            "9007199254740991 % (k + 1) < 3",
            "9007199254740991 // (k + 1) * (k + 1) + 9007199254740991 % (k + 1) == 9007199254740991",
            "k / 3 % 1 < 0.5",
            "(k * 70368744177664 - 3) % 70368744177665 < 70368744177000",
            "(5 - k) // 3 * 3 + (5 - k) % 3 == 5 - k and (5 - k) % (0 - 3) <= 0",
            "(k - 9) // (0 - 4) * (0 - 4) + (k - 9) % (0 - 4) == k - 9",
            "k % 1 == 0 and k % 2251799813685247 == k",
        ] {
            for (q, first) in [(0, 0), (7, 64), (-3, 0), (100, 4096)] {
                assert_same(text, q, first);
            }
        }
    }
}

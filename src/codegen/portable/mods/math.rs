//! exp, log, tanh and sigmoid on vectors of four floats, each to 4 ulp.
//!
//! Every function takes several independent vectors and writes its steps for all of them side by side, so that
//! their latencies overlap. Arguments are reduced as Cody and Waite 1980 have it; polynomials are minimax fits of
//! the remainder, computed with the Remez exchange.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use crate::codegen::emit::Emit;

/// ln 2 in two parts; products of the first with a small integer are exact.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Adding this rounds to an integer and leaves that in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// `(e^x − 1 − x) / x²` for `|x| ≤ ln 2 / 2`, constant term first; relative error of e^x − 1 1.4e-8.
const EXPM1: [f32; 5] = [0.499_999_98, 0.166_665_44, 0.041_667_2, 0.008_366_519, 0.001_388_252_2];
/// `(ln(1 + x) − x + x²/2) / x³` for x from 1/√2 − 1 to √2 − 1; relative error of the logarithm 6e-9.
const LOG1P: [f32; 8] =
    [0.333_333_3, -0.250_008_2, 0.200_012_27, -0.166_233_57, 0.142_017_58, -0.131_601_82, 0.127_615_75, -0.076_344_95];

/// Lane by lane the smaller of `x` and `y`; `y` where either is NaN.
pub fn min(e: &mut Emit, x: Value, y: Value) -> Value {
    let less = e.b.ins().fcmp(FloatCC::LessThan, x, y);
    e.select(less, x, y)
}

/// Applies `f` to every vector.
fn each(e: &mut Emit, xs: &[Value], f: impl Fn(&mut Emit, Value) -> Value) -> Vec<Value> {
    xs.iter().map(|&x| f(e, x)).collect()
}

/// Applies `f` to every pair of vectors.
fn pairs(e: &mut Emit, xs: &[Value], ys: &[Value], f: impl Fn(&mut Emit, Value, Value) -> Value) -> Vec<Value> {
    xs.iter().zip(ys).map(|(&x, &y)| f(e, x, y)).collect()
}

/// A polynomial, constant term first, by Horner's rule.
fn polynomial(e: &mut Emit, xs: &[Value], coefficients: &[f32]) -> Vec<Value> {
    let Some((&top, rest)) = coefficients.split_last() else { return Vec::new() };
    let top = e.constant(top);
    let mut sums = vec![top; xs.len()];
    for &coefficient in rest.iter().rev() {
        let coefficient = e.constant(coefficient);
        sums = pairs(e, &sums, xs, |e, sum, x| e.mul_add(sum, x, coefficient));
    }
    sums
}

/// x as n ln 2 + r with the nearest integer n, for |x| below 10,000: r, n + [`MAGIC`] and e^r − 1.
fn reduce(e: &mut Emit, xs: &[Value]) -> (Vec<Value>, Vec<Value>) {
    let log2e = e.constant(std::f32::consts::LOG2_E);
    let magic = e.constant(MAGIC);
    let [high, low] = LN2.map(|part| e.constant(-part));
    let rounded = each(e, xs, |e, x| e.mul_add(x, log2e, magic));
    let wholes = each(e, &rounded, |e, t| e.b.ins().fsub(t, magic));
    let rests: Vec<Value> = xs.iter().zip(&wholes).map(|(&x, &n)| e.mul_add(n, high, x)).collect();
    let rests: Vec<Value> = rests.iter().zip(&wholes).map(|(&r, &n)| e.mul_add(n, low, r)).collect();
    let squares = each(e, &rests, |e, r| e.b.ins().fmul(r, r));
    let tails = polynomial(e, &rests, &EXPM1);
    let tails = pairs(e, &tails, &squares, |e, tail, square| e.b.ins().fmul(tail, square));
    (rounded, pairs(e, &tails, &rests, |e, tail, r| e.b.ins().fadd(tail, r)))
}

/// 2^n for an integer vector n from −126 to 127.
fn power_of_two(e: &mut Emit, n: Value) -> Value {
    let bias = e.lanes([127; 4], types::I32X4);
    let biased = e.b.ins().iadd(n, bias);
    let bits = e.b.ins().ishl_imm_u(biased, 23);
    e.as_f32(bits)
}

/// The integer in a sum with [`MAGIC`].
fn whole(e: &mut Emit, rounded: Value) -> Value {
    let bits = e.as_i32(rounded);
    let magic = e.lanes([MAGIC.to_bits(); 4], types::I32X4);
    e.b.ins().isub(bits, magic)
}

/// e^x; infinite beyond the largest float, subnormal where e^x is, NaN for NaN.
pub fn exp(e: &mut Emit, xs: &[Value]) -> Vec<Value> {
    // e^89 is infinite and e^-104 is 0 already; the operands' order lets NaN through.
    let (highest, lowest) = (e.constant(89.0), e.constant(-104.0));
    let xs = each(e, xs, |e, x| min(e, highest, x));
    let xs = each(e, &xs, |e, x| e.max(lowest, x));
    let (rounded, less_one) = reduce(e, &xs);
    let one = e.constant(1.0);
    let powers = each(e, &less_one, |e, x| e.b.ins().fadd(x, one));
    // In two steps: n reaches from -150 to 128, further than an exponent.
    let wholes = each(e, &rounded, whole);
    let halves = each(e, &wholes, |e, n| e.b.ins().sshr_imm_u(n, 1));
    let others = pairs(e, &wholes, &halves, |e, n, half| e.b.ins().isub(n, half));
    let [first, second] = [halves, others].map(|ns| each(e, &ns, power_of_two));
    let powers = pairs(e, &powers, &first, |e, power, scale| e.b.ins().fmul(power, scale));
    pairs(e, &powers, &second, |e, power, scale| e.b.ins().fmul(power, scale))
}

/// tanh x by way of e^2x − 1, which keeps its digits where x is small: (e^2x − 1) / (e^2x + 1).
pub fn tanh(e: &mut Emit, xs: &[Value]) -> Vec<Value> {
    let (highest, lowest) = (e.constant(20.0), e.constant(-20.0));
    let xs = each(e, xs, |e, x| min(e, highest, x));
    let xs = each(e, &xs, |e, x| e.max(lowest, x));
    let doubled = each(e, &xs, |e, x| e.b.ins().fadd(x, x));
    let (rounded, less_one) = reduce(e, &doubled);
    let (one, two) = (e.constant(1.0), e.constant(2.0));
    let wholes = each(e, &rounded, whole);
    let scales = each(e, &wholes, power_of_two);
    let shifts = each(e, &scales, |e, scale| e.b.ins().fsub(scale, one));
    let less_one: Vec<Value> =
        less_one.iter().zip(&scales).zip(&shifts).map(|((&x, &scale), &shift)| e.mul_add(x, scale, shift)).collect();
    let sums = each(e, &less_one, |e, x| e.b.ins().fadd(x, two));
    pairs(e, &less_one, &sums, |e, x, sum| e.b.ins().fdiv(x, sum))
}

/// 1 / (1 + e^−x), from e^−|x|, which never overflows.
pub fn sigmoid(e: &mut Emit, xs: &[Value]) -> Vec<Value> {
    let (zero, one) = (e.constant(0.0), e.constant(1.0));
    let negative = each(e, xs, |e, x| {
        let magnitude = e.b.ins().fabs(x);
        e.b.ins().fneg(magnitude)
    });
    let powers = exp(e, &negative);
    let tops = pairs(e, xs, &powers, |e, x, power| {
        let up = e.b.ins().fcmp(FloatCC::GreaterThanOrEqual, x, zero);
        e.select(up, one, power)
    });
    let sums = each(e, &powers, |e, power| e.b.ins().fadd(power, one));
    pairs(e, &tops, &sums, |e, top, sum| e.b.ins().fdiv(top, sum))
}

/// The natural logarithm: −inf at 0, NaN below.
pub fn log(e: &mut Emit, xs: &[Value]) -> Vec<Value> {
    let (smallest, scale) = (e.constant(f32::MIN_POSITIVE), e.constant(8_388_608.0));
    let (zero, infinite, nan) = (e.constant(0.0), e.constant(f32::INFINITY), e.constant(f32::NAN));
    let unscaled = e.constant(-23.0);
    let tiny = each(e, xs, |e, x| e.b.ins().fcmp(FloatCC::LessThan, x, smallest));
    // Subnormal numbers are brought into the normal range first.
    let scaled = pairs(e, xs, &tiny, |e, x, tiny| {
        let larger = e.b.ins().fmul(x, scale);
        e.select(tiny, larger, x)
    });
    // x = 2^n m with m from 1/√2 to √2.
    let root_half = e.lanes([std::f32::consts::FRAC_1_SQRT_2.to_bits(); 4], types::I32X4);
    let exponents = each(e, &scaled, |e, x| {
        let bits = e.as_i32(x);
        let above = e.b.ins().isub(bits, root_half);
        e.b.ins().sshr_imm_u(above, 23)
    });
    let one = e.constant(1.0);
    let fractions = pairs(e, &scaled, &exponents, |e, x, n| {
        let bits = e.as_i32(x);
        let shift = e.b.ins().ishl_imm_u(n, 23);
        let bits = e.b.ins().isub(bits, shift);
        let m = e.as_f32(bits);
        e.b.ins().fsub(m, one)
    });
    let counts = pairs(e, &exponents, &tiny, |e, n, tiny| {
        let n = e.b.ins().fcvt_from_sint(types::F32X4, n);
        let correction = e.keep(tiny, unscaled);
        e.b.ins().fadd(n, correction)
    });
    let squares = each(e, &fractions, |e, f| e.b.ins().fmul(f, f));
    let cubes = pairs(e, &squares, &fractions, |e, square, f| e.b.ins().fmul(square, f));
    let tails = polynomial(e, &fractions, &LOG1P);
    let minus_half = e.constant(-0.5);
    let [high, low] = LN2.map(|part| e.constant(part));
    let tails = pairs(e, &tails, &cubes, |e, tail, cube| e.b.ins().fmul(tail, cube));
    let tails = pairs(e, &counts, &tails, |e, n, tail| e.mul_add(n, low, tail));
    let tails = pairs(e, &squares, &tails, |e, square, tail| e.mul_add(square, minus_half, tail));
    let sums = pairs(e, &fractions, &tails, |e, f, tail| e.b.ins().fadd(f, tail));
    let logs = pairs(e, &counts, &sums, |e, n, sum| e.mul_add(n, high, sum));
    pairs(e, xs, &logs, |e, x, log| {
        // Not below infinity: infinity and NaN, which are their own logarithms.
        let finite = e.b.ins().fcmp(FloatCC::LessThan, x, infinite);
        let log = e.select(finite, log, x);
        let none = e.b.ins().fcmp(FloatCC::LessThan, x, zero);
        let log = e.select(none, nan, log);
        let lowest = e.constant(f32::NEG_INFINITY);
        let at_zero = e.b.ins().fcmp(FloatCC::Equal, x, zero);
        e.select(at_zero, lowest, log)
    })
}

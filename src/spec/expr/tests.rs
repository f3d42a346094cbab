//! Values as Python gives them, faults with their columns, soundness of bounds.

use super::*;

const ALL: [Var; 6] = Var::ALL;

fn value(text: &str) -> Result<f64, Fault> {
    Expr::parse(text, &ALL)?.eval(&Env { values: [4096.0, 100.0, 64.0, 3.0, 17.0, 20.0] })
}

fn fault_at(text: &str) -> (u32, String) {
    let fault = value(text).expect_err(text);
    (fault.place.offset, fault.message)
}

#[test]
fn arithmetic_is_pythons() {
    for (text, expected) in [
        ("max(32, n/64)", 64.0),
        ("-2**2", -4.0),
        ("2**-1", 0.5),
        ("2**3**2", 512.0),
        ("2 - 3 - 4", -5.0),
        ("-7 // 2", -4.0),
        ("-7 % 3", 2.0),
        ("7 % -3", -2.0),
        ("-7 % -3", -1.0),
        ("7 // -2", -4.0),
        ("9007199254740991 // 2", 4_503_599_627_370_495.0),
        ("round(2.5) + round(3.5)", 6.0),
        ("floor(-0.5) + ceil(0.5)", 0.0),
        ("sqrt(n) + log2(n) + abs(-d)", 140.0),
        ("min(5, 3, 4)", 3.0),
        ("min(7)", 7.0),
        ("1e3 + .5", 1000.5),
        ("3**33 % 10", 3.0),
        ("+n - -1", 4097.0),
    ] {
        assert_eq!(value(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn integers_round_down() {
    let env = Env::lengths(100, 100, 64);
    for (text, expected) in [("n/64", 1), ("-n/64", -2), ("0.999", 0)] {
        assert_eq!(Expr::parse(text, &ALL).unwrap().eval_integer(&env).unwrap(), expected, "{text}");
    }
}

#[test]
fn faults_point_at_the_operator() {
    for (text, offset, message) in [
        ("n / (m - 100)", 2, "division by zero"),
        ("1 + n // 0", 6, "division by zero"),
        ("0 ** -1", 2, "division by zero"),
        ("2 ** 53", 2, "the result is too large"),
        ("n * sqrt(-1)", 4, "the result is not a number"),
        ("log2(0)", 0, "the result is not a number"),
        ("1 +", 3, "the end of the expression stands where a value belongs"),
        ("(n", 0, "the parenthesis is not closed"),
        ("n n", 2, "`n` does not continue the expression"),
        ("n < 3", 2, "a condition stands where a number belongs"),
        ("window(3)", 0, "unknown function `window`"),
        ("floor(1, 2)", 7, "`floor` takes one argument"),
        ("min()", 4, "`min` needs an argument"),
        ("x + 1", 0, "unknown name `x`"),
        ("min + 1", 0, "`min` is a function"),
        ("1.2.3", 0, "`1.2.3` is not a number"),
        ("n $ 2", 2, "`$` is not part of an expression"),
        ("", 0, "the expression is empty"),
        ("99999999999999999999", 0, "the number is too large"),
    ] {
        assert_eq!(fault_at(text), (offset, message.to_string()), "{text}");
    }
}

#[test]
fn predicates_are_typed_and_never_chained() {
    let parse = |text: &str| Expr::parse_predicate(text, &ALL);
    assert_eq!(parse("0 < k < q").unwrap_err().place.offset, 6);
    assert_eq!(parse("k - q").unwrap_err().message, "a number stands where a condition belongs");
    assert_eq!(parse("q and k < 1").unwrap_err().place.offset, 0);
    assert_eq!(parse("q = k").unwrap_err().expected, "`==`");
    let env = Env::lengths(10, 10, 4).with(Var::Q, 0).with(Var::K, 5);
    for (text, holds) in [
        ("k >= q and not k == 4", true),
        ("not k > q or k == 5", true),
        ("q > 0 and k % q == 0", false),
        ("q == 0 or k % q == 0", true),
        ("k % q == 0", false),
        ("not k % q == 0", false),
        ("(k < 3) or (q != 0)", false),
    ] {
        assert_eq!(parse(text).unwrap().holds(&env), holds, "{text}");
    }
}

#[test]
fn limits_hold() {
    assert!(value(&"(".repeat(101)).unwrap_err().message.contains("too deeply"));
    assert!(value(&format!("{}1{}", "(".repeat(100), ")".repeat(100))).is_ok());
    assert!(value(&"-".repeat(3000)).unwrap_err().message.contains("too deeply"));
    assert!(value(&format!("{}1", "1+".repeat(2047))).unwrap_err().message.contains("in a row"));
    assert!(value(&"n".repeat(5000)).unwrap_err().expected.contains("4096"));
}

#[test]
fn printing_reads_back() {
    for text in [
        "-(2 ** 2)",
        "(-2) ** 2",
        "2 ** (-1)",
        "(2 ** 3) ** 2",
        "2 ** 3 ** 2",
        "1 - (2 - 3)",
        "1 / (2 * 3)",
        "(1 + 2) * 3 % 4",
        "max(1, n / 64, -k)",
        "-(-(3))",
        "-(q + k)",
    ] {
        let expr = Expr::parse(text, &ALL).unwrap();
        assert_eq!(Expr::parse(&expr.to_string(), &ALL).unwrap(), expr, "{text} printed as {expr}");
    }
    for text in ["not (q < 1 and k > 2) or h == 0", "q < 1 or (k < 2 or h < 3)", "not not q < 1", "(q + 1) * 2 < -k"] {
        let expr = Expr::parse_predicate(text, &ALL).unwrap();
        assert_eq!(Expr::parse_predicate(&expr.to_string(), &ALL).unwrap(), expr, "{text} printed as {expr}");
    }
    let negative = Expr::parse("n ** 2", &ALL).unwrap().substitute(&[Var::N], &Env { values: [-3.0; 6] });
    assert_eq!(negative.to_string(), "(-3) ** 2");
}

#[test]
fn bounds_hold_every_point_and_are_tight_where_simple() {
    let texts = [
        "q - k",
        "abs(q - k) // 3",
        "(q - k) % 5",
        "q % 64",
        "k / (q - 3)",
        "(q - 7) ** 2",
        "(q - 7) ** 3",
        "2 ** (q - k)",
        "sqrt(q - 4) + log2(k)",
        "min(q, k, 9) * max(-q, 3) - round(k / 2)",
        "k // (q - 20)",
        "-7 % (q + 1)",
        "ceil(q / 3) * floor(-k / 7)",
        "2 ** 50 * q",
    ];
    for text in texts {
        let expr = Expr::parse(text, &ALL).unwrap();
        for (q0, q1, k0, k1) in [(0, 9, 0, 9), (5, 5, 2, 30), (20, 25, 1, 3), (3, 3, 3, 3)] {
            let base = Env::lengths(100, 100, 64);
            let interval = expr.bounds(&Bounds::at(&base).with(Var::Q, q0, q1).with(Var::K, k0, k1));
            for q in q0..=q1 {
                for k in k0..=k1 {
                    match expr.eval(&base.with(Var::Q, q as usize).with(Var::K, k as usize)) {
                        Ok(x) => assert!(interval.lo <= x && x <= interval.hi, "{text} at {q},{k}: {x} {interval:?}"),
                        Err(_) => assert!(interval.undefined, "{text} at {q},{k}"),
                    }
                }
            }
        }
    }
    let near = Expr::parse_predicate("abs(q - k) <= 128 and k <= q", &ALL).unwrap();
    let at = |q0, q1, k0, k1| near.truth_bounds(&Bounds::at(&Env::default()).with(Var::Q, q0, q1).with(Var::K, k0, k1));
    assert!(at(128, 191, 64, 127).always());
    assert!(at(256, 319, 0, 63).never());
    let edge = at(128, 191, 128, 191);
    assert!(!edge.always() && !edge.never());
}

#[test]
fn predicate_bounds_are_sound() {
    for text in [
        "k % q == 0",
        "not k % q == 0",
        "q > 0 and k % q == 0",
        "q == 0 or k % q == 0",
        "(q - k) % 4 == 0 or q // 8 == k // 8",
        "not (q < k and k < 9)",
        "sqrt(q - k) < 3",
    ] {
        let expr = Expr::parse_predicate(text, &ALL).unwrap();
        for (q0, q1, k0, k1) in [(0, 7, 0, 7), (8, 15, 8, 15), (1, 3, 12, 12), (0, 0, 0, 3), (16, 23, 0, 7)] {
            let truth = expr.truth_bounds(&Bounds::at(&Env::default()).with(Var::Q, q0, q1).with(Var::K, k0, k1));
            for q in q0..=q1 {
                for k in k0..=k1 {
                    let holds = expr.holds(&Env::default().with(Var::Q, q as usize).with(Var::K, k as usize));
                    let right = if holds { !truth.never() } else { !truth.always() };
                    assert!(right, "{text} at {q},{k}: {truth:?}");
                }
            }
        }
    }
}

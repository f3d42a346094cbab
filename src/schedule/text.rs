//! The text form of a schedule.

use std::fmt::Write as _;

use super::{Base, BlockTest, Op, Schedule};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::mask;
use crate::spec::HopFactors;

const DROPOUT: &str = "p = dropout p";
const GRAD_PROBABILITIES: &str = "dp = sddmm z g";
const GRAD_SOFTMAX: &str = "ds = p / l * (dp - rowsum p / l dp)";
const GRAD_MODS: &str = "ds = mods' ds";
const GRAD_SCORES: &str = "dq, dk = spmm ds k, spmm_t ds q * ";

impl Schedule {
    /// The text form; [`parse`] reads it back.
    pub fn print(&self) -> String {
        let mut out = self.print_body();
        out.push_str("neighbors\n");
        out.push_str(&self.neighbors.print());
        out
    }

    /// The text form without the neighbors.
    pub fn print_body(&self) -> String {
        let mut out = format!(
            "schedule heads {} kv_heads {} q_len {} kv_len {} head_dim {} value_dim {}",
            self.heads, self.kv_heads, self.neighbors.q_len, self.neighbors.kv_len, self.head_dim, self.value_dim
        );
        if !self.dtype.is_f32() {
            let _ = write!(out, " dtype {}", self.dtype);
        }
        if !self.store.is_f32() {
            let _ = write!(out, " store {}", self.store);
        }
        out.push('\n');
        out.push_str(match self.block_test {
            BlockTest::Every => "blocks test every\n",
            BlockTest::Partial => "blocks test partial\n",
        });
        for op in &self.body {
            print_op(&mut out, op);
        }
        out
    }
}

fn print_op(out: &mut String, op: &Op) {
    // Writing to a String cannot fail.
    let _ = match op {
        Op::Pack { scale } => writeln!(out, "qt = pack q * {scale:?}"),
        Op::Sddmm { fused: false } => writeln!(out, "s = sddmm k qt"),
        Op::Sddmm { fused: true } => writeln!(out, "s, m = sddmm k qt with mask rowmax"),
        Op::Scale { factor } => writeln!(out, "s = scale s * {factor:?}"),
        Op::Mods { mods, factor, fused } => {
            let _ = writeln!(out, "{} = mods s {{", if *fused { "s, m" } else { "s" });
            for line in mods.to_string().lines() {
                let _ = writeln!(out, "  {line}");
            }
            writeln!(out, "}} * {factor:?}{}", if *fused { " with mask rowmax" } else { "" })
        }
        Op::Mask => writeln!(out, "s = mask s"),
        Op::RowMax => writeln!(out, "m = rowmax s"),
        Op::Exp { base, masked } => {
            let base = match base {
                Base::E => "e",
                Base::Two => "2",
            };
            writeln!(out, "p, l = exp {base} s - m{}", if *masked { " with mask" } else { "" })
        }
        Op::Hops { factors, restart_folded, looped } => {
            let _ = match looped {
                true => writeln!(out, "hops {} {{", factors.len()),
                false => writeln!(out, "hop {{"),
            };
            for HopFactors { step, restart } in factors {
                let _ = match restart_folded {
                    true => writeln!(out, "  spmm p z * {step:?} + v * {restart:?}"),
                    false => writeln!(out, "  spmm p z * {step:?}\n  restart v * {restart:?}"),
                };
            }
            writeln!(out, "}}")
        }
        Op::Dropout => writeln!(out, "{DROPOUT}"),
        Op::Adjoint { factors } => {
            let _ = writeln!(out, "adjoint {} {{", factors.len());
            for HopFactors { step, restart } in factors {
                let _ = writeln!(out, "  spmm_t p g * {step:?}\n  dv += g * {restart:?}");
            }
            writeln!(out, "}}")
        }
        Op::GradProbabilities => writeln!(out, "{GRAD_PROBABILITIES}"),
        Op::GradSoftmax => writeln!(out, "{GRAD_SOFTMAX}"),
        Op::GradMods => writeln!(out, "{GRAD_MODS}"),
        Op::GradScores { scale } => writeln!(out, "{GRAD_SCORES}{scale:?}"),
    };
}

/// Reads what [`Schedule::print`] wrote.
///
/// # Errors
/// [`Error::Text`] with the line that is not understood.
pub fn parse(text: &str) -> Result<Schedule> {
    let mut lines = Lines { rest: text, number: 0 };
    let header = lines.next("the schedule's header")?;
    let words: Vec<&str> = header.split_whitespace().collect();
    let (words, store) = match words.as_slice() {
        [words @ .., "store", name] => (words, Dtype::find(name)),
        words => (words, Some(Dtype::F32)),
    };
    let (words, dtype) = match words {
        [words @ .., "dtype", name] => (words, Dtype::find(name)),
        words => (words, Some(Dtype::F32)),
    };
    let sizes = match words {
        ["schedule", "heads", h, "kv_heads", g, "q_len", _, "kv_len", _, "head_dim", d, "value_dim", e] => {
            [*h, *g, *d, *e].map(|word| word.parse::<usize>().ok())
        }
        _ => [None; 4],
    };
    let ([Some(heads), Some(kv_heads), Some(head_dim), Some(value_dim)], Some(dtype), Some(store)) =
        (sizes, dtype, store)
    else {
        let form = "schedule heads H kv_heads G q_len M kv_len N head_dim D value_dim E [dtype T] [store T]";
        return Err(lines.refuse(&format!("expected `{form}`")));
    };
    let block_test = match lines.next("the block test")? {
        "blocks test every" => BlockTest::Every,
        "blocks test partial" => BlockTest::Partial,
        _ => return Err(lines.refuse("expected `blocks test every` or `blocks test partial`")),
    };
    let mut body = Vec::new();
    loop {
        let line = lines.next("an operation or `neighbors`")?;
        if line == "neighbors" {
            break;
        }
        body.push(parse_op(line, &mut lines)?);
    }
    let skipped = lines.number;
    let neighbors = mask::parse(lines.rest).map_err(|error| match error {
        Error::Text { stage, line, message } => Error::Text { stage, line: line + skipped, message },
        other => other,
    })?;
    Ok(Schedule { heads, kv_heads, head_dim, value_dim, dtype, store, block_test, body, neighbors })
}

fn parse_op(line: &str, lines: &mut Lines<'_>) -> Result<Op> {
    let number = |text: &str, lines: &Lines<'_>| {
        text.parse::<f64>().map_err(|_| lines.refuse(&format!("expected a number, found `{text}`")))
    };
    if let Some(scale) = line.strip_prefix("qt = pack q * ") {
        return Ok(Op::Pack { scale: number(scale, lines)? });
    }
    if let Some(factor) = line.strip_prefix("s = scale s * ") {
        return Ok(Op::Scale { factor: number(factor, lines)? });
    }
    if let Some(scale) = line.strip_prefix(GRAD_SCORES) {
        return Ok(Op::GradScores { scale: number(scale, lines)? });
    }
    Ok(match line {
        DROPOUT => Op::Dropout,
        GRAD_PROBABILITIES => Op::GradProbabilities,
        GRAD_SOFTMAX => Op::GradSoftmax,
        GRAD_MODS => Op::GradMods,
        _ if line.starts_with("adjoint ") => {
            let mut factors = Vec::new();
            loop {
                let step = lines.next("a hop's adjoint or `}`")?.trim();
                if step == "}" {
                    break;
                }
                let restart = lines.next("what dv gets")?.trim();
                let (Some(step), Some(restart)) =
                    (step.strip_prefix("spmm_t p g * "), restart.strip_prefix("dv += g * "))
                else {
                    return Err(lines.refuse("expected `spmm_t p g * STEP` and `dv += g * RESTART`"));
                };
                factors.push(HopFactors { step: number(step, lines)?, restart: number(restart, lines)? });
            }
            Op::Adjoint { factors }
        }
        "s = sddmm k qt" => Op::Sddmm { fused: false },
        "s, m = sddmm k qt with mask rowmax" => Op::Sddmm { fused: true },
        "s = mask s" => Op::Mask,
        "m = rowmax s" => Op::RowMax,
        "p, l = exp e s - m" => Op::Exp { base: Base::E, masked: false },
        "p, l = exp e s - m with mask" => Op::Exp { base: Base::E, masked: true },
        "p, l = exp 2 s - m" => Op::Exp { base: Base::Two, masked: false },
        "p, l = exp 2 s - m with mask" => Op::Exp { base: Base::Two, masked: true },
        "s = mods s {" | "s, m = mods s {" => {
            let fused = line.starts_with("s, m");
            let mut text = String::new();
            let end = loop {
                let inner = lines.next("a score mod or `} * FACTOR`")?;
                match inner.strip_prefix("} * ") {
                    Some(end) => break end,
                    None => text = text + inner + "\n",
                }
            };
            let mods = text.parse().map_err(|message: String| lines.refuse(&message))?;
            let factor = match (fused, end.strip_suffix(" with mask rowmax")) {
                (true, Some(factor)) => factor,
                (false, None) => end,
                _ => return Err(lines.refuse("`with mask rowmax` stands behind mods exactly where they give `s, m`")),
            };
            Op::Mods { mods, factor: number(factor, lines)?, fused }
        }
        _ if line.ends_with('{') && line.starts_with("hop") => {
            let looped = line.starts_with("hops ");
            let mut factors = Vec::new();
            let mut restart_folded = true;
            loop {
                let inner = lines.next("a hop or `}`")?;
                if inner == "}" {
                    break;
                }
                let Some(rest) = inner.trim().strip_prefix("spmm p z * ") else {
                    return Err(lines.refuse("expected `spmm p z * STEP`"));
                };
                let (step, restart) = match rest.split_once(" + v * ") {
                    Some((step, restart)) => (step, restart),
                    None => {
                        restart_folded = false;
                        let restart = lines.next("the hop's restart")?.trim();
                        match restart.strip_prefix("restart v * ") {
                            Some(restart) => (rest, restart),
                            None => return Err(lines.refuse("expected `restart v * RESTART`")),
                        }
                    }
                };
                factors.push(HopFactors { step: number(step, lines)?, restart: number(restart, lines)? });
            }
            Op::Hops { factors, restart_folded, looped }
        }
        _ => return Err(lines.refuse(&format!("`{line}` is no operation"))),
    })
}

struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self, wanted: &str) -> Result<&'a str> {
        self.number += 1;
        if self.rest.is_empty() {
            return Err(self.refuse(&format!("the text ends where {wanted} was expected")));
        }
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        Ok(line)
    }

    fn refuse(&self, message: &str) -> Error {
        Error::Text { stage: "schedule", line: self.number, message: message.to_owned() }
    }
}

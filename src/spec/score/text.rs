//! The text form of [`ScoreMods`], which schedules and plans share: a line each for positions, inputs and mods.
//!
//! ```text
//! positions q_len 8 kv_len 8 heads 2 q_offset 0
//! input rel [2, 15] line 5
//! softcap 30.0
//! alibi [0.0625, 0.00390625]
//! bias rel[h, q - k + 7]
//! expr s - 0.1 * abs(q - k)
//! ```

use std::fmt;

use super::parse::{self, Signature};
use super::{InputShape, Positions, ScoreMod, ScoreMods, Term};

impl fmt::Display for ScoreMods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Positions { q_len, kv_len, heads, q_offset } = self.positions;
        write!(f, "positions q_len {q_len} kv_len {kv_len} heads {heads} q_offset {q_offset}")?;
        for InputShape { name, shape, line } in &self.inputs {
            write!(f, "\ninput {name} {shape:?} line {line}")?;
        }
        for score_mod in &self.mods {
            match score_mod {
                ScoreMod::Softcap(cap) => write!(f, "\nsoftcap {cap:?}")?,
                ScoreMod::Alibi(slopes) => write!(f, "\nalibi {slopes:?}")?,
                ScoreMod::Bias(element) => write!(f, "\nbias {element}")?,
                ScoreMod::Expr(term) => write!(f, "\nexpr {term}")?,
            }
        }
        Ok(())
    }
}

impl From<ScoreMods> for String {
    fn from(mods: ScoreMods) -> Self {
        mods.to_string()
    }
}

impl TryFrom<String> for ScoreMods {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for ScoreMods {
    type Err = String;

    /// Reads what its display wrote. Indices are proved again by [`ScoreMods::verify`], not here.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(str::trim);
        let positions = lines.next().and_then(read_positions);
        let positions = positions.ok_or("expected `positions q_len M kv_len N heads H q_offset O`")?;
        let mut found = Self { positions, inputs: Vec::new(), mods: Vec::new() };
        let mut signatures = Vec::new();
        for line in lines {
            let refuse = || format!("`{line}` is no input and no score mod");
            let (word, rest) = line.split_once(' ').ok_or_else(refuse)?;
            let term = || parse::term(rest, &signatures).map_err(|fault| format!("`{rest}`: {}", fault.message));
            match word {
                "input" => {
                    let input = read_input(rest).ok_or_else(refuse)?;
                    signatures.push(Signature { name: input.name.clone(), rank: input.shape.len() });
                    found.inputs.push(input);
                }
                "softcap" => found.mods.push(ScoreMod::Softcap(rest.parse().map_err(|_| refuse())?)),
                "alibi" => found.mods.push(ScoreMod::Alibi(list(rest).ok_or_else(refuse)?)),
                "bias" => match term()? {
                    Term::Element(element) => found.mods.push(ScoreMod::Bias(element)),
                    _ => return Err(refuse()),
                },
                "expr" => found.mods.push(ScoreMod::Expr(term()?)),
                _ => return Err(refuse()),
            }
        }
        // Negative numbers print like negations, and are read as such: brought back into the form they were in.
        for score_mod in &mut found.mods {
            let fold = |element: &mut super::Element| {
                element.index.iter_mut().try_for_each(|index| {
                    index.expr = super::proof::whole(&index.expr, index.place)?;
                    Ok(())
                })
            };
            let folded = match score_mod {
                ScoreMod::Bias(element) => fold(element),
                ScoreMod::Expr(term) => term.for_elements(&mut { fold }),
                ScoreMod::Softcap(_) | ScoreMod::Alibi(_) => Ok(()),
            };
            folded.map_err(|fault: crate::spec::expr::Fault| fault.message)?;
        }
        Ok(found)
    }
}

fn read_positions(line: &str) -> Option<Positions> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["positions", "q_len", m, "kv_len", n, "heads", h, "q_offset", o] => Some(Positions {
            q_len: m.parse().ok()?,
            kv_len: n.parse().ok()?,
            heads: h.parse().ok()?,
            q_offset: o.parse().ok()?,
        }),
        _ => None,
    }
}

fn read_input(text: &str) -> Option<InputShape> {
    let (name, rest) = text.split_once(' ')?;
    let (shape, line) = rest.split_once(" line ")?;
    Some(InputShape { name: name.to_owned(), shape: list(shape)?, line: line.parse().ok()? })
}

fn list<T: std::str::FromStr>(text: &str) -> Option<Vec<T>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    if inner.is_empty() { Some(Vec::new()) } else { inner.split(',').map(|x| x.trim().parse().ok()).collect() }
}

//! Score mods at given lengths: expressions evaluated, indices proved.

use serde::{Deserialize, Serialize};

use super::proof::{self, EXACT};
use super::{Dim, Element, Index, InputDef, ModKind, PatternSpec, Term};
use crate::error::{Error, Result};
use crate::spec::Align;
use crate::spec::expr::{BinOp, Bounds, Env, Expr, Fault, Var};

/// Elements of an input: offsets are 32-bit integers.
const MAX_ELEMENTS: u64 = i32::MAX as u64;

/// Where queries and keys stand, which expressions call `q` and `k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Query heads.
    pub heads: usize,
    /// Position of query 0.
    pub q_offset: i64,
}

impl Positions {
    /// The positions of a problem of these lengths.
    pub fn new(align: Align, q_len: usize, kv_len: usize, heads: usize) -> Self {
        Self { q_len, kv_len, heads, q_offset: align.first(q_len, kv_len) }
    }

    /// Whether there is no pair of query and key.
    pub fn is_empty(&self) -> bool {
        self.q_len == 0 || self.kv_len == 0
    }

    /// The ranges of q, k and h, lengths being numbers already.
    fn ranges(&self) -> Bounds {
        Bounds::at(&Env::default())
            .with(Var::Q, self.q_offset, self.q_offset + self.q_len as i64 - 1)
            .with(Var::K, 0, self.kv_len as i64 - 1)
            .with(Var::H, 0, self.heads as i64 - 1)
    }
}

/// A tensor that the mods read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputShape {
    /// Its name.
    pub name: String,
    /// Its extents, of at most `i32::MAX` elements together.
    pub shape: Vec<usize>,
    /// Its line in the spec, or 0 where there is none.
    pub line: usize,
}

impl InputShape {
    /// Elements from one index of each axis to the next, C order.
    pub fn strides(&self) -> Vec<usize> {
        let mut stride = 1;
        let mut strides: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|extent| {
                stride *= extent;
                stride / (*extent).max(1)
            })
            .collect();
        strides.reverse();
        strides
    }
}

/// A score mod at given lengths. Indices are integer arithmetic over q, k and h.
#[derive(Debug, Clone, PartialEq)]
pub enum ScoreMod {
    /// c · tanh(s / c)
    Softcap(f64),
    /// s + slope_h · (k − q)
    Alibi(Vec<f64>),
    /// s + an element
    Bias(Element),
    /// Any term.
    Expr(Term),
}

/// All score mods of a kernel, in order, and what they read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ScoreMods {
    /// Where queries and keys stand.
    pub positions: Positions,
    /// The inputs, in the order in which callers' tensors are handed on.
    pub inputs: Vec<InputShape>,
    /// The mods.
    pub mods: Vec<ScoreMod>,
}

/// The score mods of a spec at given lengths; `None` where it has no mods.
///
/// # Errors
/// [`Error::Spec`] where an input's extent is no length, or an index may leave its input, is no integer arithmetic or
/// needs more than 32 bits.
pub fn resolve(spec: &PatternSpec, q_len: usize, kv_len: usize) -> Result<Option<ScoreMods>> {
    if spec.mods.is_empty() {
        return Ok(None);
    }
    let source = &*spec.source;
    let positions = Positions::new(spec.align, q_len, kv_len, spec.heads);
    let env = Env::lengths(kv_len, q_len, spec.head_dim);
    let inputs =
        spec.inputs.iter().map(|input| input_shape(spec, input, &env, positions)).collect::<Result<Vec<_>>>()?;
    let ranges = positions.ranges();
    let mut mods = Vec::new();
    for def in &spec.mods {
        let resolved = match &def.kind {
            ModKind::Softcap(cap) => ScoreMod::Softcap(*cap),
            ModKind::Alibi(slopes) => ScoreMod::Alibi(slopes.clone()),
            ModKind::Bias(element, values) => {
                let mut element = element.substitute(&Var::LENGTHS, &env);
                for (axis, (index, value)) in element.index.iter_mut().zip(values).enumerate() {
                    let extent = inputs[element.input].shape[axis];
                    settle(index, extent, &ranges, positions).map_err(|fault| value.fault(source, fault))?;
                }
                ScoreMod::Bias(element)
            }
            ModKind::Expr(term, value) => {
                let mut term = term.substitute(&Var::LENGTHS, &env);
                settle_term(&mut term, &inputs, &ranges, positions).map_err(|fault| value.fault(source, fault))?;
                ScoreMod::Expr(term)
            }
        };
        if reads_positions(&resolved) && positions_end(positions) >= EXACT {
            let given = format!("{kv_len} keys with a score mod that reads positions");
            return Err(Error::unsupported(given, format!("positions below {EXACT} are exact in f32")));
        }
        mods.push(resolved);
    }
    Ok(Some(ScoreMods { positions, inputs, mods }))
}

/// The largest magnitude of a position, or of a difference of two.
fn positions_end(positions: Positions) -> f64 {
    positions.kv_len.max(positions.q_len) as f64
}

fn reads_positions(score_mod: &ScoreMod) -> bool {
    match score_mod {
        ScoreMod::Softcap(_) => false,
        ScoreMod::Alibi(_) => true,
        // Indices are integers.
        ScoreMod::Bias(_) => false,
        ScoreMod::Expr(term) => term.any(&|term| matches!(term, Term::Var(Var::Q | Var::K))),
    }
}

fn input_shape(spec: &PatternSpec, input: &InputDef, env: &Env, positions: Positions) -> Result<InputShape> {
    let source = &*spec.source;
    let mut shape = Vec::new();
    for (dim, value) in &input.shape {
        let extent = match dim {
            Dim::Heads => spec.heads as i64,
            Dim::KvHeads => spec.kv_heads as i64,
            Dim::Expr(expr) => expr.eval_integer(env).map_err(|fault| value.fault(source, fault))?,
        };
        // Without pairs nothing is read, whatever an extent like 2n − 1 comes to.
        let extent = if positions.is_empty() { extent.max(0) } else { extent };
        let extent = usize::try_from(extent).map_err(|_| {
            let message = format!("this extent of `{}` is {extent} at {} keys", input.name, positions.kv_len);
            source.error(value.at, message, "an extent of at least 0")
        })?;
        shape.push(extent);
    }
    let elements = shape.iter().fold(1_u64, |product, &extent| product.saturating_mul(extent as u64));
    if elements > MAX_ELEMENTS {
        let message = format!("`{}` has {elements} elements at {} keys", input.name, positions.kv_len);
        return Err(source.error(input.at, message, format!("at most {MAX_ELEMENTS}")));
    }
    Ok(InputShape { name: input.name.clone(), shape, line: input.at.line })
}

/// Brings one index into integer form and proves it.
fn settle(index: &mut Index, extent: usize, ranges: &Bounds, positions: Positions) -> Result<(), Fault> {
    index.expr = proof::whole(&index.expr, index.place)?;
    if !positions.is_empty() {
        proof::prove(&index.expr, index.place, extent, ranges)?;
    }
    Ok(())
}

/// The same for every index in a term.
fn settle_term(term: &mut Term, inputs: &[InputShape], ranges: &Bounds, positions: Positions) -> Result<(), Fault> {
    term.for_elements(&mut |element| {
        let shape = &inputs[element.input].shape;
        element.index.iter_mut().zip(shape).try_for_each(|(index, &extent)| settle(index, extent, ranges, positions))
    })
}

impl ScoreMod {
    /// The elements of inputs that it reads.
    pub fn elements(&self) -> Vec<&Element> {
        match self {
            Self::Softcap(_) | Self::Alibi(_) => Vec::new(),
            Self::Bias(element) => vec![element],
            Self::Expr(term) => term.elements(),
        }
    }

    /// Whether it depends on where the query stands.
    pub fn uses_query(&self) -> bool {
        match self {
            Self::Softcap(_) => false,
            Self::Alibi(_) => true,
            Self::Bias(element) => element.index.iter().any(|index| index.expr.uses(Var::Q)),
            Self::Expr(term) => term.uses(Var::Q),
        }
    }

    /// Its name in a spec.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Softcap(_) => "softcap",
            Self::Alibi(_) => "alibi",
            Self::Bias(_) => "bias",
            Self::Expr(_) => "expr",
        }
    }
}

impl ScoreMods {
    /// Whether any mod depends on where the query stands.
    pub fn uses_query(&self) -> bool {
        self.mods.iter().any(ScoreMod::uses_query)
    }

    /// Tables that code reads besides the callers' inputs, in the order in which they follow them: the slopes of
    /// each `alibi`.
    pub fn constants(&self) -> Vec<Vec<f32>> {
        let slopes = self.mods.iter().filter_map(|score_mod| match score_mod {
            ScoreMod::Alibi(slopes) => Some(slopes.iter().map(|&slope| slope as f32).collect()),
            _ => None,
        });
        slopes.collect()
    }

    /// The rules that code generation relies on: inputs exist and have an axis for each index, every index is proved
    /// to stay within its axis, there is a slope for each head.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn verify(&self) -> Result<(), String> {
        let ranges = self.positions.ranges();
        for input in &self.inputs {
            let elements = input.shape.iter().fold(1_u64, |product, &extent| product.saturating_mul(extent as u64));
            if elements > MAX_ELEMENTS {
                return Err(format!("input `{}` has {elements} elements", input.name));
            }
        }
        for score_mod in &self.mods {
            match score_mod {
                ScoreMod::Alibi(slopes) if slopes.len() != self.positions.heads => {
                    return Err(format!("{} slopes for {} heads", slopes.len(), self.positions.heads));
                }
                ScoreMod::Softcap(cap) if !(cap.is_finite() && *cap > 0.0) => {
                    return Err(format!("softcap {cap}"));
                }
                _ => {}
            }
            if reads_positions(score_mod) && positions_end(self.positions) >= EXACT {
                return Err("positions that f32 cannot hold".to_owned());
            }
            for element in score_mod.elements() {
                let input = self.inputs.get(element.input).ok_or_else(|| format!("`{element}` reads no input"))?;
                if input.name != element.name || input.shape.len() != element.index.len() {
                    return Err(format!("`{element}` is no element of input `{}`", input.name));
                }
                for (index, &extent) in element.index.iter().zip(&input.shape) {
                    let canonical = proof::whole(&index.expr, index.place).map_err(|fault| fault.message)?;
                    if canonical != index.expr {
                        return Err(format!("`{}` is not in integer form", index.expr));
                    }
                    if !self.positions.is_empty() {
                        proof::prove(&index.expr, index.place, extent, &ranges).map_err(|fault| fault.message)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Floating-point operations a pair, counting each function as one: what a person can compare mods by.
    pub fn operations(&self) -> usize {
        fn of(term: &Term) -> usize {
            let own = match term {
                Term::Number(_) | Term::Score | Term::Var(_) => 0,
                Term::Neg(_) | Term::Binary(..) | Term::Element(_) | Term::If(..) => 1,
                Term::Call(_, xs) => xs.len().saturating_sub(1).max(1),
            };
            own + term.children().into_iter().map(of).sum::<usize>()
        }
        let each = self.mods.iter().map(|score_mod| match score_mod {
            ScoreMod::Softcap(_) | ScoreMod::Alibi(_) => 3,
            ScoreMod::Bias(_) => 2,
            ScoreMod::Expr(term) => of(term),
        });
        each.sum()
    }
}

/// The offset of an element from its input's first, as one integer expression: indices times strides.
pub fn offset(element: &Element, strides: &[usize]) -> Expr {
    let place = crate::spec::expr::Place::default();
    let mut terms = element.index.iter().zip(strides).map(|(index, &stride)| match stride {
        1 => index.expr.clone(),
        _ => match &index.expr {
            Expr::Number(x) => Expr::Number(x * stride as f64),
            expr => Expr::Binary(BinOp::Mul, place, Box::new([expr.clone(), Expr::Number(stride as f64)])),
        },
    });
    let first = terms.next().unwrap_or(Expr::Number(0.0));
    terms.fold(first, |sum, term| Expr::Binary(BinOp::Add, place, Box::new([sum, term])))
}

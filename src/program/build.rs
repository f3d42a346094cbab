//! From a spec and its neighbors to the definition: one operation a step, each in a loop of its own.

use super::{
    Base, BlockTest, Body, Extent, Factor, Loop, Names, Op, Program, Shape, Space, Tensor, ValueId, is_lower_triangular,
};
use crate::error::{Error, Result};
use crate::mask::BlockMask;
use crate::spec::score::{self, ScoreMods};
use crate::spec::{self, Alpha, Diffusion, DiffusionForm, Factors, MAX_HOPS, PatternSpec};

/// The program as the definition has it, before any pass.
///
/// The factor of the diffusion on V before the first hop ([`crate::spec::Factors::initial`]) goes into the first hop's
/// factor, since a hop is linear. No hop at all is a hop with factor 0 that V is added to with that factor: a factor of 0
/// leaves the product out, so that NaN in it does not enter.
///
/// # Errors
/// Those of [`score::resolve`]: an index of a score mod that may leave its input.
pub fn build(spec: &PatternSpec, neighbors: BlockMask) -> Result<Program> {
    build_hops(spec, vec![neighbors], |_| 0)
}

/// The same where hops have neighbors of their own: `set_of` says for each hop, by its number, which of `sets` it has. The
/// first hop has the first.
///
/// # Errors
/// Those of [`build`].
pub fn build_hops(spec: &PatternSpec, mut sets: Vec<BlockMask>, set_of: impl Fn(usize) -> usize) -> Result<Program> {
    let others = sets.split_off(1.min(sets.len()));
    let Some(neighbors) = sets.pop() else {
        return Err(Error::internal("program", "a program without neighbors", spec.print()));
    };
    let mods = score::resolve(spec, neighbors.q_len, neighbors.kv_len)?;
    let limit = match &spec.diffusion.form {
        DiffusionForm::Limit { alpha, .. } if is_lower_triangular(&neighbors) => Some(match alpha {
            Alpha::Fixed(alpha) => (Factor::fixed(1.0 - alpha), Factor::fixed(*alpha)),
            Alpha::Input(_) => (Factor::rest_of(0), Factor::given(0)),
        }),
        _ => None,
    };
    let hops = match &spec.diffusion.form {
        _ if limit.is_some() => Vec::new(),
        DiffusionForm::Limit { alpha: Alpha::Input(_), .. } => {
            let message = "`hops: all` with an `alpha` of the call where a query attends to a later key";
            return Err(Error::unsupported(message, "a causal pattern, or an `alpha` that is known"));
        }
        DiffusionForm::Limit { alpha: Alpha::Fixed(alpha), tolerance } => {
            if Factors::hops_until(*alpha, *tolerance).is_none() {
                let message =
                    format!("`hops: all`: alpha {alpha} does not reach tolerance {tolerance} within {MAX_HOPS} hops");
                return Err(Error::unsupported(message, "a larger `alpha` or `tolerance`, or a causal pattern"));
            }
            hops(&spec.diffusion)
        }
        _ => hops(&spec.diffusion),
    };
    let shape = Shape {
        heads: spec.heads / neighbors.stack.max(1),
        kv_heads: spec.kv_heads,
        q_len: neighbors.q_len,
        kv_len: neighbors.kv_len,
        head_dim: spec.head_dim,
        value_dim: spec.value_dim,
        dtype: spec.dtype,
        store: spec.diffusion.store,
    };
    let sets: Vec<usize> = (0..hops.len()).map(set_of).collect();
    if sets.first().is_some_and(|&set| set != 0) || sets.iter().any(|&set| set > others.len()) {
        return Err(Error::internal("program", "a hop without neighbors", spec.print()));
    }
    if neighbors.parts > 1 && hops.len() > 1 {
        return Err(Error::internal("program", "several hops over neighbors in parts", spec.print()));
    }
    let body = Builder::new(shape).build(mods, spec.scale, (&hops, limit, &sets), neighbors.parts > 1);
    let body = Body { given: spec.diffusion.given(), ..body };
    Ok(Program { shape, block_test: BlockTest::Every, body, neighbors, others })
}

/// Factor of a hop on the product, and of V beside it.
type HopFactors = (Factor, Factor);

/// The recurrence of a diffusion.
fn hops(diffusion: &Diffusion) -> Vec<HopFactors> {
    let (initial, mut hops): (Factor, Vec<HopFactors>) = match &diffusion.form {
        DiffusionForm::Restart { hops, .. } => (Factor::ONE, vec![(Factor::rest_of(0), Factor::given(0)); *hops]),
        DiffusionForm::Polynomial { hops, .. } => {
            // Horner's rule: the last coefficient first.
            let hop = |column| (Factor::ONE, Factor::given(column));
            let hops = *hops as u32;
            (Factor::given(hops), (0..hops).rev().map(hop).collect())
        }
        DiffusionForm::Fixed(_) | DiffusionForm::Limit { .. } => {
            let factors = diffusion.typical();
            let hop = |hop: &spec::HopFactors| (Factor::fixed(hop.step), Factor::fixed(hop.restart));
            (Factor::fixed(factors.initial), factors.hops.iter().map(hop).collect())
        }
    };
    match hops.first_mut() {
        None => hops.push((Factor::fixed(0.0), initial)),
        // One of the two is a constant.
        Some((step, _)) if initial.is_given() => *step = Factor { slope: initial.slope * step.constant, ..initial },
        Some((step, _)) => {
            *step =
                Factor { constant: step.constant * initial.constant, slope: step.slope * initial.constant, ..*step };
        }
    }
    hops
}

struct Builder {
    /// The set of neighbors that the next operations are over.
    set: usize,
    shape: Shape,
    body: Body,
    names: Names,
}

impl Builder {
    fn new(shape: Shape) -> Self {
        let body = Body::default();
        Self { set: 0, shape, names: Names::of(&body), body }
    }

    fn build(
        mut self,
        mods: Option<ScoreMods>,
        scale: f64,
        (hops, limit, sets): (&[HopFactors], Option<HopFactors>, &[usize]),
        parts: bool,
    ) -> Body {
        let Shape { head_dim, value_dim, dtype, .. } = self.shape;
        let q = self.value("q", Space::Queries(head_dim), Extent::Tensor(Tensor::Q));
        let k = self.value("k", Space::Keys(head_dim), Extent::Tensor(Tensor::K));
        let v = self.value("v", Space::Keys(value_dim), Extent::Tensor(Tensor::V));
        let [m, p, l] = self.softmax([q, k], mods.as_ref(), scale);
        let mut weights = vec![Some((p, l))];
        let mut z = v;
        for (i, &(step, restart)) in hops.iter().enumerate() {
            self.set = sets[i];
            weights.resize(weights.len().max(self.set + 1), None);
            let (p, l) = match weights[self.set] {
                Some(known) => known,
                None => {
                    let [_, p, l] = self.softmax([q, k], mods.as_ref(), scale);
                    weights[self.set] = Some((p, l));
                    (p, l)
                }
            };
            let last = i + 1 == hops.len() && !parts;
            let extent = if last { Extent::Tensor(Tensor::Out) } else { Extent::All };
            let name = match (last, parts) {
                (true, _) => "out".to_owned(),
                (false, true) => "y".to_owned(),
                (false, false) => format!("z{}", i + 1),
            };
            // An output that is rounded to 16 bits cannot be added to afterwards.
            let (plus, combined) = match (!restart.is_zero(), dtype.is_f32()) {
                (false, _) => (None, false),
                (true, true) => (None, true),
                (true, false) => (Some((v, restart)), false),
            };
            let rows = Space::Queries(value_dim);
            z = self.kept(&name, rows, extent, Op::Spmm { p, z, l: Some(l), factor: step, plus, onto: None });
            if combined {
                z = self.kept(&name, rows, extent, Op::Combine { x: z, y: v, factor: restart });
            }
        }
        if let Some((factor, restart)) = limit {
            let (rows, out) = (Space::Queries(value_dim), Extent::Tensor(Tensor::Out));
            let solve = Op::Solve { p, l, factor, plus: (v, restart) };
            if dtype.is_f32() {
                self.kept("out", rows, out, solve);
            } else {
                // Later rows read what is not rounded.
                let z = self.step("z", rows, solve);
                self.kept("out", rows, out, Op::Copy { x: z });
            }
        }
        if parts {
            self.body.loops.iter_mut().for_each(|one| one.parts = true);
            self.kept("out", Space::Queries(value_dim), Extent::Tensor(Tensor::Out), Op::Join { x: z, m, l });
        }
        self.body.normalise();
        self.body
    }

    fn value(&mut self, name: &str, space: Space, extent: Extent) -> ValueId {
        self.names.add(&mut self.body, name, space, extent)
    }

    fn step(&mut self, name: &str, space: Space, op: Op) -> ValueId {
        self.kept(name, space, Extent::All, op)
    }

    fn kept(&mut self, name: &str, space: Space, extent: Extent, op: Op) -> ValueId {
        let result = self.value(name, space, extent);
        self.push(op, &[result]);
        result
    }

    fn push(&mut self, op: Op, results: &[ValueId]) {
        self.body.loops.push(Loop { set: self.set as u32, ..Loop::of(op, results) });
    }

    /// Scores, their maxima, weights and row sums over the neighbors of the current set.
    fn softmax(&mut self, [q, k]: [ValueId; 2], mods: Option<&ScoreMods>, scale: f64) -> [ValueId; 3] {
        let head_dim = self.shape.head_dim;
        let qt = self.step("qt", Space::Packed(head_dim), Op::Pack { x: vec![q], factor: 1.0 });
        let mut s = self.step("s", Space::Pairs, Op::Sddmm { x: qt, y: vec![k], masked: false });
        s = self.step("s", Space::Pairs, Op::Scale { s, factor: scale });
        if let Some(mods) = mods {
            s = self.step("s", Space::Pairs, Op::Mods { s, mods: mods.clone(), factor: 1.0, masked: false });
        }
        s = self.step("s", Space::Pairs, Op::Mask { s });
        let m = self.step("m", Space::Query, Op::RowMax { s });
        let (p, l) = (self.value("p", Space::Pairs, Extent::All), self.value("l", Space::Query, Extent::All));
        self.push(Op::Exp { s, m, base: Base::E, masked: false }, &[p, l]);
        [m, p, l]
    }
}

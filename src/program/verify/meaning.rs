//! The operations are an attention over the program's neighbors, and its gradient.
//!
//! Every value gets a *form*: what it is in terms of the tensors, whatever its name, so that what is computed again equals
//! the original. A rule looks at forms: the maximum that an exponential subtracts is that of the same scores, the sums that
//! a hop divides by are those of the same weights, the gradient of weights is made of the rows that the hops have.

use std::collections::HashMap;

use crate::program::{Base, Body, Extent, Factor, Op, Operation, Shape, Space, Tensor, ValueId};
use crate::spec::score::ScoreMods;

/// The number of a form.
type F = u32;
/// A factor by its bits: equal factors are equal forms.
type Bits = u64;
/// The same of a factor on rows, which a call may give.
type RowBits = [u64; 3];

/// What a value is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Form {
    Given(Tensor),
    Packed {
        rows: Vec<F>,
        factor: Bits,
    },
    /// Products of queries and keys, or of a gradient and what a hop read.
    Scores {
        x: F,
        y: Vec<F>,
        /// Whose neighbors they are.
        set: u32,
    },
    Scaled {
        of: F,
        factor: Bits,
    },
    Modified {
        of: F,
        mods: usize,
        factor: Bits,
    },
    Maximum(F),
    Weights {
        scores: F,
        base: bool,
    },
    Sums(F),
    /// What dropout leaves of weights, or of rows behind a hop.
    Left {
        of: F,
        hop: Option<u32>,
    },
    Hop {
        p: F,
        z: F,
        l: Option<F>,
        factor: RowBits,
        plus: Option<(F, RowBits)>,
    },
    /// All hops at once, and their adjoint.
    Solved {
        p: F,
        l: F,
        factor: RowBits,
        plus: (F, RowBits),
    },
    Adjoint {
        p: F,
        g: F,
        l: F,
        factor: RowBits,
    },
    /// A sum that grew in place.
    Sum {
        of: F,
        and: F,
    },
    Joined {
        x: F,
        m: F,
        l: F,
    },
    Rows {
        x: F,
        l: Option<F>,
        factor: RowBits,
    },
    Share {
        g: F,
        y: F,
        minus: Option<(F, RowBits)>,
        hop: Option<u32>,
        l: Option<F>,
    },
    /// The gradient of the scores that became these weights, or of those before their mods; and its factor.
    Gradient {
        weights: F,
        before_mods: bool,
        factor: Bits,
    },
    /// Sums over queries: of weights or gradients times rows.
    Transposed {
        p: F,
        x: F,
    },
    Times {
        x: F,
        factor: RowBits,
    },
}

/// What of scores is masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Masked {
    /// Nothing.
    No,
    /// Scores that are no neighbors' may be left out, or are left out of the maximum alone: they are still to be masked.
    Partly,
    /// They are −inf, or weights of 0.
    Yes,
}

/// Checks every operation.
pub(super) fn check(shape: &Shape, body: &Body) -> Result<(), String> {
    let mut reader = Meaning {
        shape,
        body,
        form_of: vec![None; body.values.len()],
        masked: vec![Masked::No; body.values.len()],
        forms: Vec::new(),
        numbers: HashMap::new(),
        mods: Vec::new(),
        set: 0,
        sums: Vec::new(),
        wanted: Vec::new(),
    };
    for (id, value) in body.values.iter().enumerate() {
        if let Extent::Tensor(tensor) = value.extent {
            let number = reader.intern(Form::Given(tensor));
            reader.form_of[id] = Some(number);
        }
    }
    for (set, operation) in body.loops.iter().flat_map(|one| one.ops().map(move |operation| (one.set, operation))) {
        reader.set = set;
        let fault = |what: String| format!("`{}`: {what}", body.print_op(operation).lines().next().unwrap_or_default());
        reader.step(operation).map_err(fault)?;
    }
    reader.check_outputs()
}

struct Meaning<'a> {
    shape: &'a Shape,
    body: &'a Body,
    form_of: Vec<Option<F>>,
    masked: Vec<Masked>,
    forms: Vec<Form>,
    numbers: HashMap<Form, F>,
    /// Different score mods.
    mods: Vec<&'a ScoreMods>,
    /// The set of neighbors of the operation that is read.
    set: u32,
    /// What goes to the gradient of what a call gives, and what has to.
    sums: Vec<Sum>,
    wanted: Vec<Sum>,
}

/// Of a gradient and rows, with which slope to which column.
type Sum = (F, F, Bits, u32);

impl<'a> Meaning<'a> {
    fn intern(&mut self, form: Form) -> F {
        let next = self.forms.len() as F;
        *self.numbers.entry(form).or_insert_with_key(|form| {
            self.forms.push(form.clone());
            next
        })
    }

    fn number(&self, id: ValueId) -> Result<F, String> {
        self.form_of[id.0 as usize].ok_or_else(|| format!("{} means nothing", self.body.value(id).name))
    }

    fn form(&self, number: F) -> &Form {
        &self.forms[number as usize]
    }

    fn name(&self, id: ValueId) -> &str {
        &self.body.value(id).name
    }

    fn step(&mut self, operation: &'a Operation) -> Result<(), String> {
        let mut masked = Masked::No;
        let forms: [Option<Form>; 2] = match &operation.op {
            Op::Pack { x, factor } => {
                let rows = x.iter().map(|&x| self.number(x)).collect::<Result<_, _>>()?;
                [Some(Form::Packed { rows, factor: bits(*factor)? }), None]
            }
            Op::Sddmm { x, y, masked: partly } => {
                let y = y.iter().map(|&y| self.number(y)).collect::<Result<_, _>>()?;
                let scores = Form::Scores { x: self.number(*x)?, y, set: self.set };
                masked = if *partly { Masked::Partly } else { Masked::No };
                self.with_maximum(scores, *partly, operation)?
            }
            Op::Scale { s, factor } => {
                let of = self.number(*s)?;
                masked = self.masked[s.0 as usize];
                let factor_bits = bits(*factor)?;
                let form = match *self.form(of) {
                    Form::Gradient { weights, before_mods, factor: so_far } => {
                        Form::Gradient { weights, before_mods, factor: (f64::from_bits(so_far) * factor).to_bits() }
                    }
                    Form::Scores { .. } | Form::Scaled { .. } | Form::Modified { .. } if masked != Masked::Yes => {
                        Form::Scaled { of, factor: factor_bits }
                    }
                    _ => return Err("what is scaled is no scores that are still to be masked".to_owned()),
                };
                [Some(form), None]
            }
            Op::Copy { x } => {
                masked = self.masked[x.0 as usize];
                [Some(self.form(self.number(*x)?).clone()), None]
            }
            Op::Mods { s, mods, factor, masked: partly } => {
                let of = self.number(*s)?;
                if !matches!(self.form(of), Form::Scores { .. } | Form::Scaled { .. })
                    || self.masked[s.0 as usize] == Masked::Yes
                {
                    return Err("mods take scores, once, before they are masked".to_owned());
                }
                let form = Form::Modified { of, mods: self.number_of(mods)?, factor: bits(*factor)? };
                masked = if *partly { Masked::Partly } else { self.masked[s.0 as usize] };
                self.with_maximum(form, *partly, operation)?
            }
            Op::Mask { s } => {
                let of = self.number(*s)?;
                if !self.is_scores(of) || self.masked[s.0 as usize] == Masked::Yes {
                    return Err("what is masked is no scores, or masked already".to_owned());
                }
                masked = Masked::Yes;
                [Some(self.form(of).clone()), None]
            }
            Op::RowMax { s } => {
                let of = self.number(*s)?;
                if !self.is_scores(of) || self.masked[s.0 as usize] != Masked::Yes {
                    return Err("a maximum is that of masked scores".to_owned());
                }
                [Some(Form::Maximum(of)), None]
            }
            Op::Exp { s, m, base, masked: here } => {
                let scores = self.number(*s)?;
                if !self.is_scores(scores) {
                    return Err(format!("{} is no scores", self.name(*s)));
                }
                if *self.form(self.number(*m)?) != Form::Maximum(scores) {
                    return Err(format!("{} is not the maximum of {}", self.name(*m), self.name(*s)));
                }
                match (self.masked[s.0 as usize], here) {
                    (Masked::Yes, true) => return Err("scores are masked twice".to_owned()),
                    (Masked::No | Masked::Partly, false) => return Err("scores are not masked".to_owned()),
                    _ => masked = Masked::Yes,
                }
                let weights = Form::Weights { scores, base: *base == Base::Two };
                let number = self.intern(weights.clone());
                [Some(weights), Some(Form::Sums(number))]
            }
            Op::Dropout { x, hop } => {
                let of = self.number(*x)?;
                let weights = matches!(self.form(of), Form::Weights { .. });
                if matches!(self.body.value(*x).space, Space::Pairs) != weights {
                    return Err(format!("{} is no weights, or has lost some already", self.name(*x)));
                }
                masked = self.masked[x.0 as usize];
                [Some(Form::Left { of, hop: *hop }), None]
            }
            Op::Spmm { p, z, l, factor, plus, onto } => {
                let form = self.product(*p, *z, *l, *factor, *plus)?;
                [Some(self.onto(*onto, form)?), None]
            }
            Op::Solve { p, l, factor, plus: (rows, restart) } => {
                let (p, l) = self.solved(*p, *l)?;
                let plus = (self.number(*rows)?, row_bits(*restart)?);
                [Some(Form::Solved { p, l, factor: row_bits(*factor)?, plus }), None]
            }
            Op::SolveT { p, x, l, factor } => {
                let (p, l) = self.solved(*p, *l)?;
                [Some(Form::Adjoint { p, g: self.number(*x)?, l, factor: row_bits(*factor)? }), None]
            }
            Op::Combine { x, y, factor } => {
                let (of, y) = (self.number(*x)?, self.number(*y)?);
                let form = match *self.form(of) {
                    Form::Hop { p, z, l, factor: times, plus: None } => {
                        Form::Hop { p, z, l, factor: times, plus: Some((y, row_bits(*factor)?)) }
                    }
                    _ => return Err(format!("{} is no product that nothing was added to", self.name(*x))),
                };
                [Some(form), None]
            }
            Op::Join { x, m, l } => {
                let (x, m, l) = (self.number(*x)?, self.number(*m)?, self.number(*l)?);
                // Rows that every part adds are there once in the end, since the parts' shares of a row sum to 1.
                let of_all = |rows: F| matches!(self.form(rows), Form::Given(_));
                let same = match *self.form(x) {
                    Form::Hop { p, l: Some(of), plus, .. } if plus.is_none_or(|(rows, _)| of_all(rows)) => {
                        match *self.form(p) {
                            Form::Weights { scores, .. } => {
                                *self.form(m) == Form::Maximum(scores) && *self.form(l) == Form::Sums(p) && of == l
                            }
                            _ => false,
                        }
                    }
                    _ => false,
                };
                if !same {
                    return Err("rows, maxima and sums of different weights are joined".to_owned());
                }
                [Some(Form::Joined { x, m, l }), None]
            }
            Op::ScaleRows { x, l, factor } => {
                let l = l.map(|l| self.sums(l)).transpose()?;
                let (x, factor) = (self.number(*x)?, row_bits(*factor)?);
                let form = match *self.form(x) {
                    // A hop whose factor stands apart.
                    Form::Hop { p, z, l: of, factor: so_far, plus: None } if l.is_none() && so_far == ONE => {
                        Form::Hop { p, z, l: of, factor, plus: None }
                    }
                    _ => Form::Rows { x, l, factor },
                };
                [Some(form), None]
            }
            Op::DotRows { x, y, minus, hop, l, onto } => {
                let minus = match minus {
                    Some((rows, factor)) => Some((self.number(*rows)?, row_bits(*factor)?)),
                    None => None,
                };
                let l = l.map(|l| self.sums(l)).transpose()?;
                let share = Form::Share { g: self.number(*x)?, y: self.number(*y)?, minus, hop: *hop, l };
                [Some(self.onto(*onto, share)?), None]
            }
            Op::SoftmaxGradient { p, dp, delta, factor, dropout } => {
                let weights = self.number(*p)?;
                self.check_shares(weights, self.number(*dp)?, self.number(*delta)?, *dropout)?;
                bits(*factor)?;
                masked = Masked::Yes;
                let left = Form::Left { of: weights, hop: None };
                [
                    Some(Form::Gradient { weights, before_mods: false, factor: factor.to_bits() }),
                    dropout.then_some(left),
                ]
            }
            Op::ModsGradient { s, ds, factor } => {
                masked = Masked::Yes;
                let Form::Gradient { weights, before_mods: false, factor: so_far } = *self.form(self.number(*ds)?)
                else {
                    return Err(format!("{} is no gradient of modified scores", self.name(*ds)));
                };
                if self.mods_of(weights).map(|(of, _)| of) != Some(self.number(*s)?) {
                    return Err(format!("{} is not what the mods took", self.name(*s)));
                }
                bits(*factor)?;
                let factor = (f64::from_bits(so_far) * factor).to_bits();
                [Some(Form::Gradient { weights, before_mods: true, factor }), None]
            }
            Op::SpmmT { p, x, onto } => {
                let (weights, rows) = (self.number(*p)?, self.number(*x)?);
                match self.form(weights) {
                    Form::Weights { .. } | Form::Left { .. } => self.check_divided(weights, rows)?,
                    Form::Gradient { .. } => {
                        self.check_gradient(weights)?;
                        if *self.form(rows) != Form::Given(Tensor::Q) {
                            return Err("the gradient of keys is summed over queries".to_owned());
                        }
                    }
                    _ => return Err(format!("{} is no weights and no gradient", self.name(*p))),
                }
                [Some(self.onto(*onto, Form::Transposed { p: weights, x: rows })?), None]
            }
            Op::AddRows { x, factor, onto } => {
                let times = Form::Times { x: self.number(*x)?, factor: row_bits(*factor)? };
                [Some(self.onto(Some(*onto), times)?), None]
            }
            Op::SumRows { x, column, factor } => {
                let of = self.number(*x)?;
                let Form::Share { g, y, minus: None, hop: None, l: None } = *self.form(of) else {
                    return Err(format!("{} is no product of a gradient with rows", self.name(*x)));
                };
                if self.body.given.as_ref().is_none_or(|given| *column as usize >= given.columns) {
                    return Err(format!("a call gives no column {column}"));
                }
                self.sums.push((g, y, bits(*factor)?, *column));
                [Some(self.form(of).clone()), None]
            }
        };
        for (&result, form) in operation.results.iter().zip(forms) {
            let Some(form) = form else { continue };
            let number = self.intern(form);
            self.form_of[result.0 as usize] = Some(number);
            if self.body.value(result).space == Space::Pairs {
                self.masked[result.0 as usize] = masked;
            }
        }
        Ok(())
    }

    /// Scores and, where it is taken, their maximum.
    fn with_maximum(&mut self, scores: Form, masked: bool, operation: &Operation) -> Result<[Option<Form>; 2], String> {
        if operation.results.len() < 2 {
            return Ok([Some(scores), None]);
        }
        if !masked {
            return Err("a maximum is that of masked scores".to_owned());
        }
        let number = self.intern(scores.clone());
        Ok([Some(scores), Some(Form::Maximum(number))])
    }

    fn onto(&mut self, onto: Option<ValueId>, form: Form) -> Result<Form, String> {
        let Some(onto) = onto else { return Ok(form) };
        let of = self.number(onto)?;
        let and = self.intern(form);
        Ok(Form::Sum { of, and })
    }

    fn is_scores(&self, number: F) -> bool {
        matches!(self.form(number), Form::Scores { .. } | Form::Scaled { .. } | Form::Modified { .. })
    }

    fn sums(&self, l: ValueId) -> Result<F, String> {
        let number = self.number(l)?;
        match self.form(number) {
            Form::Sums(_) => Ok(number),
            _ => Err(format!("{} is no row sums", self.name(l))),
        }
    }

    /// The number of score mods, which are verified once.
    fn number_of(&mut self, mods: &'a ScoreMods) -> Result<usize, String> {
        if let Some(at) = self.mods.iter().position(|known| *known == mods) {
            return Ok(at);
        }
        let positions = mods.positions;
        let Shape { q_len, kv_len, heads, .. } = *self.shape;
        if (positions.q_len, positions.kv_len, positions.heads) != (q_len, kv_len, heads) {
            return Err("the score mods are for another problem".to_owned());
        }
        mods.verify()?;
        self.mods.push(mods);
        Ok(self.mods.len() - 1)
    }

    /// A product with rows: a hop, or the gradient of queries.
    fn product(
        &mut self,
        p: ValueId,
        z: ValueId,
        l: Option<ValueId>,
        factor: Factor,
        plus: Option<(ValueId, Factor)>,
    ) -> Result<Form, String> {
        let (weights, rows) = (self.number(p)?, self.number(z)?);
        let plus = match plus {
            Some((rows, factor)) => Some((self.number(rows)?, row_bits(factor)?)),
            None => None,
        };
        let l = l.map(|l| self.sums(l)).transpose()?;
        match *self.form(weights) {
            Form::Weights { .. } | Form::Left { .. } => {
                let whole = self.whole(weights);
                let divided = l.is_some_and(|l| *self.form(l) == Form::Sums(whole));
                if !divided && !factor.is_zero() {
                    return Err(format!("a hop is not divided by the row sums of {}", self.name(p)));
                }
            }
            Form::Gradient { .. } => {
                self.check_gradient(weights)?;
                if *self.form(rows) != Form::Given(Tensor::K) || l.is_some() || plus.is_some() || factor != Factor::ONE
                {
                    return Err("the gradient of queries is summed over keys".to_owned());
                }
            }
            _ => return Err(format!("{} is no weights and no gradient", self.name(p))),
        }
        Ok(Form::Hop { p: weights, z: rows, l, factor: row_bits(factor)?, plus })
    }

    /// Weights and the sums that they are divided by.
    fn solved(&self, p: ValueId, l: ValueId) -> Result<(F, F), String> {
        let (weights, sums) = (self.number(p)?, self.sums(l)?);
        let divided = *self.form(sums) == Form::Sums(weights);
        if !matches!(self.form(weights), Form::Weights { .. }) || !divided {
            return Err(format!("what is solved is not made of {} over their row sums", self.name(p)));
        }
        Ok((weights, sums))
    }

    /// Weights before dropout.
    fn whole(&self, weights: F) -> F {
        match *self.form(weights) {
            Form::Left { of, .. } => of,
            _ => weights,
        }
    }

    /// Rows that go back through a hop have been divided by the row sums of its weights.
    fn check_divided(&self, weights: F, rows: F) -> Result<(), String> {
        match *self.form(rows) {
            Form::Rows { l: Some(l), .. } if *self.form(l) == Form::Sums(self.whole(weights)) => Ok(()),
            _ => Err("a hop's gradient is not divided by the row sums of its weights".to_owned()),
        }
    }

    /// What mods made the scores of, and with which factor; of scores without mods, nothing.
    fn mods_of(&self, weights: F) -> Option<(F, f64)> {
        let Form::Weights { scores: mut at, .. } = *self.form(weights) else { return None };
        let mut factor = 1.0;
        loop {
            match *self.form(at) {
                Form::Scaled { of, factor: by } => (at, factor) = (of, factor * f64::from_bits(by)),
                Form::Modified { of, factor: by, .. } => return Some((of, factor * f64::from_bits(by))),
                _ => return None,
            }
        }
    }

    /// The gradient of scores is that before their mods, if they have any, with the factor that products of queries and
    /// keys had.
    fn check_gradient(&self, gradient: F) -> Result<(), String> {
        let Form::Gradient { weights, before_mods, factor } = *self.form(gradient) else { return Ok(()) };
        let Form::Weights { scores, base } = *self.form(weights) else { return Ok(()) };
        let to_base = if base { std::f64::consts::LN_2 } else { 1.0 };
        let (mut at, mut scale) = match self.mods_of(weights) {
            Some(_) if !before_mods => return Err("the derivative of the score mods is left out".to_owned()),
            Some((of, behind)) => {
                if !near(behind * to_base, 1.0) {
                    return Err(format!("modified scores have factor {behind}"));
                }
                (of, 1.0)
            }
            None => (scores, to_base),
        };
        while let Form::Scaled { of, factor: by } = *self.form(at) {
            (at, scale) = (of, scale * f64::from_bits(by));
        }
        let Form::Scores { x, .. } = self.form(at) else { return Ok(()) };
        if let Form::Packed { factor: by, .. } = self.form(*x) {
            scale *= f64::from_bits(*by);
        }
        let factor = f64::from_bits(factor);
        if near(factor, scale) {
            return Ok(());
        }
        Err(format!("the gradient of products has factor {factor}, where they have {scale}"))
    }

    /// The gradient of weights and its sums are made of the same hops: of what each got back, what it read and what it
    /// gave.
    fn check_shares(&mut self, weights: F, dp: F, delta: F, dropout: bool) -> Result<(), String> {
        let refuse = |what: &str| Err(what.to_owned());
        if !matches!(self.form(weights), Form::Weights { .. }) {
            return refuse("the softmax's gradient takes weights before dropout");
        }
        let Form::Scores { x, y, .. } = self.form(dp).clone() else {
            return refuse("the gradient of weights is no product");
        };
        let rows = match self.form(x) {
            Form::Packed { rows, factor } if *factor == 1.0_f64.to_bits() => rows.clone(),
            _ => return refuse("the gradient of weights is no product of packed rows"),
        };
        if rows.len() != y.len() {
            return refuse("the gradient of weights has other rows than columns");
        }
        // What each hop got back and read.
        let mut products = Vec::new();
        for (&h, &z) in rows.iter().zip(&y) {
            let Form::Rows { x: g, l: Some(l), factor } = *self.form(h) else {
                return refuse("a hop's gradient is not divided by row sums");
            };
            if *self.form(l) != Form::Sums(weights) {
                return refuse("a hop's gradient is divided by other sums");
            }
            products.push((g, z, factor));
        }
        let mut shares = Vec::new();
        let mut open = delta;
        loop {
            let (share, rest) = match *self.form(open) {
                Form::Sum { of, and } => (and, Some(of)),
                _ => (open, None),
            };
            shares.push(self.share(share, weights, dropout)?);
            match rest {
                Some(of) => open = of,
                None => break,
            }
        }
        products.sort_unstable();
        shares.sort_unstable();
        if products == shares {
            return Ok(());
        }
        refuse("the gradient of weights and its sums are of different hops")
    }

    /// What a hop got back and read, by what it adds to the sums.
    fn share(&mut self, share: F, weights: F, dropout: bool) -> Result<(F, F, RowBits), String> {
        let Form::Share { g, y, minus, hop, l } = *self.form(share) else {
            return Err("the sums of a gradient are no products of rows".to_owned());
        };
        let (made, left_by) = match *self.form(y) {
            Form::Left { of, hop } => (of, hop),
            _ => (y, None),
        };
        let (p, z, of, factor, plus) = match *self.form(made) {
            Form::Hop { p, z, l, factor, plus } => (p, z, l, factor, plus),
            // It reads what it gives, and its gradient is that of the system.
            Form::Solved { p, l: of, factor, plus } => {
                if !matches!(*self.form(g), Form::Adjoint { p: by, l, factor: times, .. } if (by, l, times) == (p, of, factor))
                {
                    return Err("the gradient of what is solved is not that of its system".to_owned());
                }
                (p, made, Some(of), factor, Some(plus))
            }
            _ => return Err("the sums of a gradient are not of what a hop gave".to_owned()),
        };
        if (p != weights) != dropout || self.whole(p) != weights {
            return Err("the sums of a gradient are of a hop with other weights".to_owned());
        }
        if l != of || minus != plus || hop != left_by {
            return Err("the sums of a gradient leave out, or take in, what a hop did not multiply".to_owned());
        }
        if hop.is_some() && !matches!(*self.form(g), Form::Left { hop: of, .. } if of == hop) {
            return Err("dropout left rows of a hop, and all of their gradient".to_owned());
        }
        // What a call gives in the hop's factors gets a sum each.
        let [_, slope, column] = factor;
        if slope != 0 {
            let product = self.intern(Form::Hop { p, z, l: of, factor: ONE, plus: None });
            self.wanted.push((g, product, slope, column as u32));
        }
        if let Some((rows, [_, slope, column])) = plus
            && slope != 0
        {
            self.wanted.push((g, rows, slope, column as u32));
        }
        Ok((g, z, factor))
    }

    fn check_outputs(&self) -> Result<(), String> {
        if self.wanted.iter().any(|sum| !self.sums.contains(sum)) {
            return Err("a number that a call gives for hops has no gradient, or a part of one".to_owned());
        }
        let twice = |(at, sum): (usize, &Sum)| self.sums[..at].contains(sum);
        if self.sums.iter().enumerate().any(twice) {
            return Err("what a call gives for hops gets a sum twice".to_owned());
        }
        for (id, value) in self.body.values.iter().enumerate() {
            let form = self.form_of[id].map(|number| self.form(number));
            let of_weights = |p: F| matches!(self.form(p), Form::Weights { .. } | Form::Left { .. });
            let wanted = match value.extent {
                Extent::Tensor(Tensor::Out) => match form {
                    Some(Form::Hop { p, .. }) => of_weights(*p),
                    Some(Form::Left { of, .. }) => matches!(self.form(*of), Form::Hop { .. }),
                    Some(Form::Joined { .. } | Form::Solved { .. }) => true,
                    _ => false,
                },
                Extent::Tensor(Tensor::GradQ) => match form {
                    Some(Form::Hop { p, factor, .. }) => !of_weights(*p) || f64::from_bits(factor[0]) == 0.0,
                    Some(Form::Sum { .. }) => true,
                    _ => false,
                },
                _ => true,
            };
            if !wanted {
                return Err(format!("{} is no output", value.name));
            }
        }
        Ok(())
    }
}

/// The bits of a factor, which is finite.
fn bits(factor: f64) -> Result<Bits, String> {
    if factor.is_finite() { Ok(factor.to_bits()) } else { Err(format!("factor {factor} is not finite")) }
}

/// The same of a factor on rows.
fn row_bits(factor: Factor) -> Result<RowBits, String> {
    Ok([bits(factor.constant)?, bits(factor.slope)?, u64::from(factor.column)])
}

/// No factor.
const ONE: RowBits = [1.0_f64.to_bits(), 0, 0];

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

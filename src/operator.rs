//! A spec at given lengths as one operator, whatever is known only when it is called.
//!
//! In: a spec, lengths, and per call tensors, inputs of score mods, key lengths, segment ids and picked neighbors. Out: what
//! a kernel gives. What comes with the call are facts about a batch element; its pattern is bound to them, and its tables are
//! made for a kernel that never touches what the element does not have. Its code is that of an earlier kernel whose tables
//! alone differ ([`Codes`]): other facts compile nothing. Kernels are kept by their facts, so the layers of a model share
//! them, and elements of equal facts are computed together.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ndarray::{Array4, ArrayD, ArrayView2, ArrayView4, ArrayViewMut3, ArrayViewMut4, Axis, s};

use crate::compiler::{self, Compiled, Options};
use crate::dropout::Dropout;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::jit::Codes;
use crate::pattern::{self, Awaited, Awaits, Pattern, Picked, RunTime};
use crate::runtime::memory::zeros;
use crate::runtime::{Gradients, Output, Saved, Step, TrainingKernel, check, check_outputs};
use crate::select;
use crate::spec::{Factors, Inputs, PatternSpec};

/// Kernels that an operator keeps at most, and of those for picked neighbors, which seldom come twice.
const KEPT: usize = 64;
const KEPT_PICKED: usize = 4;

/// A spec at given lengths. Safe to call from many threads at once.
#[derive(Debug)]
pub struct Operator {
    spec: PatternSpec,
    pattern: Pattern,
    options: Options,
    /// For kernels of what comes with a call, made with the first.
    options_at_call: OnceLock<Options>,
    kernels: Kept<Arc<Compiled>>,
    /// Those for training with dropout.
    training: Kept<TrainingKernel>,
}

/// What a call brings besides q, k and v.
#[derive(Debug, Clone, Default)]
pub struct Arguments<'a> {
    /// What the score mods read.
    pub inputs: Inputs<'a>,
    /// For every batch element, how many keys it has: those from there on are padding, never read, and as good as
    /// zero where a restart term would add their values. All keys where it is not given.
    pub key_lengths: Option<&'a [i64]>,
    /// Segment ids by the name of their input, `[batch, kv_len]`, from 0 on and never decreasing.
    pub segments: Vec<(String, ArrayView2<'a, i32>)>,
    /// Picked neighbors by the name of their input.
    pub picked: Vec<(String, PickedInput<'a>)>,
    /// Dropout, in training.
    pub dropout: Option<Dropout>,
}

/// Neighbors that are picked at run time, `[batch or 1, heads or kv_heads or 1, rows, …]`.
#[derive(Debug, Clone)]
pub enum PickedInput<'a> {
    /// For every query block and key block, whether it is picked (not 0).
    Layout(ArrayView4<'a, u8>),
    /// Lists of key blocks by query block, or of keys by query; -1 ends a list.
    Lists(ArrayView4<'a, i32>),
}

/// What is known of one batch element only when it is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    key_length: Option<usize>,
    /// By the names in the order of [`Arguments::segments`].
    segments: Vec<(String, Vec<i32>)>,
    /// By the name of what waits for it.
    picked: Vec<(String, Picked)>,
}

impl PickedInput<'_> {
    fn shape(&self) -> &[usize] {
        match self {
            Self::Layout(layout) => layout.shape(),
            Self::Lists(lists) => lists.shape(),
        }
    }

    /// What is picked for every element of a batch, one where all are given the same.
    fn read(&self, awaited: &Awaited, batch: usize, (heads, kv_heads): (usize, usize)) -> Result<Vec<Picked>> {
        let Awaited { name, what } = awaited;
        let (rows, columns, is_layout) = match what {
            Awaits::Blocks([rows, columns]) => (*rows, *columns, true),
            Awaits::Keys([rows, columns]) => (*rows, *columns, false),
            Awaits::Segments | Awaits::Top(_) => (0, 0, false),
        };
        let shape = self.shape();
        let fits = (shape[0] == 1 || shape[0] == batch)
            && [1, heads, kv_heads].contains(&shape[1])
            && shape[2] == rows
            && match self {
                Self::Layout(_) => is_layout && shape[3] == columns,
                Self::Lists(_) => true,
            };
        if !fits {
            let kind = if matches!(self, Self::Layout(_)) { "u8" } else { "i32" };
            return Err(Error::Shape {
                tensor: format!("input `{name}`"),
                expected: format!("{what} (batch {batch}, heads {heads}, kv_heads {kv_heads})"),
                found: format!("{kind} {shape:?}"),
            });
        }
        let element = |b: usize| match self {
            Self::Layout(layout) => Ok(Picked::from_layout(&layout.index_axis(Axis(0), b))),
            Self::Lists(lists) => Picked::from_lists(name, b, &lists.index_axis(Axis(0), b), columns),
        };
        (0..shape[0]).map(element).collect()
    }
}

impl Arguments<'_> {
    /// The facts of every batch element, without what q and k decide on (`top_blocks`).
    ///
    /// # Errors
    /// [`Error::Shape`] where there is not one key length, one row of ids or one list for each element, [`Error::Value`] for
    /// a negative key length, and for numbers out of range.
    pub fn facts(&self, batch: usize, pattern: &Pattern, kv_heads: usize) -> Result<Vec<Facts>> {
        let kv_len = pattern.kv_len;
        let mut picked: Vec<(String, Vec<Picked>)> = Vec::new();
        for awaited in pattern.awaits() {
            if matches!(awaited.what, Awaits::Blocks(_) | Awaits::Keys(_))
                && let Some((_, input)) = self.picked.iter().find(|(name, _)| *name == awaited.name)
            {
                let of_batch = input.read(&awaited, batch, (pattern.heads, kv_heads))?;
                picked.push((awaited.name, of_batch));
            }
        }
        if let Some(lengths) = self.key_lengths
            && lengths.len() != batch
        {
            return Err(Error::Shape {
                tensor: "key_lengths".into(),
                expected: format!("[batch {batch}]"),
                found: format!("[{}]", lengths.len()),
            });
        }
        for (name, ids) in &self.segments {
            if ids.dim() != (batch, kv_len) {
                return Err(Error::Shape {
                    tensor: format!("input `{name}`"),
                    expected: format!("[batch {batch}, kv_len {kv_len}]"),
                    found: format!("{:?}", ids.shape()),
                });
            }
        }
        let element = |b: usize| {
            let key_length = match self.key_lengths.map(|lengths| lengths[b]) {
                None => None,
                Some(length) => Some(usize::try_from(length).map_err(|_| Error::Value {
                    tensor: "key_lengths".into(),
                    message: format!("the key length at {b} is {length}; expected 0 to {kv_len}"),
                })?),
            };
            let segments = self.segments.iter().map(|(name, ids)| (name.clone(), ids.row(b).to_vec())).collect();
            let of_element = |of_batch: &[Picked]| of_batch[if of_batch.len() == 1 { 0 } else { b }].clone();
            let picked = picked.iter().map(|(name, of_batch)| (name.clone(), of_element(of_batch))).collect();
            // A length of all keys is no fact.
            Ok(Facts { key_length: key_length.filter(|&length| length != kv_len), segments, picked })
        };
        (0..batch).map(element).collect()
    }
}

impl Facts {
    /// Adds what is picked for `name`, such as for a `top_blocks` ([`crate::pattern::Awaited::name`]).
    pub fn pick(&mut self, name: &str, picked: Picked) {
        self.picked.push((name.to_owned(), picked));
    }

    /// The pattern of an element with these facts.
    ///
    /// # Errors
    /// Those of [`Pattern::bind`].
    pub fn bind(&self, pattern: &Pattern) -> Result<Pattern> {
        let ids = |name: &str| self.segments.iter().find(|(known, _)| known == name).map(|(_, ids)| ids.as_slice());
        let picked = |name: &str| self.picked.iter().find(|(known, _)| known == name).map(|(_, picked)| picked);
        pattern.bind(&RunTime { key_length: self.key_length, segments: &ids, picked: &picked })
    }

    /// Whether a restart term (or no hop at all) would read values of padding.
    fn pads(&self, spec: &PatternSpec) -> bool {
        let keeps = match spec.diffusion.fixed() {
            Some(Factors { hops, .. }) => hops.is_empty() || hops.iter().any(|hop| hop.restart != 0.0),
            None => true,
        };
        self.key_length.is_some() && keeps
    }

    /// `v` of an element with these facts, `[1, heads, kv_len, width]`: a copy with zeros for padding where the restart
    /// term of a diffusion would read it.
    pub fn values<T: Element>(&self, spec: &PatternSpec, v: &ArrayView4<'_, T>) -> Option<Array4<T>> {
        let length = self.key_length.filter(|_| self.pads(spec))?;
        let mut padded = Array4::default(v.dim());
        padded.slice_mut(s![.., .., ..length, ..]).assign(&v.slice(s![.., .., ..length, ..]));
        Some(padded)
    }
}

impl Operator {
    /// The operator of a spec; its kernel is compiled here unless its pattern waits for segment ids.
    ///
    /// # Errors
    /// Those of [`compiler::compile`].
    pub fn new(spec: PatternSpec, q_len: usize, kv_len: usize, options: Options) -> Result<Self> {
        let pattern = pattern::resolve(&spec, q_len, kv_len)?;
        Self::of_pattern(spec, pattern, options)
    }

    /// The operator of a pattern that stands for the spec's own, such as a slice of it.
    ///
    /// # Errors
    /// Those of [`compiler::compile_pattern`].
    pub fn of_pattern(spec: PatternSpec, pattern: Pattern, options: Options) -> Result<Self> {
        let (options_at_call, kernels, training) = Default::default();
        let operator = Self { spec, pattern, options, options_at_call, kernels, training };
        if operator.pattern.awaits().is_empty() {
            operator.kernel(&Facts::default())?;
        }
        Ok(operator)
    }

    /// The spec.
    pub fn spec(&self) -> &PatternSpec {
        &self.spec
    }

    /// The layout that the pattern's `top_blocks` picks for `q [batch, heads, q_len, head_dim]` and `k [batch, kv_heads,
    /// kv_len, head_dim]`: `[batch, heads, query blocks, key blocks]`, 1 where a block is picked.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the pattern has no `top_blocks`, or several; [`Error::Shape`] for tensors that do not fit.
    pub fn select<T: Element>(&self, q: ArrayView4<'_, T>, k: ArrayView4<'_, T>) -> Result<Array4<u8>> {
        let awaited = self.pattern.awaits();
        let mut tops = awaited.iter().filter_map(|awaited| match awaited.what {
            Awaits::Top(top) => Some(top),
            _ => None,
        });
        let (Some(top), None) = (tops.next(), tops.next()) else {
            return Err(Error::unsupported("a selection by this spec", "its pattern has one `top_blocks` node"));
        };
        let (rows, columns) = top.blocks();
        let mut layout = zeros("the picked blocks", (q.dim().0, self.spec.heads, rows, columns))?;
        let picks = select::top_blocks(q, k, &top, self.spec.scale)?;
        for (picked, mut layout) in picks.iter().zip(layout.outer_iter_mut()) {
            for ((head, row), mut columns) in
                layout.rows_mut().into_iter().enumerate().map(|(i, columns)| ((i / rows, i % rows), columns))
            {
                picked.row(head, row).iter().for_each(|&block| columns[block as usize] = 1);
            }
        }
        Ok(layout)
    }

    /// How many kernels were compiled for what comes with calls.
    pub fn compilations(&self) -> usize {
        self.options_at_call.get().and_then(|options| options.codes.as_ref()).map_or(0, Codes::len)
    }

    /// Its pattern, which may wait for what comes with a call.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Attention over `q [batch, heads, q_len, head_dim]`, `k [batch, kv_heads, kv_len, head_dim]` and
    /// `v [batch, kv_heads, kv_len, value_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Value`] for tensors, key lengths and ids that do not fit, and those of compiling.
    pub fn forward<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
        arguments: &Arguments<'_>,
    ) -> Result<Output<T>> {
        // What does not fit is refused before memory is asked for.
        let facts = self.facts(&q, &k, v.dim().0, arguments)?;
        if let (Some(first), None) = (self.shared(&facts), arguments.dropout) {
            return self.kernel(first)?.kernel.forward_with(q, k, v, &arguments.inputs);
        }
        let (batch, heads, q_len) = (q.dim().0, self.spec.heads, self.pattern.q_len);
        let mut output = Output {
            out: zeros("the output", (batch, heads, q_len, self.spec.value_dim))?,
            lse: zeros("log-sum-exp", (batch, heads, q_len))?,
        };
        self.forward_of(&facts, [q, k, v], arguments, &mut output.out.view_mut(), &mut output.lse.view_mut())?;
        Ok(output)
    }

    /// The same of `tensors` q, k and v into `out [batch, heads, q_len, value_dim]`, whose last axis has stride 1, and `lse
    /// [batch, heads, q_len]` in standard layout, whatever they hold. With dropout, results are copied there.
    ///
    /// # Errors
    /// Those of [`Self::forward`], and [`Error::Shape`] for `out` and `lse` that do not fit.
    pub fn forward_into<T: Element>(
        &self,
        [q, k, v]: [ArrayView4<'_, T>; 3],
        arguments: &Arguments<'_>,
        out: &mut ArrayViewMut4<'_, T>,
        lse: &mut ArrayViewMut3<'_, f32>,
    ) -> Result<()> {
        let facts = self.facts(&q, &k, v.dim().0, arguments)?;
        self.forward_of(&facts, [q, k, v], arguments, out, lse)
    }

    fn forward_of<T: Element>(
        &self,
        facts: &[Facts],
        [q, k, v]: [ArrayView4<'_, T>; 3],
        arguments: &Arguments<'_>,
        out: &mut ArrayViewMut4<'_, T>,
        lse: &mut ArrayViewMut3<'_, f32>,
    ) -> Result<()> {
        let batch = q.dim().0;
        let (inputs, dropout) = (&arguments.inputs, arguments.dropout);
        let step = |first| Step { inputs: inputs.clone(), dropout, first };
        // Before elements are cut out of them.
        let dims = [batch, self.spec.heads, self.pattern.q_len, self.spec.value_dim];
        check("out", out.shape(), &dims)?;
        check("lse", lse.shape(), &dims[..3])?;
        if let Some(first) = self.shared(facts) {
            if dropout.is_none() {
                return self.kernel(first)?.kernel.forward_into_with(q, k, v, inputs, out, Some(lse));
            }
            let output = self.training(first, true)?.forward(q, k, v, &step(0))?;
            out.assign(&output.out);
            lse.assign(&output.lse);
            return Ok(());
        }
        for (b, facts) in facts.iter().enumerate() {
            let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.slice(s![b..=b, .., .., ..]));
            let padded = facts.values(&self.spec, &v);
            let v = padded.as_ref().map_or(v, |padded| padded.view());
            let mut out = out.slice_mut(s![b..=b, .., .., ..]);
            let mut lse = lse.slice_mut(s![b..=b, .., ..]);
            match dropout {
                None => self.kernel(facts)?.kernel.forward_into_with(q, k, v, inputs, &mut out, Some(&mut lse))?,
                Some(_) => {
                    let of_element = self.training(facts, true)?.forward(q, k, v, &step(b))?;
                    out.assign(&of_element.out);
                    lse.assign(&of_element.lse);
                }
            }
        }
        Ok(())
    }

    /// The facts of all elements, where they are the same and what the caller gives can be read as it is.
    fn shared<'f>(&self, facts: &'f [Facts]) -> Option<&'f Facts> {
        let first = facts.first()?;
        (facts.iter().all(|other| other == first) && !first.pads(&self.spec)).then_some(first)
    }

    /// The gradients of `q`, `k` and `v` (shapes of [`Self::forward`]) from that of the output, `grad_out
    /// [batch, heads, q_len, value_dim]`. `saved` is what [`Self::forward`] gave for the same tensors and arguments; it
    /// spares computing that again.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub fn backward<T: Element>(
        &self,
        q: ArrayView4<'_, T>,
        k: ArrayView4<'_, T>,
        v: ArrayView4<'_, T>,
        grad_out: ArrayView4<'_, T>,
        saved: Option<Saved<'_, T>>,
        arguments: &Arguments<'_>,
    ) -> Result<Gradients<T>> {
        let facts = self.facts(&q, &k, v.dim().0, arguments)?;
        let dropout = arguments.dropout;
        if let Some(first) = self.shared(&facts) {
            let step = Step { inputs: arguments.inputs.clone(), dropout, first: 0 };
            return self.training(first, dropout.is_some())?.backward(q, k, v, grad_out, saved, &step);
        }
        let mut gradients = Gradients {
            q: zeros("the gradient of q", q.dim())?,
            k: zeros("the gradient of k", k.dim())?,
            v: zeros("the gradient of v", v.dim())?,
            inputs: Vec::new(),
        };
        let into = [&mut gradients.q, &mut gradients.k, &mut gradients.v].map(|gradient| gradient.view_mut());
        gradients.inputs = self.backward_into([q, k, v, grad_out], saved, arguments, into)?;
        Ok(gradients)
    }

    /// The same of `tensors` q, k, v and `grad_out` into three of the caller, of the shapes of q, k and v, whatever those hold;
    /// f32 in standard layout is written in place where all batch elements have the same facts. Gives the gradients of the
    /// score mods' inputs.
    ///
    /// # Errors
    /// Those of [`Self::backward`], and [`Error::Shape`] for tensors that do not fit.
    pub fn backward_into<T: Element>(
        &self,
        [q, k, v, grad_out]: [ArrayView4<'_, T>; 4],
        saved: Option<Saved<'_, T>>,
        arguments: &Arguments<'_>,
        into: [ArrayViewMut4<'_, T>; 3],
    ) -> Result<Vec<(String, ArrayD<f32>)>> {
        let batch = q.dim().0;
        let facts = self.facts(&q, &k, v.dim().0, arguments)?;
        let (inputs, dropout) = (&arguments.inputs, arguments.dropout);
        let step = |first| Step { inputs: inputs.clone(), dropout, first };
        if let Some(first) = self.shared(&facts) {
            let kernel = self.training(first, dropout.is_some())?;
            return kernel.backward_into([q, k, v, grad_out], saved, &step(0), into);
        }
        // Before elements are cut out of them.
        check_outputs(&grad_out, saved.as_ref(), [batch, self.spec.heads, self.pattern.q_len, self.spec.value_dim])?;
        let [mut dq, mut dk, mut dv] = into;
        check("the gradient of q", dq.shape(), q.shape())?;
        check("the gradient of k", dk.shape(), k.shape())?;
        check("the gradient of v", dv.shape(), v.shape())?;
        let mut of_inputs: Vec<(String, ArrayD<f32>)> = Vec::new();
        for (b, facts) in facts.iter().enumerate() {
            let [q, k, v, grad_out] = [&q, &k, &v, &grad_out].map(|tensor| tensor.slice(s![b..=b, .., .., ..]));
            let padded = facts.values(&self.spec, &v);
            let v = padded.as_ref().map_or(v, |padded| padded.view());
            let saved = saved.as_ref().map(|saved| Saved {
                out: saved.out.slice_move(s![b..=b, .., .., ..]),
                lse: saved.lse.slice_move(s![b..=b, .., ..]),
            });
            let kernel = self.training(facts, dropout.is_some())?;
            let mut of_element = kernel.backward(q, k, v, grad_out, saved, &step(b))?;
            if padded.is_some() {
                // What stands in for padding is no input.
                let length = facts.key_length.unwrap_or(self.pattern.kv_len);
                of_element.v.slice_mut(s![.., .., length.., ..]).fill(T::default());
            }
            dq.slice_mut(s![b..=b, .., .., ..]).assign(&of_element.q);
            dk.slice_mut(s![b..=b, .., .., ..]).assign(&of_element.k);
            dv.slice_mut(s![b..=b, .., .., ..]).assign(&of_element.v);
            if of_inputs.is_empty() {
                of_inputs = of_element.inputs;
            } else {
                for ((_, sum), (_, of_element)) in of_inputs.iter_mut().zip(of_element.inputs) {
                    *sum += &of_element;
                }
            }
        }
        Ok(of_inputs)
    }

    /// What is known of every batch element, of which there are as many as q has.
    fn facts<T: Element>(
        &self,
        q: &ArrayView4<'_, T>,
        k: &ArrayView4<'_, T>,
        v_batch: usize,
        arguments: &Arguments<'_>,
    ) -> Result<Vec<Facts>> {
        let batch = q.dim().0;
        for (tensor, found) in [("k", k.dim().0), ("v", v_batch)] {
            if found != batch {
                return Err(Error::Shape {
                    tensor: tensor.into(),
                    expected: format!("a batch of {batch}, as q has"),
                    found: format!("a batch of {found}"),
                });
            }
        }
        let awaited = self.pattern.awaits();
        let waits = |name: &str, segments: bool| {
            awaited.iter().any(|one| one.name == name && (one.what == Awaits::Segments) == segments)
        };
        for (names, segments, what) in [
            (arguments.segments.iter().map(|(name, _)| name).collect::<Vec<_>>(), true, "segment ids"),
            (arguments.picked.iter().map(|(name, _)| name).collect(), false, "picked neighbors"),
        ] {
            if let Some(&name) = names.iter().find(|name| !waits(name, segments)) {
                let message = format!("is given as {what}, which the spec's pattern does not name");
                return Err(Error::Value { tensor: name.clone(), message });
            }
        }
        let mut facts = arguments.facts(batch, &self.pattern, self.spec.kv_heads)?;
        if facts.is_empty() && awaited.is_empty() {
            // An empty batch is still checked by a kernel.
            return Ok(vec![Facts::default()]);
        }
        for Awaited { name, what } in awaited {
            if let Awaits::Top(top) = what {
                let picked = select::top_blocks(q.view(), k.view(), &top, self.spec.scale)?;
                for (facts, picked) in facts.iter_mut().zip(picked) {
                    facts.picked.push((name.clone(), picked));
                }
            }
        }
        Ok(facts)
    }

    /// The kernel for training for elements of these facts, made at the first call.
    fn training(&self, facts: &Facts, dropout: bool) -> Result<TrainingKernel> {
        if !dropout {
            return self.kernel(facts)?.kernel.training().cloned();
        }
        keep(&self.training, facts, || {
            compiler::compile_training(&self.spec, &facts.bind(&self.pattern)?, self.options(facts), true)
        })
    }

    /// The kernel for elements of these facts, made at the first call.
    ///
    /// # Errors
    /// Those of [`Facts::bind`] and of compiling.
    pub fn kernel(&self, facts: &Facts) -> Result<Arc<Compiled>> {
        keep(&self.kernels, facts, || {
            Ok(Arc::new(compiler::compile_pattern(&self.spec, facts.bind(&self.pattern)?, self.options(facts))?))
        })
    }

    fn options(&self, facts: &Facts) -> &Options {
        if *facts == Facts::default() {
            return &self.options;
        }
        self.options_at_call.get_or_init(|| {
            let settled = self.options.settled(&self.spec, self.pattern.q_len, self.pattern.kv_len);
            Options { codes: Some(Codes::default()), ..settled }
        })
    }
}

/// Kernels by the facts they were made for, the least recently used first.
type Kept<K> = Mutex<Vec<(Facts, K)>>;

/// The kernel for `facts` among those that are kept, or a new one, which is kept.
fn keep<K: Clone>(kept: &Kept<K>, facts: &Facts, make: impl FnOnce() -> Result<K>) -> Result<K> {
    let find = |kernels: &mut Vec<(Facts, K)>| {
        let at = kernels.iter().position(|(known, _)| known == facts)?;
        // Last used, last to go.
        let entry = kernels.remove(at);
        let kernel = entry.1.clone();
        kernels.push(entry);
        Some(kernel)
    };
    if let Some(known) = find(&mut kept.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(known);
    }
    // Compiled without the lock: other facts need not wait, and two who make the same waste one.
    let kernel = make()?;
    let mut kernels = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = find(&mut kernels) {
        return Ok(known);
    }
    let is_picked = |(facts, _): &(Facts, K)| !facts.picked.is_empty();
    if !facts.picked.is_empty() && kernels.iter().filter(|kept| is_picked(kept)).count() >= KEPT_PICKED {
        let oldest = kernels.iter().position(is_picked).unwrap_or(0);
        kernels.remove(oldest);
    } else if kernels.len() == KEPT {
        kernels.remove(0);
    }
    kernels.push((facts.clone(), kernel.clone()));
    Ok(kernel)
}

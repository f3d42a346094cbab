//! Named tensors that a caller gives for one call: to score mods, and to the hops.

use ndarray::ArrayViewD;

use super::{InputShape, ScoreMods};
use crate::error::{Error, Result};
use crate::spec::Given;

/// Tensors by name, for the score mods and the diffusion that read them. They hold f32 in C order; the batch is no axis of theirs.
#[derive(Debug, Clone, Default)]
pub struct Inputs<'a> {
    named: Vec<(String, ArrayViewD<'a, f32>)>,
}

impl<'a> Inputs<'a> {
    /// No inputs.
    pub const fn none() -> Self {
        Self { named: Vec::new() }
    }

    /// The same with one more; a name that was given before is given anew.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, tensor: ArrayViewD<'a, f32>) -> Self {
        let name = name.into();
        self.named.retain(|(known, _)| *known != name);
        self.named.push((name, tensor));
        self
    }

    /// The tensors' elements: those of the score mods' inputs in their order, and the numbers that a diffusion takes.
    ///
    /// # Errors
    /// [`Error::Shape`] that names the input and its line in the spec: one that is missing, unknown, of another shape
    /// or not contiguous. [`Error::Value`] for a number that a diffusion cannot take.
    pub fn check<'t>(&'t self, mods: Option<&ScoreMods>, given: Option<&Given>, heads: usize) -> Result<Checked<'t>> {
        let declared: &[InputShape] = mods.map_or(&[], |mods| &mods.inputs);
        let of_diffusion = given.map(|given| given.input.name.as_str());
        let known: Vec<&str> = declared.iter().map(|input| input.name.as_str()).chain(of_diffusion).collect();
        for (name, tensor) in &self.named {
            if !known.contains(&name.as_str()) {
                let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
                return Err(Error::Shape {
                    tensor: format!("input `{name}`"),
                    expected: match names.is_empty() {
                        true => "no input: the spec's score mods and hops read none".to_owned(),
                        false => format!("one of the spec's inputs, {}", names.join(", ")),
                    },
                    found: format!("{:?} under this name", tensor.shape()),
                });
            }
        }
        let of_mods = declared.iter().map(|input| {
            let tensor = format!("input `{}` (line {} of the spec)", input.name, input.line);
            self.find(&input.name, tensor, std::slice::from_ref(&input.shape))
        });
        let mods = of_mods.collect::<Result<_>>()?;
        let numbers = match given {
            None => HeadNumbers::default(),
            Some(given) => {
                let numbers = self.find(&given.input.name, given.tensor(), &given.shapes(heads))?;
                given.check(numbers)?;
                HeadNumbers { numbers, columns: given.columns }
            }
        };
        Ok(Checked { mods, numbers })
    }

    fn find<'t>(&'t self, name: &str, tensor: String, shapes: &[Vec<usize>]) -> Result<&'t [f32]> {
        let expected = || shapes.iter().map(|shape| format!("{shape:?}")).collect::<Vec<_>>().join(" or ");
        let Some((_, array)) = self.named.iter().find(|(known, _)| known == name) else {
            return Err(Error::Shape { tensor, expected: expected(), found: "no tensor".to_owned() });
        };
        if shapes.iter().all(|shape| array.shape() != shape) {
            return Err(Error::Shape { tensor, expected: expected(), found: format!("{:?}", array.shape()) });
        }
        match array.as_slice() {
            Some(elements) => Ok(elements),
            None => {
                let (expected, found) =
                    (format!("{} in C order", expected()), format!("strides {:?}", array.strides()));
                Err(Error::Shape { tensor, expected, found })
            }
        }
    }
}

/// Inputs of a call that fit.
#[derive(Debug, Clone)]
pub struct Checked<'t> {
    /// Elements of the score mods' inputs, in their order.
    pub mods: Vec<&'t [f32]>,
    /// What a diffusion takes.
    pub numbers: HeadNumbers<'t>,
}

/// Numbers for each head; none where nothing is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadNumbers<'t> {
    numbers: &'t [f32],
    columns: usize,
}

impl<'t> HeadNumbers<'t> {
    /// Those of a head: of its own, or of all.
    pub fn of_head(&self, head: usize) -> &'t [f32] {
        let first = if self.numbers.len() == self.columns { 0 } else { head * self.columns };
        &self.numbers[first..first + self.columns]
    }

    /// All of them, in C order.
    pub const fn all(&self) -> &'t [f32] {
        self.numbers
    }
}

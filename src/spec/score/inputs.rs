//! Named tensors that a caller gives for one call.

use ndarray::ArrayViewD;

use super::{InputShape, ScoreMods};
use crate::error::{Error, Result};

/// Tensors by name, for the score mods that read them. They hold f32 in C order; the batch is no axis of theirs.
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

    /// The tensors' elements in the order in which `mods` has its inputs.
    ///
    /// # Errors
    /// [`Error::Shape`] that names the input and its line in the spec: one that is missing, unknown, of another shape
    /// or not contiguous.
    pub fn check<'t>(&'t self, mods: Option<&ScoreMods>) -> Result<Vec<&'t [f32]>> {
        let declared: &[InputShape] = mods.map_or(&[], |mods| &mods.inputs);
        for (name, tensor) in &self.named {
            if declared.iter().all(|input| input.name != *name) {
                let names: Vec<String> = declared.iter().map(|input| format!("`{}`", input.name)).collect();
                return Err(Error::Shape {
                    tensor: format!("input `{name}`"),
                    expected: match names.is_empty() {
                        true => "no input: the spec's score mods read none".to_owned(),
                        false => format!("one of the spec's inputs, {}", names.join(", ")),
                    },
                    found: format!("{:?} under this name", tensor.shape()),
                });
            }
        }
        let check = |input: &InputShape| {
            let refuse = |expected: String, found: String| Error::Shape {
                tensor: format!("input `{}` (line {} of the spec)", input.name, input.line),
                expected,
                found,
            };
            let shape = format!("{:?}", input.shape);
            let Some((_, tensor)) = self.named.iter().find(|(name, _)| *name == input.name) else {
                return Err(refuse(shape, "no tensor".to_owned()));
            };
            if tensor.shape() != input.shape {
                return Err(refuse(shape, format!("{:?}", tensor.shape())));
            }
            tensor
                .as_slice()
                .ok_or_else(|| refuse(format!("{shape} in C order"), format!("strides {:?}", tensor.strides())))
        };
        declared.iter().map(check).collect()
    }
}

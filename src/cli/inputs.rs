//! The inputs of a spec's score mods: given as `--input NAME=FILE.npy`, or made up for measurements.

use std::path::PathBuf;

use ndarray::{ArrayD, IxDyn};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::npy;
use crate::spec::score::{self, Dim, InputDef, InputShape};
use crate::spec::{Inputs, PatternSpec};

/// `NAME=FILE.npy`, as the command line has it.
pub type Assignment = (String, PathBuf);

/// Reads an [`Assignment`].
///
/// # Errors
/// What was expected instead.
pub fn assignment(text: &str) -> Result<Assignment, String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.into(), file.into())),
        _ => Err("expected NAME=FILE.npy, such as rel=bias.npy".into()),
    }
}

/// Files for the inputs of a spec, whose headers were checked.
#[derive(Debug, Default)]
pub struct InputFiles {
    files: Vec<Assignment>,
    /// Elements of all of them.
    elements: u64,
}

/// Inputs in memory.
#[derive(Debug, Default)]
pub struct InputTensors(Vec<(String, ArrayD<f32>)>);

/// The inputs that a spec's mods read at these lengths.
fn shapes(spec: &PatternSpec, q_len: usize, kv_len: usize) -> Result<Vec<InputShape>> {
    Ok(score::resolve(spec, q_len, kv_len)?.map(|mods| mods.inputs).unwrap_or_default())
}

impl InputFiles {
    /// Looks at the headers of the files alone: is there one for every input, and does it fit?
    ///
    /// # Errors
    /// [`Error::Spec`] at the input's line for one that is missing or of another shape, and where an index may leave
    /// its input; [`Error::Input`] for a name that the spec does not have, a name given twice, and a file that is no
    /// f32 `.npy` in C order.
    pub fn check(spec: &PatternSpec, given: &[Assignment], q_len: usize, kv_len: usize) -> Result<Self> {
        let shapes = shapes(spec, q_len, kv_len)?;
        for (i, (name, path)) in given.iter().enumerate() {
            let wrong = |message: String| Error::Input { path: path.clone(), message };
            if given[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(wrong(format!("is a second file for input `{name}`; expected one")));
            }
            if shapes.iter().all(|input| input.name != *name) {
                let names: Vec<String> = shapes.iter().map(|input| format!("`{}`", input.name)).collect();
                let message = match names.is_empty() {
                    true => format!("is given as input `{name}`, but the spec's score mods read no inputs"),
                    false => format!("is given as input `{name}`; expected one of {}", names.join(", ")),
                };
                return Err(wrong(message));
            }
        }
        let mut elements = 0;
        for (input, def) in shapes.iter().zip(&spec.inputs) {
            let source = &spec.source;
            let Some((name, path)) = given.iter().find(|(name, _)| *name == input.name) else {
                let message = format!("no tensor is given for input `{}`", input.name);
                return Err(source.error(def.at, message, format!("`--input {}=FILE.npy`", input.name)));
            };
            let axes = axes(def);
            let found = npy::check(path, &axes.iter().map(String::as_str).collect::<Vec<_>>(), Dtype::F32)?.shape;
            if found != input.shape {
                let message = format!("{} holds {found:?} for input `{name}`", path.display());
                let expected = axes.iter().zip(&input.shape).map(|(axis, extent)| match axis.parse() {
                    Ok::<usize, _>(_) => axis.clone(),
                    Err(_) => format!("{axis} = {extent}"),
                });
                return Err(source.error(def.at, message, format!("[{}]", expected.collect::<Vec<_>>().join(", "))));
            }
            elements += found.iter().map(|&extent| extent as u64).product::<u64>();
        }
        Ok(Self { files: given.to_vec(), elements })
    }

    /// Bytes of all inputs.
    pub fn bytes(&self) -> u64 {
        self.elements.saturating_mul(size_of::<f32>() as u64)
    }

    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::Input`] when one cannot be read.
    pub fn read(&self) -> Result<InputTensors> {
        let read = |(name, path): &Assignment| Ok((name.clone(), npy::read::<f32, IxDyn>(path)?));
        Ok(InputTensors(self.files.iter().map(read).collect::<Result<_>>()?))
    }
}

/// The axes of an input as the spec has them.
fn axes(def: &InputDef) -> Vec<String> {
    let name = |dim: &Dim| match dim {
        Dim::Heads => "heads".to_string(),
        Dim::KvHeads => "kv_heads".to_string(),
        Dim::Expr(expr) => expr.to_string(),
    };
    def.shape.iter().map(|(dim, _)| name(dim)).collect()
}

impl InputTensors {
    /// Inputs made up for a spec; `number` gives their elements, told which input it is for.
    ///
    /// # Errors
    /// As [`score::resolve`].
    pub fn made_up(
        spec: &PatternSpec,
        q_len: usize,
        kv_len: usize,
        number: impl Fn(usize) -> Box<dyn FnMut() -> f32>,
    ) -> Result<Self> {
        let shapes = shapes(spec, q_len, kv_len)?;
        let tensor = |(i, input): (usize, InputShape)| {
            let tensor = ArrayD::from_shape_simple_fn(IxDyn(&input.shape), number(i));
            (input.name, tensor)
        };
        Ok(Self(shapes.into_iter().enumerate().map(tensor).collect()))
    }

    /// The tensors, as kernels and the interpreter take them.
    pub fn views(&self) -> Inputs<'_> {
        self.0.iter().fold(Inputs::none(), |inputs, (name, tensor)| inputs.with(name.as_str(), tensor.view()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_need_a_name_and_a_file() {
        assert_eq!(assignment("rel=a=b.npy"), Ok(("rel".into(), "a=b.npy".into())));
        assert!(["rel", "=a.npy", "rel=", ""].iter().all(|text| assignment(text).is_err()));
    }
}

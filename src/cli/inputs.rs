//! The inputs of a spec's score mods and hops: given as `--input NAME=FILE.npy`, or made up for measurements.

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};

use super::say::remark;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Span};
use crate::npy;
use crate::spec::score::{self, Dim, InputDef, InputShape};
use crate::spec::{Given, GivenRange, Inputs, PatternSpec, TYPICAL_ALPHA};

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

/// The inputs that a spec's mods read at these lengths; what its hops take is known by [`crate::spec::Diffusion::given`].
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
        let of_hops = spec.diffusion.given();
        let known = || shapes.iter().map(|input| &input.name).chain(of_hops.iter().map(|given| &given.input.name));
        for (i, (name, path)) in given.iter().enumerate() {
            let wrong = |message: String| Error::Input { path: path.clone(), message };
            if given[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(wrong(format!("is a second file for input `{name}`; expected one")));
            }
            if known().all(|known| known != name) {
                let names: Vec<String> = known().map(|name| format!("`{name}`")).collect();
                let message = match names.is_empty() {
                    true => format!("is given as input `{name}`, but the spec's score mods and hops read no inputs"),
                    false => format!("is given as input `{name}`; expected one of {}", names.join(", ")),
                };
                return Err(wrong(message));
            }
        }
        let mut elements = 0;
        for (input, def) in shapes.iter().zip(&spec.inputs) {
            let source = &spec.source;
            let (name, path) = file_of(spec, given, &input.name, def.at)?;
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
        if let Some(of_hops) = of_hops {
            let (_, path) = file_of(spec, given, &of_hops.input.name, of_hops.input.at)?;
            let found = check_of_hops(spec, &of_hops, path)?;
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

/// The shape of a file that is given for what the hops take.
///
/// # Errors
/// [`Error::Spec`] where it does not fit, [`Error::Input`] for a file that is no f32 `.npy` in C order.
pub fn check_of_hops(spec: &PatternSpec, of_hops: &Given, path: &Path) -> Result<Vec<usize>> {
    let axes: &[&str] = match of_hops.range {
        GivenRange::Any => &["heads", "hops + 1"],
        GivenRange::Share | GivenRange::Positive => &["heads"],
    };
    let found = npy::check(path, axes, Dtype::F32)?.shape;
    let shapes = of_hops.shapes(spec.heads);
    if !shapes.contains(&found) {
        let message = format!("{} holds {found:?} for input `{}`", path.display(), of_hops.input.name);
        let shapes: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
        let expected = format!("{} ({})", shapes.join(" or "), axes.join(", "));
        return Err(spec.source.error(of_hops.input.at, message, expected));
    }
    Ok(found)
}

/// The file that is given for an input.
fn file_of<'a>(spec: &PatternSpec, given: &'a [Assignment], name: &str, at: Span) -> Result<&'a Assignment> {
    given.iter().find(|(known, _)| known == name).ok_or_else(|| {
        let message = format!("no tensor is given for input `{name}`");
        spec.source.error(at, message, format!("`--input {name}=FILE.npy`"))
    })
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
    /// Inputs made up for a spec: those of the hops are [`typical`], of the others `number` gives the elements, told which
    /// input it is for.
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
        let of_hops = typical(spec).map(|(given, number)| {
            let shape = given.shapes(spec.heads).swap_remove(0);
            (given.input.name, ArrayD::from_elem(IxDyn(&shape), number))
        });
        Ok(Self(shapes.into_iter().enumerate().map(tensor).chain(of_hops).collect()))
    }

    /// The numbers of one head that the hops take, for a spec of one head that reads nothing else.
    pub fn of_one_head(given: &Given, numbers: &[f64]) -> Self {
        let shape = given.shapes(1).swap_remove(0);
        let mut numbers = numbers.iter();
        let number = || numbers.next().map_or(0.0, |&number| number as f32);
        let tensor = ArrayD::from_shape_simple_fn(IxDyn(&shape), number);
        Self(vec![(given.input.name.clone(), tensor)])
    }

    /// The tensors, as kernels and the interpreter take them.
    pub fn views(&self) -> Inputs<'_> {
        self.0.iter().fold(Inputs::none(), |inputs, (name, tensor)| inputs.with(name.as_str(), tensor.view()))
    }
}

/// What the hops take from a call, and the number that stands for all of it where it is made up.
fn typical(spec: &PatternSpec) -> Option<(Given, f32)> {
    let given = spec.diffusion.given()?;
    let number = match given.range {
        GivenRange::Any => 1.0 / given.columns as f64,
        GivenRange::Share | GivenRange::Positive => TYPICAL_ALPHA,
    };
    Some((given, number as f32))
}

/// Tells on standard error what is made up for the hops of a spec.
pub fn say_made_up(spec: &PatternSpec) {
    if let Some((given, number)) = typical(spec) {
        let name = &given.input.name;
        remark(&format!("{}: the input `{name}` of the hops is made up: {number} for every head", spec.name));
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

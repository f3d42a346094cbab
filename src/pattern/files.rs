//! Arrays in `.npy` files beside the spec.
//!
//! A spec is data, and reading it must not read what it should not: a path is taken relative to the folder of
//! the spec and must stay in it, links followed. A text that is no file (standard input, a string) may name
//! none. [`Source::allow_files`] lifts both. Refused as well: files that are no regular files or too large, cut
//! short, or of an element type that does not fit.

use std::path::{Component, Path, PathBuf};

use ndarray::{ArrayD, ArrayViewD};
use ndarray_npy::{ViewElement, ViewNpyError, ViewNpyExt};

use crate::error::{Bytes, Result};
use crate::limits::Limit;
use crate::spec::{Source, Value};

/// How to turn what a file holds into elements.
pub(super) struct Elements<T> {
    /// Integers and truth values; those beyond i64 come as its largest.
    pub integer: fn(i64) -> T,
    /// Floating-point numbers; refused where there is no way.
    pub float: Option<fn(f64) -> T>,
    /// What the file should be, for messages.
    pub expected: &'static str,
}

/// Reads the file that `value` names.
pub(super) fn read<T>(source: &Source, value: &Value, elements: &Elements<T>) -> Result<ArrayD<T>> {
    let path = locate(source, value, elements.expected)?;
    let refuse = |message: String| source.error(value.at, format!("{}: {message}", path.display()), elements.expected);
    let meta = std::fs::metadata(&path).map_err(|error| refuse(error.to_string()))?;
    if !meta.is_file() {
        return Err(refuse("not a file".into()));
    }
    if meta.len() > source.limits.get(Limit::File) {
        let message = format!("{}: {}", path.display(), Bytes(meta.len()));
        return Err(source.beyond(value.at, Limit::File, message));
    }
    let bytes = std::fs::read(&path).map_err(|error| refuse(error.to_string()))?;
    decode(&bytes, elements).map_err(refuse)
}

/// The file that `value` names, if a spec from this source may read it.
fn locate(source: &Source, value: &Value, expected: &str) -> Result<PathBuf> {
    let name = value.text(source, "file")?;
    let folder = match source.is_file() {
        true => Path::new(&source.file).parent().unwrap_or(Path::new("")),
        false => Path::new(""),
    };
    let path = folder.join(name);
    if source.allow_files {
        return Ok(path);
    }
    if !source.is_file() {
        let message = "a spec that is not a file cannot name one";
        return Err(source.error(value.at, message, "the spec in a file, or `--allow-files`"));
    }
    let outside = |message: String| {
        Err(source.error(value.at, message, "a path within the folder of the spec, or `--allow-files`"))
    };
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || name.is_empty() {
        return outside(format!("`file` cannot be `{name}`"));
    }
    // An empty folder is the current one.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let real = |path: &Path| {
        path.canonicalize().map_err(|error| source.error(value.at, format!("{}: {error}", path.display()), expected))
    };
    if !real(&path)?.starts_with(real(folder)?) {
        return outside(format!("`{name}` is a link that leads out of the folder of the spec"));
    }
    Ok(path)
}

/// Views the bytes as an array of the first type that fits its header. A view checks the shape against the
/// bytes that are there, so a header that lies cannot make us allocate.
fn decode<T>(bytes: &[u8], elements: &Elements<T>) -> Result<ArrayD<T>, String> {
    fn view<S: ViewElement + Copy, T>(bytes: &[u8], turn: impl Fn(S) -> T) -> Result<Option<ArrayD<T>>, String> {
        match ArrayViewD::<S>::view_npy(bytes) {
            Ok(view) => Ok(Some(view.mapv(turn))),
            Err(ViewNpyError::WrongDescriptor(_)) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
    let integer = elements.integer;
    type Reader<'a, T> = &'a dyn Fn(&[u8]) -> Result<Option<ArrayD<T>>, String>;
    let integers: [Reader<'_, T>; 9] = [
        &|b| view(b, |x: bool| integer(i64::from(x))),
        &|b| view(b, |x: u8| integer(i64::from(x))),
        &|b| view(b, |x: i8| integer(i64::from(x))),
        &|b| view(b, |x: u16| integer(i64::from(x))),
        &|b| view(b, |x: i16| integer(i64::from(x))),
        &|b| view(b, |x: u32| integer(i64::from(x))),
        &|b| view(b, |x: i32| integer(i64::from(x))),
        &|b| view(b, |x: u64| integer(i64::try_from(x).unwrap_or(i64::MAX))),
        &|b| view(b, integer),
    ];
    for reader in integers {
        if let Some(array) = reader(bytes)? {
            return Ok(array);
        }
    }
    if let Some(float) = elements.float {
        for reader in
            [&|b: &[u8]| view(b, |x: f32| float(f64::from(x))), &|b: &[u8]| view(b, float)] as [Reader<'_, T>; 2]
        {
            if let Some(array) = reader(bytes)? {
                return Ok(array);
            }
        }
    }
    Err("an array of another type".into())
}

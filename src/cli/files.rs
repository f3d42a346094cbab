//! Files that a command leaves behind, other than tensors: whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::npy;

/// Writes a file beside its place and moves it there when it is complete.
///
/// # Errors
/// [`Error::Input`] that names the file, where the system refuses; what was there before is then as it was.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    npy::check_output(path)?;
    let wrong = |error: &dyn std::fmt::Display| Error::Input {
        path: path.into(),
        message: format!("cannot be written: {error}"),
    };
    // Through a link to the file behind it.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder).map_err(|error| wrong(&error))?;
    file.write_all(bytes).map_err(|error| wrong(&error))?;
    npy::share_mode(&file, path).map_err(|error| wrong(&error))?;
    file.persist(path).map_err(|error| wrong(&error.error))?;
    Ok(())
}

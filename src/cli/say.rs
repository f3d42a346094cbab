//! What commands say: results to standard output, errors and remarks to standard error.

use std::io::{self, IsTerminal, Write};

use indicatif::ProgressBar;

use crate::compiler::Compiled;
use crate::error::{Error, Result};

/// Writes an error to standard error, in the form that every error has.
pub fn report(error: &Error) {
    // Where standard error is closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "error: {error}");
}

/// Writes to standard error what was wrong with something that could be done without.
pub fn warn(error: &Error) {
    remark(&format!("warning: {error}"));
}

/// Writes to standard error what a compilation has passed over.
pub fn warn_of(compiled: &Compiled) {
    compiled.warnings.iter().for_each(|warning| remark(&format!("warning: {warning}")));
}

/// Writes a remark to standard error.
pub fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A progress bar that is drawn on a terminal, and nowhere in a pipe. No thread of its own draws it: that would disturb
/// what is measured.
pub fn progress(bar: ProgressBar) -> ProgressBar {
    if io::stderr().is_terminal() { bar } else { ProgressBar::hidden() }
}

/// Writes a result to standard output. A reader that has left (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Input { path: "standard output".into(), message: format!("cannot be written: {error}") })
        }
        _ => Ok(()),
    }
}

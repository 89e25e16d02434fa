//! A program to start, and the errors of starting it with [`sys::spawn`](super::sys::spawn).

use std::ffi::{CString, c_char};
use std::io;
use std::ptr;

use super::namespaces::Step;

/// A program to start. Its strings are laid out before the clone, since the child must not allocate memory.
#[derive(Debug)]
pub struct Program {
    pub(super) path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Creates a program from its path, its arguments (the first is its own name) and its whole environment, each entry
    /// as `NAME=value`.
    ///
    /// # Errors
    /// When one of the strings holds a NUL.
    pub fn new(
        path: impl Into<Vec<u8>>,
        arguments: impl IntoIterator<Item = impl Into<Vec<u8>>>,
        environment: impl IntoIterator<Item = impl Into<Vec<u8>>>,
    ) -> io::Result<Program> {
        Ok(Program {
            path: CString::new(path)?,
            arguments: arguments.into_iter().map(CString::new).collect::<Result<_, _>>()?,
            environment: environment.into_iter().map(CString::new).collect::<Result<_, _>>()?,
        })
    }

    /// The arguments in the format of execve(2): pointers to NUL-terminated strings, then a null pointer. The pointers
    /// are valid for as long as the program is neither moved out of nor dropped.
    pub(super) fn argv(&self) -> Vec<*const c_char> {
        pointers(&self.arguments)
    }

    /// The environment in the format of execve(2), as for [`Program::argv`].
    pub(super) fn envp(&self) -> Vec<*const c_char> {
        pointers(&self.environment)
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// A step of the start of a program.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnStep {
    /// Making the plan, which resolves the paths of the policy.
    #[error("plan the private root")]
    Plan,
    /// Opening /dev/null for stdin and stdout.
    #[error("open /dev/null")]
    DevNull,
    /// Creating the pipe through which the child reports a failure.
    #[error("create a pipe")]
    Pipe,
    /// clone(2).
    #[error("clone")]
    Clone,
    /// A step of the plan, in the child.
    #[error("{}", .0.describe())]
    Planned(Step),
    /// Giving the descriptors their numbers, in the child.
    #[error("place the descriptors")]
    Descriptors,
    /// execve(2), in the child.
    #[error("execute the program")]
    Execute,
    /// waitpid(2) for a child that only carries out a plan.
    #[error("wait for the child")]
    Wait,
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct SpawnError {
    /// The step that failed.
    pub step: SpawnStep,
    /// The error of the system call.
    pub source: io::Error,
}

impl SpawnError {
    /// Creates the error of a step that failed with `source`.
    pub(super) fn new(step: SpawnStep, source: impl Into<io::Error>) -> SpawnError {
        SpawnError { step, source: source.into() }
    }
}

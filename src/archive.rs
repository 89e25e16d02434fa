//! The archive: one file with the bytecode of everything that the preloaded modules import, for hosts where files are slow
//! to open. `import pandas` opens 700 files; under gVisor that takes 0.7 of 1.7 seconds.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use crate::python::Python;

/// The harness module that makes and reads archives.
pub const SOURCE: &str = include_str!("harness/archive.py");

/// Why there is no archive: one sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The interpreter could not be started.
    #[error("Python could not be started: {0}")]
    Python(#[from] io::Error),
    /// It has said why on standard error.
    #[error("Python could not make the archive: {0}")]
    Failed(ExitStatus),
}

/// Imports `modules` and writes what came with them to `file`. Meant for the build of an image: it runs without a sandbox,
/// as installing the packages did.
///
/// # Errors
/// See [`ArchiveError`].
pub fn make(python: &Python, modules: &[String], file: &Path) -> Result<(), ArchiveError> {
    let status = Command::new(&python.program)
        .arg0(&python.name)
        .args(["-I", "-B", "-X", "utf8", "-c"])
        .arg(format!("{SOURCE}\nmake(sys.argv[1], sys.argv[2:])"))
        .arg(file)
        .args(modules)
        .status()?;
    if status.success() { Ok(()) } else { Err(ArchiveError::Failed(status)) }
}

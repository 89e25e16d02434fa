//! The bytecode archive: one file with the bytecode of every module that the preloaded modules import, for hosts where
//! opening files is slow. `import pandas` opens 700 files; under gVisor that takes 0.7 of 1.7 seconds. It also has the
//! bytecode of the harness, which a zygote would otherwise compile in a fifth of its start.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use super::interpreter::Python;

/// The harness module that writes and reads archives.
const SOURCE: &str = include_str!("../../harness/mainbox_harness/bytecode_archive.py");

/// Why the archive was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The interpreter could not be started.
    #[error("cannot start Python: {0}")]
    Python(#[from] io::Error),
    /// Python failed and printed the reason to stderr.
    #[error("Python did not write the archive: {0}")]
    Failed(ExitStatus),
}

/// Imports `modules` and writes the bytecode of everything that was imported to `file`, and of `harness`, the names and
/// sources of modules. It runs without a sandbox, like
/// the installation of the packages, and is meant for the build of an image.
///
/// # Errors
/// See [`ArchiveError`].
pub fn write(
    python: &Python,
    modules: &[String],
    harness: &[(&str, &str)],
    file: &Path,
) -> Result<(), ArchiveError> {
    let mut process = Command::new(&python.program)
        .arg0(&python.name)
        .args(["-I", "-B", "-X", "utf8", "-c"])
        .arg(format!(
            "{SOURCE}\nimport json\nwrite(sys.argv[1], sys.argv[2:], dict(json.load(sys.stdin)))"
        ))
        .arg(file)
        .args(modules)
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = process.stdin.take().expect("BUG: the standard input is a pipe");
    // Fails only if Python has ended, for a reason that its status tells.
    let _ = stdin.write_all(&serde_json::to_vec(harness).expect("BUG: the harness is text"));
    drop(stdin);
    let status = process.wait()?;
    if status.success() { Ok(()) } else { Err(ArchiveError::Failed(status)) }
}

//! Which interpreter runs the scripts, and which files it is made of.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An interpreter, resolved to a program and the directories that it reads.
#[derive(Clone, Debug)]
pub struct Python {
    /// What Python is to take for its own path: tells it which virtual environment it is in.
    pub name: PathBuf,
    /// The program itself, no symbolic link.
    pub program: PathBuf,
    /// Standard library and site-packages.
    pub libraries: Vec<PathBuf>,
}

/// Why no interpreter was found: one sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PythonError {
    /// Nothing of that name.
    #[error("No Python found at {0}; set MAINBOX_PYTHON to CPython 3.11 or newer")]
    NotFound(PathBuf),
    /// It is there but cannot be used.
    #[error("{path} cannot be used as MAINBOX_PYTHON: {source}")]
    Unusable {
        /// What was tried.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
}

impl Python {
    /// Finds the interpreter `wanted`: a path, or a name looked up on PATH. A launcher script (as pyenv puts on PATH)
    /// is asked for the interpreter behind it.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub fn find(wanted: &Path) -> Result<Python, PythonError> {
        let found = on_path(wanted).ok_or_else(|| PythonError::NotFound(wanted.to_owned()))?;
        let unusable = |source| PythonError::Unusable { path: found.clone(), source };
        let name = if is_program(&found).map_err(unusable)? {
            std::path::absolute(&found).map_err(unusable)?
        } else {
            ask_launcher(&found).map_err(unusable)?
        };
        let program = name.canonicalize().map_err(unusable)?;
        let libraries = libraries(&name, &program);
        Ok(Python { name, program, libraries })
    }
}

fn on_path(wanted: &Path) -> Option<PathBuf> {
    if wanted.components().count() > 1 {
        return wanted.is_file().then(|| wanted.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(wanted)).find(|file| file.is_file())
}

/// Whether it is an ELF program. One that we may execute but not read, as in the Lambda image, is one too.
fn is_program(path: &Path) -> io::Result<bool> {
    let mut magic = [0; 4];
    match std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) => Ok(&magic == b"\x7fELF"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn ask_launcher(launcher: &Path) -> io::Result<PathBuf> {
    let output =
        Command::new(launcher).args(["-I", "-c", "import sys; print(sys.executable)"]).output()?;
    let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && Path::new(&answer).is_file() {
        Ok(PathBuf::from(answer))
    } else {
        Err(io::Error::other("it is not Python"))
    }
}

/// The prefix of a program is the directory above its `bin`; that of a virtual environment holds a `pyvenv.cfg`.
fn libraries(name: &Path, program: &Path) -> Vec<PathBuf> {
    let prefix = |path: &Path| {
        let bin = path.parent()?;
        (bin.file_name() == Some(OsStr::new("bin"))).then(|| bin.parent().map(Path::to_owned))?
    };
    let mut paths = Vec::new();
    if let Some(environment) = prefix(name)
        && environment.join("pyvenv.cfg").is_file()
    {
        paths.extend(["pyvenv.cfg", "lib", "lib64"].map(|part| environment.join(part)));
    }
    if let Some(base) = prefix(program) {
        paths.extend(["lib", "lib64"].map(|part| base.join(part)));
    }
    paths.retain(|path| path.exists());
    paths
}

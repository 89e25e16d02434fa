//! Finds the interpreter and the directories that it reads.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An interpreter, resolved to a program file.
#[derive(Clone, Debug)]
pub struct Python {
    /// The path that Python takes for its own (`argv[0]`). It tells Python which virtual environment it runs in.
    pub name: PathBuf,
    /// The program file, with symbolic links resolved.
    pub program: PathBuf,
    /// The directories of the standard library and of the packages.
    pub libraries: Vec<PathBuf>,
}

/// Why no interpreter was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PythonError {
    /// No file has this name.
    #[error("no Python found at {0}; set MAINBOX_PYTHON to CPython 3.11 or newer")]
    NotFound(PathBuf),
    /// The file exists but is not a usable interpreter.
    #[error("{path} cannot be used as MAINBOX_PYTHON: {source}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl Python {
    /// Finds the interpreter `wanted`: a path, or a name to look up beside mainbox, where that is installed in a virtual
    /// environment, and then on PATH. pyenv and other tools put launcher scripts on PATH; a launcher is run once to learn the
    /// path of the real interpreter.
    ///
    /// # Errors
    /// See [`PythonError`].
    pub fn find(wanted: &Path) -> Result<Python, PythonError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = std::env::current_exe().ok().and_then(|program| own_environment(&program));
        let found = look_up(wanted, own.as_deref(), &path)
            .ok_or_else(|| PythonError::NotFound(wanted.to_owned()))?;
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

/// Returns the directory of `program`, this binary, if it is in a virtual environment. An activated environment is on PATH,
/// but `uvx mainbox` and `.venv/bin/mainbox` run without that.
fn own_environment(program: &Path) -> Option<PathBuf> {
    let bin = program.parent()?;
    bin.parent()?.join("pyvenv.cfg").is_file().then(|| bin.to_owned())
}

/// A `wanted` with a directory is a path; any other is looked up in the directory `own` and in those of `path`.
fn look_up(wanted: &Path, own: Option<&Path>, path: &OsStr) -> Option<PathBuf> {
    if wanted.components().count() > 1 {
        return wanted.is_file().then(|| wanted.to_owned());
    }
    // An empty or relative entry stands for the current directory, which may contain a program of a stranger.
    let directories = std::env::split_paths(path).filter(|directory| directory.is_absolute());
    own.map(Path::to_owned)
        .into_iter()
        .chain(directories)
        .map(|directory| directory.join(wanted))
        .find(|file| file.is_file())
}

/// Returns whether the file is an ELF program. The Lambda image makes the interpreter executable but not readable, so a
/// file that cannot be read counts as a program.
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
        Err(io::Error::other("the program is not Python"))
    }
}

/// The library directories below the prefix, which is the directory above `bin`. The prefix of a virtual environment
/// contains a `pyvenv.cfg`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_looked_up_in_the_current_directory() {
        let here = env!("CARGO_MANIFEST_DIR");
        let name = Path::new("Cargo.toml");
        for path in ["", ".", ":", "src/..", "/nowhere"] {
            assert_eq!(look_up(name, None, path.as_ref()), None, "{path}");
        }
        assert_eq!(look_up(name, None, here.as_ref()), Some(Path::new(here).join(name)));
        assert!(look_up(Path::new("src/lib.rs"), None, OsStr::new("")).is_some());
    }

    #[test]
    fn the_virtual_environment_of_mainbox_comes_before_path() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources = here.join("src");
        let name = Path::new("Cargo.toml");
        assert_eq!(look_up(name, Some(here), sources.as_os_str()), Some(here.join(name)));
        assert_eq!(look_up(name, Some(&sources), here.as_os_str()), Some(here.join(name)));

        let folder = std::env::temp_dir().join(format!("mainbox-venv-{}", std::process::id()));
        let program = folder.join("bin/mainbox");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(own_environment(&program), None);
        std::fs::write(folder.join("pyvenv.cfg"), "").unwrap();
        assert_eq!(own_environment(&program), Some(folder.join("bin")));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

//! Scratch directories: one for each worker, its working directory, HOME and TMPDIR, gone after the request.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::SandboxError;

/// The directory that holds the scratch directories of this process. Removed with it.
#[derive(Debug)]
pub struct ScratchRoot {
    path: PathBuf,
    made: AtomicU64,
}

/// One scratch directory. Dropping it removes it with all that is in it; no process of its owner may live by then.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl ScratchRoot {
    /// A new directory with a random name in the system's temporary directory. Workers may pass through it but not
    /// list it.
    ///
    /// # Errors
    /// The host's.
    pub fn create() -> Result<ScratchRoot, SandboxError> {
        let template = std::env::temp_dir().join("mainbox-XXXXXX");
        let path = nix::unistd::mkdtemp(&template)
            .map_err(|errno| SandboxError::Scratch { path: template, source: errno.into() })?;
        fs::set_permissions(&path, Permissions::from_mode(0o711))
            .map_err(|source| SandboxError::Scratch { path: path.clone(), source })?;
        Ok(ScratchRoot { path, made: AtomicU64::new(0) })
    }

    /// A new empty directory that only `uid` (or we, when there is none) may enter.
    ///
    /// # Errors
    /// The host's.
    pub fn make(&self, uid: Option<u32>) -> Result<Scratch, SandboxError> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch { path: self.path.join(number.to_string()) };
        let failed = |source| SandboxError::Scratch { path: scratch.path.clone(), source };
        DirBuilder::new().mode(0o700).create(&scratch.path).map_err(failed)?;
        if uid.is_some() {
            std::os::unix::fs::chown(&scratch.path, uid, uid).map_err(failed)?;
        }
        Ok(scratch)
    }
}

impl Drop for ScratchRoot {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

impl Scratch {
    /// No directory: for a jail that is not complete yet.
    pub(super) fn none() -> Scratch {
        Scratch { path: PathBuf::new() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            remove(&self.path);
        }
    }
}

/// `remove_dir_all` follows no symbolic link, which matters: the content is a script's.
fn remove(path: &Path) {
    let removed = fs::remove_dir_all(path).or_else(|error| {
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Err(error);
        }
        // A script of our own uid may have taken our rights to its directories away.
        make_accessible(path);
        fs::remove_dir_all(path)
    });
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a scratch directory could not be removed");
    }
}

fn make_accessible(path: &Path) {
    let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_accessible(&entry.path());
        }
    }
}

//! Scratch directories: one for each worker, its working directory, HOME and TMPDIR, gone after the request.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::mount::{MntFlags, umount2};

use super::namespaces::{BOX, SCRATCH};

/// A directory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("scratch directory {path}: {source}")]
pub struct ScratchError {
    /// Where it was to be.
    pub path: PathBuf,
    /// What the host answered.
    pub source: io::Error,
}

/// The directory that holds the scratch directories of this process. Removed with it.
#[derive(Debug)]
pub struct ScratchRoot {
    path: PathBuf,
    made: AtomicU64,
}

/// One scratch directory. Dropping it removes it with all that is in it; no process of its owner may live by then.
#[derive(Debug)]
pub enum Scratch {
    /// A directory of the host, and where its worker finds it.
    Directory {
        /// In the host's root.
        host: PathBuf,
        /// In the worker's.
        seen: PathBuf,
    },
    /// A tmpfs that the worker mounts where only it sees it; it goes with the worker.
    Mount,
}

impl ScratchRoot {
    /// A new directory with a random name in the system's temporary directory. Workers may pass through it but not
    /// list it.
    ///
    /// # Errors
    /// The host's.
    pub fn create() -> Result<ScratchRoot, ScratchError> {
        let name = format!("mainbox-{}-XXXXXX", std::process::id());
        let template = std::env::temp_dir().join(name);
        let path = nix::unistd::mkdtemp(&template)
            .map_err(|errno| ScratchError { path: template, source: errno.into() })?;
        fs::set_permissions(&path, Permissions::from_mode(0o711))
            .map_err(|source| ScratchError { path: path.clone(), source })?;
        let root = ScratchRoot { path, made: AtomicU64::new(0) };
        for directory in [root.new_root(), root.home().join("scratch")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&directory)
                .map_err(|source| ScratchError { path: directory, source })?;
        }
        Ok(root)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An empty directory: a zygote builds its root there, in a mount namespace of its own.
    pub fn new_root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// The directory that holds `scratch`, the mount point of scratch directories in a zygote's namespace.
    pub fn home(&self) -> PathBuf {
        self.path.join("box")
    }

    /// A new empty directory that only `uid` (or we, when there is none) may enter. A worker with a root of its own finds
    /// it there in the directory that [`ScratchRoot::home`] is mounted at.
    ///
    /// # Errors
    /// The host's.
    pub fn make(&self, uid: Option<u32>, own_root: bool) -> Result<Scratch, ScratchError> {
        let name = self.made.fetch_add(1, Ordering::Relaxed).to_string();
        let host = self.home().join(&name);
        let seen = if own_root { Path::new(BOX).join(&name) } else { host.clone() };
        let failed = |source| ScratchError { path: host.clone(), source };
        DirBuilder::new().mode(0o700).create(&host).map_err(failed)?;
        if uid.is_some() {
            std::os::unix::fs::chown(&host, uid, uid).map_err(failed)?;
        }
        Ok(Scratch::Directory { host, seen })
    }
}

impl Drop for ScratchRoot {
    fn drop(&mut self) {
        // Where mounts are not kept apart, the zygote's root is still mounted here. Elsewhere nothing is.
        let _ = umount2(&self.new_root(), MntFlags::MNT_DETACH);
        remove(&self.path);
    }
}

impl Scratch {
    /// Where its worker finds it.
    pub fn path(&self) -> &Path {
        match self {
            Scratch::Directory { seen, .. } => seen,
            Scratch::Mount => Path::new(SCRATCH),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Scratch::Directory { host, .. } = self {
            remove(host);
        }
    }
}

/// `remove_dir_all` follows no symbolic link, which matters: the content is a script's.
pub(super) fn remove(path: &Path) {
    if !path.is_dir() || path.is_symlink() {
        let _ = fs::remove_file(path);
        return;
    }
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

//! Scratch directories: each worker has one, as working directory, HOME and TMPDIR. It is removed after the request.

use std::fs::{self, DirBuilder, DirEntry, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::unistd::mkdtemp;

use super::namespaces::{BOX, SCRATCH};
use super::procfs;

/// The number of directory entries that are held in memory during a removal, since a script can create millions.
const ENTRIES_AT_ONCE: usize = 1024;

/// The scratch root, or a directory in it, could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot create scratch directory {path}: {source}")]
pub struct ScratchError {
    /// The path of the directory, or its template with `XXXXXX`.
    pub path: PathBuf,
    /// The error of the system call.
    pub source: io::Error,
}

/// The prefix of the names of scratch roots. The process id of the supervisor and a random suffix follow.
const ROOT_NAME: &str = "mainbox-";

/// The directory that holds the scratch directories of this process. Dropping it removes it with its content.
#[derive(Debug)]
pub struct ScratchRoot {
    path: PathBuf,
    made: AtomicU64,
    /// Held to tell other supervisors that the directory is in use. The kernel releases it when this process ends, even
    /// by SIGKILL.
    _lock: Flock<File>,
}

/// The scratch directory of one worker.
#[derive(Debug)]
pub enum Scratch {
    /// A directory on the host.
    Directory {
        /// Its path on the host.
        host: PathBuf,
        /// Its path for the worker, which may have a private root.
        seen: PathBuf,
    },
    /// A tmpfs that the worker mounts in its own mount namespace. It ends with the worker.
    Mount,
    /// No scratch directory, since the worker can open no file. Workers with the same uid could only leave something in
    /// it.
    Nowhere,
}

impl ScratchRoot {
    /// Creates a scratch root with a random name in the directory for temporary files (`TMPDIR`, by default `/tmp`),
    /// and removes the scratch roots of dead supervisors there. Workers can enter a scratch root but not list it.
    ///
    /// # Errors
    /// When a directory cannot be created or locked.
    pub fn create() -> Result<ScratchRoot, ScratchError> {
        remove_abandoned(&std::env::temp_dir());
        let name = format!("{ROOT_NAME}{}-XXXXXX", std::process::id());
        let template = std::env::temp_dir().join(name);
        let path = mkdtemp(&template)
            .map_err(|errno| ScratchError { path: template, source: errno.into() })?;
        // mkdtemp(3) creates it with mode 0700, but workers with their own uid must pass through it.
        fs::set_permissions(&path, Permissions::from_mode(0o711))
            .map_err(|source| ScratchError { path: path.clone(), source })?;
        let lock = lock(&path).map_err(|source| ScratchError { path: path.clone(), source })?;
        let root = ScratchRoot { path, made: AtomicU64::new(0), _lock: lock };
        for directory in [root.new_root(), root.home().join("scratch")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&directory)
                .map_err(|source| ScratchError { path: directory, source })?;
        }
        Ok(root)
    }

    /// The path on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The empty directory on which a zygote builds its private root, in its own mount namespace.
    pub fn new_root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// The directory that holds the scratch directories, and `scratch`, the mount point for workers that mount theirs.
    pub fn home(&self) -> PathBuf {
        self.path.join("box")
    }

    /// Creates an empty directory that only `uid` can enter, or only the uid of the service if `uid` is `None`. With
    /// `own_root`, its worker has a private root, in which [`ScratchRoot::home`] is mounted at [`BOX`].
    ///
    /// # Errors
    /// When the directory cannot be created or given to `uid`.
    pub fn make(&self, uid: Option<u32>, own_root: bool) -> Result<Scratch, ScratchError> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        // The name is random, so that a script with the same uid cannot guess the directories of others.
        let template = self.home().join(format!("{number}-XXXXXX"));
        // A script with the uid of the service may have taken away the permissions of the scratch root.
        let made = mkdtemp(&template).or_else(|_| {
            restore(&self.path);
            mkdtemp(&template)
        });
        let host = made.map_err(|errno| ScratchError { path: template, source: errno.into() })?;
        let failed = |source| ScratchError { path: host.clone(), source };
        let seen = match host.file_name() {
            Some(name) if own_root => Path::new(BOX).join(name),
            _ => host.clone(),
        };
        if uid.is_some() {
            std::os::unix::fs::chown(&host, uid, uid).map_err(failed)?;
        }
        Ok(Scratch::Directory { host, seen })
    }
}

/// Locks a directory for as long as the returned guard lives. Fails at once if another process holds the lock.
fn lock(directory: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(directory)?, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno.into())
}

/// Removes the scratch roots that dead supervisors with the same uid left in `parent`.
///
/// A scratch root is in use if it is locked, or if the process in its name exists. Neither check is enough: a process
/// in another pid namespace may share `parent` and is known by its lock only, and a new scratch root is not locked yet,
/// so it is known by its process only.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(ROOT_NAME).and_then(|rest| rest.split_once('-'));
        let Some((process, _)) = process.filter(|(id, _)| id.parse::<u32>().is_ok()) else {
            continue;
        };
        let is_own = entry.metadata().is_ok_and(|metadata| {
            metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw()
        });
        if !is_own || procfs::exists(process) || lock(&entry.path()).is_err() {
            continue;
        }
        if let Err(error) = remove(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove an abandoned scratch root");
        }
    }
}

impl Drop for ScratchRoot {
    fn drop(&mut self) {
        // On a kernel with `Mounts::Plain`, the private root of the zygote is mounted on the host too. Detached rather
        // than unmounted, since a dying zygote may still use it. On other kernels nothing is mounted and this fails.
        let _ = umount2(&self.new_root(), MntFlags::MNT_DETACH);
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the scratch root");
        }
    }
}

impl Scratch {
    /// The working directory of the worker, as the worker sees it.
    pub fn path(&self) -> &Path {
        match self {
            Scratch::Directory { seen, .. } => seen,
            Scratch::Mount => Path::new(SCRATCH),
            Scratch::Nowhere => Path::new("/"),
        }
    }

    /// Removes the directory with its content. The worker must be dead by then, since it could create more files.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn remove(&self) -> io::Result<()> {
        match self {
            // A second attempt, since a script with the uid of the service may have taken away the permissions of the
            // scratch root, which is two levels up.
            Scratch::Directory { host, .. } => remove(host).or_else(|_| {
                host.ancestors().nth(2).map(restore);
                remove(host)
            }),
            Scratch::Mount | Scratch::Nowhere => Ok(()),
        }
    }
}

/// Restores the permissions of a scratch root. A worker with the uid of the service can take them away, since Landlock
/// does not restrict chmod(2): <https://docs.kernel.org/userspace-api/landlock.html>.
fn restore(root: &Path) {
    // From the top down: a directory can be reached only if the one above it can be entered.
    for (directory, mode) in [
        (root.to_owned(), 0o711),
        (root.join("root"), 0o755),
        (root.join("box"), 0o755),
        (root.join("box/scratch"), 0o755),
    ] {
        if let Err(error) = fs::set_permissions(&directory, Permissions::from_mode(mode)) {
            tracing::warn!(%error, path = %directory.display(), "cannot restore the permissions");
        }
    }
}

/// Removes the file or directory at `path`; a missing one is not an error. Symbolic links are removed, not followed.
///
/// The content comes from a script, so it may be nested deeper than the stack, the file descriptors or the longest path
/// allow. Therefore this does not recurse as [`fs::remove_dir_all`] does: it moves nested directories to the top level
/// and removes them from there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(
        |error| {
            if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
        },
    )
}

/// Removes a directory. Each round removes the directories at the top level, after their subdirectories have been moved
/// to the top level for the next round, so no path is ever more than two levels below `top`.
fn remove_tree(top: &Path) -> io::Result<()> {
    let mut moved = 0;
    loop {
        let entries = some_entries(top)?;
        if entries.is_empty() {
            return fs::remove_dir(top);
        }
        for entry in entries {
            if entry.file_type()?.is_dir() {
                empty_into(top, &entry.path(), &mut moved)?;
                fs::remove_dir(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
}

/// Removes the files in `directory` and moves its subdirectories to unused names in `top`.
fn empty_into(top: &Path, directory: &Path, moved: &mut u64) -> io::Result<()> {
    loop {
        let entries = some_entries(directory)?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            if entry.file_type()?.is_dir() {
                // Moving a directory changes its `..` entry, which needs write permission on the directory itself.
                fs::set_permissions(entry.path(), Permissions::from_mode(0o700))?;
                fs::rename(entry.path(), free_name(top, moved))?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
}

/// Returns up to [`ENTRIES_AT_ONCE`] entries of a directory.
fn some_entries(directory: &Path) -> io::Result<Vec<DirEntry>> {
    // A script with the uid of the service may have taken away its permissions.
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    fs::read_dir(directory)?.take(ENTRIES_AT_ONCE).collect()
}

/// Returns a path in `top` that does not exist yet. A script may have used some of these names itself.
fn free_name(top: &Path, moved: &mut u64) -> PathBuf {
    loop {
        *moved += 1;
        let name = top.join(format!("moved-{moved}"));
        if fs::symlink_metadata(&name).is_err() {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unlocked_roots_of_dead_processes_are_removed() {
        let parent = std::env::temp_dir().join(format!("mainbox-roots-{}", std::process::id()));
        // Larger than any process id.
        let [dead, locked, made] = ["4194305", "4194306", "x"].map(|process| {
            let root = parent.join(format!("mainbox-{process}-a1b2c3"));
            fs::create_dir_all(root.join("box/0")).unwrap();
            root
        });
        let alive = parent.join(format!("mainbox-{}-d4e5f6", std::process::id()));
        fs::create_dir(&alive).unwrap();
        let lock = lock(&locked).unwrap();

        remove_abandoned(&parent);

        assert!(!dead.exists());
        assert!(locked.exists() && made.exists() && alive.exists());
        drop(lock);
        remove(&parent).unwrap();
    }

    #[test]
    fn the_permissions_of_a_root_are_restored() {
        let root = ScratchRoot::create().unwrap();
        let first = root.make(None, false).unwrap();
        for directory in [root.home().join("scratch"), root.home(), root.path().to_owned()] {
            fs::set_permissions(directory, Permissions::from_mode(0o000)).unwrap();
        }
        restore(root.path());
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(root.path().to_owned()), 0o711);
        assert_eq!(mode(root.home()), 0o755);
        first.remove().unwrap();
        assert!(!first.path().exists());
    }

    #[test]
    fn a_deep_tree_is_removed_and_links_are_not_followed() {
        let parent = std::env::temp_dir().join(format!("mainbox-deep-{}", std::process::id()));
        let top = parent.join("top");
        fs::create_dir_all(top.join("moved-1/moved-2")).unwrap();
        fs::write(top.join("moved-3"), "").unwrap();
        fs::write(parent.join("outside"), "").unwrap();
        std::os::unix::fs::symlink(&parent, top.join("moved-1/link")).unwrap();
        let mut deepest = std::process::Command::new("python3")
            .args(["-c", "import os\nfor n in range(3000):\n    os.mkdir('d'); os.chdir('d')"])
            .current_dir(&top)
            .spawn()
            .unwrap();
        assert!(deepest.wait().unwrap().success());
        fs::set_permissions(top.join("d/d"), Permissions::from_mode(0o000)).unwrap();

        remove(&top).unwrap();

        let rest: Vec<_> =
            fs::read_dir(&parent).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(rest, ["outside"]);
        remove(&parent).unwrap();
        remove(&parent).unwrap();
    }
}

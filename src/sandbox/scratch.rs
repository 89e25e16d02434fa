//! Scratch directories: each worker has one, as working directory, HOME and TMPDIR. It is removed after the request.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::unistd::mkdtemp;

use super::namespaces::{BOX, SCRATCH};
use super::procfs;
use super::removal::remove;

/// How often a scratch root that disappears at once is created again.
const ATTEMPTS: u32 = 10;

/// The scratch root, or a directory in it, could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot create scratch directory {path}: {source}")]
pub struct ScratchError {
    /// The path of the directory, or its template with `XXXXXX`.
    pub path: PathBuf,
    /// The error of the system call.
    pub source: io::Error,
}

/// The files with the names of users and groups, in [`ScratchRoot::home`]. `/etc` in a private root has links to them.
pub const PASSWD: &str = "passwd";
/// See [`PASSWD`].
pub const GROUP: &str = "group";
/// The uid and gid of a process whose own are not mapped in its user namespace:
/// <https://man7.org/linux/man-pages/man7/user_namespaces.7.html>.
const OVERFLOW_ID: u32 = 65534;

/// The prefix of the names of scratch roots. The process id of the supervisor and a random suffix follow.
const ROOT_NAME: &str = "mainbox-";

/// The directory that holds the scratch directories of this process. Dropping it removes the directory and its
/// contents.
#[derive(Debug)]
pub struct ScratchRoot {
    path: PathBuf,
    made: AtomicU64,
    /// The uids that workers may have.
    uids: Range<u32>,
    /// Held to tell other supervisors that the directory is in use. The kernel releases it when this process ends, even
    /// by SIGKILL.
    lock: Mutex<Flock<File>>,
}

/// The scratch directory of one worker.
#[derive(Debug)]
pub enum Scratch {
    /// A directory on the host.
    Directory {
        /// Its path on the host.
        host: PathBuf,
        /// Its path as the worker sees it, which may be in a private root.
        seen: PathBuf,
    },
    /// A tmpfs that the worker mounts in its own mount namespace. It ends with the worker.
    Mount,
    /// No scratch directory, since the worker cannot open files. A script could only leave something in it for others
    /// with the same uid.
    Nowhere,
}

impl ScratchRoot {
    /// Creates a scratch root with a random name in the directory for temporary files (`TMPDIR`, by default `/tmp`),
    /// and removes the scratch roots of dead supervisors there. Workers can enter a scratch root but not list it. `uids` are
    /// the uids that workers may have.
    ///
    /// # Errors
    /// When a directory cannot be created or locked.
    pub fn create(uids: Range<u32>) -> Result<ScratchRoot, ScratchError> {
        remove_abandoned(&std::env::temp_dir());
        let name = format!("{ROOT_NAME}{}-XXXXXX", std::process::id());
        let template = std::env::temp_dir().join(name);
        let mut attempts = 1..=ATTEMPTS;
        let (path, lock) = loop {
            let path = mkdtemp(&template)
                .map_err(|errno| ScratchError { path: template.clone(), source: errno.into() })?;
            // Another supervisor may have taken the directory for an abandoned one before it was locked.
            match lock(&path) {
                Ok(lock) if is_at(&lock, &path) => break (path, lock),
                Ok(_) | Err(_) if attempts.next().is_some() => {}
                Ok(_) => return Err(ScratchError { path, source: io::ErrorKind::NotFound.into() }),
                Err(source) => return Err(ScratchError { path, source }),
            }
        };
        let root = ScratchRoot { path, made: AtomicU64::new(0), uids, lock: Mutex::new(lock) };
        root.make_directories()?;
        Ok(root)
    }

    /// Makes the root and the directories in it anew if something has removed them. Returns whether it did. What is there
    /// instead, if anything, is left alone.
    ///
    /// # Errors
    /// When a directory cannot be created or locked.
    pub fn repair(&self) -> Result<bool, ScratchError> {
        let failed = |source| ScratchError { path: self.path.clone(), source };
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_at(&held, &self.path) {
            DirBuilder::new().mode(0o700).create(&self.path).map_err(failed)?;
            *held = lock(&self.path).map_err(failed)?;
            self.make_directories()?;
            return Ok(true);
        }
        self.make_directories()
    }

    /// Makes the missing directories in the root. Returns whether there were any.
    fn make_directories(&self) -> Result<bool, ScratchError> {
        // mkdtemp(3) creates it with mode 0700, but workers with their own uid must pass through it.
        fs::set_permissions(&self.path, Permissions::from_mode(0o711))
            .map_err(|source| ScratchError { path: self.path.clone(), source })?;
        let mut missing = false;
        for directory in [self.new_root(), self.home(), self.home().join("scratch")] {
            match DirBuilder::new().mode(0o755).create(&directory) {
                Ok(()) => missing = true,
                Err(_) if is_directory(&directory) => {}
                Err(source) => return Err(ScratchError { path: directory, source }),
            }
        }
        for (path, content) in [
            (self.home().join(PASSWD), passwd(&self.uids)),
            (self.home().join(GROUP), group(&self.uids)),
        ] {
            if fs::symlink_metadata(&path).is_err() {
                fs::write(&path, content)
                    .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
                    .map_err(|source| ScratchError { path, source })?;
            }
        }
        Ok(missing)
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
        // A script with the uid of the service may have removed the permissions of the scratch root.
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

/// The users that a script can look up: root, and itself under each uid that it may have.
fn passwd(uids: &Range<u32>) -> String {
    let scripts = uids.clone().chain([OVERFLOW_ID]);
    let scripts = scripts.map(|id| format!("script:x:{id}:{id}::{SCRATCH}:/bin/false\n"));
    [String::from("root:x:0:0:root:/root:/bin/false\n")].into_iter().chain(scripts).collect()
}

/// The groups of these users.
fn group(uids: &Range<u32>) -> String {
    let scripts = uids.clone().chain([OVERFLOW_ID]).map(|id| format!("script:x:{id}:\n"));
    [String::from("root:x:0:\n")].into_iter().chain(scripts).collect()
}

/// Locks a directory for as long as the returned guard lives. Fails at once if another process holds the lock.
fn lock(directory: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(directory)?, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno.into())
}

/// Returns whether `path` still leads to the directory that is locked.
fn is_at(lock: &Flock<File>, path: &Path) -> bool {
    let locked = lock.metadata();
    let found = fs::symlink_metadata(path);
    matches!((locked, found), (Ok(locked), Ok(found)) if (locked.dev(), locked.ino()) == (found.dev(), found.ino()))
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
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

    /// Returns whether it is still there. A worker's own mount always is.
    pub fn exists(&self) -> bool {
        match self {
            Scratch::Directory { host, .. } => is_directory(host),
            Scratch::Mount | Scratch::Nowhere => true,
        }
    }

    /// Removes the directory and its contents. The worker must already be dead, since it could create more files.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn remove(&self) -> io::Result<()> {
        match self {
            // A second attempt, since a script with the uid of the service may have removed the permissions of the
            // scratch root, which is two levels up.
            Scratch::Directory { host, .. } => remove(host).or_else(|_| {
                host.ancestors().nth(2).map(restore);
                remove(host)
            }),
            Scratch::Mount | Scratch::Nowhere => Ok(()),
        }
    }
}

/// Restores the permissions of a scratch root. A worker with the uid of the service can remove them, since Landlock
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
    fn a_root_that_something_removed_is_made_anew() {
        let root = ScratchRoot::create(7..10).unwrap();
        assert!(!root.repair().unwrap());
        for gone in [root.home().join("scratch"), root.home(), root.path().to_owned()] {
            remove(&gone).unwrap();
            assert!(root.repair().unwrap());
            root.make(None, false).unwrap().remove().unwrap();
            assert!(!root.repair().unwrap());
        }
        assert!(lock(root.path()).is_err(), "the new root is not locked");
        // A file of another is in its place.
        remove(root.path()).unwrap();
        fs::write(root.path(), "").unwrap();
        assert_eq!(root.repair().unwrap_err().source.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn the_permissions_of_a_root_are_restored() {
        let root = ScratchRoot::create(7..10).unwrap();
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
}

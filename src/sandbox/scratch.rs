//! Scratch directories: one for each worker, its working directory, HOME and TMPDIR, gone after the request.

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

/// Entries of a directory that are held in memory while it is removed: a script may have made millions.
const ENTRIES_AT_ONCE: usize = 1024;

/// A directory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("scratch directory {path}: {source}")]
pub struct ScratchError {
    /// Where it was to be.
    pub path: PathBuf,
    /// What the host answered.
    pub source: io::Error,
}

/// How the names of scratch roots begin.
const ROOT_NAME: &str = "mainbox-";

/// The directory that holds the scratch directories of this process. Removed with it.
#[derive(Debug)]
pub struct ScratchRoot {
    path: PathBuf,
    made: AtomicU64,
    /// Tells others that the directory is in use, for as long as this process lives.
    _lock: Flock<File>,
}

/// One scratch directory.
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
    /// None, where no file can be opened anyway: a directory that workers share a uid with would only be a place to
    /// leave something in.
    Nowhere,
}

impl ScratchRoot {
    /// A new directory with a random name in the system's temporary directory. Workers may pass through it but not
    /// list it.
    ///
    /// # Errors
    /// The host's.
    pub fn create() -> Result<ScratchRoot, ScratchError> {
        remove_abandoned(&std::env::temp_dir());
        let name = format!("{ROOT_NAME}{}-XXXXXX", std::process::id());
        let template = std::env::temp_dir().join(name);
        let path = mkdtemp(&template)
            .map_err(|errno| ScratchError { path: template, source: errno.into() })?;
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
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        // Random, so that a script of the same uid cannot name the directories of others.
        let template = self.home().join(format!("{number}-XXXXXX"));
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

/// Locks a directory for this process, unless another has it.
fn lock(directory: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(directory)?, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno.into())
}

/// Removes what a process left that was killed, if it is ours to remove. One that is just being made has no lock yet,
/// but its process is alive.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(ROOT_NAME).and_then(|rest| rest.split_once('-'));
        let Some((process, _)) = process.filter(|(id, _)| id.parse::<u32>().is_ok()) else {
            continue;
        };
        let ours = entry.metadata().is_ok_and(|metadata| {
            metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw()
        });
        if !ours || procfs::exists(process) || lock(&entry.path()).is_err() {
            continue;
        }
        if let Err(error) = remove(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "an abandoned scratch root could not be removed");
        }
    }
}

impl Drop for ScratchRoot {
    fn drop(&mut self) {
        // Where mounts are not kept apart, the zygote's root is still mounted here. Elsewhere nothing is.
        let _ = umount2(&self.new_root(), MntFlags::MNT_DETACH);
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the scratch root could not be removed");
        }
    }
}

impl Scratch {
    /// Where its worker finds it.
    pub fn path(&self) -> &Path {
        match self {
            Scratch::Directory { seen, .. } => seen,
            Scratch::Mount => Path::new(SCRATCH),
            Scratch::Nowhere => Path::new("/"),
        }
    }
}

impl Scratch {
    /// Removes it with all that is in it; no process of its owner may live by then.
    ///
    /// # Errors
    /// The host's, when something stays.
    pub fn remove(&self) -> io::Result<()> {
        match self {
            Scratch::Directory { host, .. } => remove(host).or_else(|_| {
                host.ancestors().nth(2).map(restore);
                remove(host)
            }),
            Scratch::Mount | Scratch::Nowhere => Ok(()),
        }
    }
}

/// Gives a scratch root its permissions back: where workers have our own uid, one can take them away, since Landlock does
/// not restrict chmod.
fn restore(root: &Path) {
    for (directory, mode) in [
        (root.to_owned(), 0o711),
        (root.join("root"), 0o755),
        (root.join("box"), 0o755),
        (root.join("box/scratch"), 0o755),
    ] {
        if let Err(error) = fs::set_permissions(&directory, Permissions::from_mode(mode)) {
            tracing::warn!(%error, path = %directory.display(), "permissions cannot be restored");
        }
    }
}

/// Removes what is at `path`. Follows no symbolic link and does not recurse, since the content is a script's: it may be
/// deeper than there are descriptors, so directories are emptied into the topmost one.
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

/// Removes the files in `directory` and moves its directories to free names of ours in `top`.
fn empty_into(top: &Path, directory: &Path, moved: &mut u64) -> io::Result<()> {
    loop {
        let entries = some_entries(directory)?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            if entry.file_type()?.is_dir() {
                // Else its `..` could not be changed.
                fs::set_permissions(entry.path(), Permissions::from_mode(0o700))?;
                fs::rename(entry.path(), free_name(top, moved))?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
}

/// Some of what is in a directory, even if a script of our own uid took our rights to it away.
fn some_entries(directory: &Path) -> io::Result<Vec<DirEntry>> {
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    fs::read_dir(directory)?.take(ENTRIES_AT_ONCE).collect()
}

/// A name that a script has not taken.
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
    fn only_roots_that_nobody_uses_are_abandoned() {
        let parent = std::env::temp_dir().join(format!("mainbox-roots-{}", std::process::id()));
        // No process has such an id.
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
    fn a_root_that_lost_its_permissions_gets_them_back() {
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
    fn trees_are_removed_however_deep_and_links_are_not_followed() {
        let parent = std::env::temp_dir().join(format!("mainbox-deep-{}", std::process::id()));
        let top = parent.join("top");
        fs::create_dir_all(top.join("moved-1/moved-2")).unwrap();
        fs::write(top.join("moved-3"), "").unwrap();
        fs::write(parent.join("precious"), "").unwrap();
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
        assert_eq!(rest, ["precious"]);
        remove(&parent).unwrap();
        remove(&parent).unwrap();
    }
}

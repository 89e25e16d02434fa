//! Sweeping: where nothing stops a worker from writing to a directory that is everybody's, or from making System V IPC
//! objects, what it leaves there is removed after it. What was there before it is never touched.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::procfs;
use super::scratch::{ScratchRoot, remove};
use super::sys::{self, IpcKind};

/// Directories that everybody may write to.
const PUBLIC: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// How long earlier workers may take to die of SIGKILL.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(1);

/// Knows where to look.
#[derive(Clone, Debug)]
pub struct Sweeper {
    directories: Vec<PathBuf>,
    keep: Option<PathBuf>,
}

/// What belonged to a uid before a script of that uid ran.
#[derive(Debug)]
pub struct Before {
    uid: u32,
    files: HashSet<PathBuf>,
    objects: HashSet<(IpcKind, i32)>,
}

impl Sweeper {
    /// Looks into the public directories and into the one that our scratch root is in, which it keeps if it is in use.
    pub fn new(root: &ScratchRoot, in_use: bool) -> Sweeper {
        let mut directories: Vec<PathBuf> = PUBLIC.map(PathBuf::from).to_vec();
        directories.extend(root.path().parent().map(Path::to_owned));
        Sweeper { directories, keep: in_use.then(|| root.path().to_owned()) }
    }

    /// Remembers what belongs to `uid` (the service's own, when there is none) before a script runs as that.
    pub fn look(&self, uid: Option<u32>) -> Before {
        let uid = uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        Before { uid, files: self.files_of(uid).collect(), objects: procfs::ipc_objects_of(uid) }
    }

    /// Removes what has come since, all that can be.
    ///
    /// # Errors
    /// The host's first, when something stays.
    pub fn sweep(&self, before: &Before) -> io::Result<()> {
        let files = self.files_of(before.uid).filter(|path| !before.files.contains(path));
        let files = files.map(|path| remove(&path));
        let objects = procfs::ipc_objects_of(before.uid);
        let objects =
            objects.difference(&before.objects).map(|(kind, id)| sys::remove_ipc(*kind, *id));
        files.chain(objects).fold(Ok(()), io::Result::and)
    }

    /// Ends the workers that an earlier supervisor of this uid left, and removes whatever belongs to the uid. Only for
    /// an environment that nobody shares with us and that outlives us, as AWS Lambda's does.
    ///
    /// # Errors
    /// The host's first, when something stays.
    pub fn clear(&self) -> io::Result<()> {
        let uid = nix::unistd::geteuid().as_raw();
        let deadline = Instant::now() + CLEAR_TIMEOUT;
        while end_workers_of(uid) {
            if Instant::now() > deadline {
                return Err(io::Error::other("an earlier worker does not end"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.sweep(&Before { uid, files: HashSet::new(), objects: HashSet::new() })
    }

    fn files_of(&self, uid: u32) -> impl Iterator<Item = PathBuf> {
        self.directories
            .iter()
            .flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten())
            .filter(move |entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == uid))
            .map(|entry| entry.path())
            .filter(|path| self.keep.as_ref() != Some(path))
    }
}

/// Kills the workers that an earlier supervisor of this uid left. Returns whether there were any.
fn end_workers_of(uid: u32) -> bool {
    let workers = procfs::workers_without_descriptors(uid);
    for worker in &workers {
        // Fails for a worker that ended meanwhile.
        let _ = kill(*worker, Signal::SIGKILL);
    }
    !workers.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_stays_and_what_came_since_goes() {
        let directory = std::env::temp_dir().join(format!("mainbox-sweep-{}", std::process::id()));
        let keep = directory.join("scratch root");
        fs::create_dir_all(&keep).unwrap();
        fs::write(directory.join("somebody's"), "precious").unwrap();
        let sweeper = Sweeper { directories: vec![directory.clone()], keep: Some(keep.clone()) };

        let before = sweeper.look(None);
        fs::write(directory.join("left"), "").unwrap();
        fs::create_dir_all(directory.join("left too/deep")).unwrap();
        std::os::unix::fs::symlink(&keep, directory.join("link")).unwrap();
        sweeper.sweep(&before).unwrap();

        let mut rest: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        rest.sort();
        assert_eq!(rest, ["scratch root", "somebody's"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}

//! Sweeping: if no mechanism stops a worker from writing to public directories or from creating System V IPC objects, its
//! leftovers there are removed when it ends. What existed before the worker is never touched.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::layer::Layer;
use super::procfs;
use super::public::{self, Public};
use super::removal::remove;
use super::sys::{self, IpcKind};

/// How long the workers of an earlier process may take to die of SIGKILL.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(1);

/// Removes the leftovers of workers.
#[derive(Clone, Debug)]
pub struct Sweeper {
    directories: Vec<PathBuf>,
    keep: Option<PathBuf>,
}

/// The files and IPC objects of a uid before a script with that uid ran.
#[derive(Debug)]
pub struct Before {
    uid: u32,
    files: HashSet<PathBuf>,
    objects: HashSet<(IpcKind, i32)>,
}

/// Prepares the removal of leftovers where nothing confines a worker, and tells whether all of them can be removed. `None`
/// if they are not known (`are_known`), since files of the service have the same uid. It keeps `keep`, the scratch root if
/// that is in use.
pub(super) fn prepare(
    are_known: bool,
    own_uids: bool,
    keep: Option<PathBuf>,
) -> (Option<Sweeper>, Layer) {
    if !are_known {
        let detail = "workers share the uid of the service, so files that a script leaves in public directories stay there";
        return (None, layer(detail, false));
    }
    let Public { directories, complete } = public::find(own_uids);
    let detail = match complete {
        true => "works",
        false => {
            "this host has too many directories to find all public ones; files that a script leaves in the others stay"
        }
    };
    (Some(Sweeper { directories, keep }), layer(detail, complete))
}

/// The layer of the sandbox that is the removal of leftovers.
pub(super) fn layer(detail: &str, works: bool) -> Layer {
    Layer { name: "removal of leftovers", works, detail: String::from(detail) }
}

impl Sweeper {
    /// Records what belongs to `uid` before a script runs under it. `None` stands for the uid of the service.
    pub fn look(&self, uid: Option<u32>) -> Before {
        let uid = uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        Before { uid, files: self.files_of(uid).collect(), objects: procfs::ipc_objects_of(uid) }
    }

    /// Removes the files and IPC objects of the uid that did not exist `before`. Continues after an error.
    ///
    /// # Errors
    /// The first error, when something could not be removed.
    pub fn sweep(&self, before: &Before) -> io::Result<()> {
        let files = self.files_of(before.uid).filter(|path| !before.files.contains(path));
        let files = files.map(|path| remove(&path));
        let objects = procfs::ipc_objects_of(before.uid);
        let objects =
            objects.difference(&before.objects).map(|(kind, id)| sys::remove_ipc(*kind, *id));
        // The fold goes through everything: `all` or `?` would stop at the first error.
        files.chain(objects).fold(Ok(()), io::Result::and)
    }

    /// Kills the workers of an earlier supervisor with this uid, and removes everything that belongs to the uid. Only
    /// for an environment that no other service uses and that outlives this process, like that of AWS Lambda: see
    /// <https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html>.
    ///
    /// # Errors
    /// When a worker stays alive; otherwise the first error, when something could not be removed.
    pub fn clear(&self) -> io::Result<()> {
        let uid = nix::unistd::geteuid().as_raw();
        let deadline = Instant::now() + CLEAR_TIMEOUT;
        // A worker that is still alive could create another file after the sweep, so every one must be gone first.
        while end_workers_of(uid) {
            if Instant::now() > deadline {
                return Err(io::Error::other("a worker of an earlier process is still alive"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.sweep(&Before { uid, files: HashSet::new(), objects: HashSet::new() })
    }

    /// The entries of the directories that `uid` owns, without the scratch root that is in use. Only the top level is
    /// read: a directory is removed together with its content.
    fn files_of(&self, uid: u32) -> impl Iterator<Item = PathBuf> {
        self.directories
            .iter()
            .flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten())
            .filter(move |entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == uid))
            .map(|entry| entry.path())
            .filter(|path| self.keep.as_ref() != Some(path))
    }
}

/// Sends SIGKILL to the workers of an earlier supervisor with this uid. Returns whether there were any.
fn end_workers_of(uid: u32) -> bool {
    let workers = procfs::workers_without_descriptors(uid);
    for worker in &workers {
        // This fails if the worker has ended in the meantime.
        let _ = kill(*worker, Signal::SIGKILL);
    }
    !workers.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_removes_new_files_and_keeps_old_ones() {
        let directory = std::env::temp_dir().join(format!("mainbox-sweep-{}", std::process::id()));
        let keep = directory.join("scratch root");
        fs::create_dir_all(&keep).unwrap();
        fs::write(directory.join("existing file"), "content").unwrap();
        let sweeper = Sweeper { directories: vec![directory.clone()], keep: Some(keep.clone()) };

        let before = sweeper.look(None);
        fs::write(directory.join("new file"), "").unwrap();
        fs::create_dir_all(directory.join("new directory/deep")).unwrap();
        std::os::unix::fs::symlink(&keep, directory.join("link")).unwrap();
        sweeper.sweep(&before).unwrap();

        let mut rest: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        rest.sort();
        assert_eq!(rest, ["existing file", "scratch root"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}

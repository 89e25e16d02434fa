//! Sweeping: where nothing stops a worker from writing to a directory that is everybody's, or from making System V IPC
//! objects, what it leaves there is removed after it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::scratch::{ScratchRoot, remove};
use super::sys::{self, IpcKind};

/// Where the kernel lists System V IPC objects: the id is in the second column, the owner where the header says `uid`.
const IPC: [(&str, IpcKind); 3] = [
    ("/proc/sysvipc/shm", IpcKind::SharedMemory),
    ("/proc/sysvipc/sem", IpcKind::Semaphores),
    ("/proc/sysvipc/msg", IpcKind::Messages),
];

/// Directories that everybody may write to.
const PUBLIC: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Knows what to keep.
#[derive(Clone, Debug)]
pub struct Sweeper {
    keep: PathBuf,
}

impl Sweeper {
    /// Keeps our own scratch root.
    pub fn new(root: &ScratchRoot) -> Sweeper {
        Sweeper { keep: root.path().to_owned() }
    }

    /// Removes what a script of this uid, or of the service's own, can have left.
    pub fn sweep(&self, uid: Option<u32>) {
        let uid = uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        for directory in PUBLIC.map(Path::new).into_iter().chain(self.keep.parent()) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let owned = entry.metadata().is_ok_and(|metadata| metadata.uid() == uid);
                if owned && entry.path() != self.keep {
                    remove(&entry.path());
                }
            }
        }
        for (list, kind) in IPC {
            for id in objects_of(uid, list) {
                if let Err(error) = sys::remove_ipc(kind, id) {
                    tracing::warn!(%error, id, ?kind, "an IPC object could not be removed");
                }
            }
        }
    }
}

/// The ids of the System V IPC objects in `list` that belong to `uid`.
fn objects_of(uid: u32, list: &str) -> Vec<i32> {
    let text = fs::read_to_string(list).unwrap_or_default();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let Some(owner) = header.iter().position(|name| *name == "uid") else { return vec![] };
    lines
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let owner: u32 = columns.get(owner)?.parse().ok()?;
            (owner == uid).then(|| columns.get(1)?.parse().ok())?
        })
        .collect()
}

//! Sweeping: where workers share the service's uid and nothing else stops them, what one leaves in the temporary
//! directory or among the System V IPC objects is removed before the next one runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::scratch::{ScratchRoot, remove};
use super::sys::{self, IpcKind};

/// Where the kernel lists System V IPC objects: the id is in the second column, the owner where the header says `uid`.
const IPC: [(&str, IpcKind); 3] = [
    ("/proc/sysvipc/shm", IpcKind::SharedMemory),
    ("/proc/sysvipc/sem", IpcKind::Semaphores),
    ("/proc/sysvipc/msg", IpcKind::Messages),
];

/// Knows what to keep.
#[derive(Clone, Debug)]
pub struct Sweeper {
    keep: PathBuf,
    uid: u32,
}

impl Sweeper {
    /// Keeps our own scratch root.
    pub fn new(root: &ScratchRoot) -> Sweeper {
        Sweeper { keep: root.path().to_owned(), uid: nix::unistd::geteuid().as_raw() }
    }

    /// Removes what a script of our uid can have left.
    pub fn sweep(&self) {
        self.sweep_files();
        for (list, kind) in IPC {
            for id in self.own_objects(list) {
                if let Err(error) = sys::remove_ipc(kind, id) {
                    tracing::warn!(%error, id, ?kind, "an IPC object could not be removed");
                }
            }
        }
    }

    fn sweep_files(&self) {
        let Some(temporary) = self.keep.parent() else { return };
        for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
            let ours = entry.metadata().is_ok_and(|metadata| metadata.uid() == self.uid);
            if ours && entry.path() != self.keep {
                remove(&entry.path());
            }
        }
    }

    fn own_objects(&self, list: &str) -> Vec<i32> {
        let text = fs::read_to_string(list).unwrap_or_default();
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        let Some(owner) = header.iter().position(|name| *name == "uid") else { return vec![] };
        lines
            .filter_map(|line| {
                let columns: Vec<&str> = line.split_whitespace().collect();
                let uid: u32 = columns.get(owner)?.parse().ok()?;
                (uid == self.uid).then(|| columns.get(1)?.parse().ok())?
            })
            .collect()
    }
}

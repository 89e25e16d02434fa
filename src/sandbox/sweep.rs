//! Sweeping: where nothing stops a worker from writing to a directory that is everybody's, or from making System V IPC
//! objects, what it leaves there is removed after it. What was there before it is never touched.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scratch::{ScratchRoot, remove};
use super::sys::{self, IpcKind};

/// Directories that everybody may write to.
const PUBLIC: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Where the kernel lists System V IPC objects: the id is in the second column, the owner where the header says `uid`.
const IPC: [(&str, IpcKind); 3] = [
    ("/proc/sysvipc/shm", IpcKind::SharedMemory),
    ("/proc/sysvipc/sem", IpcKind::Semaphores),
    ("/proc/sysvipc/msg", IpcKind::Messages),
];

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
        Before { uid, files: self.files_of(uid).collect(), objects: objects_of(uid).collect() }
    }

    /// Removes what has come since, all that can be.
    ///
    /// # Errors
    /// The host's first, when something stays.
    pub fn sweep(&self, before: &Before) -> io::Result<()> {
        let files = self.files_of(before.uid).filter(|path| !before.files.contains(path));
        let files = files.map(|path| remove(&path));
        let objects = objects_of(before.uid).filter(|object| !before.objects.contains(object));
        let objects = objects.map(|(kind, id)| sys::remove_ipc(kind, id));
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

/// Kills the processes of `uid` that can never again open a descriptor, which no other program does to itself. Returns
/// whether there were any.
fn end_workers_of(uid: u32) -> bool {
    let mut any = false;
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let told = |name| fs::read_to_string(process.path().join(name)).unwrap_or_default();
        if process.metadata().is_ok_and(|metadata| metadata.uid() == uid)
            && has_no_descriptors(&told("limits"))
            && !is_dead(&told("status"))
        {
            any = true;
            // One that ended meanwhile is what we want.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    any
}

/// Whether a status, as /proc has it, is that of a process that somebody has yet to reap.
fn is_dead(status: &str) -> bool {
    status.lines().any(|line| line.starts_with("State:\tZ"))
}

/// Whether a list of limits, as /proc has it, gives no descriptor, ever.
fn has_no_descriptors(limits: &str) -> bool {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.is_some_and(|line| line.split_whitespace().take(2).eq(["0", "0"]))
}

/// The System V IPC objects of `uid`.
fn objects_of(uid: u32) -> impl Iterator<Item = (IpcKind, i32)> {
    IPC.into_iter().flat_map(move |(list, kind)| {
        let text = fs::read_to_string(list).unwrap_or_default();
        ids_of(uid, &text).into_iter().map(move |id| (kind, id))
    })
}

/// The ids that a list of the kernel gives to `uid`, as their owner or as their creator: an owner can give them away.
fn ids_of(uid: u32, list: &str) -> Vec<i32> {
    let mut lines = list.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let places: Vec<usize> =
        (0..header.len()).filter(|place| matches!(header[*place], "uid" | "cuid")).collect();
    lines
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let is_theirs = |place: &usize| {
                columns.get(*place).and_then(|id| id.parse::<u32>().ok()) == Some(uid)
            };
            places.iter().any(is_theirs).then(|| columns.get(1)?.parse().ok())?
        })
        .collect()
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

    #[test]
    fn an_earlier_worker_is_known_by_what_it_can_never_do_again() {
        let limits =
            |files: &str| format!("Limit  Soft  Hard  Units\nMax open files  {files}  files\n");
        assert!(has_no_descriptors(&limits("0  0")));
        assert!(!has_no_descriptors(&limits("0  1024")));
        assert!(!has_no_descriptors(&limits("1024  1024")));
        assert!(!has_no_descriptors(""));
        let own = fs::read_to_string("/proc/self/limits").unwrap();
        assert!(own.contains("Max open files") && !has_no_descriptors(&own));
        assert!(is_dead("Name:\tsh\nState:\tZ (zombie)\n"));
        assert!(!is_dead(&fs::read_to_string("/proc/self/status").unwrap()));
    }

    #[test]
    fn ids_are_read_where_the_header_says() {
        let list = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid\n\
                    \u{20}        1          7   600                  4096     1     1      0   993   990   993   990\n\
                    \u{20}        2          8   600                  4096     1     1      0     0     0     0     0\n\
                    \u{20}        3          9   600                  4096     1     1      0     0     0   993   990\n";
        assert_eq!(ids_of(993, list), [7, 9]);
        assert!(ids_of(1, list).is_empty());
        assert!(ids_of(993, "").is_empty());
    }
}

//! Everything that is read from /proc.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::Pid;

use super::sys::IpcKind;

/// Larger than any `/proc/PID/status`, bytes.
const STATUS_BYTES: usize = 8192;

/// The lists of System V IPC objects. The second column is the id; the header names the columns of the owners.
const IPC_LISTS: [(&str, IpcKind); 3] = [
    ("/proc/sysvipc/shm", IpcKind::SharedMemory),
    ("/proc/sysvipc/sem", IpcKind::Semaphores),
    ("/proc/sysvipc/msg", IpcKind::Messages),
];

/// The memory of a process, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The address space.
    pub mapped_bytes: u64,
    /// The resident set.
    pub resident_bytes: u64,
    /// The largest resident set so far. gVisor does not report it; there it is the resident set.
    pub peak_bytes: u64,
    /// The part of the resident set that is no other file. gVisor does not report it.
    pub anonymous_bytes: Option<u64>,
    /// What is mapped for writing by this process alone, touched or not. gVisor does not report it.
    pub private_bytes: Option<u64>,
    /// The number of threads, if the kernel reports it.
    pub threads: Option<u64>,
}

/// The memory of `process`; `None` if it is gone. If its main thread has ended, the kernel reports the memory with the
/// other threads only.
pub fn memory(process: Pid) -> Option<Memory> {
    memory_in(&Status::of(process)?).or_else(|| {
        let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
        threads.flatten().find_map(|thread| memory_in(&Status::at(&thread.path().join("status"))?))
    })
}

fn memory_in(status: &Status) -> Option<Memory> {
    let bytes = |name: &str| {
        let kib = status.field(name)?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?;
        Some(kib * 1024)
    };
    let resident_bytes = bytes("VmRSS:")?;
    Some(Memory {
        mapped_bytes: bytes("VmSize:")?,
        resident_bytes,
        peak_bytes: bytes("VmHWM:").unwrap_or(resident_bytes),
        anonymous_bytes: bytes("RssAnon:")
            .zip(bytes("RssShmem:"))
            .map(|(own, shared)| own + shared),
        private_bytes: bytes("VmData:").zip(bytes("RssAnon:")).map(|(data, _)| data),
        threads: status.field("Threads:").and_then(|number| number.parse().ok()),
    })
}

/// What processes with the same uid can change of a process, as the kernel reports it.
#[derive(Debug, PartialEq, Eq)]
pub struct Standing {
    /// `/proc/PID/limits`.
    limits: String,
    /// Priority, nice value, real-time priority and scheduling policy, from `/proc/PID/stat`.
    scheduling: Vec<String>,
    /// The lines of `/proc/PID/status` about CPUs, memory nodes, and signals that are ignored or caught.
    status: Vec<String>,
}

/// The standing of `process`; `None` if it is gone.
pub fn standing(process: Pid) -> Option<Standing> {
    let read = |name: &str| fs::read(format!("/proc/{process}/{name}")).ok();
    let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
    // The name of the program, in parentheses, can contain anything. The state follows, as field 3 of proc_pid_stat(5).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let scheduling = [18, 19, 40, 41].iter().filter_map(|number| fields.get(number - 3));
    let status = String::from_utf8_lossy(&read("status")?).into_owned();
    let kept = ["Cpus_allowed:", "Mems_allowed:", "SigIgn:", "SigCgt:"];
    let status = status.lines().filter(|line| kept.iter().any(|name| line.starts_with(name)));
    Some(Standing {
        limits: String::from_utf8_lossy(&read("limits")?).into_owned(),
        scheduling: scheduling.map(|field| (*field).to_owned()).collect(),
        status: status.map(str::to_owned).collect(),
    })
}

/// The uids that the user namespace of this process maps. All of them, if that cannot be read.
pub fn mapped_ids() -> Vec<Range<u32>> {
    let text = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mapped: Vec<_> = text.lines().filter_map(id_range).collect();
    if mapped.is_empty() { std::iter::once(0..u32::MAX).collect() } else { mapped }
}

/// The effective capabilities of this process, one bit each; `None` if the kernel does not report them.
pub fn capabilities() -> Option<u64> {
    let status = Status::at(Path::new("/proc/self/status"))?;
    u64::from_str_radix(status.field("CapEff:")?, 16).ok()
}

/// The first column of a line is the first id inside the namespace, the third the number of ids.
fn id_range(line: &str) -> Option<Range<u32>> {
    let mut columns = line.split_whitespace().map(str::parse::<u32>);
    let (first, _, count) = (columns.next()?.ok()?, columns.next()?, columns.next()?.ok()?);
    Some(first..first.saturating_add(count))
}

/// Returns whether `process` is a stopped child of this process.
pub fn is_stopped_child(process: Pid) -> bool {
    Status::of(process).is_some_and(|status| {
        status.field("PPid:") == Some(&std::process::id().to_string())
            && status.field("State:").is_some_and(|state| state.starts_with('T'))
    })
}

/// Returns whether a process with this id exists. `process` is the text of a file name, so it is only looked up if it
/// is a number.
pub fn exists(process: &str) -> bool {
    process.parse::<u32>().is_ok() && Path::new("/proc").join(process).exists()
}

/// The processes of `uid` that can never open a descriptor again and are not zombies. Only workers of the tier
/// `rlimits` set such limits.
pub fn workers_without_descriptors(uid: u32) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let matches = entry.metadata().is_ok_and(|metadata| metadata.uid() == uid)
                && has_no_descriptors(&read("limits"))
                && !is_zombie(&read("status"));
            matches.then(|| Pid::from_raw(pid))
        })
        .collect()
}

/// The System V IPC objects that `uid` owns or created.
pub fn ipc_objects_of(uid: u32) -> HashSet<(IpcKind, i32)> {
    IPC_LISTS
        .into_iter()
        .flat_map(|(list, kind)| {
            let text = fs::read_to_string(list).unwrap_or_default();
            ids_of(uid, &text).into_iter().map(move |id| (kind, id))
        })
        .collect()
}

/// `/proc/PID/status`.
struct Status(Vec<u8>);

impl Status {
    fn of(process: Pid) -> Option<Status> {
        Status::at(Path::new(&format!("/proc/{process}/status")))
    }

    fn at(path: &Path) -> Option<Status> {
        let mut file = File::open(path).ok()?;
        // One read, since the kernel generates the whole text again for each.
        let mut text = vec![0; STATUS_BYTES];
        let length = file.read(&mut text).ok()?;
        text.truncate(length);
        Some(Status(text))
    }

    /// The value of a line. The others may be no UTF-8: a script chooses the name of its threads.
    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.split(|byte| *byte == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(name.as_bytes()))?;
        std::str::from_utf8(value).ok().map(str::trim)
    }
}

fn is_zombie(status: &str) -> bool {
    status.lines().any(|line| line.starts_with("State:\tZ"))
}

/// Returns whether a `/proc/PID/limits` allows no descriptor, neither now nor after raising the soft limit.
fn has_no_descriptors(limits: &str) -> bool {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.is_some_and(|line| line.split_whitespace().take(2).eq(["0", "0"]))
}

/// The ids in a list of IPC objects that `uid` owns or created. The creator counts too, since an owner can give an
/// object away.
fn ids_of(uid: u32, list: &str) -> Vec<i32> {
    let mut lines = list.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let columns: Vec<usize> =
        (0..header.len()).filter(|column| matches!(header[*column], "uid" | "cuid")).collect();
    lines
        .filter_map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let is_uid = |column: &usize| {
                cells.get(*column).and_then(|id| id.parse::<u32>().ok()) == Some(uid)
            };
            columns.iter().any(is_uid).then(|| cells.get(1)?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_an_id_map_are_ranges() {
        for (line, range) in [
            ("         0          0 4294967295", Some(0..u32::MAX)),
            ("         1     100000      65536", Some(1..65_537)),
            ("1000 0 1", Some(1000..1001)),
            ("4294967290 0 10", Some(4_294_967_290..u32::MAX)),
            ("1 2", None),
            ("a b c", None),
        ] {
            assert_eq!(id_range(line), range, "{line}");
        }
    }

    #[test]
    fn a_worker_of_the_tier_rlimits_is_recognized_by_its_limits() {
        let limits =
            |files: &str| format!("Limit  Soft  Hard  Units\nMax open files  {files}  files\n");
        assert!(has_no_descriptors(&limits("0  0")));
        assert!(!has_no_descriptors(&limits("0  1024")));
        assert!(!has_no_descriptors(&limits("1024  1024")));
        assert!(!has_no_descriptors(""));
        let own = fs::read_to_string("/proc/self/limits").unwrap();
        assert!(own.contains("Max open files") && !has_no_descriptors(&own));
        assert!(is_zombie("Name:\tsh\nState:\tZ (zombie)\n"));
        assert!(!is_zombie(&fs::read_to_string("/proc/self/status").unwrap()));
    }

    #[test]
    fn ipc_ids_are_found_by_the_columns_that_the_header_names() {
        let list = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid\n\
                    \u{20}        1          7   600                  4096     1     1      0   993   990   993   990\n\
                    \u{20}        2          8   600                  4096     1     1      0     0     0     0     0\n\
                    \u{20}        3          9   600                  4096     1     1      0     0     0   993   990\n";
        assert_eq!(ids_of(993, list), [7, 9]);
        assert!(ids_of(1, list).is_empty());
        assert!(ids_of(993, "").is_empty());
    }

    #[test]
    fn the_memory_of_a_process_is_read_and_that_of_a_missing_one_is_not() {
        let own = memory(nix::unistd::getpid()).unwrap();
        assert!(own.mapped_bytes >= own.resident_bytes && own.peak_bytes >= own.resident_bytes);
        assert!(memory(Pid::from_raw(1 << 22)).is_none());
        assert!(exists("1") && !exists("4194305") && !exists("self"));
    }
}

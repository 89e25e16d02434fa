//! The policy as data: every readable path with its reason, and every limit that cannot be configured. The allowed
//! system calls are in `system_calls`. The modules `seccomp`, `landlock`, `rlimits` and `namespaces` and the harness
//! enforce it.

use crate::config::choices::Policy;

/// The placeholder in the filter for the worker's own process id, which is known only after the fork. The worker
/// replaces it before it installs the filter. No process has this id, since `pid_max` is at most 2^22:
/// <https://man7.org/linux/man-pages/man5/proc_sys_kernel.5.html>.
pub const OWN_PROCESS: u32 = 0x5e1f_0000;

/// The number of worker uids, and of gids with the same numbers. Workers that are being removed still have theirs, so there
/// are more than can run.
pub const WORKER_UIDS: u32 = 1000;

/// What root needs to give workers uids of their own, besides changing to them. Containers can take these away. Numbers are
/// those of <https://man7.org/linux/man-pages/man7/capabilities.7.html>.
pub const OWN_UID_CAPABILITIES: [(u32, &str); 4] = [
    // Scratch directories are made by the service and belong to the worker.
    (0, "CAP_CHOWN"),
    // The service reads the files that a script left, and removes them.
    (1, "CAP_DAC_OVERRIDE"),
    // In a public directory such as /tmp, only their owner may remove files.
    (3, "CAP_FOWNER"),
    // The service ends what a worker left running.
    (5, "CAP_KILL"),
];

/// Where worker uids may come from, the first range that this process can use. Each process takes a random block, since
/// the kernel counts the threads of a uid across containers.
///
/// - The first is unused by convention, and so large that two processes hardly ever meet:
///   <https://systemd.io/UIDS-GIDS/>.
/// - The second fits into the 65,536 uids of a rootless container. It avoids the users of distributions below it, and
///   the dynamic users of systemd and `nobody` above it.
pub const WORKER_UID_RANGES: [std::ops::Range<u32>; 2] = [0x7000_0000..0x7ffe_0000, 10_000..60_000];

/// The largest number of threads of a worker, the main thread included. The kernel holds it if each worker has its own uid
/// or its own user namespace. Otherwise the supervisor ends a worker with more.
pub const MAX_THREADS: u64 = 64;
/// How many more processes and threads a uid that workers share may have than at the start, in all containers: what a worker
/// can start before the supervisor looks again. It is less where the container has a lower limit.
pub const MAX_SHARED_TASKS: u64 = 1024;
/// The largest number of open file descriptors of a worker, the four that it starts with included.
pub const MAX_DESCRIPTORS: u64 = 128;
/// The largest number of signals that may be queued for a worker. The kernel allows tens of thousands.
pub const MAX_QUEUED_SIGNALS: u64 = 64;
/// The largest number of files and directories in a scratch directory.
pub const MAX_SCRATCH_FILES: u64 = 4096;
/// The most levels of directories in a scratch directory that is not a file system of its own.
pub const MAX_SCRATCH_DEPTH: u32 = 64;
/// The largest main stack of a worker, bytes. This is the usual default of Linux distributions.
pub const STACK_BYTES: u64 = 8 << 20;
/// The distance of the hard memory limit from the soft one, bytes. A worker that reaches the soft limit raises it by
/// this much, so that it can report a `MemoryError`.
pub const MEMORY_RESERVE_BYTES: u64 = 16 << 20;

/// The paths outside the interpreter that a worker may read, each with its reason. Paths that do not exist are skipped.
pub const READABLE: &[(&str, &str)] = &[
    ("/lib", "shared libraries"),
    ("/lib64", "the dynamic loader"),
    ("/usr/lib", "shared libraries, Debian's Python"),
    ("/usr/lib64", "shared libraries of Amazon Linux"),
    ("/usr/local/lib", "shared libraries, the Python of the official images"),
    ("/usr/share/zoneinfo", "time zones of the zoneinfo module"),
    ("/etc/ld.so.cache", "library paths for the dynamic loader"),
    ("/etc/mime.types", "the mimetypes module, which fails if the file exists but cannot be read"),
    ("/dev/null", "os.devnull"),
    ("/dev/zero", "anonymous mappings in older code"),
    ("/dev/full", "tests of code that handles a full disk"),
    ("/dev/urandom", "libraries that read random bytes from a file"),
];

/// What the harness refuses when it validates a script, before the script runs. See [`Policy`].
#[derive(Debug, serde::Serialize)]
pub struct Refused {
    /// Top-level modules that may not be imported.
    pub modules: &'static [&'static str],
    /// Functions of `os` that may not be used; a trailing `*` matches any ending.
    pub os_functions: &'static [&'static str],
    /// Builtin functions that may not be used.
    pub builtins: &'static [&'static str],
    /// Whether `main` must have a return statement.
    pub needs_return: bool,
}

/// Returns what `policy` refuses.
pub const fn refused(policy: Policy) -> Refused {
    const OS: &[&str] = &["system", "popen", "fork", "forkpty", "exec*", "spawn*", "posix_spawn*"];
    match policy {
        Policy::Off => {
            Refused { modules: &[], os_functions: &[], builtins: &[], needs_return: false }
        }
        Policy::Standard => Refused {
            modules: &["subprocess", "pty", "multiprocessing"],
            os_functions: OS,
            builtins: &[],
            needs_return: false,
        },
        Policy::Strict => Refused {
            modules: &[
                "subprocess",
                "pty",
                "multiprocessing",
                "os",
                "sys",
                "ctypes",
                "socket",
                "importlib",
            ],
            os_functions: OS,
            builtins: &["eval", "exec", "compile", "__import__"],
            needs_return: true,
        },
    }
}

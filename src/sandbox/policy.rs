//! The policy as data: every allowed system call and readable path with its reason, and every limit that cannot be
//! configured. The modules `seccomp`, `landlock`, `rlimits` and `namespaces` and the harness enforce it.

use libc::c_long;

use crate::config::choices::Policy;

/// The placeholder in the filters for the worker's own process id, which is known only after the fork. The worker
/// replaces it before it installs the filters. No process has this id, since `pid_max` is at most 2^22:
/// <https://man7.org/linux/man-pages/man5/proc_sys_kernel.5.html>.
pub const OWN_PROCESS: u32 = 0x5e1f_0000;

/// The number of worker uids, and of gids with the same numbers. Workers that are being removed still have theirs, so there
/// are more than can run.
pub const WORKER_UIDS: u32 = 1000;
/// Where worker uids may come from, the first range that this process can use. Each process takes a random block, since
/// the kernel counts the threads of a uid across containers.
///
/// - The first is unused by convention, and so large that two processes hardly ever meet:
///   <https://systemd.io/UIDS-GIDS/>.
/// - The second fits into the 65,536 uids of a rootless container. It avoids the users of distributions below it, and
///   the dynamic users of systemd and `nobody` above it.
pub const WORKER_UID_RANGES: [std::ops::Range<u32>; 2] = [0x7000_0000..0x7ffe_0000, 10_000..60_000];

/// The largest number of threads of a worker, the main thread included. It applies if the kernel can count the threads
/// of one worker: if each has its own uid or its own user namespace.
pub const MAX_THREADS: u64 = 64;
/// The largest number of open file descriptors of a worker, the four that it starts with included.
pub const MAX_DESCRIPTORS: u64 = 128;
/// The largest number of files and directories in a scratch directory that is a file system of its own.
pub const MAX_SCRATCH_FILES: u64 = 4096;
/// The largest main stack of a worker, bytes. This is the usual default of Linux distributions.
pub const STACK_BYTES: u64 = 8 << 20;
/// The distance of the hard memory limit from the soft one, bytes. A worker that reaches the soft limit raises it by
/// this much, so that it can report a `MemoryError`.
pub const MEMORY_RESERVE_BYTES: u64 = 16 << 20;

/// The condition under which a system call is allowed. Arguments are counted from 0.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// With any arguments.
    Always,
    /// When the lower 32 bits of the argument are one of the values: (argument, values).
    Among(u8, &'static [u32]),
    /// When the lower 32 bits of the argument, ANDed with the mask, are one of the values: (argument, mask, values).
    Masked(u8, u32, &'static [u32]),
    /// When all 64 bits of the argument are zero, as for a null pointer.
    Null(u8),
}

/// A system call that a worker may make.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The number of the call on this architecture.
    pub number: c_long,
    /// The condition under which it is allowed.
    pub when: When,
    /// What scripts need the call for.
    pub reason: &'static str,
}

const fn any(number: c_long, reason: &'static str) -> Allowed {
    Allowed { number, when: When::Always, reason }
}

const fn when(number: c_long, when: When, reason: &'static str) -> Allowed {
    Allowed { number, when, reason }
}

const WRITE_OR_EXECUTE: u32 = (libc::PROT_WRITE | libc::PROT_EXEC) as u32;
/// Memory that is writable or executable, but not both (W^X). Libraries need executable memory, but only generated code
/// needs memory that is both.
const NOT_BOTH: When =
    When::Masked(2, WRITE_OR_EXECUTE, &[0, libc::PROT_WRITE as u32, libc::PROT_EXEC as u32]);

const THREAD: u32 = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u32;
const NEW_NAMESPACE: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// The allowed calls that exist on every architecture. All other calls fail with EPERM.
pub const SYSCALLS: &[Allowed] = &[
    // Memory
    any(libc::SYS_brk, "memory allocation in malloc"),
    when(libc::SYS_mmap, NOT_BOTH, "memory allocation in malloc, loading of extension modules"),
    when(libc::SYS_mprotect, NOT_BOTH, "stacks of threads, relocation of extension modules"),
    any(libc::SYS_munmap, "releasing memory in malloc"),
    any(libc::SYS_mremap, "resizing large blocks in realloc"),
    any(libc::SYS_madvise, "returning memory to the kernel in malloc"),
    any(libc::SYS_msync, "mmap.flush on a scratch file"),
    // Descriptors
    any(libc::SYS_read, "reading files and pipes"),
    any(libc::SYS_write, "writing files, stdout and stderr"),
    any(libc::SYS_readv, "os.readv"),
    any(libc::SYS_writev, "os.writev"),
    any(libc::SYS_pread64, "os.pread, sqlite3"),
    any(libc::SYS_pwrite64, "os.pwrite, sqlite3"),
    any(libc::SYS_lseek, "file.seek, file.tell"),
    any(libc::SYS_close, "closing files"),
    any(libc::SYS_close_range, "os.closerange"),
    any(libc::SYS_dup, "os.dup"),
    any(libc::SYS_dup3, "os.dup2"),
    when(
        libc::SYS_fcntl,
        When::Among(
            1,
            &[
                libc::F_DUPFD as u32,
                libc::F_GETFD as u32,
                libc::F_SETFD as u32,
                libc::F_GETFL as u32,
                libc::F_SETFL as u32,
                libc::F_GETLK as u32,
                libc::F_SETLK as u32,
                libc::F_SETLKW as u32,
                libc::F_DUPFD_CLOEXEC as u32,
            ],
        ),
        "non-blocking descriptors and the locks of sqlite3, but no pipe sizes, owners or leases",
    ),
    when(
        libc::SYS_ioctl,
        When::Among(
            1,
            &[
                libc::TCGETS as u32,
                libc::TIOCGWINSZ as u32,
                libc::FIONREAD as u32,
                libc::FIONBIO as u32,
                libc::FIOCLEX as u32,
                libc::FIONCLEX as u32,
            ],
        ),
        "os.isatty, os.get_terminal_size, non-blocking descriptors",
    ),
    any(libc::SYS_pipe2, "os.pipe"),
    any(libc::SYS_flock, "fcntl.flock"),
    any(libc::SYS_fsync, "os.fsync, sqlite3"),
    any(libc::SYS_fdatasync, "os.fdatasync, sqlite3"),
    any(libc::SYS_ftruncate, "file.truncate, os.ftruncate"),
    any(libc::SYS_truncate, "os.truncate"),
    any(libc::SYS_fallocate, "os.posix_fallocate, sqlite3"),
    any(libc::SYS_fadvise64, "os.posix_fadvise"),
    any(libc::SYS_sendfile, "os.sendfile, shutil.copyfile"),
    any(libc::SYS_copy_file_range, "os.copy_file_range"),
    // Files; Landlock, the private root and the uid decide which ones can be accessed
    any(libc::SYS_openat, "open"),
    any(libc::SYS_newfstatat, "os.stat"),
    any(libc::SYS_fstat, "os.fstat"),
    any(libc::SYS_statx, "stat in newer C libraries"),
    any(libc::SYS_statfs, "os.statvfs, shutil.disk_usage"),
    any(libc::SYS_fstatfs, "os.fstatvfs, shutil.disk_usage"),
    any(libc::SYS_faccessat, "os.access"),
    any(libc::SYS_faccessat2, "os.access with flags"),
    any(libc::SYS_readlinkat, "os.readlink, os.path.realpath"),
    any(libc::SYS_getcwd, "os.getcwd"),
    any(libc::SYS_chdir, "os.chdir"),
    any(libc::SYS_fchdir, "os.fchdir"),
    any(libc::SYS_getdents64, "os.listdir, os.scandir"),
    any(libc::SYS_mkdirat, "os.mkdir"),
    any(libc::SYS_unlinkat, "os.remove, os.rmdir"),
    any(libc::SYS_renameat, "os.rename"),
    any(libc::SYS_renameat2, "os.rename in newer C libraries"),
    any(libc::SYS_fchmod, "os.fchmod"),
    any(libc::SYS_fchmodat, "os.chmod, shutil.copymode"),
    any(libc::SYS_utimensat, "os.utime, shutil.copystat"),
    any(libc::SYS_umask, "os.umask"),
    any(libc::SYS_getxattr, "os.getxattr, shutil.copystat"),
    any(libc::SYS_lgetxattr, "os.getxattr, shutil.copystat"),
    any(libc::SYS_fgetxattr, "os.getxattr, shutil.copystat"),
    any(libc::SYS_listxattr, "os.listxattr, shutil.copystat"),
    any(libc::SYS_llistxattr, "os.listxattr, shutil.copystat"),
    any(libc::SYS_flistxattr, "os.listxattr, shutil.copystat"),
    // Waiting
    any(libc::SYS_ppoll, "select.poll"),
    any(libc::SYS_pselect6, "select.select"),
    any(libc::SYS_epoll_create1, "select.epoll, asyncio"),
    any(libc::SYS_epoll_ctl, "select.epoll, asyncio"),
    any(libc::SYS_epoll_pwait, "select.epoll, asyncio"),
    any(libc::SYS_eventfd2, "os.eventfd"),
    when(
        libc::SYS_socketpair,
        When::Among(0, &[libc::AF_UNIX as u32]),
        "the socket pair that wakes up an asyncio loop",
    ),
    when(libc::SYS_sendto, When::Null(4), "sending on a socket pair, which needs no address"),
    any(libc::SYS_recvfrom, "receiving on a socket pair"),
    any(libc::SYS_shutdown, "shutting down a socket pair"),
    any(libc::SYS_getsockname, "socket objects of a socket pair"),
    any(libc::SYS_getpeername, "socket objects of a socket pair"),
    any(libc::SYS_getsockopt, "socket objects of a socket pair"),
    // Time
    any(libc::SYS_clock_gettime, "time.time, time.monotonic"),
    any(libc::SYS_clock_getres, "time.get_clock_info"),
    any(libc::SYS_clock_nanosleep, "time.sleep"),
    any(libc::SYS_nanosleep, "time.sleep in older C libraries"),
    any(libc::SYS_gettimeofday, "time.time in older libraries"),
    any(libc::SYS_times, "os.times"),
    any(libc::SYS_getitimer, "signal.getitimer"),
    any(libc::SYS_setitimer, "signal.setitimer, signal.alarm"),
    // Threads
    when(
        libc::SYS_clone,
        When::Masked(0, THREAD | NEW_NAMESPACE, &[THREAD]),
        "starting threads, but neither processes nor namespaces",
    ),
    any(
        libc::SYS_clone3,
        "starting threads; another filter makes it fail with ENOSYS, so that glibc falls back to clone",
    ),
    any(libc::SYS_futex, "locks"),
    any(libc::SYS_set_robust_list, "thread start in the C library"),
    any(libc::SYS_rseq, "thread start in the C library"),
    any(libc::SYS_set_tid_address, "thread start in the C library"),
    any(libc::SYS_sched_yield, "time.sleep(0), spin locks"),
    any(libc::SYS_sched_getaffinity, "os.cpu_count, sizes of thread pools"),
    any(libc::SYS_getcpu, "per-CPU arenas of allocators"),
    any(libc::SYS_membarrier, "locks in some libraries"),
    when(
        libc::SYS_prctl,
        When::Among(0, &[libc::PR_SET_NAME as u32, libc::PR_GET_NAME as u32]),
        "names of threads",
    ),
    // Signals, to the worker's own process only
    any(libc::SYS_rt_sigaction, "signal.signal"),
    any(libc::SYS_rt_sigprocmask, "signal.pthread_sigmask, thread start"),
    any(libc::SYS_rt_sigreturn, "return from a signal handler"),
    any(libc::SYS_rt_sigpending, "signal.sigpending"),
    any(libc::SYS_rt_sigtimedwait, "signal.sigwait"),
    any(libc::SYS_rt_sigsuspend, "signal.pause"),
    any(libc::SYS_sigaltstack, "faulthandler"),
    when(libc::SYS_kill, When::Among(0, &[OWN_PROCESS]), "os.kill on the worker's own process"),
    when(libc::SYS_tgkill, When::Among(0, &[OWN_PROCESS]), "abort, raise, signal.pthread_kill"),
    any(libc::SYS_restart_syscall, "resuming a sleep that a signal interrupted"),
    // The worker's own process
    any(libc::SYS_getpid, "os.getpid"),
    any(libc::SYS_getppid, "os.getppid"),
    any(libc::SYS_gettid, "threading.get_native_id"),
    any(libc::SYS_getuid, "os.getuid"),
    any(libc::SYS_geteuid, "os.geteuid"),
    any(libc::SYS_getgid, "os.getgid"),
    any(libc::SYS_getegid, "os.getegid"),
    any(libc::SYS_getresuid, "os.getresuid"),
    any(libc::SYS_getresgid, "os.getresgid"),
    any(libc::SYS_getgroups, "os.getgroups"),
    when(libc::SYS_getpgid, When::Among(0, &[0, OWN_PROCESS]), "os.getpgid"),
    when(libc::SYS_getsid, When::Among(0, &[0, OWN_PROCESS]), "os.getsid"),
    when(
        libc::SYS_prlimit64,
        When::Among(0, &[0, OWN_PROCESS]),
        "resource.getrlimit, resource.setrlimit",
    ),
    any(libc::SYS_getrusage, "resource.getrusage, time.process_time"),
    any(libc::SYS_uname, "os.uname, the platform module"),
    any(libc::SYS_sysinfo, "os.sysconf"),
    any(libc::SYS_getrandom, "os.urandom, the secrets module"),
    any(libc::SYS_exit, "the end of a thread"),
    any(libc::SYS_exit_group, "the end of the process"),
];

/// Older forms of the calls above that exist on x86-64 only. Some libraries still use them.
#[cfg(target_arch = "x86_64")]
pub const LEGACY_SYSCALLS: &[Allowed] = &[
    any(libc::SYS_open, "open"),
    any(libc::SYS_stat, "os.stat"),
    any(libc::SYS_lstat, "os.lstat"),
    any(libc::SYS_access, "os.access"),
    any(libc::SYS_readlink, "os.readlink, os.path.realpath"),
    any(libc::SYS_getdents, "os.listdir"),
    any(libc::SYS_mkdir, "os.mkdir"),
    any(libc::SYS_rmdir, "os.rmdir"),
    any(libc::SYS_unlink, "os.remove"),
    any(libc::SYS_rename, "os.rename"),
    any(libc::SYS_chmod, "os.chmod, shutil.copymode"),
    any(libc::SYS_pipe, "os.pipe"),
    any(libc::SYS_dup2, "os.dup2"),
    any(libc::SYS_poll, "select.poll"),
    any(libc::SYS_select, "select.select"),
    any(libc::SYS_epoll_create, "select.epoll, asyncio"),
    any(libc::SYS_epoll_wait, "select.epoll, asyncio"),
    any(libc::SYS_time, "time.time"),
    any(libc::SYS_alarm, "signal.alarm"),
    any(libc::SYS_pause, "signal.pause"),
    any(libc::SYS_getpgrp, "os.getpgrp"),
    any(libc::SYS_getrlimit, "resource.getrlimit"),
];

/// Older forms of the calls above: only x86-64 has any.
#[cfg(not(target_arch = "x86_64"))]
pub const LEGACY_SYSCALLS: &[Allowed] = &[];

/// The paths outside the interpreter that a worker may read, each with its reason. Paths that do not exist are skipped.
pub const READABLE: &[(&str, &str)] = &[
    ("/lib", "shared libraries"),
    ("/lib64", "the dynamic loader"),
    ("/usr/lib", "shared libraries, Debian's Python"),
    ("/usr/lib64", "shared libraries of Amazon Linux"),
    ("/usr/local/lib", "shared libraries, the Python of the official images"),
    ("/usr/share/zoneinfo", "time zones of the zoneinfo module"),
    ("/etc/ld.so.cache", "library paths for the dynamic loader"),
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

//! Policy as data: every allowed system call with a word on who needs it, every readable path, every number that is
//! not configuration. Nothing here acts; `seccomp`, `landlock`, `rlimits` and the harness carry it out.

use libc::c_long;

use crate::config::choices::Policy;

/// Stands in the filter for the worker's own process id, which is only known after the fork: the worker puts its own
/// in its place before it installs the filter. No process has this id (`pid_max` is at most 2^22).
pub const OWN_PROCESS: u32 = 0x5e1f_0000;

/// Uids of workers when the service may change uids: one for each live worker, none used by Debian or systemd.
pub const WORKER_UIDS: std::ops::Range<u32> = 58_000..59_000;

/// Threads of a worker, where its uid is its own and the kernel can count them.
pub const MAX_THREADS: u64 = 64;
/// Descriptors of a worker, the four that it starts with included.
pub const MAX_DESCRIPTORS: u64 = 128;
/// Files and directories in a scratch directory that is a file system of its own.
pub const MAX_SCRATCH_FILES: u64 = 4096;
/// Bytes of a worker's main stack.
pub const STACK_BYTES: u64 = 8 << 20;
/// Bytes above the soft memory limit that let a worker say that it ran out.
pub const MEMORY_RESERVE_BYTES: u64 = 16 << 20;

/// When an allowed call is allowed.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// With any arguments.
    Always,
    /// When the 32-bit argument (counted from 0) is one of the values.
    Among(u8, &'static [u32]),
    /// When the 32-bit argument, masked, is one of the values: (argument, mask, values).
    Masked(u8, u32, &'static [u32]),
    /// When the 64-bit argument is zero.
    Null(u8),
}

/// A system call that a worker may make.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The kernel's number for it on this architecture.
    pub number: c_long,
    /// Under which condition.
    pub when: When,
    /// Who needs it.
    pub who: &'static str,
}

const fn any(number: c_long, who: &'static str) -> Allowed {
    Allowed { number, when: When::Always, who }
}

const fn when(number: c_long, when: When, who: &'static str) -> Allowed {
    Allowed { number, when, who }
}

const WRITE_OR_EXECUTE: u32 = (libc::PROT_WRITE | libc::PROT_EXEC) as u32;
/// Writable or executable, never both: libraries are mapped executable, nothing real maps its code writable.
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

/// Calls of every architecture. What is not here answers EPERM.
pub const SYSCALLS: &[Allowed] = &[
    // Memory
    any(libc::SYS_brk, "malloc"),
    when(libc::SYS_mmap, NOT_BOTH, "malloc, extension modules"),
    when(libc::SYS_mprotect, NOT_BOTH, "thread stacks, relocation of extension modules"),
    any(libc::SYS_munmap, "malloc"),
    any(libc::SYS_mremap, "realloc of large arrays"),
    any(libc::SYS_madvise, "malloc giving memory back"),
    any(libc::SYS_msync, "the mmap module on a scratch file"),
    // Descriptors
    any(libc::SYS_read, "files, pipes"),
    any(libc::SYS_write, "files, stdout"),
    any(libc::SYS_readv, "os.readv"),
    any(libc::SYS_writev, "os.writev"),
    any(libc::SYS_pread64, "sqlite, os.pread"),
    any(libc::SYS_pwrite64, "sqlite, os.pwrite"),
    any(libc::SYS_lseek, "seek, tell"),
    any(libc::SYS_close, "close"),
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
        "non-blocking descriptors, sqlite's locks; not pipe sizes, owners, leases",
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
        "isatty, terminal width, non-blocking descriptors",
    ),
    any(libc::SYS_pipe2, "os.pipe"),
    any(libc::SYS_flock, "fcntl.flock"),
    any(libc::SYS_fsync, "os.fsync, sqlite"),
    any(libc::SYS_fdatasync, "sqlite"),
    any(libc::SYS_ftruncate, "truncate"),
    any(libc::SYS_truncate, "os.truncate"),
    any(libc::SYS_fallocate, "posix_fallocate, sqlite"),
    any(libc::SYS_fadvise64, "os.posix_fadvise"),
    any(libc::SYS_sendfile, "shutil.copyfile"),
    any(libc::SYS_copy_file_range, "os.copy_file_range"),
    // Files; which of them, Landlock and the uid decide
    any(libc::SYS_openat, "open"),
    any(libc::SYS_newfstatat, "stat"),
    any(libc::SYS_fstat, "stat of descriptors"),
    any(libc::SYS_statx, "stat"),
    any(libc::SYS_statfs, "shutil.disk_usage"),
    any(libc::SYS_fstatfs, "shutil.disk_usage"),
    any(libc::SYS_faccessat, "os.access"),
    any(libc::SYS_faccessat2, "os.access"),
    any(libc::SYS_readlinkat, "os.path.realpath"),
    any(libc::SYS_getcwd, "os.getcwd"),
    any(libc::SYS_chdir, "os.chdir"),
    any(libc::SYS_fchdir, "os.fchdir"),
    any(libc::SYS_getdents64, "os.listdir"),
    any(libc::SYS_mkdirat, "os.mkdir"),
    any(libc::SYS_unlinkat, "os.remove, rmdir"),
    any(libc::SYS_renameat, "os.rename"),
    any(libc::SYS_renameat2, "os.rename"),
    any(libc::SYS_fchmod, "shutil"),
    any(libc::SYS_fchmodat, "shutil.copymode"),
    any(libc::SYS_utimensat, "shutil.copystat"),
    any(libc::SYS_umask, "os.umask"),
    any(libc::SYS_getxattr, "shutil.copystat"),
    any(libc::SYS_lgetxattr, "shutil.copystat"),
    any(libc::SYS_fgetxattr, "shutil.copystat"),
    any(libc::SYS_listxattr, "shutil.copystat"),
    any(libc::SYS_llistxattr, "shutil.copystat"),
    any(libc::SYS_flistxattr, "shutil.copystat"),
    // Waiting
    any(libc::SYS_ppoll, "select.poll"),
    any(libc::SYS_pselect6, "select.select"),
    any(libc::SYS_epoll_create1, "asyncio"),
    any(libc::SYS_epoll_ctl, "asyncio"),
    any(libc::SYS_epoll_pwait, "asyncio"),
    any(libc::SYS_eventfd2, "os.eventfd"),
    when(libc::SYS_socketpair, When::Among(0, &[libc::AF_UNIX as u32]), "asyncio's wake-up pair"),
    when(libc::SYS_sendto, When::Null(4), "asyncio's wake-up pair, which needs no address"),
    any(libc::SYS_recvfrom, "asyncio's wake-up pair"),
    any(libc::SYS_shutdown, "closing a socket pair"),
    any(libc::SYS_getsockname, "socket objects of a pair"),
    any(libc::SYS_getpeername, "socket objects of a pair"),
    any(libc::SYS_getsockopt, "socket objects of a pair"),
    // Time
    any(libc::SYS_clock_gettime, "time"),
    any(libc::SYS_clock_getres, "time.get_clock_info"),
    any(libc::SYS_clock_nanosleep, "time.sleep"),
    any(libc::SYS_nanosleep, "time.sleep"),
    any(libc::SYS_gettimeofday, "time"),
    any(libc::SYS_times, "os.times"),
    any(libc::SYS_getitimer, "signal.setitimer"),
    any(libc::SYS_setitimer, "signal.setitimer, signal.alarm"),
    // Threads
    when(libc::SYS_clone, When::Masked(0, THREAD | NEW_NAMESPACE, &[THREAD]), "threads"),
    any(libc::SYS_clone3, "answered ENOSYS by a filter of its own, so that glibc takes clone"),
    any(libc::SYS_futex, "locks"),
    any(libc::SYS_set_robust_list, "threads"),
    any(libc::SYS_rseq, "threads"),
    any(libc::SYS_set_tid_address, "threads"),
    any(libc::SYS_sched_yield, "locks, time.sleep(0)"),
    any(libc::SYS_sched_getaffinity, "os.cpu_count, thread pools"),
    any(libc::SYS_getcpu, "malloc"),
    any(libc::SYS_membarrier, "locks of some libraries"),
    when(
        libc::SYS_prctl,
        When::Among(0, &[libc::PR_SET_NAME as u32, libc::PR_GET_NAME as u32]),
        "thread names",
    ),
    // Signals, to oneself only
    any(libc::SYS_rt_sigaction, "signal.signal"),
    any(libc::SYS_rt_sigprocmask, "threads, signal"),
    any(libc::SYS_rt_sigreturn, "signal handlers"),
    any(libc::SYS_rt_sigpending, "signal.sigpending"),
    any(libc::SYS_rt_sigtimedwait, "signal.sigwait"),
    any(libc::SYS_rt_sigsuspend, "signal.pause"),
    any(libc::SYS_sigaltstack, "faulthandler"),
    when(libc::SYS_kill, When::Among(0, &[OWN_PROCESS]), "os.kill of itself"),
    when(libc::SYS_tgkill, When::Among(0, &[OWN_PROCESS]), "abort, raise, pthread_kill"),
    any(libc::SYS_restart_syscall, "the kernel, after a stop"),
    // Oneself
    any(libc::SYS_getpid, "os"),
    any(libc::SYS_getppid, "os"),
    any(libc::SYS_gettid, "threading"),
    any(libc::SYS_getuid, "os"),
    any(libc::SYS_geteuid, "os"),
    any(libc::SYS_getgid, "os"),
    any(libc::SYS_getegid, "os"),
    any(libc::SYS_getresuid, "os"),
    any(libc::SYS_getresgid, "os"),
    any(libc::SYS_getgroups, "os"),
    when(libc::SYS_getpgid, When::Among(0, &[0, OWN_PROCESS]), "os"),
    when(libc::SYS_getsid, When::Among(0, &[0, OWN_PROCESS]), "os"),
    when(libc::SYS_prlimit64, When::Among(0, &[0, OWN_PROCESS]), "the resource module"),
    any(libc::SYS_getrusage, "the resource module, time.process_time"),
    any(libc::SYS_uname, "platform"),
    any(libc::SYS_sysinfo, "os.sysconf"),
    any(libc::SYS_getrandom, "os.urandom, secrets"),
    any(libc::SYS_exit, "threads"),
    any(libc::SYS_exit_group, "the end"),
];

/// Older forms of the calls above that only x86-64 has; some libraries still use them.
#[cfg(target_arch = "x86_64")]
pub const LEGACY_SYSCALLS: &[Allowed] = &[
    any(libc::SYS_open, "open"),
    any(libc::SYS_stat, "stat"),
    any(libc::SYS_lstat, "stat"),
    any(libc::SYS_access, "os.access"),
    any(libc::SYS_readlink, "os.path.realpath"),
    any(libc::SYS_getdents, "os.listdir"),
    any(libc::SYS_mkdir, "os.mkdir"),
    any(libc::SYS_rmdir, "os.rmdir"),
    any(libc::SYS_unlink, "os.remove"),
    any(libc::SYS_rename, "os.rename"),
    any(libc::SYS_chmod, "shutil.copymode"),
    any(libc::SYS_pipe, "os.pipe"),
    any(libc::SYS_dup2, "os.dup2"),
    any(libc::SYS_poll, "select.poll"),
    any(libc::SYS_select, "select.select"),
    any(libc::SYS_epoll_create, "asyncio"),
    any(libc::SYS_epoll_wait, "asyncio"),
    any(libc::SYS_time, "time"),
    any(libc::SYS_alarm, "signal.alarm"),
    any(libc::SYS_pause, "signal.pause"),
    any(libc::SYS_getpgrp, "os"),
    any(libc::SYS_getrlimit, "the resource module"),
];

/// Only x86-64 has older forms.
#[cfg(not(target_arch = "x86_64"))]
pub const LEGACY_SYSCALLS: &[Allowed] = &[];

/// Files outside the interpreter that a worker may read, where they exist.
pub const READABLE: &[(&str, &str)] = &[
    ("/lib", "shared libraries"),
    ("/lib64", "the dynamic loader"),
    ("/usr/lib", "shared libraries, Debian's Python"),
    ("/usr/lib64", "shared libraries of Amazon Linux"),
    ("/usr/local/lib", "shared libraries, Python of the official images"),
    ("/usr/share/zoneinfo", "zoneinfo"),
    ("/etc/ld.so.cache", "the dynamic loader"),
    ("/dev/null", "os.devnull"),
    ("/dev/zero", "the mmap module of old"),
    ("/dev/full", "tests of full disks"),
    ("/dev/urandom", "seeding from a file"),
];

/// What the early check of a script refuses, sent to the harness. See [`Policy`].
#[derive(Debug, serde::Serialize)]
pub struct Refused {
    /// Top-level modules that may not be imported.
    pub modules: &'static [&'static str],
    /// Functions of `os` that may not be named; a trailing `*` stands for any ending.
    pub os_functions: &'static [&'static str],
    /// Builtins that may not be named.
    pub builtins: &'static [&'static str],
    /// Whether `main` must have a return statement.
    pub needs_return: bool,
}

/// What `policy` refuses.
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

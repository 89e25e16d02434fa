//! The system calls that a worker may make, as data: each with the arguments that Python uses and the reason. The module
//! `seccomp` compiles the table.
//!
//! A row allows a call if all its conditions hold. Several rows for one call are alternatives. A call that no row allows
//! fails with EPERM, or with the error that [`ANSWERS`] names for it. A row that allows any arguments is for a call whose
//! arguments are only descriptors, addresses, lengths, and flags that are all in use.

use libc::c_long;

use super::policy::OWN_PROCESS;

/// The newest system call that this table takes into account, `listns` of Linux 6.19. Numbers above it fail with ENOSYS,
/// as they do on a kernel that does not have them, so that a newer C library uses an older call. All architectures share
/// the numbers from 424 on: <https://docs.kernel.org/process/adding-syscalls.html>.
pub const NEWEST: u32 = 470;

/// A condition on one argument. Arguments are counted from 0.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// The lower 32 bits are one of the values: (argument, values).
    Among(u8, &'static [u32]),
    /// The lower 32 bits, ANDed with the mask, are one of the values: (argument, mask, values).
    Masked(u8, u32, &'static [u32]),
    /// The lower 32 bits have no other bits than these: (argument, bits).
    Within(u8, u32),
    /// All 64 bits are zero, as for a null pointer.
    Null(u8),
}

/// The workers for which a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// All.
    All,
    /// Workers that do not own the libraries, or see them on a read-only file system.
    NotOwners,
    /// Workers with a uid or a user namespace of their own, which own no file of the service.
    OwnUid,
    /// Workers whose threads are limited.
    Counted,
}

/// What the filter depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    /// Whether each has a uid or a user namespace of its own.
    pub own_uid: bool,
    /// Whether they own libraries that they can open.
    pub owners: bool,
    /// Whether their threads are limited.
    pub counted: bool,
}

impl Workers {
    /// Workers with a uid or a user namespace of their own, for which the kernel counts their threads.
    pub const APART: Workers = Workers { own_uid: true, owners: false, counted: true };
}

impl For {
    /// Whether a row counts for these workers.
    pub fn includes(self, workers: Workers) -> bool {
        match self {
            For::All => true,
            For::NotOwners => workers.own_uid || !workers.owners,
            For::OwnUid => workers.own_uid,
            For::Counted => workers.counted,
        }
    }
}

/// A system call that a worker may make.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The number of the call on this architecture.
    pub number: c_long,
    /// The conditions, all of which must hold.
    pub when: &'static [When],
    /// The workers that may make the call.
    pub workers: For,
    /// What scripts need the call for and, where arguments are left out, why.
    pub reason: &'static str,
}

/// The error with which a call fails that no row allows.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The number of the call on this architecture.
    pub number: c_long,
    /// The conditions, all of which must hold.
    pub when: &'static [When],
    /// The error.
    pub errno: i32,
    /// Who depends on this error.
    pub reason: &'static str,
}

const fn any(number: c_long, reason: &'static str) -> Allowed {
    when(number, &[], reason)
}

const fn when(number: c_long, when: &'static [When], reason: &'static str) -> Allowed {
    Allowed { number, when, workers: For::All, reason }
}

const fn only(workers: For, row: Allowed) -> Allowed {
    Allowed { workers, ..row }
}

const fn answer(number: c_long, when: &'static [When], errno: i32, reason: &'static str) -> Answer {
    Answer { number, when, errno, reason }
}

const WRITE_OR_EXECUTE: u32 = (libc::PROT_WRITE | libc::PROT_EXEC) as u32;
/// Memory that is writable or executable, but not both (W^X). Libraries need executable memory, but only generated code
/// needs memory that is both.
const NOT_BOTH: When =
    When::Masked(2, WRITE_OR_EXECUTE, &[0, libc::PROT_WRITE as u32, libc::PROT_EXEC as u32]);
/// What malloc, the dynamic loader and Python's mmap module ask for: no huge, locked or droppable pages.
const MAP_FLAGS: u32 = (libc::MAP_SHARED
    | libc::MAP_PRIVATE
    | libc::MAP_FIXED
    | libc::MAP_FIXED_NOREPLACE
    | libc::MAP_ANONYMOUS
    | libc::MAP_NORESERVE
    | libc::MAP_STACK
    | libc::MAP_POPULATE
    | libc::MAP_DENYWRITE) as u32;
/// The newer advice of malloc and the mmap module, and the guard pages of thread stacks in newer C libraries
/// (MADV_GUARD_INSTALL and MADV_GUARD_REMOVE of asm-generic/mman-common.h).
const ADVICE: &[u32] = &[
    libc::MADV_NORMAL as u32,
    libc::MADV_RANDOM as u32,
    libc::MADV_SEQUENTIAL as u32,
    libc::MADV_WILLNEED as u32,
    libc::MADV_DONTNEED as u32,
    libc::MADV_FREE as u32,
    libc::MADV_HUGEPAGE as u32,
    libc::MADV_NOHUGEPAGE as u32,
    libc::MADV_DONTDUMP as u32,
    libc::MADV_DODUMP as u32,
    102,
    103,
];

/// Threads share their memory, and also their descriptors, whose number would otherwise be limited for each thread.
const THREAD: u32 = (libc::CLONE_THREAD
    | libc::CLONE_VM
    | libc::CLONE_SIGHAND
    | libc::CLONE_FILES
    | libc::CLONE_FS) as u32;
const NEW_NAMESPACE: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// CLOCK_REALTIME to CLOCK_TAI. Larger and negative ids are clocks of other processes, which would list process ids and
/// CPU times.
const CLOCKS: &[u32] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11];
/// The CPU clock of a thread, as `time.pthread_getcpuclockid` returns it: a negative id with the bits of
/// CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED. The kernel accepts threads of the calling process only.
const THREAD_CLOCK: When = When::Masked(0, 0x8000_0007, &[0x8000_0006]);

const FUTEX_FLAGS: u32 = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u32;

const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
const CREATES: u32 = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u32;
/// Why no row accepts a mode with set-user-ID or set-group-ID.
const NO_SET_ID: &str =
    "but no set-user-ID or set-group-ID, which would run with the rights of the worker's uid";

/// fchmodat2(2), which the crate libc does not name for every target.
const FCHMODAT2: c_long = 452;
/// FICLONE of linux/fs.h.
const FICLONE: u32 = 0x4004_9409;
/// The process itself: 0, or its own id.
const SELF: &[u32] = &[0, OWN_PROCESS];

/// The allowed calls that exist on every architecture.
pub const SYSTEM_CALLS: &[Allowed] = &[
    // Memory
    any(libc::SYS_brk, "memory allocation in malloc"),
    when(
        libc::SYS_mmap,
        &[NOT_BOTH, When::Within(3, MAP_FLAGS)],
        "memory allocation in malloc, loading of extension modules",
    ),
    when(libc::SYS_mprotect, &[NOT_BOTH], "stacks of threads, relocation of extension modules"),
    any(libc::SYS_munmap, "releasing memory in malloc"),
    when(
        libc::SYS_mremap,
        &[When::Within(3, libc::MREMAP_MAYMOVE as u32)],
        "resizing large blocks in realloc, to a place that the kernel chooses",
    ),
    when(
        libc::SYS_madvise,
        &[When::Among(2, ADVICE)],
        "the advice of malloc and of mmap.madvise, but nothing that merges, poisons or moves pages",
    ),
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
    when(
        libc::SYS_close_range,
        &[When::Among(2, &[0])],
        "os.closerange, without a table of descriptors for each thread",
    ),
    any(libc::SYS_dup, "os.dup"),
    any(libc::SYS_dup3, "os.dup2"),
    when(
        libc::SYS_fcntl,
        &[When::Among(
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
        )],
        "non-blocking descriptors and the locks of sqlite3, but no pipe sizes, owners or leases",
    ),
    when(
        libc::SYS_ioctl,
        &[When::Among(
            1,
            &[
                libc::TCGETS as u32,
                libc::TIOCGWINSZ as u32,
                libc::FIONREAD as u32,
                libc::FIONBIO as u32,
                libc::FIOCLEX as u32,
                libc::FIONCLEX as u32,
            ],
        )],
        "os.isatty, os.get_terminal_size, non-blocking descriptors, but no other control of a file or device",
    ),
    when(
        libc::SYS_pipe2,
        &[When::Within(1, (libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_DIRECT) as u32)],
        "os.pipe, but no pipe for notifications of the kernel",
    ),
    any(libc::SYS_flock, "fcntl.flock"),
    any(libc::SYS_fsync, "os.fsync, sqlite3"),
    any(libc::SYS_fdatasync, "os.fdatasync, sqlite3"),
    any(libc::SYS_ftruncate, "file.truncate, os.ftruncate"),
    only(
        For::OwnUid,
        any(libc::SYS_truncate, "os.truncate; Landlock restricts it only from ABI 3 on"),
    ),
    when(
        libc::SYS_fallocate,
        &[When::Among(1, &[0])],
        "os.posix_fallocate, sqlite3, but no holes and no moving of blocks",
    ),
    any(libc::SYS_fadvise64, "os.posix_fadvise"),
    any(libc::SYS_copy_file_range, "os.copy_file_range"),
    // Files; Landlock, the private root and the uid decide which ones can be accessed
    when(libc::SYS_openat, &[When::Masked(2, CREATES, &[0])], "open"),
    when(libc::SYS_openat, &[When::Masked(3, SET_ID, &[0])], NO_SET_ID),
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
    when(libc::SYS_mkdirat, &[When::Masked(2, SET_ID, &[0])], "os.mkdir"),
    any(libc::SYS_unlinkat, "os.remove, os.rmdir"),
    any(libc::SYS_renameat, "os.rename"),
    when(
        libc::SYS_renameat2,
        &[When::Within(4, libc::RENAME_NOREPLACE)],
        "os.rename in newer C libraries, but no exchange and no whiteout",
    ),
    only(
        For::NotOwners,
        when(
            libc::SYS_fchmod,
            &[When::Masked(1, SET_ID, &[0])],
            "os.fchmod; a worker can open libraries, so it must not own them",
        ),
    ),
    only(
        For::OwnUid,
        when(
            libc::SYS_fchmodat,
            &[When::Masked(2, SET_ID, &[0])],
            "os.chmod, shutil.copymode; Landlock does not restrict it",
        ),
    ),
    only(
        For::NotOwners,
        when(
            libc::SYS_utimensat,
            &[When::Null(1)],
            "os.utime on a descriptor; a worker can open libraries, so it must not own them",
        ),
    ),
    only(
        For::OwnUid,
        any(libc::SYS_utimensat, "os.utime, shutil.copystat; Landlock does not restrict it"),
    ),
    any(libc::SYS_umask, "os.umask"),
    any(libc::SYS_getxattr, "os.getxattr, shutil.copystat"),
    any(libc::SYS_lgetxattr, "os.getxattr, shutil.copystat"),
    any(libc::SYS_fgetxattr, "os.getxattr, shutil.copystat"),
    any(libc::SYS_listxattr, "os.listxattr, shutil.copystat"),
    any(libc::SYS_llistxattr, "os.listxattr, shutil.copystat"),
    any(libc::SYS_flistxattr, "os.listxattr, shutil.copystat"),
    // Waiting; poll and select, but no epoll, whose nesting an argument does not tell
    any(libc::SYS_ppoll, "select.poll, asyncio"),
    any(libc::SYS_pselect6, "select.select"),
    any(libc::SYS_eventfd2, "os.eventfd"),
    when(
        libc::SYS_socketpair,
        &[
            When::Among(0, &[libc::AF_UNIX as u32]),
            When::Masked(
                1,
                !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32,
                &[libc::SOCK_STREAM as u32],
            ),
            When::Among(2, &[0]),
        ],
        "the socket pair that wakes up an asyncio loop, which is a stream",
    ),
    when(
        libc::SYS_sendto,
        &[When::Within(3, (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32), When::Null(4)],
        "sending on a socket pair, which needs no address, but no out-of-band data",
    ),
    when(
        libc::SYS_recvfrom,
        &[When::Within(
            3,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_PEEK | libc::MSG_WAITALL) as u32,
        )],
        "receiving on a socket pair, but no out-of-band data",
    ),
    any(libc::SYS_shutdown, "shutting down a socket pair"),
    any(libc::SYS_getsockname, "socket objects of a socket pair"),
    any(libc::SYS_getpeername, "socket objects of a socket pair"),
    when(
        libc::SYS_getsockopt,
        &[
            When::Among(1, &[libc::SOL_SOCKET as u32]),
            When::Among(
                2,
                &[
                    libc::SO_TYPE as u32,
                    libc::SO_ERROR as u32,
                    libc::SO_PROTOCOL as u32,
                    libc::SO_DOMAIN as u32,
                ],
            ),
        ],
        "socket objects of a socket pair, but neither the identity of the peer nor a descriptor of its process",
    ),
    // Time
    when(libc::SYS_clock_gettime, &[When::Among(0, CLOCKS)], "time.time, time.monotonic"),
    when(libc::SYS_clock_gettime, &[THREAD_CLOCK], "time.pthread_getcpuclockid"),
    when(libc::SYS_clock_getres, &[When::Among(0, CLOCKS)], "time.get_clock_info"),
    when(libc::SYS_clock_getres, &[THREAD_CLOCK], "time.pthread_getcpuclockid"),
    when(libc::SYS_clock_nanosleep, &[When::Among(0, CLOCKS)], "time.sleep"),
    any(libc::SYS_nanosleep, "time.sleep in older C libraries"),
    any(libc::SYS_gettimeofday, "time.time in older libraries"),
    any(libc::SYS_times, "os.times"),
    any(libc::SYS_getitimer, "signal.getitimer"),
    any(libc::SYS_setitimer, "signal.setitimer, signal.alarm: one timer of each kind"),
    // Threads
    only(
        For::Counted,
        when(
            libc::SYS_clone,
            &[When::Masked(0, THREAD | NEW_NAMESPACE, &[THREAD])],
            "starting threads, but neither processes nor namespaces",
        ),
    ),
    when(
        libc::SYS_futex,
        &[When::Masked(
            1,
            !FUTEX_FLAGS,
            &[
                libc::FUTEX_WAIT as u32,
                libc::FUTEX_WAKE as u32,
                libc::FUTEX_REQUEUE as u32,
                libc::FUTEX_CMP_REQUEUE as u32,
                libc::FUTEX_WAKE_OP as u32,
                libc::FUTEX_WAIT_BITSET as u32,
                libc::FUTEX_WAKE_BITSET as u32,
            ],
        )],
        "locks, but none that inherit a priority",
    ),
    any(libc::SYS_set_robust_list, "thread start in the C library"),
    any(libc::SYS_rseq, "thread start in the C library"),
    any(libc::SYS_set_tid_address, "thread start in the C library"),
    any(libc::SYS_sched_yield, "time.sleep(0), spin locks"),
    when(
        libc::SYS_sched_getaffinity,
        &[When::Among(0, SELF)],
        "os.cpu_count, sizes of thread pools",
    ),
    any(libc::SYS_getcpu, "per-CPU arenas of allocators"),
    when(
        libc::SYS_membarrier,
        &[When::Among(
            0,
            &[
                libc::MEMBARRIER_CMD_QUERY as u32,
                libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u32,
                libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED as u32,
            ],
        )],
        "locks in some libraries, but no barrier that interrupts the CPUs of other processes",
    ),
    when(
        libc::SYS_prctl,
        &[When::Among(0, &[libc::PR_SET_NAME as u32, libc::PR_GET_NAME as u32])],
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
    when(libc::SYS_kill, &[When::Among(0, &[OWN_PROCESS])], "os.kill on the worker's own process"),
    when(libc::SYS_tgkill, &[When::Among(0, &[OWN_PROCESS])], "abort, raise, signal.pthread_kill"),
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
    when(libc::SYS_getpgid, &[When::Among(0, SELF)], "os.getpgid"),
    when(libc::SYS_getsid, &[When::Among(0, SELF)], "os.getsid"),
    when(libc::SYS_prlimit64, &[When::Among(0, SELF)], "resource.getrlimit, resource.setrlimit"),
    any(libc::SYS_getrusage, "resource.getrusage, time.process_time"),
    any(libc::SYS_uname, "os.uname, the platform module"),
    any(libc::SYS_sysinfo, "os.sysconf"),
    any(libc::SYS_getrandom, "os.urandom, the secrets module"),
    any(libc::SYS_exit, "the end of a thread"),
    any(libc::SYS_exit_group, "the end of the process"),
];

/// Older forms of the calls above that exist on x86-64 only. Some libraries still use them.
#[cfg(target_arch = "x86_64")]
pub const LEGACY_CALLS: &[Allowed] = &[
    when(libc::SYS_open, &[When::Masked(1, CREATES, &[0])], "open"),
    when(libc::SYS_open, &[When::Masked(2, SET_ID, &[0])], NO_SET_ID),
    any(libc::SYS_stat, "os.stat"),
    any(libc::SYS_lstat, "os.lstat"),
    any(libc::SYS_access, "os.access"),
    any(libc::SYS_readlink, "os.readlink, os.path.realpath"),
    any(libc::SYS_getdents, "os.listdir"),
    when(libc::SYS_mkdir, &[When::Masked(1, SET_ID, &[0])], "os.mkdir"),
    any(libc::SYS_rmdir, "os.rmdir"),
    any(libc::SYS_unlink, "os.remove"),
    any(libc::SYS_rename, "os.rename"),
    only(
        For::OwnUid,
        when(
            libc::SYS_chmod,
            &[When::Masked(1, SET_ID, &[0])],
            "os.chmod, shutil.copymode; Landlock does not restrict it",
        ),
    ),
    any(libc::SYS_pipe, "os.pipe"),
    any(libc::SYS_dup2, "os.dup2"),
    any(libc::SYS_poll, "select.poll"),
    any(libc::SYS_select, "select.select"),
    any(libc::SYS_time, "time.time"),
    any(libc::SYS_alarm, "signal.alarm"),
    any(libc::SYS_pause, "signal.pause"),
    any(libc::SYS_getpgrp, "os.getpgrp"),
    any(libc::SYS_getrlimit, "resource.getrlimit"),
];

/// Older forms of the calls above: only x86-64 has any.
#[cfg(not(target_arch = "x86_64"))]
pub const LEGACY_CALLS: &[Allowed] = &[];

/// The errors of refused calls where a caller depends on the error. All other refused calls fail with EPERM.
pub const ANSWERS: &[Answer] = &[
    answer(
        libc::SYS_clone3,
        &[],
        libc::ENOSYS,
        "glibc starts threads with clone then, whose flags a filter can read",
    ),
    answer(FCHMODAT2, &[], libc::ENOSYS, "newer C libraries use fchmodat then"),
    answer(
        libc::SYS_sendfile,
        &[],
        libc::ENOTSOCK,
        "shutil and pathlib copy with read and write then, so that no pages are moved within the kernel",
    ),
    answer(
        libc::SYS_ioctl,
        &[When::Among(1, &[FICLONE])],
        libc::EOPNOTSUPP,
        "pathlib copies the content then",
    ),
];

//! Numbers from the kernel's headers.
#![expect(missing_docs, reason = "the names are those of the kernel")]

use crate::sys::Errno;

pub const ESRCH: Errno = Errno(3);
pub const EINTR: Errno = Errno(4);
pub const EAGAIN: Errno = Errno(11);
pub const EINVAL: Errno = Errno(22);
pub const EPIPE: Errno = Errno(32);
pub const EPROTO: Errno = Errno(71);
pub const ECONNRESET: Errno = Errno(104);

pub const CLONE_NEWNS: usize = 0x0002_0000;
pub const CLONE_NEWUSER: usize = 0x1000_0000;
pub const PR_SET_PDEATHSIG: usize = 1;
pub const PR_SET_DUMPABLE: usize = 4;
pub const PR_SET_SECCOMP: usize = 22;
pub const PR_SET_NO_NEW_PRIVS: usize = 38;
pub const SECCOMP_MODE_FILTER: usize = 2;
pub const SIGKILL: usize = 9;
pub const SIGCHLD: u64 = 17;
pub const SIG_SETMASK: usize = 2;
/// The size of a set of signals, bytes.
pub const SIGNAL_SET_BYTES: usize = 8;
pub const AT_FDCWD: usize = -100_isize as usize;
pub const O_CLOEXEC: usize = 0o2_000_000;
pub const O_NONBLOCK: usize = 0o4_000;
pub const F_DUPFD_CLOEXEC: usize = 1030;
pub const F_ADD_SEALS: usize = 1033;
/// F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE: nothing can change the file.
pub const SEALS: usize = 1 | 2 | 4 | 8;
pub const MFD_CLOEXEC: usize = 1;
pub const MFD_ALLOW_SEALING: usize = 2;
pub const PROT_READ: usize = 1;
pub const PROT_WRITE: usize = 2;
pub const MAP_SHARED: usize = 1;
pub const MAP_PRIVATE: usize = 2;
pub const MAP_FIXED: usize = 0x10;
pub const MAP_ANONYMOUS: usize = 0x20;
pub const MSG_NOSIGNAL: usize = 0x4000;
pub const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
pub const MSG_CTRUNC: u32 = 8;
pub const SOL_SOCKET: u32 = 1;
pub const SCM_RIGHTS: u32 = 1;
pub const POLLIN: u16 = 1;
pub const POLLNVAL: u16 = 0x20;
pub const WNOHANG: usize = 1;
/// MS_NOSUID, MS_NODEV and MS_NOEXEC: neither devices nor programs have a use in a directory of data.
pub const DATA_ONLY: usize = 2 | 4 | 8;
pub const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// The numbers of system calls.
#[cfg(target_arch = "x86_64")]
pub mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const BRK: usize = 12;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const GETPID: usize = 39;
    pub const SENDTO: usize = 44;
    pub const RECVMSG: usize = 47;
    pub const WAIT4: usize = 61;
    pub const FCNTL: usize = 72;
    pub const CHDIR: usize = 80;
    pub const GETPPID: usize = 110;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const SETRESGID: usize = 119;
    pub const CAPSET: usize = 126;
    pub const PRCTL: usize = 157;
    pub const MOUNT: usize = 165;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const PPOLL: usize = 271;
    pub const UNSHARE: usize = 272;
    pub const SIGNALFD4: usize = 289;
    pub const DUP3: usize = 292;
    pub const PRLIMIT64: usize = 302;
    pub const MEMFD_CREATE: usize = 319;
    pub const CLOSE_RANGE: usize = 436;
    pub const LANDLOCK_RESTRICT_SELF: usize = 446;
}

/// The numbers of system calls.
#[cfg(target_arch = "aarch64")]
pub mod number {
    pub const DUP3: usize = 24;
    pub const FCNTL: usize = 25;
    pub const MOUNT: usize = 40;
    pub const CHDIR: usize = 49;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PPOLL: usize = 73;
    pub const SIGNALFD4: usize = 74;
    pub const CAPSET: usize = 91;
    pub const EXIT_GROUP: usize = 94;
    pub const UNSHARE: usize = 97;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const SETRESUID: usize = 147;
    pub const SETRESGID: usize = 149;
    pub const SETSID: usize = 157;
    pub const SETGROUPS: usize = 159;
    pub const PRCTL: usize = 167;
    pub const GETPID: usize = 172;
    pub const GETPPID: usize = 173;
    pub const SENDTO: usize = 206;
    pub const RECVMSG: usize = 212;
    pub const BRK: usize = 214;
    pub const MUNMAP: usize = 215;
    pub const MMAP: usize = 222;
    pub const WAIT4: usize = 260;
    pub const PRLIMIT64: usize = 261;
    pub const MEMFD_CREATE: usize = 279;
    pub const CLOSE_RANGE: usize = 436;
    pub const LANDLOCK_RESTRICT_SELF: usize = 446;
}

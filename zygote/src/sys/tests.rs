use std::vec::Vec;

use super::*;

#[test]
fn the_numbers_are_those_of_the_kernel() {
    let ours = [
        (number::READ, libc::SYS_read),
        (number::CLOSE, libc::SYS_close),
        (number::RT_SIGPROCMASK, libc::SYS_rt_sigprocmask),
        (number::GETPID, libc::SYS_getpid),
        (number::SENDTO, libc::SYS_sendto),
        (number::RECVMSG, libc::SYS_recvmsg),
        (number::WAIT4, libc::SYS_wait4),
        (number::FCNTL, libc::SYS_fcntl),
        (number::CHDIR, libc::SYS_chdir),
        (number::GETPPID, libc::SYS_getppid),
        (number::SETSID, libc::SYS_setsid),
        (number::SETGROUPS, libc::SYS_setgroups),
        (number::SETRESUID, libc::SYS_setresuid),
        (number::SETRESGID, libc::SYS_setresgid),
        (number::CAPSET, libc::SYS_capset),
        (number::PRCTL, libc::SYS_prctl),
        (number::MOUNT, libc::SYS_mount),
        (number::EXIT_GROUP, libc::SYS_exit_group),
        (number::OPENAT, libc::SYS_openat),
        (number::PPOLL, libc::SYS_ppoll),
        (number::UNSHARE, libc::SYS_unshare),
        (number::SIGNALFD4, libc::SYS_signalfd4),
        (number::DUP3, libc::SYS_dup3),
        (number::PRLIMIT64, libc::SYS_prlimit64),
        (number::CLOSE_RANGE, libc::SYS_close_range),
        (number::LANDLOCK_RESTRICT_SELF, libc::SYS_landlock_restrict_self),
    ];
    let different: Vec<_> =
        ours.into_iter().filter(|(ours, theirs)| *ours as i64 != *theirs).collect();
    assert_eq!(different, []);
}

#[test]
fn the_structures_have_the_sizes_of_the_kernel() {
    assert_eq!(size_of::<Message>(), size_of::<libc::msghdr>());
    assert_eq!(size_of::<Part>(), size_of::<libc::iovec>());
    assert_eq!(size_of::<PollFd>(), size_of::<libc::pollfd>());
    assert_eq!(size_of::<Program>(), size_of::<libc::sock_fprog>());
    assert_eq!(CONTROL_HEADER_BYTES, size_of::<libc::cmsghdr>());
    assert_eq!(18 * size_of::<u64>(), size_of::<libc::rusage>());
    assert_eq!(128, size_of::<libc::signalfd_siginfo>());
}

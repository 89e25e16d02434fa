"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    handle = call("syscall", 434, os.getppid(), 0)  # pidfd_open
    return call("syscall", 438, handle, 0, 0)  # pidfd_getfd


def twin():
    return 6 * 7

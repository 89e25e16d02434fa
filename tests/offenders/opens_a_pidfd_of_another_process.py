"""Promise 8; tiers: namespaces, seccomp, landlock."""


def offence():
    return call("syscall", 434, os.getppid(), 0)  # pidfd_open


def twin():
    return 6 * 7

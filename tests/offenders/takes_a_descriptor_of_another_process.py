"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    handle = call("syscall", 434, os.getppid(), 0)
    return call("syscall", 438, handle, 0, 0)


def twin():
    return 6 * 7

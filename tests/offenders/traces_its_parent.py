"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    PTRACE_SEIZE = 0x4206
    return call("ptrace", PTRACE_SEIZE, os.getppid(), 0, 0)


def twin():
    return 6 * 7

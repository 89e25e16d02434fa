"""Promise 8; tiers: namespaces, seccomp, landlock."""


def offence():
    return call("setpriority", 0, os.getppid(), 1)


def twin():
    return 6 * 7

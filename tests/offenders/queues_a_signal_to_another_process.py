"""Promise 8; tiers: namespaces, seccomp, landlock."""


def offence():
    return call("sigqueue", os.getppid(), 0, 0)


def twin():
    return 6 * 7

"""Promise 8; tiers: namespaces, seccomp, landlock."""


def offence():
    return call("kill", os.getppid(), 0)


def twin():
    return call("kill", os.getpid(), 0)

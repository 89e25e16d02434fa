"""Promise 8; tiers: namespaces, seccomp, landlock."""


def offence():
    return call("kill", -1, 0)


def twin():
    return call("kill", os.getpid(), 0)

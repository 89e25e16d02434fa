"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return call("setresuid", 0, 0, 0)


def twin():
    return 6 * 7

"""Promise 2; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return call("memfd_create", b"program", 0)


def twin():
    return 6 * 7

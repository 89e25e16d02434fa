"""Promise 5; tiers: namespaces, seccomp, landlock, rlimits; does not bite: keyrings are not in every kernel."""


def offence():
    return call("syscall", 248, b"user", b"mainbox-offender", b"secret", 6, -2)


def twin():
    return 6 * 7

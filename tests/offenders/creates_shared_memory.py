"""Promise 5; tiers: namespaces, seccomp, landlock."""


def offence():
    shared = call("shmget", 0x6d61696e, 4096, 0o1666)
    call("shmctl", shared, 0, None)
    return shared


def twin():
    return 6 * 7

"""Promise 5; tiers: namespaces, seccomp, landlock."""


def offence():
    semaphores = call("semget", 0x6d61696e, 1, 0o1666)
    call("semctl", semaphores, 0, 0)
    return semaphores


def twin():
    return 6 * 7

"""Promise 5; tiers: namespaces, seccomp, landlock."""


def offence():
    queue = call("msgget", 0x6d61696e, 0o1666)
    call("msgctl", queue, 0, None)
    return queue


def twin():
    return 6 * 7

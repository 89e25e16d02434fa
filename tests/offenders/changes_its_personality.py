"""Promise 7; tiers: namespaces, seccomp, landlock."""


def offence():
    return call("personality", 0xFFFFFFFF)


def twin():
    return 6 * 7

"""Promise 7; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return call("unshare", 0x10000000)  # CLONE_NEWUSER


def twin():
    return 6 * 7

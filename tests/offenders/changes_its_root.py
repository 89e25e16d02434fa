"""Promise 4; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return call("chroot", b"/")


def twin():
    return 6 * 7

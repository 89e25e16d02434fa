"""Promise 1; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return call("socket", 2, 1, 0)  # AF_INET, SOCK_STREAM


def twin():
    return 6 * 7

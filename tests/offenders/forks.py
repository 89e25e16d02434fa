"""Promise 2; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    child = call("fork")
    if child == 0:
        os._exit(0)
    return child


def twin():
    return 6 * 7

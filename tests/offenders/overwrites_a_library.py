"""Promise 4; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import json

    return os.open(json.__file__, os.O_WRONLY)


def twin():
    return 6 * 7

"""Promise 4; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import json

    cache = os.path.dirname(json.__cached__)
    return writes(cache) or nothing()


def twin():
    return 6 * 7

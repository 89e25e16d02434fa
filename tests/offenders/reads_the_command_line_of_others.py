"""Promise 3; tiers: namespaces, landlock, rlimits."""


def offence():
    return [entry for entry in others("cmdline") if entry] or nothing()


def twin():
    return 6 * 7

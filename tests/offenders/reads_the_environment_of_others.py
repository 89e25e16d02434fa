"""Promise 3; tiers: namespaces, landlock, rlimits."""


def offence():
    return [entry for entry in others("environ") if entry] or nothing()


def twin():
    return 6 * 7

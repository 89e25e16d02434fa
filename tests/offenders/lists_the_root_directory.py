"""Promise 3; tiers: landlock, rlimits."""


def offence():
    return os.listdir("/")


def twin():
    return 6 * 7

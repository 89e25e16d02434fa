"""Promise 3; tiers: namespaces, landlock, rlimits."""


def offence():
    return os.listdir(f"/proc/{os.getppid()}/fd")


def twin():
    return 6 * 7

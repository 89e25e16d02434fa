"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY)


def twin():
    return 6 * 7

"""Promise 2; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return os.posix_spawn("/bin/true", ["true"], {})


def twin():
    return 6 * 7

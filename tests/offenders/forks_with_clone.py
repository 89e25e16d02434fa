"""Promise 2; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    child = system_call(56, 17, 0, 0, 0, 0)  # clone with SIGCHLD
    if child == 0:
        os._exit(0)
    return child


def twin():
    return 6 * 7

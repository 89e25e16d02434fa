"""Promise 7; tiers: namespaces, seccomp, landlock."""


def offence():
    return reaches_the_kernel(317, 1, 0, 0)  # seccomp, SECCOMP_SET_MODE_FILTER


def twin():
    return 6 * 7

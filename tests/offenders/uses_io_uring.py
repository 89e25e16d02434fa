"""Promise 7; tiers: namespaces, seccomp, landlock."""


def offence():
    return reaches_the_kernel(425, 1, 0)  # io_uring_setup


def twin():
    return 6 * 7

"""Promise 2; tiers: namespaces, seccomp, landlock."""


def offence():
    return reaches_the_kernel(59, b"/nowhere", 0, 0)  # execve


def twin():
    return 6 * 7

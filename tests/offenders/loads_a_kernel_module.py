"""Promise 7; tiers: namespaces, seccomp, landlock; does not bite: not every kernel has the system call."""


def offence():
    return reaches_the_kernel(313, -1, b"", 0)  # finit_module


def twin():
    return 6 * 7

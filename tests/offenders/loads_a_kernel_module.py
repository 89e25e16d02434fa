"""Promise 7; tiers: namespaces, seccomp, landlock; does not bite: not in every kernel."""


def offence():
    return reaches_the_kernel(313, -1, b"", 0)


def twin():
    return 6 * 7

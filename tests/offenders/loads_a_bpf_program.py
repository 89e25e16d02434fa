"""Promise 7; tiers: namespaces, seccomp, landlock."""


def offence():
    return reaches_the_kernel(321, 0, 0, 0)  # bpf


def twin():
    return 6 * 7

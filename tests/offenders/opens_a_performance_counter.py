"""Promise 7; tiers: namespaces, seccomp, landlock."""


def offence():
    return reaches_the_kernel(298, 0, 0, -1, -1, 0)  # perf_event_open


def twin():
    return 6 * 7

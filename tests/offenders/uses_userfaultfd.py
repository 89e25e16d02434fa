"""Promise 7; tiers: namespaces, seccomp, landlock; does not bite: not every kernel has the system call."""


def offence():
    return reaches_the_kernel(323, 0x7F000000)  # userfaultfd with unknown flags


def twin():
    return 6 * 7

"""Promise 2; tiers: namespaces, seccomp, landlock."""


def offence():
    return reaches_the_kernel(59 if os.uname().machine == "x86_64" else 221, b"/nowhere", 0, 0)  # execve


def twin():
    return 6 * 7

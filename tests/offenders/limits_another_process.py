"""Promise 8; tiers: namespaces, seccomp, landlock."""


def offence():
    import resource

    return resource.prlimit(os.getppid(), resource.RLIMIT_CPU)


def twin():
    import resource

    return resource.prlimit(0, resource.RLIMIT_CPU)

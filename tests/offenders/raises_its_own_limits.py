"""Promise 6; tiers: namespaces, seccomp, landlock, rlimits; does not bite: a plain interpreter has no limits to raise."""


def offence():
    import resource

    for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        _, hard = resource.getrlimit(limit)
        try:
            resource.setrlimit(limit, (hard + 1, hard + 1))
        except (ValueError, OSError):
            continue
        return limit
    raise PermissionError("none")


def twin():
    return 6 * 7

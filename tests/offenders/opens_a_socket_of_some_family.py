"""Promise 1; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    for family in [*range(2, 46), 1]:
        for kind in (1, 2, 3, 5):
            try:
                return family, kind, call("socket", family, kind, 0)
            except OSError:
                continue
    raise PermissionError("no family, no kind")


def twin():
    return 6 * 7

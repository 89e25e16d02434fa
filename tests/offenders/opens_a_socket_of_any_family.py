"""Promise 1; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    for family in [*range(2, 46), 1]:  # every family, AF_UNIX last
        for kind in (1, 2, 3, 5):  # stream, datagram, raw, sequenced packets
            try:
                return family, kind, call("socket", family, kind, 0)
            except OSError:
                continue
    raise PermissionError("no family, no kind")


def twin():
    return 6 * 7

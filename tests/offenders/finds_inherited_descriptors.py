"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits; does not bite: the descriptors of a plain interpreter depend on its parent."""


def offence():
    found = []
    for descriptor in range(4, 4096):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.append(descriptor)
    return found or nothing()


def twin():
    return [os.fstat(descriptor).st_mode > 0 for descriptor in (0, 1, 2, 3)]

"""Promise 3; tiers: namespaces, landlock, rlimits."""


def offence():
    return open("/etc/hosts").read()[:9]


def twin():
    import this  # a file of the standard library

    return this.d["a"]

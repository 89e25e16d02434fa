"""Promise 7; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)


def twin():
    return 6 * 7

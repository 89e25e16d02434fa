"""Promise 4; tiers: namespaces, landlock, rlimits."""


def offence():
    os.symlink("/etc/hosts", "link")
    return open("link").read()[:9]


def twin():
    return 6 * 7

"""Promise 4; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    call("unshare", 0x20000)  # CLONE_NEWNS
    return call("mount", b"tmpfs", b"/mnt", b"tmpfs", 0, None)


def twin():
    return 6 * 7

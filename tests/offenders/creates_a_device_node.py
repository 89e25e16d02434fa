"""Promise 4; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    os.mknod(f"device-{os.getpid()}", 0o20666, os.makedev(1, 1))
    return os.unlink(f"device-{os.getpid()}")


def twin():
    return 6 * 7

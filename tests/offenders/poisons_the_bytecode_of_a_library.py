"""Promise 4; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import json

    path = os.path.join(os.path.dirname(json.__cached__), f"mainbox-offender-{os.getpid()}")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.unlink(path)
    return path


def twin():
    return 6 * 7

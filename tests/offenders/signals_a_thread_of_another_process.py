"""Promise 8; tiers: namespaces, seccomp, landlock."""


def offence():
    return call("syscall", 234, os.getppid(), os.getppid(), 0)  # tgkill


def twin():
    import threading

    return call("syscall", 234, os.getpid(), threading.get_native_id(), 0)

"""Promise 8; tiers: namespaces, seccomp, landlock."""


TGKILL = 234 if os.uname().machine == "x86_64" else 131


def offence():
    return call("syscall", TGKILL, os.getppid(), os.getppid(), 0)


def twin():
    import threading

    return call("syscall", TGKILL, os.getpid(), threading.get_native_id(), 0)

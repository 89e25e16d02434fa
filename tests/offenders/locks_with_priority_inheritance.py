"""Promise 7; tiers: namespaces, seccomp, landlock."""


def offence():
    word = ctypes.c_int(0)
    return call("syscall", 202 if os.uname().machine == "x86_64" else 98, ctypes.byref(word), 6, 0, None, None, 0)


def twin():
    import threading

    with threading.Lock():
        return 1

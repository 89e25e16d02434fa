"""Promise 3; tiers: namespaces, seccomp, landlock."""


def offence():
    time = (ctypes.c_long * 2)()
    call("clock_gettime", ~os.getppid() << 3 | 2, time)
    return list(time)


def twin():
    import threading
    import time

    return time.clock_gettime(time.pthread_getcpuclockid(threading.get_ident())) >= 0

"""Promise 5; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    class Attributes(ctypes.Structure):
        _fields_ = [("numbers", ctypes.c_long * 8)]

    queue = system_call(240, b"mainbox-offender", os.O_CREAT | os.O_RDWR, 0o600, 0)  # mq_open
    system_call(241, b"mainbox-offender")  # mq_unlink
    return queue


def twin():
    return 6 * 7

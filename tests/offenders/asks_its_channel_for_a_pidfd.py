"""Promise 8; tiers: namespaces, seccomp, landlock."""


def offence():
    import socket
    import stat

    try:
        channel = 3 if stat.S_ISSOCK(os.fstat(3).st_mode) else None
    except OSError:
        channel = None
    pair = None if channel else socket.socketpair()
    pidfd, length = ctypes.c_int(), ctypes.c_uint(4)
    SO_PEERPIDFD = 77
    return call("getsockopt", channel or pair[0].fileno(), 1, SO_PEERPIDFD, ctypes.byref(pidfd), ctypes.byref(length))


def twin():
    import socket

    a, _ = socket.socketpair()
    return a.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)

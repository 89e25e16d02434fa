"""Promise 1; tiers: namespaces, seccomp, landlock."""


def offence():
    import socket

    a, _ = socket.socketpair()
    address = (ctypes.c_ushort * 8)(1)  # AF_UNIX
    try:
        return call("sendto", a.fileno(), b"x", 1, 0, address, 16)
    except (ConnectionRefusedError, FileNotFoundError, OSError) as error:
        if error.errno == errno.EPERM:
            raise
        return error


def twin():
    import socket

    a, b = socket.socketpair()
    a.send(b"x")
    return b.recv(1)

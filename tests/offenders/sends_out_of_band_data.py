"""Promise 7; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import socket

    a, _ = socket.socketpair()
    return a.send(b"x", socket.MSG_OOB)


def twin():
    import socket

    a, b = socket.socketpair()
    a.send(b"xy")
    return b.recv(1, socket.MSG_PEEK) + b.recv(2)

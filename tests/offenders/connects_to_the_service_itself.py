"""Promise 1; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import socket

    return socket.create_connection(("127.0.0.1", PORT))


def twin():
    return 6 * 7

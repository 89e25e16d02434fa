"""Promise 1; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    return socket.create_connection(listener.getsockname())


def twin():
    return 6 * 7

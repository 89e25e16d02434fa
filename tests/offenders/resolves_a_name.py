"""Promise 1; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import socket

    return socket.getaddrinfo("localhost", 80)


def twin():
    return 6 * 7

"""Promise 1; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0mainbox-offender")
    listener.listen()
    other = socket.socket(socket.AF_UNIX)
    other.connect("\0mainbox-offender")


def twin():
    return 6 * 7

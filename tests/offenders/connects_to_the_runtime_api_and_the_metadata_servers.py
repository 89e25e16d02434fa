"""Promise 1; tiers: namespaces, seccomp, landlock, rlimits; does not bite: no server listens at these addresses on a test machine."""


def offence():
    import socket

    for address in (("127.0.0.1", 9001), ("169.254.100.1", 9001), ("169.254.169.254", 80)):
        try:
            return socket.create_connection(address, timeout=0.1)
        except PermissionError:
            continue
    raise PermissionError("none")


def twin():
    return 6 * 7

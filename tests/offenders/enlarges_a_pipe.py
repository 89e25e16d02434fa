"""Promise 6; tiers: namespaces, seccomp, landlock."""


def offence():
    import fcntl

    reader, _ = os.pipe()
    return fcntl.fcntl(reader, 1031, 1 << 20)  # F_SETPIPE_SZ


def twin():
    reader, writer = os.pipe()
    os.write(writer, b"x")
    return os.read(reader, 1)

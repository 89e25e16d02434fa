"""Promise 7; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    file = os.open("file", os.O_CREAT | os.O_RDWR)
    os.write(file, bytes(8192))
    return call("fallocate", file, 3, ctypes.c_long(0), ctypes.c_long(4096))


def twin():
    with open("space", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4096)
        return os.fstat(file.fileno()).st_size

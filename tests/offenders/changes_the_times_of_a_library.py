"""Promise 4; tiers: namespaces, seccomp, landlock."""


def offence():
    import json

    found = os.stat(json.__file__)
    times = (ctypes.c_long * 4)(*divmod(found.st_atime_ns, 10**9), *divmod(found.st_mtime_ns, 10**9))
    call("utimensat", -100, json.__file__.encode(), times, 0)
    return "changed"


def twin():
    with open("file", "w") as file:
        os.utime(file.name, (5, 7))
    return os.stat("file").st_mtime

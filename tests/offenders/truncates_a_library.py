"""Promise 4; tiers: namespaces, seccomp, landlock."""


def offence():
    import json

    call("truncate", json.__file__.encode(), ctypes.c_long(os.stat(json.__file__).st_size))
    return "truncated"


def twin():
    with open("file", "w") as file:
        file.write("content")
    os.truncate("file", 3)
    return os.stat("file").st_size

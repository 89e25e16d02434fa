"""Promise 7; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    source, target = os.open("source", os.O_CREAT | os.O_RDWR), os.open("target", os.O_CREAT | os.O_RDWR)
    os.write(source, b"content")
    return call("sendfile", target, source, ctypes.byref(ctypes.c_long(0)), 7)


def twin():
    import shutil

    with open("from", "wb") as file:
        file.write(bytes(100_000))
    return os.path.getsize(shutil.copyfile("from", "to"))

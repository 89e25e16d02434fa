"""Promise 4; tiers: namespaces, seccomp, landlock."""


def offence():
    file = os.open("file", os.O_CREAT | os.O_RDWR, 0o4755)
    call("fchmod", file, 0o6755)
    return oct(os.fstat(file).st_mode)


def twin():
    with open("plain", "w") as file:
        return oct(os.fstat(file.fileno()).st_mode)

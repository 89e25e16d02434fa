"""Promise 7; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    for name in ("one", "two"):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    return call("renameat2", -100, b"one", -100, b"two", 2)  # RENAME_EXCHANGE


def twin():
    with open("old", "w"):
        pass
    os.rename("old", "new")
    return os.path.exists("new")

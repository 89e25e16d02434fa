"""Promise 4; tiers: namespaces, seccomp, landlock."""


def offence():
    import json
    import stat

    call("chmod", json.__file__.encode(), stat.S_IMODE(os.stat(json.__file__).st_mode))
    return "changed"


def twin():
    with open("file", "w") as file:
        os.chmod(file.name, 0o640)
    return oct(os.stat("file").st_mode)

"""Promise 4; tiers: namespaces, seccomp, landlock."""


def offence():
    import json
    import stat

    folder = os.open(os.path.dirname(json.__file__), os.O_RDONLY)
    call("fchmod", folder, stat.S_IMODE(os.fstat(folder).st_mode))
    return "changed"


def twin():
    import json

    return len(os.listdir(os.path.dirname(json.__file__))) > 3

"""Promise 5; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    if call("fork") == 0:
        os.setsid()
        if call("fork") == 0:
            os._exit(0)
        os._exit(0)
    return "left"


def twin():
    return 6 * 7

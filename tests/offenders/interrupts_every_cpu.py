"""Promise 7; tiers: namespaces, seccomp, landlock."""


def offence():
    return system_call(324 if os.uname().machine == "x86_64" else 283, 1, 0, 0)  # membarrier, GLOBAL


def twin():
    import time

    time.sleep(0)
    return 1

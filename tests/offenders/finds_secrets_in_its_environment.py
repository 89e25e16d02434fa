"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits; does not bite: the environment of a plain interpreter depends on its parent."""


def offence():
    return [name for name in os.environ if name.startswith(("AWS", "MAINBOX", "K_", "SECRET", "CARGO"))] or nothing()


def twin():
    return os.environ["HOME"]

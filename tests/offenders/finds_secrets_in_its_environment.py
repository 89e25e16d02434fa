"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits; does not bite: what a plain interpreter finds is up to whoever starts it."""


def offence():
    return [name for name in os.environ if name.startswith(("AWS", "MAINBOX", "K_", "SECRET", "CARGO"))] or nothing()


def twin():
    return os.environ["HOME"]

"""Promise 5; tiers: namespaces, seccomp, landlock, rlimits; does not bite: not every kernel has keyrings."""


def offence():
    return call("syscall", 248, b"user", b"mainbox-offender", b"secret", 6, -2)  # add_key, KEY_SPEC_PROCESS_KEYRING


def twin():
    return 6 * 7

"""Promise 4; tiers: namespaces, seccomp, landlock; does not bite: it would fill the disk of the test machine."""


def offence():
    for number in range(50_000):
        with open(f"file-{number}", "w"):
            pass
    return number


def twin():
    for number in range(100):
        with open(f"few-{number}", "w"):
            pass
    return number

"""Promise 4; tiers: namespaces, seccomp, landlock; does not bite: it would fill the disk of the test machine."""


def offence():
    written = 0
    for number in range(20):
        with open(f"big-{number}", "wb") as file:
            for _ in range(40):
                written += file.write(bytes(1 << 20))
    return written


def twin():
    with open("small", "wb") as file:
        return file.write(bytes(1 << 20))

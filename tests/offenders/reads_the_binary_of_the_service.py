"""Promise 3; tiers: namespaces, landlock, rlimits."""


def offence():
    for path in (f"/proc/{os.getppid()}/exe", "/usr/local/bin/mainbox", sys.executable):
        try:
            return open(path, "rb").read(4)
        except OSError:
            continue
    raise PermissionError("none")


def twin():
    return 6 * 7
